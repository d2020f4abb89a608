//! Reads by leader lease, and reads at a follower (Raft thesis, sections 6.4 and 6.4.1), one test
//! per sentence. Unless stated otherwise: heartbeats every 100 ms, a shortest election timeout of
//! 500 ms and a clock drift of 10 percent, so that a lease lasts 409 ms from the sending of its
//! round.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use d_engine_core::{CoreConfig, Input, Message, Rejected};
use support::{Node, Setup, i, n, t};

/// A leader of three to whose round, sent just now, a quorum has replied.
fn with_lease(config: CoreConfig) -> Node {
    let mut node = Node::leader_of(Setup { config, ..Setup::of(3, 1, &[1]) });
    node.settle();
    beat(&mut node);
    let round = node.last_round();
    node.answers(2, round, 2).unwrap();
    node
}

fn beat(node: &mut Node) {
    node.pass(100);
    node.step(Input::Deadline).unwrap();
}

fn confirmed_at_once(node: &mut Node) -> bool {
    let before = node.confirmed.len();
    node.lease_read(99).unwrap();
    node.confirmed.len() > before
}

#[test]
fn thesis_6_4_1_a_lease_confirms_a_read_without_a_message() {
    let mut node = with_lease(CoreConfig::default());
    node.take_sent();
    node.lease_read(7).unwrap();
    assert_eq!(node.confirmed, [(7, 2)]);
    assert_eq!(node.take_sent(), []);
}

#[test]
fn thesis_6_4_1_a_read_that_does_not_ask_for_it_gets_a_round() {
    let mut node = with_lease(CoreConfig::default());
    node.read(7).unwrap();
    assert_eq!(node.confirmed, []);
}

/// The lease counts from the sending of the round, not from the replies.
#[test]
fn thesis_6_4_1_the_lease_counts_from_the_sending_of_its_round() {
    let mut node = Node::settled(3, 1, &[1]);
    beat(&mut node);
    let round = node.last_round();
    node.pass(90);
    node.answers(2, round, 2).unwrap();
    node.pass(318);
    assert!(confirmed_at_once(&mut node), "408 ms after the round was sent");
    node.pass(2);
    assert!(!confirmed_at_once(&mut node), "410 ms after it");
}

/// The reply to an earlier round renews the lease from that round only.
#[test]
fn thesis_6_4_1_an_answer_to_an_earlier_round_counts_from_that_round() {
    let mut node = Node::settled(3, 1, &[1]);
    beat(&mut node);
    let round = node.last_round();
    beat(&mut node);
    beat(&mut node);
    node.answers(2, round, 2).unwrap();
    node.pass(208);
    assert!(confirmed_at_once(&mut node), "408 ms after the first round");
    node.pass(2);
    assert!(!confirmed_at_once(&mut node));
}

/// One of five is not a quorum, however often it replies.
#[test]
fn thesis_6_4_1_only_a_quorum_gives_a_lease() {
    let mut node = Node::settled(5, 1, &[1]);
    beat(&mut node);
    let round = node.last_round();
    node.answers(2, round, 2).unwrap();
    node.answers(2, round, 2).unwrap();
    assert_eq!(node.core.lease_until(), None);
    node.answers(3, round, 2).unwrap();
    assert_eq!(node.core.lease_until().map(|until| until.since(node.now).as_millis()), Some(409));
}

/// Replies to appends do not renew the lease: they show when they arrived, not which message they
/// reply to.
#[test]
fn thesis_6_4_1_acks_do_not_renew_the_lease() {
    let mut node = with_lease(CoreConfig::default());
    let until = node.core.lease_until();
    node.pass(300);
    node.propose(1).unwrap();
    node.store();
    node.stored_by(2, 3).unwrap();
    node.stored_by(3, 3).unwrap();
    assert_eq!(node.core.lease_until(), until);
}

/// Before an entry of its term is committed the leader does not know the commit index, with or
/// without a lease.
#[test]
fn thesis_6_4_1_no_lease_before_the_terms_first_commit() {
    let mut node = Node::leader(3, 1, &[1]);
    beat(&mut node);
    let round = node.last_round();
    node.answers(3, round, 0).unwrap();
    assert_eq!(node.core.lease_until(), None);
    assert!(!confirmed_at_once(&mut node));
    node.stored_by(2, 2).unwrap();
    assert!(node.core.lease_until().is_some());
}

