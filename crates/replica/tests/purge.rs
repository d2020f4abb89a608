//! How far a leader's log is purged while a snapshot is being sent to a follower. The test
//! executes the jobs.
#![allow(clippy::unwrap_used)]

mod leader;

use std::sync::Arc;

use d_engine_core::{AppendOutcome, LogIndex, Term};
use d_engine_replica::{
    Event, LogDisk, LogId, PeerMessage, ProposeError, ReplicaConfig, SnapshotProgress,
};
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
    let applied = LogId::of(1, COMMANDS + 1);
    node.handle(Event::Applied { through: applied, next_expiry_ms: None, command_version: 0 });
    node
}

/// A leader of three whose log begins after entry 5. Node 3 is at entry 1 and is being sent a
/// snapshot.
fn sends() -> Node {
    let config = ReplicaConfig { tail_entries: 0, tail_bytes: 0, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers(&mut node, 5), Some(5));
    assert!(asks_for_a_snapshot(&mut node));
    assert_eq!(covers(&mut node, 7), None, "it continues after the snapshot");
    node
}

/// A follower has persisted the log up to `index`; returns how far the leader then purges its own.
fn stores(node: &mut Node, follower: u64, index: u64) -> Option<u64> {
    let outcome = AppendOutcome::Persisted(LogIndex::new(index));
    let jobs = node.receive(follower, PeerMessage::AppendReply { term: Term::new(1), outcome });
    jobs.purge.map(|through| through.index.get())
}

/// The leader has a snapshot up to `index`; returns how far it purges its log, and completes the
/// purge.
fn covers(node: &mut Node, index: u64) -> Option<u64> {
    covers_from(node, index, index)
}

/// The leader has snapshots up to `newest`, and the oldest one retained ends at `oldest`.
fn covers_from(node: &mut Node, newest: u64, oldest: u64) -> Option<u64> {
    let id = |index| LogId::of(1, index);
    let kept = Coverage { newest: id(newest), newest_bytes: 0, oldest: id(oldest) };
    let purge = node.handle(Event::SnapshotKept(kept)).purge?;
    node.handle(Event::Purged(purge));
    Some(purge.index.get())
}

/// The connection to node 3 is lost, and node 3 reports repeatedly that it has nothing after entry
/// 1; returns whether a snapshot is requested for it.
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
            persisted: one,
            report: d_engine_core::FollowerReport::default(),
        };
        let answered = node.receive(3, reply);
        jobs.snapshots.iter().chain(&answered.snapshots).any(|order| order.to == n(3))
    })
}

/// Node 3 has confirmed `confirmed` bytes of the snapshot.
fn moves(node: &mut Node, last_included: u64, confirmed: u64) -> Option<u64> {
    let (to, last_included) = (n(3), LogIndex::new(last_included));
    let progress = SnapshotProgress { to, last_included, confirmed, len: 1_000 };
    node.handle(Event::SnapshotProgress(progress)).purge.map(|through| through.index.get())
}

/// The leader checks again how far it may purge, and completes the purge.
fn looks(node: &mut Node) -> Option<u64> {
    node.pass_ms(1_000);
    let through = node.handle(Event::Purged(LogId::default())).purge?;
    node.handle(Event::Purged(through));
    Some(through.index.get())
}

#[test]
fn the_log_is_held_until_the_follower_has_caught_up() {
    let mut node = sends();
    node.handle(Event::SnapshotFailed { to: n(3), none_usable: false });
    assert_eq!(covers(&mut node, 8), None, "it is sent again");
    assert!(asks_for_a_snapshot(&mut node));
    assert_eq!(
        node.handle(Event::SnapshotSent(n(3))).purge,
        None,
        "it continues with the entries after it"
    );
    assert_eq!(stores(&mut node, 3, 7), None);
    assert_eq!(stores(&mut node, 3, COMMANDS + 1), Some(8));
}

/// The final confirmation of a snapshot is lost, or the follower has obtained the entries
/// otherwise: it continues with entries, and needs those.
#[test]
fn a_send_that_is_cut_and_not_needed_any_more_holds_until_the_follower_has_caught_up() {
    let mut node = sends();
    node.handle(Event::SnapshotFailed { to: n(3), none_usable: false });
    assert_eq!(stores(&mut node, 3, 6), None);
    assert_eq!(looks(&mut node), Some(6), "the entries that it has are not needed any more");
    assert_eq!(stores(&mut node, 3, COMMANDS + 1), Some(7));
}

