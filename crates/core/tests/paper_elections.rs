//! Terms, votes and elections, sentence by sentence: Raft paper, figure 2 and sections 5.1, 5.2 and
//! 5.4.1. Pre-vote, vote stickiness and check-quorum are in `paper_stability.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{AppendOutcome, FollowerReport, LogId, Message, Rejected, RoleKind};
use support::{Node, Setup, cluster, i, id, t};

fn vote_reply(term: u64, granted: bool) -> Message {
    Message::VoteReply { term: t(term), granted, wall_ms: 0 }
}

/// A node that sees a later term than its own adopts it and becomes a follower; it has not voted in
/// that term.
#[test]
fn s5_1_a_later_term_makes_a_follower_of_every_role() {
    let mut pre_candidate = Node::new(3, 1, &[1]);
    pre_candidate.pre_campaign();
    for mut node in [
        Node::new(3, 1, &[1]),
        pre_candidate,
        Node::candidate(3, 1, &[1]),
        Node::leader(3, 1, &[1]),
    ] {
        node.deposed_by(2, 9);
        assert_eq!((node.role(), node.term(), node.vote()), (RoleKind::Follower, 9, None));
    }
}

/// A request with an earlier term is refused, and the reply carries the current term.
#[test]
fn s5_1_a_request_of_an_earlier_term_is_refused_with_the_current_one() {
    let mut node = Node::rested(3, 5, &[1, 1]);
    node.ask_vote(2, 4, id(4, 9)).unwrap();
    node.ask_pre_vote(2, 4, id(4, 9)).unwrap();
    node.append(2, 4, id(1, 2), &[4], 3).unwrap();
    node.receive(2, Message::Heartbeat { term: t(4), commit: i(2), round: 8, matched: i(0) })
        .unwrap();
    let refused = AppendOutcome::Conflict { refused: i(2), hint: LogId::ZERO };
    assert_eq!(
        node.take_sent(),
        [
            (2, vote_reply(5, false)),
            (2, Message::PreVoteReply { term: t(5), granted: false, wall_ms: 0 }),
            (2, Message::AppendReply { term: t(5), outcome: refused }),
            (
                2,
                Message::HeartbeatReply {
                    term: t(5),
                    round: 0,
                    received: i(0),
                    persisted: i(0),
                    report: FollowerReport::default()
                }
            ),
        ]
    );
    assert_eq!((node.log_terms(), node.commit(), node.leader_known()), (vec![1, 1], 0, None));
}

/// The reply to a request of an earlier term has no meaning in the current one.
#[test]
fn s5_1_an_answer_of_an_earlier_term_is_ignored() {
    let mut node = Node::candidate(3, 1, &[]);
    node.receive(2, vote_reply(1, true)).unwrap();
    assert_eq!(node.role(), RoleKind::Candidate);
}

/// Term and vote are on stable storage before the reply is sent (figure 2, persistent state).
#[test]
fn fig2_a_new_term_is_stored_before_anything_with_it_leaves() {
    let mut node = Node::new(3, 1, &[1]);
    node.heartbeat(2, 4, 0).unwrap();
    assert_eq!(node.take_sent(), []);
    assert_eq!(node.ordered_hard_state().unwrap().term, t(4));
    node.store();
    assert_eq!(node.take_sent().len(), 1);
    assert!(node.hard_state_saved);
}

/// When servers start, they are followers.
#[test]
fn s5_2_a_node_starts_as_a_follower_that_knows_no_leader() {
    let node = Node::with_vote(3, 4, Some(1), &[1, 4]);
    assert_eq!((node.role(), node.leader_known()), (RoleKind::Follower, None));
    assert_eq!((node.term(), node.vote()), (4, Some(1)));
}

/// A server remains a follower as long as it hears from a leader.
#[test]
fn s5_2_a_follower_that_hears_its_leader_does_not_campaign() {
    let mut node = Node::new(3, 1, &[1]);
    for _ in 0..20 {
        node.pass(450);
        node.step(d_engine_core::Input::Deadline).unwrap();
        node.heartbeat(2, 1, 0).unwrap();
        assert!(node.deadline_in_ms().unwrap() >= 500);
    }
    assert_eq!((node.role(), node.leader_known()), (RoleKind::Follower, Some(2)));
    node.append(2, 1, id(1, 1), &[1], 0).unwrap();
    assert!(node.deadline_in_ms().unwrap() >= 500);
}

