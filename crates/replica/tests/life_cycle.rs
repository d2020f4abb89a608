//! The life cycle of a state machine, call by call: the sequence of the seed's diagram, and what
//! happens concurrently.
#![allow(clippy::unwrap_used)]

mod recording;

use std::future::Future as _;
use std::sync::Arc;
use std::task::{Context, Waker};

use d_engine_core::{LogIndex, NodeId, Term};
use d_engine_replica::{
    AfterEntries, AfterTime, ApplyJob, ApplySource, Event, Never, ReceiverStep, SendLimits,
    SnapshotContext, SnapshotPolicy, SnapshotReceiver, SnapshotSender,
};
use d_engine_storage::RealFs;
use d_engine_storage::snapshot::{FullSpeed, SnapshotOptions, SnapshotStore};
use recording::node::{Node, leader_with_snapshot, now, send};
use recording::{Calls, Ground, Manner, Recording, at};

/// A policy that records its calls together with the machine's calls.
struct Asked(Calls, AfterEntries);

impl SnapshotPolicy for Asked {
    fn should_snapshot(&self, context: &SnapshotContext) -> bool {
        let due = self.1.should_snapshot(context);
        self.0.note(format!("should_snapshot {} {due}", context.applied.index));
        due
    }
}

/// Section 4 of the specification: commit and apply; the policy and a snapshot; an install; at the
/// end the flush in `Drop`.
#[test]
fn the_calls_come_in_the_order_of_the_life_cycle_diagram() {
    let (leader, received) = leader_with_snapshot(9);
    let machine = Recording::default();
    let calls = machine.calls.clone();
    let mut node =
        Node::start(Ground::new(), machine, Asked(calls.clone(), AfterEntries(3))).unwrap();

    // Commit new entries; the policy is called after each chunk.
    node.commit(1, 2);
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_none()
    );
    node.commit(3, 4);
    let task =
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().unwrap();
    let kept = node.worker.end_snapshot(task.build(&node.ground.store, &mut FullSpeed)).unwrap();
    assert!(matches!(kept, Some(Event::SnapshotKept(kept)) if kept.newest == at(1, 4)));
    // Install a leader's snapshot.
    send(&leader, &received, &node.ground.store);
    node.install(at(1, 9)).unwrap();
    assert_eq!(node.worker.handler().applied(), at(1, 9));
    // Shutdown.
    node.worker.handler().close().unwrap();
    drop(node);

    let expected = [
        "bind",
        "start",
        "last_applied",
        "reset",
        "apply_chunk [1, 2]",
        "update_last_applied 2",
        "should_snapshot 2 false",
        "apply_chunk [3, 4]",
        "update_last_applied 4",
        "should_snapshot 4 true",
        "entry_term 4",
        "generate_snapshot_data 4 empty",
        "update_last_snapshot_metadata 4",
        "persist_last_snapshot_metadata 4",
        "persist_last_applied 4",
        "flush",
        "apply_snapshot_from_file 9",
        "update_last_applied 9",
        "update_last_snapshot_metadata 9",
        "persist_last_snapshot_metadata 9",
        "persist_last_applied 9",
        "flush",
        "stop",
        "drop",
        "flush",
    ];
    assert_eq!(calls.take(), expected);
}

/// The last included entry and the content are the view's, whatever was applied meanwhile.
#[test]
fn entries_are_applied_while_a_view_is_written() {
    let machine = Recording::with(Manner { view_ahead_by: Some(0), ..Manner::default() });
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 3);
    node.machine.calls.clear();
    let task = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap()
        .unwrap();
    node.commit(4, 6);
    let built = task.build(&node.ground.store, &mut FullSpeed).unwrap();
    assert_eq!((built.last_included(), node.worker.handler().applied()), (at(1, 3), at(1, 6)));
    node.worker.end_snapshot(Ok(built.clone())).unwrap();
    let expected = [
        "entry_term 3",
        "snapshot_view",
        "apply_chunk [4, 5, 6]",
        "update_last_applied 6",
        "write 3",
        "update_last_snapshot_metadata 3",
        "persist_last_snapshot_metadata 3",
        "persist_last_applied 6",
        "flush",
    ];
    assert_eq!(node.machine.calls.take(), expected);

    let mut other = Node::start(Ground::new(), Recording::default(), Never).unwrap();
    send(&node, &built, &other.ground.store);
    other.install(at(1, 3)).unwrap();
    assert_eq!(other.machine.numbers(), [1, 2, 3], "exactly the state at the last included entry");
}