/// A leader that has told another node to campaign has no lease any more in its term: vote
/// stickiness does not apply to that node's requests.
#[test]
fn thesis_6_4_1_a_transfer_ends_the_lease_for_the_term() {
    let mut node = with_lease(CoreConfig::default());
    node.take_sent();
    node.stored_by(2, 2).unwrap();
    node.step(Input::TransferLeadership { to: Some(n(2)) }).unwrap();
    assert!(node.take_sent().contains(&(2, Message::TimeoutNow { term: node.core.term() })));
    assert_eq!(node.core.lease_until(), None);
    // The transfer ends after an election timeout, but the target may still campaign at any time.
    for _ in 0..7 {
        beat(&mut node);
        let round = node.last_round();
        node.answers(3, round, 2).unwrap();
    }
    node.propose(1).unwrap();
    assert_eq!(node.core.lease_until(), None);
    assert!(!confirmed_at_once(&mut node));
}

/// A transfer whose target was not asked to campaign yet leaves vote stickiness in force.
#[test]
fn thesis_6_4_1_the_lease_holds_until_the_target_is_told() {
    let mut node = with_lease(CoreConfig::default());
    node.propose(1).unwrap();
    node.step(Input::TransferLeadership { to: Some(n(3)) }).unwrap();
    assert!(node.core.lease_until().is_some());
    node.store();
    node.stored_by(3, 3).unwrap();
    assert_eq!(node.core.lease_until(), None);
}

/// Fast clocks on other nodes and a slow one here: the bound on drift covers both.
#[test]
fn thesis_6_4_1_the_lease_is_shorter_than_the_loyalty_by_the_drift() {
    let lasts = |percent| CoreConfig { clock_drift_percent_max: percent, ..CoreConfig::default() };
    assert_eq!(lasts(0).lease_duration(Duration::from_millis(500)), Duration::from_millis(500));
    assert_eq!(lasts(10).lease_duration(Duration::from_millis(500)).as_millis(), 409);
    assert_eq!(lasts(50).lease_duration(Duration::from_millis(500)).as_millis(), 166);
    assert_eq!(lasts(100).lease_duration(Duration::from_millis(500)), Duration::ZERO);
    assert_eq!(lasts(u32::MAX).lease_duration(Duration::from_millis(500)), Duration::ZERO);
    assert!(!confirmed_at_once(&mut with_lease(lasts(100))), "turned off");
}

/// A deposed leader has no lease.
#[test]
fn thesis_6_4_1_the_lease_ends_with_leadership() {
    let mut node = with_lease(CoreConfig::default());
    node.deposed_by(2, 9);
    assert_eq!(node.core.lease_until(), None);
    assert_eq!(node.lease_read(1), Err(Rejected::NotLeader { leader: None }));
}

/// The only voter is its own quorum.
#[test]
fn thesis_6_4_1_a_single_node_has_a_lease_after_its_first_heartbeat() {
    let mut node = Node::new(1, 1, &[1]);
    node.pre_campaign();
    node.store();
    node.store();
    beat(&mut node);
    assert!(confirmed_at_once(&mut node));
}

/// A follower of node 3 in term 4 that has requested the read index for read 1; returns the
/// request's token.
fn asking() -> (Node, u64) {
    let mut node = Node::new(3, 4, &[4]);
    node.heartbeat(3, 4, 0).unwrap();
    node.take_sent();
    node.read(1).unwrap();
    let token = asked(&mut node).unwrap();
    (node, token)
}

fn asked(node: &mut Node) -> Option<u64> {
    node.take_sent().into_iter().find_map(|(to, message)| match message {
        Message::ReadRequest { token, .. } if to == 3 => Some(token),
        _ => None,
    })
}

fn reply(term: u64, token: u64, index: Option<u64>) -> Message {
    Message::ReadReply { term: t(term), token, index: index.map(i) }
}

#[test]
fn thesis_6_4_a_follower_asks_its_leader_for_the_read_index() {
    let (mut node, token) = asking();
    assert_eq!(node.confirmed, []);
    node.receive(3, reply(4, token, Some(9))).unwrap();
    assert_eq!(node.confirmed, [(1, 9)]);
    node.receive(3, reply(4, token, Some(9))).unwrap();
    assert_eq!(node.confirmed, [(1, 9)], "once");
}

/// Reads that arrive while a request is in flight are not confirmed by its reply, which may have
/// been confirmed before they arrived.
#[test]
fn thesis_6_4_a_later_read_at_a_follower_goes_with_the_next_question() {
    let (mut node, first) = asking();
    node.read(2).unwrap();
    node.read(3).unwrap();
    assert_eq!(asked(&mut node), None);
    node.receive(3, reply(4, first, Some(5))).unwrap();
    assert_eq!(node.confirmed, [(1, 5)]);
    let second = asked(&mut node).unwrap();
    assert_ne!(first, second);
    node.receive(3, reply(4, first, Some(5))).unwrap();
    assert_eq!(node.confirmed, [(1, 5)], "the reply to the first request, again");
    node.receive(3, reply(4, second, Some(6))).unwrap();
    assert_eq!(node.confirmed, [(1, 5), (2, 6), (3, 6)]);
}

