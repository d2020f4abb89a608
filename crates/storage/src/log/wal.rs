//! The log of one data directory; this is its single writer.
//!
//! Everything queued goes to the disk as one write group: one write, one sync. A segment is only
//! ever appended to; nothing that was acknowledged is written a second time in place.

mod base;
mod disk_space;
mod group;
mod room;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, MAX_ACCEPTED_TIME_MS};

use crate::fs::Fs;
use crate::log::frame::{GroupBuffer, MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Position, RECORD_LEN};
use crate::log::index::{FileLogReader, GroupIndex, LogMap, SharedMap};
use crate::log::latch::{FsLatch, io_error, room_error};
use crate::log::meta::LogMeta;
use crate::log::options::FileStorageOptions;
use crate::log::record::LogRecord;
use crate::log::recover::{CleanEnd, Recovered};
use crate::log::segment::{OpenSegment, SegmentHeader, Spare};
use crate::log::segment_files::{SegmentFile, SegmentFiles};
use crate::log::segment_name::file_name;
use crate::log::spares::Spares;
use crate::log::wal::disk_space::DiskSpace;
use crate::{
    DirectoryLocks, Identity, LogEntry, LogReader, LogStats, LogStore, LogSuffix, StorageError,
};

/// What a log needs from the directory around it.
#[derive(Debug)]
pub(crate) struct LogParts {
    pub(crate) fs: Arc<dyn Fs>,
    /// The directory of the segments.
    pub(crate) dir: PathBuf,
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) options: FileStorageOptions,
    pub(crate) identity: Identity,
    pub(crate) meta: LogMeta,
    pub(crate) latch: Arc<FsLatch>,
    /// Held as long as the log is open: the lock file, and the directory itself.
    pub(crate) locks: DirectoryLocks,
}

impl LogParts {
    /// Opens the segment in which an opened log continues: in the file of a purged one if there is
    /// one, because the disk may have no space for another. Also returns whether it is a new file.
    fn first_segment(
        &self,
        superfluous: &mut Vec<u64>,
        first: u64,
        spares: &Spares,
        header: SegmentHeader,
    ) -> Result<(OpenSegment, bool), StorageError> {
        for position in (0..superfluous.len()).rev() {
            let Some(number) = superfluous.get(position).copied().filter(|number| *number < first)
            else {
                continue;
            };
            let file = SegmentFile::new(number);
            let len = self.len(&file)?;
            if spares.wants(len) {
                superfluous.remove(position);
                let spare = Spare { file, len };
                let recycled =
                    OpenSegment::recycle(&*self.fs, &self.dir, &self.files, spare, header)?;
                return Ok((recycled, false));
            }
            self.files.forget(&file);
        }
        Ok((OpenSegment::create(&*self.fs, &self.dir, header, self.options.reserve_bytes)?, true))
    }

    /// Opens the head in which a log continues that was closed in an orderly way.
    fn rested_segment(
        &self,
        file: &Arc<SegmentFile>,
        rested: &CleanEnd,
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
            // It is not known whether the zeros beyond that are durable; they are written again.
            written_to: rested.used_to.max(filled),
            synced_to: filled,
            alignment: rested.alignment,
            epoch,
        })
    }

    fn len(&self, file: &Arc<SegmentFile>) -> Result<u64, StorageError> {
        let path = self.files.path(file.number);
        let handle = self.files.handle(file).map_err(room_error("open", &path))?;
        handle.len().map_err(io_error("read the length of", &path))
    }

    /// Checks, before a segment is begun, that the directory is still the one that was locked.
    fn check_lock(&self) -> Result<(), StorageError> {
        for lock in &*self.locks {
            if !lock.is_held().map_err(io_error("check the lock of", &self.dir))? {
                return Err(StorageError::LockLost { path: self.dir.clone() });
            }
        }
        Ok(())
    }

    /// Returns the header of a new segment.
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

/// The file log. See the module's documentation.
#[derive(Debug)]
pub(crate) struct FileLog {
    parts: LogParts,
    record: LogRecord,
    current: OpenSegment,
    /// The next segment; what has been written of it is synced.
    prepared: Option<OpenSegment>,
    spares: Spares,
    room: DiskSpace,
    /// Membership entries, queued or synced, as far as they are still in the log or known from
    /// before a purge.
    memberships: BTreeMap<GroupId, BTreeMap<LogIndex, Bytes>>,
    /// Length of each segment before the current one, in bytes.
    sealed: BTreeMap<u64, u64>,
    next_number: u64,
    next_sequence: u64,
    /// Everything before this position is known to be durable.
    durable: Position,
    /// Whether the last group contains only its watermark.
    rests: bool,
    buffer: GroupBuffer,
    queue: Queue,
    /// The last synced hard state of each group.
    hard_states: BTreeMap<GroupId, HardState>,
    map: Arc<SharedMap>,
    stats: LogStats,
}

/// Converts what recovery has read into the log's own structures.
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

