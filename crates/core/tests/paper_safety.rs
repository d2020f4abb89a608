//! When an entry is committed and when it may be applied: Raft paper, sections 5.3 and 5.4.2,
//! figure 8; thesis, section 10.2.1 (the leader writes to its own disk in parallel with the
//! followers).
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{AppendOutcome, Input, Rejected, RoleKind};
use support::{Node, Setup, cluster, i, id};

/// An entry is committed once the leader that created it has replicated it to a majority.
#[test]
fn s5_3_an_entry_is_committed_once_a_majority_has_stored_it() {
    let mut node = Node::settled(5, 1, &[1]);
    node.propose(3).unwrap();
    node.store();
    node.stored_by(2, 5).unwrap();
    assert_eq!(node.commit(), 2);
    node.stored_by(3, 4).unwrap();
    assert_eq!(node.commit(), 4, "three of five have it: 5, 5, 4");
    node.stored_by(4, 5).unwrap();
    assert_eq!(node.commit(), 5);
}

/// Only entries of the leader's own term are committed by counting replicas (figure 8, c: an old
/// entry on a majority can still be overwritten).
#[test]
fn s5_4_2_old_term_entry_is_not_committed_by_count() {
    let mut node = Node::leader(5, 3, &[1, 2]);
    for voter in [2, 3, 4, 5] {
        node.stored_by(voter, 2).unwrap();
    }
    assert_eq!(node.commit(), 0);
}

/// Once an entry of the leader's own term is committed, all earlier ones are (figure 8, e).
#[test]
fn s5_4_2_old_entries_are_committed_along_with_one_of_the_own_term() {
    let mut node = Node::leader(5, 3, &[1, 2]);
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.commit(), 0);
    node.stored_by(3, 3).unwrap();
    assert_eq!((node.commit(), node.apply_to), (3, Some(3)));
}

/// A new leader's log contains every committed entry, but the leader does not know the commit
/// index, and does not guess it (section 8).
#[test]
fn s8_a_new_leader_commits_nothing_before_its_noop() {
    let node = Node::leader(3, 1, &[1, 1]);
    assert_eq!((node.commit(), node.core.leads_with_commit()), (0, false));
    assert!(!node.core.is_caught_up());
}

/// The leader counts itself only with entries that its own disk has confirmed.
#[test]
fn thesis_10_2_1_the_leader_does_not_count_its_own_unsynced_entries() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.commit(), 2, "one disk of three");
    node.store();
    assert_eq!(node.commit(), 3);
}

/// It may commit before its own write is complete if a majority of other nodes has the entry, but
/// it applies only entries that it has persisted itself.
#[test]
fn thesis_10_2_1_a_majority_of_others_commits_without_the_leaders_disk() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.apply_to = None;
    node.stored_by(2, 3).unwrap();
    node.stored_by(3, 3).unwrap();
    assert_eq!((node.commit(), node.apply_to), (3, None));
    node.store();
    assert_eq!(node.apply_to, Some(3));
}

/// A single-node cluster commits after its own write, never before.
#[test]
fn thesis_10_2_1_a_single_node_does_not_commit_before_its_own_persist() {
    let mut node = Node::leader(1, 1, &[1]);
    assert_eq!(node.commit(), 2);
    node.propose(1).unwrap();
    assert_eq!((node.commit(), node.apply_to), (2, Some(2)));
    node.store();
    assert_eq!((node.commit(), node.apply_to), (3, Some(3)));
}

/// A completed write counts for the entries that it covers, and for no others.
#[test]
fn thesis_10_2_1_a_write_counts_for_what_it_covers() {
    let mut node = Node::leader(1, 1, &[1]);
    node.propose(2).unwrap();
    node.propose(2).unwrap();
    let first = node.orders[node.orders.len() - 2].id;
    node.step(Input::Persisted(first)).unwrap();
    assert_eq!((node.commit(), node.core.log().persisted), (4, i(4)));
    node.store();
    assert_eq!(node.commit(), 6);
}

/// Acks count once per follower and never decrease: late ones change nothing.
#[test]
fn s5_3_late_acks_do_not_take_anything_back() {
    let mut node = Node::settled(5, 1, &[1]);
    node.propose(2).unwrap();
    node.store();
    node.stored_by(2, 4).unwrap();
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.commit(), 2);
    node.stored_by(3, 4).unwrap();
    assert_eq!(node.commit(), 4);
}

/// If an entry is applied at an index, no server applies another entry there: a follower applies no
/// entry that it has not persisted, even if the entry is committed.
#[test]
fn fig3_a_follower_applies_what_is_committed_and_stored_here() {
    let mut node = Node::new(3, 4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 3).unwrap();
    assert_eq!((node.commit(), node.apply_to), (3, Some(1)));
    node.store();
    assert_eq!(node.apply_to, Some(3));
}

/// A report of an applied entry beyond the allowed index is rejected.
#[test]
fn fig3_an_apply_beyond_what_was_allowed_is_refused() {
    let mut node = Node::new(3, 4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 3).unwrap();
    assert_eq!(node.step(Input::Applied(i(2))), Err(Rejected::OutOfSequence));
    node.step(Input::Applied(i(1))).unwrap();
    node.store();
    node.step(Input::Applied(i(3))).unwrap();
    node.step(Input::Applied(i(2))).unwrap();
    assert_eq!(node.core.log().applied, i(3));
}

