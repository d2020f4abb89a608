//! What a replica does when its disk hangs or is full, and when more comes in than one write may hold.
#![allow(clippy::unwrap_used)]

mod leader;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::{FollowerReport, LogIndex, RoleKind, Term};
use d_engine_replica::{Event, Jobs, LogDisk, LogId, PeerMessage, Proposal, ProposeError, ReplicaConfig};
use leader::{Answers, Node};

const MIB: usize = 1 << 20;

/// A leader of three in term 1 whose followers have answered its last heartbeat.
fn leader_that_is_heard(config: ReplicaConfig) -> Node {
    let mut node = Node::with(3, config);
    node.lead();
    // The first answers commit the no-op, the next ones the entry that binds this node's directory.
    hear(&mut node);
    hear(&mut node);
    node
}

/// A heartbeat interval passes, and both followers answer; they have stored everything. So has this node's
/// state machine applied what it may.
fn hear(node: &mut Node) -> Jobs {
    node.pass_ms(100);
    let mut all = node.handle(Event::Deadline);
    let round = all.send.iter().find_map(|sent| match sent.message {
        PeerMessage::Heartbeat { round, .. } => Some(round),
        _ => None,
    });
    let last = node.replica.core().log().last.index;
    for from in [2, 3] {
        let (term, round) = (Term::new(1), round.unwrap());
        let report = FollowerReport { applied: last, ..FollowerReport::default() };
        let reply = PeerMessage::HeartbeatReply { term, round, received: last, stored: last, report };
        all.send.append(&mut node.receive(from, reply).send);
    }
    let through = LogId { term: 1, index: node.replica.core().log().persisted.get() };
    node.handle(Event::Applied { through, next_expiry_ms: None });
    all
}

fn told_to_campaign(jobs: &Jobs) -> bool {
    jobs.send.iter().any(|sent| matches!(sent.message, PeerMessage::TimeoutNow { .. }))
}

fn command(bytes: usize) -> Proposal {
    Proposal::new(Bytes::from(vec![7; bytes]), None, Box::new(|_| {}))
}

/// The log has a longest write: what came in together is cut.
#[test]
fn the_commands_of_one_drain_become_several_writes() {
    let config = ReplicaConfig { command_bytes_max: 8 * MIB, ..ReplicaConfig::default() };
    let mut node = leader_that_is_heard(config);
    let mut jobs = Jobs::default();
    let drained = vec![command(3 * MIB), command(3 * MIB), command(MIB), command(5 * MIB), command(1)];
    node.replica.handle(node.now, 0, Event::Propose(drained), &mut jobs);
    let writes: Vec<usize> = jobs.persist.iter().map(|job| job.entries.len()).collect();
    assert_eq!(writes, [1, 2, 1, 1]);
}

/// FINDINGS S2: the others have everything, and this leader can answer nobody.
#[test]
fn a_leader_whose_write_does_not_return_hands_leadership_over() {
    let mut node = leader_that_is_heard(ReplicaConfig::default());
    let mut jobs = Jobs::default();
    node.replica.handle(node.now, 0, Event::Propose(vec![command(10)]), &mut jobs);
    let order = jobs.persist.last().unwrap().id;
    let mut handed_over = false;
    for _ in 0..9 {
        handed_over |= told_to_campaign(&hear(&mut node));
    }
    assert!(!handed_over, "slow is not dead");
    for _ in 0..2 {
        handed_over |= told_to_campaign(&hear(&mut node));
    }
    assert!(handed_over);
    assert!(node.replica.status().alarms.iter().any(|alarm| alarm.contains("disk hangs")));
    node.replica.handle(node.now, 0, Event::Persisted(order), &mut jobs);
    assert!(!node.replica.status().alarms.iter().any(|alarm| alarm.contains("disk hangs")));
}

/// FINDINGS D1, O11: commands are refused before the disk is full, and a voter with room leads.
#[test]
fn a_leader_without_room_refuses_commands_and_hands_leadership_over() {
    for disk in [
        LogDisk { full: true, free_bytes: Some(0) },
        LogDisk { full: false, free_bytes: Some(ReplicaConfig::default().min_free_bytes - 1) },
    ] {
        let mut node = leader_that_is_heard(ReplicaConfig::default());
        let jobs = node.handle(Event::LogDisk(disk));
        assert!(told_to_campaign(&jobs), "{disk:?}");
        let answer = Arc::new(Mutex::new(None));
        let told = answer.clone();
        let responder = Box::new(move |result| *told.lock().unwrap() = Some(result));
        node.handle(Event::Propose(vec![Proposal::new(Bytes::from_static(b"x"), None, responder)]));
        let answer = answer.lock().unwrap().take();
        assert!(matches!(answer, Some(Err(ProposeError::Busy { .. }))), "{answer:?}");
        assert!(node.replica.status().alarms.iter().any(|alarm| alarm.contains("room")), "{disk:?}");
    }
}

/// With room enough nothing happens, and a full disk that has room again is forgotten.
#[test]
fn a_disk_that_has_room_again_takes_commands_again() {
    let mut node = Node::new(1);
    node.pass_ms(2_000);
    node.handle(Event::Deadline);
    assert_eq!(node.replica.core().role(), RoleKind::Leader);
    node.handle(Event::LogDisk(LogDisk { full: true, free_bytes: Some(0) }));
    let last = node.replica.core().log().last.index;
    node.propose(&Answers::default(), 1);
    assert_eq!(node.replica.core().log().last.index, last, "refused");
    node.handle(Event::LogDisk(LogDisk { full: false, free_bytes: Some(1 << 30) }));
    node.propose(&Answers::default(), 1);
    assert_eq!(node.replica.core().log().last.index, last.next());
}

/// FINDINGS U2: a node that has lost what it acknowledged tells its leader, and stops.
#[test]
fn a_follower_that_lost_its_log_answers_and_stops() {
    let mut node = Node::new(3);
    let (term, commit) = (Term::new(4), LogIndex::ZERO);
    node.receive(2, PeerMessage::Heartbeat { term, commit, round: 1, matched: LogIndex::new(9) });
    let stopped = node.replica.stopped().map(ToString::to_string).unwrap_or_default();
    assert!(stopped.contains("rolled back"), "{stopped}");
}
