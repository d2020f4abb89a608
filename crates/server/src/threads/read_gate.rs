//! What the raft and apply threads publish, so that a read can be decided on the caller's thread:
//! [`decide_lease_read`] and [`decide_eventual_read`]. `tests/models.rs` checks it under every
//! order of its threads' steps.

use std::sync::atomic::Ordering;

use d_engine_core::{Instant, LogIndex};
use d_engine_replica::{ReadDecision, ReadGateInputs, decide_eventual_read, decide_lease_read};

use crate::node::clock::Clock;
use crate::sync::{AtomicBool, AtomicU64};

pub(crate) struct ReadGate {
    clock: Clock,
    /// Until when no other node can be leader, in nanoseconds of `clock`; zero: no lease.
    lease_until: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
    closed: AtomicBool,
    /// Whether the state machine is halted at an entry that it cannot apply.
    halted: AtomicBool,
}

impl ReadGate {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            lease_until: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            halted: AtomicBool::new(false),
        }
    }

    /// Publishes the commit index and the lease. Called by the raft thread after every event, and
    /// before any message or reply that results from it leaves the node. The lease comes last:
    /// a thread that sees it also sees the commit index that it came with.
    pub(crate) fn publish(&self, committed: LogIndex, lease_until: Option<Instant>) {
        self.committed.store(committed.get(), Ordering::Release);
        self.lease_until.store(lease_until.map_or(0, Instant::as_nanos), Ordering::Release);
    }

    /// Publishes that the state machine has applied `index`. Called by the apply thread.
    pub(crate) fn set_applied(&self, index: u64) {
        self.applied.fetch_max(index, Ordering::AcqRel);
    }

    /// Publishes whether the state machine is halted; its state may then contain half of a chunk.
    /// Called by the apply thread.
    pub(crate) fn set_halted(&self, halted: bool) {
        self.halted.store(halted, Ordering::Release);
    }

    /// Closes the gate for all further reads.
    pub(crate) fn close(&self) {
        self.lease_until.store(0, Ordering::Release);
        self.closed.store(true, Ordering::Release);
    }

    /// Returns the time `timeout` from now, on the replica's clock.
    pub(crate) fn after(&self, timeout: std::time::Duration) -> Instant {
        self.clock.now().plus(timeout)
    }

    /// Decides an eventual read.
    pub(crate) fn eventual(&self) -> ReadDecision {
        decide_eventual_read(self)
    }

    /// Decides a lease read, which has arrived before the call.
    pub(crate) fn by_lease(&self) -> ReadDecision {
        decide_lease_read(self)
    }
}

impl ReadGateInputs for ReadGate {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    fn lease_until(&self) -> Option<Instant> {
        let until = self.lease_until.load(Ordering::Acquire);
        (until != 0).then_some(Instant::from_nanos(until))
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn committed(&self) -> LogIndex {
        LogIndex::new(self.committed.load(Ordering::Acquire))
    }

    fn applied(&self) -> LogIndex {
        LogIndex::new(self.applied.load(Ordering::Acquire))
    }
}
