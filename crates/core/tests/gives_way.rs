//! A leader that cannot serve transfers its leadership, and a node that has lost its log reports
//! it.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use d_engine_core::{CoreConfig, HardState, Input, Message, Rejected, RoleKind};
use support::{Node, Setup, i, id, n, t};

fn told_to_campaign(node: &mut Node) -> Vec<u64> {
    let sent = node.take_sent().into_iter();
    sent.filter(|(_, message)| matches!(message, Message::TimeoutNow { .. }))
        .map(|(to, _)| to)
        .collect()
}

/// FINDINGS S2: heartbeats need no disk, and the other nodes commit without this leader's disk.
#[test]
fn a_leader_whose_disk_hangs_hands_leadership_over() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    for follower in [2, 3] {
        node.stored_by(follower, 3).unwrap();
    }
    node.step(Input::DiskHangs(true)).unwrap();
    assert_eq!(
        told_to_campaign(&mut node).len(),
        1,
        "everything is committed without this node's disk"
    );
    assert_eq!(node.propose(1), Err(Rejected::TransferInProgress));
}

#[test]
fn if_nobody_takes_over_it_steps_down_and_does_not_campaign() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.step(Input::DiskHangs(true)).unwrap();
    for _ in 0..5 {
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        let round = node.last_round();
        node.answers(2, round, 2).unwrap();
        if node.role() != RoleKind::Leader {
            break;
        }
    }
    assert_eq!((node.role(), node.lost_leadership), (RoleKind::Follower, true));
    node.pass(5_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!(
        node.role(),
        RoleKind::Follower,
        "its disk could persist neither a vote nor an entry"
    );
    node.receive(2, Message::TimeoutNow { term: node.core.term() }).unwrap();
    assert_eq!(node.role(), RoleKind::Follower);
    node.step(Input::DiskHangs(false)).unwrap();
    node.pass(5_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::PreCandidate);
}

#[test]
fn a_disk_that_answers_in_time_ends_nothing() {
    let mut node = Node::settled(3, 1, &[1]);
    node.step(Input::DiskHangs(true)).unwrap();
    node.step(Input::DiskHangs(false)).unwrap();
    for _ in 0..6 {
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        let round = node.last_round();
        node.answers(2, round, 2).unwrap();
    }
    assert_eq!(node.role(), RoleKind::Leader);
    node.propose(1).unwrap();
}