#[test]
fn a_view_that_is_not_of_the_place_where_apply_stands_is_refused() {
    let machine = Recording::with(Manner { view_ahead_by: Some(1), ..Manner::default() });
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 3);
    let refused = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("index 4") && refused.contains("index 3 of term 1 was applied last"),
        "{refused}"
    );
    assert!(node.ground.store.list().is_empty());
    node.commit(4, 5);
    assert_eq!(node.machine.numbers(), [1, 2, 3, 4, 5]);
}

/// Only one snapshot is built at a time, even on request; after a failure the next one waits.
#[test]
fn while_one_is_built_no_other_is_begun_and_a_failure_is_followed_by_a_pause() {
    let mut node = Node::start(Ground::new(), Recording::default(), AfterEntries(1)).unwrap();
    node.commit(1, 1);
    let task =
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().unwrap();
    node.commit(2, 2);
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_none()
    );
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
            .unwrap()
            .is_none()
    );
    drop(task);
    assert!(
        node.worker
            .end_snapshot(Err(d_engine_replica::StopReason::new("a full disk")))
            .unwrap()
            .is_none()
    );
    // The policy says that one is due. The pause is measured by the worker's clock, whatever time
    // the leader gives.
    node.worker.at(d_engine_core::Instant::from_nanos(999_999_999));
    let mut far = recording::node::command(3);
    far.time_ms = d_engine_core::MAX_ACCEPTED_TIME_MS;
    recording::node::store(&mut node.ground, 1, std::slice::from_ref(&far));
    let job =
        ApplyJob { source: ApplySource::Entries(vec![far]), responders: Vec::new(), skip: None };
    now(node.worker.run(job)).unwrap();
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_none(),
        "not before a second has passed"
    );
    // An operator's request does not wait.
    assert_eq!(node.take_snapshot().last_included().index.get(), 3);
    node.commit(4, 4);
    drop(now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested)).unwrap());
    node.worker.end_snapshot(Err(d_engine_replica::StopReason::new("a full disk"))).unwrap();
    node.worker.at(d_engine_core::Instant::from_nanos(2_000_000_000));
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_some(),
        "tried again, although log time has not advanced"
    );
}

/// A snapshot that was begun before an install ends after it: the machine's newest snapshot stays
/// the installed one.
#[test]
fn an_older_snapshot_that_is_ready_after_an_install_is_not_told_as_the_newest() {
    let (leader, received) = leader_with_snapshot(9);
    let machine = Recording::with(Manner { view_ahead_by: Some(0), ..Manner::default() });
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 3);
    let task = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap()
        .unwrap();
    send(&leader, &received, &node.ground.store);
    node.install(at(1, 9)).unwrap();
    let built = task.build(&node.ground.store, &mut FullSpeed);
    node.worker.end_snapshot(built).unwrap();
    assert_eq!(node.machine.calls.with("update_last_snapshot_metadata"), ["9"]);
    assert_eq!(node.ground.store.newest().unwrap().last_included().index.get(), 9);
}

/// A machine that refuses a snapshot keeps its state, and the node stops with the reason.
#[test]
fn a_machine_that_refuses_a_snapshot_keeps_what_it_has() {
    let (leader, received) = leader_with_snapshot(9);
    let mut node = Node::start(Ground::new(), Recording::default(), Never).unwrap();
    node.commit(1, 2);
    let refused = node.install(at(1, 9)).unwrap_err().to_string();
    assert!(!refused.is_empty(), "it is not there");
    assert_eq!(node.machine.numbers(), [1, 2]);
    send(&leader, &received, &node.ground.store);
    recording::node::damage(&node.ground, &received);
    let refused = node.install(at(1, 9)).unwrap_err().to_string();
    assert!(refused.contains("checksum"), "{refused}");
    assert_eq!(node.machine.numbers(), [1, 2]);
    assert_eq!(node.machine.calls.count("apply_snapshot_from_file"), 0, "it was never offered");
}

