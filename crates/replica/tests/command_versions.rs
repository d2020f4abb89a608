//! Commands of a newer version: a leader accepts them once every voter decodes them, and a program
//! that does not decode them stops before its state machine is given them.
#![allow(clippy::unwrap_used)]

mod leader;
mod recording;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{FollowerReport, GroupId, LogIndex};
use d_engine_replica::{
    ApplyJob, ApplySource, Event, Jobs, LogWorker, Never, PeerMessage, Proposal, ProposeError,
    Replica, ReplicaConfig, StartPosition, StateMachineHandler, StopReason,
};
use d_engine_storage::LogEntry;
use d_engine_storage::RealFs;
use d_engine_storage::snapshot::{SnapshotOptions, SnapshotStore};
use leader::{Answers, n};
use recording::node::{Node, command, now, send, store};
use recording::{Ground, Manner, Recording, at};

/// The leader of three, whose program decodes commands up to version 2.
fn leader_over(floor: u32) -> leader::Node {
    let opened = leader::open(3);
    let now = d_engine_core::Instant::from_nanos(1);
    let start_position = StartPosition {
        command_version_max: 2,
        command_version_floor: floor,
        ..StartPosition::default()
    };
    let config = ReplicaConfig::default();
    let replica =
        Replica::new(config, &opened.identity, &opened.recovered, &start_position, 7, now).unwrap();
    let mut node = leader::Node { replica, log: LogWorker::new(opened.log, GroupId::FIRST), now };
    node.lead();
    node
}

/// A follower replies to the next round, with a program that decodes commands up to `version`.
fn announces(node: &mut leader::Node, from: u64, version: u32) {
    node.pass_ms(100);
    let jobs = node.handle(Event::Deadline);
    let round = jobs.send.iter().rev().find_map(|sent| match &sent.message {
        PeerMessage::Heartbeat { round, .. } => Some(*round),
        _ => None,
    });
    let report = FollowerReport { command_version_max: version, ..FollowerReport::default() };
    let (term, none) = (node.replica.core().term(), LogIndex::ZERO);
    let round = round.unwrap();
    node.receive(
        from,
        PeerMessage::HeartbeatReply { term, round, received: none, persisted: none, report },
    );
}

/// Proposes a command; returns the error, if it is refused at once.
fn propose(node: &mut leader::Node, version: u32) -> Option<ProposeError> {
    let answers = Answers::default();
    let told = answers.clone();
    let responder = Box::new(move |answer| told.lock().unwrap().push(answer));
    let proposal = Proposal::new(Bytes::from_static(b"x"), None, responder).with_version(version);
    node.handle(Event::Propose(vec![proposal]));
    let answer = answers.lock().unwrap().pop();
    answer.map(Result::unwrap_err)
}

#[test]
fn a_leader_refuses_a_version_that_some_voter_does_not_decode_and_names_it() {
    let mut node = leader_over(0);
    announces(&mut node, 2, 2);
    let last = node.replica.core().log().last;
    let refused = propose(&mut node, 1).unwrap();
    let expected =
        ProposeError::NewerCommand { version: 1, allowed: 0, held_by: n(3), announced: None };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("node 3 has not announced to this leader"), "{refused}");
    announces(&mut node, 3, 1);
    assert_eq!(node.replica.status().command_version_allowed, Some(1));
    assert_eq!(propose(&mut node, 1), None, "every voter decodes it");
    let refused = propose(&mut node, 2).unwrap();
    assert!(refused.to_string().contains("node 3 decodes no command above version 1"), "{refused}");
    assert_eq!(
        node.replica.core().log().last.index,
        last.index.next(),
        "a refused command is not logged"
    );
    announces(&mut node, 3, 2);
    assert_eq!(propose(&mut node, 2), None);
    let refused = propose(&mut node, 3).unwrap();
    assert!(
        refused.to_string().contains("program of node 1"),
        "its own program decodes no more: {refused}"
    );
}

