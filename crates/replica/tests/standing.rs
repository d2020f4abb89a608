//! FINDINGS C1: a state machine that cannot apply an entry is halted there; the node continues, and
//! the entry can be skipped.
#![allow(clippy::unwrap_used, clippy::panic)]

mod leader;
mod recording;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::{EntryKind, FollowerReport, LogIndex, ReadMode, RoleKind};
use d_engine_replica::{
    ApplyJob, ApplySource, ApplyStop, Event, HaltCause, Jobs, LogId, Never, PeerMessage,
    ProposeError, ReadError, ReadRequest, SkipError, SkippedEntry, StopReason, UnknownBecause,
};
use d_engine_storage::LogEntry;
use leader::Node as Leader;
use recording::node::{Node, command, leader_with_snapshot, now, send, store};
use recording::{Ground, Manner, Recording, at, entry};

/// The number that the machine cannot apply.
const BAD: u8 = 3;

fn choking() -> Recording {
    Recording::with(Manner { chokes_on: Some(BAD), ..Manner::default() })
}

/// The same as a durable machine.
fn choking_durable(held: &Recording) -> Recording {
    let manner = Manner { chokes_on: Some(BAD), is_durable: true, ..Manner::default() };
    let mut machine = Recording::with(manner);
    machine.held = held.held.clone();
    machine
}

fn job(entries: Vec<LogEntry>, skip: Option<SkippedEntry>) -> ApplyJob {
    ApplyJob { source: ApplySource::Entries(entries), responders: Vec::new(), skip }
}

fn run(node: &mut Node, entries: std::ops::RangeInclusive<u64>, skip: Option<u64>) -> Event {
    let skip = skip.map(|index| SkippedEntry { target: at(1, index), decided_at: 6 });
    now(node.worker.run(job(entries.map(command).collect(), skip))).unwrap()
}

fn stop_of(event: Event) -> (LogId, ApplyStop) {
    match event {
        Event::ApplyStopped { through, stop } => (through, stop),
        Event::Applied { through, .. } => panic!("everything up to {through} was applied"),
        _ => panic!("another event"),
    }
}

fn applied(event: Event) -> u64 {
    match event {
        Event::Applied { through, .. } => through.index.get(),
        Event::ApplyStopped { stop, .. } => panic!("{stop:?}"),
        _ => panic!("another event"),
    }
}

/// Entry 6 of the log: entry 3 is skipped.
fn decision() -> LogEntry {
    let mut payload = [0; 16];
    (payload[0], payload[8]) = (1, 3);
    LogEntry { data: Bytes::copy_from_slice(&payload), ..entry(6, EntryKind::Skip, 0) }
}

#[test]
fn the_entry_is_found_one_by_one_after_a_restart_and_can_be_skipped() {
    let mut node = Node::start(Ground::new(), choking(), Never).unwrap();
    node.store(1, 5);
    let (through, stop) = stop_of(run(&mut node, 1..=5, None));
    assert_eq!(
        (through, stop.first, stop.last, stop.halted_at()),
        (at(0, 0), at(1, 1), at(1, 5), None)
    );
    assert!(stop.reason.to_string().contains("one of the entries 1 to 5"), "{}", stop.reason);
    // It is unknown how much of the chunk the machine has applied: it is not used any more.
    assert_eq!(stop_of(run(&mut node, 1..=5, Some(3))).1.first, at(1, 1));
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested)).is_err(),
        "it may have applied a part of a chunk"
    );

    let mut node = Node::start(node.ground.again(), choking(), Never).unwrap();
    let (through, stop) = stop_of(run(&mut node, 1..=5, None));
    assert_eq!((through, stop.halted_at()), (at(1, 2), Some(at(1, 3))));
    let reason = stop.reason.to_string();
    assert!(
        reason.contains("index 3 of term 1") && reason.contains("d-engine skip-entry 1:3"),
        "{reason}"
    );
    assert_eq!(stop_of(run(&mut node, 4..=5, None)).1, stop, "whatever other job it is given");
    assert_eq!(
        stop_of(run(&mut node, 3..=5, Some(4))).1.first,
        at(1, 3),
        "another entry is skipped"
    );
    assert_eq!(applied(run(&mut node, 3..=3, Some(3))), 3);
    assert_eq!(applied(run(&mut node, 4..=5, None)), 5);
    assert_eq!(node.machine.numbers(), [1, 2, 4, 5]);
}

