//! The behaviour of a replica whose disk hangs or is full, and that receives more commands at once
//! than one write may contain.
#![allow(clippy::unwrap_used)]

mod leader;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::{FollowerReport, LogIndex, RoleKind, Term};
use d_engine_replica::{
    Event, Jobs, LogDisk, LogId, PeerMessage, Proposal, ProposeError, ReplicaConfig,
};
use leader::{Answers, Node};

const MIB: usize = 1 << 20;

/// A leader of three in term 1 whose followers have replied to its last heartbeat.
fn leader_that_is_heard(config: ReplicaConfig) -> Node {
    let mut node = Node::with(3, config);
    node.lead();
    // The first replies commit the no-op, the next ones the entry that binds this node's
    // incarnation.
    hear(&mut node);
    hear(&mut node);
    node
}

/// A heartbeat interval passes, and both followers reply; they have persisted everything, and this
/// node's state machine has applied everything allowed.
fn hear(node: &mut Node) -> Jobs {
    let all = hear_without_apply(node);
    let through = LogId::of(1, node.replica.core().log().persisted.get());
    node.handle(Event::Applied { through, next_expiry_ms: None, command_version: 0 });
    all
}

/// The same, but the state machine reports nothing.
fn hear_without_apply(node: &mut Node) -> Jobs {
    node.pass_ms(100);
    let mut all = node.handle(Event::Deadline);
    let round = all.send.iter().find_map(|sent| match sent.message {
        PeerMessage::Heartbeat { round, .. } => Some(round),
        _ => None,
    });
    let last = node.replica.core().log().last.index;
    for from in [2, 3] {
        // A node that has stepped down sends no heartbeat.
        let Some(round) = round else { continue };
        let term = Term::new(1);
        let report = FollowerReport { applied: last, ..FollowerReport::default() };
        let reply =
            PeerMessage::HeartbeatReply { term, round, received: last, persisted: last, report };
        all.send.append(&mut node.receive(from, reply).send);
    }
    all
}

fn told_to_campaign(jobs: &Jobs) -> bool {
    jobs.send.iter().any(|sent| matches!(sent.message, PeerMessage::TimeoutNow { .. }))
}

fn command(bytes: usize) -> Proposal {
    Proposal::new(Bytes::from(vec![7; bytes]), None, Box::new(|_| {}))
}

/// A write of the log has a largest size: a large batch is split.
#[test]
fn the_commands_of_one_drain_become_several_writes() {
    let config = ReplicaConfig { command_bytes_max: 8 * MIB, ..ReplicaConfig::default() };
    let mut node = leader_that_is_heard(config);
    let mut jobs = Jobs::default();
    let drained =
        vec![command(3 * MIB), command(3 * MIB), command(MIB), command(5 * MIB), command(1)];
    node.replica.handle(node.time(), Event::Propose(drained), &mut jobs);
    let writes: Vec<usize> = jobs.persist.iter().map(|job| job.entries.len()).collect();
    assert_eq!(writes, [1, 2, 1, 1]);
}

/// FINDINGS S2: the other nodes have everything, and this leader cannot reply to its callers.
#[test]
fn a_leader_whose_write_does_not_return_hands_leadership_over() {
    let mut node = leader_that_is_heard(ReplicaConfig::default());
    let mut jobs = Jobs::default();
    node.replica.handle(node.time(), Event::Propose(vec![command(10)]), &mut jobs);
    let order = jobs.persist.last().unwrap().id;
    let mut handed_over = false;
    for _ in 0..9 {
        handed_over |= told_to_campaign(&hear(&mut node));
    }
    assert!(!handed_over, "slow, but not hanging");
    for _ in 0..2 {
        handed_over |= told_to_campaign(&hear(&mut node));
    }
    assert!(handed_over);
    assert!(node.replica.status().alarms.iter().any(|alarm| alarm.contains("disk hangs")));
    node.replica.handle(node.time(), Event::Persisted(order), &mut jobs);
    assert!(!node.replica.status().alarms.iter().any(|alarm| alarm.contains("disk hangs")));
}

/// FINDINGS D1, O11: commands are refused before the disk is full, and a voter with space leads.
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
        assert!(matches!(answer, Some(Err(ProposeError::TransferInProgress { .. }))), "{answer:?}");
        assert!(
            node.replica.status().alarms.iter().any(|alarm| alarm.contains("too little space")),
            "{disk:?}"
        );
    }
}

/// With enough space nothing happens; once a full disk has space again, commands are accepted
/// again.
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

/// FINDINGS U2: a node that has lost entries that it acknowledged reports it to its leader, and
/// stops.
#[test]
fn a_follower_that_lost_its_log_answers_and_stops() {
    let mut node = Node::new(3);
    let (term, commit) = (Term::new(4), LogIndex::ZERO);
    node.receive(2, PeerMessage::Heartbeat { term, commit, round: 1, matched: LogIndex::new(9) });
    let stopped = node.replica.stopped().map(ToString::to_string).unwrap_or_default();
    assert!(stopped.contains("rolled back"), "{stopped}");
}

fn alarm(node: &Node, text: &str) -> bool {
    node.replica.status().alarms.iter().any(|alarm| alarm.contains(text))
}

/// Followers reply to heartbeats for `ms`, but the state machine reports nothing; returns whether
/// another node was asked to campaign.
fn gives_way_within(node: &mut Node, ms: u64) -> bool {
    (0..ms / 100).fold(false, |told, _| told_to_campaign(&hear_without_apply(node)) || told)
}

