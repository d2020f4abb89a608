//! Bugs of other implementations, as scenarios. The number is the row in the project's catalogue of
//! real bugs; `docs/testing.md` lists the test of each row.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{
    AppendOutcome, Configuration, CoreConfig, Input, LogIndex, Message, Rejected, RoleKind, Term,
};
use support::network::Network;
use support::{Node, Setup, cluster, entries, i, id, membership, t};

/// Row 3 (nebula 3415): in the election after the pre-vote the candidate did not record its own
/// vote, and could vote for another candidate of the same term after a restart.
#[test]
fn row_03_a_candidate_records_its_own_vote_in_the_real_election() {
    let mut node = Node::new(3, 1, &[1]);
    node.campaign();
    let persisted = node.ordered_hard_state().unwrap();
    assert_eq!((persisted.term, persisted.vote), (t(2), Some(support::n(1))));
    // No other node is granted the vote, now or after a restart with the persisted hard state.
    node.store();
    let mut restarted = Node::start(Setup { hard_state: persisted, ..Setup::of(3, 1, &[1]) });
    restarted.pass(500);
    for mut boot in [node, restarted] {
        boot.take_sent();
        boot.ask_vote(3, 2, id(1, 9)).unwrap();
        assert_eq!(
            boot.take_sent(),
            [(3, Message::VoteReply { term: t(2), granted: false, wall_ms: 0 })]
        );
    }
}

/// Row 4 (canonical/raft 196): late replies to the pre-vote were counted as votes.
#[test]
fn row_04_a_late_pre_vote_reply_is_no_vote() {
    let mut node = Node::candidate(5, 1, &[1]);
    assert_eq!((node.role(), node.term()), (RoleKind::Candidate, 2));
    for voter in 2..=5 {
        node.receive(voter, Message::PreVoteReply { term: t(2), granted: true, wall_ms: 0 })
            .unwrap();
        node.receive(voter, Message::PreVoteReply { term: t(3), granted: true, wall_ms: 0 })
            .unwrap();
    }
    assert_eq!((node.role(), node.term()), (RoleKind::Candidate, 2));
    // A late refusal does not end the campaign either.
    for voter in 2..=5 {
        node.receive(voter, Message::PreVoteReply { term: t(2), granted: false, wall_ms: 0 })
            .unwrap();
    }
    assert_eq!(node.role(), RoleKind::Candidate);
}

/// Row 5 (LogCabin 44, async-raft 106): an entry of an earlier term was committed by counting
/// replicas.
#[test]
fn row_05_figure_8_an_old_entry_on_a_majority_is_not_committed() {
    let mut node = Node::leader(5, 3, &[1, 2]);
    node.stored_by(2, 2).unwrap();
    node.stored_by(3, 2).unwrap();
    assert_eq!(node.commit(), 0);
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.commit(), 0);
    node.stored_by(3, 3).unwrap();
    assert_eq!(node.commit(), 3);
}

/// Row 6 (openraft 1802): the structure that finds the quorum's index was not kept in order, so the
/// result depended on the order of the acks.
#[test]
fn row_06_the_commit_index_does_not_depend_on_the_order_of_acks() {
    let acks = [(2, 5), (3, 9), (4, 3), (5, 7)];
    for first in 0..acks.len() {
        for step in [1, 3] {
            let mut node = Node::settled(5, 1, &[1]);
            node.propose(8).unwrap();
            node.store();
            let mut matched = vec![10, 2, 2, 2, 2];
            for at in 0..acks.len() {
                let (voter, index) = acks[(first + at * step) % acks.len()];
                node.stored_by(voter, index).unwrap();
                matched[voter as usize - 1] = index;
                let mut sorted = matched.clone();
                sorted.sort_unstable();
                assert_eq!(node.commit(), sorted[2], "{matched:?}");
            }
        }
    }
}

/// Row 7: a leader counted entries that it had only in memory.
#[test]
fn row_07_entries_in_memory_do_not_count_for_commit() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(5).unwrap();
    node.stored_by(3, 7).unwrap();
    assert_eq!(node.commit(), 2);
    node.store();
    assert_eq!(node.commit(), 7);
}

/// Row 8 (etcd 14370): the only node of a cluster acknowledged before its own write.
#[test]
fn row_08_a_single_node_acknowledges_nothing_before_its_write() {
    let mut node = Node::leader(1, 0, &[]);
    node.propose(1).unwrap();
    node.read(1).unwrap();
    node.pass(500);
    node.step(Input::Deadline).unwrap();
    assert_eq!((node.commit(), node.apply_to), (1, Some(1)));
    node.store();
    assert_eq!((node.commit(), node.apply_to), (2, Some(2)));
}

