//! The read gate: what a reader sees of the values that the raft and apply threads publish. The
//! lease of these models is always valid; only the order of the threads' steps is in question.

use std::sync::Arc;

use d_engine_core::{Instant, LogIndex};
use d_engine_replica::ReadDecision;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use crate::model;
use crate::node::clock::Clock;
use crate::threads::read_gate::ReadGate;

fn lease() -> Option<Instant> {
    Some(Instant::from_nanos(20))
}

fn index(index: u64) -> LogIndex {
    LogIndex::new(index)
}

/// A node that leads with a lease, and has committed and applied up to this index.
fn leader(at: u64) -> Arc<ReadGate> {
    let gate = Arc::new(ReadGate::new(Clock));
    gate.publish(index(at), lease());
    gate.set_applied(at);
    gate
}

/// As a follower it knew an old commit index. A reader that sees the new lease sees the commit
/// index that the node has found out as a leader.
#[test]
fn a_new_lease_is_never_seen_with_the_commit_index_from_before_it() {
    model(|| {
        let gate = Arc::new(ReadGate::new(Clock));
        gate.publish(index(1), None);
        gate.set_applied(2);
        let raft = thread::spawn({
            let gate = gate.clone();
            move || gate.publish(index(2), lease())
        });
        let decision = gate.by_lease();
        let passes = ReadDecision::Now(index(2));
        assert!([ReadDecision::AskRaftThread, passes].contains(&decision), "{decision:?}");
        raft.join().unwrap();
    });
}

/// A caller has the reply to its command, and then reads, on any thread.
#[test]
fn a_read_that_passes_sees_everything_acknowledged_before() {
    model(|| {
        let (gate, acknowledged) = (leader(1), Arc::new(AtomicU64::new(1)));
        let raft = thread::spawn({
            let (gate, acknowledged) = (gate.clone(), acknowledged.clone());
            move || {
                gate.publish(index(2), lease());
                gate.set_applied(2);
                acknowledged.store(2, Ordering::Release);
            }
        });
        let before = acknowledged.load(Ordering::Acquire);
        if let ReadDecision::Now(read) = gate.by_lease() {
            assert!(read.get() >= before, "read at {read}, after {before} was acknowledged");
        }
        raft.join().unwrap();
    });
}

/// A leader that steps down revokes the lease, and only then does its message leave.
#[test]
fn no_read_passes_after_the_lease_was_revoked_and_a_message_has_left() {
    model(|| {
        let (gate, sent) = (leader(1), Arc::new(AtomicU64::new(0)));
        let raft = thread::spawn({
            let (gate, sent) = (gate.clone(), sent.clone());
            move || {
                gate.publish(index(1), None);
                sent.store(1, Ordering::Release);
            }
        });
        if sent.load(Ordering::Acquire) == 1 {
            assert_eq!(gate.by_lease(), ReadDecision::AskRaftThread);
        }
        raft.join().unwrap();
    });
}

/// The state of a halted machine may contain half of a chunk.
#[test]
fn no_eventual_read_passes_after_the_halt_was_reported() {
    model(|| {
        let (gate, reported) = (leader(1), Arc::new(AtomicU64::new(0)));
        let apply = thread::spawn({
            let (gate, reported) = (gate.clone(), reported.clone());
            move || {
                gate.set_halted(true);
                reported.store(1, Ordering::Release);
            }
        });
        if reported.load(Ordering::Acquire) == 1 {
            assert_eq!(gate.eventual(), ReadDecision::AskRaftThread);
        }
        apply.join().unwrap();
    });
}

/// Two threads may report out of order: the one that applies, and the one that starts the node.
#[test]
fn the_applied_index_never_falls() {
    model(|| {
        let gate = leader(1);
        let apply = thread::spawn({
            let gate = gate.clone();
            move || gate.set_applied(3)
        });
        gate.set_applied(2);
        apply.join().unwrap();
        gate.publish(index(3), lease());
        assert_eq!(gate.by_lease(), ReadDecision::Now(index(3)));
    });
}