/// A leader whose last pause for a snapshot took `ms`.
fn leader_that_once_paused(ms: u64) -> Node {
    let mut node = Node::with(3, ReplicaConfig::default());
    node.handle(Event::ApplyPaused(true));
    node.pass_ms(ms);
    node.handle(Event::ApplyPaused(false));
    node.lead();
    hear(&mut node);
    hear(&mut node);
    node
}

/// Commands that arrive while a snapshot without a view is generated do not count as a hang. A hang
/// can begin only after the pause.
#[test]
fn a_pause_for_a_snapshot_is_no_hang() {
    let mut node = leader_that_once_paused(100);
    node.handle(Event::ApplyPaused(true));
    node.handle(Event::Propose(vec![command(10)]));
    assert!(!gives_way_within(&mut node, 3_000));
    assert!(!alarm(&node, "state machine hangs"));
    assert_eq!(node.replica.core().role(), RoleKind::Leader);
    node.handle(Event::ApplyPaused(false));
    gives_way_within(&mut node, 1_200);
    assert!(alarm(&node, "state machine hangs"));
}

/// FINDINGS S2: callers would wait as long as the pause lasts.
#[test]
fn a_leader_hands_over_before_a_pause_that_may_be_long() {
    let hands_over = |mut node: Node| told_to_campaign(&node.handle(Event::ApplyPaused(true)));
    assert!(hands_over(leader_that_is_heard(ReplicaConfig::default())), "its length is unknown");
    assert!(!hands_over(leader_that_once_paused(100)), "the last one was short");
    assert!(hands_over(leader_that_once_paused(600)), "the last one was long");
}

/// A job of many entries is slow, but does not hang as long as its chunks are applied one after the
/// other.
#[test]
fn a_long_job_whose_chunks_come_back_is_no_hang() {
    let steps = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut node = Node::with(3, ReplicaConfig::default());
    node.replica = std::mem::replace(&mut node.replica, Node::new(3).replica)
        .with_machine_steps(steps.clone());
    node.lead();
    hear(&mut node);
    node.handle(Event::Propose(vec![command(10)]));
    gives_way_within(&mut node, 200);
    for _ in 0..4 {
        steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        gives_way_within(&mut node, 900);
        assert!(!alarm(&node, "state machine hangs"));
    }
    assert!(
        gives_way_within(&mut node, 2_200),
        "no chunk is applied, and the others have applied more"
    );
    assert!(alarm(&node, "state machine hangs"));
}

/// A full disk is not a disk that hangs, even while one group after the other fits.
#[test]
fn a_full_disk_is_not_taken_for_one_that_hangs() {
    let mut node = leader_that_is_heard(ReplicaConfig::default());
    let mut jobs = Jobs::default();
    for _ in 0..2 {
        node.replica.handle(node.time(), Event::Propose(vec![command(10)]), &mut jobs);
    }
    let first = jobs.persist.first().unwrap().id;
    node.replica.handle(
        node.time(),
        Event::LogDisk(LogDisk { full: true, free_bytes: Some(0) }),
        &mut jobs,
    );
    node.replica.handle(node.time(), Event::Persisted(first), &mut jobs);
    for _ in 0..20 {
        node.pass_ms(100);
        node.replica.handle(node.time(), Event::Deadline, &mut jobs);
        assert!(!alarm(&node, "disk hangs"));
    }
}

/// Callers of a node that no longer leads receive the leader's name at once, even while this node's
/// disk hangs.
#[test]
fn callers_of_a_node_that_does_not_lead_are_not_held_by_its_disk() {
    let mut config = ReplicaConfig::default();
    config.core.uncommitted_bytes_max = 1_000;
    let mut node = leader_that_is_heard(config);
    let mut jobs = Jobs::default();
    for _ in 0..3 {
        // The other nodes commit; this node's disk hangs.
        node.replica.handle(node.time(), Event::Propose(vec![command(900)]), &mut jobs);
        let stored = node.replica.core().log().last.index;
        for from in [2, 3] {
            let outcome = d_engine_core::AppendOutcome::Persisted(stored);
            let message = PeerMessage::AppendReply { term: Term::new(1), outcome };
            let from = d_engine_core::NodeId::new(from).unwrap();
            node.replica.handle(node.time(), Event::Peer { from, message }, &mut jobs);
        }
    }
    let ask = |node: &mut Node| {
        let answer = Arc::new(Mutex::new(None));
        let told = answer.clone();
        let responder = Box::new(move |result| *told.lock().unwrap() = Some(result));
        let mut jobs = Jobs::default();
        let proposal = Proposal::new(Bytes::from_static(b"x"), None, responder);
        node.replica.handle(node.time(), Event::Propose(vec![proposal]), &mut jobs);
        answer.lock().unwrap().take()
    };
    let answer = ask(&mut node);
    assert!(
        matches!(answer, Some(Err(ProposeError::Busy { what })) if what.contains("disk")),
        "{answer:?}"
    );
    let heartbeat = PeerMessage::Heartbeat {
        term: Term::new(2),
        commit: LogIndex::ZERO,
        round: 1,
        matched: LogIndex::ZERO,
    };
    let from = d_engine_core::NodeId::new(2).unwrap();
    node.replica.handle(node.time(), Event::Peer { from, message: heartbeat }, &mut jobs);
    let answer = ask(&mut node);
    assert!(matches!(answer, Some(Err(ProposeError::NotLeader { .. }))), "{answer:?}");
}
