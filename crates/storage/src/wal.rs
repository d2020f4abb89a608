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
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, MAX_ACCEPTED_TIME_MS};

use crate::file_engine::FileStorageOptions;
use crate::frame::{GroupBuffer, MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Position, RECORD_LEN};
use crate::fs::Fs;
use crate::fs_latch::{FsLatch, io_error, room_error};
use crate::index::{FileLogReader, GroupIndex, LogMap, SharedMap};
use crate::log_meta::LogMeta;
use crate::log_record::LogRecord;
use crate::recover::{Recovered, Rested};
use crate::segment::{OpenSegment, SegmentHeader, Spare, file_name};
use crate::segment_files::{SegmentFile, SegmentFiles};
use crate::spares::Spares;
use crate::wal::room::Room;
use crate::{DirectoryLocks, Identity, LogEntry, LogReader, LogStats, LogStore, LogSuffix, StorageError};

/// What a log needs from the directory around it.
#[derive(Debug)]
pub(crate) struct LogParts {
    pub(crate) fs: Arc<dyn Fs>,
    /// Where the segments lie.
    pub(crate) dir: PathBuf,
    pub(crate) files: Arc<SegmentFiles>,
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
            let file = SegmentFile::new(number);
            let len = self.len(&file)?;
            if spares.wants(len) {
                superfluous.remove(position);
                let spare = Spare { file, len };
                let recycled = OpenSegment::recycle(&*self.fs, &self.dir, &self.files, spare, header)?;
                return Ok((recycled, false));
            }
            self.files.forget(&file);
        }
        Ok((OpenSegment::create(&*self.fs, &self.dir, header, self.options.reserve_bytes)?, true))
    }

    /// The head in which a log goes on that was closed in an orderly way.
    fn rested_segment(
        &self,
        file: &Arc<SegmentFile>,
        rested: &Rested,
        filled: u64,
        epoch: u64,
    ) -> Result<OpenSegment, StorageError> {
        let path = self.files.path(file.number);
        let handle = self.files.handle(file).map_err(room_error("open", &path))?;
        Ok(OpenSegment {
            number: file.number,
            path,
            file: handle,
            end: rested.end.offset,
            // Beyond that nobody knows whether the zeros are durable; they are written again.
            written_to: rested.used_to.max(filled),
            synced_to: filled,
            alignment: rested.alignment,
            epoch,
        })
    }

    fn len(&self, file: &Arc<SegmentFile>) -> Result<u64, StorageError> {
        let path = self.files.path(file.number);
        let handle = self.files.handle(file).map_err(room_error("open", &path))?;
        handle.len().map_err(io_error("look at", &path))
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

/// What recovery has read, as a log keeps it.
#[allow(clippy::type_complexity, reason = "the parts of one log")]
fn known(
    recovered: &mut Recovered,
) -> (LogMap, BTreeMap<GroupId, HardState>, BTreeMap<GroupId, BTreeMap<LogIndex, Bytes>>) {
    let mut map = LogMap::default();
    let (mut memberships, mut hard_states) = (BTreeMap::new(), BTreeMap::new());
    for (number, kept) in &recovered.files {
        map.files.insert(*number, Arc::clone(&kept.file));
        map.ends.insert(*number, kept.end);
    }
    for (group, known) in &mut recovered.groups {
        let slots = known.entries.iter().map(|(_, slot)| *slot).collect();
        map.groups.insert(*group, GroupIndex { base: known.base, slots });
        hard_states.extend(known.hard_state.map(|state| (*group, state)));
        memberships.insert(*group, std::mem::take(&mut known.memberships));
    }
    (map, hard_states, memberships)
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
    /// Goes on after recovery. A log that rested goes on in its head, and nothing is written. Any other one goes on
    /// in a new segment, under a higher epoch, with everything that was doubtful written again; only then is the
    /// old tail cut and anything removed.
    pub(crate) fn start(
        parts: LogParts,
        mut record: LogRecord,
        mut recovered: Recovered,
    ) -> Result<Self, StorageError> {
        record.epoch = recovered.last_epoch + 1;
        let mut parts = parts;
        if recovered.passed_over.is_some() {
            // From here on the damage is no part of the log; until then nothing was changed.
            parts.meta.store(&record)?;
        }
        let FileStorageOptions { spare_segments, segment_bytes, reserve_bytes, .. } = parts.options;
        let spares = Spares::new(spare_segments, segment_bytes, reserve_bytes);
        let rested = recovered.rested.and_then(|rested| {
            Some((rested, recovered.files.get(&rested.end.segment).map(|kept| Arc::clone(&kept.file))?))
        });
        let mut next_number = recovered.last_number + 1;
        let (current, is_new) = match &rested {
            Some((rested, file)) => (parts.rested_segment(file, rested, record.filled, record.epoch)?, true),
            None => {
                let header = parts.header(next_number, record.epoch);
                next_number += 1;
                parts.first_segment(&mut recovered.superfluous, record.first, &spares, header)?
            }
        };
        let (mut map, hard_states, memberships) = known(&mut recovered);
        map.intact_from = record.intact_from;
        if rested.is_none() {
            let file = SegmentFile::new(current.number);
            parts.files.keep(&file, &current.file);
            map.files.insert(current.number, file);
        }
        let mut sealed: BTreeMap<u64, u64> =
            recovered.files.iter().map(|(number, kept)| (*number, kept.len)).collect();
        sealed.remove(&current.number);
        let mut log = Self {
            parts,
            record,
            current,
            prepared: None,
            spares,
            room: Room::default(),
            memberships,
            sealed,
            next_number,
            next_sequence: recovered.last_sequence + 1,
            durable: recovered.durable,
            rests: false,
            buffer: GroupBuffer::new(),
            queue: Queue::default(),
            hard_states,
            map: Arc::new(SharedMap::new(map)),
            stats: LogStats::default(),
        };
        if let Some((rested, _)) = rested {
            log.next_sequence = rested.next_sequence;
            log.rests = true;
            if !log.parts.meta.mended.is_empty() {
                log.store_record()?;
            }
            log.clear_away(&recovered.superfluous)?;
            return Ok(log);
        }
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
        let path = self.parts.files.path(end.segment);
        let file = self.parts.files.handle(&file).map_err(io_error("open", &path))?;
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
        self.retire(purged.into_iter().map(SegmentFile::new), passed_over)
    }

    /// Keeps the files of purged segments for later as far as they are wanted, and removes the
    /// others, and those in `remove`.
    fn retire(
        &mut self,
        purged: impl IntoIterator<Item = Arc<SegmentFile>>,
        mut remove: Vec<u64>,
    ) -> Result<(), StorageError> {
        for file in purged {
            let len = match self.spares.is_full() {
                true => None,
                false => match self.parts.len(&file) {
                    // Without a handle to spare it is removed.
                    Err(StorageError::NoRoom { .. }) => None,
                    len => Some(len?),
                },
            };
            match len.filter(|len| self.spares.wants(*len)) {
                Some(len) => self.spares.keep(file, len),
                None => {
                    self.parts.files.forget(&file);
                    remove.push(file.number);
                }
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
            if entry.time_ms > MAX_ACCEPTED_TIME_MS {
                return Err(StorageError::Order(format!(
                    "entry {index} of group {group} has the time {} ms, which lies after the year 9999",
                    entry.time_ms
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
        Arc::new(FileLogReader { map: Arc::clone(&self.map), files: Arc::clone(&self.parts.files) })
    }

    fn stats(&self) -> LogStats {
        let segments = self.map.read().files.len() as u64;
        let log_bytes = self.sealed.values().sum::<u64>() + self.current.end;
        LogStats { segments, log_bytes, free_bytes: self.room.free_bytes, ..self.stats }
    }
}
