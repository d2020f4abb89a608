//! How entries reach followers and what followers do with them, sentence by sentence: Raft paper,
//! figure 2 (AppendEntries) and section 5.3. `paper_flow.rs` tests how fast they are sent.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{
    AppendOutcome, Appended, Configuration, EntryKind, EntryMeta, Input, LogId, LogIndex, Message,
    Rejected, RoleKind, Term,
};
use support::{Node, Setup, cluster, conflict, entry, follower, i, id, membership, t};

/// The leader appends a command to its own log and sends it to all others in parallel; its own disk
/// writes at the same time (thesis, section 10.2.1).
#[test]
fn s5_3_a_command_goes_to_the_own_log_and_to_the_followers_at_once() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(2).unwrap();
    assert_eq!(node.created(), [(EntryKind::Command, 3, 2, 0)]);
    assert_eq!(node.take_appends(), [(2, 2, 4), (3, 2, 4)]);
    assert_eq!(node.core.log().persisted, i(2));
}

/// A leader begins its term with an entry without content (section 8).
#[test]
fn s8_a_leader_opens_its_term_with_a_noop() {
    let node = Node::leader(3, 4, &[1, 4]);
    assert_eq!(node.created(), [(EntryKind::Noop, 3, 1, 0)]);
    assert_eq!(node.log_terms(), [1, 4, 5]);
}

/// The follower refuses new entries if it does not have the entry before them. Here: its log ends
/// before that index.
#[test]
fn s5_3_an_append_behind_the_end_of_the_log_is_refused() {
    let mut node = follower(4, &[1, 1]);
    node.append(2, 4, id(4, 5), &[4], 5).unwrap();
    assert_eq!(node.take_acks(), [conflict(5, id(1, 2))]);
    assert_eq!((node.log_terms(), node.commit()), (vec![1, 1], 0));
}

/// Here: the entry at that index has another term.
#[test]
fn s5_3_an_append_after_an_entry_of_another_term_is_refused() {
    let mut node = follower(4, &[1, 2, 2]);
    node.append(2, 4, id(3, 3), &[4], 5).unwrap();
    assert_eq!(node.take_acks(), [conflict(3, id(2, 2))]);
    assert_eq!((node.log_terms(), node.commit()), (vec![1, 2, 2], 0));
}

/// The refusal names the last entry that could still match, skipping whole terms.
#[test]
fn s5_3_a_refusal_skips_terms_that_the_leader_cannot_have() {
    let mut node = follower(6, &[1, 1, 1, 4, 4, 4]);
    node.append(2, 6, id(2, 6), &[], 0).unwrap();
    assert_eq!(node.take_acks(), [conflict(6, id(1, 3))]);
}

/// An existing entry that conflicts with a new one (same index, other term) is removed with all
/// that follow it.
#[test]
fn fig2_a_conflicting_entry_is_removed_with_all_that_follow() {
    let mut node = follower(4, &[1, 2, 2, 2]);
    node.append(2, 4, id(1, 1), &[2, 4], 0).unwrap();
    assert_eq!(node.log_terms(), [1, 2, 4]);
    assert_eq!(node.superseded_from, Some(3));
    let appended = Appended::Received { skip: 1, first: i(3) };
    assert_eq!(node.orders.last().unwrap().appended, appended);
}

