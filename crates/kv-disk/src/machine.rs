//! The machine as the engine sees it: a database, with what is worth knowing without asking it.

use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_proto::key_value::rules::{self, KvRead as _, KvTable as _};
use d_engine_proto::key_value::snapshot_file::{
    SnapshotFileError, SnapshotFileReader, check_files, file_bytes,
};
use d_engine_proto::key_value::{KvCommand, KvQuery, KvReply, MACHINE_NAME};
use d_engine_replica::{
    Binding, Bound, Durability, Entry, LogId, Result, SnapshotMetadata, SnapshotView, StateMachine,
};
use d_engine_storage::fs::ensure_dir;
use d_engine_storage::{Fs, FsLock, LockAttempt, RealFs};

use crate::database::{self, Database, panicked};
use crate::error::{DiskKvError, Failure};
use crate::snapshot::{self, Frozen, View};
use crate::state::{ReadError, State};
use crate::tables::{FrozenRecords, Pages, Tables};

/// Bytes that the database keeps in memory of what it has read and is about to write, unless told otherwise.
pub const CACHE_BYTES_DEFAULT: usize = 64 << 20;

/// Bytes of commands after which the machine makes its changes durable without being asked: a crash takes away
/// no more than this, to be applied again from the log, and the file need not grow for more than this.
pub const SYNC_EVERY_BYTES: usize = 64 << 20;

/// What a new database needs for records whose snapshot has `file_bytes`. Measured: twice as many while it is filled, and
/// 1.07 times once it is closed.
fn database_bytes(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(9).div_ceil(4).saturating_add(4 << 20)
}

/// Bytes that the file may grow by while a view is held, unless told otherwise; or by as much as it had, if that is more.
/// Every page that is changed then is written elsewhere: a small put costs up to 30 KiB.
pub const VIEW_GROWTH_BYTES_DEFAULT: u64 = 1 << 30;

const LOCK_NAME: &str = "lock";

/// Ordered keys on disk ([`Durability::Durable`]), with the commands, replies, questions and snapshots of
/// `d-engine-kv`'s `KvStateMachine`: a cluster may have both kinds.
///
/// Data and position are changed in one transaction for each chunk. [`StateMachine::flush`], dropping the machine, and
/// every [`SYNC_EVERY_BYTES`] of commands make the transactions durable; a crash before that leaves an earlier state
/// with its position, and the engine applies the rest again.
///
/// It needs its directory for itself, locks it while it is started, and makes it when it is missing. A damaged file is
/// found: every record has a checksum that is compared whenever it is read, and a start reads the whole file twice (page
/// by page, then record by record; see `docs/performance.md` for the time per GiB). [`StateMachine::scrub`] and every
/// snapshot read all records again. Damage stops the node with the reason; the next start puts the file aside as
/// `kv.redb.damaged` and begins empty, so that the engine fills it from the snapshot and the log.
///
/// Damage that was there at the start is found before anything is served. Of damage that comes later, a damaged record is
/// found by the read that meets it; a damaged page *above* the records is found for certain only by the scrub: until
/// then a read may miss a key that is there. Pages that the cache holds are not read again by a scrub.
pub struct DiskKvStateMachine {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    cache_bytes: usize,
    view_growth_bytes: u64,
    sync_every_bytes: usize,
    running: AtomicBool,
    /// What the engine has told of its directory.
    binding: Mutex<Option<Binding>>,
    /// Taken by whoever changes the state, for as long as that takes. Readers do not.
    writing: Mutex<()>,
    /// `None`: not started yet.
    open: RwLock<Option<Open>>,
}

/// What is known of the open database. `state` and the rest are what the last transaction has left, or what has been
/// told since and goes into the next one.
struct Open {
    database: Arc<Database>,
    state: State,
    next_expiry_ms: Option<u64>,
    /// Bytes of commands since the last durable transaction; `None`: nothing has changed since.
    not_durable: Option<usize>,
    /// What is being read as of one moment: for a snapshot, by a scrub.
    views: Vec<Weak<Frozen>>,
    /// The records were given up to make room for those of a snapshot, which are not there yet.
    is_filling: bool,
    _lock: Mutex<Box<dyn FsLock>>,
}