/// A snapshot of a state in which the entry is skipped must not look like one of a state in which
/// it was applied.
#[test]
fn no_snapshot_is_taken_between_the_skipped_entry_and_the_decision() {
    let mut node = Node::start(Ground::new(), choking(), Never).unwrap();
    node.store(1, 5);
    assert_eq!(applied(run(&mut node, 1..=3, Some(3))), 3);
    assert_eq!(applied(run(&mut node, 4..=5, None)), 5);
    let early = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap_err()
        .to_string();
    assert!(early.contains("retry when entry 6 is applied"), "{early}");
    store(&mut node.ground, 1, &[decision()]);
    now(node.worker.run(job(vec![decision()], None))).unwrap();
    assert_eq!(node.take_snapshot().last_included().index, LogIndex::new(6));
}

/// Its state differs from that of the other nodes, and no later entry would show it.
#[test]
fn a_node_that_has_applied_a_skipped_entry_stops_by_name() {
    let mut node = Node::start(Ground::new(), Recording::default(), Never).unwrap();
    node.commit(1, 5);
    let stopped = now(node.worker.run(job(vec![decision()], None))).err().unwrap().to_string();
    assert!(stopped.contains("entry 6") && stopped.contains("index 3 of term 1"), "{stopped}");
    assert!(stopped.contains("has applied it"), "{stopped}");
}

/// An entry that a durable machine skips is recorded first: after a restart no log entry would tell
/// it.
#[test]
fn a_durable_machine_remembers_what_it_has_skipped() {
    let first = choking_durable(&Recording::default());
    let mut node = Node::start(Ground::new(), first.clone(), Never).unwrap();
    node.store(1, 5);
    assert_eq!(applied(run(&mut node, 1..=3, Some(3))), 3);
    assert_eq!(applied(run(&mut node, 4..=5, None)), 5);

    let mut node = Node::start(node.ground.again(), choking_durable(&first), Never).unwrap();
    assert_eq!(node.start_position.applied, LogIndex::new(5));
    assert!(
        now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested)).is_err(),
        "not before the decision is applied"
    );
    now(node.worker.run(job(vec![decision()], None))).unwrap();
    assert_eq!(node.machine.numbers(), [1, 2, 4, 5]);
}

/// A snapshot replaces any state of the machine, even a partially applied chunk.
#[test]
fn a_snapshot_gets_a_machine_past_the_entry() {
    let (leader, info) = leader_with_snapshot(5);
    let mut node = Node::start(Ground::new(), choking(), Never).unwrap();
    node.store(1, 4);
    stop_of(run(&mut node, 1..=4, None));
    assert!(
        node.install(at(1, 4)).is_err(),
        "the snapshot is missing, which is not the machine's failure"
    );
    send(&leader, &info, &node.ground.store);
    node.install(at(1, 5)).unwrap();
    assert!(node.worker.stop().is_none());
    assert_eq!(node.machine.numbers(), [1, 2, 3, 4, 5]);
}

/// A panic may leave any state: the machine is not used again before a restart of the process.
#[test]
fn after_a_panic_only_a_new_process_goes_on() {
    let mut node = Node::start(Ground::new(), choking(), Never).unwrap();
    node.store(1, 5);
    assert_eq!(applied(run(&mut node, 1..=2, None)), 2);
    stop_of(run(&mut node, 3..=3, None));
    let told = node.worker.stops(&StopReason::new("it panicked: oh"), HaltCause::Panic).unwrap();
    assert_eq!(stop_of(told).1.halted_at(), Some(at(1, 3)));
    let (through, stop) = stop_of(run(&mut node, 3..=3, Some(3)));
    assert_eq!((through, stop.needs_restart()), (at(1, 2), true));
    assert!(now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested)).is_err());
}

/// Node 1 of three leads; its machine is halted at entry 2.
fn standing() -> (Leader, Answers) {
    let mut node = Leader::new(3);
    node.lead();
    let answers = Answers::default();
    node.propose(&answers, BAD);
    let jobs = answers_round(&mut node, 2, FollowerReport::default());
    assert_eq!(indexes(&jobs), [1, 2], "the no-op and the command");
    // After it, and not given out yet.
    node.propose(&answers, 1);
    let stop = ApplyStop {
        first: halted_at(&node),
        last: halted_at(&node),
        panicked: false,
        reason: StopReason::new("it cannot"),
    };
    node.handle(Event::ApplyStopped { through: at(1, 1), stop });
    (node, answers)
}