/// Existing entries are kept, and so are those that follow: a delayed append must not undo a later
/// one.
#[test]
fn fig2_entries_behind_a_matching_append_are_kept() {
    let mut node = follower(4, &[1, 4, 4, 4]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.append(2, 4, id(4, 2), &[], 0).unwrap();
    assert_eq!(node.log_terms(), [1, 4, 4, 4]);
    assert_eq!((node.superseded_from, node.orders.len()), (None, 0));
}

/// New entries are appended, and only the new ones are written.
#[test]
fn fig2_only_entries_not_already_in_the_log_are_appended() {
    let mut node = follower(4, &[1, 4]);
    node.append(2, 4, id(1, 1), &[4, 4, 4], 0).unwrap();
    assert_eq!(node.log_terms(), [1, 4, 4, 4]);
    assert_eq!(node.orders.last().unwrap().appended, Appended::Received { skip: 1, first: i(3) });
    assert_eq!(node.superseded_from, None);
}

/// The leader decrements nextIndex and retries until the logs match; here in whole terms. Figure 7:
/// from any state, a follower's log becomes equal to the leader's.
#[test]
fn fig7_every_follower_is_brought_in_line_within_few_rounds() {
    let leader_log = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let cases: [(&[u64], usize); 6] = [
        (&[1, 1, 1, 4, 4, 5, 5, 6, 6], 1),
        (&[1, 1, 1, 4], 1),
        (&[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6], 0),
        (&[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], 0),
        (&[1, 1, 1, 4, 4, 4, 4], 1),
        (&[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], 1),
    ];
    for (log, refusals_expected) in cases {
        let mut leader = Node::leader(7, 7, &leader_log);
        leader.appends.retain(|plan| plan.to == support::n(2));
        let mut follower = follower(7, log);
        let mut refusals = 0;
        while let Some(plan) = leader.appends.pop().filter(|_| refusals < 20) {
            let first = plan.prev.index.next().get();
            let terms: Vec<u64> = (first..=plan.last.index.get())
                .map(|index| leader.core.term_at(i(index)).unwrap().get())
                .collect();
            follower.append(2, 8, plan.prev, &terms, 0).unwrap();
            follower.store();
            let outcome = follower.take_acks().pop().unwrap();
            refusals += usize::from(matches!(outcome, AppendOutcome::Conflict { .. }));
            leader.receive(2, Message::AppendReply { term: t(8), outcome }).unwrap();
            leader.appends.retain(|plan| plan.to == support::n(2));
        }
        assert_eq!(follower.log_terms(), leader.log_terms(), "{log:?}");
        assert_eq!(refusals, refusals_expected, "{log:?}");
    }
}

/// A leader never overwrites or deletes entries in its log; it only appends (figure 3).
#[test]
fn fig3_a_leader_only_appends() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    assert!(node.append(2, 2, id(1, 1), &[2], 9).is_err());
    node.refused_by(3, 3, LogId::ZERO).unwrap();
    assert_eq!(node.log_terms(), [1, 2, 2]);
}

/// If leaderCommit > commitIndex, the follower's commit index follows, limited to the last entry
/// known to match.
#[test]
fn fig2_a_follower_commits_what_its_leader_has_committed() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 2).unwrap();
    assert_eq!(node.commit(), 2);
    node.heartbeat(2, 4, 3).unwrap();
    assert_eq!(node.commit(), 3);
}

/// "Index of last new entry", not of the last entry: entries after it may be leftovers that were
/// never committed.
#[test]
fn fig2_a_follower_commits_only_what_it_knows_to_match() {
    let mut node = follower(4, &[1, 2, 2, 2]);
    node.append(2, 4, id(1, 1), &[], 4).unwrap();
    assert_eq!(node.commit(), 1);
    node.append(2, 4, id(1, 1), &[2], 4).unwrap();
    assert_eq!(node.commit(), 2);
}

/// A heartbeat proves nothing about the log.
#[test]
fn fig2_a_heartbeat_commits_nothing_that_was_not_matched() {
    let mut node = follower(4, &[1, 1, 4]);
    node.heartbeat(2, 4, 3).unwrap();
    assert_eq!(node.commit(), 0);
    assert!(!node.core.is_caught_up());
    node.append(2, 4, id(4, 3), &[], 3).unwrap();
    assert_eq!(node.commit(), 3);
    assert!(node.core.is_caught_up());
}

/// A new leader may have a lower commit index than an earlier leader. A node with the same commit
/// index has caught up only once that is an entry of the leader's own term.
#[test]
fn s8_a_node_has_not_caught_up_with_a_leader_that_has_committed_nothing_in_its_term() {
    let mut node = follower(4, &[1, 1, 1]);
    node.append(2, 4, id(1, 3), &[], 2).unwrap();
    assert!(!node.core.is_caught_up());
    node.append(2, 4, id(1, 3), &[4], 4).unwrap();
    assert!(node.core.is_caught_up());
    node.append(3, 5, id(4, 4), &[5], 4).unwrap();
    assert!(!node.core.is_caught_up());
    node.heartbeat(3, 5, 5).unwrap();
    assert!(node.core.is_caught_up());
}

