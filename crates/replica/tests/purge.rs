//! How far a leader's log is purged while a snapshot is on its way to a follower. The jobs are done by the test.
#![allow(clippy::unwrap_used)]

mod leader;

use std::sync::Arc;

use d_engine_core::{AppendOutcome, LogIndex, Term};
use d_engine_replica::{Event, LogId, PeerMessage, ReplicaConfig};
use d_engine_storage::snapshot::Coverage;
use leader::{Answers, Node, n};

/// Commands that the leader has applied before anything is purged.
const COMMANDS: u64 = 9;

/// A leader of three that has applied all its commands. Node 3 is at entry 1.
fn leads(config: ReplicaConfig) -> Node {
    let mut node = Node::with(3, config);
    node.lead();
    for number in 0..COMMANDS {
        node.propose(&Answers::default(), number as u8);
    }
    stores(&mut node, 3, 1);
    stores(&mut node, 2, COMMANDS + 1);
    let applied = LogId { term: 1, index: COMMANDS + 1 };
    node.handle(Event::Applied { through: applied, next_expiry_ms: None, command_version: 0 });
    node
}

/// A leader of three whose log begins after entry 5. Node 3 is at entry 1 and is being sent a snapshot.
fn sends() -> Node {
    let config = ReplicaConfig { tail_entries: 0, tail_bytes: 0, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers(&mut node, 5), Some(5));
    assert!(asks_for_a_snapshot(&mut node));
    assert_eq!(covers(&mut node, 7), None, "it goes on from the snapshot's label");
    node
}

/// A follower has stored the log up to `index`; returns how far the leader purges its own now.
fn stores(node: &mut Node, follower: u64, index: u64) -> Option<u64> {
    let outcome = AppendOutcome::Stored(LogIndex::new(index));
    let jobs = node.receive(follower, PeerMessage::AppendReply { term: Term::new(1), outcome });
    jobs.purge.map(|through| through.index.get())
}

/// The leader has a snapshot up to `index`; returns how far it purges its log, which is done.
fn covers(node: &mut Node, index: u64) -> Option<u64> {
    covers_from(node, index, index)
}

/// The leader has snapshots up to `newest`, and the oldest one retained ends at `oldest`.
fn covers_from(node: &mut Node, newest: u64, oldest: u64) -> Option<u64> {
    let id = |index| LogId { term: 1, index }.into();
    let kept = Coverage { newest: id(newest), oldest: id(oldest) };
    let purge = node.handle(Event::SnapshotKept(kept)).purge?;
    node.handle(Event::Purged(purge));
    Some(purge.index.get())
}

/// The connection to node 3 is lost, and node 3 says again and again that it has nothing behind entry 1;
/// whether a snapshot is ordered for it.
fn asks_for_a_snapshot(node: &mut Node) -> bool {
    let lost = node.handle(Event::PeerDown { node: n(3) });
    if lost.snapshots.iter().any(|order| order.to == n(3)) {
        return true;
    }
    (0..3).any(|_| {
        node.pass_ms(250);
        let jobs = node.handle(Event::Deadline);
        let round = jobs.send.iter().find_map(|sent| match sent.message {
            PeerMessage::Heartbeat { round, .. } => Some(round),
            _ => None,
        });
        let (term, one, round) = (Term::new(1), LogIndex::new(1), round.unwrap());
        let reply = PeerMessage::HeartbeatReply {
            term,
            round,
            received: one,
            stored: one,
            report: d_engine_core::FollowerReport::default(),
        };
        let answered = node.receive(3, reply);
        jobs.snapshots.iter().chain(&answered.snapshots).any(|order| order.to == n(3))
    })
}

#[test]
fn the_log_is_held_until_the_follower_has_applied_the_snapshot() {
    let mut node = sends();
    node.handle(Event::SnapshotFailed { to: n(3), none_usable: false });
    assert_eq!(covers(&mut node, 8), None, "it is sent again");
    assert!(asks_for_a_snapshot(&mut node));
    let purge = node.handle(Event::SnapshotSent(n(3))).purge;
    assert_eq!(purge.map(|through| through.index.get()), Some(8));
}

/// The last word of a transfer is lost, or the follower has caught up by itself: nothing is held for it any more, and the
/// next transfer is held for anew.
#[test]
fn a_transfer_that_is_cut_and_not_needed_any_more_holds_nothing() {
    let mut node = sends();
    node.handle(Event::SnapshotFailed { to: n(3), none_usable: false });
    assert_eq!(stores(&mut node, 3, 6), Some(7));
}

