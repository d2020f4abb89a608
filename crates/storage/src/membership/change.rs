//! Changes of a membership: what callers request, and the steps by which a leader carries it out.
//!
//! A request names a goal. The leader writes it into the log as an *intent*: a role such as
//! [`MemberRole::Joining`]. The leader at any later time takes the steps that the roles call for:
//! into a joint configuration with all members that are ready, and out of it again. A request that
//! is repeated changes nothing.

use d_engine_core::{Configuration, NodeId};

use super::request::{
    ChangeError, ID_SKIP_MAX, JoinAs, MemberChange, NewMember, canonical_address,
};
use super::{ConfigId, Member, MemberRole, Membership, MembershipError, VoterIntent};

/// Whether voters that are to stop voting do so in the next joint configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leavers {
    /// Those that are to leave or to learn stop voting.
    Go,
    /// Only those that another node replaces stop voting.
    Stay,
}

impl Membership {
    /// The membership after a request; `None` if its goal is reached or already intended.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn edited(&self, change: &MemberChange) -> Result<Option<Self>, ChangeError> {
        if self.is_joint() {
            return Err(ChangeError::Busy(self.id));
        }
        let before = self.canonical();
        let mut next = before.clone();
        match &change.canonical() {
            MemberChange::Add(new) => next.add(new)?,
            MemberChange::Remove(node) => next.remove(*node)?,
            MemberChange::Replace { old, new } => next.replace(*old, *new)?,
            MemberChange::Promote(node) => {
                next.is_not_replaced(*node)?;
                let role = &mut next.get_mut(*node)?.role;
                *role = match *role {
                    MemberRole::Learner => MemberRole::Joining { replaces: None },
                    MemberRole::Leaving | MemberRole::Demoting => MemberRole::Voter,
                    role => role,
                };
            }
            MemberChange::Demote(node) => {
                next.is_not_replaced(*node)?;
                let role = &mut next.get_mut(*node)?.role;
                *role = match *role {
                    MemberRole::Voter | MemberRole::Leaving => MemberRole::Demoting,
                    MemberRole::Joining { .. } => MemberRole::Learner,
                    role => role,
                };
            }
            MemberChange::Invite(invitation) => next.invite(invitation)?,
            MemberChange::Withdraw(address) => next.withdraw(address),
            MemberChange::Admit(admission) => next.admission = *admission,
            MemberChange::UpdateAddress { node, peer_addr, client_addr } => {
                let member = next.get_mut(*node)?;
                member.peer_addr = peer_addr.clone().unwrap_or_else(|| member.peer_addr.clone());
                let client_addr = client_addr.clone();
                member.client_addr = client_addr.unwrap_or_else(|| member.client_addr.clone());
            }
        }
        if next == before {
            return Ok(None);
        }
        if let MemberChange::Remove(node)
        | MemberChange::Demote(node)
        | MemberChange::Replace { old: node, .. } = change
            && !next.keeps_a_voter()
        {
            return Err(ChangeError::LastVoter(*node));
        }
        if next.intended_voters() > Configuration::VOTERS_MAX {
            return Err(MembershipError::TooMany.into());
        }
        Ok(Some(next.checked()?))
    }

    /// The same with all addresses in canonical form: an earlier program has kept them as they were
    /// written.
    fn canonical(&self) -> Self {
        let mut same = self.clone();
        for member in &mut same.members {
            member.peer_addr = canonical_address(&member.peer_addr);
            member.client_addr = canonical_address(&member.client_addr);
        }
        for invitation in &mut same.invitations {
            invitation.peer_addr = canonical_address(&invitation.peer_addr);
        }
        same
    }

    /// Whether a voter is left once every intent is executed, not counting nodes that join without
    /// replacing a voter: they may never keep up.
    fn keeps_a_voter(&self) -> bool {
        let replaced = |node: u64| {
            self.members.iter().any(
                |it| matches!(it.role, MemberRole::Joining { replaces } if replaces == Some(node)),
            )
        };
        self.members.iter().any(|it| it.role == MemberRole::Voter || replaced(it.node))
    }

    /// How many would vote if all that join did and nobody had left yet who is not replaced.
    fn intended_voters(&self) -> usize {
        let added = |role: MemberRole| match role {
            MemberRole::Voter | MemberRole::Leaving | MemberRole::Demoting => true,
            MemberRole::Joining { replaces } => replaces.is_none(),
            _ => false,
        };
        self.members.iter().filter(|member| added(member.role)).count()
    }

    fn get_mut(&mut self, node: u64) -> Result<&mut Member, ChangeError> {
        let removed = self.has_removed(node);
        let found = self.members.iter_mut().find(|member| member.node == node);
        found.ok_or(if removed {
            ChangeError::MemberRemoved(node)
        } else {
            ChangeError::UnknownMember(node)
        })
    }

    fn add(&mut self, new: &NewMember) -> Result<(), ChangeError> {
        let same = |member: &&Member| member.incarnation == Some(new.incarnation);
        if let Some(known) = self.members.iter().find(same) {
            return match new.node.is_none_or(|id| id == known.node) {
                true => Ok(()),
                false => Err(MembershipError::DuplicateDirectory(known.node).into()),
            };
        }
        let node = match new.node {
            Some(node) if self.find(node).is_some() => return Err(ChangeError::IdTaken(node)),
            Some(node) if self.has_removed(node) => return Err(ChangeError::MemberRemoved(node)),
            Some(node) if node > self.last_node.saturating_add(ID_SKIP_MAX) => {
                return Err(ChangeError::IdTooHigh { wanted: node, last: self.last_node });
            }
            Some(node) => node,
            None => self.last_node.checked_add(1).ok_or(MembershipError::ReservedId)?,
        };
        let joins_as = self.take_invitation(new)?;
        if let JoinAs::Voter { replaces: Some(old) } = joins_as {
            self.may_replace(old, node)?;
        }
        self.last_node = self.last_node.max(node);
        self.members.push(Member {
            node,
            peer_addr: new.peer_addr.clone(),
            client_addr: new.client_addr.clone(),
            role: match joins_as {
                JoinAs::Voter { replaces } => MemberRole::Joining { replaces },
                JoinAs::Learner => MemberRole::Learner,
            },
            incarnation: Some(new.incarnation),
        });
        Ok(())
    }

    fn remove(&mut self, node: u64) -> Result<(), ChangeError> {
        if self.has_removed(node) {
            return Ok(());
        }
        let member = self.get_mut(node)?;
        match member.role {
            MemberRole::Voter | MemberRole::Demoting => member.role = MemberRole::Leaving,
            MemberRole::Learner | MemberRole::Joining { .. } => {
                self.members.retain(|member| member.node != node);
            }
            _ => {}
        }
        Ok(())
    }

    fn replace(&mut self, old: u64, new: u64) -> Result<(), ChangeError> {
        if self.has_removed(old) && self.find(new).is_some_and(|it| it.role == MemberRole::Voter) {
            return Ok(());
        }
        self.may_replace(old, new)?;
        let member = self.get_mut(new)?;
        match member.role {
            MemberRole::Learner | MemberRole::Joining { .. } => {
                member.role = MemberRole::Joining { replaces: Some(old) };
                Ok(())
            }
            // It votes already, and stays: what is left is to remove the other one.
            _ => {
                member.role = MemberRole::Voter;
                self.remove(old)
            }
        }
    }

    /// A node that another one replaces leaves, whatever else is asked of it.
    fn is_not_replaced(&self, node: u64) -> Result<(), ChangeError> {
        let replaces = MemberRole::Joining { replaces: Some(node) };
        match self.members.iter().find(|it| it.role == replaces) {
            Some(by) => Err(ChangeError::BeingReplaced { node, by: by.node }),
            None => Ok(()),
        }
    }

    pub(super) fn may_replace(&mut self, old: u64, new: u64) -> Result<(), ChangeError> {
        let replaces = MemberRole::Joining { replaces: Some(old) };
        if let Some(by) = self.members.iter().find(|it| it.node != new && it.role == replaces) {
            return Err(ChangeError::BeingReplaced { node: old, by: by.node });
        }
        let votes = matches!(
            self.get_mut(old)?.role,
            MemberRole::Voter | MemberRole::Leaving | MemberRole::Demoting
        );
        if !votes || old == new {
            return Err(ChangeError::NotReplaceable(old));
        }
        Ok(())
    }

    /// Whether some member is to vote, to stop voting or to leave.
    #[must_use]
    pub fn has_intents(&self) -> bool {
        self.members.iter().any(|member| {
            matches!(
                member.role,
                MemberRole::Joining { .. } | MemberRole::Leaving | MemberRole::Demoting
            )
        })
    }

    /// The joint membership that executes all intents that are ready: `keeps_up` tells which
    /// joining nodes may vote; with [`Leavers::Stay`] voters stay unless they are replaced. `None`
    /// if there is nothing to do.
    #[must_use]
    pub fn joint(&self, keeps_up: impl Fn(NodeId) -> bool, leavers: Leavers) -> Option<Self> {
        if self.is_joint() {
            return None;
        }
        let mut next = self.clone();
        for member in &mut next.members {
            member.role = match member.role {
                MemberRole::Joining { replaces }
                    if NodeId::new(member.node).is_some_and(&keeps_up) =>
                {
                    MemberRole::Incoming { replaces }
                }
                MemberRole::Leaving if leavers == Leavers::Go => {
                    MemberRole::Outgoing { before: VoterIntent::Leave }
                }
                MemberRole::Demoting if leavers == Leavers::Go => MemberRole::OutgoingToLearn,
                role => role,
            };
        }
        let replaced: Vec<u64> = next.members.iter().filter_map(|it| it.role.replaced()).collect();
        for member in next.members.iter_mut().filter(|member| replaced.contains(&member.node)) {
            member.role = match member.role {
                MemberRole::Voter => MemberRole::Outgoing { before: VoterIntent::Stay },
                MemberRole::Leaving => MemberRole::Outgoing { before: VoterIntent::Leave },
                MemberRole::Demoting | MemberRole::OutgoingToLearn => {
                    MemberRole::Outgoing { before: VoterIntent::Learn }
                }
                role => role,
            };
        }
        (next.is_joint() && next.members.iter().any(|member| member.role.is_incoming()))
            .then_some(next)
    }

    /// The membership after a joint one: the incoming voters vote; the outgoing ones are removed or
    /// are learners.
    #[must_use]
    pub fn after_joint(&self) -> Self {
        let mut next = self.clone();
        next.members.retain(|member| !matches!(member.role, MemberRole::Outgoing { .. }));
        for member in &mut next.members {
            member.role = match member.role {
                MemberRole::Incoming { .. } => MemberRole::Voter,
                MemberRole::OutgoingToLearn => MemberRole::Learner,
                role => role,
            };
        }
        next
    }

    /// The membership to which a joint one rolls back. The intents stay, to be executed later.
    #[must_use]
    pub fn before_joint(&self) -> Self {
        let mut next = self.clone();
        for member in &mut next.members {
            member.role = match member.role {
                MemberRole::Incoming { replaces } => MemberRole::Joining { replaces },
                MemberRole::Outgoing { before: VoterIntent::Stay } => MemberRole::Voter,
                MemberRole::Outgoing { before: VoterIntent::Leave } => MemberRole::Leaving,
                MemberRole::Outgoing { before: VoterIntent::Learn } => MemberRole::Demoting,
                MemberRole::OutgoingToLearn => MemberRole::Demoting,
                role => role,
            };
        }
        next
    }

    /// The same members, named as the membership after `before`, written by the leader of `term`.
    #[must_use]
    pub fn following(self, before: &Self, term: u64) -> Self {
        Self { id: ConfigId { term, version: before.id.version + 1 }, ..self }
    }
}

impl MemberRole {
    /// The voter that leaves in the step by which this one votes.
    fn replaced(self) -> Option<u64> {
        match self {
            Self::Incoming { replaces } => replaces,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