/// What waits for the next sync, besides the bytes in the buffer.
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
    /// Continues after recovery. A log that was closed in an orderly way continues in its head, and
    /// nothing is written. Any other log continues in a new segment, under a higher epoch, with all
    /// doubtful entries written again. Only then is the old tail cut and anything removed.
    pub(crate) fn start(
        parts: LogParts,
        mut record: LogRecord,
        mut recovered: Recovered,
    ) -> Result<Self, StorageError> {
        record.epoch = recovered.last_epoch + 1;
        let mut parts = parts;
        if recovered.skipped_corruption.is_some() {
            // From here on the damage is not part of the log; before this nothing was changed.
            parts.meta.store(&record)?;
        }
        let FileStorageOptions { spare_segments, segment_bytes, reserve_bytes, .. } = parts.options;
        let spares = Spares::new(spare_segments, segment_bytes, reserve_bytes);
        let rested = recovered.rested.and_then(|rested| {
            Some((
                rested,
                recovered.files.get(&rested.end.segment).map(|kept| Arc::clone(&kept.file))?,
            ))
        });
        let mut next_number = recovered.last_number + 1;
        let (current, is_new) = match &rested {
            Some((rested, file)) => {
                (parts.rested_segment(file, rested, record.filled, record.epoch)?, true)
            }
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
            room: DiskSpace::default(),
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

    /// Writes what opening must make durable before anything may be removed.
    fn write_first_group(&mut self) -> Result<(), StorageError> {
        let path = self.current.path.clone();
        let written = self.write_group();
        if written.is_err() {
            // Nothing refers to this file. If it cannot be removed now, the next start removes it.
            self.parts.fs.remove_file(&path).ok();
            self.parts.fs.sync_dir(&self.parts.dir).ok();
        }
        written?;
        self.store_due_record()
    }

    fn store_record(&mut self) -> Result<(), StorageError> {
        self.parts.meta.store(&self.record)
    }

    /// Cuts off what recovery did not accept: torn bytes, and groups that were written again. The
    /// first group of the current segment already says that the log ends there. The cut frees the
    /// space and ensures that these bytes are never read as log, even if that group is lost.
    fn cut(&mut self, end: Position) -> Result<(), StorageError> {
        let file = self.map.read().files.get(&end.segment).map(Arc::clone);
        let Some(file) = file else { return Ok(()) };
        let path = self.parts.files.path(end.segment);
        let file = self.parts.files.handle(&file).map_err(io_error("open", &path))?;
        let len = file.len().map_err(io_error("read the length of", &path))?;
        if len > end.offset {
            file.set_len(end.offset).map_err(io_error("truncate", &path))?;
            file.sync_all().map_err(io_error("sync", &path))?;
            self.sealed.insert(end.segment, end.offset);
        }
        Ok(())
    }

    /// Removes the files that recovery found superfluous. The file of a purged segment may be
    /// reused. Any other file must not, because its header would be mistaken for that of a renamed
    /// segment.
    fn clear_away(&mut self, superfluous: &[u64]) -> Result<(), StorageError> {
        let (purged, skipped_corruption): (Vec<u64>, Vec<u64>) =
            superfluous.iter().partition(|number| **number < self.record.first);
        self.retire(purged.into_iter().map(SegmentFile::new), skipped_corruption)
    }

    /// Keeps the files of purged segments for reuse as far as they are wanted. Removes the others,
    /// and those in `remove`.
    fn retire(
        &mut self,
        purged: impl IntoIterator<Item = Arc<SegmentFile>>,
        mut remove: Vec<u64>,
    ) -> Result<(), StorageError> {
        for file in purged {
            let len = match self.spares.is_full() {
                true => None,
                false => match self.parts.len(&file) {
                    // If there is no file handle to open it, it is removed.
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
        let (last, lowest) =
            self.queue.tails.entry(group).or_insert((entry.id.index, entry.id.index));
        *last = entry.id.index;
        *lowest = entry.id.index.min(*lowest);
    }

    /// Refuses entries that exceed the format or violate the order of the log, before anything of
    /// the call is queued.
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
                    "entry {index} of group {group} was appended; its index must be between {} \
                     and {}",
                    base.next(),
                    last.next()
                )));
            }
            bytes = bytes.saturating_add(entry.data.len() + 2 * RECORD_LEN);
            if entry.data.len() > MAX_PAYLOAD_BYTES || bytes > MAX_BODY_BYTES {
                return Err(StorageError::Order(format!(
                    "entry {index} of group {group} has {} bytes; at most {MAX_PAYLOAD_BYTES} are \
                     allowed in an entry, and {MAX_BODY_BYTES} in all entries between two syncs",
                    entry.data.len()
                )));
            }
            if entry.time_ms > MAX_ACCEPTED_TIME_MS {
                return Err(StorageError::Order(format!(
                    "entry {index} of group {group} has the time {} ms, which is after the year \
                     9999",
                    entry.time_ms
                )));
            }
            last = index;
        }
        Ok(())
    }

    /// Runs `work` unless this log has failed before. Its failure is final.
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

    fn store_hard_state(
        &mut self,
        group: GroupId,
        hard_state: HardState,
    ) -> Result<(), StorageError> {
        self.guarded(|log| log.write_hard_state(group, hard_state))
    }

    fn idle(&mut self) -> Result<(), StorageError> {
        self.guarded(|log| match log.rest() {
            // What is queued stays queued.
            Err(StorageError::NoRoom { .. }) if !log.room.waits => Ok(()),
            rested => rested,
        })
    }

    fn purge(&mut self, group: GroupId, through: LogId) -> Result<(), StorageError> {
        self.guarded(|log| log.forget(group, through))
    }

    fn install(
        &mut self,
        group: GroupId,
        base: LogId,
        suffix: LogSuffix,
    ) -> Result<(), StorageError> {
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