/// A round of heartbeats to which only `from` replies, which has persisted everything.
fn answers_round(node: &mut Leader, from: u64, report: FollowerReport) -> Jobs {
    node.pass_ms(100);
    let jobs = node.handle(Event::Deadline);
    let rounds = jobs.send.iter().filter_map(|sent| match sent.message {
        PeerMessage::Heartbeat { round, .. } => Some(round),
        _ => None,
    });
    let round = rounds.max().unwrap();
    let (term, last) = (node.replica.core().term(), node.replica.core().log().last.index);
    node.receive(
        from,
        PeerMessage::HeartbeatReply { term, round, received: last, persisted: last, report },
    )
}

type Answers = Arc<Mutex<Vec<Result<Bytes, ProposeError>>>>;

fn halted_at(node: &Leader) -> LogId {
    let index = LogIndex::new(2);
    LogId::new(node.replica.core().term_at(index).unwrap(), index)
}

fn indexes(jobs: &Jobs) -> Vec<u64> {
    let mut indexes = Vec::new();
    for job in &jobs.apply {
        match &job.source {
            ApplySource::Entries(entries) => {
                indexes.extend(entries.iter().map(|entry| entry.id.index.get()))
            }
            other => panic!("{other:?}"),
        }
    }
    indexes
}

#[test]
fn a_node_whose_machine_stands_goes_on_without_callers() {
    let (mut node, answers) = standing();
    let unknown = ProposeError::OutcomeUnknown { why: UnknownBecause::StateMachineStopped };
    assert_eq!(answers.lock().unwrap().drain(..).collect::<Vec<_>>(), [Err(unknown)]);
    node.propose(&answers, 1);
    assert!(matches!(answers.lock().unwrap().pop(), Some(Err(ProposeError::Stopped { .. }))));
    let read = Arc::new(Mutex::new(None));
    let told = read.clone();
    let responder = Box::new(move |answer| *told.lock().unwrap() = Some(answer));
    node.handle(Event::Read(vec![ReadRequest {
        mode: ReadMode::Round,
        deadline: None,
        responder,
    }]));
    assert!(matches!(read.lock().unwrap().take(), Some(Err(ReadError::Stopped { .. }))));
    let status = node.replica.status();
    assert!(status.stopped.is_none() && !status.ready && status.core.role == RoleKind::Leader);
    assert_eq!(status.alarms, ["it cannot"]);
    assert_eq!(status.apply_stop.unwrap().halted_at(), Some(halted_at(&node)));
}

#[test]
fn a_decision_counts_once_it_is_committed_and_gets_apply_past_the_entry() {
    let (mut node, _) = standing();
    let told = Arc::new(Mutex::new(Vec::new()));
    let skip = |node: &mut Leader, target| {
        let told = told.clone();
        let responder = Box::new(move |answer| told.lock().unwrap().push(answer));
        node.handle(Event::SkipEntry { target, responder })
    };
    let target = halted_at(&node);
    let stands = FollowerReport { halted_at: Some(target), ..FollowerReport::default() };
    answers_round(&mut node, 2, stands);
    skip(&mut node, LogId::new(target.term, LogIndex::new(1)));
    assert!(
        matches!(told.lock().unwrap().pop(), Some(Err(SkipError::Refused { .. }))),
        "no machine is halted there"
    );
    let jobs = skip(&mut node, target);
    assert!(told.lock().unwrap().is_empty() && jobs.apply.is_empty(), "it is not committed");
    let last = node.replica.core().log().last.index;
    let jobs = answers_round(&mut node, 2, stands);
    assert_eq!(told.lock().unwrap().drain(..).collect::<Vec<_>>(), [Ok(last.get())]);
    assert_eq!(indexes(&jobs), [2]);
    let skipped = jobs.apply.first().unwrap().skip.unwrap();
    assert_eq!((skipped.target, skipped.decided_at), (target, last.get()));
    let jobs =
        node.handle(Event::Applied { through: target, next_expiry_ms: None, command_version: 0 });
    assert_eq!(indexes(&jobs), (3..=last.get()).collect::<Vec<_>>());
    assert!(node.replica.apply_stop().is_none());
    skip(&mut node, target);
    assert_eq!(told.lock().unwrap().pop(), Some(Ok(last.get())), "a repeated request succeeds");
}

