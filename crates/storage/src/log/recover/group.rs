//! What recovery has read of one Raft group.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use d_engine_core::{EntryKind, HardState, LogId, LogIndex, Term};

use crate::log::index::Slot;
use crate::{EntryHead, LogEntry};

/// What was read of one Raft group.
#[derive(Debug, Default)]
pub(crate) struct RecoveredGroup {
    pub(crate) base: LogId,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: VecDeque<(EntryHead, Slot)>,
    pub(crate) memberships: BTreeMap<LogIndex, Bytes>,
    pub(crate) skips: BTreeMap<LogIndex, Bytes>,
    pub(super) gap: Option<Gap>,
    /// The lowest index that was read; zero if none was.
    pub(super) lowest: LogIndex,
    /// The term of the entry at `base`, if that entry was read.
    pub(super) at_base: Option<Term>,
}

/// A jump in the indexes. A later record may still supersede everything from there on. Then the
/// missing entries were purged with their segment, because they were no longer needed.
#[derive(Debug)]
pub(super) struct Gap {
    pub(super) missing: LogIndex,
    pub(super) before: LogIndex,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl RecoveredGroup {
    pub(super) fn put(&mut self, entry: &LogEntry, slot: Slot) {
        let index = entry.id.index;
        self.lowest = if self.lowest == LogIndex::ZERO { index } else { self.lowest.min(index) };
        // The entries read may end before the base, if the last purged entries were in a torn
        // group.
        let last = self.entries.back().map_or(self.base.index, |(last, _)| last.id.index);
        let next = last.max(self.base.index).next();
        if index > next && self.gap.is_none() {
            self.gap = Some(Gap {
                missing: next,
                before: index,
                segment: slot.segment,
                offset: slot.offset,
            });
        }
        self.gap.take_if(|gap| index <= gap.missing);
        let keep = self.entries.partition_point(|(head, _)| head.id.index < index);
        self.entries.truncate(keep);
        drop(self.memberships.split_off(&index));
        drop(self.skips.split_off(&index));
        self.entries.push_back((entry.head(), slot));
        match entry.kind {
            EntryKind::Membership => drop(self.memberships.insert(index, entry.data.clone())),
            EntryKind::Skip => drop(self.skips.insert(index, entry.data.clone())),
            _ => {}
        }
    }

    /// Drops the entries up to the base. Some are still there, because segments are purged as a
    /// whole.
    pub(super) fn forget_purged(&mut self) {
        let base = self.base.index;
        let purged = self.entries.partition_point(|(head, _)| head.id.index <= base);
        let last_purged = purged.checked_sub(1).and_then(|last| self.entries.get(last));
        self.at_base =
            last_purged.filter(|(head, _)| head.id.index == base).map(|(head, _)| head.id.term);
        self.entries.drain(..purged);
        self.memberships = self.memberships.split_off(&base.next());
        self.skips = self.skips.split_off(&base.next());
    }
}
