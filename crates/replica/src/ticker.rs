//! When the log must be told the time: a state machine with expiries waits for log time, and an idle log's
//! time stands still.

use d_engine_core::{LogIndex, Term};

/// Decides when a leader puts a tick into the log. One is on its way at a time, so expiries that come in
/// a row share it.
#[derive(Debug, Default)]
pub(crate) struct Ticker {
    next_expiry_ms: Option<u64>,
    /// Term and index of the last tick proposed here, and the time in it.
    proposed: Option<(Term, LogIndex, u64)>,
}

impl Ticker {
    /// What the state machine said last.
    pub(crate) fn set_expiry(&mut self, next_expiry_ms: Option<u64>) {
        self.next_expiry_ms = next_expiry_ms;
    }

    /// Whether the leader of `term` whose state machine stands at `applied` should propose a tick now.
    /// A machine that has been told a time and still wants it is not told again before log time has
    /// moved on.
    pub(crate) fn is_due(&self, log_time_ms: u64, term: Term, applied: LogIndex) -> bool {
        let passed = self.next_expiry_ms.is_some_and(|expiry| expiry <= log_time_ms);
        passed
            && self
                .proposed
                .is_none_or(|(of, index, time_ms)| of != term || (index <= applied && time_ms < log_time_ms))
    }

    pub(crate) fn proposed(&mut self, term: Term, index: LogIndex, log_time_ms: u64) {
        self.proposed = Some((term, index, log_time_ms));
    }
}
