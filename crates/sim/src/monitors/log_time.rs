//! Whether log time may have been wrong: while the wall clocks of no quorum agree, a leader stamps
//! commands with a time that continues from the log (docs/durability.md, section 12), and nothing
//! is guaranteed about what expires.

use std::collections::BTreeMap;

use d_engine_core::{ClockState, LogId, RaftCore};

/// What the leaders' clocks were when they created entries.
#[derive(Debug, Default)]
pub(crate) struct LogTimes {
    /// The last entry of each node's log.
    last: BTreeMap<u64, LogId>,
    /// When a leader first created an entry, other than the first one of its term, without a
    /// quorum of clocks that agree.
    pub(crate) alone_since: Option<u64>,
}

impl LogTimes {
    pub(crate) fn after_step(&mut self, node: u64, core: &RaftCore, now: u64) {
        let last = core.log().last;
        let before = self.last.insert(node, last).unwrap_or_default();
        let is_in_term = before.term == core.term() && last.index > before.index;
        let is_alone = core.clock_state().is_some_and(|state| state != ClockState::Agreed);
        if is_in_term && is_alone {
            self.alone_since.get_or_insert(now);
        }
    }
}
