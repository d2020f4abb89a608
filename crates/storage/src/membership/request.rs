//! What callers request of a membership, and why a request is refused.

use d_engine_core::Incarnation;
use serde::{Deserialize, Serialize};

use super::{ConfigId, MemberRole, Membership, MembershipError};

/// A node that is added to a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewMember {
    /// Its id; `None` lets the leader give it the next one.
    pub node: Option<u64>,
    /// The address for other nodes, as `host:port`.
    pub peer_addr: String,
    /// The address for clients, as `host:port`; empty if it serves none.
    pub client_addr: String,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// What it becomes.
    pub joins_as: JoinAs,
}

/// What a new member becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinAs {
    /// It votes once it keeps up with the log.
    Voter {
        /// The voter that leaves in the same step.
        replaces: Option<u64>,
    },
    /// It receives the log and does not vote.
    Learner,
}

/// A change of a membership. Each names a goal; repeating it changes nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// A node joins. The same data directory joins once only.
    Add(NewMember),
    /// A member leaves for ever; its id is never given again.
    Remove(u64),
    /// A learner or joining node votes in place of another voter, in one step.
    Replace {
        /// The voter that leaves.
        old: u64,
        /// The member that votes instead.
        new: u64,
    },
    /// A learner votes once it keeps up.
    Promote(u64),
    /// A voter becomes a learner.
    Demote(u64),
    /// A member has moved.
    UpdateAddress {
        /// The member.
        node: u64,
        /// Its new address for other nodes.
        peer_addr: Option<String>,
        /// Its new address for clients.
        client_addr: Option<String>,
    },
    /// A node with this address is to join.
    Invite(Invitation),
    /// The node with this address is not to join after all.
    Withdraw(String),
    /// From now on, these nodes may join.
    Admit(Admission),
}

/// The one form of an address, so that equal addresses are equal as text: the case of host names
/// and of IPv6 addresses does not matter.
#[must_use]
pub fn canonical_address(address: &str) -> String {
    address.to_ascii_lowercase()
}

impl MemberChange {
    /// The same change with its addresses in canonical form.
    pub(super) fn canonical(&self) -> Self {
        let mut change = self.clone();
        let (peer, client) = match &mut change {
            Self::Add(new) => (Some(&mut new.peer_addr), Some(&mut new.client_addr)),
            Self::UpdateAddress { peer_addr, client_addr, .. } => {
                (peer_addr.as_mut(), client_addr.as_mut())
            }
            Self::Invite(invitation) => (Some(&mut invitation.peer_addr), None),
            Self::Withdraw(address) => (Some(address), None),
            Self::Remove(_)
            | Self::Replace { .. }
            | Self::Promote(_)
            | Self::Demote(_)
            | Self::Admit(_) => (None, None),
        };
        for address in [peer, client].into_iter().flatten() {
            *address = canonical_address(address);
        }
        change
    }

    /// Whether `membership` shows the goal, with nothing left to do for it.
    #[must_use]
    pub fn is_reached_by(&self, membership: &Membership) -> bool {
        let role = |node: u64| membership.find(node).map(|member| member.role);
        let is_reached = match self {
            Self::Add(new) => {
                membership.members.iter().any(|it| it.incarnation == Some(new.incarnation))
            }
            Self::Remove(node) => role(*node).is_none(),
            Self::Replace { old, new } => {
                role(*old).is_none() && role(*new) == Some(MemberRole::Voter)
            }
            Self::Promote(node) => role(*node) == Some(MemberRole::Voter),
            Self::Demote(node) => role(*node) == Some(MemberRole::Learner),
            Self::UpdateAddress { .. } | Self::Invite(_) | Self::Withdraw(_) | Self::Admit(_) => {
                membership.edited(self) == Ok(None)
            }
        };
        is_reached && !membership.is_joint()
    }
}

/// How many ids a new member may leave out.
pub(super) const ID_SKIP_MAX: u64 = 1_000;