/// A driver's report of a write that was never requested is rejected.
#[test]
fn fig2_a_write_that_was_never_ordered_is_refused() {
    let mut node = Node::new(3, 4, &[1]);
    assert_eq!(node.store_order(1), Err(Rejected::OutOfSequence));
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    assert_eq!(node.store_order(2), Err(Rejected::OutOfSequence));
    assert_eq!(node.core.log().persisted, i(1));
}

/// A write of entries that were replaced before it completed persists none of the new ones.
#[test]
fn fig2_a_write_of_replaced_entries_does_not_acknowledge_the_new_ones() {
    let mut node = Node::new(3, 4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 0).unwrap();
    node.append(3, 5, id(1, 1), &[5, 5], 0).unwrap();
    node.store_order(1).unwrap();
    assert_eq!((node.take_sent(), node.core.log().persisted), (vec![], i(1)));
    node.store_order(2).unwrap();
    assert_eq!(node.take_acks(), [AppendOutcome::Persisted(i(3))]);
}

/// A committed entry is never replaced: a leader that requests it has lost its log, or this node
/// has.
#[test]
fn fig3_a_committed_entry_is_not_replaced_by_any_append() {
    let mut node = Node::new(3, 4, &[1, 1, 1]);
    node.append(2, 4, id(1, 2), &[], 2).unwrap();
    assert_eq!(node.append(3, 5, id(1, 1), &[5], 0), Err(Rejected::ContradictsCommitted));
    assert_eq!(node.append(3, 5, id(5, 2), &[5], 0), Err(Rejected::ContradictsCommitted));
    assert_eq!((node.log_terms(), node.commit()), (vec![1, 1, 1], 2));
    node.append(3, 5, id(1, 2), &[5], 0).unwrap();
    assert_eq!(node.log_terms(), [1, 1, 5], "uncommitted entries are replaced");
}

/// A leader that steps down keeps its log and its commit index: its entries may be committed
/// elsewhere.
#[test]
fn fig3_stepping_down_changes_neither_log_nor_commit_index() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(2).unwrap();
    node.deposed_by(2, 9);
    assert_eq!(
        (node.role(), node.log_terms(), node.commit()),
        (RoleKind::Follower, vec![1, 2, 2, 2], 2)
    );
}

/// After a restart a node applies entries up to the persisted commit hint, and no further.
#[test]
fn fig2_the_stored_commit_hint_lets_a_restarted_node_apply_at_once() {
    let mut setup = Setup::of(3, 1, &[1, 1, 1]);
    setup.hard_state.commit = i(2);
    let mut node = Node::start(setup);
    node.step(Input::Deadline).unwrap();
    assert_eq!((node.commit(), node.apply_to), (2, Some(2)));
}

/// A hint beyond the end of the log (its entries were not synced when the hint was) is limited to
/// the log.
#[test]
fn fig2_a_commit_hint_beyond_the_log_is_cut() {
    let mut setup = Setup::of(3, 1, &[1, 1]);
    setup.hard_state.commit = i(9);
    let node = Node::start(setup);
    assert_eq!(node.commit(), 2);
}

/// The commit index is part of every hard state that is written, so the hint costs nothing.
#[test]
fn fig2_the_commit_hint_is_written_with_the_next_entries() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    let hard_state = node.ordered_hard_state().unwrap();
    assert_eq!((hard_state.commit, hard_state.term), (i(2), node.core.term()));
}

/// A hard state may be persisted although the entries of its step are not: a full disk has a
/// reserve for terms and votes alone. After a crash the log has the old entries again, so a hint
/// that names the new ones would commit what a later leader has replaced.
#[test]
fn fig2_the_commit_hint_names_only_entries_that_are_persisted() {
    let mut node = Node::new(3, 4, &[1, 4]);
    node.append(2, 5, id(1, 1), &[5], 2).unwrap();
    assert_eq!(node.commit(), 2);
    assert_eq!(node.ordered_hard_state().unwrap().commit, i(1));
    node.store();
    node.append(2, 5, id(5, 2), &[5], 2).unwrap();
    assert_eq!(node.ordered_hard_state().unwrap().commit, i(2));
}

/// Learners do not count for commit; voters do, however many learners there are.
#[test]
fn s5_3_the_majority_is_that_of_the_voters() {
    for (voters, learners, acks_needed) in [(2, 3, 1), (3, 2, 1), (4, 0, 2), (5, 1, 2), (7, 0, 3)] {
        let mut node = Node::leader_of(Setup {
            configuration: cluster(voters, learners),
            ..Setup::of(voters, 1, &[1])
        });
        for learner in voters + 1..=voters + learners {
            node.stored_by(learner, 2).unwrap();
        }
        for voter in 2..2 + acks_needed {
            assert_eq!(node.commit(), 0, "{voters} voters");
            node.stored_by(voter, 2).unwrap();
        }
        assert_eq!(node.commit(), 2, "{voters} voters");
    }
}
