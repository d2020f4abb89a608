//! Rules that keep a working leader and depose an isolated one: pre-vote (Raft thesis, section
//! 9.6), vote stickiness (4.2.3) and check-quorum (6.2).
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{Input, Message, RoleKind};
use support::{Node, Setup, cluster, id, t};

fn pre_vote_reply(term: u64, granted: bool) -> Message {
    Message::PreVoteReply { term: t(term), granted, wall_ms: 0 }
}

/// A candidate first requests pre-votes, and raises its term only when a majority grants them.
#[test]
fn thesis_9_6_asking_for_pre_votes_changes_no_term_and_writes_nothing() {
    let mut node = Node::new(3, 4, &[1, 4]);
    node.pre_campaign();
    let question = Message::PreVote { term: t(5), last: id(4, 2) };
    assert_eq!(node.take_sent(), [(2, question.clone()), (3, question)]);
    assert_eq!((node.role(), node.term()), (RoleKind::PreCandidate, 4));
    assert_eq!(node.orders, []);
}

/// Replying to a pre-vote changes nothing either: no term, no vote, no timer, and no promise.
#[test]
fn thesis_9_6_granting_a_pre_vote_changes_nothing_and_binds_to_nobody() {
    let mut node = Node::rested(3, 4, &[1, 4]);
    let before = node.core.next_deadline();
    node.ask_pre_vote(2, 5, id(4, 2)).unwrap();
    node.ask_pre_vote(3, 9, id(4, 2)).unwrap();
    assert_eq!(node.take_sent(), [(2, pre_vote_reply(5, true)), (3, pre_vote_reply(9, true))]);
    assert_eq!((node.term(), node.vote()), (4, None));
    assert_eq!((node.core.next_deadline(), node.orders.len()), (before, 0));
}

/// An attempt without replies is repeated after a new timeout, not at once.
#[test]
fn thesis_9_6_an_attempt_without_answers_waits_for_a_new_timeout() {
    let mut node = Node::new(3, 4, &[4]);
    for _ in 0..3 {
        node.pre_campaign();
        assert_eq!((node.role(), node.term()), (RoleKind::PreCandidate, 4));
        assert!(node.deadline_in_ms().unwrap() >= 500);
    }
}

/// The term is raised only once a majority would vote for this node.
#[test]
fn thesis_9_6_a_majority_of_pre_votes_starts_the_campaign() {
    let mut node = Node::new(5, 4, &[4]);
    node.pre_campaign();
    node.receive(2, pre_vote_reply(5, true)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::PreCandidate, 4));
    node.receive(3, pre_vote_reply(5, true)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Candidate, 5));
}

/// A majority of refusals ends the attempt.
#[test]
fn thesis_9_6_a_majority_of_refusals_ends_the_attempt() {
    let mut node = Node::new(3, 4, &[4]);
    node.pre_campaign();
    node.receive(2, pre_vote_reply(4, false)).unwrap();
    assert_eq!(node.role(), RoleKind::PreCandidate);
    node.receive(3, pre_vote_reply(4, false)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Follower, 4));
}

/// A grant counts only for the term that was requested.
#[test]
fn thesis_9_6_a_grant_for_another_term_does_not_count() {
    let mut node = Node::new(3, 4, &[4]);
    node.pre_campaign();
    node.receive(2, pre_vote_reply(6, true)).unwrap();
    node.receive(3, pre_vote_reply(4, true)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::PreCandidate, 4));
}

/// A pre-vote is granted under the conditions of a vote: a later term and a log that is up to date.
#[test]
fn thesis_9_6_a_pre_vote_needs_a_later_term_and_an_up_to_date_log() {
    for (term, last, expected) in
        [(5, id(4, 2), true), (4, id(4, 2), false), (5, id(4, 1), false), (5, id(3, 9), false)]
    {
        let mut node = Node::rested(3, 4, &[1, 4]);
        node.ask_pre_vote(2, term, last).unwrap();
        let answer = pre_vote_reply(if expected { term } else { 4 }, expected);
        assert_eq!(node.take_sent(), [(2, answer)], "term {term}, last {last}");
    }
}

/// A node that was disconnected and requests a pre-vote receives the current term, adopts it and
/// can win its next attempt.
#[test]
fn thesis_9_6_a_refusal_with_a_later_term_brings_the_asker_up_to_date() {
    let mut node = Node::new(3, 4, &[4]);
    node.pre_campaign();
    node.receive(2, pre_vote_reply(7, false)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Follower, 7));
    node.campaign();
    assert_eq!((node.role(), node.term()), (RoleKind::Candidate, 8));
}