/// A follower that hears no leader for an election timeout begins an election.
#[test]
fn s5_2_a_follower_that_hears_nobody_campaigns_at_its_deadline() {
    let mut node = Node::new(3, 1, &[1]);
    let wait = node.deadline_in_ms().unwrap();
    node.pass(wait);
    node.step(d_engine_core::Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::Follower, "a moment too early");
    node.pass(1);
    node.step(d_engine_core::Input::Deadline).unwrap();
    assert_eq!(node.role(), RoleKind::PreCandidate);
}

/// The timer restarts when a vote is granted, and only then: a candidate that cannot win must not
/// delay one that can.
#[test]
fn s5_2_only_a_granted_vote_puts_the_own_campaign_off() {
    let mut node = Node::rested(3, 1, &[1, 1]);
    let before = node.core.next_deadline();
    node.ask_vote(2, 2, id(1, 1)).unwrap();
    assert_eq!(node.core.next_deadline(), before);
    node.ask_vote(3, 2, id(1, 2)).unwrap();
    assert!(node.core.next_deadline() > before);
}

/// Election timeouts are random within a fixed interval, so that nodes rarely campaign together.
#[test]
fn s5_2_election_timeouts_are_spread_over_the_interval() {
    let timeout =
        |seed| Node::start(Setup { seed, ..Setup::of(3, 1, &[1]) }).deadline_in_ms().unwrap();
    let timeouts: Vec<u64> = (0..200).map(timeout).collect();
    assert!(timeouts.iter().all(|ms| (500..1000).contains(ms)), "{timeouts:?}");
    assert!(
        timeouts.iter().any(|ms| *ms < 550) && timeouts.iter().any(|ms| *ms > 950),
        "{timeouts:?}"
    );
}

/// Every campaign draws a new timeout; otherwise a split vote would repeat.
#[test]
fn s5_2_every_campaign_draws_a_new_timeout() {
    let mut node = Node::new(3, 1, &[1]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        node.campaign();
        seen.insert(node.core.next_deadline().unwrap().since(node.now));
    }
    assert_eq!(seen.len(), 5);
}

/// A candidate increments its term, votes for itself and requests votes from all other voters.
#[test]
fn s5_2_a_candidate_raises_its_term_votes_for_itself_and_asks_every_voter() {
    let mut node = Node::start(Setup { configuration: cluster(3, 1), ..Setup::of(3, 4, &[1, 4]) });
    node.campaign();
    let ordered = node.ordered_hard_state().unwrap();
    assert_eq!((ordered.term, ordered.vote), (t(5), Some(support::n(1))));
    node.take_sent();
    node.store();
    let request = Message::RequestVote { term: t(5), last: id(4, 2), transfer: false };
    assert_eq!(node.take_sent(), [(2, request.clone()), (3, request)]);
}

/// The candidate's own vote is persisted before any other node hears of the term.
#[test]
fn fig2_requests_for_votes_leave_only_once_the_own_vote_is_stored() {
    let mut node = Node::new(3, 4, &[1]);
    node.campaign();
    assert_eq!(node.role(), RoleKind::Candidate);
    assert!(!node.sent.iter().any(|(_, message)| matches!(message, Message::RequestVote { .. })));
}

