//! The read gate with real threads and the real clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use d_engine_core::{Instant, LogIndex};
use d_engine_replica::ReadDecision;

use crate::node::clock::Clock;
use crate::threads::read_gate::ReadGate;

/// A raft thread that commits, an apply thread that follows, and a reader: an admitted read
/// gets an index that is applied, and never one lower than what was acknowledged before the
/// read.
#[test]
fn a_read_that_passes_sees_everything_told_before() {
    let clock = Clock::start();
    let (gate, later) = (ReadGate::new(clock), clock.now().plus(Duration::from_millis(60_000)));
    let told = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..=200_000 {
                gate.publish(LogIndex::new(index), Some(later));
                gate.set_applied(index);
                // The caller is answered only now.
                told.store(index, Ordering::Release);
            }
            gate.close();
        });
        loop {
            let before = told.load(Ordering::Acquire);
            match gate.by_lease() {
                ReadDecision::Now(index) => {
                    assert!(index.get() >= before, "{index} after {before} was acknowledged")
                }
                ReadDecision::AskRaftThread => {}
                ReadDecision::Closed => break,
            }
        }
    });
}

#[test]
fn a_late_report_of_the_apply_thread_lowers_nothing_and_an_old_lease_counts_for_nothing() {
    let clock = Clock::start();
    let (gate, later) = (ReadGate::new(clock), clock.now().plus(Duration::from_millis(60_000)));
    let now = ReadDecision::Now(LogIndex::new(7));
    gate.publish(LogIndex::new(7), Some(later));
    gate.set_applied(7);
    gate.set_applied(5);
    assert_eq!(gate.by_lease(), now);
    gate.publish(LogIndex::new(7), Some(Instant::from_nanos(1)));
    assert_eq!(gate.by_lease(), ReadDecision::AskRaftThread, "expired");
    gate.publish(LogIndex::new(7), Some(later));
    assert_eq!(gate.by_lease(), now);
    gate.publish(LogIndex::new(7), None);
    assert_eq!(gate.by_lease(), ReadDecision::AskRaftThread, "revoked");
    gate.set_halted(true);
    assert_eq!(gate.eventual(), ReadDecision::AskRaftThread);
    gate.close();
    assert_eq!((gate.by_lease(), gate.eventual()), (ReadDecision::Closed, ReadDecision::Closed));
}
