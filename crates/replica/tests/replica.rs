//! A replica on a real log, whose jobs the test executes: the results that callers receive when
//! leadership is lost.
#![allow(clippy::unwrap_used)]

mod leader;

use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, Instant, LogId, LogIndex, Now, ReadMode, Term};
use d_engine_replica::{
    Event, Jobs, LogWorker, PeerMessage, Proposal, ProposeError, ReadError, ReadRequest,
    ReceivedSnapshot, Replica, ReplicaConfig, StartPosition, UnknownBecause,
};
use d_engine_storage::LogEntry;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{SnapshotOptions, SnapshotStore};
use leader::{Answers, Node, n, open};

fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry {
        id: LogId::new(Term::new(term), LogIndex::new(index)),
        kind: EntryKind::Command,
        time_ms: 0,
        session: None,
        version: 0,
        data: Bytes::from_static(&[9]),
    }
}

/// One message deposes the leader, replaces its entries and commits the new ones. Callers that
/// waited for the old entries must not receive the replies to the new ones.
#[test]
fn a_caller_never_gets_the_reply_to_another_leaders_command() {
    let mut node = Node::new(3);
    node.lead();
    let answers = Answers::default();
    node.propose(&answers, 1);
    node.propose(&answers, 2);
    let append = PeerMessage::Append {
        term: Term::new(2),
        prev: LogId::ZERO,
        commit: LogIndex::new(3),
        entries: Arc::new([entry(2, 1), entry(2, 2), entry(2, 3)]),
    };
    let jobs = node.receive(2, append);
    assert_eq!(node.replica.core().log().committed, LogIndex::new(3));
    let lost = Err(ProposeError::OutcomeUnknown { why: UnknownBecause::LeadershipLost });
    assert_eq!(*answers.lock().unwrap(), [lost.clone(), lost]);
    assert!(jobs.apply.iter().all(|job| job.responders.is_empty()));
}

#[test]
fn a_caller_whose_command_was_committed_is_answered_although_leadership_is_lost() {
    let mut node = Node::new(3);
    node.lead();
    let answers = Answers::default();
    node.propose(&answers, 1);
    let outcome = d_engine_core::AppendOutcome::Persisted(LogIndex::new(2));
    let mut jobs = node.receive(2, PeerMessage::AppendReply { term: Term::new(1), outcome });
    let higher = PeerMessage::Heartbeat {
        term: Term::new(2),
        commit: LogIndex::ZERO,
        round: 1,
        matched: d_engine_core::LogIndex::ZERO,
    };
    node.receive(3, higher);
    assert!(answers.lock().unwrap().is_empty());
    assert_eq!(jobs.apply.pop().unwrap().responders.len(), 1);
}

/// The command was committed and not yet applied when a snapshot from a later leader replaced it:
/// the state contains its effect, and this node has no reply.
#[test]
fn a_caller_whose_command_comes_with_a_snapshot_is_told_that_its_outcome_is_unknown() {
    let opened = open(3);
    let now = Instant::from_nanos(1);
    // The state machine is busy.
    let config = ReplicaConfig { apply_jobs_max: 0, ..ReplicaConfig::default() };
    let replica = Replica::new(
        config,
        &opened.identity,
        &opened.recovered,
        &StartPosition::default(),
        7,
        now,
    )
    .unwrap();
    let mut node = Node { replica, log: LogWorker::new(opened.log, GroupId::FIRST), now };
    node.lead();
    let answers = Answers::default();
    node.propose(&answers, 1);
    let outcome = d_engine_core::AppendOutcome::Persisted(LogIndex::new(2));
    node.receive(2, PeerMessage::AppendReply { term: Term::new(1), outcome });
    node.receive(
        3,
        PeerMessage::Heartbeat {
            term: Term::new(2),
            commit: LogIndex::ZERO,
            round: 1,
            matched: d_engine_core::LogIndex::ZERO,
        },
    );
    assert!(answers.lock().unwrap().is_empty());
    let fs = Arc::new(SimFs::new());
    let options = SnapshotOptions::new(opened.identity.cluster, GroupId::FIRST);
    let (store, _) = SnapshotStore::open(fs, std::path::Path::new("/snapshots"), options).unwrap();
    let last_included = LogId::new(Term::new(2), LogIndex::new(5));
    let membership = opened.identity.initial.clone();
    let (from, term, hold) = (n(3), Term::new(2), store.hold(last_included));
    let snapshot = ReceivedSnapshot { from, term, last_included, time_ms: 0, membership, hold };
    node.handle(Event::SnapshotReceived {
        snapshot: Box::new(snapshot),
        responder: Box::new(|_| {}),
    });
    assert_eq!(node.replica.core().log().base, last_included);
    let lost = ProposeError::OutcomeUnknown { why: UnknownBecause::LeadershipLost };
    assert_eq!(*answers.lock().unwrap(), [Err(lost)]);
    assert!(!node.replica.has_callers());
}

