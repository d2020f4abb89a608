//! The log of one data directory, as its single writer sees it.
//!
//! Everything queued goes to the disk as one group: one write, one sync. A segment is only ever
//! appended to; nothing that was acknowledged is written a second time in place.

mod base;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use d_engine_core::{GroupId, HardState, LogId, LogIndex};

use crate::file_engine::FileStorageOptions;
use crate::frame::{GroupBuffer, GroupHeader, MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Position, RECORD_LEN};
use crate::fs::{Fs, FsFile, FsLock, OpenMode, write_all_at};
use crate::fs_latch::{FsLatch, io_error};
use crate::index::{FileLogReader, GroupIndex, LogMap, SharedMap, Slot};
use crate::log_record::LogRecord;
use crate::meta_store::{self, FileMetaStore};
use crate::recover::Recovered;
use crate::segment::{OpenSegment, SegmentHeader, file_name};
use crate::spares::Spares;
use crate::{Identity, LogEntry, LogReader, LogStats, LogStore, LogSuffix, StorageError};

/// What a log needs from the directory around it.
#[derive(Debug)]
pub(crate) struct LogParts {
    pub(crate) fs: Arc<dyn Fs>,
    /// Where the segments lie.
    pub(crate) dir: PathBuf,
    pub(crate) options: FileStorageOptions,
    pub(crate) identity: Identity,
    pub(crate) meta: FileMetaStore,
    pub(crate) latch: Arc<FsLatch>,
    /// Held as long as the log lives.
    #[expect(dead_code, reason = "it is held, not used")]
    pub(crate) lock: Box<dyn FsLock>,
}

impl LogParts {
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
        let current = OpenSegment::create(&*parts.fs, &parts.dir, header)?;
        let spares = Spares::new(parts.options.spare_segments, parts.options.segment_bytes);
        let mut map = LogMap { groups: BTreeMap::new(), files: std::mem::take(&mut recovered.files) };
        map.files.insert(number, Arc::clone(&current.file));
        let mut hard_states = BTreeMap::new();
        for (group, known) in &recovered.groups {
            let slots = known.entries.iter().map(|(_, slot)| *slot).collect();
            map.groups.insert(*group, GroupIndex { base: known.base, slots });
            hard_states.extend(known.hard_state.map(|state| (*group, state)));
        }
        let mut log = Self {
            parts,
            record,
            current,
            prepared: None,
            spares,
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
        log.write_group()?;
        log.clear_away(&recovered.superfluous)?;
        log.cut(recovered.durable)?;
        Ok(log)
    }

    fn store_record(&self) -> Result<(), StorageError> {
        self.parts.meta.write(meta_store::LOG, &self.record.encode())
    }

