//! The log without payloads: the term of every index, the size of every entry, and how far the log
//! is appended, persisted, committed and applied.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::interface::effects::LogSuffix;
use crate::{Configuration, EntryMeta, LogId, LogIndex, NodeId, PersistId, Term};

/// The log at the node's start.
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
    /// An index known to be committed, from the hard state; at most the last entry.
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

/// The cost of an entry with `bytes` of payload. Its envelope costs memory too, so entries without
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
    /// Persist requests in progress, and how far each will make the log durable.
    ordered: VecDeque<(PersistId, LogIndex)>,
    /// Every configuration in the log with the id of its entry; the first may be older than the log
    /// and has the id of the `base` at which it was read. The
    /// last one *appended* is in force (Raft paper, section 6); truncation undoes it.
    configurations: Vec<(LogId, Box<Configuration>)>,
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
            configurations: alloc::vec![(initial.base, Box::new(initial.configuration))],
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

    /// The limit of apply: committed, and persisted on this node.
    pub(crate) fn may_apply_to(&self) -> LogIndex {
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

    /// The configurations that may decide something: the last committed one and all after it.
    pub(crate) fn configurations_in_play(&self) -> impl Iterator<Item = &Configuration> {
        let committed = self.configurations.partition_point(|(at, _)| at.index <= self.committed);
        let in_play = self.configurations.get(committed.saturating_sub(1)..).unwrap_or_default();
        in_play.iter().map(|(_, configuration)| &**configuration)
    }

    /// The nodes that receive the log: the members of every configuration in play, sorted. A node
    /// that is on its way out is still needed until the entry that drops it is committed.
    pub(crate) fn reach(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.configurations_in_play().flat_map(Configuration::members).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The entry with the configuration in force; if that is older than the log, the entry before
    /// the log as it was when this node started or installed a snapshot.
    pub(crate) fn configuration_id(&self) -> LogId {
        self.configurations.last().map_or(self.base, |(id, _)| *id)
    }

    /// Whether the configuration in force is committed.
    pub(crate) fn is_configuration_committed(&self) -> bool {
        self.configuration_index() <= self.committed
    }

    /// The index of the entry with the configuration in force.
    pub(crate) fn configuration_index(&self) -> LogIndex {
        self.configuration_id().index
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

    /// The last entry at or before `index` whose term is at most `term`: the furthest entry at
    /// which two logs can still agree (the fast back-off at the end of section 5.3 of the Raft
    /// paper).
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
            self.configurations.push((LogId::new(entry.term, index), configuration.clone()));
        }
    }

    /// The log time of the last entry; no later entry has an earlier one.
    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Drops the entries from `index` on. Persist requests in progress no longer make them durable,
    /// and the configuration falls back to the one before them.
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

    /// The furthest entry at or before `covered` after which at most `entries` entries with at most
    /// `bytes` of payload follow, up to the end of the log; the base if all of them may stay.
    pub(crate) fn retained_tail(&self, covered: LogIndex, entries: u64, bytes: u64) -> LogId {
        let (mut index, mut kept, mut room) = (self.last_index(), 0, bytes);
        for size in self.sizes.iter().rev() {
            let Some(left) = room.checked_sub(cost(*size)).filter(|_| kept < entries) else {
                break;
            };
            (room, kept, index) = (left, kept + 1, index.previous());
        }
        let through = index.min(covered);
        self.term_at(through).map_or(self.base, |term| LogId::new(term, through))
    }

    /// The driver has purged the log up to `through`.
    pub(crate) fn purge_to(&mut self, through: LogId) {
        assert!(
            through.index <= self.applied,
            "unapplied entries would be purged: {:?}",
            self.summary()
        );
        self.begin_after(through);
    }

    /// The log begins after `base` from now on; the entries after it stay.
    fn begin_after(&mut self, base: LogId) {
        let dropped = usize::try_from(base.index.since(self.base.index)).unwrap_or(usize::MAX);
        self.sizes.drain(..dropped.min(self.sizes.len()));
        let covering = self.spans.partition_point(|span| span.first <= base.index.next());
        self.spans.drain(..covering.saturating_sub(1));
        if let Some(span) = self.spans.first_mut() {
            span.first = span.first.max(base.index.next());
        }
        let kept = self.configurations.partition_point(|(id, _)| id.index <= base.index);
        self.configurations.drain(..kept.saturating_sub(1));
        self.base = base;
        if self.sizes.is_empty() {
            self.spans.clear();
        }
    }

    /// A snapshot replaces the log up to `last`. A log that contains that entry keeps the entries
    /// after it; any other log is dropped (Raft paper, figure 13, rules 6 and 7). Returns
    /// which of the two was done.
    pub(crate) fn install(
        &mut self,
        last: LogId,
        configuration: Box<Configuration>,
        time_ms: u64,
    ) -> LogSuffix {
        assert!(
            last.index > self.committed,
            "a snapshot from before the commit index: {last:?} {:?}",
            self.summary()
        );
        let kept = self.holds(last);
        if kept {
            self.commit_to(last.index);
        } else {
            // What was committed is in the snapshot, which is durable.
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
            self.configurations.retain(|(id, _)| id.index > last.index);
        }
        self.configurations.insert(0, (last, configuration));
        self.time_ms = self.time_ms.max(time_ms);
        if kept { LogSuffix::Keep } else { LogSuffix::Drop }
    }

    /// Records that `order` will make everything now in the log durable.
    pub(crate) fn persist_requested(&mut self, order: PersistId) {
        self.ordered.push_back((order, self.last_index()));
    }

    /// `order` and all persist requests before it are on stable storage.
    pub(crate) fn persisted_by(&mut self, order: PersistId) {
        while let Some((_, through)) = self.ordered.pop_front_if(|(id, _)| *id <= order) {
            self.persisted = self.persisted.max(through);
        }
    }

    /// The persist request that makes `index` durable; `None` if it is durable already.
    pub(crate) fn request_of(&self, index: LogIndex) -> Option<PersistId> {
        if index <= self.persisted {
            return None;
        }
        self.ordered.iter().find(|(_, through)| *through >= index).map(|(id, _)| *id)
    }

    /// Moves the commit index up; never down.
    pub(crate) fn commit_to(&mut self, index: LogIndex) {
        assert!(
            index <= self.last_index(),
            "commit index {index} is past the end of the log: {:?}",
            self.summary()
        );
        while self.committed < index {
            let position = self.committed.since(self.base.index);
            let bytes = usize::try_from(position).ok().and_then(|at| self.sizes.get(at)).copied();
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(bytes.map_or(0, cost));
            self.committed = self.committed.next();
        }
    }

    /// Moves the applied watermark up; `false` if it may not move there.
    pub(crate) fn applied_to(&mut self, index: LogIndex) -> bool {
        if index > self.may_apply_to() {
            return false;
        }
        self.applied = self.applied.max(index);
        true
    }

    /// The last index of a batch that starts at `first`, and the batch's bytes. The batch has at
    /// least one entry, and otherwise at most `entries_max` entries and `bytes_max` payload bytes.
    /// `None` if there is no entry at `first`.
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
