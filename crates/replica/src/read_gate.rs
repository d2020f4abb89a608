//! Which reads need no other thread: eventual reads, and those that the leader lease covers.
//!
//! The raft thread publishes the commit index and the lease after every event, and *before* any
//! message or reply that results from that event leaves the node. A lease read compares the lease
//! with a time taken after the read arrived, and loads the commit index after that. So this index
//! covers everything that was acknowledged to any client before that time.

use d_engine_core::{Instant, LogIndex};

/// What a node has published for reads. Other threads change it at any moment, so the order in
/// which it is read is a part of the rule; [`decide_lease_read`] chooses that order.
pub trait ReadGateInputs {
    /// Whether the node accepts no more requests.
    fn is_closed(&self) -> bool;
    /// Whether the state machine is halted at an entry that it cannot apply; its state may contain
    /// half of a chunk.
    fn is_halted(&self) -> bool;
    /// Until when no other node can be leader; `None`: this node has no lease.
    fn lease_until(&self) -> Option<Instant>;
    /// The present time of the clock that the lease is measured by.
    fn now(&self) -> Instant;
    /// The commit index that the raft thread has published.
    fn committed(&self) -> LogIndex;
    /// The last applied index that the apply thread has published.
    fn applied(&self) -> LogIndex;
}

/// How a read may be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadDecision {
    /// The state machine may be read now; it has applied at least this index.
    Now(LogIndex),
    /// The read must go to the raft thread.
    AskRaftThread,
    /// The node accepts no more requests.
    Closed,
}

/// Decides an eventual read. Its index is 0, which guarantees nothing.
pub fn decide_eventual_read(inputs: &impl ReadGateInputs) -> ReadDecision {
    match (inputs.is_closed(), inputs.is_halted()) {
        (true, _) => ReadDecision::Closed,
        // The raft thread refuses the read with the reason.
        (false, true) => ReadDecision::AskRaftThread,
        (false, false) => ReadDecision::Now(LogIndex::ZERO),
    }
}

/// Decides a lease read (Raft thesis, section 6.4.1). Call it after the read has arrived. It reads
/// the clock then, and the commit index after the clock: while the lease is valid, no other node
/// commits anything, so this index is as high as any that was acknowledged before.
pub fn decide_lease_read(inputs: &impl ReadGateInputs) -> ReadDecision {
    if inputs.is_closed() {
        return ReadDecision::Closed;
    }
    let Some(until) = inputs.lease_until() else { return ReadDecision::AskRaftThread };
    if inputs.now() >= until {
        return ReadDecision::AskRaftThread;
    }
    let committed = inputs.committed();
    if inputs.applied() >= committed {
        ReadDecision::Now(committed)
    } else {
        ReadDecision::AskRaftThread
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Inputs of one moment; records the order in which they are read.
    struct Inputs {
        is_closed: bool,
        is_halted: bool,
        lease_until: Option<u64>,
        now: u64,
        committed: u64,
        applied: u64,
        read: RefCell<Vec<&'static str>>,
    }

    /// A leader with a valid lease that has applied everything that is committed.
    fn leader() -> Inputs {
        Inputs {
            is_closed: false,
            is_halted: false,
            lease_until: Some(100),
            now: 99,
            committed: 7,
            applied: 7,
            read: RefCell::default(),
        }
    }

    impl ReadGateInputs for Inputs {
        fn is_closed(&self) -> bool {
            self.read.borrow_mut().push("closed");
            self.is_closed
        }
        fn is_halted(&self) -> bool {
            self.read.borrow_mut().push("halted");
            self.is_halted
        }
        fn lease_until(&self) -> Option<Instant> {
            self.read.borrow_mut().push("lease");
            self.lease_until.map(Instant::from_nanos)
        }
        fn now(&self) -> Instant {
            self.read.borrow_mut().push("clock");
            Instant::from_nanos(self.now)
        }
        fn committed(&self) -> LogIndex {
            self.read.borrow_mut().push("committed");
            LogIndex::new(self.committed)
        }
        fn applied(&self) -> LogIndex {
            self.read.borrow_mut().push("applied");
            LogIndex::new(self.applied)
        }
    }

    fn by_lease(inputs: &Inputs) -> ReadDecision {
        decide_lease_read(inputs)
    }

    fn now(index: u64) -> ReadDecision {
        ReadDecision::Now(LogIndex::new(index))
    }

    #[test]
    fn a_valid_lease_lets_a_read_pass_once_everything_committed_is_applied() {
        assert_eq!(by_lease(&leader()), now(7));
        assert_eq!(by_lease(&Inputs { applied: 6, ..leader() }), ReadDecision::AskRaftThread);
        assert_eq!(by_lease(&Inputs { applied: 8, ..leader() }), now(7));
    }

    #[test]
    fn without_a_lease_or_with_one_that_is_over_the_raft_thread_is_asked() {
        for inputs in [
            Inputs { lease_until: None, ..leader() },
            Inputs { now: 100, ..leader() },
            Inputs { now: 101, ..leader() },
        ] {
            assert_eq!(by_lease(&inputs), ReadDecision::AskRaftThread);
        }
    }

    /// A commit index that was loaded before the clock may be older than one that another node has
    /// acknowledged after this node's lease.
    #[test]
    fn the_clock_is_read_before_the_commit_index_and_after_the_lease() {
        let inputs = leader();
        by_lease(&inputs);
        assert_eq!(*inputs.read.borrow(), ["closed", "lease", "clock", "committed", "applied"]);
    }

    #[test]
    fn an_eventual_read_passes_unless_the_machine_is_halted() {
        let follower = Inputs { lease_until: None, applied: 0, ..leader() };
        assert_eq!(decide_eventual_read(&follower), now(0));
        let halted = Inputs { is_halted: true, ..leader() };
        assert_eq!(decide_eventual_read(&halted), ReadDecision::AskRaftThread);
    }

    #[test]
    fn nothing_passes_a_closed_gate() {
        let closed = Inputs { is_closed: true, is_halted: true, ..leader() };
        assert_eq!(by_lease(&closed), ReadDecision::Closed);
        assert_eq!(decide_eventual_read(&closed), ReadDecision::Closed);
    }
}