/// A follower that is sent a snapshot continues after its last included entry, and later after the
/// entries that it has.
#[test]
fn the_log_is_held_from_where_the_follower_goes_on() {
    let mut node = sends();
    moves(&mut node, 6, 0);
    assert_eq!(looks(&mut node), Some(6));
    covers(&mut node, 9);
    assert_eq!(looks(&mut node), None);
    stores(&mut node, 3, 8);
    assert_eq!(
        looks(&mut node),
        Some(8),
        "it persists entries while its state machine installs the snapshot"
    );
}

/// While the follower confirms more and more of the snapshot, the log is kept, however long that
/// takes.
#[test]
fn the_log_is_held_as_long_as_the_snapshot_comes_forward() {
    let timeout = ReplicaConfig::default().purge_timeout.as_secs() * 1_000;
    let mut node = sends();
    for confirmed in 1..=4 {
        node.pass_ms(timeout - 1);
        assert_eq!(moves(&mut node, 5, confirmed), None);
    }
    node.pass_ms(timeout - 1);
    assert_eq!(moves(&mut node, 5, 4), None);
    node.pass_ms(1);
    assert_eq!(moves(&mut node, 5, 4), Some(7), "nothing more was confirmed");
    let alarms = node.replica.status().alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("4 of 1000 bytes")), "{alarms:?}");
}

/// The setting allows no bytes, but the disk has space: the log is kept. With less free space than
/// must stay free, the setting applies; with barely enough for commands, nothing is kept.
#[test]
fn the_log_is_held_by_free_space() {
    let (least, reserve) = (1_000, 10_000);
    let config = ReplicaConfig {
        tail_entries: 0,
        tail_bytes: 0,
        // The last four commands, and the entry that binds this node's incarnation.
        held_bytes: 400,
        min_free_bytes: least,
        snapshot_reserve_bytes: reserve,
        ..ReplicaConfig::default()
    };
    let held_with = |free_bytes: Option<u64>| {
        let mut node = leads(config);
        node.handle(Event::LogDisk(LogDisk { full: false, free_bytes }));
        covers(&mut node, 5);
        assert!(asks_for_a_snapshot(&mut node));
        moves(&mut node, 5, 10);
        let through = covers(&mut node, 9).or_else(|| looks(&mut node)).unwrap_or(5);
        let alarms = node.replica.status().alarms;
        (through, alarms.into_iter().find(|alarm| alarm.contains("node 3")).unwrap_or_default())
    };
    let mark = 4 * least + reserve;
    assert_eq!(held_with(Some(mark)), (5, String::new()));
    let (through, alarm) = held_with(Some(mark - 1));
    assert!(
        through == 6 && alarm.contains("disk limits it: 13999 bytes are free where 14000"),
        "{alarm}"
    );
    let (through, alarm) = held_with(Some(2 * least - 1));
    assert!(through == 9 && alarm.contains("disk limits it: 1999 bytes are free"), "{alarm}");
    let (through, alarm) = held_with(None);
    assert!(
        through == 6 && alarm.contains("400 bytes of commands (half of snapshots.max_log_bytes)"),
        "{alarm}"
    );
}

/// Commands arrive at a steady rate and would use up the space within a minute: four fifths are
/// accepted, for five minutes.
#[test]
fn commands_are_slowed_a_little_and_for_a_while_when_the_room_for_a_follower_runs_out() {
    let config = ReplicaConfig {
        tail_entries: 0,
        tail_bytes: 0,
        min_free_bytes: 1_000,
        snapshot_reserve_bytes: 0,
        purge_timeout: std::time::Duration::from_millis(10_000_000),
        ..ReplicaConfig::default()
    };
    let mut node = leads(config);
    covers(&mut node, 5);
    assert!(asks_for_a_snapshot(&mut node));
    moves(&mut node, 5, 0);
    covers(&mut node, 9);
    // Ten commands of 100 bytes per second.
    let taken_in = |node: &mut Node, seconds: u64| {
        let answers = Answers::default();
        for _ in 0..10 * seconds {
            node.pass_ms(100);
            node.propose_bytes(&answers, 100);
            let last = node.replica.core().log().last.index.get();
            stores(node, 2, last);
        }
        let refused = answers
            .lock()
            .unwrap()
            .iter()
            .filter(|it| matches!(it, Err(ProposeError::Busy { .. })))
            .count();
        100 - refused as u64 * 10 / seconds
    };
    node.handle(Event::LogDisk(LogDisk { full: false, free_bytes: Some(4_000 + 61_000) }));
    assert_eq!(taken_in(&mut node, 20), 100, "the space lasts for more than a minute");
    node.handle(Event::LogDisk(LogDisk { full: false, free_bytes: Some(4_000 + 59_000) }));
    taken_in(&mut node, 2);
    let percent = taken_in(&mut node, 200);
    assert!((79..=81).contains(&percent), "{percent}");
    let alarms = node.replica.status().alarms;
    assert!(
        alarms.iter().any(|alarm| alarm.starts_with("commands are slowed to 800 bytes/s")),
        "{alarms:?}"
    );
    taken_in(&mut node, 100);
    assert_eq!(taken_in(&mut node, 20), 100, "five minutes are over");
}