    /// Cuts off what recovery passed over: torn bytes, and groups that were written again. The
    /// first group of the current segment already says that the log ends there; this frees the
    /// space and makes sure that nobody reads it as log, whatever becomes of that group.
    fn cut(&self, end: Position) -> Result<(), StorageError> {
        let file = self.map.read().files.get(&end.segment).map(Arc::clone);
        let Some(file) = file else { return Ok(()) };
        let path = self.parts.dir.join(file_name(end.segment));
        let len = file.len().map_err(io_error("look at", &path))?;
        if len > end.offset && !cfg!(mutant = "recovery-no-cut") {
            file.set_len(end.offset).map_err(io_error("cut", &path))?;
            file.sync_all().map_err(io_error("sync", &path))?;
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

    /// Writes what is queued as one group and syncs it; then it counts.
    fn write_group(&mut self) -> Result<(), StorageError> {
        let alignment = self.current.alignment.bytes();
        let len = self.buffer.padded_len(alignment) as u64;
        if !self.current.is_unused() && self.current.end + len > self.parts.options.segment_bytes {
            self.roll()?;
        }
        if self.current.is_unused() {
            // A segment begins with the hard states, so that earlier ones can be removed.
            for (group, state) in &self.hard_states {
                if !self.queue.hard_states.contains_key(group) {
                    self.buffer.push_hard_state(*group, state);
                }
            }
        }
        self.rests = self.buffer.is_empty();
        let at = self.current.position();
        let header = GroupHeader {
            incarnation: self.parts.identity.incarnation,
            at,
            epoch: self.current.epoch,
            sequence: self.next_sequence,
            body_len: 0,
            records: 0,
            watermark: self.durable,
        };
        let bytes = self.buffer.finish(header, alignment);
        let end = at.offset + bytes.len() as u64;
        let path = &self.current.path;
        write_all_at(&*self.current.file, at.offset, bytes).map_err(io_error("write", path))?;
        self.stats.bytes_written += bytes.len() as u64;
        if end > self.current.written_to {
            // Grow in strides: the groups up to the next stride overwrite zeros, which needs no
            // change of the file's metadata and therefore syncs faster.
            self.current.written_to = end;
            let stride = end + self.parts.options.grow_bytes;
            let to = stride.min(self.parts.options.segment_bytes).next_multiple_of(alignment as u64);
            self.current.zero_fill(to)?;
        }
        self.current.file.sync_data().map_err(io_error("sync", &self.current.path))?;
        self.current.end = end;
        self.next_sequence += 1;
        self.durable = self.current.position();
        self.stats.groups += 1;
        self.stats.syncs += 1;
        self.publish(at);
        if self.current.number != self.record.opened {
            // Until now nothing but the segment itself said that it belongs to the log.
            self.record.opened = self.current.number;
            self.store_record()?;
        }
        Ok(())
    }

    /// Shows the synced group at `at` to the readers and empties the queue.
    fn publish(&mut self, at: Position) {
        let mut map = self.map.write();
        for entry in &self.queue.entries {
            let (offset, len, chain) = self.buffer.span(entry.record);
            let slot =
                Slot { term: entry.id.term, segment: at.segment, offset: at.offset + offset, len, chain };
            map.groups.entry(entry.group).or_default().put(entry.id.index, slot);
        }
        drop(map);
        self.stats.entries += self.queue.entries.len() as u64;
        self.hard_states.append(&mut self.queue.hard_states);
        self.queue.entries.clear();
        self.queue.tails.clear();
        self.buffer.clear();
    }

    /// Takes the prepared segment as it is, or a new one: never waits for zeros.
    fn roll(&mut self) -> Result<(), StorageError> {
        self.current = match self.prepared.take() {
            Some(segment) => segment,
            None => self.create_next()?,
        };
        let mut map = self.map.write();
        map.files.insert(self.current.number, Arc::clone(&self.current.file));
        Ok(())
    }

    fn create_next(&mut self) -> Result<OpenSegment, StorageError> {
        let (fs, dir) = (&*self.parts.fs, &self.parts.dir);
        let header = self.parts.header(self.next_number, self.record.epoch);
        let segment = match self.spares.take() {
            Some(spare) => {
                self.stats.recycled += 1;
                OpenSegment::recycle(fs, dir, spare, header)?
            }
            None => OpenSegment::create(fs, dir, header)?,
        };
        self.next_number += 1;
        Ok(segment)
    }

    /// Does a bounded piece of what makes later syncs fast: zeros up to the end of the current
    /// segment, then the next segment.
    fn prepare(&mut self) -> Result<(), StorageError> {
        let end = self.parts.options.segment_bytes;
        let segment = if self.current.written_to < end {
            &mut self.current
        } else {
            if self.prepared.is_none() {
                self.prepared = Some(self.create_next()?);
            }
            match &mut self.prepared {
                Some(segment) if segment.written_to < end => segment,
                _ => return Ok(()),
            }
        };
        segment.zero_fill(end.min(segment.written_to + self.parts.options.prepare_bytes))?;
        segment.file.sync_all().map_err(io_error("sync", &segment.path))
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
    fn append(
        &mut self,
        group: GroupId,
        hard_state: Option<HardState>,
        entries: &[LogEntry],
    ) -> Result<(), StorageError> {
        self.parts.latch.check()?;
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
        self.guarded(|log| if log.buffer.is_empty() { Ok(()) } else { log.write_group() })
    }

    fn idle(&mut self) -> Result<(), StorageError> {
        self.guarded(|log| {
            if !log.buffer.is_empty() || !log.rests {
                log.write_group()?;
            }
            log.prepare()
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
        let log_bytes = segments.saturating_mul(self.parts.options.segment_bytes);
        LogStats { segments, log_bytes, ..self.stats }
    }
}