/// The version is stored and sent with the payload, in the log and to the followers.
#[test]
fn the_version_is_in_the_envelope_of_the_entry() {
    let mut node = leader_over(2);
    let mut jobs = Jobs::default();
    let proposal = Proposal::new(Bytes::from_static(b"x"), None, Box::new(|_| {})).with_version(2);
    node.replica.handle(node.time(), Event::Propose(vec![proposal]), &mut jobs);
    assert_eq!(jobs.persist[0].entries[0].version, 2);
}

/// A voter may be down, or the leader may be new, long after the cluster has begun to use a
/// version.
#[test]
fn a_version_that_is_applied_here_is_taken_whatever_the_voters_have_told() {
    let mut node = leader_over(1);
    assert_eq!(propose(&mut node, 1), None, "applied before the start");
    assert!(propose(&mut node, 2).is_some());
    let through = at(1, 1);
    node.handle(Event::Applied { through, next_expiry_ms: None, command_version: 2 });
    assert_eq!(propose(&mut node, 2), None);
    assert_eq!(node.replica.status().command_version_allowed, Some(2));
}

/// A command that only a newer program can check is refused because of its version, not because of
/// this program's check.
#[test]
fn a_node_that_does_not_lead_names_the_leader_and_not_the_version() {
    let mut node = leader_over(0);
    node.receive(
        2,
        PeerMessage::Heartbeat {
            term: d_engine_core::Term::new(2),
            commit: LogIndex::ZERO,
            round: 1,
            matched: LogIndex::ZERO,
        },
    );
    assert!(matches!(propose(&mut node, 2), Some(ProposeError::NotLeader { .. })));
}

fn decoding(version: u32) -> Manner {
    Manner { decodes: version, ..Manner::default() }
}

fn start(ground: Ground, manner: Manner) -> Result<Node, StopReason> {
    Node::start(ground, Recording::with(manner), Never)
}

/// Persists and applies a command of `version`.
fn commit(node: &mut Node, index: u64, version: u32) -> Result<Event, StopReason> {
    let entries = vec![LogEntry { version, ..command(index) }];
    store(&mut node.ground, 1, &entries);
    now(node.worker.run(ApplyJob {
        source: ApplySource::Entries(entries),
        responders: Vec::new(),
        skip: None,
    }))
}

fn floor_of(event: &Event) -> u32 {
    let Event::Applied { command_version, .. } = event else { panic!("it is applied") };
    *command_version
}

