//! What the threads of a simulated node have published for reads, as in
//! `crates/server/src/threads/read_gate.rs`. The decision is the server's.

use d_engine_core::{Instant, LogIndex, RaftCore, ReadMode};
use d_engine_replica::{ReadDecision, ReadGateInputs, decide_lease_read};

/// The published values.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gate {
    lease_until: Option<Instant>,
    committed: LogIndex,
    /// The last index that the state machine has applied.
    pub(crate) applied: u64,
    /// Whether the state machine is halted at an entry.
    pub(crate) is_halted: bool,
    /// Whether the node is shutting down.
    pub(crate) is_closed: bool,
}

impl Gate {
    /// The gate of a process that starts with everything up to `applied` applied.
    pub(crate) fn new(applied: u64) -> Self {
        Self { applied, ..Self::default() }
    }

    /// The raft thread publishes this after every event, before any job is handed out.
    pub(crate) fn publish(&mut self, core: &RaftCore) {
        (self.committed, self.lease_until) = (core.log().committed, core.lease_until());
    }

    /// Decides a read that has arrived at this time of the node's clock.
    pub(crate) fn decide(self, mode: ReadMode, now: Instant) -> ReadDecision {
        match mode {
            ReadMode::Lease => decide_lease_read(&GateAt(self, now)),
            ReadMode::Round => ReadDecision::AskRaftThread,
        }
    }
}

/// The gate at a time of the node's clock.
struct GateAt(Gate, Instant);

impl ReadGateInputs for GateAt {
    fn is_closed(&self) -> bool {
        self.0.is_closed
    }
    fn is_halted(&self) -> bool {
        self.0.is_halted
    }
    fn lease_until(&self) -> Option<Instant> {
        self.0.lease_until
    }
    fn now(&self) -> Instant {
        self.1
    }
    fn committed(&self) -> LogIndex {
        self.0.committed
    }
    fn applied(&self) -> LogIndex {
        LogIndex::new(self.0.applied)
    }
}
