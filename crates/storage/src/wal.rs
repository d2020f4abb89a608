//! The log of one data directory, as its single writer sees it.
//!
//! Everything queued goes to the disk as one group: one write, one sync. A segment is only ever
//! appended to; nothing that was acknowledged is written a second time in place.

mod base;
mod group;
mod room;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex};

use crate::file_engine::FileStorageOptions;
use crate::frame::{GroupBuffer, MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Position, RECORD_LEN};
use crate::fs::{Fs, FsFile, OpenMode};
use crate::fs_latch::{FsLatch, io_error, room_error};
use crate::index::{FileLogReader, GroupIndex, LogMap, SharedMap};
use crate::log_meta::LogMeta;
use crate::log_record::LogRecord;
use crate::recover::Recovered;
use crate::segment::{OpenSegment, SegmentHeader, Spare, file_name};
use crate::spares::Spares;
use crate::wal::room::Room;
use crate::{DirectoryLocks, Identity, LogEntry, LogReader, LogStats, LogStore, LogSuffix, StorageError};

/// What a log needs from the directory around it.
#[derive(Debug)]
pub(crate) struct LogParts {
    pub(crate) fs: Arc<dyn Fs>,
    /// Where the segments lie.
    pub(crate) dir: PathBuf,
    pub(crate) options: FileStorageOptions,
    pub(crate) identity: Identity,
    pub(crate) meta: LogMeta,
    pub(crate) latch: Arc<FsLatch>,
    /// Held as long as the log lives: the lock file, and the directory itself.
    pub(crate) locks: DirectoryLocks,
}

impl LogParts {
    /// The segment in which a log goes on that was opened: in the file of a purged one if there is one, because
    /// the disk may have no room for another. Also says whether it is a new file.
    fn first_segment(
        &self,
        superfluous: &mut Vec<u64>,
        first: u64,
        spares: &Spares,
        header: SegmentHeader,
    ) -> Result<(OpenSegment, bool), StorageError> {
        for position in (0..superfluous.len()).rev() {
            let Some(number) = superfluous.get(position).copied().filter(|number| *number < first) else {
                continue;
            };
            let path = self.dir.join(file_name(number));
            let file = self.fs.open(&path, OpenMode::Existing).map_err(room_error("open", &path))?;
            let len = file.len().map_err(io_error("look at", &path))?;
            if spares.wants(len) {
                superfluous.remove(position);
                let spare = Spare { number, file, len };
                return Ok((OpenSegment::recycle(&*self.fs, &self.dir, spare, header)?, false));
            }
        }
        Ok((OpenSegment::create(&*self.fs, &self.dir, header, self.options.reserve_bytes)?, true))
    }

    /// Before a segment is begun: whether the directory is still the one that was locked.
    fn check_lock(&self) -> Result<(), StorageError> {
        for lock in &*self.locks {
            if !lock.is_held().map_err(io_error("look at the lock of", &self.dir))? {
                return Err(StorageError::LockLost { path: self.dir.clone() });
            }
        }
        Ok(())
    }

    /// The header of a new segment.
    fn header(&self, number: u64, epoch: u64) -> SegmentHeader {
        SegmentHeader {
            alignment: self.options.alignment,
            number,
            epoch,
            cluster: self.identity.cluster,
            incarnation: self.identity.incarnation,
            node: self.identity.node,
            recycled: false,
        }
    }
}

/// The file log. See the module's text.
#[derive(Debug)]
pub(crate) struct FileLog {
    parts: LogParts,
    record: LogRecord,
    current: OpenSegment,
    /// The next segment, synced as far as it goes.
    prepared: Option<OpenSegment>,
    spares: Spares,
    room: Room,
    /// Membership entries that are queued or synced, as far as the log or what was purged of it knows.
    memberships: BTreeMap<GroupId, BTreeMap<LogIndex, Bytes>>,
    /// Bytes of the segments before the current one.
    sealed: BTreeMap<u64, u64>,
    next_number: u64,
    next_sequence: u64,
    /// Everything before this place is known to be durable.
    durable: Position,
    /// Whether the last group carries nothing but its watermark.
    rests: bool,
    buffer: GroupBuffer,
    queue: Queue,
    /// The last synced hard state of each group.
    hard_states: BTreeMap<GroupId, HardState>,
    map: Arc<SharedMap>,
    stats: LogStats,
}

/// What is waiting for the next sync, beside the bytes in the buffer.
#[derive(Debug, Default)]
struct Queue {
    entries: Vec<QueuedEntry>,
    hard_states: BTreeMap<GroupId, HardState>,
    /// The last entry of each group once the queue is synced; and the lowest index queued.
    tails: BTreeMap<GroupId, (LogIndex, LogIndex)>,
}