#[test]
fn a_follower_that_does_not_come_back_is_waited_for_no_longer_than_is_bearable() {
    let mut node = sends();
    node.handle(Event::SnapshotFailed { to: n(3), none_usable: false });
    node.pass_ms(ReplicaConfig::default().purge_timeout.as_secs() * 1_000);
    assert_eq!(covers(&mut node, 8), Some(8));
}

#[test]
fn a_deposed_leader_holds_nothing() {
    let mut node = sends();
    let entries: Arc<[_]> = Arc::new([]);
    let (term, prev) = (Term::new(2), LogId::new(Term::new(1), LogIndex::new(COMMANDS + 1)));
    let append = PeerMessage::Append { term, prev, commit: LogIndex::new(1), entries };
    let purge = node.receive(2, append).purge;
    assert_eq!(purge.map(|through| through.index.get()), Some(7));
}

/// An older snapshot is as useful as the newest: the log reaches back to it.
#[test]
fn the_log_is_purged_to_the_oldest_snapshot_that_is_retained() {
    let config = ReplicaConfig { tail_entries: 0, tail_bytes: 0, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers(&mut node, 3), Some(3));
    assert_eq!(covers_from(&mut node, 6, 3), None);
    assert_eq!(covers_from(&mut node, 9, 6), Some(6));
}

/// A longer tail after the newest snapshot is kept as well.
#[test]
fn the_tail_is_that_of_the_newest_snapshot() {
    let config =
        ReplicaConfig { tail_entries: 4, tail_bytes: u64::MAX, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers_from(&mut node, 9, 8), Some(7));
}

/// No command is refused in order to keep an older snapshot usable.
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

/// A follower needs an entry that is damaged on the leader's disk. The leader's snapshot covers it:
/// the follower is sent the snapshot, even while the log would be kept for another follower.
#[test]
fn a_damaged_entry_that_a_snapshot_holds_leads_to_a_purge_and_not_to_a_stop() {
    let config =
        ReplicaConfig { tail_entries: 100, tail_bytes: u64::MAX, ..ReplicaConfig::default() };
    let mut node = leads(config);
    assert_eq!(covers_from(&mut node, 8, 3), None, "the tail is kept");
    let purge = node.handle(load_failed(5)).purge.unwrap();
    assert_eq!(purge.index.get(), 8);
    node.handle(Event::Purged(purge));
    assert!(asks_for_a_snapshot(&mut node));
    let alarms = node.replica.status().alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("damaged up to entry 5")), "{alarms:?}");
    // Found again by a read that was in progress.
    assert!(node.handle(load_failed(5)).purge.is_none());
}

#[test]
fn a_damaged_entry_that_no_snapshot_holds_stops_the_leader() {
    let mut node = leads(ReplicaConfig::default());
    covers_from(&mut node, 8, 3);
    node.handle(load_failed(9));
    assert!(node.replica.next_deadline().is_none(), "it has stopped");
}

/// Under a load that is too high for the disk, every snapshot is too old by the time it has been
/// applied.
#[test]
fn a_follower_that_needs_one_snapshot_after_the_other_shows_in_the_alarms() {
    let alarm = |node: &Node| {
        node.replica.status().alarms.iter().any(|alarm| alarm.contains("still behind"))
    };
    let mut node = sends();
    moves(&mut node, 5, 10);
    node.handle(Event::SnapshotSent(n(3)));
    assert!(!alarm(&node), "the entries that it needs are in the log");
    node.handle(Event::LogDisk(LogDisk {
        full: false,
        free_bytes: Some(ReplicaConfig::default().min_free_bytes),
    }));
    assert_eq!(looks(&mut node), Some(7));
    assert!(alarm(&node), "{:?}", node.replica.status().alarms);
    let outcome = AppendOutcome::Persisted(LogIndex::new(5));
    let jobs = node.receive(3, PeerMessage::AppendReply { term: Term::new(1), outcome });
    assert_eq!(jobs.snapshots.len(), 1, "the entries after the first one are purged");
    node.handle(Event::SnapshotSent(n(3)));
    assert!(alarm(&node), "{:?}", node.replica.status().alarms);
    stores(&mut node, 3, COMMANDS + 1);
    assert!(!alarm(&node), "it has caught up");
    assert!(!asks_for_a_snapshot(&mut node), "the entries after its log are still there");
}
