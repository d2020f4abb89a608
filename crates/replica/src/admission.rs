//! Which peers a node talks to. Configurations that are in the log but not committed may be
//! superseded, so nobody is refused because of one, and nobody leaves because of one.

use std::collections::BTreeMap;

use d_engine_core::NodeId;
use d_engine_storage::{Admission as JoinAdmission, ConfigId, Incarnation, Membership};

/// The result of [`Admission::judge`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admitted {
    /// The peer is a member of a configuration that may decide something.
    Member,
    /// This node does not know the peer, but the peer knows a later configuration than the last one
    /// that is committed here, and may be a member of it. It is admitted for a while: it may be the
    /// leader from which this node learns that configuration.
    Provisional,
    /// A committed configuration lacks the peer, whose id was given once.
    Removed {
        /// That configuration.
        by: ConfigId,
    },
    /// No committed configuration has ever had the peer.
    Unknown,
    /// The cluster has bound the peer's id to another data directory.
    OtherIncarnation {
        /// The incarnation of that directory.
        bound: Incarnation,
    },
}

/// What a node must know to judge its peers; a copy that the transport's handshakes read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Admission {
    /// The members of all configurations from the last committed one on, with the directories to
    /// which they are bound.
    known: BTreeMap<u64, Option<Incarnation>>,
    /// The last committed membership; `None` at a node that has joined and received none yet.
    committed: Option<Membership>,
    in_force: ConfigId,
}

impl Admission {
    /// `in_play` are the memberships from the last committed one on, in the order of the log.
    #[must_use]
    pub fn new<'a>(in_play: impl Iterator<Item = &'a Membership>) -> Self {
        let mut admission = Self::default();
        let mut is_first = true;
        for membership in in_play {
            if std::mem::take(&mut is_first) {
                admission.committed = Some(membership.clone()).filter(|it| !it.is_nobody());
            }
            admission.in_force = membership.id();
            for member in membership.members() {
                let bound = admission.known.entry(member.node).or_default();
                *bound = bound.or(member.incarnation);
            }
        }
        admission
    }

    /// The name of the membership in force, the last one in the log.
    #[must_use]
    pub fn in_force(&self) -> ConfigId {
        self.in_force
    }

    /// The name of the last committed membership; `None` at a node that has received none yet.
    #[must_use]
    pub fn committed(&self) -> Option<ConfigId> {
        self.committed.as_ref().map(Membership::id)
    }

    /// Whether only invited nodes may join, as of the last committed membership.
    #[must_use]
    pub fn is_by_invitation(&self) -> bool {
        self.committed.as_ref().is_some_and(|it| it.admission() == JoinAdmission::Invited)
    }

    /// The ids of the members of all configurations that may decide something, in rising order.
    pub fn members(&self) -> impl Iterator<Item = u64> {
        self.known.keys().copied()
    }

    /// Whether the last committed configuration has this node, with this data directory unless it
    /// is not bound yet. Only such a node is believed that it was this node that was removed.
    #[must_use]
    pub fn is_committed_member(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let member = self.committed.as_ref().and_then(|committed| committed.member(node));
        member.is_some_and(|member| member.incarnation.is_none_or(|bound| bound == incarnation))
    }

    /// Whether a member of the last committed configuration is bound to this data directory.
    #[must_use]
    pub fn is_directory_of_member(&self, incarnation: Incarnation) -> bool {
        self.committed.as_ref().is_some_and(|committed| {
            committed.members().iter().any(|member| member.incarnation == Some(incarnation))
        })
    }

    /// Judges a peer with this id and data directory whose last configuration is `theirs`.
    #[must_use]
    pub fn judge(&self, peer: NodeId, incarnation: Incarnation, theirs: ConfigId) -> Admitted {
        match self.known.get(&peer.get()) {
            Some(Some(bound)) if *bound != incarnation => {
                return Admitted::OtherIncarnation { bound: *bound };
            }
            Some(_) => return Admitted::Member,
            None => {}
        }
        let Some(committed) = &self.committed else { return Admitted::Provisional };
        if theirs > committed.id() {
            return Admitted::Provisional;
        }
        match committed.has_removed(peer.get()) {
            true => Admitted::Removed { by: committed.id() },
            false => Admitted::Unknown,
        }
    }
}

