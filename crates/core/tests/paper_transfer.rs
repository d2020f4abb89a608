//! Leadership transfer (Raft thesis, section 3.10), one test per sentence.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{Input, Message, Rejected, RoleKind};
use support::{Node, id, n, t};

fn hand_over(node: &mut Node, to: Option<u64>) -> Result<(), Rejected> {
    node.step(Input::TransferLeadership { to: to.map(n) })
}

fn told(node: &mut Node) -> Vec<u64> {
    let sent = node.take_sent().into_iter();
    sent.filter(|(_, message)| matches!(message, Message::TimeoutNow { .. }))
        .map(|(to, _)| to)
        .collect()
}

#[test]
fn thesis_3_10_the_target_is_told_only_once_its_log_matches() {
    let mut node = Node::settled(3, 0, &[]);
    node.propose(1).unwrap();
    node.store();
    node.take_sent();
    let last = node.core.log().last.index.get();
    hand_over(&mut node, Some(3)).unwrap();
    assert_eq!(told(&mut node), [] as [u64; 0]);
    node.stored_by(2, last).unwrap();
    assert_eq!(node.commit(), last, "everything is committed; only the target lacks it");
    assert_eq!(told(&mut node), [] as [u64; 0]);
    node.stored_by(3, last).unwrap();
    assert_eq!(told(&mut node), [3]);
    // Once is enough; the reply to a heartbeat does not cause it again.
    node.stored_by(3, last).unwrap();
    assert_eq!(told(&mut node), [] as [u64; 0]);
}

#[test]
fn thesis_3_10_the_leader_takes_no_commands_in_meanwhile() {
    let mut node = Node::settled(3, 0, &[]);
    hand_over(&mut node, Some(2)).unwrap();
    assert_eq!(node.propose(1), Err(Rejected::TransferInProgress));
    assert_eq!(hand_over(&mut node, Some(3)), Err(Rejected::TransferInProgress));
}

#[test]
fn thesis_3_10_after_an_election_timeout_the_transfer_is_given_up() {
    let mut node = Node::settled(3, 0, &[]);
    hand_over(&mut node, Some(2)).unwrap();
    for _ in 0..5 {
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        let round = node.last_round();
        node.answers(3, round, 1).unwrap();
    }
    node.propose(1).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// A leader of five whose entry 2 is committed: nodes 3 and 4 have it, node 2 does not.
fn with_two_ahead() -> Node {
    let mut node = Node::leader(5, 0, &[]);
    for from in [2, 3] {
        node.stored_by(from, 1).unwrap();
    }
    node.propose(1).unwrap();
    node.store();
    for from in [3, 4] {
        node.pass(1);
        node.stored_by(from, 2).unwrap();
    }
    node.take_sent();
    node
}

#[test]
fn thesis_3_10_without_a_name_the_furthest_voter_is_chosen() {
    let mut node = with_two_ahead();
    // The node that lags behind is heard last.
    node.pass(1);
    node.stored_by(2, 1).unwrap();
    node.take_sent();
    hand_over(&mut node, None).unwrap();
    assert_eq!(told(&mut node), [4], "of the most advanced, the one heard last");
}

#[test]
fn thesis_3_10_a_voter_that_is_silent_is_not_chosen() {
    let mut node = with_two_ahead();
    node.pass(201);
    node.stored_by(3, 2).unwrap();
    node.take_sent();
    hand_over(&mut node, None).unwrap();
    assert_eq!(told(&mut node), [3]);
}

/// The target's disk may be faster than the leader's: its election must not depose a leader whose
/// callers still wait for a commit.
#[test]
fn thesis_3_10_the_target_is_told_only_once_everything_is_committed() {
    let mut node = Node::settled(3, 0, &[]);
    node.propose(1).unwrap();
    hand_over(&mut node, Some(2)).unwrap();
    node.take_sent();
    node.stored_by(2, 2).unwrap();
    assert_eq!(told(&mut node), [] as [u64; 0], "the leader's own write is not persisted");
    node.store();
    assert_eq!((node.commit(), told(&mut node)), (2, vec![2]));
}

/// The message may be lost with a connection.
#[test]
fn thesis_3_10_the_target_is_told_again_when_its_connection_was_lost() {
    let mut node = Node::settled(3, 0, &[]);
    hand_over(&mut node, Some(2)).unwrap();
    assert_eq!(told(&mut node), [2]);
    node.step(Input::PeerLost(n(3))).unwrap();
    assert_eq!(told(&mut node), [] as [u64; 0]);
    node.step(Input::PeerLost(n(2))).unwrap();
    assert_eq!(told(&mut node), [2]);
}

#[test]
fn thesis_3_10_only_another_voter_can_be_the_target() {
    let mut node = Node::settled(3, 0, &[]);
    assert_eq!(hand_over(&mut node, Some(1)), Err(Rejected::NoTransferTarget));
    assert_eq!(hand_over(&mut node, Some(9)), Err(Rejected::NoTransferTarget));
    let mut alone = Node::leader(1, 0, &[]);
    assert_eq!(hand_over(&mut alone, None), Err(Rejected::NoTransferTarget));
    let mut follower = Node::new(3, 1, &[1]);
    assert_eq!(hand_over(&mut follower, None), Err(Rejected::NotLeader { leader: None }));
}

#[test]
fn thesis_3_10_the_target_campaigns_at_once_and_says_why() {
    let mut node = Node::new(3, 1, &[1]);
    node.append(2, 1, id(1, 1), &[], 1).unwrap();
    node.take_sent();
    node.receive(2, Message::TimeoutNow { term: t(1) }).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Candidate, 2));
    // Like every vote request it waits until the candidate's own vote is persisted.
    assert_eq!(node.take_sent(), []);
    node.store();
    let request = Message::RequestVote { term: t(2), last: id(1, 1), transfer: true };
    assert_eq!(node.take_sent(), [(2, request.clone()), (3, request)]);
}

#[test]
fn thesis_3_10_only_the_leader_of_the_term_is_obeyed() {
    let mut node = Node::new(3, 2, &[1]);
    node.append(2, 2, id(1, 1), &[], 1).unwrap();
    node.receive(3, Message::TimeoutNow { term: t(2) }).unwrap();
    assert_eq!(node.role(), RoleKind::Follower);
    node.receive(2, Message::TimeoutNow { term: t(1) }).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Follower, 2));
}

#[test]
fn thesis_4_2_3_an_unmarked_request_does_not_profit_from_a_transfer() {
    let mut node = Node::new(3, 1, &[1]);
    node.append(2, 1, id(1, 1), &[], 1).unwrap();
    node.receive(3, Message::RequestVote { term: t(2), last: id(1, 1), transfer: false }).unwrap();
    assert_eq!(node.term(), 1);
    node.receive(3, Message::RequestVote { term: t(2), last: id(1, 1), transfer: true }).unwrap();
    assert_eq!((node.term(), node.vote()), (2, Some(3)));
}