#[test]
fn entries_that_were_superseded_meanwhile_are_no_reason_to_stop() {
    let mut node = Node::new(3);
    node.lead();
    let job = d_engine_replica::LoadJob {
        to: n(2),
        token: 1,
        first: LogIndex::new(1),
        last: LogIndex::new(99),
        max_bytes: usize::MAX,
    };
    let Ok(Event::Loaded { entries, .. }) = node.log.loader().load(&job) else {
        panic!("the log stops the node")
    };
    assert!(entries.is_empty());
}

/// The leader's disk hangs while the other nodes could commit: the bytes that wait for the disk are
/// limited.
#[test]
fn row_50_commands_are_refused_while_too_much_waits_for_the_own_disk() {
    let opened = open(3);
    let now = Instant::from_nanos(1);
    let mut config = ReplicaConfig::default();
    config.core.uncommitted_bytes_max = 1_000;
    let replica = Replica::new(
        config,
        &opened.identity,
        &opened.recovered,
        &StartPosition::default(),
        7,
        now,
    )
    .unwrap();
    let mut node = Node { replica, log: LogWorker::new(opened.log, GroupId::FIRST), now };
    node.lead();
    let answers = Answers::default();
    let mut jobs = Jobs::default();
    for index in 2..=4 {
        let collected = answers.clone();
        let responder = Box::new(move |answer| collected.lock().unwrap().push(answer));
        let proposal = Proposal::new(Bytes::from(vec![0; 600]), None, responder);
        // Nothing is persisted here, but the other two persist and commit everything.
        node.replica.handle(node.time(), Event::Propose(vec![proposal]), &mut jobs);
        for from in [2, 3] {
            let outcome = d_engine_core::AppendOutcome::Persisted(LogIndex::new(index));
            let message = PeerMessage::AppendReply { term: Term::new(1), outcome };
            node.replica.handle(node.time(), Event::Peer { from: n(from), message }, &mut jobs);
        }
    }
    let refused = answers.lock().unwrap().pop().unwrap();
    assert_eq!(refused, Err(ProposeError::Busy { what: "bytes waiting for this node's disk" }));
}

/// Commands that arrive together are not refused together.
#[test]
fn of_a_batch_that_does_not_fit_as_much_as_fits_is_proposed() {
    let opened = open(3);
    let now = Instant::from_nanos(1);
    let mut config = ReplicaConfig::default();
    config.core.uncommitted_bytes_max = 2_000;
    let replica = Replica::new(
        config,
        &opened.identity,
        &opened.recovered,
        &StartPosition::default(),
        7,
        now,
    )
    .unwrap();
    let mut node = Node { replica, log: LogWorker::new(opened.log, GroupId::FIRST), now };
    node.lead();
    let answers = Answers::default();
    let batch = (0..4).map(|_| {
        let answers = answers.clone();
        let responder = Box::new(move |answer| answers.lock().unwrap().push(answer));
        Proposal::new(Bytes::from(vec![0; 600]), None, responder)
    });
    let before = node.replica.core().log().last.index;
    node.handle(Event::Propose(batch.collect()));
    let refused = ProposeError::Busy { what: "bytes waiting for commit" };
    assert_eq!(*answers.lock().unwrap(), [Err(refused.clone()), Err(refused)]);
    assert_eq!(node.replica.core().log().last.index, before.plus(2));
}