/// Why a membership is not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The caller decided on the basis of another membership. List the members and decide again.
    #[error(
        "the request expected configuration {expected}, but the current one is {current}; list the \
         members and decide again"
    )]
    Stale {
        /// What the caller expected.
        expected: ConfigId,
        /// What is in force.
        current: ConfigId,
    },
    /// A voter change is in progress, this leader has just been elected, or it transfers its
    /// leadership. Retry a little later.
    #[error(
        "another membership change or a leadership transfer is in progress (configuration {0}); \
         retry when it is done"
    )]
    Busy(ConfigId),
    /// There is no such member and never was.
    #[error("node {0} has never been a member")]
    UnknownMember(u64),
    /// The member was removed, or its id was skipped; the id is not given again.
    #[error("node {0} was removed, or its id was skipped; the id is not used again")]
    MemberRemoved(u64),
    /// No voter would be certain to stay. Add or keep another voter first.
    #[error(
        "once node {0} stops voting, no other voter is certain to stay; add another voter first, \
         or promote one that is to leave"
    )]
    LastVoter(u64),
    /// The node that is to be replaced does not vote, or would replace itself. Remove it instead.
    #[error(
        "node {0} cannot be replaced: it does not vote; `d-engine member remove {0}` removes it"
    )]
    NotReplaceable(u64),
    /// Another node takes its place in the step in which it stops voting. Remove that node first,
    /// or let it take the place.
    #[error(
        "node {by} is to take the place of node {node}: let it, or remove it first with `d-engine \
         member remove {by}`, if node {node} is to stay or node {by} is lost"
    )]
    BeingReplaced {
        /// The member.
        node: u64,
        /// The node that replaces it.
        by: u64,
    },
    /// The id belongs to another data directory.
    #[error(
        "node {0} is bound to another directory; leave the id out, and if that directory was lost, \
         name it as the one to replace"
    )]
    IdTaken(u64),
    /// The id is far above all that were given. An id is given once, so a typing error would use up
    /// all below it.
    #[error(
        "the id {wanted} is too high: the highest one given is {last}, and at most {} are skipped; \
         leave the id out, or choose a lower one",
        ID_SKIP_MAX
    )]
    IdTooHigh {
        /// The id.
        wanted: u64,
        /// The highest id that was given.
        last: u64,
    },
    /// The node is not invited. Invite the address that it advertises, or admit all nodes.
    #[error(
        "the node at {peer_addr} is not invited; invite it with `{}`, and it joins by itself",
        invites(peer_addr, JoinAs::Voter { replaces: *.replaces })
    )]
    NotInvited {
        /// The address that it advertises.
        peer_addr: String,
        /// The voter in whose place it asks to vote.
        replaces: Option<u64>,
    },
    /// The node is to join in another way than it was invited to.
    #[error(
        "the node at {peer_addr} was invited {}, and asks {}; change its configuration, or invite \
         it anew with `{}`",
        in_words(*.invited),
        in_words(*.asks),
        invites(peer_addr, *.asks)
    )]
    InvitedOtherwise {
        /// The address that it advertises.
        peer_addr: String,
        /// What it was invited to become.
        invited: JoinAs,
        /// What it asks to become.
        asks: JoinAs,
    },
    /// So many invitations wait already. Withdraw those that are not needed.
    #[error(
        "{INVITATIONS_MAX} invited nodes have not joined yet; withdraw an invitation with \
         `d-engine member add --peer ADDRESS --withdraw`"
    )]
    TooManyInvitations,
    /// The membership would break a rule.
    #[error(transparent)]
    Invalid(#[from] MembershipError),
}

/// The highest number of invited nodes that have not joined yet.
pub(super) const INVITATIONS_MAX: usize = 64;

/// Which nodes may join a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Every node that reaches a member.
    #[default]
    Open,
    /// Nodes whose address was announced.
    Invited,
}

/// A node that is to join.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct Invitation {
    /// The address for other nodes that it advertises, as `host:port`. That a node may be reached
    /// there is for the caller to check.
    pub peer_addr: String,
    /// The voter in whose place it is to vote.
    pub replaces: Option<u64>,
}

/// The command that invites a node to become this. An invitation to vote admits a learner too.
fn invites(peer_addr: &str, joins_as: JoinAs) -> String {
    match joins_as {
        JoinAs::Voter { replaces: Some(old) } => {
            format!("d-engine member replace {old} --peer {peer_addr}")
        }
        _ => format!("d-engine member add --peer {peer_addr}"),
    }
}

/// What a node becomes, as part of a sentence.
fn in_words(joins_as: JoinAs) -> String {
    match joins_as {
        JoinAs::Learner => "to become a learner".to_owned(),
        JoinAs::Voter { replaces: None } => "to vote".to_owned(),
        JoinAs::Voter { replaces: Some(old) } => format!("to vote in place of node {old}"),
    }
}