/// Row 9 (the single-server membership bug): a new leader appended a membership entry before it had
/// committed an entry of its term.
#[test]
fn row_09_no_membership_entry_before_the_noop_is_committed() {
    let mut node = Node::leader(3, 1, &[1]);
    assert_eq!(node.propose_membership(cluster(3, 0)), Err(Rejected::MembershipBusy));
}

/// Row 10 (NuRaft 67, jraft 1): an uncommitted configuration was forgotten in a restart.
#[test]
fn row_10_an_uncommitted_configuration_is_in_force_after_a_restart() {
    let mut setup = Setup::of(3, 1, &[1]);
    setup.log.push(membership(1, &cluster(5, 0)));
    setup.log.extend(entries(&[1]));
    let node = Node::leader_of(setup);
    assert_eq!(node.core.configuration(), &cluster(5, 0));
    assert_eq!(node.core.status().followers.len(), 4);
}

/// Row 16 (raft-rs 57, etcd 10998): a learner that had been promoted and did not know it yet
/// refused a vote that was needed. The candidate has the newer configuration.
#[test]
fn row_16_a_node_that_believes_to_be_a_learner_votes_when_asked() {
    let configuration = Configuration::new([2, 3].map(support::n), [support::n(1)]);
    let mut node = Node::start(Setup { configuration, ..Setup::of(3, 1, &[1]) });
    node.pass(500);
    node.ask_pre_vote(2, 2, id(1, 2)).unwrap();
    node.ask_vote(2, 2, id(1, 2)).unwrap();
    node.store();
    let granted = [
        (2, Message::PreVoteReply { term: t(2), granted: true, wall_ms: 0 }),
        (2, Message::VoteReply { term: t(2), granted: true, wall_ms: 0 }),
    ];
    assert_eq!(node.take_sent(), granted);
}

/// Row 18 (openraft 1796, etcd 8501, canonical/raft 279): with pre-vote, a node with a longer log
/// of a lower term and a node with a shorter log of a higher term refused each other forever.
#[test]
fn row_18_long_log_of_low_term_and_short_log_of_high_term_elect_a_leader() {
    for (long_term, short_term) in [(2, 5), (2, 3), (2, 90)] {
        let mut network = Network::new(3);
        network.begin(1, long_term, &[1, 1, 2, 2]);
        network.begin(2, short_term, &[1, 1]);
        network.begin(3, short_term, &[1]);
        network.crash(3);
        network.wait(500);
        for _ in 0..3 {
            network.timeout(2);
            network.deliver_all();
            network.timeout(1);
            network.deliver_all();
        }
        assert_eq!(network.leaders(), [1], "terms {long_term} and {short_term}");
    }
}

/// Row 19 (raft-rs 84, hashicorp 605): with pre-vote and check-quorum, a pre-candidate still had
/// its old leader and refused other nodes because of it.
#[test]
fn row_19_a_pre_candidate_has_no_leader_and_refuses_nobody_because_of_one() {
    let mut node = Node::rested(3, 4, &[4]);
    node.heartbeat(2, 4, 0).unwrap();
    assert_eq!(node.leader_known(), Some(2));
    node.pre_campaign();
    assert_eq!((node.role(), node.leader_known()), (RoleKind::PreCandidate, None));
    node.take_sent();
    node.ask_pre_vote(3, 5, id(4, 1)).unwrap();
    assert_eq!(
        node.take_sent(),
        [(3, Message::PreVoteReply { term: t(5), granted: true, wall_ms: 0 })]
    );
    node.ask_vote(3, 5, id(4, 1)).unwrap();
    assert_eq!(node.vote(), Some(3));
}

/// Row 20 (openraft 2080): the heartbeats of an old leader without a quorum kept a bridge node from
/// helping the connected majority.
#[test]
fn row_20_a_bridge_node_is_free_once_its_leader_has_lost_the_quorum() {
    let mut network = Network::new(4);
    network.timeout(1);
    network.deliver_all();
    network.cut(1, 3);
    network.cut(1, 4);
    // The old leader's heartbeats reach node 2 until that leader steps down.
    let mut beats = 0;
    while network.leaders() == [1] && beats < 100 {
        network.timeout(1);
        network.deliver_all();
        beats += 1;
    }
    assert_eq!(beats, 10, "it has stepped down after the longest election timeout");
    network.wait(500);
    network.timeout(3);
    network.deliver_all();
    assert_eq!(network.leaders(), [3]);
}