#[derive(Debug)]
struct QueuedEntry {
    group: GroupId,
    id: LogId,
    /// Number of the record in the buffer.
    record: usize,
}

impl FileLog {
    /// Goes on after recovery: in a new segment, under a higher epoch, with everything that was
    /// doubtful written again; only then is the old tail cut and anything removed.
    pub(crate) fn start(
        parts: LogParts,
        mut record: LogRecord,
        mut recovered: Recovered,
    ) -> Result<Self, StorageError> {
        let number = recovered.last_number + 1;
        record.epoch = recovered.last_epoch + 1;
        let header = parts.header(number, record.epoch);
        let FileStorageOptions { spare_segments, segment_bytes, reserve_bytes, .. } = parts.options;
        let spares = Spares::new(spare_segments, segment_bytes, reserve_bytes);
        let (current, is_new) =
            parts.first_segment(&mut recovered.superfluous, record.first, &spares, header)?;
        let mut map = LogMap { groups: BTreeMap::new(), files: std::mem::take(&mut recovered.files) };
        map.files.insert(number, Arc::clone(&current.file));
        let mut memberships = BTreeMap::new();
        let mut hard_states = BTreeMap::new();
        for (group, known) in &recovered.groups {
            let slots = known.entries.iter().map(|(_, slot)| *slot).collect();
            map.groups.insert(*group, GroupIndex { base: known.base, slots });
            hard_states.extend(known.hard_state.map(|state| (*group, state)));
            memberships.insert(*group, known.memberships.clone());
        }
        let mut sealed = BTreeMap::new();
        for (sealed_number, file) in map.files.iter().filter(|(known, _)| **known != number) {
            let path = parts.dir.join(file_name(*sealed_number));
            sealed.insert(*sealed_number, file.len().map_err(io_error("look at", &path))?);
        }
        let mut log = Self {
            parts,
            record,
            current,
            prepared: None,
            spares,
            room: Room::default(),
            memberships,
            sealed,
            next_number: number + 1,
            next_sequence: recovered.last_sequence + 1,
            durable: recovered.durable,
            rests: false,
            buffer: GroupBuffer::new(),
            queue: Queue::default(),
            hard_states,
            map: Arc::new(SharedMap::new(map)),
            stats: LogStats::default(),
        };
        for (group, entry) in &recovered.doubtful {
            log.queue_entry(*group, entry);
        }
        log.stats.recycled = u64::from(!is_new);
        log.write_first_group()?;
        log.clear_away(&recovered.superfluous)?;
        log.cut(recovered.durable)?;
        Ok(log)
    }

    /// What opening has to make durable before anything may be removed.
    fn write_first_group(&mut self) -> Result<(), StorageError> {
        let path = self.current.path.clone();
        let written = self.write_group();
        if written.is_err() {
            // Nothing refers to it. If it cannot be removed, the next start does it.
            self.parts.fs.remove_file(&path).ok();
            self.parts.fs.sync_dir(&self.parts.dir).ok();
        }
        written?;
        self.store_due_record()
    }

    fn store_record(&mut self) -> Result<(), StorageError> {
        self.parts.meta.store(&self.record)
    }

    /// Cuts off what recovery passed over: torn bytes, and groups that were written again. The
    /// first group of the current segment already says that the log ends there; this frees the
    /// space and makes sure that nobody reads it as log, whatever becomes of that group.
    fn cut(&mut self, end: Position) -> Result<(), StorageError> {
        let file = self.map.read().files.get(&end.segment).map(Arc::clone);
        let Some(file) = file else { return Ok(()) };
        let path = self.parts.dir.join(file_name(end.segment));
        let len = file.len().map_err(io_error("look at", &path))?;
        if len > end.offset && !cfg!(mutant = "recovery-no-cut") {
            file.set_len(end.offset).map_err(io_error("cut", &path))?;
            file.sync_all().map_err(io_error("sync", &path))?;
            self.sealed.insert(end.segment, end.offset);
        }
        Ok(())
    }

    /// Removes what recovery has no use for. The file of a purged segment may serve again; any
    /// other one must not, because its header would be taken for a segment that somebody renamed.
    fn clear_away(&mut self, superfluous: &[u64]) -> Result<(), StorageError> {
        let (purged, passed_over): (Vec<u64>, Vec<u64>) =
            superfluous.iter().partition(|number| **number < self.record.first);
        let mut files = Vec::new();
        for number in purged {
            let path = self.parts.dir.join(file_name(number));
            let file = self.parts.fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
            files.push((number, file));
        }
        self.retire(files, passed_over)
    }