#[test]
fn the_only_voter_stays() {
    let mut node = Node::leader(1, 0, &[]);
    node.step(Input::DiskHangs(true)).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// A slow state machine is a reason to transfer leadership only if another voter has applied more.
#[test]
fn only_a_voter_that_has_applied_more_is_better() {
    let mut node = Node::settled(3, 1, &[1]);
    assert_eq!(node.core.voter_ahead_in_apply(node.now), None);
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let round = node.last_round();
    node.answers_applied(2, round, 2, 1);
    node.answers_applied(3, round, 2, 2);
    assert_eq!(node.core.voter_ahead_in_apply(node.now), Some(n(3)));
    node.pass(301);
    assert_eq!(node.core.voter_ahead_in_apply(node.now), None, "it is silent");
    let status = node.core.status();
    assert_eq!(status.followers.iter().map(|one| one.applied.get()).collect::<Vec<_>>(), [1, 2]);
}

/// FINDINGS D1: a leader without disk space transfers leadership to a voter that has some.
#[test]
fn a_voter_without_room_is_not_chosen() {
    let mut node = Node::settled(3, 1, &[1]);
    assert_eq!(node.core.voter_with_space(node.now), None, "no voter has reported yet");
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let round = node.last_round();
    for (from, short_of_space) in [(2, true), (3, false)] {
        let report = d_engine_core::FollowerReport { short_of_space, ..support::reports(0) };
        let term = node.core.term();
        let reply =
            Message::HeartbeatReply { term, round, received: i(2), persisted: i(2), report };
        node.receive(from, reply).unwrap();
    }
    assert_eq!(node.core.voter_with_space(node.now), Some(n(3)));
    node.step(Input::TransferLeadership { to: None }).unwrap();
    assert_eq!(told_to_campaign(&mut node), [3]);
}

#[test]
fn a_follower_tells_that_it_is_short_of_room() {
    let mut node = Node::new(3, 4, &[4]);
    node.step(Input::ShortOfSpace(true)).unwrap();
    node.heartbeat(2, 4, 0).unwrap();
    let said = node.take_sent();
    let is_said = |message: &Message| matches!(message, Message::HeartbeatReply { report, .. } if report.short_of_space);
    assert!(said.iter().any(|(_, message)| is_said(message)), "{said:?}");
}

/// FINDINGS U2: a directory was rolled back. Everything that a node acknowledged in a term was on
/// its disk.
#[test]
fn a_follower_that_lost_what_it_acknowledged_says_so_and_stops() {
    let mut node = Node::new(3, 4, &[4, 4]);
    let heartbeat =
        |matched| Message::Heartbeat { term: t(4), commit: i(1), round: 1, matched: i(matched) };
    node.receive(2, heartbeat(2)).unwrap();
    assert_eq!(node.log_lost, None);
    node.take_sent();
    node.receive(2, heartbeat(3)).unwrap();
    assert_eq!(node.log_lost, Some(3));
    let said = node.take_sent();
    let is_said = |message: &Message| matches!(message, Message::HeartbeatReply { report, .. } if report.log_lost);
    assert!(said.iter().any(|(to, message)| *to == 2 && is_said(message)), "{said:?}");
}

#[test]
fn a_leader_shows_which_follower_has_lost_its_log() {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let round = node.last_round();
    let report = d_engine_core::FollowerReport { log_lost: true, ..support::reports(0) };
    let term = node.core.term();
    let reply = Message::HeartbeatReply { term, round, received: i(0), persisted: i(0), report };
    node.receive(3, reply).unwrap();
    let lost: Vec<_> = node
        .core
        .status()
        .followers
        .iter()
        .filter(|one| one.log_lost)
        .map(|one| one.node)
        .collect();
    assert_eq!(lost, [n(3)]);
}

/// FINDINGS T2: the lease uses the shortest vote stickiness among the nodes that replied to its
/// round, whatever this node's own configuration is.
#[test]
fn thesis_6_4_1_the_lease_uses_the_shortest_stickiness_that_was_announced() {
    let config = CoreConfig {
        election_timeout_min: Duration::from_millis(1_000),
        election_timeout_max: Duration::from_millis(2_000),
        clock_drift_percent_max: 0,
        ..CoreConfig::default()
    };
    let mut node = Node::leader_of(Setup { config, ..Setup::of(3, 1, &[1]) });
    node.settle();
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let (round, sent) = (node.last_round(), node.now);
    node.answers(2, round, 2).unwrap();
    assert_eq!(node.core.lease_until(), Some(sent.plus(Duration::from_millis(500))));
}

/// A node persists a longer stickiness before it announces it.
#[test]
fn thesis_6_4_1_a_stickiness_is_stored_before_it_is_announced() {
    let mut setup = Setup::of(3, 4, &[4]);
    setup.config.election_timeout_min = Duration::from_millis(800);
    setup.hard_state.stickiness = Duration::from_millis(500);
    let mut node = Node::start_as_stored(setup);
    node.heartbeat(2, 4, 0).unwrap();
    assert_eq!(node.take_sent(), []);
    let persisted =
        node.orders.last().and_then(|order| order.hard_state).map(|state| state.stickiness);
    assert_eq!(persisted, Some(Duration::from_millis(800)));
    node.store();
    assert_eq!(node.take_sent().len(), 1);
    node.heartbeat(2, 4, 0).unwrap();
    assert_eq!((node.take_sent().len(), node.orders.len()), (1, 1), "persisted once");
}

/// A restart with a shorter election timeout keeps the promised stickiness while a leader may rely
/// on it.
#[test]
fn thesis_6_4_1_a_restart_keeps_the_longest_promise() {
    let mut setup = Setup::of(3, 4, &[4]);
    setup.hard_state = HardState { stickiness: Duration::from_millis(3_000), ..setup.hard_state };
    let mut node = Node::start_as_stored(setup);
    node.heartbeat(2, 4, 0).unwrap();
    node.pass(2_999);
    node.ask_vote(3, 5, id(4, 9)).unwrap();
    assert_eq!(node.term(), 4, "sticky");
    node.pass(1);
    node.ask_vote(3, 5, id(4, 9)).unwrap();
    assert_eq!((node.term(), node.vote()), (5, Some(3)));
    let persisted =
        node.orders.last().and_then(|order| order.hard_state).map(|state| state.stickiness);
    assert_eq!(persisted, Some(Duration::from_millis(500)), "the old promise has ended");
}

/// The announced stickiness also delays the node's own campaign, even if its election timeout is
/// shorter now.
#[test]
fn thesis_6_4_1_a_restart_does_not_campaign_within_its_promise() {
    let mut setup = Setup::of(3, 4, &[4]);
    setup.hard_state = HardState { stickiness: Duration::from_millis(3_000), ..setup.hard_state };
    let mut node = Node::start_as_stored(setup);
    for heard in [false, true] {
        if heard {
            node.heartbeat(2, 4, 0).unwrap();
        }
        node.pass(1_450);
        node.step(Input::Deadline).unwrap();
        let asked =
            node.take_sent().into_iter().any(|(_, it)| matches!(it, Message::PreVote { .. }));
        assert!(!asked, "campaigns within its promise");
    }
    node.pass(1_100);
    node.step(Input::Deadline).unwrap();
    assert!(node.take_sent().into_iter().any(|(_, it)| matches!(it, Message::PreVote { .. })));
}

/// FINDINGS T4: a failed transfer leaves the lease revoked, and the status shows it.
#[test]
fn a_lease_that_a_transfer_has_revoked_shows_in_the_status() {
    let mut node = Node::settled(3, 1, &[1]);
    assert!(!node.core.status().lease_revoked);
    node.step(Input::TransferLeadership { to: Some(n(2)) }).unwrap();
    assert!(node.core.status().lease_revoked);
}
