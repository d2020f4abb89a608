//! The log without payloads: which term every index has, how large entries are, and how far the
//! log is appended, persisted, committed and applied.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::{Configuration, EntryMeta, LogId, LogIndex, PersistId, Term};

/// What the log held when the node started.
#[derive(Clone, Debug, Default)]
pub struct InitialLog {
    /// The entry before the first one kept.
    pub base: LogId,
    /// The configuration as of `base`.
    pub configuration: Configuration,
    /// Log time at `base`, in UNIX milliseconds.
    pub time_ms: u64,
    /// The entries after `base`, in order. All of them are durable.
    pub entries: Vec<EntryMeta>,
    /// An index known to be committed, from the hard state; bounded by the last entry.
    pub commit: LogIndex,
}

/// The watermarks of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogSummary {
    /// The entry before the first one kept.
    pub base: LogId,
    /// The last entry, durable or not.
    pub last: LogId,
    /// The last entry on this node's stable storage.
    pub persisted: LogIndex,
    /// The last entry known to be committed.
    pub committed: LogIndex,
    /// The last entry applied.
    pub applied: LogIndex,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    first: LogIndex,
    term: Term,
}

/// What an entry of `bytes` of payload takes up: its envelope costs memory too, so entries without
/// payload are bounded as well.
pub(crate) fn cost(bytes: u32) -> u64 {
    u64::from(bytes) + 64
}

#[derive(Clone, Debug)]
pub(crate) struct LogView {
    base: LogId,
    /// Rising in index and in term.
    spans: Vec<Span>,
    /// Payload bytes of every entry after `base`.
    sizes: VecDeque<u32>,
    persisted: LogIndex,
    committed: LogIndex,
    applied: LogIndex,
    /// Orders on their way to the disk, and how far each will make the log durable.
    ordered: VecDeque<(PersistId, LogIndex)>,
    /// Every configuration in the log with the index of its entry; the first is that of `base`.
    /// The one in force is the last one *appended* (Raft paper, section 6), undone on truncation.
    configurations: Vec<(LogIndex, Box<Configuration>)>,
    time_ms: u64,
    uncommitted_bytes: u64,
}

impl LogView {
    pub(crate) fn new(initial: InitialLog) -> Self {
        let mut log = Self {
            base: initial.base,
            spans: Vec::new(),
            sizes: VecDeque::with_capacity(initial.entries.len()),
            persisted: initial.base.index,
            committed: initial.base.index,
            applied: initial.base.index,
            ordered: VecDeque::new(),
            configurations: alloc::vec![(initial.base.index, Box::new(initial.configuration))],
            time_ms: initial.time_ms,
            uncommitted_bytes: 0,
        };
        for entry in &initial.entries {
            log.push(entry);
        }
        log.persisted = log.last_index();
        log.commit_to(initial.commit.min(log.last_index()));
        log
    }

    pub(crate) fn summary(&self) -> LogSummary {
        LogSummary {
            base: self.base,
            last: self.last(),
            persisted: self.persisted,
            committed: self.committed,
            applied: self.applied,
        }
    }

    pub(crate) fn last_index(&self) -> LogIndex {
        self.base.index.plus(self.sizes.len() as u64)
    }

    pub(crate) fn last(&self) -> LogId {
        let term = self.spans.last().map_or(self.base.term, |span| span.term);
        LogId::new(term, self.last_index())
    }

    pub(crate) fn persisted(&self) -> LogIndex {
        self.persisted
    }

    pub(crate) fn committed(&self) -> LogIndex {
        self.committed
    }

    pub(crate) fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Nothing is applied beyond this: committed, and stored on this very node.
    pub(crate) fn may_apply_to(&self) -> LogIndex {
        if cfg!(mutant = "apply-before-persisted") {
            return self.committed;
        }
        self.committed.min(self.persisted)
    }

    pub(crate) fn uncommitted_bytes(&self) -> u64 {
        self.uncommitted_bytes
    }