/// A node that has lost contact, or has received a snapshot in place of its log, knows from its
/// leader's first message how many entries it lacks, even if it refuses that message.
#[test]
fn fig2_a_node_that_lacks_entries_has_not_caught_up() {
    let mut node = Node::leader(3, 1, &[1]);
    node.stored_by(2, 2).unwrap();
    node.take_sent();
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let Some((3, heartbeat)) = node.take_sent().pop() else { panic!("no heartbeat for node 3") };
    let mut behind = follower(2, &[2]);
    behind.append(2, 2, id(2, 1), &[], 1).unwrap();
    assert!(behind.core.is_caught_up());
    behind.receive(2, heartbeat).unwrap();
    assert_eq!((behind.commit(), behind.core.is_caught_up()), (1, false));

    let mut setup = Setup::of(3, 4, &[4]);
    setup.hard_state.commit = i(1);
    let mut refuses = Node::start(setup);
    assert!(!refuses.core.is_caught_up());
    refuses.append(2, 4, id(4, 3), &[], 3).unwrap();
    assert!(!refuses.core.is_caught_up());
}

/// Entries that matched the log of one leader may not match that of the next.
#[test]
fn fig2_what_is_known_to_match_is_forgotten_with_the_leader() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 0).unwrap();
    node.store();
    node.take_sent();
    node.receive(3, Message::Heartbeat { term: t(5), commit: i(3), round: 1, matched: i(0) })
        .unwrap();
    node.store();
    let answer = Message::HeartbeatReply {
        term: t(5),
        round: 1,
        received: i(0),
        persisted: i(0),
        report: support::reports(0),
    };
    assert_eq!((node.commit(), node.take_sent()), (0, vec![(3, answer)]));
}

/// Entries that the leader itself has replaced are not known to match either. No correct leader
/// does so.
#[test]
fn fig2_what_a_leader_replaces_is_no_longer_known_to_match() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4, 4], 0).unwrap();
    node.append(2, 4, id(1, 1), &[2, 2], 0).unwrap();
    node.store();
    node.take_sent();
    node.heartbeat(2, 4, 4).unwrap();
    let answer = Message::HeartbeatReply {
        term: t(4),
        round: 1,
        received: i(3),
        persisted: i(3),
        report: support::reports(0),
    };
    assert_eq!(
        (node.log_terms(), node.commit(), node.take_sent()),
        (vec![1, 2, 2], 3, vec![(2, answer)])
    );
}

/// The commit index never decreases, whatever a delayed message says.
#[test]
fn fig2_the_commit_index_never_falls() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 3).unwrap();
    node.append(2, 4, id(1, 1), &[4], 1).unwrap();
    node.heartbeat(2, 4, 0).unwrap();
    assert_eq!(node.commit(), 3);
}

/// The reply to a heartbeat acknowledges persisted entries that match, and reports received ones
/// separately.
#[test]
fn s5_3_the_answer_to_a_heartbeat_tells_received_and_stored_apart() {
    let mut node = follower(4, &[1, 1, 1]);
    node.append(2, 4, id(1, 2), &[4, 4], 0).unwrap();
    node.heartbeat(2, 4, 0).unwrap();
    let answer = |persisted| Message::HeartbeatReply {
        term: t(4),
        round: 1,
        received: i(4),
        persisted: i(persisted),
        report: support::reports(0),
    };
    assert_eq!(node.take_sent(), [(2, answer(2))]);
    node.store();
    node.take_sent();
    node.heartbeat(2, 4, 0).unwrap();
    assert_eq!(node.take_sent(), [(2, answer(4))]);
}

/// The terms of the entries of one append never decrease and are not above the sender's term;
/// membership entries have a configuration and no others have.
#[test]
fn s5_3_an_append_that_no_leader_can_have_sent_is_rejected() {
    let someone = cluster(3, 0);
    let bad: [Vec<EntryMeta>; 5] = [
        vec![entry(3), entry(2)],
        vec![entry(5)],
        vec![entry(1)],
        vec![EntryMeta { configuration: None, ..membership(3, &someone) }],
        vec![EntryMeta { kind: EntryKind::Command, ..membership(3, &someone) }],
    ];
    for entries in bad {
        let mut node = follower(4, &[2]);
        let shown = format!("{entries:?}");
        assert_eq!(
            node.append_of(2, 4, id(2, 1), entries, 9),
            Err(Rejected::MalformedAppend),
            "{shown}"
        );
        assert_eq!(
            (node.log_terms(), node.commit(), node.take_sent()),
            (vec![2], 0, vec![]),
            "{shown}"
        );
    }
}