/// The configuration that has removed `node`, as far as `committed` shows it. `born` is the one
/// that added the node: an earlier one lacks it too, and so does the empty one of a node that has
/// joined and received no entry yet.
pub(crate) fn removed_by(committed: &Membership, node: NodeId, born: ConfigId) -> Option<ConfigId> {
    let lacks = !committed.is_nobody() && committed.member(node).is_none();
    (lacks && committed.id() > born).then(|| committed.id())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use d_engine_storage::{JoinAs, Member, MemberChange, MemberRole, NewMember};

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn directory(of: u8) -> Incarnation {
        Incarnation([of; 16])
    }

    /// Nodes 1 to 3, bound to their directories.
    fn three() -> Membership {
        let member = |number: u8| Member {
            node: number.into(),
            peer_addr: format!("peer:{number}"),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: Some(directory(number)),
        };
        Membership::new((1..=3).map(member)).unwrap()
    }

    fn with(before: &Membership, change: &MemberChange) -> Membership {
        before.edited(change).unwrap().unwrap().following(before, 4)
    }

    fn added(before: &Membership, number: u8) -> Membership {
        let new = NewMember {
            node: None,
            peer_addr: format!("peer:{number}"),
            client_addr: String::new(),
            incarnation: directory(number),
            joins_as: JoinAs::Learner,
        };
        with(before, &MemberChange::Add(new))
    }

    fn theirs(version: u64) -> ConfigId {
        ConfigId { term: 4, version }
    }

    #[test]
    fn members_of_every_configuration_that_may_decide_are_admitted_with_their_directory() {
        let (committed, later) = (three(), added(&three(), 4));
        let admission = Admission::new([&committed, &later].into_iter());
        for number in 1..=4 {
            let judged = admission.judge(node(number.into()), directory(number), theirs(0));
            assert_eq!(judged, Admitted::Member, "node {number}");
        }
        let bound = directory(2);
        let judged = admission.judge(node(2), directory(9), theirs(9));
        assert_eq!(judged, Admitted::OtherIncarnation { bound }, "however new its configuration");
        assert_eq!(admission.members().collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!((admission.in_force(), admission.committed()), (theirs(1), Some(three().id())));
    }

    /// Rule R27: a voter that lags must not refuse the leader from which it would catch up.
    #[test]
    fn a_peer_with_a_later_configuration_than_the_committed_one_is_admitted_for_a_while() {
        let committed = added(&three(), 4);
        let admission = Admission::new([&committed].into_iter());
        let judge = |version| admission.judge(node(7), directory(7), theirs(version));
        assert_eq!(judge(2), Admitted::Provisional);
        assert_eq!(judge(1), Admitted::Unknown);
        let doomed = added(&added(&committed, 5), 6);
        let admission = Admission::new([&committed, &doomed].into_iter());
        let judged = admission.judge(node(7), directory(7), theirs(2));
        assert_eq!(judged, Admitted::Provisional, "it may be the leader that supersedes ours");
    }

    #[test]
    fn a_node_that_has_joined_admits_everybody_until_it_has_received_the_members() {
        let nobody = Membership::before_joining(theirs(3));
        let admission = Admission::new([&nobody].into_iter());
        assert_eq!(admission.judge(node(1), directory(1), theirs(0)), Admitted::Provisional);
        let admission = Admission::new([&nobody, &three()].into_iter());
        assert_eq!(admission.judge(node(1), directory(1), theirs(0)), Admitted::Member);
        assert_eq!(admission.judge(node(4), directory(4), theirs(0)), Admitted::Provisional);
    }

    /// Rule R28: only what is committed removes a node.
    #[test]
    fn a_removed_node_is_told_so_once_its_removal_is_committed() {
        let before = added(&three(), 4);
        let after = with(&before, &MemberChange::Remove(4));
        let judge = |admission: &Admission| admission.judge(node(4), directory(4), theirs(1));
        let admission = Admission::new([&before, &after].into_iter());
        assert_eq!(judge(&admission), Admitted::Member);
        let admission = Admission::new([&after].into_iter());
        assert_eq!(judge(&admission), Admitted::Removed { by: after.id() });
    }

    #[test]
    fn only_members_of_what_is_committed_are_believed() {
        let (committed, later) = (three(), added(&three(), 4));
        let admission = Admission::new([&committed, &later].into_iter());
        assert!(admission.is_committed_member(node(2), directory(2)));
        assert!(!admission.is_committed_member(node(2), directory(9)), "another directory");
        assert!(!admission.is_committed_member(node(4), directory(4)), "not committed");
        assert!(admission.is_directory_of_member(directory(3)));
        assert!(!admission.is_directory_of_member(directory(4)));
        assert!(!Admission::default().is_committed_member(node(1), directory(1)));
    }

    /// Rule R26: a node that replays the log from before it joined does not find itself either.
    #[test]
    fn a_node_is_removed_only_by_a_later_configuration_than_the_one_that_added_it() {
        let (before, added) = (three(), added(&three(), 4));
        let after = with(&added, &MemberChange::Remove(4));
        let born = added.id();
        let removed = |committed: &Membership| removed_by(committed, node(4), born);
        assert_eq!(removed(&Membership::before_joining(born)), None);
        assert_eq!(removed(&before), None);
        assert_eq!(removed(&added), None);
        assert_eq!(removed(&after), Some(after.id()));
    }
}
