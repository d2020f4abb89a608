#![allow(clippy::unwrap_used)]
use d_engine_core::{Incarnation, MembershipStep};

use super::*;

fn voter(node: u64) -> Member {
    Member {
        node,
        peer_addr: format!("peer:{node}"),
        client_addr: format!("client:{node}"),
        role: MemberRole::Voter,
        incarnation: Some(Incarnation([u8::try_from(node).unwrap(); 16])),
    }
}

fn voters(count: u64) -> Membership {
    Membership::new((1..=count).map(voter)).unwrap()
}

fn new(node: u64) -> NewMember {
    let Member { peer_addr, client_addr, incarnation, .. } = voter(node);
    let incarnation = incarnation.unwrap();
    let joins_as = JoinAs::Voter { replaces: None };
    NewMember { node: None, peer_addr, client_addr, incarnation, joins_as }
}

fn instead_of(node: u64) -> JoinAs {
    JoinAs::Voter { replaces: Some(node) }
}

fn edited(before: &Membership, change: &MemberChange) -> Membership {
    before.edited(change).unwrap().unwrap()
}

fn roles(membership: &Membership) -> Vec<(u64, MemberRole)> {
    membership.members().iter().map(|member| (member.node, member.role)).collect()
}

const JOINING: MemberRole = MemberRole::Joining { replaces: None };

/// A node joins: it learns, votes in a joint configuration, and then alone with the others.
#[test]
fn a_node_joins_in_three_steps_that_the_core_accepts() {
    let first = voters(1);
    let learns = edited(&first, &MemberChange::Add(new(2))).following(&first, 3);
    assert_eq!(roles(&learns), [(1, MemberRole::Voter), (2, JOINING)]);
    assert_eq!((learns.id(), learns.last_node()), (ConfigId { term: 3, version: 1 }, 2));
    assert_eq!(learns.joint(|_| false, Leavers::Go), None, "it does not keep up");
    let joint = learns.joint(|_| true, Leavers::Go).unwrap();
    let last = joint.after_joint();
    assert_eq!(roles(&last), [(1, MemberRole::Voter), (2, MemberRole::Voter)]);
    let steps = [(&first, &learns), (&learns, &joint), (&joint, &last)]
        .map(|(one, next)| one.configuration().step_to(&next.configuration()).unwrap());
    let (same, enter, leave) =
        (MembershipStep::SameVoters, MembershipStep::EnterJoint, MembershipStep::LeaveJoint);
    assert_eq!(steps, [same, enter, leave]);
    let back = joint.before_joint();
    assert_eq!(roles(&back), roles(&learns), "the intent stays");
    assert_eq!(
        joint.configuration().step_to(&back.configuration()),
        Some(MembershipStep::RollBack)
    );
}

/// The dead voter is never counted out before the new one is counted in.
#[test]
fn a_replacement_is_one_joint_step() {
    let joins =
        edited(&voters(3), &MemberChange::Add(NewMember { joins_as: instead_of(3), ..new(5) }));
    assert_eq!(joins.last_node(), 4, "the leader gives the next id");
    let joint = joins.joint(|_| true, Leavers::Go).unwrap();
    let configuration = joint.configuration();
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect::<Vec<_>>();
    assert_eq!(
        (ids(configuration.outgoing()), ids(configuration.voters())),
        (vec![1, 2, 3], vec![1, 2, 4])
    );
    assert_eq!(roles(&joint.after_joint()).len(), 3);
    assert!(joint.after_joint().has_removed(3));
    assert_eq!(roles(&joint.before_joint()), roles(&joins), "node 3 is not on its way out alone");
}

#[test]
fn a_request_that_is_repeated_changes_nothing() {
    let joins = edited(&voters(3), &MemberChange::Add(new(4)));
    let leaves = edited(&joins, &MemberChange::Remove(1));
    let gone = leaves.joint(|_| true, Leavers::Go).unwrap().after_joint();
    for (membership, change) in [
        (&joins, MemberChange::Add(new(4))),
        (&joins, MemberChange::Promote(4)),
        (&joins, MemberChange::Promote(1)),
        (&leaves, MemberChange::Remove(1)),
        (&gone, MemberChange::Remove(1)),
        (&gone, MemberChange::Promote(4)),
    ] {
        assert_eq!(membership.edited(&change), Ok(None), "{change:?}");
    }
}

