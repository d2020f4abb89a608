//! "skip": a leader writes the decision to skip an entry only after a quorum has halted at exactly
//! this entry.

use std::collections::BTreeSet;

use d_engine_core::{Configuration, EntryKind, LogId, RaftCore, RoleKind};
use d_engine_storage::LogEntry;

use crate::monitors::violation::{Rule, Violation};

#[derive(Debug, Default)]
pub(crate) struct SkipMonitor {
    /// The nodes that have halted, and at which entry, as their replicas were informed.
    halted: BTreeSet<(u64, LogId)>,
}

impl SkipMonitor {
    /// Records that a node's state machine has halted at an entry.
    pub(crate) fn on_halt(&mut self, node: u64, entry: LogId) {
        self.halted.insert((node, entry));
    }

    /// Whether this node has created the entry as a leader, and the entry skips another one.
    pub(crate) fn is_decision(core: &RaftCore, entry: &LogEntry) -> bool {
        entry.kind == EntryKind::Skip
            && core.role() == RoleKind::Leader
            && core.term() == entry.id.term
    }

    /// Checks an entry that a node is about to write.
    ///
    /// # Errors
    /// The entry skips another one, at which no quorum has halted.
    pub(crate) fn on_write(
        &self,
        node: u64,
        core: &RaftCore,
        entry: &LogEntry,
    ) -> Result<(), Violation> {
        if !Self::is_decision(core, entry) {
            return Ok(());
        }
        let number = |bytes: Option<&[u8]>| {
            bytes
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_le_bytes)
                .unwrap_or_default()
        };
        let (term, index) = (number(entry.data.get(..8)), number(entry.data.get(8..)));
        let is_there = |at: &LogId| (at.term.get(), at.index.get()) == (term, index);
        let halted = self.halted.iter().filter(|(_, at)| is_there(at));
        let halted: BTreeSet<u64> = halted.map(|(node, _)| *node).collect();
        let configuration = decided_by(core, entry.id);
        if !configuration.has_quorum(|voter| halted.contains(&voter.get())) {
            return Rule::Skip.broken_by(
                node,
                format_args!(
                    "node {node} skips entry {index} of term {term}, at which of {configuration:?} \
                     only {halted:?} have halted"
                ),
            );
        }
        Ok(())
    }
}

/// The configuration in force when the leader wrote this decision. It may have entered a joint
/// configuration before the decision reaches its disk.
fn decided_by(core: &RaftCore, decision: LogId) -> Configuration {
    let now = core.configuration();
    let is_later = core.configuration_entry().0.index > decision.index;
    match is_later && now.is_joint() {
        true => Configuration::new(now.outgoing().iter().copied(), None),
        false => now.clone(),
    }
}
