//! The location of each synced entry, and the reader that fetches entries.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use d_engine_core::{GroupId, LogId, LogIndex, Term};
use d_engine_locks::Unpoisoned;

use crate::fs::read_up_to;
use crate::log::frame::{Position, RECORD_LEN, Record, decode_record};
use crate::log::latch::{io_error, room_error};
use crate::log::segment_files::{SegmentFile, SegmentFiles};
use crate::log::segment_name::file_name;
use crate::{LogEntry, LogReader, ScrubPlace, Scrubbed, StorageError};

/// The location of one entry's record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) term: Term,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// The checksum that the record's own checksum continues.
    pub(crate) chain: u32,
}

/// The entries of one Raft group: one slot per index, from the one after `base`.
#[derive(Debug, Default)]
pub(crate) struct GroupIndex {
    pub(crate) base: LogId,
    pub(crate) slots: VecDeque<Slot>,
}

impl GroupIndex {
    pub(crate) fn last(&self) -> LogIndex {
        self.base.index.plus(self.slots.len() as u64)
    }

    /// Returns the slot of an entry, if the log contains it.
    pub(crate) fn slot(&self, index: LogIndex) -> Option<&Slot> {
        let distance = index.get().checked_sub(self.base.index.get() + 1)?;
        self.slots.get(usize::try_from(distance).ok()?)
    }

    /// Whether the log contains the entry with this index and term.
    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.slot(id.index).is_some_and(|slot| slot.term == id.term)
    }

    /// Puts an entry at `index`, replacing that one and everything after it. A purged entry that
    /// recovery writes again still removes the entries after it.
    pub(crate) fn put(&mut self, index: LogIndex, slot: Slot) {
        if index <= self.base.index {
            self.slots.clear();
            return;
        }
        let keep = index.get().saturating_sub(self.base.index.get() + 1);
        self.slots.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.slots.push_back(slot);
    }

    /// Removes everything up to and including `through`.
    pub(crate) fn purge(&mut self, through: LogId) {
        let count = usize::try_from(through.index.since(self.base.index)).unwrap_or(usize::MAX);
        self.slots.drain(..count.min(self.slots.len()));
        self.base = through;
    }

    /// Removes everything; the next entry is the one after `base`.
    pub(crate) fn restart(&mut self, base: LogId) {
        *self = Self { base, slots: VecDeque::new() };
    }
}

/// The state shared by the writer and the readers. Contains synced entries only.
#[derive(Debug, Default)]
pub(crate) struct LogMap {
    pub(crate) groups: BTreeMap<GroupId, GroupIndex>,
    pub(crate) files: BTreeMap<u64, Arc<SegmentFile>>,
    /// The end of the groups in each segment.
    pub(crate) ends: BTreeMap<u64, u64>,
    /// Everything before this offset in its segment is damaged and not part of the log.
    pub(crate) intact_from: Position,
}

/// The shared map with its lock. A panic while the lock was held cannot leave the map half changed:
/// every change is complete before anything that could panic.
#[derive(Debug, Default)]
pub(crate) struct SharedMap(RwLock<LogMap>);