/// Received snapshots that were never installed are newer than the node's own.
#[test]
fn the_snapshot_that_the_machine_was_told_of_is_not_pruned() {
    let mut node = Node::start(Ground::new(), Recording::default(), Never).unwrap();
    for last in [7, 8, 9] {
        let (leader, received) = leader_with_snapshot(last);
        send(&leader, &received, &node.ground.store);
    }
    node.commit(1, 3);
    let task = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap()
        .unwrap();
    let built = task.build(&node.ground.store, &mut FullSpeed);
    let log_ids = |node: &Node| {
        let list = node.ground.store.list();
        list.iter().map(|info| info.last_included().index.get()).collect::<Vec<_>>()
    };
    node.ground.store.prune(1, &[]).unwrap();
    assert!(log_ids(&node).contains(&3), "it is about to be reported: {:?}", log_ids(&node));
    node.worker.end_snapshot(built).unwrap();
    node.ground.store.prune(1, &[]).unwrap();
    assert!(log_ids(&node).contains(&3), "it was reported: {:?}", log_ids(&node));
    node.commit(4, 5);
    node.take_snapshot();
    node.ground.store.prune(1, &[]).unwrap();
    assert!(!log_ids(&node).contains(&3), "a newer one was reported: {:?}", log_ids(&node));
}

/// The machine predicts the size of the next snapshot better than the previous one does.
#[test]
fn a_snapshot_that_the_machine_says_will_not_fit_is_not_begun() {
    let machine =
        Recording::with(Manner { snapshot_bytes: Some(u64::MAX / 4), ..Manner::default() });
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 3);
    let refused = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("free"), "{refused}");
    assert_eq!(node.machine.calls.count("generate_snapshot_data"), 0);
    node.commit(4, 5);
}

/// Archive and files would fit, but not the machine's own data: without this check, the snapshot
/// would replace the log and then not be installable.
#[test]
fn a_snapshot_for_whose_install_there_is_no_room_is_not_received() {
    let (leader, info) = leader_with_snapshot(9);
    let receiving = Ground::new();
    let offered = |needs: Option<u64>| {
        let archive = leader.ground.store.open_archive(info.last_included()).unwrap();
        let mut sender = SnapshotSender::new(
            archive,
            Term::new(1),
            SendLimits::default(),
            d_engine_core::Instant::ZERO,
        );
        let machine = Recording::with(Manner { snapshot_bytes: needs, ..Manner::default() });
        let from = NodeId::new(2).unwrap();
        let receiver =
            SnapshotReceiver::new(receiving.store.clone(), from, 1 << 30, LogIndex::new(0));
        let offer = sender.poll().unwrap().unwrap();
        receiver.for_machine(Arc::new(machine)).on_message(offer, &mut FullSpeed)
    };
    assert!(matches!(offered(Some(u64::MAX / 4)), ReceiverStep::Refuse(_)));
    assert!(matches!(offered(None), ReceiverStep::Answer(_)));
}

/// The blocking part of an attempt that took too long is still running: it writes into no other
/// snapshot.
#[test]
fn an_attempt_that_was_given_up_writes_into_no_other_one() {
    let machine = Recording::with(Manner { writes_first_for_ever: true, ..Manner::default() });
    let places = machine.places.clone();
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 3);
    {
        let mut attempt =
            std::pin::pin!(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested));
        let polled = attempt.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
    }
    node.worker.give_up_snapshot();
    let late = |place: usize| {
        // It creates the directories that it needs again.
        let dir = places.lock().unwrap()[place].clone();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("numbers"), "1 1 99\n").unwrap();
    };
    node.commit(4, 5);
    let task = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap()
        .unwrap();
    late(0);
    let built = task.build(&node.ground.store, &mut FullSpeed);
    node.worker.end_snapshot(built).unwrap();
    late(1);
    node.commit(6, 6);
    assert_eq!(node.take_snapshot().last_included().index.get(), 6);
    late(0);
    let mut distinct = places.lock().unwrap().clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 3, "no directory is reused");
    let Node { ground, .. } = node;
    let node = Node::start(ground.again(), Recording::default(), Never).unwrap();
    assert_eq!(node.machine.numbers(), [1, 2, 3, 4, 5, 6], "restored from the snapshot");
    assert!(
        !node.ground.dir.path().join("data/snapshots/staging").exists(),
        "a start removes the leftovers"
    );
}

