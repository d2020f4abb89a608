//! The on-disk key-value state machine: a database, with the values that are needed without reading
//! it.

mod change;
mod open;
mod recent;
mod scrub;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_fs::{Fs, RealFs};
use d_engine_kv::snapshot_file::{SnapshotFileError, SnapshotFileReader, check_files, file_bytes};
use d_engine_kv_language::rules;
use d_engine_kv_language::{KvCommand, KvQuery, MACHINE_NAME};
use d_engine_locks::Unpoisoned;
use d_engine_state_machine::{
    Binding, Bound, Durability, Entry, LogId, Result, SnapshotMetadata, SnapshotView, StateMachine,
};

use self::open::Open;
use self::recent::Change;
use crate::database::Database;
use crate::error::{DiskKvError, Failure};
use crate::snapshot::{self, Frozen, View};
use crate::state::State;
use crate::tables::FrozenRecords;

/// Default size in bytes of the database's cache for pages read and pages about to be written.
pub const CACHE_BYTES_DEFAULT: usize = 64 << 20;

/// After this many bytes of commands, each counted with 64 bytes more, the machine makes its
/// changes durable without a request. A crash loses no more than this, and the log supplies it
/// again; the file also need not grow for more than this. The machine keeps these commands in
/// memory.
pub const SYNC_EVERY_BYTES: usize = 64 << 20;

/// Disk space that a new database needs for records whose snapshot has `file_bytes`. Measured:
/// twice the size while it is filled, and 1.07 times once it is closed.
fn database_bytes(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(9).div_ceil(4).saturating_add(4 << 20)
}

/// Default limit in bytes for the file's growth while a view is held; if the file's own length is
/// larger, that is the limit. Every page changed in that time is written elsewhere: a small put
/// costs up to 30 KiB.
pub const VIEW_GROWTH_BYTES_DEFAULT: u64 = 1 << 30;

/// Ordered keys on disk ([`Durability::Durable`]), with the commands, replies, queries and
/// snapshots of `d-engine-kv`'s `KvStateMachine`: one cluster may run both machines.
///
/// Data and position are changed in one transaction for each chunk. [`StateMachine::flush`],
/// dropping the machine, and every [`SYNC_EVERY_BYTES`] of commands make the transactions durable;
/// a crash before that leaves an earlier state with its position, and the engine applies the rest
/// again.
///
/// Without disk space calls fail and change nothing. Once there is space, the next call opens the
/// file again as its last durable transaction left it, and repeats the commands since then from
/// memory.
///
/// It needs a directory of its own, creates it if missing, and locks it from `start` to `stop`.
/// Damage to the file is detected: every record has a checksum that is verified at every read, and
/// a start reads the whole file twice (page by page, then record by record; see
/// `docs/performance.md` for the time per GiB). [`StateMachine::scrub`] and every snapshot read all
/// records again. Damage stops the node with the reason; the next start moves the file aside as
/// `kv.redb.damaged` and begins empty, so that the engine refills it from the snapshot and the log.
///
/// Damage present at the start is found before anything is served. Of later damage, a read detects
/// a damaged record that it meets; only a scrub is certain to detect a damaged page *above* the
/// records: until then a read may miss an existing key. A scrub does not read pages again that are
/// in the cache.
pub struct DiskKvStateMachine {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    cache_bytes: usize,
    view_growth_bytes: u64,
    sync_every_bytes: usize,
    running: AtomicBool,
    /// The binding that the engine passed for this directory.
    binding: Mutex<Option<Binding>>,
    /// Held by the thread that changes the state, for the whole change. Readers do not take it.
    writing: Mutex<()>,
    /// `None`: not started yet.
    open: RwLock<Option<Open>>,
}

impl DiskKvStateMachine {
    /// A machine in `dir`; a relative path is resolved against the current working directory now.
    /// Nothing is touched before [`StateMachine::start`].
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

    /// Sets the size of the database's cache in bytes (default [`CACHE_BYTES_DEFAULT`]); takes
    /// effect at the next start.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Replaces [`SYNC_EVERY_BYTES`].
    #[must_use]
    pub fn sync_every_bytes(mut self, bytes: usize) -> Self {
        self.sync_every_bytes = bytes;
        self
    }

