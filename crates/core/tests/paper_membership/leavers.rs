//! To whom a leader sends, and a leader that is left out.

use super::*;

// To whom the leader sends.

/// A leader that has committed the removal of node 3 from {1, 2, 3}; node 3 has heard nothing of
/// it.
fn without_three() -> Node {
    let mut node = grown(&[1, 2, 3], &[]);
    node.propose_membership(joint(&[1, 2, 3], &[1, 2])).unwrap();
    beats(&mut node, &[2], 1);
    node.propose_membership(of(&[1, 2], &[])).unwrap();
    node.store();
    assert_eq!(node.core.reach(), ids(&[2, 3]), "it may still be needed");
    node.stored_by(2, last(&node)).unwrap();
    assert_eq!(node.commit(), last(&node));
    node
}

#[test]
fn paper_6_entries_go_to_the_members_of_every_configuration_in_play() {
    let mut node = grown(&[1, 2, 3], &[4]);
    node.appends.clear();
    node.propose_membership(of(&[1, 2, 3], &[4]).joint_with(&of(&[1, 2, 4], &[]))).unwrap();
    assert_eq!(node.take_appends().iter().map(|plan| plan.0).collect::<Vec<_>>(), [2, 3, 4]);
    // A later leader sends to a node that only an earlier entry, not known to be committed, names.
    let log = vec![
        membership(1, &joint(&[1, 2, 3], &[1, 2])),
        membership(1, &of(&[1, 2], &[])),
        membership(1, &of(&[1, 2], &[7])),
    ];
    let node = elected(of(&[1, 2, 3], &[]), log, &[2]);
    assert_eq!(node.core.reach(), ids(&[2, 3, 7]));
}

/// It is a member of the joint configuration, which a later leader may find in force.
#[test]
fn paper_6_a_leaver_is_needed_until_its_removal_is_committed() {
    let mut node = grown(&[1, 2, 3], &[]);
    node.propose_membership(joint(&[1, 2, 3], &[1, 2])).unwrap();
    beats(&mut node, &[2], 1);
    node.propose_membership(of(&[1, 2], &[])).unwrap();
    // Node 3 has everything and has replied to later rounds; node 2 is silent.
    beats(&mut node, &[3], 3);
    assert_eq!(node.commit(), last(&node) - 1);
    assert_eq!((node.dropped.clone(), node.core.reach()), (vec![], ids(&[2, 3])));
    beats(&mut node, &[2, 3], 2);
    assert_eq!((node.dropped.clone(), node.core.reach()), (vec![3], ids(&[2])));
}

#[test]
fn thesis_4_2_2_a_leaver_stays_until_it_has_learned_that_it_left() {
    let mut node = without_three();
    let round = node.last_round();
    node.answers(3, round, last(&node)).unwrap();
    assert_eq!(node.dropped, [] as [u64; 0], "a round from before the commit");
    beats(&mut node, &[2], 1);
    let round = node.last_round();
    node.answers(3, round, last(&node)).unwrap();
    assert_eq!((node.dropped.clone(), node.core.reach()), (vec![3], ids(&[2])));
}

#[test]
fn thesis_4_2_2_a_leaver_that_lags_has_not_learned_it() {
    let mut node = without_three();
    beats(&mut node, &[2], 1);
    let (round, last) = (node.last_round(), last(&node));
    node.answers(3, round, last - 1).unwrap();
    assert_eq!(node.dropped, [] as [u64; 0]);
    node.answers(3, round, last).unwrap();
    assert_eq!(node.dropped, [3]);
}

#[test]
fn thesis_4_2_2_a_silent_leaver_is_dropped_after_ten_longest_election_timeouts() {
    let mut node = without_three();
    beats(&mut node, &[2], 99);
    assert_eq!((node.dropped.clone(), node.core.reach()), (vec![], ids(&[2, 3])));
    beats(&mut node, &[2], 1);
    assert_eq!((node.dropped.clone(), node.core.reach()), (vec![3], ids(&[2])));
}

#[test]
fn paper_6_what_is_known_of_a_follower_outlives_its_role() {
    let mut node = grown(&[1, 2, 3], &[4]);
    let known = node.core.matched(n(4));
    assert_eq!(known, Some(i(last(&node))));
    node.propose_membership(of(&[1, 2, 3], &[4, 5])).unwrap();
    assert_eq!((node.core.matched(n(4)), node.core.matched(n(5))), (known, Some(i(0))));
    beats(&mut node, &[2, 3, 4], 1);
    let known = node.core.matched(n(4));
    let both = of(&[1, 2, 3], &[4, 5]).joint_with(&of(&[1, 2, 4], &[3, 5]));
    node.propose_membership(both).unwrap();
    assert_eq!((node.core.matched(n(4)), node.core.matched(n(3))), (known, known));
}