#[test]
fn requests_that_cannot_be_carried_out_are_refused_by_name() {
    let (one, three) = (voters(1), voters(3));
    let gone = edited(&three, &MemberChange::Remove(3)).joint(|_| true, Leavers::Go).unwrap();
    assert_eq!(gone.edited(&MemberChange::Promote(1)), Err(ChangeError::Busy(ConfigId::default())));
    let gone = gone.after_joint();
    let taken = NewMember { node: Some(2), ..new(9) };
    let removed = NewMember { node: Some(3), ..new(9) };
    let replacing =
        edited(&three, &MemberChange::Add(NewMember { joins_as: instead_of(3), ..new(4) }));
    let same_address = NewMember { peer_addr: "peer:1".to_owned(), ..new(9) };
    for (membership, change, error) in [
        (&one, MemberChange::Remove(1), ChangeError::LastVoter(1)),
        (&one, MemberChange::Demote(1), ChangeError::LastVoter(1)),
        (&one, MemberChange::Promote(7), ChangeError::UnknownMember(7)),
        (&gone, MemberChange::Promote(3), ChangeError::MemberRemoved(3)),
        (&gone, MemberChange::Add(removed), ChangeError::MemberRemoved(3)),
        (&three, MemberChange::Add(taken), ChangeError::IdTaken(2)),
        (&replacing, MemberChange::Add(NewMember { joins_as: instead_of(3), ..new(5) }), {
            ChangeError::BeingReplaced { node: 3, by: 4 }
        }),
        (&three, MemberChange::Replace { old: 1, new: 1 }, ChangeError::NotReplaceable(1)),
        (&three, MemberChange::Add(same_address), {
            ChangeError::Invalid(MembershipError::DuplicateAddress("peer:1".to_owned()))
        }),
    ] {
        assert_eq!(membership.edited(&change), Err(error), "{change:?}");
    }
}

/// All but the last of two voters may leave, also if both were asked to.
#[test]
fn the_last_voter_stays() {
    let two = voters(2);
    let leaves = edited(&two, &MemberChange::Remove(1));
    assert_eq!(leaves.edited(&MemberChange::Remove(2)), Err(ChangeError::LastVoter(2)));
}

#[test]
fn an_id_is_never_given_twice() {
    let joins = edited(&voters(1), &MemberChange::Add(new(2)));
    let gone = edited(&joins, &MemberChange::Remove(2));
    let again = edited(&gone, &MemberChange::Add(new(2)));
    assert_eq!(roles(&again), [(1, MemberRole::Voter), (3, JOINING)]);
}

/// One typing error must not use up the ids of all later nodes.
#[test]
fn an_id_far_above_all_others_is_refused() {
    let wanted = |node| MemberChange::Add(NewMember { node: Some(node), ..new(2) });
    let refused = voters(1).edited(&wanted(1_002)).unwrap_err();
    assert_eq!(refused, ChangeError::IdTooHigh { wanted: 1_002, last: 1 });
    assert!(refused.to_string().contains("at most 1000 are skipped"), "{refused}");
    assert!(voters(1).edited(&wanted(u64::MAX)).is_err());
    assert_eq!(edited(&voters(1), &wanted(1_001)).last_node(), 1_001);
}

#[test]
fn a_replacement_may_use_the_address_of_the_node_that_it_replaces() {
    let mut moved = new(9);
    moved.peer_addr = "peer:3".to_owned();
    moved.client_addr = "client:3".to_owned();
    assert!(voters(3).edited(&MemberChange::Add(moved.clone())).is_err());
    moved.joins_as = instead_of(3);
    let joins = edited(&voters(3), &MemberChange::Add(moved));
    let joint = joins.joint(|_| true, Leavers::Go).unwrap();
    assert_eq!(Membership::decode(&joint.encode()), Ok(joint));
}

