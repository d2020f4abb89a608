//! The members of a cluster, and changes of them: in the process that embeds a node, over the
//! network and on the command line.

use std::fmt;
use std::str::FromStr;

use crate::message::{self, MembersReply, MoveMember, ReplaceMember, change_members_request};

/// The name of a configuration. A later configuration of a cluster has a greater name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct ConfigId {
    /// The term of the leader that wrote it; 0 for the one at the cluster's birth.
    pub term: u64,
    /// Its number in the cluster's sequence of configurations.
    pub version: u64,
}

impl fmt::Display for ConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.version)
    }
}

/// A text that does not name a configuration. Write it as the members' list shows it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} names no configuration; write term and version, for example 3.8")]
pub struct NotAConfigId {
    text: String,
}

impl FromStr for ConfigId {
    type Err = NotAConfigId;

    fn from_str(text: &str) -> Result<Self, NotAConfigId> {
        let parsed = text.split_once('.').and_then(|(term, version)| {
            Some(Self { term: term.parse().ok()?, version: version.parse().ok()? })
        });
        parsed.ok_or_else(|| NotAConfigId { text: text.to_owned() })
    }
}

impl From<ConfigId> for message::ConfigId {
    fn from(id: ConfigId) -> Self {
        Self { term: id.term, version: id.version }
    }
}

impl From<message::ConfigId> for ConfigId {
    fn from(id: message::ConfigId) -> Self {
        Self { term: id.term, version: id.version }
    }
}

/// What a member does, and what it is to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum MemberRole {
    /// Votes and counts towards every quorum.
    Voter,
    /// Receives the log and does not vote.
    Learner,
    /// Receives the log, and will vote once it keeps up.
    Joining {
        /// The voter that leaves in the same step.
        replaces: Option<u64>,
    },
    /// Votes, and will be removed.
    Leaving,
    /// Votes, and will become a learner.
    Demoting,
    /// A role that this version does not know.
    #[default]
    Unknown,
}

impl MemberRole {
    /// Whether it votes now.
    #[must_use]
    pub fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Leaving | Self::Demoting)
    }

    /// Returns the role as one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Joining { .. } => "joining",
            Self::Leaving => "leaving",
            Self::Demoting => "demoting",
            Self::Unknown => "unknown",
        }
    }
}

/// Which nodes may join a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Admission {
    /// Every node that reaches a member.
    Open,
    /// Nodes whose address was announced ([`MemberChange::Invite`]).
    Invited,
    /// A rule that this version does not know.
    #[default]
    Unknown,
}

impl Admission {
    /// Returns the rule as one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Invited => "invited",
            Self::Unknown => "unknown",
        }
    }
}

/// A text that names no rule for nodes that join. Write `open` or `invited`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} names no rule for nodes that join; write open or invited")]
pub struct NotAnAdmission {
    text: String,
}

impl FromStr for Admission {
    type Err = NotAnAdmission;

    fn from_str(text: &str) -> Result<Self, NotAnAdmission> {
        let known = [Self::Open, Self::Invited].into_iter().find(|it| it.as_str() == text);
        known.ok_or_else(|| NotAnAdmission { text: text.to_owned() })
    }
}

/// A node that is to join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invitation {
    /// The address for other nodes that it advertises.
    pub peer_addr: String,
    /// The voter in whose place it is to vote.
    pub replaces: Option<u64>,
}

/// A member of a cluster. Later versions add fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Member {
    /// Its id.
    pub node: u64,
    /// Its address for other nodes.
    pub peer_addr: String,
    /// Its address for clients; `None` if it serves none.
    pub client_addr: Option<String>,
    /// What it does, and what it is to become.
    pub role: MemberRole,
    /// At the leader, about other members: how long ago it heard from this one, in milliseconds.
    pub heard_ms_ago: Option<u64>,
    /// At the leader, about other members: how many entries of its log this one lacks.
    pub lag: Option<u64>,
    /// Whether it votes in the configuration that follows a joint one. If the configuration is not
    /// joint, whether it votes. While it is joint, both sets of voters must agree.
    pub votes_next: bool,
}

/// The members of a cluster, as one node knows them. Later versions add fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Members {
    /// The node that knows them.
    pub node: u64,
    /// The cluster's id, 16 bytes.
    pub cluster_id: Vec<u8>,
    /// The configuration in force, the last one in the node's log.
    pub config: ConfigId,
    /// Whether it is committed.
    pub is_committed: bool,
    /// Its members, in rising order of their ids.
    pub list: Vec<Member>,
    /// The leader, if the node knows one.
    pub leader: Option<u64>,
    /// The configuration that has removed the node, if one has.
    pub removed_by: Option<ConfigId>,
    /// Which nodes may join.
    pub admission: Admission,
    /// The nodes that are to join and have not done so, sorted by address.
    pub invitations: Vec<Invitation>,
}

