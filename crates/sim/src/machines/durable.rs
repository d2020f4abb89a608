//! A small durable state machine, written on [`Fs`]: the rules of the key-value machine, with a
//! checkpoint and a journal.
//!
//! The file `current` names a generation. A generation has a directory `base-<g>` with the
//! key-value machine's files, and a file `journal-<g>` with everything applied since. A chunk is
//! one record of the journal, so its data and the position are written in one step. A checkpoint or
//! an installed snapshot becomes the state when `current` is renamed into place, and not before.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    Durability, Entry, Error, LogId, Result, SnapshotMetadata, SnapshotView, StateMachine,
    StopReason,
};
use d_engine_storage::fs::{ensure_dir, read_file, write_all_at};
use d_engine_storage::{FileKind, Fs, FsFile, OpenMode};

use crate::now_or_never::now_or_never;

const CURRENT: &str = "current";
const METADATA: &str = "snapshot";
/// A flush replaces a longer journal with a checkpoint.
const JOURNAL_BYTES_MAX: u64 = 24 << 10;

pub(crate) struct DurableMachine {
    inner: KvStateMachine,
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    journal: Mutex<Journal>,
}

#[derive(Default)]
struct Journal {
    generation: u64,
    file: Option<Arc<dyn FsFile>>,
    end: u64,
    /// Checksum of the last record. Each record's checksum covers the one before it, so a stale
    /// record never matches.
    check: u64,
    /// The entry up to which the state survives a power loss.
    flushed: LogId,
    /// Whether a snapshot was installed in this boot.
    installed: bool,
}

/// One item of a journal record.
enum Item<'a> {
    Command(LogId, u64, &'a Bytes),
    Time(LogId, u64),
    /// A position after entries that carry no command.
    Position(LogId),
}

