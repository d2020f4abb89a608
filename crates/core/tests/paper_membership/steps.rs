//! What is in force, which entries a leader may append, and how a joint configuration is left.

use super::*;

// What is in force.

#[test]
fn paper_6_the_last_appended_configuration_is_in_force_and_truncation_undoes_it() {
    let log = vec![entry(1), membership(1, &joint(&[1, 2, 3], &[1, 4]))];
    let mut node = started(of(&[1, 2, 3], &[]), log, 1);
    assert!(node.core.configuration().is_joint(), "also directly after a restart");
    node.append(2, 2, id(1, 1), &[2], 1).unwrap();
    assert_eq!(node.core.configuration(), &of(&[1, 2, 3], &[]));
}

#[test]
fn paper_6_another_configuration_at_the_same_index_is_a_change() {
    let log = vec![entry(1), membership(1, &of(&[1, 2, 3], &[8]))];
    let mut node = started(of(&[1, 2, 3], &[]), log, 0);
    node.heartbeat(2, 2, 0).unwrap();
    let other = of(&[1, 2, 3], &[9]);
    let before = (node.role(), node.term(), node.leader_known());
    node.append_of(2, 2, id(0, 0), vec![entry(2), membership(2, &other)], 0).unwrap();
    assert_eq!((node.role(), node.term(), node.leader_known()), before);
    assert_eq!(node.core.configuration(), &other);
    assert!(node.status_changed);
}

#[test]
fn paper_7_a_snapshot_brings_a_joint_configuration() {
    let mut node = started(of(&[1, 2, 3], &[]), vec![entry(1)], 0);
    let both = joint(&[1, 2, 3], &[3, 4, 5]);
    let configuration = Box::new(both.clone());
    node.step(Input::InstallSnapshot(SnapshotToInstall {
        from: n(2),
        term: t(1),
        last: id(1, 7),
        time_ms: 0,
        configuration,
    }))
    .unwrap();
    node.store();
    assert_eq!(node.core.configuration(), &both);
    node.pre_campaign();
    for from in [3, 4, 5] {
        assert_eq!(node.role(), RoleKind::PreCandidate, "before node {from} answers");
        pre_vote_from(&mut node, from);
        if from == 4 {
            // Nodes 1 and 3 of the old set, nodes 3 and 4 of the new one.
            break;
        }
    }
    assert_eq!(node.role(), RoleKind::Candidate);
}

#[test]
fn paper_7_a_purge_keeps_the_joint_configuration_and_it_is_left_later() {
    let mut node = in_joint();
    for from in [2, 4] {
        node.stored_by(from, 2).unwrap();
    }
    node.step(Input::Applied(i(2))).unwrap();
    node.step(Input::Purged(id(2, 2))).unwrap();
    assert!(node.core.configuration().is_joint());
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint));
}

// Which entries a leader may append, and when.

#[test]
fn thesis_4_1_no_membership_entry_before_an_entry_of_the_own_term_is_committed() {
    let mut node = elected(of(&[1, 2, 3], &[]), vec![entry(1)], &[2, 3]);
    assert_eq!(node.propose_membership(of(&[1, 2, 3], &[4])), Err(Rejected::MembershipBusy));
    let smaller = joint(&[1, 2, 3], &[1, 2]);
    assert_eq!(propose_at_risk(&mut node, smaller.clone()), Err(Rejected::MembershipBusy));
    node.stored_by(2, 2).unwrap();
    assert_eq!(propose_at_risk(&mut node, smaller), Ok(()));
    // Not even a return from a joint configuration that it has found in its log.
    let mut node = in_joint();
    assert_eq!(node.propose_membership(of(&[1, 2, 3], &[])), Err(Rejected::MembershipBusy));
    assert_eq!(node.propose_membership(of(&[1, 4, 5], &[])), Err(Rejected::MembershipBusy));
}

#[test]
fn thesis_4_1_one_membership_entry_at_a_time() {
    let mut node = grown(&[1, 2, 3], &[4]);
    node.propose_membership(of(&[1, 2, 3], &[4, 5])).unwrap();
    let both = of(&[1, 2, 3], &[4, 5]).joint_with(&of(&[1, 2, 3, 4], &[5]));
    assert_eq!(node.propose_membership(both.clone()), Err(Rejected::MembershipBusy));
    assert_eq!(node.propose_membership(of(&[1, 2, 3], &[])), Err(Rejected::MembershipBusy));
    beats(&mut node, &[2, 3, 4], 1);
    node.propose_membership(both).unwrap();
    assert_eq!(node.propose_membership(of(&[1, 2, 3, 4], &[5])), Err(Rejected::MembershipBusy));
    // The return is the exception.
    node.propose_membership(of(&[1, 2, 3], &[4, 5])).unwrap();
    let again = joint(&[1, 2, 3], &[1, 2]);
    assert_eq!(node.propose_membership(again), Err(Rejected::MembershipBusy));
}

