//! One database in one file. It is made under another name, and takes the place of the one before by a rename: a crash
//! leaves the one or the other.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use d_engine_storage::fs::OpenMode;
use d_engine_storage::{Fs, FsFile};
use redb::{Durability, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::backend::Backend;
use crate::error::{DiskKvError, Failure, is_wrong_content};
use crate::state::{FORMAT_VERSION, ReadError, State};
use crate::tables::{self, FrozenRecords, Pages, Tables};

/// The file's name in the machine's directory.
pub(crate) const FILE_NAME: &str = "kv.redb";
/// What a damaged one is put aside as; the next one takes its place.
pub(crate) const DAMAGED_NAME: &str = "kv.redb.damaged";
/// The name of one that is being made.
pub(crate) const UNFINISHED_NAME: &str = "kv.redb.new";

/// An open database. What has been read from it stays readable when another one takes its place.
pub(crate) struct Database {
    /// Where it will be found at the next start.
    path: PathBuf,
    /// The open file, for its length.
    backend: Arc<dyn FsFile>,
    /// What was found wrong with it while it was in use.
    damage: OnceLock<String>,
    /// `None`: closed. The lock is held for as long as a transaction takes to begin.
    file: RwLock<Option<redb::Database>>,
}

impl Database {
    /// Opens the one in `dir`, or makes an empty one. One that is there is read whole; when it is damaged, it is put aside,
    /// and an empty one takes its place: the engine fills that from the snapshot and the log, or refuses to start.
    pub(crate) fn open(fs: &dyn Fs, dir: &Path, cache_bytes: usize) -> Result<(Self, State), DiskKvError> {
        let is_there = |name| fs.list(dir).map(|names| names.iter().any(|found| found == name));
        let io = |source| DiskKvError::Io { path: dir.to_owned(), source };
        if is_there(UNFINISHED_NAME).map_err(io)? {
            fs.remove_file(&dir.join(UNFINISHED_NAME)).map_err(io)?;
        }
        if is_there(FILE_NAME).map_err(io)? {
            // A crash may have come between the rename and this.
            fs.sync_dir(dir).map_err(io)?;
            match Self::open_whole(fs, dir, cache_bytes) {
                Err(error) if error.is_damage() => {
                    let aside = dir.join(DAMAGED_NAME);
                    tracing::error!(%error, aside = %aside.display(), "the key-value database is damaged and put aside");
                    fs.rename(&dir.join(FILE_NAME), &aside).map_err(io)?;
                    fs.sync_dir(dir).map_err(io)?;
                }
                opened => return opened,
            }
        }
        let new = Self::create(fs, dir, cache_bytes)?;
        new.commit_durably(&State::default())?;
        new.take_place(fs, dir)?;
        fs.sync_dir(dir).map_err(io)?;
        Ok((new, State::default()))
    }

    /// The one that is there, if every page and every record of it is as it was written. The database may panic about pages
    /// that it cannot make sense of.
    fn open_whole(fs: &dyn Fs, dir: &Path, cache_bytes: usize) -> Result<(Self, State), DiskKvError> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = Self::at(fs, dir, FILE_NAME, OpenMode::Existing, cache_bytes)?;
            database.check_pages()?;
            let state = database.verify()?;
            Ok((database, state))
        }));
        opened.unwrap_or_else(|panic| {
            Err(DiskKvError::Damaged { path: dir.join(FILE_NAME), what: panicked(&*panic) })
        })
    }

    /// Compares the checksum of every page. Nobody may be reading.
    fn check_pages(&self) -> Result<(), DiskKvError> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        let checked = file.as_mut().map_or(Ok(true), redb::Database::check_integrity);
        drop(file);
        match checked.map_err(|error| self.failed(error.into()))? {
            true => Ok(()),
            // What it calls repaired may be an earlier state, or one without the pages that could not be read.
            false => Err(self.failed(Failure::Damaged("the checksum of a page does not match".to_owned()))),
        }
    }

    /// Reads every record, and compares them with what is noted of the whole; returns the state that they are of.
    pub(crate) fn verify(&self) -> Result<State, DiskKvError> {
        let state = self.state()?;
        let records = FrozenRecords::open(&self.begin_read()?, state.time_ms);
        let verified =
            records.and_then(|records| records.verify(state.content_bytes, Pages::Checked, || Ok(())));
        verified.map(|()| state).map_err(|failure| self.failed(failure))
    }

    /// An empty one in `dir`, under the name of one that is being made.
    pub(crate) fn create(fs: &dyn Fs, dir: &Path, cache_bytes: usize) -> Result<Self, DiskKvError> {
        discard(fs, dir);
        Self::at(fs, dir, UNFINISHED_NAME, OpenMode::CreateNew, cache_bytes)
    }

    fn at(
        fs: &dyn Fs,
        dir: &Path,
        name: &str,
        mode: OpenMode,
        cache_bytes: usize,
    ) -> Result<Self, DiskKvError> {
        let path = dir.join(name);
        let file = fs.open(&path, mode).map_err(|source| DiskKvError::Io { path: path.clone(), source })?;
        let mut builder = redb::Builder::new();
        let backend = Arc::clone(&file);
        let opened = builder.set_cache_size(cache_bytes).create_with_backend(Backend(file));
        let file = opened.map_err(|error| failed(&path, error.into()))?;
        let (file, damage) = (RwLock::new(Some(file)), OnceLock::new());
        Ok(Self { path: dir.join(FILE_NAME), backend, damage, file })
    }

    /// Bytes of its file; 0 when the system does not tell.
    pub(crate) fn bytes(&self) -> u64 {
        self.backend.len().unwrap_or(0)
    }

    /// Where it will be found at the next start.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps damage in mind: nothing is changed any more in a file that is not what was written.
    fn note(&self, error: DiskKvError) -> DiskKvError {
        if error.is_damage() {
            self.damage.get_or_init(|| error.to_string());
        }
        error
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damage.get().is_some()
    }

    fn refuse_if_damaged(&self) -> Result<(), DiskKvError> {
        match self.damage.get() {
            Some(what) => Err(DiskKvError::Damaged { path: self.path.clone(), what: what.clone() }),
            None => Ok(()),
        }
    }

    /// Gives it its name; whatever had that is gone. Durable only after a sync of the directory.
    pub(crate) fn take_place(&self, fs: &dyn Fs, dir: &Path) -> Result<(), DiskKvError> {
        let renamed = fs.rename(&dir.join(UNFINISHED_NAME), &self.path);
        renamed.map_err(|source| DiskKvError::Io { path: self.path.clone(), source })
    }

    /// Ends it. Whoever still reads from it gets an error.
    pub(crate) fn close(&self) -> Result<(), DiskKvError> {
        let file = self.file.write().unwrap_or_else(PoisonError::into_inner).take();
        file.map_or(Ok(()), redb::Database::close).map_err(|error| self.failed(error.into()))
    }

    fn with<T>(
        &self,
        begin: impl FnOnce(&redb::Database) -> Result<T, redb::TransactionError>,
    ) -> Result<T, DiskKvError> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &*file else {
            return Err(self.failed(redb::StorageError::DatabaseClosed.into()));
        };
        begin(file).map_err(|error| self.failed(error.into()))
    }

    /// The state of this moment, which nothing changes any more.
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, DiskKvError> {
        self.with(ReadableDatabase::begin_read)
    }

    /// A change that is durable once a later durable one is.
    pub(crate) fn begin_lazy(&self) -> Result<WriteTransaction, DiskKvError> {
        self.refuse_if_damaged()?;
        let mut transaction = self.with(redb::Database::begin_write)?;
        transaction.set_durability(Durability::None).map_err(|error| self.failed(error.into()))?;
        Ok(transaction)
    }

    /// A change that is durable when it is committed.
    pub(crate) fn begin_durable(&self) -> Result<WriteTransaction, DiskKvError> {
        self.refuse_if_damaged()?;
        let mut transaction = self.with(redb::Database::begin_write)?;
        // Otherwise the start after a crash would read the whole file.
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Stores the state and makes everything up to it durable.
    pub(crate) fn commit_durably(&self, state: &State) -> Result<(), DiskKvError> {
        let transaction = self.begin_durable()?;
        // The tables are there from the beginning: readers need not ask.
        Tables::open(&transaction, state)
            .map(drop)
            .and_then(|()| state.store(&transaction))
            .and_then(|()| Ok(transaction.commit()?))
            .map_err(|failure| self.failed(failure))
    }

    pub(crate) fn state(&self) -> Result<State, DiskKvError> {
        State::read(&self.begin_read()?).map_err(|error| match error {
            ReadError::Failed(failure) => self.failed(failure),
            ReadError::Damaged(what) => {
                DiskKvError::Damaged { path: self.path.clone(), what: what.to_owned() }
            }
            ReadError::Newer(found) => {
                DiskKvError::Newer { path: self.path.clone(), found, expected: FORMAT_VERSION }
            }
        })
    }

    /// When the first record vanishes, in UNIX milliseconds of log time.
    pub(crate) fn first_expiry_ms(&self) -> Result<Option<u64>, DiskKvError> {
        tables::first_expiry_ms(&self.begin_read()?).map_err(|failure| self.failed(failure))
    }

    /// A failure with the file that it is about; damage is kept in mind.
    pub(crate) fn failed(&self, failure: Failure) -> DiskKvError {
        self.note(failed(&self.path, failure))
    }
}

/// What a panic about a page that made no sense has said.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it says nothing more");
    format!("the database panicked: {text}")
}

fn failed(path: &Path, failure: Failure) -> DiskKvError {
    let path = path.to_owned();
    match failure {
        Failure::Database(source) => match *source {
            redb::Error::Io(source) if !is_wrong_content(&source) => DiskKvError::Io { path, source },
            source => DiskKvError::Database { path, source: Box::new(source) },
        },
        Failure::Damaged(what) => DiskKvError::Damaged { path, what },
    }
}

/// Removes one that was not finished, if there is one. What cannot be removed is in the way of the next one, which
/// then says so.
pub(crate) fn discard(fs: &dyn Fs, dir: &Path) {
    fs.remove_file(&dir.join(UNFINISHED_NAME)).ok();
}
