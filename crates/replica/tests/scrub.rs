//! Damage that a scrub finds in the log and in the snapshots, and the replica's reaction.
#![allow(clippy::unwrap_used)]

mod leader;
mod recording;

use std::ops::ControlFlow;

use d_engine_core::{AppendOutcome, GroupId, LogIndex, Term};
use d_engine_replica::{Event, LogId, PeerMessage, ReplicaConfig, Scrubber, StopReason};
use d_engine_storage::snapshot::{Coverage, FullSpeed, Health};
use leader::{Answers, Node};
use recording::Ground;
use recording::Recording;
use recording::node::{Node as Machine, damage};

fn scrubbed(scrubber: &Scrubber) -> Vec<Event> {
    let mut told = Vec::new();
    assert!(scrubber.round(&mut FullSpeed, &mut |event| told.push(event)));
    told
}

#[test]
fn a_round_reads_everything_and_tells_what_does_not_verify() {
    let mut node =
        Machine::start(Ground::new(), Recording::default(), d_engine_replica::Never).unwrap();
    node.commit(1, 4);
    let older = node.take_snapshot();
    node.commit(5, 8);
    let newer = node.take_snapshot();
    let store = node.ground.store.clone();
    let scrubber = Scrubber::new(node.ground.opened.log.reader(), GroupId::FIRST, store.clone());
    assert!(scrubbed(&scrubber).is_empty());
    // It stops when `pace` says so.
    let mut bytes = 0;
    let mut stop = |read: u64| {
        bytes += read;
        ControlFlow::Break(())
    };
    assert!(!scrubber.round(&mut stop, &mut |_| panic!("nothing is damaged")));

    damage(&node.ground, &newer);
    let told = scrubbed(&scrubber);
    let [Event::SnapshotDamaged { reason }] = &told[..] else { panic!("{} events", told.len()) };
    assert!(reason.to_string().contains("checksum"), "{reason}");
    let health = |last_included| {
        store
            .list()
            .iter()
            .find(|info| info.last_included() == last_included)
            .map(|info| info.health)
    };
    assert_eq!(
        (health(newer.last_included()), health(older.last_included())),
        (Some(Health::Damaged), Some(Health::Whole))
    );
    assert!(scrubbed(&scrubber).is_empty(), "it is reported once");
    // Another one is intact, so the damaged one is removed.
    let Machine { ground, worker, .. } = node;
    drop(worker);
    store.prune(1, &[]).unwrap();
    assert_eq!(health(newer.last_included()), None);

    let path = store.dir().parent().unwrap().join("log/00000000000000000001.seg");
    let mut content = std::fs::read(&path).unwrap();
    content[2 * 4096 + 100] ^= 1;
    std::fs::write(&path, content).unwrap();
    let told = scrubbed(&scrubber);
    let [Event::LogDamaged { through, reason }] = &told[..] else {
        panic!("{} events", told.len())
    };
    assert_eq!(through.get(), 8, "the rest of the segment was not checked");
    assert!(
        reason.to_string().contains("00000000000000000001.seg is damaged at offset 8192"),
        "{reason}"
    );
    drop(ground);
}

fn log_damaged(through: u64) -> Event {
    let reason = StopReason::new("segment 1 is damaged at offset 512");
    Event::LogDamaged { through: LogIndex::new(through), reason }
}

fn kept(newest: u64, oldest: u64) -> Event {
    let id = |index| LogId::of(1, index);
    Event::SnapshotKept(Coverage { newest: id(newest), newest_bytes: 0, oldest: id(oldest) })
}

/// The state machine still has the effect of the entries: a snapshot replaces them, and the node
/// continues.
#[test]
fn damage_in_the_log_leads_to_a_snapshot_and_to_a_purge_behind_it() {
    let config =
        ReplicaConfig { tail_entries: 100, tail_bytes: u64::MAX, ..ReplicaConfig::default() };
    let mut node = Node::with(3, config);
    node.lead();
    let answers = Answers::default();
    for number in 0..9 {
        node.propose(&answers, number);
    }
    let outcome = AppendOutcome::Persisted(LogIndex::new(10));
    node.receive(2, PeerMessage::AppendReply { term: Term::new(1), outcome });
    node.handle(Event::Applied {
        through: LogId::of(1, 10),
        next_expiry_ms: None,
        command_version: 0,
    });
    assert!(node.handle(kept(4, 2)).purge.is_none(), "the tail is kept");

    // Not covered by the snapshot: a new one is taken.
    let jobs = node.handle(log_damaged(6));
    assert!(jobs.snapshot_due && jobs.purge.is_none());
    let alarms = node.replica.status().alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("do not stop this node")), "{alarms:?}");
    let purge = node.handle(kept(8, 4)).purge.unwrap();
    assert_eq!(
        purge.index.get(),
        8,
        "unreadable entries are kept neither for the tail nor for the older snapshot"
    );
    node.handle(Event::Purged(purge));
    let alarms = node.replica.status().alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("the log is purged up to it")), "{alarms:?}");

    // Covered by the snapshot, or purged already: no snapshot is taken.
    assert!(!node.handle(log_damaged(7)).snapshot_due);
    assert!(node.replica.next_deadline().is_some(), "it continues");
}

#[test]
fn a_damaged_snapshot_leads_to_a_new_one() {
    let mut node = Node::new(1);
    node.lead();
    assert!(
        node.handle(Event::SnapshotDamaged { reason: StopReason::new("a chunk") }).snapshot_due
    );
}
