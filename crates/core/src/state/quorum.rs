//! The configuration of a cluster and what a majority of it means, alone and joint
//! (Raft paper, section 6). Pure functions; `tests/model_quorum.rs` holds them against a
//! brute-force oracle.

use alloc::vec::Vec;

use crate::{LogIndex, NodeId};

/// Who votes. With `outgoing` set the configuration is joint: every decision needs a majority of
/// both voter sets (Raft paper, section 6). Learners receive the log and decide nothing.
///
/// The lists are sorted and free of duplicates; [`Configuration::new`] sees to it.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Configuration {
    voters: Vec<NodeId>,
    outgoing: Vec<NodeId>,
    learners: Vec<NodeId>,
}

/// A legal step from one configuration to the next. A change of the voters always goes through a
/// joint configuration (Raft paper, section 6), also if it concerns a single voter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MembershipStep {
    /// The same voters: learners come or go, or only what the core does not see has changed.
    SameVoters,
    /// From a set of voters to the joint configuration of it and another one.
    EnterJoint,
    /// From a joint configuration to its incoming voters.
    LeaveJoint,
    /// From a joint configuration back to its outgoing voters.
    RollBack,
}

impl Configuration {
    /// The most voters that a set may have.
    pub const VOTERS_MAX: usize = 9;
    /// The most members, voters and learners, that a configuration may have.
    pub const MEMBERS_MAX: usize = 64;

    /// A configuration in which `voters` decide by simple majority and `learners` only receive the
    /// log.
    #[must_use]
    pub fn new(
        voters: impl IntoIterator<Item = NodeId>,
        learners: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        Self { voters: sorted(voters), outgoing: Vec::new(), learners: sorted(learners) }
    }

    /// A configuration of no members: it never has a quorum.
    pub(crate) const fn nobody() -> Self {
        Self { voters: Vec::new(), outgoing: Vec::new(), learners: Vec::new() }
    }

    /// The joint configuration of the change from `self` to `next`.
    #[must_use]
    pub fn joint_with(&self, next: &Self) -> Self {
        Self {
            voters: next.voters.clone(),
            outgoing: self.voters.clone(),
            learners: next.learners.clone(),
        }
    }

    /// The step from this configuration to `next`; `None` if the algorithm excludes it. A joint
    /// configuration is left for one of its two sets and for nothing else; in particular no joint
    /// configuration follows another one, and none is skipped.
    #[must_use]
    pub fn step_to(&self, next: &Self) -> Option<MembershipStep> {
        let votes_and_learns = next.learners.iter().any(|node| next.voters.contains(node));
        let too_many = next.voters.len() > Self::VOTERS_MAX
            || next.members().len() > Self::MEMBERS_MAX
            || next.voters.is_empty();
        if votes_and_learns || too_many {
            return None;
        }
        match (self.is_joint(), next.is_joint()) {
            (false, false) if next.voters == self.voters => Some(MembershipStep::SameVoters),
            (false, true) if next.outgoing == self.voters && next.voters != self.voters => {
                Some(MembershipStep::EnterJoint)
            }
            (true, false) if next.voters == self.voters => Some(MembershipStep::LeaveJoint),
            (true, false) if next.voters == self.outgoing => Some(MembershipStep::RollBack),
            _ => None,
        }
    }

    /// The voters of the incoming (or only) set, sorted.
    #[must_use]
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// The voters of the outgoing set while the configuration is joint, else empty.
    #[must_use]
    pub fn outgoing(&self) -> &[NodeId] {
        &self.outgoing
    }

    /// The learners, sorted.
    #[must_use]
    pub fn learners(&self) -> &[NodeId] {
        &self.learners
    }

    /// Whether both majorities are needed.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `node` alone decides.
    #[must_use]
    pub fn is_sole_voter(&self, node: NodeId) -> bool {
        self.voters == [node] && !self.is_joint()
    }

    /// Whether leadership may be transferred to `node`: it votes and is not on its way out.
    #[must_use]
    pub fn may_take_over(&self, node: NodeId) -> bool {
        self.voters.binary_search(&node).is_ok()
    }

    /// Whether `node` votes, in either set.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.binary_search(&node).is_ok() || self.outgoing.binary_search(&node).is_ok()
    }

    /// The nodes that receive the log: voters of both sets and learners, sorted, each once.
    #[must_use]
    pub fn members(&self) -> Vec<NodeId> {
        sorted(self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied())
    }

    /// Whether the nodes for which `yes` holds form a quorum: a majority of the voters and, while
    /// joint, also a majority of the outgoing voters. An empty configuration never has a quorum.
    pub fn has_quorum(&self, mut yes: impl FnMut(NodeId) -> bool) -> bool {
        !self.voters.is_empty()
            && has_majority(&self.voters, &mut yes)
            && (self.outgoing.is_empty() || has_majority(&self.outgoing, &mut yes))
    }

    /// Whether a quorum is impossible because of the nodes for which `no` holds.
    pub fn is_lost(&self, mut no: impl FnMut(NodeId) -> bool) -> bool {
        !self.has_quorum(|node| !no(node))
    }

    /// The highest value that a quorum has reached, where `value_of` returns the value of each
    /// node: the commit index over match indexes, or the time of last contact with a quorum. The
    /// default value for an empty configuration.
    pub fn reached_by_quorum<T: Ord + Copy + Default>(
        &self,
        mut value_of: impl FnMut(NodeId) -> T,
    ) -> T {
        let incoming = reached_by_majority(&self.voters, &mut value_of);
        if self.outgoing.is_empty() {
            return incoming;
        }
        incoming.min(reached_by_majority(&self.outgoing, &mut value_of))
    }

    /// The highest index that a quorum holds; see [`Configuration::reached_by_quorum`].
    pub fn committed_index(&self, match_of: impl FnMut(NodeId) -> LogIndex) -> LogIndex {
        self.reached_by_quorum(match_of)
    }
}

fn sorted(nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

fn has_majority(voters: &[NodeId], yes: &mut impl FnMut(NodeId) -> bool) -> bool {
    let count = voters.iter().filter(|node| yes(**node)).count();
    count > voters.len() / 2
}

fn reached_by_majority<T: Ord + Copy + Default>(
    voters: &[NodeId],
    value_of: &mut impl FnMut(NodeId) -> T,
) -> T {
    let mut values: Vec<T> = voters.iter().map(|node| value_of(*node)).collect();
    // Ascending: the value at position (n - 1) / 2 has a majority at or above it.
    values.sort_unstable();
    values.len().checked_sub(1).and_then(|last| values.get(last / 2).copied()).unwrap_or_default()
}
