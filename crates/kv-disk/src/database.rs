//! One database in one file. A new database is created under a temporary name and replaces the
//! previous one by a rename: after a crash either one or the other is in place.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use d_engine_fs::{Fs, FsFile, OpenMode};
use d_engine_locks::Unpoisoned;
use redb::{Durability, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::backend::{Backend, Failures};
use crate::error::{DiskKvError, Failure, is_wrong_content};
use crate::state::{FORMAT_VERSION, ReadError, State};
use crate::tables::{self, FrozenRecords, Pages, Tables};

/// The file's name in the machine's directory.
pub(crate) const FILE_NAME: &str = "kv.redb";
/// The name that a damaged database is moved to. The next damaged one overwrites it.
pub(crate) const DAMAGED_NAME: &str = "kv.redb.damaged";
/// The name of a database that is still being created.
pub(crate) const UNFINISHED_NAME: &str = "kv.redb.new";

/// An open database. A reader keeps its state when another database replaces this one.
pub(crate) struct Database {
    /// The file's path at the next start.
    path: PathBuf,
    /// The open file, for its length.
    backend: Arc<dyn FsFile>,
    /// What has failed in the file since it was opened.
    failures: Arc<Failures>,
    /// The damage found while the database was in use.
    damage: OnceLock<String>,
    /// `None`: closed. The lock is held only while a transaction begins.
    file: RwLock<Option<redb::Database>>,
}

impl Database {
    /// Opens the database in `dir`, or creates an empty one. An existing database is read
    /// completely. A damaged one is moved aside and replaced by an empty one, which the engine
    /// fills from the snapshot and the log, or it refuses to start.
    pub(crate) fn open(
        fs: &dyn Fs,
        dir: &Path,
        cache_bytes: usize,
    ) -> Result<(Self, State), DiskKvError> {
        let is_there = |name| fs.list(dir).map(|names| names.iter().any(|found| found == name));
        let io = |source| DiskKvError::Io { path: dir.to_owned(), source };
        if is_there(UNFINISHED_NAME).map_err(io)? {
            fs.remove_file(&dir.join(UNFINISHED_NAME)).map_err(io)?;
        }
        if is_there(FILE_NAME).map_err(io)? {
            // A crash may have happened between the rename and this sync.
            fs.sync_dir(dir).map_err(io)?;
            match Self::open_whole(fs, dir, cache_bytes) {
                Err(error) if error.is_damage() => {
                    let aside = dir.join(DAMAGED_NAME);
                    tracing::error!(%error, aside = %aside.display(), "the key-value database is \
                        damaged and put aside");
                    fs.rename(&dir.join(FILE_NAME), &aside).map_err(io)?;
                    fs.sync_dir(dir).map_err(io)?;
                }
                opened => return opened,
            }
        }
        let new = Self::create(fs, dir, cache_bytes)?;
        if let Err(error) = new.commit_durably(&State::default()) {
            new.give_up(fs, dir);
            return Err(error);
        }
        new.take_place(fs, dir)?;
        fs.sync_dir(dir).map_err(io)?;
        Ok((new, State::default()))
    }

    /// Opens the existing database if every page and record is intact. The database library may
    /// panic on pages that it cannot parse.
    fn open_whole(
        fs: &dyn Fs,
        dir: &Path,
        cache_bytes: usize,
    ) -> Result<(Self, State), DiskKvError> {
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

    /// Verifies the checksum of every page. There must be no readers.
    fn check_pages(&self) -> Result<(), DiskKvError> {
        let mut file = self.file.write().unpoisoned();
        let checked = file.as_mut().map_or(Ok(true), redb::Database::check_integrity);
        drop(file);
        match checked.map_err(|error| self.failed(error.into()))? {
            true => Ok(()),
            // A "repaired" database may hold an earlier state, or lack pages that could not be
            // read.
            false => {
                Err(self
                    .failed(Failure::Damaged("the checksum of a page does not match".to_owned())))
            }
        }
    }

    /// Reads every record and compares the totals with the stored ones. Returns the state that the
    /// records belong to.
    pub(crate) fn verify(&self) -> Result<State, DiskKvError> {
        let state = self.state()?;
        let records = FrozenRecords::open(&self.begin_read()?, state.time_ms);
        let verified = records
            .and_then(|records| records.verify(state.content_bytes, Pages::Checked, || Ok(())));
        verified.map(|()| state).map_err(|failure| self.failed(failure))
    }

    /// Creates an empty database in `dir` under the temporary name. If that fails, for example on a
    /// full disk, nothing of it is left behind.
    pub(crate) fn create(fs: &dyn Fs, dir: &Path, cache_bytes: usize) -> Result<Self, DiskKvError> {
        discard(fs, dir);
        let created = Self::at(fs, dir, UNFINISHED_NAME, OpenMode::CreateNew, cache_bytes);
        created.inspect_err(|_| discard(fs, dir))
    }

    /// Removes this unfinished database after a failure.
    pub(crate) fn give_up(&self, fs: &dyn Fs, dir: &Path) {
        self.close().ok();
        discard(fs, dir);
    }

    fn at(
        fs: &dyn Fs,
        dir: &Path,
        name: &str,
        mode: OpenMode,
        cache_bytes: usize,
    ) -> Result<Self, DiskKvError> {
        let path = dir.join(name);
        let file = fs
            .open(&path, mode)
            .map_err(|source| DiskKvError::Io { path: path.clone(), source })?;
        let mut builder = redb::Builder::new();
        let (backend, failures) = (Arc::clone(&file), Arc::<Failures>::default());
        let through = Backend { file, failures: Arc::clone(&failures) };
        let opened = builder.set_cache_size(cache_bytes).create_with_backend(through);
        let file = opened.map_err(|error| failed(&path, error.into()))?;
        let (file, damage) = (RwLock::new(Some(file)), OnceLock::new());
        Ok(Self { path: dir.join(FILE_NAME), backend, failures, damage, file })
    }

    /// Closes the database and opens it again as its last durable transaction left it. After a lack
    /// of space the database library refuses to use an open file any more.
    pub(crate) fn reopened(
        &self,
        fs: &dyn Fs,
        dir: &Path,
        cache_bytes: usize,
    ) -> Result<(Self, State), DiskKvError> {
        // The close reports the failure that is known.
        self.close().ok();
        let again = Self::at(fs, dir, FILE_NAME, OpenMode::Existing, cache_bytes)?;
        let state = again.state()?;
        Ok((again, state))
    }

    /// The lack of space after which the database can no longer be used as it is open.
    pub(crate) fn lack_of_room(&self) -> Option<io::Error> {
        self.failures.lack_of_room().filter(|_| !self.is_damaged())
    }

    /// The file's length in bytes; 0 if the system does not report it.
    pub(crate) fn bytes(&self) -> u64 {
        self.backend.len().unwrap_or(0)
    }

    /// The file's path at the next start.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Remembers damage, so that a damaged file is never changed again.
    pub(crate) fn note(&self, error: DiskKvError) -> DiskKvError {
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

    /// Renames the database to its final name, replacing any previous one. Durable only after a
    /// sync of the directory.
    pub(crate) fn take_place(&self, fs: &dyn Fs, dir: &Path) -> Result<(), DiskKvError> {
        let renamed = fs.rename(&dir.join(UNFINISHED_NAME), &self.path);
        renamed.map_err(|source| DiskKvError::Io { path: self.path.clone(), source })
    }

    /// Closes the database. Readers that still use it get an error.
    pub(crate) fn close(&self) -> Result<(), DiskKvError> {
        let file = self.file.write().unpoisoned().take();
        file.map_or(Ok(()), redb::Database::close).map_err(|error| self.failed(error.into()))
    }

    fn with<T>(
        &self,
        begin: impl FnOnce(&redb::Database) -> Result<T, redb::TransactionError>,
    ) -> Result<T, DiskKvError> {
        let file = self.file.read().unpoisoned();
        let Some(file) = &*file else {
            return Err(self.failed(redb::StorageError::DatabaseClosed.into()));
        };
        begin(file).map_err(|error| self.failed(error.into()))
    }

    /// A read transaction on the current state, which no later change affects.
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, DiskKvError> {
        self.with(ReadableDatabase::begin_read)
    }

    /// A write transaction that becomes durable together with a later durable one.
    pub(crate) fn begin_lazy(&self) -> Result<WriteTransaction, DiskKvError> {
        self.refuse_if_damaged()?;
        let mut transaction = self.with(redb::Database::begin_write)?;
        transaction.set_durability(Durability::None).map_err(|error| self.failed(error.into()))?;
        Ok(transaction)
    }

    /// A write transaction that is durable when it is committed.
    pub(crate) fn begin_durable(&self) -> Result<WriteTransaction, DiskKvError> {
        self.refuse_if_damaged()?;
        let mut transaction = self.with(redb::Database::begin_write)?;
        // Otherwise a start after a crash would read the whole file.
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Stores the state and makes it and everything before it durable.
    pub(crate) fn commit_durably(&self, state: &State) -> Result<(), DiskKvError> {
        let transaction = self.begin_durable()?;
        // Create the tables now, so that readers need not check for them.
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

    /// When the first record expires, in UNIX milliseconds of log time.
    pub(crate) fn first_expiry_ms(&self) -> Result<Option<u64>, DiskKvError> {
        tables::first_expiry_ms(&self.begin_read()?).map_err(|failure| self.failed(failure))
    }

    /// Adds the file's path to a failure; damage is remembered.
    pub(crate) fn failed(&self, failure: Failure) -> DiskKvError {
        let error = self.note(failed(&self.path, failure));
        match self.lack_of_room().filter(|_| error.is_of_file()) {
            Some(source) => DiskKvError::NoRoom { path: self.path.clone(), source },
            None => error,
        }
    }
}

/// The text of a panic on a page that could not be parsed.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("the database panicked: {text}")
}

fn failed(path: &Path, failure: Failure) -> DiskKvError {
    let path = path.to_owned();
    match failure {
        Failure::Database(source) => match *source {
            redb::Error::Io(source) if !is_wrong_content(&source) => {
                DiskKvError::Io { path, source }
            }
            source => DiskKvError::Database { path, source: Box::new(source) },
        },
        Failure::Damaged(what) => DiskKvError::Damaged { path, what },
    }
}

/// Removes an unfinished database, if there is one. If that fails, creating the next one fails and
/// reports it.
fn discard(fs: &dyn Fs, dir: &Path) {
    fs.remove_file(&dir.join(UNFINISHED_NAME)).ok();
}