impl Members {
    /// Whether the configuration is joint: every decision needs a majority of the voters and of
    /// those that vote next.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        let differs = self.list.iter().any(|member| member.votes_next != member.role.votes());
        // An older node names no voters that follow.
        differs && self.list.iter().any(|member| member.votes_next)
    }

    /// Returns the member with this id.
    #[must_use]
    pub fn get(&self, node: u64) -> Option<&Member> {
        self.list.iter().find(|member| member.node == node)
    }
}

/// A change of the members. Each names a goal; repeating it changes nothing. Nodes are added by
/// starting them with `join`, once they are invited if the cluster admits invited nodes only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// The member leaves for ever; its id is never given again.
    Remove(u64),
    /// A learner or joining node votes in place of another voter, in one step.
    Replace {
        /// The voter that leaves.
        old: u64,
        /// The member that votes instead.
        new: u64,
    },
    /// The learner votes once it keeps up.
    Promote(u64),
    /// The voter becomes a learner.
    Demote(u64),
    /// A member has moved.
    UpdateAddress {
        /// The member.
        node: u64,
        /// Its new address for other nodes; `None`: unchanged.
        peer_addr: Option<String>,
        /// Its new address for clients; `None`: unchanged, empty: it serves none.
        client_addr: Option<String>,
    },
    /// A node with this address is to join. An earlier invitation of the same address is replaced.
    Invite(Invitation),
    /// The node with this address for other nodes is not to join after all.
    Withdraw(String),
    /// From now on, these nodes may join.
    Admit(Admission),
}

impl From<MemberChange> for change_members_request::Change {
    fn from(change: MemberChange) -> Self {
        match change {
            MemberChange::Remove(node) => Self::Remove(node),
            MemberChange::Promote(node) => Self::Promote(node),
            MemberChange::Demote(node) => Self::Demote(node),
            MemberChange::Replace { old, new } => Self::Replace(ReplaceMember { old, new }),
            MemberChange::UpdateAddress { node, peer_addr, client_addr } => {
                Self::UpdateAddress(MoveMember { node, peer_addr, client_addr })
            }
            MemberChange::Invite(invitation) => Self::Invite(invitation.into()),
            MemberChange::Withdraw(peer_addr) => Self::Withdraw(peer_addr),
            MemberChange::Admit(admission) => {
                Self::Admit(message::JoinAdmission::from(admission).into())
            }
        }
    }
}

impl From<change_members_request::Change> for MemberChange {
    fn from(change: change_members_request::Change) -> Self {
        use change_members_request::Change;
        match change {
            Change::Remove(node) => Self::Remove(node),
            Change::Promote(node) => Self::Promote(node),
            Change::Demote(node) => Self::Demote(node),
            Change::Replace(ReplaceMember { old, new }) => Self::Replace { old, new },
            Change::UpdateAddress(MoveMember { node, peer_addr, client_addr }) => {
                Self::UpdateAddress { node, peer_addr, client_addr }
            }
            Change::Invite(invitation) => Self::Invite(invitation.into()),
            Change::Withdraw(peer_addr) => Self::Withdraw(peer_addr),
            Change::Admit(admission) => {
                Self::Admit(message::JoinAdmission::try_from(admission).unwrap_or_default().into())
            }
        }
    }
}

impl From<Invitation> for message::Invitation {
    fn from(Invitation { peer_addr, replaces }: Invitation) -> Self {
        Self { peer_addr, replaces: replaces.unwrap_or(0) }
    }
}

impl From<message::Invitation> for Invitation {
    fn from(message::Invitation { peer_addr, replaces }: message::Invitation) -> Self {
        Self { peer_addr, replaces: (replaces != 0).then_some(replaces) }
    }
}

impl From<Admission> for message::JoinAdmission {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Open => Self::Open,
            Admission::Invited => Self::Invited,
            Admission::Unknown => Self::Unspecified,
        }
    }
}

impl From<message::JoinAdmission> for Admission {
    fn from(admission: message::JoinAdmission) -> Self {
        match admission {
            message::JoinAdmission::Open => Self::Open,
            message::JoinAdmission::Invited => Self::Invited,
            message::JoinAdmission::Unspecified => Self::Unknown,
        }
    }
}

impl From<Members> for MembersReply {
    fn from(members: Members) -> Self {
        let Members {
            node,
            cluster_id,
            config,
            is_committed,
            list,
            leader,
            removed_by,
            admission,
            invitations,
        } = members;
        Self {
            node,
            cluster_id: cluster_id.into(),
            config: Some(config.into()),
            is_committed,
            members: list.into_iter().map(message::Member::from).collect(),
            leader: leader.unwrap_or(0),
            removed_by: removed_by.map(message::ConfigId::from),
            admission: message::JoinAdmission::from(admission).into(),
            invitations: invitations.into_iter().map(message::Invitation::from).collect(),
        }
    }
}