#[test]
fn paper_6_voters_change_through_a_joint_configuration_only() {
    use MembershipStep::{EnterJoint, LeaveJoint, RollBack, SameVoters};
    let old = of(&[1, 2, 3], &[4]);
    let both = joint(&[1, 2, 3], &[1, 2, 4]);
    let many = |count: u64| (1..=count).collect::<Vec<u64>>();
    let learners = |count: u64| (11..11 + count).collect::<Vec<u64>>();
    let steps = [
        (&old, of(&[1, 2, 3], &[4]), Some(SameVoters)),
        (&old, of(&[1, 2, 3], &[]), Some(SameVoters)),
        (&old, of(&[1, 2, 3], &[4, 5]), Some(SameVoters)),
        // Not even one voter more or fewer.
        (&old, of(&[1, 2, 3, 4], &[]), None),
        (&old, of(&[1, 2], &[4]), None),
        (&old, both.clone(), Some(EnterJoint)),
        (&old, joint(&[1, 2, 3], &[5, 6]), Some(EnterJoint)),
        (&old, joint(&[1, 2, 3], &[1, 2, 3]), None),
        (&old, joint(&[1, 2], &[1, 2, 3]), None),
        (&old, joint(&[1, 2, 4], &[1, 2, 3]), None),
        (&old, joint(&[1, 2], &[1, 2, 4]), None),
        (&old, joint(&[1, 2, 3, 4], &[1, 2]), None),
        (&both, of(&[1, 2, 4], &[]), Some(LeaveJoint)),
        (&both, of(&[1, 2, 4], &[3]), Some(LeaveJoint)),
        (&both, of(&[1, 2, 3], &[4]), Some(RollBack)),
        (&both, of(&[1, 2], &[]), None),
        (&both, of(&[1, 2, 3, 4], &[]), None),
        // No joint configuration follows another one.
        (&both, both.clone(), None),
        (&both, joint(&[1, 2, 4], &[1, 2, 5]), None),
        (&both, joint(&[1, 2, 3], &[1, 2, 5]), None),
        // Nobody votes and learns, and somebody must vote.
        (&old, of(&[1, 2, 3], &[3]), None),
        (&both, of(&[1, 2, 4], &[4]), None),
        (&both, of(&[], &[1]), None),
        (&old, joint(&[1, 2, 3], &[]), None),
        // The limits.
        (&old, joint(&[1, 2, 3], &many(9)), Some(EnterJoint)),
        (&old, joint(&[1, 2, 3], &many(10)), None),
        (&old, of(&[1, 2, 3], &learners(61)), Some(SameVoters)),
        (&old, of(&[1, 2, 3], &learners(62)), None),
    ];
    for (from, to, step) in steps {
        assert_eq!(from.step_to(&to), step, "from {from:?} to {to:?}");
    }
}

#[test]
fn paper_6_the_leader_refuses_an_illegal_step() {
    let mut node = grown(&[1, 2, 3], &[4]);
    let refused = Err(Rejected::IllegalStep);
    assert_eq!(node.propose_membership(of(&[1, 2, 3, 4], &[])), refused);
    assert_eq!(propose_at_risk(&mut node, of(&[1, 2], &[])), refused);
    node.propose_membership(joint(&[1, 2, 3], &[1, 2, 3, 4])).unwrap();
    beats(&mut node, &[2, 3, 4], 1);
    assert_eq!(node.propose_membership(joint(&[1, 2, 3, 4], &[1, 2])), refused);
    assert_eq!(node.propose_membership(of(&[1, 2], &[])), refused);
}

// How a joint configuration is left.

#[test]
fn paper_6_a_committed_joint_configuration_is_to_be_left_for_the_new_voters() {
    let mut node = grown(&[1, 2, 3], &[4]);
    assert_eq!(due(&node), None);
    node.propose_membership(joint(&[1, 2, 3], &[1, 2, 4])).unwrap();
    node.store();
    assert_eq!(due(&node), None, "it is not committed");
    node.stored_by(2, last(&node)).unwrap();
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint));
    // It remains due: nothing depends on the event.
    beats(&mut node, &[2, 3, 4], 20);
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint));
    node.propose_membership(of(&[1, 2, 4], &[])).unwrap();
    assert_eq!(due(&node), None);
}

#[test]
fn paper_6_a_later_leader_leaves_it_too_once_an_entry_of_its_term_is_committed() {
    let mut node = in_joint();
    for from in [4, 5, 2] {
        assert_eq!(due(&node), None, "before node {from} has stored it");
        node.stored_by(from, 2).unwrap();
    }
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint));
    node.deposed_by(3, 3);
    assert_eq!(due(&node), None, "a follower does nothing");
}

