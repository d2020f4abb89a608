//! The machine as the engine sees it: a database, with what is worth knowing without asking it.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_proto::key_value::rules::{self, KvRead, KvTable};
use d_engine_proto::key_value::snapshot_file::{SnapshotFileError, SnapshotFileReader, check_files};
use d_engine_proto::key_value::{KvCommand, KvQuery, KvReply};
use d_engine_replica::{Durability, Entry, LogId, Result, SnapshotMetadata, SnapshotView, StateMachine};
use d_engine_storage::fs::ensure_dir;
use d_engine_storage::{Fs, FsLock, LockAttempt, RealFs};

use crate::database::{self, Database};
use crate::error::{DiskKvError, Failure};
use crate::snapshot::{self, View};
use crate::state::State;
use crate::tables::{FrozenRecords, Tables};

/// Bytes that the database keeps in memory of what it has read and is about to write, unless told otherwise.
pub const CACHE_BYTES_DEFAULT: usize = 64 << 20;

/// Bytes of commands after which the machine makes its changes durable without being asked: a crash takes away
/// no more than this, to be applied again from the log, and the file need not grow for more than this.
pub const SYNC_EVERY_BYTES: usize = 64 << 20;

const LOCK_NAME: &str = "lock";

/// Ordered keys on disk ([`Durability::Durable`]), with the commands, replies, questions and snapshots of
/// `d-engine-kv`'s `KvStateMachine`: a cluster may have both kinds.
///
/// Data and position are changed in one transaction for each chunk. [`StateMachine::flush`], dropping the machine, and
/// every [`SYNC_EVERY_BYTES`] of commands make the transactions durable; a crash before that leaves an earlier state
/// with its position, and the engine applies the rest again.
///
/// It needs its directory for itself, locks it while it is started, and makes it when it is missing. A damaged file is
/// found when a damaged part of it is read: the node then stops with the reason. Remove the directory to have
/// it filled anew from the snapshot and the log.
pub struct DiskKvStateMachine {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    cache_bytes: usize,
    running: AtomicBool,
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
    _lock: Mutex<Box<dyn FsLock>>,
}

impl DiskKvStateMachine {
    /// A machine in `dir`. Nothing is touched before [`StateMachine::start`].
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self::with_fs(Arc::new(RealFs::new()), dir)
    }

    /// A machine whose files, snapshots included, go through `fs`.
    #[must_use]
    pub fn with_fs(fs: Arc<dyn Fs>, dir: impl Into<PathBuf>) -> Self {
        Self {
            fs,
            dir: dir.into(),
            cache_bytes: CACHE_BYTES_DEFAULT,
            running: AtomicBool::new(false),
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
        let database = self.database()?;
        let records =
            FrozenRecords::open(&database.begin_read()?).map_err(|failure| database.failed(failure))?;
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
        let records =
            FrozenRecords::open(&database.begin_read()?).map_err(|failure| database.failed(failure))?;
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

    /// Locks the directory and opens what is in it.
    fn open(&self) -> Result<Open, DiskKvError> {
        ensure_dir(&*self.fs, &self.dir).map_err(|source| self.io(source))?;
        let lock = match self.fs.try_lock(&self.dir.join(LOCK_NAME)).map_err(|source| self.io(source))? {
            LockAttempt::Held(lock) => Mutex::new(lock),
            LockAttempt::InUse { holder } => {
                return Err(DiskKvError::InUse { dir: self.dir.clone(), holder });
            }
        };
        let database = Database::open(&*self.fs, &self.dir, self.cache_bytes)?;
        let state = database.state()?;
        let next_expiry_ms = database.first_expiry_ms()?;
        Ok(Open { database: Arc::new(database), state, next_expiry_ms, not_durable: None, _lock: lock })
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
        let is_durable = not_durable >= SYNC_EVERY_BYTES;
        let transaction = if is_durable { database.begin_durable()? } else { database.begin_lazy()? };
        let done = (|| {
            let mut tables = Tables::open(&transaction, state.time_ms)?;
            let done = work(&mut tables, &mut state.position)?;
            state.time_ms = tables.time_ms();
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
        Ok(done)
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

    fn freeze(&self) -> Result<View, DiskKvError> {
        let _writing = self.writing();
        let (database, label, time_ms) =
            self.read(|open| (Arc::clone(&open.database), open.state.position, open.state.time_ms))?;
        let transaction = database.begin_read()?;
        Ok(View { fs: Arc::clone(&self.fs), label, time_ms, transaction, database })
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
        self.running.load(Ordering::Acquire)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let (database, records) = self.records()?;
        Ok(records.value(key).map_err(|failure| database.failed(failure))?)
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
                        rules::advance_to(tables, entry.time_ms())?;
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

    /// Fills a new database beside the open one, which takes its place by a rename. Needs room on the disk for both.
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        let _writing = self.writing();
        check_files(&*self.fs, meta, &path)?;
        let mut input = SnapshotFileReader::open(&*self.fs, &path, meta.last_included)?;
        let mut state = self.read(|open| open.state.clone())?;
        let new = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        match snapshot::fill(&new, &mut input, &mut state) {
            Ok(next_expiry_ms) => Ok(self.replace(new, state, next_expiry_ms)?),
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
        let state = State::default();
        if let Err(error) = new.commit_durably(&state) {
            self.give_up(&new);
            return Err(error.into());
        }
        Ok(self.replace(new, state, None)?)
    }

    fn durability(&self) -> Durability {
        Durability::Durable
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