/// The candidate counts its own vote only once it is persisted: after a crash before that, it could
/// vote for another candidate in the same term.
#[test]
fn fig2_the_own_vote_counts_only_once_it_is_stored() {
    let mut node = Node::new(3, 4, &[1]);
    node.campaign();
    node.vote_from(2).unwrap();
    assert_eq!(node.role(), RoleKind::Candidate);
    node.store();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// The completion of an earlier write does not mean that the vote is persisted.
#[test]
fn fig2_an_earlier_write_does_not_stand_for_the_own_vote() {
    let mut node = Node::new(3, 4, &[1]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.campaign();
    node.vote_from(2).unwrap();
    node.store_order(1).unwrap();
    assert_eq!(node.role(), RoleKind::Candidate);
    assert!(!node.sent.iter().any(|(_, message)| matches!(message, Message::RequestVote { .. })));
    node.store_order(2).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// A candidate wins with the votes of a majority of the full cluster, and not with fewer.
#[test]
fn s5_2_a_majority_of_all_voters_wins() {
    let mut node = Node::candidate(5, 1, &[1]);
    node.vote_from(4).unwrap();
    node.vote_from(4).unwrap();
    assert_eq!(node.role(), RoleKind::Candidate, "two of five, however often they reply");
    node.vote_from(5).unwrap();
    assert_eq!((node.role(), node.leader_known()), (RoleKind::Leader, Some(1)));
}

/// Only voters vote.
#[test]
fn s5_2_the_votes_of_learners_and_strangers_do_not_count() {
    let mut node = Node::start(Setup { configuration: cluster(3, 2), ..Setup::of(3, 1, &[1]) });
    node.campaign();
    node.store();
    for other in [4, 5, 77] {
        node.vote_from(other).unwrap();
    }
    assert_eq!(node.role(), RoleKind::Candidate);
}

/// Each server votes for at most one candidate in a term, first come first served. If the same
/// candidate repeats its request the vote is granted again, because the reply may have been lost.
#[test]
fn s5_2_one_vote_per_term_first_come_first_served() {
    let mut node = Node::rested(3, 1, &[1]);
    node.ask_vote(2, 2, id(1, 1)).unwrap();
    node.ask_vote(3, 2, id(1, 9)).unwrap();
    node.store();
    assert_eq!(node.take_sent(), [(2, vote_reply(2, true)), (3, vote_reply(2, false))]);
    node.ask_vote(2, 2, id(1, 1)).unwrap();
    assert_eq!(node.take_sent(), [(2, vote_reply(2, true))]);
    assert_eq!(node.vote(), Some(2));
}

/// The vote is per term: in a later term the node may vote again.
#[test]
fn s5_2_a_later_term_frees_the_vote() {
    let mut node = Node::rested(3, 1, &[1]);
    node.ask_vote(2, 2, id(1, 1)).unwrap();
    node.ask_vote(3, 3, id(1, 1)).unwrap();
    assert_eq!((node.term(), node.vote()), (3, Some(3)));
}

/// The vote is part of what a server must remember across restarts.
#[test]
fn fig2_a_vote_holds_after_a_restart() {
    let mut node = Node::with_vote(3, 2, Some(2), &[1]);
    node.pass(1000);
    node.ask_vote(3, 2, id(1, 9)).unwrap();
    assert_eq!(node.take_sent(), [(3, vote_reply(2, false))]);
}

/// The vote is on stable storage before the reply is sent.
#[test]
fn fig2_a_vote_is_stored_before_the_reply_leaves() {
    let mut node = Node::with_vote(3, 2, None, &[1]);
    node.pass(1000);
    node.ask_vote(2, 2, id(1, 1)).unwrap();
    assert_eq!(node.take_sent(), []);
    assert_eq!(node.ordered_hard_state().unwrap().vote, Some(support::n(2)));
    // A repeated request does not release it either.
    node.ask_vote(2, 2, id(1, 1)).unwrap();
    assert_eq!(node.take_sent(), []);
    node.store();
    assert_eq!(node.take_sent(), [(2, vote_reply(2, true))], "one reply is enough");
}

/// A candidate that hears from a leader of its own or a later term follows it.
#[test]
fn s5_2_a_candidate_follows_a_leader_of_its_term() {
    let mut node = Node::candidate(3, 1, &[1]);
    node.heartbeat(3, 2, 0).unwrap();
    assert_eq!(
        (node.role(), node.leader_known(), node.vote()),
        (RoleKind::Follower, Some(3), Some(1))
    );
}

/// A message from a leader of an earlier term is rejected, and the candidate continues.
#[test]
fn s5_2_a_candidate_is_not_stopped_by_a_leader_of_an_earlier_term() {
    let mut node = Node::candidate(3, 1, &[1]);
    node.append(3, 1, id(1, 1), &[1], 2).unwrap();
    assert_eq!((node.role(), node.log_terms()), (RoleKind::Candidate, vec![1]));
}

/// If votes are split, the candidate times out and starts a new election with a higher term.
#[test]
fn s5_2_a_split_vote_ends_in_a_new_election_of_a_later_term() {
    let mut node = Node::candidate(3, 1, &[1]);
    node.campaign();
    assert_eq!((node.role(), node.term(), node.vote()), (RoleKind::Candidate, 3, Some(1)));
}

/// A candidate that a majority has refused can no longer win this term.
#[test]
fn s5_2_a_candidate_that_a_majority_refused_gives_up() {
    let mut node = Node::candidate(5, 1, &[1]);
    for voter in [2, 3] {
        node.receive(voter, vote_reply(2, false)).unwrap();
        assert_eq!(node.role(), RoleKind::Candidate);
    }
    node.receive(4, vote_reply(2, false)).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Follower, 2));
}

/// A new leader sends to every server at once, so that no other node campaigns.
#[test]
fn s5_2_a_new_leader_lets_itself_be_heard_by_everybody_at_once() {
    let mut node = Node::start(Setup { configuration: cluster(3, 1), ..Setup::of(3, 1, &[1]) });
    node.campaign();
    node.store();
    node.vote_from(3).unwrap();
    assert_eq!(node.take_appends(), [(2, 1, 2), (3, 1, 2), (4, 1, 2)]);
}

/// A term has at most one leader: a leader rejects messages from another leader of its term.
#[test]
fn s5_2_a_leader_believes_no_other_leader_of_its_term() {
    let mut node = Node::leader(3, 1, &[1]);
    assert_eq!(node.append(2, 2, id(1, 1), &[2], 9), Err(Rejected::SecondLeader));
    assert_eq!(node.heartbeat(2, 2, 9), Err(Rejected::SecondLeader));
    assert_eq!((node.role(), node.commit()), (RoleKind::Leader, 0));
}

/// A single voter needs no other votes, but its own vote must be persisted.
#[test]
fn s5_2_a_single_voter_elects_itself_at_once_and_only_over_its_disk() {
    let mut node = Node::new(1, 3, &[1]);
    assert_eq!(node.deadline_in_ms(), Some(0));
    node.step(d_engine_core::Input::Deadline).unwrap();
    assert_eq!((node.role(), node.term()), (RoleKind::Candidate, 4));
    node.store();
    assert_eq!(node.role(), RoleKind::Leader);
}

/// Learners receive the log and have no vote (thesis, section 4.2.1): they never campaign.
#[test]
fn thesis_4_2_1_a_learner_never_campaigns() {
    let nobody = d_engine_core::Configuration::new([2, 3].map(support::n), [support::n(1)]);
    let mut node = Node::start(Setup { configuration: nobody, ..Setup::of(3, 1, &[1]) });
    assert_eq!(node.deadline_in_ms(), None);
    node.pre_campaign();
    assert_eq!((node.role(), node.sent.len()), (RoleKind::Follower, 0));
}

/// A voter refuses its vote if its own log is more up to date: a later last term wins, then a
/// longer log.
#[test]
fn s5_4_1_a_vote_goes_only_to_a_log_that_is_at_least_as_up_to_date() {
    let cases = [
        (id(3, 3), true, "the same log"),
        (id(3, 4), true, "longer"),
        (id(4, 1), true, "shorter, but of a later term"),
        (id(3, 2), false, "shorter"),
        (id(2, 9), false, "longer, but of an earlier term"),
        (LogId::ZERO, false, "empty"),
    ];
    for (last, expected, what) in cases {
        let mut node = Node::rested(3, 3, &[1, 3, 3]);
        node.ask_vote(2, 5, last).unwrap();
        node.store();
        assert_eq!(node.take_sent(), [(2, vote_reply(5, expected))], "{what}");
        assert_eq!(node.vote(), expected.then_some(2), "{what}");
    }
}

/// The last entry counts, persisted or not: an entry in memory may be about to be acknowledged.
#[test]
fn s5_4_1_the_comparison_counts_entries_that_are_not_stored_yet() {
    let mut node = Node::new(3, 1, &[1]);
    node.append(2, 1, id(1, 1), &[1, 1], 0).unwrap();
    node.pass(1000);
    node.ask_vote(3, 2, id(1, 2)).unwrap();
    node.store();
    assert!(node.take_sent().contains(&(3, vote_reply(2, false))));
}