impl DiskKvStateMachine {
    /// A machine in `dir`; a relative path starts at the working directory of this moment. Nothing is touched before
    /// [`StateMachine::start`].
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self::with_fs(Arc::new(RealFs::new()), std::path::absolute(&dir).unwrap_or(dir))
    }

    /// A machine whose files, snapshots included, go through `fs`.
    #[must_use]
    pub fn with_fs(fs: Arc<dyn Fs>, dir: impl Into<PathBuf>) -> Self {
        Self {
            fs,
            dir: dir.into(),
            cache_bytes: CACHE_BYTES_DEFAULT,
            view_growth_bytes: VIEW_GROWTH_BYTES_DEFAULT,
            sync_every_bytes: SYNC_EVERY_BYTES,
            running: AtomicBool::new(false),
            binding: Mutex::default(),
            writing: Mutex::default(),
            open: RwLock::default(),
        }
    }

    /// Another size of the database's cache than [`CACHE_BYTES_DEFAULT`], in bytes; from the next start on.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Another number than [`SYNC_EVERY_BYTES`].
    #[must_use]
    pub fn sync_every_bytes(mut self, bytes: usize) -> Self {
        self.sync_every_bytes = bytes;
        self
    }

    /// Another bound than [`VIEW_GROWTH_BYTES_DEFAULT`] for what the file may grow by while a snapshot is written.
    #[must_use]
    pub fn view_growth_bytes(mut self, bytes: u64) -> Self {
        self.view_growth_bytes = bytes;
        self
    }

    /// The directory with the machine's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    // Nothing panics while it holds this lock for long enough to leave a half of anything behind.
    fn read<T>(&self, read: impl FnOnce(&Open) -> T) -> Result<T, DiskKvError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(read).ok_or_else(|| DiskKvError::NotStarted { dir: self.dir.clone() })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Open) -> T) -> Result<T, DiskKvError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.as_mut().map(change).ok_or_else(|| DiskKvError::NotStarted { dir: self.dir.clone() })
    }

    fn database(&self) -> Result<Arc<Database>, DiskKvError> {
        self.read(|open| Arc::clone(&open.database))
    }

    fn records(&self) -> Result<(Arc<Database>, FrozenRecords), DiskKvError> {
        let (database, is_filling) = self.read(|open| (Arc::clone(&open.database), open.is_filling))?;
        if is_filling {
            return Err(DiskKvError::BeingFilled { dir: self.dir.clone() });
        }
        let transaction = database.begin_read()?;
        let records = State::time_ms_in(&transaction)
            .and_then(|time_ms| FrozenRecords::open(&transaction, time_ms))
            .map_err(|failure| database.failed(failure))?;
        Ok((database, records))
    }

    /// Gives every record in the order of the keys, with its value and when it vanishes; returns the log time of that
    /// moment. For comparing replicas.
    ///
    /// # Errors
    /// The machine was not started, or its file cannot be read.
    pub fn for_each_record(
        &self,
        mut each: impl FnMut(&[u8], &[u8], Option<NonZeroU64>),
    ) -> Result<u64, DiskKvError> {
        let (database, time_ms) = self.read(|open| (Arc::clone(&open.database), open.state.time_ms))?;
        let records = FrozenRecords::open(&database.begin_read()?, time_ms)
            .map_err(|failure| database.failed(failure))?;
        let told = records.try_for_each(|key, value, expires_ms| {
            each(key, value, expires_ms);
            Ok::<_, Failure>(())
        });
        told.map_err(|failure| database.failed(failure))?;
        Ok(time_ms)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        // What a panic has left of a transaction is gone with it.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io(&self, source: std::io::Error) -> DiskKvError {
        DiskKvError::Io { path: self.dir.clone(), source }
    }

    /// Locks the directory and opens what is in it, if it belongs to the node.
    fn open(&self) -> Result<Open> {
        ensure_dir(&*self.fs, &self.dir).map_err(|source| self.io(source))?;
        let lock = match self.fs.try_lock(&self.dir.join(LOCK_NAME)).map_err(|source| self.io(source))? {
            LockAttempt::Held(lock) => Mutex::new(lock),
            LockAttempt::InUse { holder } => {
                return Err(DiskKvError::InUse { dir: self.dir.clone(), holder }.into());
            }
        };
        let (database, mut state) = Database::open(&*self.fs, &self.dir, self.cache_bytes)?;
        if let Some(binding) = &*self.bound_to()
            && binding.compare(state.binding.as_ref().map(<[u8; _]>::as_slice))? == Bound::Store
        {
            state.binding = Some(binding.to_bytes());
            database.commit_durably(&state)?;
        }
        let next_expiry_ms = database.first_expiry_ms()?;
        let (database, is_filling) = (Arc::new(database), false);
        let (not_durable, views) = (None, Vec::new());
        Ok(Open { database, state, next_expiry_ms, not_durable, views, is_filling, _lock: lock })
    }

    fn bound_to(&self) -> MutexGuard<'_, Option<Binding>> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One transaction: what `work` does to the tables, and the position that it comes to. `bytes` is how much of the
    /// log it was.
    fn transact<T>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Tables<'_>, &mut LogId) -> Result<T, Failure>,
    ) -> Result<T, DiskKvError> {
        let (database, mut state, waiting) =
            self.read(|open| (Arc::clone(&open.database), open.state.clone(), open.not_durable))?;
        let not_durable = waiting.unwrap_or(0).saturating_add(bytes);
        let is_durable = not_durable >= self.sync_every_bytes;
        let transaction = if is_durable { database.begin_durable()? } else { database.begin_lazy()? };
        let done = (|| {
            let mut tables = Tables::open(&transaction, &state)?;
            let done = work(&mut tables, &mut state.position)?;
            (state.time_ms, state.content_bytes) = (tables.time_ms(), tables.content_bytes());
            let next_expiry_ms = tables.first_expiry()?.map(|(at, _)| at.get());
            drop(tables);
            state.store(&transaction)?;
            transaction.commit()?;
            Ok((done, next_expiry_ms))
        })();
        let (done, next_expiry_ms) = done.map_err(|failure| database.failed(failure))?;
        self.change(|open| {
            open.state = state;
            open.next_expiry_ms = next_expiry_ms;
            open.not_durable = (!is_durable).then_some(not_durable);
        })?;
        self.bound_views(&database)?;
        Ok(done)
    }

    /// Gives the views up for which the file has grown too far: the pages that they read are needed.
    fn bound_views(&self, database: &Database) -> Result<(), DiskKvError> {
        let views: Vec<_> = self.read(|open| open.views.iter().filter_map(Weak::upgrade).collect())?;
        let mut bytes = None;
        for view in views.iter().filter(|view| view.given_up_at().is_none()) {
            let bytes = *bytes.get_or_insert_with(|| database.bytes());
            if bytes.saturating_sub(view.began_at) > self.view_growth_bytes.max(view.began_at) {
                tracing::warn!(
                    began_at = view.began_at,
                    bytes,
                    "a snapshot or a scrub is given up: the database grows beside it"
                );
                view.give_up(bytes);
            }
        }
        Ok(())
    }

    /// Puts a new database in the place of the open one.
    fn replace(&self, new: Database, state: State, next_expiry_ms: Option<u64>) -> Result<(), DiskKvError> {
        new.take_place(&*self.fs, &self.dir)?;
        let before = self.change(|open| {
            open.state = state;
            open.next_expiry_ms = next_expiry_ms;
            open.not_durable = None;
            std::mem::replace(&mut open.database, Arc::new(new))
        })?;
        // Its file is gone when the last reader is.
        drop(before);
        self.fs.sync_dir(&self.dir).map_err(|source| self.io(source))
    }

    /// Ends an unfinished database after whatever went wrong with it.
    fn give_up(&self, new: &Database) {
        new.close().ok();
        database::discard(&*self.fs, &self.dir);
    }

    /// Whether a second database has room beside the open one. What the disk does not tell is not asked for.
    fn has_room(&self, bytes: u64) -> Result<bool, DiskKvError> {
        let free = self.fs.free_bytes(&self.dir).map_err(|source| self.io(source))?;
        Ok(free.is_none_or(|free| free >= bytes))
    }

    /// Gives the records up, durably: the machine stands at the beginning, so that whatever happens until a snapshot
    /// has been installed, the next start installs it again.
    fn make_room(&self) -> Result<(), DiskKvError> {
        let before = self.database()?;
        let state = State { binding: self.read(|open| open.state.binding)?, ..State::default() };
        let empty = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        if let Err(error) = empty.commit_durably(&state) {
            self.give_up(&empty);
            return Err(error);
        }
        self.change(|open| open.is_filling = true)?;
        self.replace(empty, state, None)?;
        // Also when a view still reads from it: the room is needed.
        before.close()
    }

    fn freeze(&self) -> Result<View, DiskKvError> {
        let _writing = self.writing();
        let (database, label, time_ms) =
            self.read(|open| (Arc::clone(&open.database), open.state.position, open.state.time_ms))?;
        let frozen = Arc::new(Frozen::new(database.begin_read()?, database.bytes()));
        self.change(|open| {
            open.views.retain(|view| view.strong_count() > 0);
            open.views.push(Arc::downgrade(&frozen));
        })?;
        Ok(View { fs: Arc::clone(&self.fs), label, time_ms, frozen, database })
    }

    /// Reads all records and expiries of one moment, and compares them with what is noted of the whole.
    fn scrub_view(&self, view: &View) -> Result<(), Ended> {
        let Some(transaction) = view.frozen.take() else { return Ok(()) };
        let state = State::read(&transaction).map_err(|error| match error {
            ReadError::Failed(failure) => failure,
            ReadError::Damaged(what) => Failure::Damaged(what.to_owned()),
            ReadError::Newer(found) => Failure::Damaged(format!("it has become one of version {found}")),
        })?;
        let records = FrozenRecords::open(&transaction, state.time_ms)?;
        records.verify(state.content_bytes, Pages::Unchecked, || {
            let goes_on = self.running.load(Ordering::Acquire) && view.frozen.given_up_at().is_none();
            goes_on.then_some(()).ok_or(Ended::GivenUp)
        })
    }
}