/// Row 21 (etcd 7331, tikv 6340): a read was served by a leader that had committed nothing in its
/// term.
#[test]
fn row_21_no_read_index_before_the_first_commit_of_the_term() {
    let mut node = Node::leader(3, 1, &[1, 1]);
    node.read(1).unwrap();
    for round in 1..=3 {
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        node.answers(2, round, 0).unwrap();
        node.answers(3, round, 0).unwrap();
    }
    assert_eq!(node.confirmed, []);
}

/// Row 22 (etcd-io/raft 397): a stale reply to a heartbeat confirmed a read that arrived after it.
#[test]
fn row_22_a_replayed_heartbeat_answer_confirms_no_later_read() {
    let mut node = Node::settled(3, 1, &[1]);
    node.read(1).unwrap();
    node.answers(2, 1, 2).unwrap();
    assert_eq!(node.confirmed, [(1, 2)]);
    // The same read again, and the old reply again, from every node and repeatedly.
    node.read(1).unwrap();
    for _ in 0..3 {
        node.answers(2, 1, 2).unwrap();
        node.answers(3, 1, 2).unwrap();
    }
    assert_eq!(node.confirmed, [(1, 2)]);
}

/// The reply to a heartbeat of an earlier term carries the current term. If the heartbeat's sender
/// leads the current term by now, the reply must not count for a round of the same number, because
/// the heartbeat was sent before the read arrived.
#[test]
fn an_answer_to_a_heartbeat_of_an_earlier_term_confirms_no_read() {
    let mut follower = Node::new(3, 6, &[1]);
    follower
        .receive(2, Message::Heartbeat { term: t(5), commit: i(0), round: 7, matched: i(0) })
        .unwrap();
    let answer = follower.take_sent().pop().unwrap().1;
    assert!(matches!(answer, Message::HeartbeatReply { round: 0, .. }), "{answer:?}");

    let mut leader = Node::settled(3, 1, &[1]);
    leader.read(1).unwrap();
    let report = d_engine_core::FollowerReport { log_lost: true, ..leader.report() };
    let term = t(leader.term());
    let (received, persisted) = (i(0), i(0));
    leader
        .receive(2, Message::HeartbeatReply { term, round: 0, received, persisted, report })
        .unwrap();
    assert_eq!(leader.confirmed, []);
    assert!(
        leader.core.status().followers.iter().all(|it| !it.log_lost),
        "it carries only the term"
    );
    leader.answers(2, 1, 2).unwrap();
    assert_eq!(leader.confirmed, [(1, 2)]);
}

/// Row 23 (openraft d60f1e85): a read was confirmed by one node less than a quorum.
#[test]
fn row_23_a_read_needs_the_same_quorum_as_a_commit() {
    for voters in 1..=7_u64 {
        let mut node = Node::settled(voters, 1, &[1]);
        node.read(1).unwrap();
        let mut answers = 1;
        while node.confirmed.is_empty() && answers < 100 {
            answers += 1;
            node.answers(answers, 1, 2).unwrap();
        }
        assert_eq!(answers, voters / 2 + 1, "{voters} voters");
    }
}