impl DurableMachine {
    /// Creates a machine over the files in `dir`; [`StateMachine::start`] reads them.
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: &Path) -> Self {
        let inner = KvStateMachine::with_fs(fs.clone());
        Self { inner, fs, dir: dir.to_owned(), journal: Mutex::default() }
    }

    pub(crate) fn state_hash(&self) -> [u8; 32] {
        self.inner.state_hash()
    }

    /// Returns the entry up to which the state survives a power loss.
    pub(crate) fn flushed(&self) -> LogId {
        self.journal().flushed
    }

    /// Whether a snapshot was installed since the process started.
    pub(crate) fn has_installed(&self) -> bool {
        self.journal().installed
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unpoisoned()
    }

    fn base(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("base-{generation}"))
    }

    fn journal_path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("journal-{generation}"))
    }

    fn append(&self, items: &[Item<'_>]) -> Result<()> {
        let mut payload = Vec::new();
        for item in items {
            let (kind, id, time_ms, data): (u8, _, _, &[u8]) = match item {
                Item::Command(id, time_ms, data) => (1, id, *time_ms, data),
                Item::Time(id, time_ms) => (2, id, *time_ms, &[]),
                Item::Position(id) => (3, id, 0, &[]),
            };
            payload.push(kind);
            for number in [id.term.get(), id.index.get(), time_ms, data.len() as u64] {
                payload.extend_from_slice(&number.to_le_bytes());
            }
            payload.extend_from_slice(data);
        }
        let mut journal = self.journal();
        let check = checksum(journal.check, &payload);
        let mut record = (payload.len() as u64).to_le_bytes().to_vec();
        record.extend_from_slice(&check.to_le_bytes());
        record.extend_from_slice(&payload);
        let file = journal.file.clone().ok_or_else(|| Error::msg("the machine was not started"))?;
        write_all_at(&*file, journal.end, &record)?;
        journal.end += record.len() as u64;
        journal.check = check;
        Ok(())
    }

    /// Applies the records of the journal, up to the first one that is incomplete or does not
    /// match. Returns the length of the records that were applied, and the last checksum.
    fn replay(&self, bytes: &[u8]) -> Result<(u64, u64)> {
        let (mut at, mut check) = (0, 0);
        while let Some((payload, sum)) = record_at(bytes, at, check) {
            let mut rest = payload;
            while let Some((kind, id, time_ms, data)) = item_of(&mut rest) {
                match kind {
                    1 => {
                        let data = Bytes::copy_from_slice(data);
                        let entry =
                            Entry::new(id.index.get(), id.term.get(), data).at_time_ms(time_ms);
                        at_once(self.inner.apply_chunk(vec![entry]))?;
                    }
                    2 => self.inner.advance_time(id, time_ms)?,
                    _ => self.inner.update_last_applied(id),
                }
            }
            (at, check) = (at + 16 + payload.len(), sum);
        }
        Ok((at as u64, check))
    }

    /// Writes a checkpoint of the state at `last_included` and begins an empty journal after it.
    fn begin_generation(&self, last_included: LogId) -> Result<()> {
        let mut journal = self.journal();
        let (before, generation) = (journal.generation, journal.generation + 1);
        let (base, path) = (self.base(generation), self.journal_path(generation));
        self.remove(&base)?;
        self.fs.create_dir(&base)?;
        let checksum = match last_included.index.get() {
            0 => [0; 32],
            _ => at_once(self.inner.generate_snapshot_data(base, last_included))?,
        };
        self.remove(&path)?;
        let file = self.fs.open(&path, OpenMode::CreateNew)?;
        self.fs.sync_dir(&self.dir)?;
        self.replace(CURRENT, generation, last_included, checksum)?;
        *journal =
            Journal { generation, file: Some(file), flushed: last_included, ..Journal::default() };
        self.remove(&self.base(before))?;
        self.remove(&self.journal_path(before))
    }

    /// Writes one of the two small files. Its content is complete and synced before the file gets
    /// its name.
    fn replace(
        &self,
        name: &str,
        generation: u64,
        last_included: LogId,
        checksum: [u8; 32],
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for number in [generation, last_included.term.get(), last_included.index.get()] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&checksum);
        let sum = self::checksum(0, &bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        let temporary = self.dir.join(format!("{name}.tmp"));
        self.remove(&temporary)?;
        let file = self.fs.open(&temporary, OpenMode::CreateNew)?;
        write_all_at(&*file, 0, &bytes)?;
        file.sync_all()?;
        self.fs.rename(&temporary, &self.dir.join(name))?;
        Ok(self.fs.sync_dir(&self.dir)?)
    }

    /// Reads the generation and the snapshot metadata in one of the small files; `None` if the file
    /// does not exist.
    fn read(&self, name: &str) -> Result<Option<(u64, SnapshotMetadata)>> {
        let path = self.dir.join(name);
        if self.fs.kind(&path).is_err() {
            return Ok(None);
        }
        let bytes = read_file(&*self.fs, &path)?;
        let damaged = || Error::msg(format_args!("{} is damaged", path.display()));
        let (fields, sum) = bytes.split_at_checked(56).ok_or_else(damaged)?;
        if sum != checksum(0, fields).to_le_bytes() {
            return Err(damaged());
        }
        let mut rest = fields;
        let mut number = || take_number(&mut rest).unwrap_or_default();
        let (generation, term, index) = (number(), number(), number());
        let checksum = rest.try_into().map_err(|_| damaged())?;
        Ok(Some((generation, SnapshotMetadata::new(LogId::of(term, index), checksum))))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match self.fs.kind(path) {
            Ok(FileKind::Dir) => Ok(self.fs.remove_tree(path)?),
            Ok(_) => Ok(self.fs.remove_file(path)?),
            Err(_) => Ok(()),
        }
    }

    fn open(&self) -> Result<()> {
        ensure_dir(&*self.fs, &self.dir)?;
        let Some((generation, base)) = self.read(CURRENT)? else {
            return self.begin_generation(LogId::default());
        };
        if base.last_included.index > 0 {
            at_once(self.inner.apply_snapshot_from_file(&base, self.base(generation)))?;
        }
        let path = self.journal_path(generation);
        let file = self.fs.open(&path, OpenMode::Existing)?;
        let (end, check) = self.replay(&read_file(&*self.fs, &path)?)?;
        file.set_len(end)?;
        file.sync_all()?;
        if let Some((_, metadata)) = self.read(METADATA)? {
            self.inner.update_last_snapshot_metadata(&metadata)?;
        }
        let flushed = self.inner.last_applied();
        *self.journal() =
            Journal { generation, file: Some(file), end, check, flushed, installed: false };
        let known = [CURRENT.to_owned(), METADATA.to_owned()];
        for name in self.fs.list(&self.dir)? {
            let path = self.dir.join(&name);
            let is_live = path == self.base(generation) || path == self.journal_path(generation);
            if !is_live && !known.contains(&name) {
                self.remove(&path)?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl StateMachine for DurableMachine {
    fn start(&self) -> Result<()> {
        self.inner.start()?;
        self.open()
    }

    fn stop(&self) -> Result<()> {
        self.inner.stop()
    }

    fn is_running(&self) -> bool {
        self.inner.is_running()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(key)
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        self.inner.entry_term(entry_id)
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let last = self.inner.last_applied().index;
        let new: Vec<Entry> = chunk.into_iter().filter(|entry| last < entry.index).collect();
        if new.is_empty() {
            return Ok(());
        }
        let items = new.iter().map(|entry| Item::Command(entry.id(), entry.time_ms(), &entry.data));
        self.append(&items.collect::<Vec<_>>())?;
        self.inner.apply_chunk(new).await
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn update_last_applied(&self, last: LogId) {
        // If the append fails, the entries are applied again after a crash; they change nothing.
        if last.index > self.inner.last_applied().index
            && self.append(&[Item::Position(last)]).is_ok()
        {
            self.inner.update_last_applied(last);
        }
    }

    fn last_applied(&self) -> LogId {
        self.inner.last_applied()
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.inner.update_last_snapshot_metadata(meta)
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.inner.snapshot_metadata()
    }

    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.replace(METADATA, 0, meta.last_included, meta.checksum)
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.inner.apply_snapshot_from_file(meta, path).await?;
        self.begin_generation(meta.last_included)?;
        self.journal().installed = true;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        self.inner.generate_snapshot_data(dir, last_included).await
    }

    fn flush(&self) -> Result<()> {
        let last = self.inner.last_applied();
        let (file, end) = {
            let journal = self.journal();
            (journal.file.clone(), journal.end)
        };
        if end > JOURNAL_BYTES_MAX {
            return self.begin_generation(last);
        }
        if let Some(file) = file {
            file.sync_data()?;
        }
        self.journal().flushed = last;
        Ok(())
    }

    async fn reset(&self) -> Result<()> {
        self.inner.reset().await?;
        // First: an empty state that names a snapshot of itself has lost what it had flushed.
        self.remove(&self.dir.join(METADATA))?;
        self.fs.sync_dir(&self.dir)?;
        self.begin_generation(LogId::default())
    }

    fn durability(&self) -> Durability {
        Durability::Durable
    }

    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        self.inner.snapshot_view()
    }

    fn query(&self, request: &[u8]) -> Result<Bytes> {
        self.inner.query(request)
    }

    fn next_expiry_ms(&self) -> Option<u64> {
        self.inner.next_expiry_ms()
    }

    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        if at.index > self.inner.last_applied().index {
            self.append(&[Item::Time(at, time_ms)])?;
            self.inner.advance_time(at, time_ms)?;
        }
        Ok(())
    }
}

/// FNV-1a, continued from `sum`.
fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    let begin = sum ^ 0xcbf2_9ce4_8422_2325;
    bytes.iter().fold(begin, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns the payload and the checksum of the record at `at`, if it is complete and follows the
/// record with the checksum `before`.
fn record_at(bytes: &[u8], at: usize, before: u64) -> Option<(&[u8], u64)> {
    let mut rest = bytes.get(at..)?;
    let (length, sum) = (take_number(&mut rest)?, take_number(&mut rest)?);
    let payload = rest.get(..usize::try_from(length).ok()?)?;
    (length > 0 && checksum(before, payload) == sum).then_some((payload, sum))
}

fn item_of<'a>(rest: &mut &'a [u8]) -> Option<(u8, LogId, u64, &'a [u8])> {
    let (kind, behind) = rest.split_first()?;
    *rest = behind;
    let (term, index, time_ms) = (take_number(rest)?, take_number(rest)?, take_number(rest)?);
    let length = usize::try_from(take_number(rest)?).ok()?;
    let (data, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some((*kind, LogId::of(term, index), time_ms, data))
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let (number, behind) = rest.split_first_chunk::<8>()?;
    *rest = behind;
    Some(u64::from_le_bytes(*number))
}

fn at_once<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // The error keeps its cause, which may be that the disk is full.
    now_or_never(async { Ok::<_, StopReason>(future.await) }).map_err(Error::msg)?
}