/// It may come back with another disk: what it has acknowledged before counts for nothing.
#[test]
fn paper_6_what_was_known_of_a_follower_ends_when_it_is_dropped() {
    let mut node = grown(&[1, 2, 3], &[4]);
    node.propose_membership(of(&[1, 2, 3], &[])).unwrap();
    beats(&mut node, &[2, 3, 4], 2);
    assert_eq!(node.dropped, [4]);
    assert_eq!(node.core.matched(n(4)), None);
    node.propose_membership(of(&[1, 2, 3], &[4])).unwrap();
    assert_eq!(node.core.matched(n(4)), Some(i(0)));
    assert!(!node.core.is_promotable(n(4), node.now), "it must keep up anew");
}

// A leader that is left out, and transfers.

/// A leader of {1, 2, 3} that has appended its own removal, not committed yet.
fn leaving_leader() -> Node {
    let mut node = grown(&[1, 2, 3], &[]);
    node.propose_membership(joint(&[1, 2, 3], &[2, 3])).unwrap();
    beats(&mut node, &[2, 3], 1);
    node.propose_membership(of(&[2, 3], &[])).unwrap();
    node.store();
    node.take_sent();
    node
}

#[test]
fn thesis_4_2_2_a_leader_that_is_left_out_continues_uncounted_until_that_is_committed() {
    let mut node = leaving_leader();
    node.propose(1).unwrap();
    node.store();
    let (removal, command) = (last(&node) - 1, last(&node));
    node.stored_by(2, command).unwrap();
    assert_eq!((node.role(), node.commit()), (RoleKind::Leader, removal - 1));
    assert_eq!(told_to_campaign(&mut node), [] as [u64; 0]);
    node.stored_by(3, removal).unwrap();
    assert_eq!((node.role(), node.commit()), (RoleKind::Leader, removal));
    assert_eq!(node.propose(1), Err(Rejected::TransferInProgress));
    node.stored_by(3, command).unwrap();
    assert_eq!(told_to_campaign(&mut node).len(), 1, "to one of the furthest");
}

#[test]
fn thesis_4_2_2_a_leader_that_is_left_out_steps_down_if_nobody_takes_over() {
    let mut node = leaving_leader();
    for from in [2, 3] {
        node.stored_by(from, last(&node)).unwrap();
    }
    beats(&mut node, &[2, 3], 4);
    assert_eq!(node.role(), RoleKind::Leader);
    beats(&mut node, &[2, 3], 1);
    assert_eq!((node.role(), node.lost_leadership), (RoleKind::Follower, true));
    assert_eq!(node.core.next_deadline(), None, "and it does not come back");
}

/// A transfer that fails earlier changes nothing: without this leader its removal might never be
/// committed.
#[test]
fn thesis_4_2_2_a_transfer_that_fails_before_that_does_not_end_the_leadership() {
    let mut node = leaving_leader();
    let behind = last(&node) - 1;
    transfer(&mut node, Some(2)).unwrap();
    for _ in 0..6 {
        beats(&mut node, &[], 1);
        let round = node.last_round();
        for from in [2, 3] {
            node.answers(from, round, behind).unwrap();
        }
    }
    assert_eq!((node.role(), node.core.is_transferring_leadership()), (RoleKind::Leader, false));
    beats(&mut node, &[2, 3], 1);
    assert!(node.core.is_transferring_leadership());
}

#[test]
fn thesis_4_2_2_also_a_leader_that_has_found_its_removal_in_its_log_gives_way() {
    let log = vec![membership(1, &joint(&[1, 2], &[2])), membership(1, &of(&[2], &[]))];
    let mut node = elected(of(&[1, 2], &[]), log, &[2]);
    assert_eq!((node.role(), told_to_campaign(&mut node)), (RoleKind::Leader, vec![]));
    node.stored_by(2, 3).unwrap();
    assert_eq!((node.commit(), told_to_campaign(&mut node)), (3, vec![2]));
}

#[test]
fn thesis_3_10_the_leadership_goes_to_incoming_voters_only() {
    let mut node = in_joint();
    beats(&mut node, &[2, 3, 4, 5], 1);
    node.propose(1).unwrap();
    node.store();
    for from in [2, 3, 4] {
        node.stored_by(from, 3).unwrap();
    }
    // Of the incoming voters only node 4 has everything; nodes 2 and 3 are on their way out.
    node.pass(1);
    node.stored_by(2, 3).unwrap();
    for to in [Some(2), Some(3)] {
        assert_eq!(transfer(&mut node, to), Err(Rejected::NoTransferTarget));
    }
    node.take_sent();
    transfer(&mut node, None).unwrap();
    assert_eq!(told_to_campaign(&mut node), [4]);
}