/// Numbers near the end of their range are rejected on input, so that incrementing never overflows.
#[test]
fn s5_1_numbers_out_of_range_are_refused() {
    let mut node = follower(4, &[1]);
    let (far_term, far_index) = (Term::new((1 << 62) + 1), LogIndex::new((1 << 62) + 1));
    let far = [
        Message::VoteReply { term: far_term, granted: true, wall_ms: 0 },
        Message::RequestVote { term: t(5), last: LogId::new(far_term, i(1)), transfer: false },
        Message::PreVote { term: t(5), last: LogId::new(t(1), far_index) },
        Message::Append {
            term: t(5),
            prev: LogId::new(t(1), far_index),
            commit: i(1),
            entries: vec![],
        },
        Message::Append { term: t(5), prev: id(1, 1), commit: far_index, entries: vec![] },
        Message::Append {
            term: t(5),
            prev: id(1, 1),
            commit: i(1),
            entries: vec![entry(far_term.get())],
        },
        Message::AppendReply { term: t(5), outcome: AppendOutcome::Persisted(far_index) },
        Message::AppendReply {
            term: t(5),
            outcome: AppendOutcome::Conflict { refused: far_index, hint: LogId::ZERO },
        },
        Message::Heartbeat { term: t(5), commit: far_index, round: 1, matched: i(0) },
        Message::HeartbeatReply {
            term: t(5),
            round: 1,
            received: far_index,
            persisted: i(0),
            report: support::reports(0),
        },
    ];
    for message in far {
        let shown = format!("{message:?}");
        assert_eq!(node.receive(2, message), Err(Rejected::OutOfRange), "{shown}");
        assert_eq!((node.term(), node.role()), (4, RoleKind::Follower), "{shown}");
    }
    assert_eq!(node.append(1, 4, id(1, 1), &[4], 1), Err(Rejected::FromSelf));
}

/// The leader sends heartbeats to every member, learners too, in every interval.
#[test]
fn s5_2_heartbeats_go_to_every_member_in_every_interval() {
    let mut node = Node::leader_of(Setup { configuration: cluster(3, 1), ..Setup::of(3, 1, &[1]) });
    node.take_sent();
    for round in 1..=3 {
        assert_eq!(node.deadline_in_ms(), Some(100));
        node.pass(99);
        node.step(Input::Deadline).unwrap();
        assert_eq!(node.take_sent(), []);
        node.pass(1);
        node.step(Input::Deadline).unwrap();
        let heartbeat = Message::Heartbeat { term: t(2), commit: i(0), round, matched: i(0) };
        let everybody: Vec<_> = (2..=4).map(|member| (member, heartbeat.clone())).collect();
        assert_eq!(node.take_sent(), everybody);
    }
}

/// A heartbeat carries the same commit index to every node. The receiver limits it to the entries
/// known to match, and learns from it how many entries it lacks.
#[test]
fn fig2_a_heartbeat_tells_what_the_leader_has_committed() {
    let mut node = Node::leader(3, 1, &[1]);
    node.stored_by(2, 2).unwrap();
    assert_eq!(node.commit(), 2);
    node.take_sent();
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let heartbeat =
        |matched| Message::Heartbeat { term: t(2), commit: i(2), round: 1, matched: i(matched) };
    assert_eq!(node.take_sent(), [(2, heartbeat(2)), (3, heartbeat(0))]);
}

/// Learners receive the log.
#[test]
fn thesis_4_2_1_learners_receive_entries_and_do_not_count() {
    let mut node = Node::leader_of(Setup { configuration: cluster(3, 2), ..Setup::of(3, 1, &[1]) });
    for learner in [4, 5] {
        node.stored_by(learner, 2).unwrap();
    }
    assert_eq!(node.commit(), 0);
    node.take_appends();
    node.propose(1).unwrap();
    assert_eq!(node.take_appends(), [(4, 2, 3), (5, 2, 3)]);
}

/// The configuration in force is the last one appended; if its entry is removed, the previous one
/// is in force again (section 6).
#[test]
fn s6_a_configuration_holds_from_its_append_and_is_undone_with_it() {
    let more: Configuration = cluster(5, 0);
    let mut node = follower(4, &[1]);
    node.append_of(2, 4, id(1, 1), vec![membership(4, &more)], 0).unwrap();
    assert_eq!(node.core.configuration(), &more);
    node.append(3, 5, id(1, 1), &[5], 0).unwrap();
    assert_eq!(node.core.configuration(), &cluster(3, 0));
}
