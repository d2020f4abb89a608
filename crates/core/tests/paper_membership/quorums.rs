//! Who counts, and who campaigns.

use super::*;

// Who counts.

#[test]
fn paper_6_commit_needs_both_majorities() {
    for (first, then) in [([4, 5], 2), ([2, 3], 4)] {
        let mut node = in_joint();
        for from in first {
            node.stored_by(from, 2).unwrap();
        }
        assert_eq!(node.commit(), 0);
        node.stored_by(then, 2).unwrap();
        assert_eq!(node.commit(), 2);
    }
}

#[test]
fn paper_6_votes_and_pre_votes_need_both_majorities() {
    for (first, then) in [([4, 5], 3), ([2, 3], 5)] {
        let log = vec![membership(1, &joint(&[1, 2, 3], &[1, 4, 5]))];
        let mut node = started(of(&[1, 2, 3], &[]), log, 0);
        node.pre_campaign();
        first.into_iter().for_each(|from| pre_vote_from(&mut node, from));
        assert_eq!(node.role(), RoleKind::PreCandidate);
        pre_vote_from(&mut node, then);
        assert_eq!(node.role(), RoleKind::Candidate);
        node.store();
        first.into_iter().for_each(|from| node.vote_from(from).unwrap());
        assert_eq!(node.role(), RoleKind::Candidate);
        node.vote_from(then).unwrap();
        assert_eq!(node.role(), RoleKind::Leader);
    }
}

#[test]
fn thesis_6_4_reads_and_the_lease_need_both_majorities() {
    for (first, then) in [([4, 5], 2), ([2, 3], 4)] {
        let mut node = in_joint();
        beats(&mut node, &[2, 3, 4, 5], 1);
        let before = node.core.lease_until().unwrap();
        node.pass(50);
        node.read(7).unwrap();
        let round = node.last_round();
        for from in first {
            node.answers(from, round, 2).unwrap();
        }
        assert_eq!((node.confirmed.len(), node.core.lease_until()), (0, Some(before)));
        node.answers(then, round, 2).unwrap();
        assert_eq!(node.confirmed, [(7, 2)]);
        assert!(node.core.lease_until().unwrap() > before);
    }
}

#[test]
fn thesis_6_2_check_quorum_needs_both_majorities() {
    for heard in [[4, 5], [2, 3]] {
        let mut node = in_joint();
        beats(&mut node, &[2, 3, 4, 5], 1);
        beats(&mut node, &heard, 9);
        assert_eq!(node.role(), RoleKind::Leader);
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        assert_eq!(node.role(), RoleKind::Follower, "it has heard {heard:?} only");
    }
    let mut node = in_joint();
    beats(&mut node, &[2, 4], 30);
    assert_eq!(node.role(), RoleKind::Leader);
}

#[test]
fn paper_6_a_node_counts_itself_only_where_it_votes() {
    // Commit: node 1 votes in the old set.
    let log = || vec![membership(1, &joint(&[1, 2, 3], &[2, 3, 4]))];
    let mut node = elected(of(&[1, 2, 3], &[]), log(), &[2, 3, 4]);
    node.stored_by(2, 2).unwrap();
    assert_eq!(node.commit(), 0, "of the new set it is node 2 alone");
    node.stored_by(4, 2).unwrap();
    assert_eq!(node.commit(), 2, "of the old set it is nodes 1 and 2");
    // Votes.
    let mut node = started(of(&[1, 2, 3], &[]), log(), 0);
    node.pre_campaign();
    for (from, role) in [(2, RoleKind::PreCandidate), (4, RoleKind::Candidate)] {
        pre_vote_from(&mut node, from);
        assert_eq!(node.role(), role);
    }
    node.store();
    for (from, role) in [(2, RoleKind::Candidate), (4, RoleKind::Leader)] {
        node.vote_from(from).unwrap();
        assert_eq!(node.role(), role);
    }
}

#[test]
fn thesis_4_1_a_node_answers_whatever_its_own_configuration_says() {
    for own in [of(&[2, 3], &[]), of(&[2, 3], &[1]), of(&[], &[])] {
        let mut node = started(own, vec![entry(1)], 0);
        node.ask_pre_vote(9, 2, id(1, 1)).unwrap();
        node.ask_vote(9, 2, id(1, 1)).unwrap();
        node.store();
        let granted = [
            (9, Message::PreVoteReply { term: t(2), granted: true, wall_ms: 0 }),
            (9, Message::VoteReply { term: t(2), granted: true, wall_ms: 0 }),
        ];
        assert_eq!(node.take_sent(), granted);
        node.append(9, 2, id(1, 1), &[2], 0).unwrap();
        node.store();
        assert_eq!((node.take_acks().len(), node.leader_known()), (1, Some(9)));
    }
}

#[test]
fn thesis_4_2_1_learners_count_nowhere_and_never_campaign() {
    let mut node = elected(of(&[1, 2, 3], &[4, 5]), vec![entry(1)], &[2, 3]);
    for from in [4, 5] {
        node.stored_by(from, 2).unwrap();
    }
    assert_eq!(node.commit(), 0);
    let mut node = started(of(&[1, 2, 3], &[4, 5]), vec![entry(1)], 0);
    node.pre_campaign();
    assert_eq!(asked(&mut node), [2, 3]);
    for from in [4, 5] {
        pre_vote_from(&mut node, from);
    }
    assert_eq!(node.role(), RoleKind::PreCandidate);
    let mut learner = started(of(&[2, 3], &[1]), vec![entry(1)], 0);
    assert_eq!(learner.core.next_deadline(), None);
    learner.pre_campaign();
    learner.heartbeat(2, 1, 0).unwrap();
    learner.receive(2, Message::TimeoutNow { term: t(1) }).unwrap();
    assert_eq!((learner.role(), learner.term()), (RoleKind::Follower, 1));
}

// Who campaigns.

/// Node 1 of {1, 2} is removed; of its log this much is committed.
fn leaving_pair(commit: u64) -> Node {
    let log = vec![membership(1, &joint(&[1, 2], &[2])), membership(1, &of(&[2], &[]))];
    started(of(&[1, 2], &[]), log, commit)
}

#[test]
fn thesis_4_2_2_a_node_campaigns_by_any_configuration_in_play() {
    let mut node = leaving_pair(1);
    assert_eq!(node.core.configuration(), &of(&[2], &[]));
    assert!(node.core.next_deadline().is_some());
    node.pre_campaign();
    assert_eq!((node.role(), asked(&mut node)), (RoleKind::PreCandidate, vec![2]));
    // The configuration in force decides, and in it node 1 is nobody.
    pre_vote_from(&mut node, 2);
    node.store();
    assert_eq!(node.role(), RoleKind::Candidate);
    node.vote_from(2).unwrap();
    assert_eq!(node.role(), RoleKind::Leader);
}

#[test]
fn thesis_4_2_2_once_its_removal_is_committed_it_never_campaigns() {
    let mut node = leaving_pair(2);
    assert_eq!(node.core.next_deadline(), None);
    node.pre_campaign();
    assert_eq!((node.role(), asked(&mut node)), (RoleKind::Follower, vec![]));
}

#[test]
fn thesis_4_2_2_told_to_campaign_it_obeys_under_the_same_condition() {
    for (commit, role) in [(1, RoleKind::Candidate), (2, RoleKind::Follower)] {
        let mut node = leaving_pair(commit);
        node.heartbeat(2, 1, commit).unwrap();
        node.receive(2, Message::TimeoutNow { term: t(1) }).unwrap();
        assert_eq!(node.role(), role);
    }
}