/// Only a restart of the process helps: no job is given out, and the alarm is raised once.
#[test]
fn a_decision_that_needs_a_restart_is_told_and_not_tried() {
    let (mut node, _) = standing();
    let target = halted_at(&node);
    let reason = StopReason::new("it panicked");
    let stop = ApplyStop { first: target, last: at(target.term.get(), 3), panicked: true, reason };
    node.handle(Event::ApplyStopped { through: at(1, 1), stop });
    let stands = FollowerReport { halted_at: Some(target), ..FollowerReport::default() };
    answers_round(&mut node, 2, stands);
    answers_round(&mut node, 3, stands);
    node.handle(Event::SkipEntry { target, responder: Box::new(|_| {}) });
    let jobs = answers_round(&mut node, 2, stands);
    assert!(jobs.apply.is_empty() && jobs.status_changed, "{:?}", jobs.apply);
    let alarms = node.replica.status().alarms;
    assert!(alarms.concat().contains("is skipped; start this node again"), "{alarms:?}");
    let jobs = answers_round(&mut node, 2, stands);
    assert!(jobs.apply.is_empty() && !jobs.status_changed, "reported once");
}

/// Later leaders decide; this node's caller does not wait for them.
#[test]
fn whoever_asked_a_leader_that_is_deposed_is_told_that_nobody_knows() {
    let (mut node, _) = standing();
    let target = halted_at(&node);
    let stands = FollowerReport { halted_at: Some(target), ..FollowerReport::default() };
    answers_round(&mut node, 2, stands);
    let told = Arc::new(Mutex::new(None));
    let answer = told.clone();
    let responder = Box::new(move |outcome| *answer.lock().unwrap() = Some(outcome));
    node.handle(Event::SkipEntry { target, responder });
    let term = d_engine_core::Term::new(node.replica.core().term().get() + 1);
    let zero = LogIndex::ZERO;
    let jobs =
        node.receive(3, PeerMessage::Heartbeat { term, commit: zero, round: 1, matched: zero });
    assert_eq!(told.lock().unwrap().take(), Some(Err(SkipError::OutcomeUnknown)));
    assert_eq!(
        told_of(&jobs),
        Some(Some(target)),
        "it reports to the new leader where it is halted"
    );
    node.handle(Event::Applied { through: target, next_expiry_ms: None, command_version: 0 });
    let jobs =
        node.receive(3, PeerMessage::Heartbeat { term, commit: zero, round: 2, matched: zero });
    assert_eq!(told_of(&jobs), Some(None));
}

/// Where the machine is halted according to a heartbeat reply.
fn told_of(jobs: &Jobs) -> Option<Option<LogId>> {
    jobs.send.iter().find_map(|sent| match &sent.message {
        PeerMessage::HeartbeatReply { report, .. } => Some(report.halted_at),
        _ => None,
    })
}

/// After a restart the log may contain a decision that is not known to be committed yet.
#[test]
fn apply_waits_before_an_entry_that_a_stored_decision_names() {
    let (mut node, _) = standing();
    let target = halted_at(&node);
    let stands = FollowerReport { halted_at: Some(target), ..FollowerReport::default() };
    answers_round(&mut node, 2, stands);
    node.handle(Event::SkipEntry { target, responder: Box::new(|_| {}) });
    // As after a restart: the state machine is not halted.
    let jobs =
        node.handle(Event::Applied { through: at(1, 1), next_expiry_ms: None, command_version: 0 });
    assert!(jobs.apply.is_empty(), "{:?}", jobs.apply);
}

#[test]
fn a_leader_whose_machine_stands_gives_way_to_a_voter_that_is_past_the_entry() {
    let (mut node, _) = standing();
    assert!(!node.replica.core().is_transferring_leadership());
    let last = node.replica.core().log().last.index;
    answers_round(&mut node, 3, FollowerReport { applied: last, ..FollowerReport::default() });
    assert!(node.replica.core().is_transferring_leadership());
}