/// The blocking work that a dropped attempt has left cannot be observed: after two such attempts no
/// snapshot is begun until the node is restarted.
#[test]
fn after_two_attempts_that_were_given_up_none_is_begun_until_a_restart() {
    let machine = Recording::with(Manner { writes_for_ever: true, ..Manner::default() });
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 3);
    for _ in 0..2 {
        {
            let mut attempt = std::pin::pin!(
                node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested)
            );
            let polled = attempt.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
        }
        node.worker.give_up_snapshot();
    }
    let refused = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("2 snapshots were given up") && refused.contains("start the node again"),
        "{refused}"
    );
    let Node { ground, .. } = node;
    let mut node = Node::start(ground.again(), Recording::default(), Never).unwrap();
    // The engine rebuilds it from the log.
    node.commit(1, 3);
    assert_eq!(node.take_snapshot().last_included().index.get(), 3);
}

/// An entry of a leader whose wall clock is years ahead neither causes nor delays a snapshot.
#[test]
fn the_time_between_snapshots_is_that_of_the_nodes_own_clock() {
    let policy = AfterTime(std::time::Duration::from_secs(60));
    let mut node = Node::start(Ground::new(), Recording::default(), policy).unwrap();
    let at_second = |second: u64| d_engine_core::Instant::from_nanos(second * 1_000_000_000);
    node.worker.at(at_second(1_000));
    let mut far = recording::node::command(1);
    far.time_ms = d_engine_core::MAX_ACCEPTED_TIME_MS;
    recording::node::store(&mut node.ground, 1, std::slice::from_ref(&far));
    let job =
        ApplyJob { source: ApplySource::Entries(vec![far]), responders: Vec::new(), skip: None };
    now(node.worker.run(job)).unwrap();
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_none(),
        "nothing was applied before"
    );
    node.worker.at(at_second(1_059));
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_none()
    );
    node.worker.at(at_second(1_060));
    node.worker.at(at_second(1_000));
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().is_some(),
        "the clock does not go back"
    );
}

/// A snapshot that no other node accepts serves only this node: the log is not purged up to it,
/// neither now nor after a restart.
#[test]
fn a_snapshot_that_no_node_takes_is_kept_and_nothing_is_purged_behind_it() {
    let mut ground = Ground::new();
    let options = SnapshotOptions {
        max_bytes: 100,
        reserve_bytes: 0,
        ..SnapshotOptions::new(ground.opened.identity.cluster, ground.opened.identity.group)
    };
    let dir = ground.dir.path().join("data/snapshots");
    let limited = || SnapshotStore::open(Arc::new(RealFs::new()), &dir, options.clone()).unwrap().0;
    ground.store = limited();
    let mut node = Node::start(ground, Recording::default(), AfterEntries(3)).unwrap();
    node.commit(1, 4);
    let task =
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Policy)).unwrap().unwrap();
    let kept = node.worker.end_snapshot(task.build(&node.ground.store, &mut FullSpeed)).unwrap();
    assert!(kept.is_none());
    assert_eq!(
        node.machine.calls.count("update_last_snapshot_metadata 4"),
        1,
        "it was reported to the machine"
    );
    let mut ground = again(node);
    ground.store = limited();
    let node = Node::start(ground, Recording::default(), Never).unwrap();
    assert_eq!((node.start_position.applied.get(), node.start_position.covered.get()), (4, 0));
    let node = Node::start(again(node), Recording::default(), Never).unwrap();
    assert_eq!(
        (node.start_position.applied.get(), node.start_position.covered.get()),
        (4, 4),
        "with a higher limit"
    );
}

fn again(node: Node) -> Ground {
    let Node { ground, worker, .. } = node;
    drop(worker);
    ground.again()
}