/// The vote stickiness of section 4.2.3 applies to pre-votes: a node that hears a leader grants
/// none.
#[test]
fn thesis_9_6_whoever_hears_a_leader_grants_no_pre_vote() {
    let mut node = Node::rested(3, 4, &[4]);
    node.heartbeat(2, 4, 0).unwrap();
    node.take_sent();
    node.pass(499);
    node.ask_pre_vote(3, 5, id(4, 9)).unwrap();
    assert_eq!(node.take_sent(), [(3, pre_vote_reply(4, false))]);
    node.pass(1);
    node.ask_pre_vote(3, 5, id(4, 9)).unwrap();
    assert_eq!(node.take_sent(), [(3, pre_vote_reply(5, true))]);
}

/// A server that receives a vote request within the minimum election timeout of hearing a leader
/// neither votes nor adopts the term: a node that cannot hear the leader must not depose it.
#[test]
fn thesis_4_2_3_a_loyal_follower_does_not_even_take_the_term_of_a_request() {
    let mut node = Node::rested(3, 4, &[4]);
    node.append(2, 4, id(4, 1), &[], 0).unwrap();
    node.take_sent();
    node.pass(499);
    node.ask_vote(3, 9, id(4, 9)).unwrap();
    assert_eq!((node.term(), node.vote(), node.take_sent()), (4, None, vec![]));
    node.pass(1);
    node.ask_vote(3, 9, id(4, 9)).unwrap();
    assert_eq!((node.term(), node.vote()), (9, Some(3)));
}

/// The same within the term: an unused vote is not granted while a leader is heard.
#[test]
fn thesis_4_2_3_a_loyal_follower_keeps_its_free_vote() {
    let mut node = Node::rested(3, 4, &[4]);
    node.heartbeat(2, 4, 0).unwrap();
    node.ask_vote(3, 4, id(4, 9)).unwrap();
    assert_eq!(node.vote(), None);
}

/// A node that has just started may have promised its vote stickiness to a leader before it
/// stopped.
#[test]
fn thesis_4_2_3_a_restarted_node_is_loyal_to_the_leader_it_may_have_had() {
    let mut node = Node::new(3, 4, &[4]);
    node.pass(499);
    node.ask_vote(2, 5, id(4, 9)).unwrap();
    node.ask_pre_vote(2, 5, id(4, 9)).unwrap();
    assert_eq!((node.term(), node.take_sent()), (4, vec![(2, pre_vote_reply(4, false))]));
    node.pass(1);
    node.ask_vote(2, 5, id(4, 9)).unwrap();
    assert_eq!((node.term(), node.vote()), (5, Some(2)));
}

/// A node that has never seen a term has promised nothing: the first election need not wait for it.
#[test]
fn thesis_4_2_3_a_node_without_history_votes_at_once() {
    let mut node = Node::new(3, 0, &[]);
    node.ask_vote(2, 1, id(0, 0)).unwrap();
    assert_eq!(node.vote(), Some(2));
}

/// A leader that has not lost its quorum applies vote stickiness to itself.
#[test]
fn thesis_4_2_3_a_leader_is_not_deposed_by_a_request_for_votes() {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(5_000);
    node.ask_vote(3, 9, id(8, 99)).unwrap();
    node.ask_pre_vote(3, 9, id(8, 99)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Leader, 2));
    assert_eq!(node.take_sent(), [(3, pre_vote_reply(2, false))]);
}

/// A reply with a later term deposes it: another node was elected, or is stuck in that term.
#[test]
fn thesis_4_2_3_a_leader_yields_to_an_answer_with_a_later_term() {
    let mut node = Node::settled(3, 1, &[1]);
    node.receive(3, Message::VoteReply { term: t(9), granted: false, wall_ms: 0 }).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Follower, 9));
}

/// A request that is marked as a transfer was caused by the leader itself.
#[test]
fn thesis_4_2_3_a_transfer_overrules_loyalty() {
    let mut node = Node::rested(3, 4, &[4]);
    node.heartbeat(2, 4, 0).unwrap();
    node.receive(3, Message::RequestVote { term: t(5), last: id(4, 1), transfer: true }).unwrap();
    assert_eq!((node.term(), node.vote()), (5, Some(3)));
}

/// A leader steps down if an election timeout passes without a round of messages to a majority.
#[test]
fn thesis_6_2_a_leader_that_hears_no_quorum_steps_down() {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(999);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
    node.pass(1);
    node.step(Input::Deadline).unwrap();
    assert_eq!((node.role(), node.term(), node.leader_known()), (RoleKind::Follower, 2, None));
    assert!(node.lost_leadership);
    assert!(node.deadline_in_ms().unwrap() >= 500, "it campaigns only after a new timeout");
}