    /// Keeps the files of purged segments for later as far as they are wanted, and removes the
    /// others, and those in `remove`.
    fn retire(
        &mut self,
        purged: impl IntoIterator<Item = (u64, Arc<dyn FsFile>)>,
        mut remove: Vec<u64>,
    ) -> Result<(), StorageError> {
        for (number, file) in purged {
            let len = file.len().map_err(io_error("look at", &self.parts.dir.join(file_name(number))))?;
            if self.spares.wants(len) {
                self.spares.keep(number, file, len);
            } else {
                remove.push(number);
            }
        }
        for number in &remove {
            let path = self.parts.dir.join(file_name(*number));
            self.parts.fs.remove_file(&path).map_err(io_error("remove", &path))?;
        }
        if !remove.is_empty() {
            let dir = &self.parts.dir;
            self.parts.fs.sync_dir(dir).map_err(io_error("sync", dir))?;
        }
        Ok(())
    }

    fn queue_entry(&mut self, group: GroupId, entry: &LogEntry) {
        let record = self.buffer.push_entry(group, entry);
        let memberships = self.memberships.entry(group).or_default();
        drop(memberships.split_off(&entry.id.index));
        if entry.kind == EntryKind::Membership {
            memberships.insert(entry.id.index, entry.data.clone());
        }
        self.queue.entries.push(QueuedEntry { group, id: entry.id, record });
        let (last, lowest) = self.queue.tails.entry(group).or_insert((entry.id.index, entry.id.index));
        *last = entry.id.index;
        *lowest = entry.id.index.min(*lowest);
    }

    /// Refuses what the format cannot hold or the order of the log forbids, before anything of the
    /// call is queued.
    fn check_append(&self, group: GroupId, entries: &[LogEntry]) -> Result<(), StorageError> {
        let map = self.map.read();
        let known = map.groups.get(&group);
        let base = known.map_or(LogIndex::ZERO, |known| known.base.index);
        let synced = known.map_or(LogIndex::ZERO, GroupIndex::last);
        let mut last = self.queue.tails.get(&group).map_or(synced, |(last, _)| *last);
        let mut bytes = self.buffer.body_len();
        for entry in entries {
            let index = entry.id.index;
            if index <= base || index > last.next() {
                return Err(StorageError::Order(format!(
                    "entry {index} of group {group} was appended; it must lie between {} and {}",
                    base.next(),
                    last.next()
                )));
            }
            bytes = bytes.saturating_add(entry.data.len() + 2 * RECORD_LEN);
            if entry.data.len() > MAX_PAYLOAD_BYTES || bytes > MAX_BODY_BYTES {
                return Err(StorageError::Order(format!(
                    "entry {index} of group {group} has {} bytes; an entry may have {MAX_PAYLOAD_BYTES}, and all \
                     entries between two syncs {MAX_BODY_BYTES}",
                    entry.data.len()
                )));
            }
            last = index;
        }
        Ok(())
    }

    /// Runs `work` unless this log has failed before, and remembers its failure for ever.
    fn guarded(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let latch = Arc::clone(&self.parts.latch);
        latch.guard(|| work(self))
    }
}

impl LogStore for FileLog {
    fn directory_locks(&self) -> DirectoryLocks {
        Arc::clone(&self.parts.locks)
    }

    fn append(
        &mut self,
        group: GroupId,
        hard_state: Option<HardState>,
        entries: &[LogEntry],
    ) -> Result<(), StorageError> {
        self.parts.latch.check()?;
        self.check_waiting()?;
        self.check_append(group, entries)?;
        if let Some(state) = hard_state {
            self.buffer.push_hard_state(group, &state);
            self.queue.hard_states.insert(group, state);
        }
        for entry in entries {
            self.queue_entry(group, entry);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.guarded(|log| {
            log.store_due_record()?;
            if log.buffer.is_empty() { Ok(()) } else { log.write_queued() }
        })
    }

    fn store_hard_state(&mut self, group: GroupId, hard_state: HardState) -> Result<(), StorageError> {
        self.guarded(|log| log.write_hard_state(group, hard_state))
    }

    fn idle(&mut self) -> Result<(), StorageError> {
        self.guarded(|log| match log.rest() {
            // Whatever is queued stays so.
            Err(StorageError::NoRoom { .. }) if !log.room.waits => Ok(()),
            rested => rested,
        })
    }

    fn purge(&mut self, group: GroupId, through: LogId) -> Result<(), StorageError> {
        self.guarded(|log| log.forget(group, through))
    }

    fn install(&mut self, group: GroupId, base: LogId, suffix: LogSuffix) -> Result<(), StorageError> {
        self.guarded(|log| log.restart_at(group, base, suffix))
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(FileLogReader { map: Arc::clone(&self.map), dir: self.parts.dir.clone() })
    }

    fn stats(&self) -> LogStats {
        let segments = self.map.read().files.len() as u64;
        let log_bytes = self.sealed.values().sum::<u64>() + self.current.end;
        LogStats { segments, log_bytes, free_bytes: self.room.free_bytes, ..self.stats }
    }
}