/// The caller no longer waits for a command that is handled too late: it must not take effect.
#[test]
fn a_command_whose_deadline_has_passed_is_not_proposed() {
    let mut node = Node::new(3);
    node.lead();
    let answers = Answers::default();
    let last = node.replica.core().log().last;
    for (deadline, expected) in [(node.now.as_nanos(), true), (node.now.as_nanos() + 1, false)] {
        let collected = answers.clone();
        let responder = Box::new(move |answer| collected.lock().unwrap().push(answer));
        let deadline = Some(Instant::from_nanos(deadline));
        let command = Bytes::from_static(b"late");
        node.handle(Event::Propose(vec![Proposal::new(command, deadline, responder)]));
        assert_eq!(answers.lock().unwrap().pop() == Some(Err(ProposeError::Expired)), expected);
        assert_eq!(node.replica.core().log().last == last, expected);
    }
}

#[test]
fn a_read_whose_deadline_has_passed_begins_no_round() {
    let mut node = Node::new(3);
    node.lead();
    let (answer, answered) = std::sync::mpsc::channel();
    let responder = Box::new(move |result| answer.send(result).unwrap());
    let jobs = node.handle(Event::Read(vec![ReadRequest {
        mode: ReadMode::Round,
        deadline: Some(node.now),
        responder,
    }]));
    assert_eq!(answered.try_recv(), Ok(Err(ReadError::Expired)));
    assert!(jobs.send.is_empty());
}

fn ticks(node: &Node) -> u64 {
    let log = node.replica.core().log();
    log.last.index.get() - log.base.index.get()
}

/// The state machine has an expiry: a leader proposes one tick once its clock has passed it. If the
/// machine still has the expiry after that, another tick follows once log time has advanced.
#[test]
fn a_leader_puts_a_tick_into_the_log_when_the_state_machine_waits_for_the_time() {
    let mut node = Node::new(1);
    node.now = Instant::from_nanos(3_000_000_000);
    node.handle(Event::Deadline);
    node.handle(Event::Deadline);
    let before = ticks(&node);
    let applied = |node: &mut Node, next_expiry_ms| {
        let through = node.replica.core().log().last;
        node.handle(Event::Applied { through, next_expiry_ms, command_version: 0 });
    };
    // Log time began at zero, three seconds after the clock.
    let deadline_at = |node: &mut Node, wall_ms| {
        node.now = Instant::from_nanos((3_000 + wall_ms) * 1_000_000);
        let mut jobs = Jobs::default();
        node.replica.handle(Now { wall_ms, ..node.time() }, Event::Deadline, &mut jobs);
        for job in std::mem::take(&mut jobs.persist) {
            let stored = node.log.persist(std::slice::from_ref(&job)).unwrap().unwrap();
            assert_eq!(
                job.entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(),
                [EntryKind::Tick]
            );
            assert_eq!(
                job.entries.iter().map(|entry| entry.time_ms).collect::<Vec<_>>(),
                [wall_ms]
            );
            node.replica.handle(
                Now { wall_ms, ..node.time() },
                Event::Persisted(stored),
                &mut jobs,
            );
        }
    };
    applied(&mut node, Some(5_000));
    deadline_at(&mut node, 4_999);
    assert_eq!(ticks(&node), before, "the time has not come");
    deadline_at(&mut node, 5_000);
    assert_eq!(ticks(&node), before + 1);
    deadline_at(&mut node, 5_000);
    assert_eq!(ticks(&node), before + 1, "one is in flight");
    applied(&mut node, Some(5_000));
    deadline_at(&mut node, 5_000);
    assert_eq!(ticks(&node), before + 1, "this time was already in a tick");
    deadline_at(&mut node, 5_200);
    assert_eq!(ticks(&node), before + 2);
    applied(&mut node, None);
    deadline_at(&mut node, 9_000);
    assert_eq!(ticks(&node), before + 2, "no expiry is set");
}

#[test]
fn a_follower_puts_no_tick_into_the_log() {
    let mut node = Node::new(3);
    node.receive(
        2,
        PeerMessage::Heartbeat {
            term: Term::new(1),
            commit: LogIndex::ZERO,
            round: 1,
            matched: d_engine_core::LogIndex::ZERO,
        },
    );
    let through = d_engine_replica::LogId::default();
    node.handle(Event::Applied { through, next_expiry_ms: Some(1), command_version: 0 });
    let mut jobs = Jobs::default();
    node.replica.handle(Now { wall_ms: 5_000, ..node.time() }, Event::Deadline, &mut jobs);
    assert_eq!(ticks(&node), 0);
}