/// FAULTS.md row 22: requests from before a restart have other tokens.
#[test]
fn row_22_questions_of_two_starts_have_different_names() {
    let token_of = |seed| {
        let mut node = Node::start(Setup { seed, ..Setup::of(3, 4, &[4]) });
        node.heartbeat(3, 4, 0).unwrap();
        node.read(1).unwrap();
        asked(&mut node).unwrap()
    };
    assert_ne!(token_of(1), token_of(2));
}

#[test]
fn thesis_6_4_the_leader_answers_a_follower_after_a_round_sent_since() {
    let mut node = Node::settled(3, 1, &[1]);
    beat(&mut node);
    let before = node.last_round();
    node.receive(2, Message::ReadRequest { term: node.core.term(), token: 77 }).unwrap();
    node.answers(3, before, 2).unwrap();
    let replies = |node: &Node| {
        let is_reply =
            |(_, message): &&(u64, Message)| matches!(message, Message::ReadReply { .. });
        node.sent.iter().filter(is_reply).cloned().collect::<Vec<_>>()
    };
    assert_eq!(replies(&node), []);
    let round = node.last_round();
    assert!(round > before);
    node.answers(3, round, 2).unwrap();
    assert_eq!(replies(&node), [(2, reply(2, 77, Some(2)))]);
}

/// A node that does not lead, or no longer leads the requested term, refuses at once.
#[test]
fn thesis_6_4_a_question_that_cannot_be_answered_is_refused() {
    let mut node = Node::new(3, 4, &[4]);
    node.receive(2, Message::ReadRequest { term: t(4), token: 1 }).unwrap();
    node.receive(2, Message::ReadRequest { term: t(3), token: 2 }).unwrap();
    assert_eq!(node.take_sent(), [(2, reply(4, 1, None)), (2, reply(4, 2, None))]);
    let (mut node, token) = asking();
    node.receive(3, reply(4, token, None)).unwrap();
    assert_eq!(node.lost_reads, [1]);
}

/// A leader that is gone does not reply.
#[test]
fn thesis_6_4_a_follower_gives_up_when_its_leader_changes_or_is_silent() {
    let (mut node, token) = asking();
    node.read(2).unwrap();
    node.heartbeat(2, 5, 0).unwrap();
    assert_eq!(node.lost_reads, [1, 2]);
    node.receive(3, reply(4, token, Some(9))).unwrap();
    assert_eq!(node.confirmed, []);

    let (mut node, _) = asking();
    node.pass(100);
    node.heartbeat(3, 4, 0).unwrap();
    assert_eq!(
        node.deadline_in_ms(),
        Some(400),
        "the deadline of the request, not of the election"
    );
    for _ in 0..4 {
        node.pass(100);
        node.heartbeat(3, 4, 0).unwrap();
        node.step(Input::Deadline).unwrap();
    }
    assert_eq!(node.lost_reads, [1]);
}

/// A refusal from a later term leaves this node without a leader to ask: reads that wait for the
/// next request are lost with it. Found by the simulator.
#[test]
fn thesis_6_4_a_refusal_from_a_later_term_ends_the_waiting_reads_too() {
    let (mut node, token) = asking();
    node.read(2).unwrap();
    node.receive(3, reply(5, token, None)).unwrap();
    assert_eq!(node.lost_reads, [1, 2]);
}

/// A lost connection may have lost the request; it is sent again with the same token.
#[test]
fn thesis_6_4_a_lost_question_is_asked_again() {
    let (mut node, token) = asking();
    node.step(Input::PeerLost(n(2))).unwrap();
    assert_eq!(asked(&mut node), None);
    node.step(Input::PeerLost(n(3))).unwrap();
    assert_eq!(asked(&mut node), Some(token));
}

/// The number of waiting reads is limited at a follower too.
#[test]
fn thesis_6_4_waiting_reads_are_bounded_at_a_follower() {
    let config = CoreConfig { waiting_reads_max: 2, ..CoreConfig::default() };
    let mut node = Node::start(Setup { config, ..Setup::of(3, 4, &[4]) });
    node.heartbeat(3, 4, 0).unwrap();
    node.read(1).unwrap();
    node.read(2).unwrap();
    assert_eq!(node.read(3), Err(Rejected::TooManyReads));
}