/// That the joint entry is known to be committed is not enough: see `docs/divergences.md`.
#[test]
fn paper_6_a_later_leader_takes_no_step_before_that() {
    let log = vec![membership(1, &joint(&[1, 2, 3], &[1, 4, 5]))];
    let mut node = started(of(&[1, 2, 3], &[]), log, 1);
    node.pre_campaign();
    [2, 3, 4, 5].into_iter().for_each(|from| pre_vote_from(&mut node, from));
    node.store();
    [2, 3, 4, 5].into_iter().for_each(|from| node.vote_from(from).unwrap());
    node.store();
    assert_eq!((node.role(), node.commit(), due(&node)), (RoleKind::Leader, 1, None));
    // Nor does it go back, although the old majority answers.
    let mut node = in_joint();
    beats(&mut node, &[2, 3], 7);
    assert_eq!((node.commit(), due(&node)), (0, None));
}

#[test]
fn paper_6_nothing_is_due_while_the_leadership_is_transferred() {
    let mut node = in_joint();
    beats(&mut node, &[2, 3, 4, 5], 1);
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint));
    transfer(&mut node, Some(4)).unwrap();
    assert_eq!(due(&node), None);
    let last_step = of(&[1, 4, 5], &[]);
    assert_eq!(node.propose_membership(last_step), Err(Rejected::TransferInProgress));
}

/// A leader that has just appended the joint configuration from {1, 2, 3} to {1, 4, 5}.
fn entering() -> Node {
    let mut node = grown(&[1, 2, 3], &[4, 5]);
    node.propose_membership(joint(&[1, 2, 3], &[1, 4, 5])).unwrap();
    node.store();
    node
}

#[test]
fn rollback_is_due_after_the_shortest_election_timeout() {
    let mut node = entering();
    beats(&mut node, &[2, 3], 4);
    assert_eq!(due(&node), None);
    beats(&mut node, &[2, 3], 1);
    assert_eq!(due(&node), Some(MembershipStep::RollBack));
    // The new voters answer after all.
    node.stored_by(4, last(&node)).unwrap();
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint));
}

#[test]
fn rollback_is_due_only_if_the_outgoing_majority_answers() {
    let mut node = entering();
    beats(&mut node, &[4, 5], 7);
    assert_eq!(due(&node), None);
    beats(&mut node, &[2], 1);
    assert_eq!(due(&node), Some(MembershipStep::LeaveJoint), "one more has made it committed");
    let mut node = entering();
    beats(&mut node, &[5], 7);
    assert_eq!(due(&node), None);
    node.refused_by(2, last(&node), id(0, 0)).unwrap();
    assert_eq!(due(&node), None, "heard, but the logs may not match");
    node.answers(2, node.last_round(), 1).unwrap();
    node.stored_by(2, 1).unwrap();
    assert_eq!(due(&node), Some(MembershipStep::RollBack));
}

#[test]
fn rollback_is_due_earlier_if_this_leader_would_step_down() {
    let mut node = grown(&[1, 2, 3, 4, 5], &[]);
    beats(&mut node, &[4, 5], 6);
    propose_at_risk(&mut node, joint(&[1, 2, 3, 4, 5], &[1, 2, 3])).unwrap();
    beats(&mut node, &[4, 5], 1);
    assert_eq!(due(&node), None);
    beats(&mut node, &[4, 5], 1);
    assert_eq!(due(&node), Some(MembershipStep::RollBack), "two heartbeats before it");
}

#[test]
fn rollback_is_not_due_while_the_leadership_is_transferred() {
    let mut node = entering();
    beats(&mut node, &[2, 3], 5);
    transfer(&mut node, Some(4)).unwrap();
    assert_eq!(due(&node), None);
    let back = of(&[1, 2, 3], &[4, 5]);
    assert_eq!(node.propose_membership(back), Err(Rejected::TransferInProgress));
}

#[test]
fn rollback_needs_the_outgoing_majority_and_no_other() {
    let mut node = entering();
    let joint_at = last(&node);
    beats(&mut node, &[2, 3], 5);
    assert_eq!(node.commit(), joint_at - 1);
    node.propose_membership(of(&[1, 2, 3], &[4, 5])).unwrap();
    node.store();
    // By the voters that are in force again even the joint entry itself is committed now.
    assert_eq!((due(&node), node.commit()), (None, joint_at));
    for from in [4, 5] {
        node.stored_by(from, joint_at + 1).unwrap();
    }
    assert_eq!(node.commit(), joint_at);
    node.stored_by(2, joint_at + 1).unwrap();
    assert_eq!(node.commit(), joint_at + 1);
}

#[test]
fn rollback_doubles_how_long_a_new_voter_must_keep_up() {
    let mut node = entering();
    beats(&mut node, &[2, 3], 5);
    node.propose_membership(of(&[1, 2, 3], &[4, 5])).unwrap();
    let again = joint(&[1, 2, 3], &[1, 4, 5]);
    for needed in [40, 80] {
        beats(&mut node, &[2, 3, 4, 5], needed - 1);
        assert_eq!(node.propose_membership(again.clone()), Err(Rejected::NotCaughtUp(n(4))));
        beats(&mut node, &[2, 3, 4, 5], 3);
        node.propose_membership(again.clone()).unwrap();
        node.propose_membership(of(&[1, 2, 3], &[4, 5])).unwrap();
    }
}