    /// Replaces [`VIEW_GROWTH_BYTES_DEFAULT`], the limit of the file's growth while a snapshot is
    /// written.
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

    // No code panics while it holds this lock and leaves a partial change, so a poisoned lock is
    // safe.
    fn read<T>(&self, read: impl FnOnce(&Open) -> T) -> Result<T, DiskKvError> {
        let open = self.open.read().unpoisoned();
        open.as_ref().map(read).ok_or_else(|| DiskKvError::NotStarted { dir: self.dir.clone() })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Open) -> T) -> Result<T, DiskKvError> {
        let mut open = self.open.write().unpoisoned();
        open.as_mut().map(change).ok_or_else(|| DiskKvError::NotStarted { dir: self.dir.clone() })
    }

    fn database(&self) -> Result<Arc<Database>, DiskKvError> {
        self.read(|open| Arc::clone(&open.database))
    }

    fn records(&self) -> Result<(Arc<Database>, FrozenRecords), DiskKvError> {
        self.mend_for_read()?;
        let (database, is_filling) =
            self.read(|open| (Arc::clone(&open.database), open.is_filling))?;
        if is_filling {
            return Err(DiskKvError::BeingFilled { dir: self.dir.clone() });
        }
        let transaction = database.begin_read()?;
        let records = State::time_ms_in(&transaction)
            .and_then(|time_ms| FrozenRecords::open(&transaction, time_ms))
            .map_err(|failure| database.failed(failure))?;
        Ok((database, records))
    }

    /// Passes every record in key order, with its value and expiry; returns the log time of that
    /// state. For comparing replicas.
    ///
    /// # Errors
    /// The machine was not started, or its file cannot be read.
    pub fn for_each_record(
        &self,
        mut each: impl FnMut(&[u8], &[u8], Option<NonZeroU64>),
    ) -> Result<u64, DiskKvError> {
        self.mend_for_read()?;
        let (database, time_ms) =
            self.read(|open| (Arc::clone(&open.database), open.state.time_ms))?;
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
        // A transaction that a panic interrupted is rolled back.
        self.writing.lock().unpoisoned()
    }

    fn io(&self, source: std::io::Error) -> DiskKvError {
        DiskKvError::Io { path: self.dir.clone(), source }
    }

    fn bound_to(&self) -> MutexGuard<'_, Option<Binding>> {
        self.binding.lock().unpoisoned()
    }

    fn freeze(&self) -> Result<View, DiskKvError> {
        let _writing = self.writing();
        self.mend()?;
        let (database, last_included, time_ms) = self
            .read(|open| (Arc::clone(&open.database), open.state.position, open.state.time_ms))?;
        let frozen = Arc::new(Frozen::new(database.begin_read()?, database.bytes()));
        self.change(|open| {
            open.views.retain(|view| view.strong_count() > 0);
            open.views.push(Arc::downgrade(&frozen));
        })?;
        Ok(View { fs: Arc::clone(&self.fs), last_included, time_ms, frozen, database })
    }
}

/// Flushes. If that fails, the log supplies the rest again.
impl Drop for DiskKvStateMachine {
    fn drop(&mut self) {
        self.flush().ok();
        if let Ok(database) = self.database() {
            // Even if a view still reads from it: the directory is unlocked after this.
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

    /// Opens the database; after a `stop`, the machine resumes.
    fn start(&self) -> Result<()> {
        let _writing = self.writing();
        if self.database().is_err() {
            let open = self.open()?;
            *self.open.write().unpoisoned() = Some(open);
        }
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        self.running.store(false, Ordering::Release);
        self.flush()
    }

    fn is_running(&self) -> bool {
        // A damaged file serves no more reads; the next entry stops the node with the reason.
        self.running.load(Ordering::Acquire)
            && self.database().is_ok_and(|database| !database.is_damaged())
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
        known.filter(|id| id.index == entry_id && id.index > 0).map(|id| id.term.get()).next()
    }

    /// Runs one transaction for the chunk, and sends the replies after it. Each command sees the
    /// effects of the previous one.
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let _writing = self.writing();
        let applied = self.read(|open| open.state.position.index)?;
        let new: Vec<_> = chunk.iter().filter(|entry| entry.index > applied.get()).collect();
        if new.is_empty() {
            return Ok(());
        }
        let changes = new.iter().map(|entry| Change {
            id: entry.id(),
            time_ms: entry.time_ms(),
            command: Some(entry.data.clone()),
        });
        let replies = self.transact(changes.collect())?;
        for (entry, reply) in new.into_iter().zip(replies) {
            if let Some(reply) = reply {
                entry.reply(reply.encode());
            }
        }
        Ok(())
    }

    /// 0 if the machine has not been started, or its database cannot be read.
    fn len(&self) -> usize {
        let length = self.records().ok().and_then(|(_, records)| records.len().ok());
        length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0)
    }