/// A learner that replaces a voter, a voter that becomes a learner.
#[test]
fn learners_replace_and_voters_learn() {
    let learns =
        edited(&voters(2), &MemberChange::Add(NewMember { joins_as: JoinAs::Learner, ..new(3) }));
    assert_eq!(learns.joint(|_| true, Leavers::Go), None, "a learner stays one");
    let swaps = edited(&learns, &MemberChange::Replace { old: 1, new: 3 });
    let swaps = edited(&swaps, &MemberChange::Demote(2));
    let joint = swaps.joint(|_| true, Leavers::Go).unwrap();
    assert_eq!(roles(&joint.after_joint()), [(2, MemberRole::Learner), (3, MemberRole::Voter)]);
    let back = joint.before_joint();
    assert_eq!(roles(&back), roles(&swaps));
}

/// A voter whose place another node takes leaves in that step: what contradicts it is refused, so
/// that the order of two requests does not decide what becomes of the voter.
#[test]
fn a_voter_that_is_being_replaced_is_neither_demoted_nor_promoted() {
    let replaced =
        edited(&voters(3), &MemberChange::Add(NewMember { joins_as: instead_of(1), ..new(4) }));
    let removed = edited(&replaced, &MemberChange::Remove(1));
    let refused = Err(ChangeError::BeingReplaced { node: 1, by: 4 });
    for before in [&replaced, &removed] {
        assert_eq!(before.edited(&MemberChange::Demote(1)), refused);
        assert_eq!(before.edited(&MemberChange::Promote(1)), refused);
    }
    // The other order, and without the node that was to replace it.
    let demoted = edited(&voters(3), &MemberChange::Demote(1));
    let replaced_too =
        edited(&demoted, &MemberChange::Add(NewMember { joins_as: instead_of(1), ..new(4) }));
    let end = replaced_too.joint(|_| true, Leavers::Go).unwrap().after_joint();
    assert_eq!(end.member(NodeId::new(1).unwrap()), None);
    let kept = edited(&removed, &MemberChange::Remove(4));
    assert!(kept.edited(&MemberChange::Promote(1)).is_ok());
}

/// The same directory never gets a second id, and a request that would need too many voters is
/// refused at once, not when the intent is executed.
#[test]
fn a_directory_has_one_id_and_nine_nodes_vote_at_most() {
    let joins = edited(&voters(3), &MemberChange::Add(new(4)));
    let other_id = NewMember { node: Some(7), peer_addr: "peer:7".to_owned(), ..new(4) };
    let refused = joins.edited(&MemberChange::Add(other_id));
    let duplicate = MembershipError::DuplicateDirectory(4);
    assert_eq!(refused, Err(ChangeError::Invalid(duplicate)));
    let eight = voters(8);
    let nine = edited(&eight, &MemberChange::Add(new(9)));
    let ten = MemberChange::Add(new(10));
    assert_eq!(nine.edited(&ten), Err(ChangeError::Invalid(MembershipError::TooMany)));
    let learns = NewMember { joins_as: JoinAs::Learner, ..new(10) };
    assert!(nine.edited(&MemberChange::Add(learns)).is_ok());
}

/// A voter that was on its way out before it was replaced is on its way out after a rollback too.
#[test]
fn a_rollback_restores_every_intent() {
    for (change, role) in [
        (MemberChange::Remove(3), MemberRole::Leaving),
        (MemberChange::Demote(3), MemberRole::Demoting),
    ] {
        let leaves = edited(&voters(3), &change);
        let add = MemberChange::Add(NewMember { joins_as: instead_of(3), ..new(4) });
        let joins = edited(&leaves, &add);
        let joint = joins.joint(|_| true, Leavers::Go).unwrap();
        assert!(joint.after_joint().has_removed(3));
        assert_eq!(roles(&joint.before_joint())[2], (3, role));
    }
}

/// A voter that takes over from another one stays, also if it was to leave.
#[test]
fn a_replacement_that_votes_already_stays() {
    let leaves = edited(&voters(2), &MemberChange::Demote(2));
    let swapped = edited(&leaves, &MemberChange::Replace { old: 1, new: 2 });
    assert_eq!(roles(&swapped), [(1, MemberRole::Leaving), (2, MemberRole::Voter)]);
}