/// The deadline is reported to the driver, so that an idle leader notices in time.
#[test]
fn thesis_6_2_the_loss_of_the_quorum_is_a_deadline() {
    let mut node = Node::settled(3, 1, &[1]);
    // Between two heartbeats, so that the deadline itself detects the loss and not a heartbeat.
    node.pass(50);
    node.stored_by(2, 2).unwrap();
    let heard = node.now;
    let mut deadlines = 0;
    while node.role() == RoleKind::Leader && deadlines < 100 {
        let at = node.core.next_deadline().unwrap();
        assert!(at > node.now, "a deadline that does not move would spin the driver");
        node.now = at;
        node.step(Input::Deadline).unwrap();
        deadlines += 1;
    }
    assert_eq!(node.now.since(heard).as_millis(), 1_000);
}

/// One follower of two is a quorum together with the leader; so are two of four, but not one of
/// four.
#[test]
fn thesis_6_2_the_answers_of_a_quorum_keep_the_leader() {
    for (voters, heard, stays) in [(3, 2..=2, true), (5, 2..=3, true), (5, 2..=2, false)] {
        let mut node = Node::settled(voters, 1, &[1]);
        for round in 1..=30 {
            node.pass(100);
            node.step(Input::Deadline).unwrap();
            for voter in heard.clone() {
                node.answers(voter, round, 2).ok();
            }
        }
        assert_eq!(node.role() == RoleKind::Leader, stays, "{voters} voters, {heard:?} heard");
    }
}

/// Acks of entries count as contact, as replies to heartbeats do.
#[test]
fn thesis_6_2_acks_of_entries_count_as_contact() {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(900);
    node.stored_by(3, 2).unwrap();
    node.pass(900);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// Learners do not make a quorum.
#[test]
fn thesis_6_2_learners_do_not_keep_a_leader() {
    let mut node = Node::leader_of(Setup { configuration: cluster(3, 2), ..Setup::of(3, 1, &[1]) });
    node.pass(900);
    for learner in [4, 5] {
        node.stored_by(learner, 2).unwrap();
    }
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::Follower);
}

/// The only voter is always in touch with a quorum.
#[test]
fn thesis_6_2_a_single_voter_stays_leader_for_ever() {
    let mut node = Node::leader(1, 1, &[1]);
    node.pass(1_000_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// An operator has continued the cluster as another one: the old majority does not elect a leader.
#[test]
fn a_superseded_node_without_a_leader_neither_votes_nor_campaigns() {
    let mut node = Node::rested(3, 4, &[1, 4]);
    node.step(Input::Superseded).unwrap();
    assert!(node.core.status().abstains);
    node.ask_pre_vote(2, 5, id(4, 2)).unwrap();
    node.ask_vote(2, 5, id(4, 2)).unwrap();
    node.store();
    let replies: Vec<bool> = node
        .take_sent()
        .into_iter()
        .map(|(_, message)| match message {
            Message::PreVoteReply { granted, .. } | Message::VoteReply { granted, .. } => granted,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((replies, node.vote()), (vec![false, false], None));
    for _ in 0..3 {
        node.pass(2_000);
        node.step(Input::Deadline).unwrap();
        assert_eq!((node.role(), node.take_sent()), (RoleKind::Follower, vec![]));
    }
    node.receive(3, Message::TimeoutNow { term: t(5) }).unwrap();
    assert_eq!((node.role(), node.take_sent()), (RoleKind::Follower, vec![]));
}

/// A campaign that has begun ends, whatever votes arrive for it.
#[test]
fn a_superseded_candidate_does_not_win() {
    let mut node = Node::candidate(3, 4, &[1, 4]);
    node.store();
    node.step(Input::Superseded).unwrap();
    node.vote_from(2).ok();
    node.vote_from(3).ok();
    assert_eq!(node.role(), RoleKind::Follower);
}

/// With a leader a majority is at work: then the new cluster may have been made by mistake.
#[test]
fn a_superseded_node_with_a_leader_goes_on() {
    let mut node = Node::rested(3, 4, &[1, 4]);
    node.heartbeat(2, 5, 2).unwrap();
    node.step(Input::Superseded).unwrap();
    assert!(!node.core.status().abstains);
    let mut node = Node::rested(3, 4, &[1, 4]);
    node.step(Input::Superseded).unwrap();
    node.heartbeat(2, 5, 2).unwrap();
    assert!(!node.core.status().abstains, "it follows");
    node.pass(5_000);
    node.ask_vote(3, 6, id(4, 2)).unwrap();
    assert_eq!(node.vote(), Some(3));
    let mut leader = Node::leader(3, 4, &[1, 4]);
    leader.step(Input::Superseded).unwrap();
    assert_eq!((leader.role(), leader.core.status().abstains), (RoleKind::Leader, false));
}
