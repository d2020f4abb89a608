//! Commit index and last applied.
//!
//! - "monotonic": they never fall within a boot.
//! - "order of watermarks": base and last applied <= commit index <= last index.

use std::collections::BTreeMap;

use d_engine_core::{LogIndex, RaftCore};

use crate::monitors::violation::{Rule, Violation};

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    commit: LogIndex,
    applied: LogIndex,
}

/// The watermarks of all nodes after their last step.
#[derive(Debug, Default)]
pub(crate) struct Watermarks {
    by_node: BTreeMap<u64, Marks>,
}

impl Watermarks {
    /// Records that a process has ended.
    pub(crate) fn on_restart(&mut self, node: u64) {
        self.by_node.remove(&node);
    }

    /// Checks a node that has handled an event. Returns its commit index before.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn after_step(&mut self, node: u64, core: &RaftCore) -> Result<LogIndex, Violation> {
        let log = core.log();
        let marks = self.by_node.entry(node).or_default();
        if log.committed < marks.commit || log.applied < marks.applied {
            return Rule::Monotonic.broken_by(
                node,
                format_args!("the watermarks of node {node} fell from {marks:?} to {log:?}"),
            );
        }
        if log.base.index > log.committed
            || log.applied > log.committed
            || log.committed > log.last.index
        {
            return Rule::OrderOfWatermarks
                .broken_by(node, format_args!("node {node} has {log:?}"));
        }
        let before = marks.commit;
        *marks = Marks { commit: log.committed, applied: log.applied };
        Ok(before)
    }
}