    pub(crate) fn configuration(&self) -> &Configuration {
        // The list never becomes empty: `new` puts one in, `truncate_from` keeps the first.
        static NOBODY: Configuration = Configuration::nobody();
        self.configurations.last().map_or(&NOBODY, |(_, configuration)| configuration)
    }

    /// The index of the entry that brought the configuration in force.
    pub(crate) fn configuration_index(&self) -> LogIndex {
        self.configurations.last().map_or(self.base.index, |(index, _)| *index)
    }

    /// The term of the entry at `index`; `None` before the base and after the end.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last_index() {
            return None;
        }
        let after = self.spans.partition_point(|span| span.first <= index);
        self.spans.get(after.checked_sub(1)?).map(|span| span.term)
    }

    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// The last entry at or before `index` whose term is at most `term`: the furthest point at
    /// which two logs can still agree (the "fast back-off" of the Raft paper, end of section 5.3).
    pub(crate) fn last_possible_match(&self, index: LogIndex, term: Term) -> LogId {
        let mut index = index.min(self.last_index());
        for span in self.spans.iter().rev() {
            if span.first > index {
                continue;
            }
            if span.term <= term {
                return LogId::new(span.term, index);
            }
            index = span.first.previous();
        }
        self.base
    }

    /// Appends one entry after the last.
    pub(crate) fn push(&mut self, entry: &EntryMeta) {
        let index = self.last_index().next();
        if self.spans.is_empty() || self.last().term != entry.term {
            self.spans.push(Span { first: index, term: entry.term });
        }
        self.sizes.push_back(entry.bytes);
        self.uncommitted_bytes = self.uncommitted_bytes.saturating_add(cost(entry.bytes));
        self.time_ms = self.time_ms.max(entry.time_ms);
        if let Some(configuration) = &entry.configuration {
            self.configurations.push((index, configuration.clone()));
        }
    }

    /// The log time of the last entry; no later entry has an earlier one.
    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Drops the entries from `index` on. Orders on their way no longer make them durable, and the
    /// configuration falls back to the one before them.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        assert!(
            index > self.committed,
            "a committed entry would be dropped: {index} of {:?}",
            self.summary()
        );
        while self.last_index() >= index {
            let Some(bytes) = self.sizes.pop_back() else { break };
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(cost(bytes));
        }
        self.spans.retain(|span| span.first < index);
        let kept = index.previous();
        self.persisted = self.persisted.min(kept);
        for (_, through) in &mut self.ordered {
            *through = (*through).min(kept);
        }
        while self.configurations.len() > 1 && self.configuration_index() >= index {
            self.configurations.pop();
        }
    }

    /// The furthest entry at or before `covered` behind which at most `entries` entries with at most
    /// `bytes` of payload follow, of those up to the end of the log; the base when all may stay.
    pub(crate) fn tail_behind(&self, covered: LogIndex, entries: u64, bytes: u64) -> LogId {
        let (mut index, mut kept, mut room) = (self.last_index(), 0, bytes);
        for size in self.sizes.iter().rev() {
            let Some(left) = room.checked_sub(cost(*size)).filter(|_| kept < entries) else { break };
            (room, kept, index) = (left, kept + 1, index.previous());
        }
        let through = index.min(covered);
        self.term_at(through).map_or(self.base, |term| LogId::new(term, through))
    }

    /// The driver has purged the log up to `through`: nothing before is known any more.
    pub(crate) fn purge_to(&mut self, through: LogId) {
        assert!(through.index <= self.applied, "unapplied entries would be purged: {:?}", self.summary());
        self.begin_after(through);
    }

    /// The log begins after `base` from now on; what is behind it stays.
    fn begin_after(&mut self, base: LogId) {
        let dropped = usize::try_from(base.index.since(self.base.index)).unwrap_or(usize::MAX);
        self.sizes.drain(..dropped.min(self.sizes.len()));
        let covering = self.spans.partition_point(|span| span.first <= base.index.next());
        self.spans.drain(..covering.saturating_sub(1));
        if let Some(span) = self.spans.first_mut() {
            span.first = span.first.max(base.index.next());
        }
        let kept = self.configurations.partition_point(|(index, _)| *index <= base.index);
        self.configurations.drain(..kept.saturating_sub(1));
        self.base = base;
        if self.sizes.is_empty() {
            self.spans.clear();
        }
    }

    /// A snapshot stands in the place of everything up to `last`. A log that holds this very entry keeps
    /// what is behind it; any other log is dropped whole (Raft paper, figure 13, rules 6 and 7).
    /// Returns whether the log was kept.
    pub(crate) fn install(&mut self, last: LogId, configuration: Box<Configuration>, time_ms: u64) -> bool {
        assert!(last.index > self.committed, "a snapshot from before commit: {last:?} {:?}", self.summary());
        let kept = self.holds(last);
        if kept {
            self.commit_to(last.index);
        } else {
            // What was committed is in the snapshot, and as durable as it was.
            let durable = self.persisted.min(self.committed);
            for (_, through) in &mut self.ordered {
                *through = (*through).min(durable);
            }
            self.persisted = durable;
            self.sizes.clear();
            self.spans.clear();
            self.uncommitted_bytes = 0;
            self.committed = last.index;
            self.base = last;
            self.configurations.clear();
        }
        if kept {
            self.begin_after(last);
            self.configurations.retain(|(index, _)| *index > last.index);
        }
        self.configurations.insert(0, (last.index, configuration));
        self.time_ms = self.time_ms.max(time_ms);
        kept
    }

    /// Notes that `order` will make everything now in the log durable.
    pub(crate) fn ordered(&mut self, order: PersistId) {
        self.ordered.push_back((order, self.last_index()));
    }

    /// `order` and all before it are on stable storage.
    pub(crate) fn persisted_by(&mut self, order: PersistId) {
        while let Some((_, through)) = self.ordered.pop_front_if(|(id, _)| *id <= order) {
            self.persisted = self.persisted.max(through);
        }
    }

    /// The order that makes `index` durable, or `None` when it is durable already.
    pub(crate) fn order_of(&self, index: LogIndex) -> Option<PersistId> {
        if index <= self.persisted {
            return None;
        }
        self.ordered.iter().find(|(_, through)| *through >= index).map(|(id, _)| *id)
    }

    /// Moves the commit index up; never down.
    pub(crate) fn commit_to(&mut self, index: LogIndex) {
        assert!(index <= self.last_index(), "commit {index} is past the end: {:?}", self.summary());
        while self.committed < index {
            let position = self.committed.since(self.base.index);
            let bytes = usize::try_from(position).ok().and_then(|at| self.sizes.get(at)).copied();
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(bytes.map_or(0, cost));
            self.committed = self.committed.next();
        }
    }

    /// Moves the applied watermark up; `false` when it is not allowed there.
    pub(crate) fn applied_to(&mut self, index: LogIndex) -> bool {
        if index > self.may_apply_to() {
            return false;
        }
        self.applied = self.applied.max(index);
        true
    }

    /// The last index of a batch that starts at `first`: at most `entries_max` entries and
    /// `bytes_max` payload bytes, but at least one entry; and the batch's bytes. `None` when there
    /// is nothing at `first`.
    pub(crate) fn batch_from(
        &self,
        first: LogIndex,
        bytes_max: u64,
        entries_max: u64,
    ) -> Option<(LogIndex, u64)> {
        if first <= self.base.index || first > self.last_index() {
            return None;
        }
        let start = usize::try_from(first.since(self.base.index.next())).ok()?;
        let (mut count, mut bytes) = (0_u64, 0_u64);
        for size in self.sizes.range(start..) {
            let with_this = bytes.saturating_add(u64::from(*size));
            if count > 0 && (with_this > bytes_max || count >= entries_max) {
                break;
            }
            count += 1;
            bytes = with_this;
        }
        Some((first.plus(count).previous(), bytes))
    }
}

#[cfg(test)]
mod tests;