/// Row 41 (openraft 9540c904, 44381b0c): a delayed append removed entries that had been
/// acknowledged.
#[test]
fn row_41_a_delayed_append_removes_nothing() {
    let mut node = Node::new(3, 4, &[1]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.append(2, 4, id(4, 2), &[4, 4], 0).unwrap();
    node.store();
    for _ in 0..2 {
        node.append(2, 4, id(1, 1), &[4], 0).unwrap();
        node.append(2, 4, id(1, 1), &[], 0).unwrap();
        assert_eq!((node.log_terms(), node.superseded_from), (vec![1, 4, 4, 4], None));
    }
}

/// Row 42 (openraft 1500, CCF 6016): a re-elected leader receives an ack from its earlier term. The
/// follower's log may have changed in between, so the ack has no meaning now.
#[test]
fn row_42_an_ack_of_an_earlier_term_does_not_count_after_re_election() {
    let mut node = Node::leader(3, 0, &[]);
    assert_eq!((node.role(), node.core.term()), (RoleKind::Leader, Term::new(1)));
    node.propose(3).unwrap();
    node.store();
    // Deposed before any ack arrives, and elected again in term 3.
    node.deposed_by(2, 2);
    node.store();
    node.campaign();
    node.store();
    node.vote_from(2).unwrap();
    node.store();
    assert_eq!((node.role(), node.core.term()), (RoleKind::Leader, Term::new(3)));
    // The follower has the no-op of term 3 at the index that its old ack names.
    let old = Message::AppendReply {
        term: Term::new(1),
        outcome: AppendOutcome::Persisted(LogIndex::new(5)),
    };
    node.receive(3, old).unwrap();
    assert_eq!(node.commit(), 0);
    node.stored_by(3, 5).unwrap();
    assert_eq!(node.commit(), 5);
}

/// Row 42 (CCF 6016): a follower acknowledged its whole log, not only the part that the append had
/// shown to match.
#[test]
fn row_42_an_ack_does_not_go_beyond_the_append_it_answers() {
    let mut node = Node::new(3, 4, &[1, 2, 2, 2]);
    node.append(2, 4, id(1, 1), &[], 0).unwrap();
    assert_eq!(node.take_acks(), [AppendOutcome::Persisted(i(1))]);
    node.heartbeat(2, 4, 0).unwrap();
    let answer = Message::HeartbeatReply {
        term: t(4),
        round: 1,
        received: i(1),
        persisted: i(1),
        report: support::reports(0),
    };
    assert_eq!(node.take_sent(), [(2, answer)]);
}

/// Row 43 (CCF 5674): a leader that became a follower rolled back committed entries.
#[test]
fn row_43_a_deposed_leader_keeps_what_it_committed() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(2).unwrap();
    node.store();
    node.stored_by(2, 4).unwrap();
    node.propose(2).unwrap();
    node.heartbeat(3, 5, 0).unwrap();
    assert_eq!((node.role(), node.commit()), (RoleKind::Follower, 4));
    assert_eq!(
        node.log_terms(),
        [1, 2, 2, 2, 2, 2],
        "uncommitted entries may be committed elsewhere"
    );
    // Only the new leader's own entries replace it, and only after the commit index.
    node.append(3, 5, id(2, 4), &[5], 0).unwrap();
    assert_eq!((node.log_terms(), node.commit()), (vec![1, 2, 2, 2, 5], 4));
}

/// Row 44 (NuRaft 185): committed entries were rolled back after an election.
#[test]
fn row_44_no_new_leader_can_roll_back_a_committed_entry() {
    let mut node = Node::new(3, 4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 3).unwrap();
    node.store();
    assert_eq!(node.append(3, 5, id(1, 1), &[5, 5], 3), Err(Rejected::ContradictsCommitted));
    assert_eq!((node.log_terms(), node.commit()), (vec![1, 4, 4], 3));
}

/// Row 49 (openraft 1960): write completions that arrived out of order stopped all progress.
#[test]
fn row_49_completions_out_of_order_strand_nothing() {
    let mut node = Node::new(3, 4, &[1]);
    for index in 1..=3 {
        node.append(2, 4, id(if index == 1 { 1 } else { 4 }, index), &[4], 0).unwrap();
    }
    node.store_order(3).unwrap();
    assert_eq!(node.take_acks(), [AppendOutcome::Persisted(i(4))]);
    node.store_order(1).unwrap();
    node.store_order(2).unwrap();
    assert_eq!((node.core.log().persisted, node.take_acks()), (i(4), vec![]));
}

/// Row 50 (etcd 10167, nats 7853): the count of uncommitted bytes was reset with each term, so an
/// unstable leader's log grew without bound.
#[test]
fn row_50_the_limit_of_uncommitted_bytes_outlives_the_term() {
    let config = CoreConfig { uncommitted_bytes_max: 10 * 74, ..CoreConfig::default() };
    let mut node = Node::leader_of(Setup { config, ..Setup::of(3, 1, &[]) });
    node.propose(9).unwrap();
    for _ in 0..3 {
        node.pass(1_000);
        node.step(Input::Deadline).unwrap();
        node.campaign();
        node.store();
        node.vote_from(2).unwrap();
        assert_eq!(node.role(), RoleKind::Leader);
        assert_eq!(node.propose(1), Err(Rejected::TooMuchUncommitted));
    }
    let last = node.core.log().last.index.get();
    node.store();
    node.stored_by(2, last).unwrap();
    node.propose(10).unwrap();
    assert_eq!(node.propose(1), Err(Rejected::TooMuchUncommitted));
}

/// Row 53 (etcd 21518): a node panicked on a heartbeat whose commit index was beyond the end of its
/// log.
#[test]
fn row_53_a_commit_index_behind_the_log_is_taken_as_far_as_the_log_goes() {
    let mut node = Node::new(3, 4, &[1, 1]);
    node.heartbeat(2, 4, 1 << 40).unwrap();
    assert_eq!(node.commit(), 0);
    node.append(2, 4, id(1, 2), &[], 1 << 40).unwrap();
    assert_eq!(node.commit(), 2);
    node.heartbeat(2, 4, 1 << 40).unwrap();
    assert_eq!(node.commit(), 2);
}