    /// Stored with the next transaction: an entry without a command changes no data, so it may be
    /// delivered again.
    fn update_last_applied(&self, last: LogId) {
        let told = self.change(|open| {
            if last.index > open.state.position.index {
                open.state.position = last;
                open.not_durable.get_or_insert(0);
            }
        });
        // A machine that is not started ignores this: the engine starts it first.
        told.unwrap_or(());
    }

    fn last_applied(&self) -> LogId {
        self.read(|open| open.state.position).unwrap_or_default()
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

    /// Fills a new database beside the open one and replaces that by a rename. Without enough free
    /// space for both, the records are deleted first, and reads fail until the new ones are
    /// installed.
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
                new.give_up(&*self.fs, &self.dir);
                Err(error)
            }
        }
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        let view = self.freeze()?;
        if view.last_included > last_included {
            let error =
                SnapshotFileError::OtherLastIncluded { state: view.last_included, last_included };
            return Err(error.into());
        }
        Box::new(View { last_included, ..view }).write(&dir)
    }

    fn flush(&self) -> Result<()> {
        let _writing = self.writing();
        if self.database().is_err() {
            // Not started: there is nothing to lose.
            return Ok(());
        }
        self.mend()?;
        Ok(self.make_durable()?)
    }

    /// Replaces the open database by an empty one.
    async fn reset(&self) -> Result<()> {
        let _writing = self.writing();
        self.database()?;
        let new = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        let state = State { binding: self.read(|open| open.state.binding)?, ..State::default() };
        if let Err(error) = new.commit_durably(&state) {
            new.give_up(&*self.fs, &self.dir);
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

    /// Verifies every record, their number and order, and their expiries, as a start does, and
    /// looks each one up by its key. All reads use one state, because a damaged page above the
    /// records hides some of them without changing any. Runs concurrently with other work. Stops
    /// when the machine is stopped, or when the file has grown too far
    /// ([`DiskKvStateMachine::view_growth_bytes`]).
    fn scrub(&self) -> Result<()> {
        let view = self.freeze()?;
        self.scrub_whole(&view)
    }

    fn snapshot_bytes(&self) -> Option<u64> {
        self.read(|open| file_bytes(open.state.content_bytes)).ok()
    }

    /// Space for a second database; without that, what the new one needs beyond the old one.
    fn install_bytes(&self, _meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        let needed = database_bytes(file_bytes);
        let own = self.database().map_or(0, |database| database.bytes());
        needed.saturating_sub(own)
    }

    /// Reads may access the disk, so they must not run on an async thread.
    fn reads_block(&self) -> bool {
        true
    }

    /// Always returns a view: the database keeps the pages of the state being read and writes
    /// changes to others.
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        Ok(Some(Box::new(self.freeze()?)))
    }

    /// Runs a [`KvQuery`] on one state and returns a
    /// [`KvQueryReply`](d_engine_kv_language::KvQueryReply).
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let query = KvQuery::decode(request)?;
        let (database, records) = self.records()?;
        let answer =
            rules::answer(&records, &query).map_err(|failure| database.failed(failure))??;
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
        self.transact(vec![Change { id: at, time_ms, command: None }])?;
        Ok(())
    }
}