/// Why a scrub has not come to its end.
enum Ended {
    Failed(Failure),
    /// The machine was stopped, or the file has grown too far beside it.
    GivenUp,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Flushes; what cannot be flushed comes again from the log.
impl Drop for DiskKvStateMachine {
    fn drop(&mut self) {
        self.flush().ok();
        if let Ok(database) = self.database() {
            // Also when a view still reads from it: the directory is free after this.
            database.close().ok();
        }
    }
}

#[async_trait]
impl StateMachine for DiskKvStateMachine {
    /// Compared and stored by `start`, which opens the files.
    fn bind(&self, binding: &Binding) -> Result<()> {
        *self.bound_to() = Some(binding.clone());
        let Ok(bound) = self.read(|open| open.state.binding) else { return Ok(()) };
        if binding.compare(bound.as_ref().map(<[u8; _]>::as_slice))? == Bound::Store {
            self.change(|open| {
                open.state.binding = Some(binding.to_bytes());
                open.not_durable.get_or_insert(0);
            })?;
            self.flush()?;
        }
        Ok(())
    }

    /// Opens the database; after a `stop`, the machine just goes on.
    fn start(&self) -> Result<()> {
        let _writing = self.writing();
        if self.database().is_err() {
            let open = self.open()?;
            *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(open);
        }
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        self.running.store(false, Ordering::Release);
        self.flush()
    }

