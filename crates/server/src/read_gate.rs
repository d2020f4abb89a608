//! Reads that need no other thread: eventual ones, and those that the leader's lease covers.
//!
//! The raft thread writes here what it knows after every event and *before* anything it has decided
//! leaves the node. So whoever finds the lease valid at a time taken after the read arrived, and then
//! looks up the commit index, finds at least everything that anybody was told before that time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use d_engine_core::Instant;

use crate::clock::Clock;

pub(crate) struct ReadGate {
    clock: Clock,
    /// Until when nobody else can lead, in nanoseconds of `clock`; zero: no lease.
    lease_until: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
    closed: AtomicBool,
    /// The state machine stands at an entry that it cannot apply.
    stands: AtomicBool,
}

/// What the gate says to a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passage {
    /// The state machine may be read now; it has reached this index at least.
    Now(u64),
    /// Ask the raft thread.
    AskRaft,
    /// The node takes nothing in any more.
    Closed,
}

impl ReadGate {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            lease_until: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            stands: AtomicBool::new(false),
        }
    }

    /// Called by the raft thread after every event.
    pub(crate) fn publish(&self, committed: u64, lease_until: Option<Instant>) {
        self.committed.store(committed, Ordering::Release);
        self.lease_until.store(lease_until.map_or(0, Instant::as_nanos), Ordering::Release);
    }

    /// Called by the apply thread once the state machine has reached `index`.
    pub(crate) fn applied(&self, index: u64) {
        self.applied.fetch_max(index, Ordering::AcqRel);
    }

    /// Whether the state machine stands; called by the apply thread. Its state may be half of a chunk.
    pub(crate) fn set_stands(&self, stands: bool) {
        self.stands.store(stands, Ordering::Release);
    }

    pub(crate) fn stands(&self) -> bool {
        self.stands.load(Ordering::Acquire)
    }

    /// The commit index, as this node knows it.
    pub(crate) fn committed(&self) -> d_engine_core::LogIndex {
        d_engine_core::LogIndex::new(self.committed.load(Ordering::Acquire))
    }

    /// Nothing passes any more.
    pub(crate) fn close(&self) {
        self.lease_until.store(0, Ordering::Release);
        self.closed.store(true, Ordering::Release);
    }

    /// The moment `patience` from now, on the clock that the replica is told.
    pub(crate) fn after(&self, patience: std::time::Duration) -> Instant {
        let nanos = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        self.clock.now().plus(d_engine_core::Duration::from_nanos(nanos))
    }

    /// An eventual read; zero promises nothing.
    pub(crate) fn eventual(&self) -> Passage {
        match (self.closed.load(Ordering::Acquire), self.stands()) {
            (true, _) => Passage::Closed,
            // Which says why it is refused.
            (false, true) => Passage::AskRaft,
            (false, false) => Passage::Now(0),
        }
    }

    /// A lease read (Raft thesis, section 6.4.1). The clock is read after the call, so after the read has
    /// arrived; the commit index after the clock.
    pub(crate) fn by_lease(&self) -> Passage {
        if self.closed.load(Ordering::Acquire) {
            return Passage::Closed;
        }
        let until = self.lease_until.load(Ordering::Acquire);
        if until == 0 || self.clock.now().as_nanos() >= until {
            return Passage::AskRaft;
        }
        let committed = self.committed.load(Ordering::Acquire);
        if self.applied.load(Ordering::Acquire) >= committed {
            Passage::Now(committed)
        } else {
            Passage::AskRaft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> (ReadGate, Instant) {
        let gate = ReadGate::new(Clock::start());
        let later = gate.clock.now().plus(d_engine_core::Duration::from_millis(60_000));
        (gate, later)
    }

    #[test]
    fn a_valid_lease_lets_a_read_pass_once_everything_committed_is_applied() {
        let (gate, later) = gate();
        gate.publish(7, Some(later));
        gate.applied(6);
        assert_eq!(gate.by_lease(), Passage::AskRaft, "entry 7 is committed and not applied here");
        gate.applied(7);
        assert_eq!(gate.by_lease(), Passage::Now(7));
        gate.applied(5);
        assert_eq!(gate.by_lease(), Passage::Now(7), "a late report takes nothing back");
    }

    #[test]
    fn without_a_lease_or_with_one_that_is_over_the_raft_thread_is_asked() {
        let (gate, later) = gate();
        gate.applied(7);
        assert_eq!(gate.by_lease(), Passage::AskRaft);
        gate.publish(7, Some(Instant::from_nanos(1)));
        assert_eq!(gate.by_lease(), Passage::AskRaft, "over");
        gate.publish(7, Some(later));
        gate.publish(7, None);
        assert_eq!(gate.by_lease(), Passage::AskRaft, "revoked");
    }

    /// A raft thread that commits, an apply thread that follows, and a reader: what passes names an index that
    /// is applied, and never one from before what the reader was told.
    #[test]
    fn a_read_that_passes_sees_everything_told_before() {
        let (gate, later) = gate();
        let told = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for index in 1..=200_000 {
                    gate.publish(index, Some(later));
                    gate.applied(index);
                    // Only now is a caller answered.
                    told.store(index, Ordering::Release);
                }
                gate.close();
            });
            loop {
                let before = told.load(Ordering::Acquire);
                match gate.by_lease() {
                    Passage::Now(index) => assert!(index >= before, "{index} after {before} was told"),
                    Passage::AskRaft => {}
                    Passage::Closed => break,
                }
            }
        });
    }

    #[test]
    fn nothing_passes_a_closed_gate() {
        let (gate, later) = gate();
        gate.applied(7);
        gate.publish(7, Some(later));
        gate.close();
        assert_eq!((gate.by_lease(), gate.eventual()), (Passage::Closed, Passage::Closed));
    }
}