/// On an idle cluster no other event would cause the state machine to continue.
#[test]
fn what_is_known_to_be_committed_at_the_start_is_applied_without_further_news() {
    let mut opened = open(3);
    opened.log.append(GroupId::FIRST, None, &[entry(1, 1), entry(1, 2)]).unwrap();
    opened.log.sync().unwrap();
    opened.recovered.entries = vec![entry(1, 1).head(), entry(1, 2).head()];
    opened.recovered.hard_state.term = Term::new(1);
    opened.recovered.hard_state.commit = LogIndex::new(2);
    let now = Instant::from_nanos(1);
    let config = ReplicaConfig::default();
    let replica = Replica::new(
        config,
        &opened.identity,
        &opened.recovered,
        &StartPosition::default(),
        7,
        now,
    )
    .unwrap();
    let mut node = Node { replica, log: LogWorker::new(opened.log, GroupId::FIRST), now };
    let jobs = node.handle(Event::Deadline);
    let sources: Vec<String> = jobs.apply.iter().map(|job| format!("{:?}", job.source)).collect();
    assert_eq!(sources, ["Stored(1, 2)"]);
}

/// A follower that has the read index, but has lost its leader before it could apply that far,
/// cannot tell when it will: the read fails, and the caller can use another node.
#[test]
fn a_confirmed_read_at_a_follower_is_given_back_when_no_leader_is_known() {
    let mut node = Node::new(3);
    node.receive(
        2,
        PeerMessage::Heartbeat {
            term: Term::new(1),
            commit: LogIndex::ZERO,
            round: 1,
            matched: d_engine_core::LogIndex::ZERO,
        },
    );
    let (answer, answered) = std::sync::mpsc::channel();
    let responder = Box::new(move |result| answer.send(result).unwrap());
    let jobs = node.handle(Event::Read(vec![ReadRequest {
        mode: ReadMode::Round,
        deadline: None,
        responder,
    }]));
    let token = jobs.send.iter().find_map(|outgoing| match outgoing.message {
        PeerMessage::ReadRequest { token, .. } => Some(token),
        _ => None,
    });
    let index = Some(LogIndex::new(9));
    node.receive(2, PeerMessage::ReadReply { term: Term::new(1), token: token.unwrap(), index });
    assert!(answered.try_recv().is_err(), "entry 9 is not applied here");
    node.now = Instant::from_nanos(node.now.as_nanos() + 5_000_000_000);
    node.handle(Event::Deadline);
    assert_eq!(answered.try_recv(), Ok(Err(ReadError::NotLeader { leader: None })));
}

/// Bytes that the state machine refuses as a command never reach the log. A node that does not lead
/// names the leader instead: its own program may be older than the leader's.
#[test]
fn a_command_that_the_state_machine_refuses_is_not_logged() {
    let mut node = Node::new(3);
    let answers = Answers::default();
    let refused = |answers: &Answers| {
        let answers = answers.clone();
        let responder = Box::new(move |answer| answers.lock().unwrap().push(answer));
        let checked = Err(Arc::from("no command"));
        Event::Propose(vec![Proposal {
            checked,
            ..Proposal::new(Bytes::from_static(b"?"), None, responder)
        }])
    };
    node.handle(refused(&answers));
    assert!(matches!(answers.lock().unwrap().pop(), Some(Err(ProposeError::NotLeader { .. }))));
    node.lead();
    let last = node.replica.core().log().last;
    node.handle(refused(&answers));
    let answer = answers.lock().unwrap().pop().unwrap().unwrap_err();
    assert!(matches!(answer, ProposeError::Refused { .. }), "{answer}");
    assert!(answer.to_string().contains("no command"), "{answer}");
    assert_eq!(node.replica.core().log().last, last);
}

/// Each read uses memory until a round confirms it.
#[test]
fn reads_on_their_way_are_bounded() {
    let mut node = Node::with(3, ReplicaConfig { reads_max: 2, ..ReplicaConfig::default() });
    node.lead();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let reads = (0..3).map(|_| {
        let told = told.clone();
        let responder = Box::new(move |result| told.lock().unwrap().push(result));
        ReadRequest { mode: ReadMode::Round, deadline: None, responder }
    });
    node.handle(Event::Read(reads.collect()));
    assert_eq!(*told.lock().unwrap(), [Err(ReadError::Busy { what: "reads in flight" })]);
}