    fn is_running(&self) -> bool {
        // A damaged file serves nothing more; the next entry stops the node with the reason.
        self.running.load(Ordering::Acquire) && self.database().is_ok_and(|database| !database.is_damaged())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let (database, records) = self.records()?;
        Ok(rules::value(&records, key).map_err(|failure| database.failed(failure))?)
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        let known = self.read(|open| {
            [Some(open.state.position), open.state.snapshot.as_ref().map(|meta| meta.last_included)]
        });
        let known = known.ok()?.into_iter().flatten();
        known.filter(|id| id.index == entry_id && id.index > 0).map(|id| id.term).next()
    }

    /// One transaction for the chunk: decoding comes before it and the replies after it, and each command sees what
    /// the one before it did.
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let commands: Vec<_> = chunk.iter().map(|entry| KvCommand::decode(&entry.data)).collect();
        let bytes = chunk.iter().map(|entry| entry.data.len()).sum();
        let _writing = self.writing();
        let applied = self.read(|open| open.state.position.index)?;
        if chunk.iter().all(|entry| entry.index <= applied) {
            return Ok(());
        }
        let replies = self.transact(bytes, |tables, position| {
            let mut replies = Vec::with_capacity(chunk.len());
            for (entry, command) in chunk.iter().zip(&commands) {
                if entry.index <= position.index {
                    continue;
                }
                let reply = match command {
                    Ok(command) => rules::apply(tables, command, entry.time_ms())?,
                    Err(error) => {
                        rules::pass_time(tables, entry.time_ms())?;
                        KvReply::Rejected { reason: error.to_string() }
                    }
                };
                *position = entry.log_id();
                replies.push((entry, reply));
            }
            Ok(replies)
        })?;
        for (entry, reply) in replies {
            entry.reply(reply.encode());
        }
        Ok(())
    }