impl SharedMap {
    pub(crate) fn new(map: LogMap) -> Self {
        Self(RwLock::new(map))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, LogMap> {
        self.0.read().unpoisoned()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, LogMap> {
        self.0.write().unpoisoned()
    }
}

/// Reads entries of a [`crate::FileStorageEngine`]'s log, concurrently with its writer.
#[derive(Debug)]
pub(crate) struct FileLogReader {
    pub(crate) map: Arc<SharedMap>,
    pub(crate) files: Arc<SegmentFiles>,
}

/// Entries that are so close together that one read fetches them all.
struct Run {
    file: Arc<SegmentFile>,
    start: u64,
    end: u64,
    slots: Vec<(LogIndex, Slot)>,
}

/// A gap up to this size is read along with its neighbors, which is cheaper than another call.
const GAP_BYTES: u64 = 8 << 10;
/// A run ends once it has reached this size, so that one read stays bounded.
const RUN_BYTES: u64 = 4 << 20;

impl LogReader for FileLogReader {
    fn read(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, StorageError> {
        let mut entries = Vec::new();
        // The lock is held only to find the locations. A file that is purged meanwhile is not
        // reused before this read has ended.
        for run in self.plan(group, first, last, max_bytes)? {
            self.read_run(group, &run, &mut entries)?;
        }
        Ok(entries)
    }

    fn scrub(&self, group: GroupId, from: ScrubPlace) -> Result<Scrubbed, StorageError> {
        self.look_at(group, from)
    }
}

impl FileLogReader {
    fn plan(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Run>, StorageError> {
        let map = self.map.read();
        let held = map.groups.get(&group);
        let (base, end) =
            held.map_or((LogIndex::ZERO, LogIndex::ZERO), |held| (held.base.index, held.last()));
        let absent = || {
            let kept = format!("the log contains {} to {end}", base.next());
            StorageError::Order(format!(
                "entries {first} to {last} of group {group} were requested; {kept}"
            ))
        };
        if first <= base || last > end {
            return Err(absent());
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut payloads = 0_usize;
        let mut index = first;
        while index <= last {
            let slot = *held.and_then(|held| held.slot(index)).ok_or_else(absent)?;
            payloads = payloads.saturating_add((slot.len as usize).saturating_sub(RECORD_LEN));
            if payloads > max_bytes && index > first {
                break;
            }
            let end = slot.offset + u64::from(slot.len);
            match runs.last_mut() {
                Some(run) if run.takes(&slot) => {
                    run.end = end;
                    run.slots.push((index, slot));
                }
                _ => {
                    let file = map.files.get(&slot.segment).map(Arc::clone).ok_or_else(absent)?;
                    let slots = vec![(index, slot)];
                    runs.push(Run { file, start: slot.offset, end, slots });
                }
            }
            index = index.next();
        }
        Ok(runs)
    }

    /// Whether the file of this segment may be gone because the writer has purged it meanwhile.
    fn is_purged(&self, number: u64) -> bool {
        !self.map.read().files.contains_key(&number)
    }

    fn read_run(
        &self,
        group: GroupId,
        run: &Run,
        entries: &mut Vec<LogEntry>,
    ) -> Result<(), StorageError> {
        let name = file_name(run.file.number);
        let path = self.files.path(run.file.number);
        let file = match self.files.handle(&run.file) {
            Err(error)
                if error.kind() == ErrorKind::NotFound && self.is_purged(run.file.number) =>
            {
                return Err(StorageError::Order(format!(
                    "segment {name} was purged before it was read"
                )));
            }
            opened => opened.map_err(room_error("open", &path))?,
        };
        let mut content = vec![0; usize::try_from(run.end - run.start).unwrap_or(0)];
        let read = read_up_to(&*file, run.start, &mut content).map_err(io_error("read", &path))?;
        content.truncate(read);
        let content = Bytes::from(content);
        for (index, slot) in &run.slots {
            let damaged = |what: &str| StorageError::Damaged {
                segment: name.clone(),
                offset: slot.offset,
                what: what.to_owned(),
            };
            let at = usize::try_from(slot.offset - run.start).unwrap_or(usize::MAX);
            match decode_record(&content, at, slot.chain).map(|framed| framed.record) {
                Ok(Record::Entry { group: found, entry })
                    if found == group && entry.id == LogId::new(slot.term, *index) =>
                {
                    entries.push(entry);
                }
                Ok(_) => return Err(damaged("another record is where the entry was written")),
                Err(_) => return Err(damaged("the entry no longer matches its checksum")),
            }
        }
        Ok(())
    }
}

impl Run {
    fn takes(&self, slot: &Slot) -> bool {
        self.file.number == slot.segment
            && slot.offset >= self.end
            && slot.offset - self.end <= GAP_BYTES
            && slot.offset - self.start < RUN_BYTES
    }
}
