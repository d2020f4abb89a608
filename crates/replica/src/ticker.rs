//! Decides when a tick is due: a state machine with expiries waits for log time, and the time of an
//! idle log does not advance by itself.

use d_engine_core::{LogIndex, Term};

/// Decides when a leader proposes a tick. One tick is in flight at a time, so expiries in quick
/// succession share it.
#[derive(Debug, Default)]
pub(crate) struct Ticker {
    next_expiry_ms: Option<u64>,
    /// Term and index of the last tick proposed here, and the time in it.
    proposed: Option<(Term, LogIndex, u64)>,
}

impl Ticker {
    /// Sets the next expiry that the state machine has reported.
    pub(crate) fn set_expiry(&mut self, next_expiry_ms: Option<u64>) {
        self.next_expiry_ms = next_expiry_ms;
    }

    /// Whether the leader of `term`, whose state machine has applied up to `applied`, should
    /// propose a tick now. If the machine still reports the same expiry after a tick, the next tick
    /// is proposed only after log time has advanced.
    pub(crate) fn is_due(&self, log_time_ms: u64, term: Term, applied: LogIndex) -> bool {
        let passed = self.next_expiry_ms.is_some_and(|expiry| expiry <= log_time_ms);
        passed
            && self.proposed.is_none_or(|(of, index, time_ms)| {
                of != term || (index <= applied && time_ms < log_time_ms)
            })
    }

    pub(crate) fn proposed(&mut self, term: Term, index: LogIndex, log_time_ms: u64) {
        self.proposed = Some((term, index, log_time_ms));
    }
}