#[test]
fn a_follower_that_does_not_come_back_is_waited_for_no_longer_than_is_bearable() {
    let mut node = sends();
    node.handle(Event::SnapshotFailed { to: n(3), none_usable: false });
    node.pass_ms(ReplicaConfig::default().purge_patience.as_millis());
    assert_eq!(covers(&mut node, 8), Some(8));
}

#[test]
fn a_deposed_leader_holds_nothing() {
    let mut node = sends();
    let entries: Arc<[_]> = Arc::new([]);
    let (term, prev) = (Term::new(2), d_engine_core::LogId::new(Term::new(1), LogIndex::new(COMMANDS + 1)));
    let append = PeerMessage::Append { term, prev, commit: LogIndex::new(1), entries };
    let purge = node.receive(2, append).purge;
    assert_eq!(purge.map(|through| through.index.get()), Some(7));
}

/// The second snapshot can be used as well as the first one: the log reaches back to it.
#[test]
fn the_log_is_purged_to_the_oldest_snapshot_that_is_retained() {
    let config = ReplicaConfig { tail_entries: 0, tail_bytes: 0, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers(&mut node, 3), Some(3));
    assert_eq!(covers_from(&mut node, 6, 3), None);
    assert_eq!(covers_from(&mut node, 9, 6), Some(6));
}

/// A tail behind the newest one that is longer than that is kept as well.
#[test]
fn the_tail_is_that_of_the_newest_snapshot() {
    let config = ReplicaConfig { tail_entries: 4, tail_bytes: u64::MAX, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers_from(&mut node, 9, 8), Some(7));
}

/// An older snapshot is worth no command that is refused.
#[test]
fn on_a_full_disk_the_log_is_purged_to_the_newest_snapshot() {
    let config = ReplicaConfig { tail_entries: 0, tail_bytes: 0, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers_from(&mut node, 9, 4), Some(4));
    let full = Event::LogDisk(d_engine_replica::LogDisk { full: true, free_bytes: Some(0) });
    let told = node.handle(full).purge;
    let purge = told.or_else(|| {
        node.pass_ms(250);
        node.handle(Event::Deadline).purge
    });
    assert_eq!(purge.map(|through| through.index.get()), Some(9));
}

fn load_failed(at: u64) -> Event {
    let reason = d_engine_replica::StopReason::new("segment 1 is damaged at offset 512");
    Event::LoadFailed { to: n(3), token: 99, at: LogIndex::new(at), reason }
}

/// A follower needs an entry that has rotted on the leader's disk. The leader's snapshot holds it: the follower gets that,
/// also while the log would be held for another one.
#[test]
fn a_damaged_entry_that_a_snapshot_holds_leads_to_a_purge_and_not_to_a_stop() {
    let config = ReplicaConfig { tail_entries: 100, tail_bytes: u64::MAX, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers_from(&mut node, 8, 3), None, "the tail stays");
    let purge = node.handle(load_failed(5)).purge.unwrap();
    assert_eq!(purge.index.get(), 8);
    node.handle(Event::Purged(purge));
    assert!(asks_for_a_snapshot(&mut node));
    let alarms = node.replica.status().alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("damaged up to entry 5")), "{alarms:?}");
    // Found again by a read that was under way.
    assert!(node.handle(load_failed(5)).purge.is_none());
}

#[test]
fn a_damaged_entry_that_no_snapshot_holds_stops_the_leader() {
    let mut node = leads(ReplicaConfig::default());
    covers_from(&mut node, 8, 3);
    node.handle(load_failed(9));
    assert!(node.replica.next_deadline().is_none(), "it has stopped");
}

/// FINDINGS S3: under a load that is too high for the link, every snapshot is too old once it has been applied.
#[test]
fn a_follower_that_needs_one_snapshot_after_the_other_shows_in_the_alarms() {
    let alarm =
        |node: &Node| node.replica.status().alarms.iter().any(|alarm| alarm.contains("snapshots in a row"));
    let mut node = sends();
    let purge = node.handle(Event::SnapshotSent(n(3))).purge.unwrap();
    node.handle(Event::Purged(purge));
    assert!(!alarm(&node), "one is no row");
    let outcome = AppendOutcome::Stored(LogIndex::new(5));
    let jobs = node.receive(3, PeerMessage::AppendReply { term: Term::new(1), outcome });
    assert_eq!(jobs.snapshots.len(), 1, "what lies behind the first one is gone");
    node.handle(Event::SnapshotSent(n(3)));
    assert!(alarm(&node), "{:?}", node.replica.status().alarms);
    stores(&mut node, 3, COMMANDS + 1);
    assert!(!alarm(&node), "it has caught up");
    assert!(!asks_for_a_snapshot(&mut node), "what it has is still in the log");
}