    /// 0 when the machine has not been started, or its database cannot be read.
    fn len(&self) -> usize {
        let length = self.records().ok().and_then(|(_, records)| records.len().ok());
        length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0)
    }

    /// Goes into the next transaction: an entry without a command changes no data, so it may come again.
    fn update_last_applied(&self, last: LogId) {
        let told = self.change(|open| {
            if last.index > open.state.position.index {
                open.state.position = last;
                open.not_durable.get_or_insert(0);
            }
        });
        // There is nothing to tell a machine that has not been started: the engine starts it first.
        told.unwrap_or(());
    }

    fn last_applied(&self) -> LogId {
        self.read(|open| open.state.position).unwrap_or_default()
    }

    /// Nothing beyond [`StateMachine::update_last_applied`]: data and position are stored together.
    fn persist_last_applied(&self, last: LogId) -> Result<()> {
        self.update_last_applied(last);
        Ok(())
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        Ok(self.change(|open| {
            open.state.snapshot = Some(meta.clone());
            open.not_durable.get_or_insert(0);
        })?)
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.read(|open| open.state.snapshot.clone()).ok().flatten()
    }

    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.update_last_snapshot_metadata(meta)?;
        self.flush()
    }

    /// Fills a new database beside the open one, which takes its place by a rename. Without room on the disk for both,
    /// the records are given up first; reads fail until the new ones are there.
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        let _writing = self.writing();
        check_files(&*self.fs, meta, &path)?;
        let mut input = SnapshotFileReader::open(&*self.fs, &path, meta.last_included)?;
        let mut state = self.read(|open| open.state.clone())?;
        if !self.has_room(database_bytes(file_bytes(input.left())))? {
            self.make_room()?;
        }
        let new = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        match snapshot::fill(&new, &mut input, &mut state) {
            Ok(next_expiry_ms) => {
                self.replace(new, state, next_expiry_ms)?;
                Ok(self.change(|open| open.is_filling = false)?)
            }
            Err(error) => {
                self.give_up(&new);
                Err(error)
            }
        }
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        let view = self.freeze()?;
        if view.label > last_included {
            let error = SnapshotFileError::Label { state: view.label, label: last_included };
            return Err(error.into());
        }
        Box::new(View { label: last_included, ..view }).write(&dir)
    }

    fn save_hard_state(&self) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let _writing = self.writing();
        if self.database().is_err() {
            // Not started: there is nothing to lose.
            return Ok(());
        }
        let (database, state, waiting) =
            self.read(|open| (Arc::clone(&open.database), open.state.clone(), open.not_durable))?;
        if waiting.is_some() {
            database.commit_durably(&state)?;
            // What was told meanwhile is not in it.
            self.change(|open| {
                if open.state == state {
                    open.not_durable = None;
                }
            })?;
        }
        Ok(())
    }

    /// An empty database takes the place of the open one.
    async fn reset(&self) -> Result<()> {
        let _writing = self.writing();
        self.database()?;
        let new = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        let state = State { binding: self.read(|open| open.state.binding)?, ..State::default() };
        if let Err(error) = new.commit_durably(&state) {
            self.give_up(&new);
            return Err(error.into());
        }
        self.replace(new, state, None)?;
        Ok(self.change(|open| open.is_filling = false)?)
    }

    fn durability(&self) -> Durability {
        Durability::Durable
    }

    fn name(&self) -> &str {
        MACHINE_NAME
    }

    fn check(&self, command: &[u8]) -> Result<()> {
        Ok(KvCommand::check(command)?)
    }

    /// Compares every record, their number and order, and their expiries, as a start does, and looks each up by its key; all
    /// of one moment, because a damaged page above the records loses some of them and touches none. Others go on beside it. Ends when the machine
    /// is stopped, or when the file has grown too far meanwhile ([`DiskKvStateMachine::view_growth_bytes`]).
    fn scrub(&self) -> Result<()> {
        let view = self.freeze()?;
        // The database may panic about pages that it cannot make sense of.
        let scrubbed = catch_unwind(AssertUnwindSafe(|| self.scrub_view(&view)));
        match scrubbed.unwrap_or_else(|panic| Err(Failure::Damaged(panicked(&*panic)).into())) {
            Ok(()) | Err(Ended::GivenUp) => Ok(()),
            // Another one has taken its place, and this one may be closed: nobody reads from it any more.
            Err(Ended::Failed(_)) if !Arc::ptr_eq(&view.database, &self.database()?) => Ok(()),
            Err(Ended::Failed(failure)) => Err(view.database.failed(failure).into()),
        }
    }

    fn snapshot_bytes(&self) -> Option<u64> {
        self.read(|open| file_bytes(open.state.content_bytes)).ok()
    }

    /// Room for a second database; or, where there is none, what the new one needs beyond the old one.
    fn install_bytes(&self, _meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        let needed = database_bytes(file_bytes);
        let own = self.database().map_or(0, |database| database.bytes());
        needed.saturating_sub(own)
    }

    /// The disk may be asked: not on an async thread.
    fn reads_block(&self) -> bool {
        true
    }

    /// Always one: the database keeps the pages of the state that is read, and writes others.
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        Ok(Some(Box::new(self.freeze()?)))
    }

    /// A [`KvQuery`], answered with a [`KvAnswer`](d_engine_proto::key_value::KvAnswer), from one state.
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let query = KvQuery::decode(request)?;
        let (database, records) = self.records()?;
        let answer = rules::answer(&records, &query).map_err(|failure| database.failed(failure))??;
        Ok(answer.encode())
    }

    fn next_expiry_ms(&self) -> Option<u64> {
        self.read(|open| open.next_expiry_ms).ok().flatten()
    }

    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        let _writing = self.writing();
        if at.index <= self.last_applied().index {
            return Ok(());
        }
        self.transact(0, |tables, position| {
            *position = at;
            rules::advance_to(tables, time_ms)
        })?;
        Ok(())
    }
}