#[test]
fn a_node_stops_by_name_at_an_entry_that_its_program_does_not_decode() {
    let mut node = start(Ground::new(), decoding(1)).unwrap();
    assert_eq!(floor_of(&commit(&mut node, 1, 1).unwrap()), 1);
    node.machine.calls.take();
    let entries = vec![command(2), LogEntry { version: 2, ..command(3) }];
    store(&mut node.ground, 1, &entries);
    let job =
        ApplyJob { source: ApplySource::Entries(entries), responders: Vec::new(), skip: None };
    let stopped = now(node.worker.run(job)).map(|_| ()).unwrap_err();
    assert!(stopped.needs_newer_program());
    let told = stopped.to_string();
    for part in ["index 3 of term 1", "version 2", "up to version 1", "start a newer program"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(node.machine.calls.count("apply_chunk"), 0, "the state machine was not given it");
    let Node { ground, .. } = node;
    let mut node = start(ground.again(), decoding(2)).unwrap();
    let job = ApplyJob {
        source: ApplySource::Stored(LogIndex::new(1), LogIndex::new(3)),
        responders: Vec::new(),
        skip: None,
    };
    assert_eq!(floor_of(&now(node.worker.run(job)).unwrap()), 2);
    assert_eq!(node.machine.numbers(), [1, 2, 3], "a newer program continues where it stopped");
}

/// A durable machine applies nothing again: the floor comes from the log and the snapshots.
#[test]
fn the_floor_is_found_again_at_a_restart() {
    for is_durable in [false, true] {
        let manner = Manner { is_durable, ..decoding(2) };
        let mut node = start(Ground::new(), manner).unwrap();
        commit(&mut node, 1, 2).unwrap();
        commit(&mut node, 2, 0).unwrap();
        let held = node.machine.held.clone();
        let again = |ground: Ground, manner: Manner| {
            let mut machine = Recording::with(manner);
            if manner.is_durable {
                machine.held = held.clone();
            }
            Node::start(ground.again(), machine, Never)
        };
        let Node { ground, .. } = node;
        let mut node = again(ground, manner).unwrap();
        assert_eq!(node.start_position.command_version_max, 2);
        assert_eq!(
            node.start_position.command_version_floor,
            if is_durable { 2 } else { 0 },
            "the applied entries"
        );
        if !is_durable {
            let job = ApplyJob {
                source: ApplySource::Stored(LogIndex::new(1), LogIndex::new(2)),
                responders: Vec::new(),
                skip: None,
            };
            now(node.worker.run(job)).unwrap();
        }
        assert_eq!(node.take_snapshot().header.facts.command_version, 2);
        recording::node::purge(&mut node.ground, 2);
        let Node { ground, .. } = node;
        let node = again(ground, manner).unwrap();
        assert_eq!(
            node.start_position.command_version_floor, 2,
            "the entry is purged; the snapshot has the version"
        );
        let Node { ground, .. } = node;
        let older = Manner { is_durable, ..decoding(1) };
        let refused = again(ground, older).map(|_| ()).unwrap_err();
        assert!(
            refused.needs_newer_program() && refused.to_string().contains("version 2"),
            "{refused}"
        );
    }
}

/// No state is replaced by a snapshot from which this program could not continue.
#[test]
fn an_older_program_does_not_start_on_a_snapshot_of_newer_commands() {
    for store_max in [1, 9] {
        let mut node = start(Ground::new(), decoding(2)).unwrap();
        commit(&mut node, 1, 2).unwrap();
        node.take_snapshot();
        let Node { ground, .. } = node;
        let mut ground = ground.again();
        let options = SnapshotOptions {
            command_version_max: store_max,
            ..SnapshotOptions::new(ground.opened.identity.cluster, GroupId::FIRST)
        };
        let dir = ground.dir.path().join("data/snapshots");
        ground.store =
            SnapshotStore::open(Arc::new(RealFs::new()), Path::new(&dir), options).unwrap().0;
        let machine = Arc::new(Recording::with(decoding(1)));
        let opened =
            now(StateMachineHandler::open(machine.clone(), Arc::new(Never), ground.start()));
        let refused = opened.map(|_| ()).unwrap_err();
        assert!(
            refused.needs_newer_program() && refused.to_string().contains("newer program"),
            "{refused}"
        );
        assert_eq!(machine.calls.count("reset"), 0);
        assert_eq!(machine.calls.count("stop"), 1);
    }
}

#[test]
fn an_installed_snapshot_brings_the_floor_and_an_older_program_refuses_it() {
    let mut leader = start(Ground::new(), decoding(2)).unwrap();
    commit(&mut leader, 1, 2).unwrap();
    let info = leader.take_snapshot();
    for (decodes, expected) in [(2, Some(2)), (1, None)] {
        let mut node = start(Ground::new(), decoding(decodes)).unwrap();
        send(&leader, &info, &node.ground.store);
        node.machine.calls.take();
        let last_included = info.last_included();
        let installed = now(node.worker.run(ApplyJob {
            source: ApplySource::Snapshot(last_included),
            responders: Vec::new(),
            skip: None,
        }));
        assert_eq!(installed.as_ref().ok().map(floor_of), expected);
        if let Err(refused) = installed {
            assert!(refused.needs_newer_program(), "{refused}");
            assert_eq!(node.machine.calls.count("apply_snapshot_from_file"), 0);
        }
    }
}