impl From<MembersReply> for Members {
    fn from(reply: MembersReply) -> Self {
        let admission = reply.admission().into();
        let MembersReply {
            node,
            cluster_id,
            config,
            is_committed,
            members,
            leader,
            removed_by,
            admission: _,
            invitations,
        } = reply;
        Self {
            node,
            cluster_id: cluster_id.to_vec(),
            config: config.unwrap_or_default().into(),
            is_committed,
            list: members.into_iter().map(Member::from).collect(),
            leader: (leader != 0).then_some(leader),
            removed_by: removed_by.map(ConfigId::from),
            admission,
            invitations: invitations.into_iter().map(Invitation::from).collect(),
        }
    }
}

impl From<Member> for message::Member {
    fn from(member: Member) -> Self {
        use message::MemberRole as Role;
        let Member { node, peer_addr, client_addr, role, heard_ms_ago, lag, votes_next } = member;
        let (role, replaces) = match role {
            MemberRole::Voter => (Role::Voter, None),
            MemberRole::Learner => (Role::Learner, None),
            MemberRole::Joining { replaces } => (Role::Joining, replaces),
            MemberRole::Leaving => (Role::Leaving, None),
            MemberRole::Demoting => (Role::Demoting, None),
            MemberRole::Unknown => (Role::Unspecified, None),
        };
        Self {
            node,
            peer_addr,
            client_addr: client_addr.unwrap_or_default(),
            role: role.into(),
            replaces: replaces.unwrap_or(0),
            heard_ms_ago,
            lag,
            votes_next,
        }
    }
}

impl From<message::Member> for Member {
    fn from(member: message::Member) -> Self {
        use message::MemberRole as Role;
        let role = match member.role() {
            Role::Voter => MemberRole::Voter,
            Role::Learner => MemberRole::Learner,
            Role::Joining => {
                let replaces = (member.replaces != 0).then_some(member.replaces);
                MemberRole::Joining { replaces }
            }
            Role::Leaving => MemberRole::Leaving,
            Role::Demoting => MemberRole::Demoting,
            Role::Unspecified => MemberRole::Unknown,
        };
        let message::Member {
            node,
            peer_addr,
            client_addr,
            role: _,
            replaces: _,
            heard_ms_ago,
            lag,
            votes_next,
        } = member;
        let client_addr = Some(client_addr).filter(|address| !address.is_empty());
        Self { node, peer_addr, client_addr, role, heard_ms_ago, lag, votes_next }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_configuration_is_named_in_words_and_back() {
        let id = ConfigId { term: 3, version: 8 };
        assert_eq!(id.to_string(), "3.8");
        assert_eq!("3.8".parse(), Ok(id));
        for wrong in ["", "3", "3.", ".8", "3.8.1", "x.y", "-3.8"] {
            let refused = wrong.parse::<ConfigId>().unwrap_err().to_string();
            assert!(refused.contains("for example 3.8"), "{refused}");
        }
    }

    #[test]
    fn members_and_changes_survive_the_wire() {
        let roles = [
            MemberRole::Voter,
            MemberRole::Learner,
            MemberRole::Joining { replaces: None },
            MemberRole::Joining { replaces: Some(2) },
            MemberRole::Leaving,
            MemberRole::Demoting,
            MemberRole::Unknown,
        ];
        let member = |(node, role): (u64, MemberRole)| Member {
            node,
            peer_addr: format!("n{node}:1"),
            client_addr: (node > 1).then(|| format!("n{node}:2")),
            role,
            heard_ms_ago: (node > 2).then_some(node * 10),
            lag: (node > 3).then_some(0),
            votes_next: node % 2 == 0,
        };
        let members = Members {
            node: 1,
            cluster_id: vec![7; 16],
            config: ConfigId { term: 3, version: 8 },
            is_committed: true,
            list: (1..).zip(roles).map(member).collect(),
            leader: Some(2),
            removed_by: Some(ConfigId { term: 4, version: 9 }),
            admission: Admission::Invited,
            invitations: vec![Invitation { peer_addr: "n8:1".to_owned(), replaces: Some(2) }],
        };
        assert_eq!(Members::from(MembersReply::from(members.clone())), members);
        assert_eq!(Members::from(MembersReply::from(Members::default())), Members::default());
        for change in [
            MemberChange::Remove(1),
            MemberChange::Promote(2),
            MemberChange::Demote(3),
            MemberChange::Replace { old: 4, new: 5 },
            MemberChange::Invite(Invitation { peer_addr: "n7:1".to_owned(), replaces: None }),
            MemberChange::Withdraw("n7:1".to_owned()),
            MemberChange::Admit(Admission::Open),
            MemberChange::Admit(Admission::Invited),
            MemberChange::UpdateAddress {
                node: 6,
                peer_addr: Some("n6:1".to_owned()),
                client_addr: None,
            },
        ] {
            let sent = change_members_request::Change::from(change.clone());
            assert_eq!(MemberChange::from(sent), change);
        }
    }
}
