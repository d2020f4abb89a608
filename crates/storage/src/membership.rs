//! The members of a cluster with their addresses: the payload of membership entries and part of
//! the identity file. The core knows only the [`Configuration`] in it.

mod change;
mod invitation;
mod request;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use d_engine_core::{Configuration, Incarnation, NodeId};
use serde::{Deserialize, Serialize};

pub use self::change::Leavers;
pub use self::request::{
    Admission, ChangeError, Invitation, JoinAs, MemberChange, NewMember, canonical_address,
};

/// The name of a membership: the term of the leader that wrote it, and its number in the cluster's
/// sequence of memberships. The number rises by one with every membership entry of a log, so two
/// memberships of one log with the same name are equal. The entry's index cannot serve as the name:
/// a node that has installed a snapshot does not know it.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, Serialize, Deserialize,
)]
pub struct ConfigId {
    /// The term of the leader that wrote it; 0 for the membership at the cluster's birth.
    pub term: u64,
    /// The number of memberships before it.
    pub version: u64,
}

impl fmt::Display for ConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.version)
    }
}

/// What a member does, and what it is to become. These intents are part of the log, so that any
/// later leader carries them out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
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
    /// While the configuration is joint: votes in the incoming set only.
    Incoming {
        /// The voter that leaves in the same step.
        replaces: Option<u64>,
    },
    /// While the configuration is joint: votes in the outgoing set only, and is removed afterwards.
    Outgoing {
        /// What it was before; a rollback restores it.
        before: VoterIntent,
    },
    /// While the configuration is joint: votes in the outgoing set only; a learner afterwards.
    OutgoingToLearn,
}

/// What a voter is to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub enum VoterIntent {
    /// It keeps voting: [`MemberRole::Voter`].
    Stay,
    /// It is to be removed: [`MemberRole::Leaving`].
    Leave,
    /// It is to become a learner: [`MemberRole::Demoting`].
    Learn,
}

impl MemberRole {
    /// Whether it votes in the only set of voters or, while the configuration is joint, in the
    /// incoming one.
    fn is_incoming(self) -> bool {
        matches!(self, Self::Voter | Self::Leaving | Self::Demoting | Self::Incoming { .. })
    }

    /// Whether it votes in the only set of voters or, while the configuration is joint, in the
    /// outgoing one.
    fn is_outgoing(self) -> bool {
        matches!(
            self,
            Self::Voter
                | Self::Leaving
                | Self::Demoting
                | Self::Outgoing { .. }
                | Self::OutgoingToLearn
        )
    }

    fn is_joint(self) -> bool {
        matches!(self, Self::Incoming { .. } | Self::Outgoing { .. } | Self::OutgoingToLearn)
    }

    /// Whether it is a learner of the incoming (or only) configuration.
    fn learns(self) -> bool {
        matches!(self, Self::Learner | Self::Joining { .. } | Self::OutgoingToLearn)
    }
}

/// One node of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The node's id; never zero.
    pub node: u64,
    /// The address for other nodes, as `host:port`.
    pub peer_addr: String,
    /// The address for clients, as `host:port`; empty if it serves none.
    pub client_addr: String,
    /// What it does, and what it is to become.
    pub role: MemberRole,
    /// The data directory that the cluster has bound to this node; `None` until then.
    #[serde(with = "incarnation_bytes")]
    pub incarnation: Option<Incarnation>,
}

/// An incarnation as its bytes: the core, which defines it, knows no serialization.
mod incarnation_bytes {
    use d_engine_core::Incarnation;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        incarnation: &Option<Incarnation>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        incarnation.map(|incarnation| incarnation.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Incarnation>, D::Error> {
        Ok(Option::<[u8; 16]>::deserialize(deserializer)?.map(Incarnation))
    }
}

/// The members of a cluster, sorted by node id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Membership {
    id: ConfigId,
    /// No id up to this one is given again: an id is given once. One that is no member was removed
    /// or skipped.
    last_node: u64,
    members: Vec<Member>,
    admission: Admission,
    /// Nodes that are to join, sorted by address.
    invitations: Vec<Invitation>,
}

/// Why a membership cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// A member has the reserved id 0. Give every node an id from 1 up.
    #[error("a member has the reserved node id 0; ids start at 1")]
    ReservedId,
    /// Two members share an id. Give each node its own.
    #[error("two members have the node id {0}; every node needs its own")]
    DuplicateId(u64),
    /// Two members share an address. Each address must belong to one node.
    #[error("two members have the address {0}; every node needs its own")]
    DuplicateAddress(String),
    /// Two members are bound to the same data directory. A directory belongs to one node.
    #[error("node {0} is bound to the data directory of another member")]
    DuplicateDirectory(u64),
    /// No member is a voter. Make at least one member a voter.
    #[error("the membership has no voter; at least one is needed")]
    NoVoter,
    /// There are more voters or members than a cluster can have. Remove some first.
    #[error(
        "a cluster can have at most {} voters and {} members",
        Configuration::VOTERS_MAX,
        Configuration::MEMBERS_MAX
    )]
    TooMany,
    /// The stored bytes are not a membership that this program reads. Use the program version that
    /// wrote them.
    #[error("the stored membership cannot be read: {0}")]
    Undecodable(String),
}

/// First byte of every encoded membership.
const FORMAT_VERSION: u8 = 2;

/// The format before configurations had names: a list of members that vote or learn.
const FORMAT_VERSION_1: u8 = 1;

impl Membership {
    /// The membership at a cluster's birth, from a list of members.
    ///
    /// # Errors
    /// See [`MembershipError`]; correct the list.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Result<Self, MembershipError> {
        let mut members: Vec<Member> = members.into_iter().collect();
        for member in &mut members {
            member.peer_addr = canonical_address(&member.peer_addr);
            member.client_addr = canonical_address(&member.client_addr);
        }
        let last_node = members.iter().map(|member| member.node).max().unwrap_or(0);
        Self { last_node, members, ..Self::default() }.checked()
    }

    /// The membership of a new cluster that goes on from this one with `member` alone, as a leader
    /// of `term` would have written it. Ids that were given are not given again, and nobody is
    /// invited.
    ///
    /// # Errors
    /// See [`MembershipError`]; correct the member.
    pub fn continued_by(&self, member: Member, term: u64) -> Result<Self, MembershipError> {
        let id = ConfigId { term, version: self.id.version.saturating_add(1) };
        let founded = Self::new([member])?;
        let last_node = self.last_node.max(founded.last_node);
        Ok(Self { id, last_node, admission: self.admission, ..founded })
    }

    /// The membership without members, which a node has until it has joined a cluster.
    #[must_use]
    pub fn nobody() -> Self {
        Self::default()
    }

    /// The membership without members of a node that `born` has added: what the node knows until it
    /// has received the log.
    #[must_use]
    pub fn before_joining(born: ConfigId) -> Self {
        Self { id: born, ..Self::default() }
    }

    /// Whether it has no member.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.members.is_empty()
    }

    /// Sorts the members and checks the rules.
    fn checked(mut self) -> Result<Self, MembershipError> {
        self.members.sort_by_key(|member| member.node);
        let mut addresses = BTreeMap::new();
        for (position, member) in self.members.iter().enumerate() {
            if member.node == 0 {
                return Err(MembershipError::ReservedId);
            }
            let before = position.checked_sub(1).and_then(|before| self.members.get(before));
            if before.is_some_and(|before| before.node == member.node) {
                return Err(MembershipError::DuplicateId(member.node));
            }
            let directory = member.incarnation;
            let same = |other: &&Member| other.node < member.node && other.incarnation == directory;
            if directory.is_some() && self.members.iter().any(|other| same(&other)) {
                return Err(MembershipError::DuplicateDirectory(member.node));
            }
            for address in [member.peer_addr.as_str(), member.client_addr.as_str()] {
                let before = addresses.insert(address, member.node);
                let is_shared = before.is_some_and(|before| !self.may_share(before, member.node));
                if !address.is_empty() && is_shared {
                    return Err(MembershipError::DuplicateAddress(address.to_owned()));
                }
            }
        }
        if !self.members.is_empty() && !self.members.iter().any(|it| it.role.is_incoming()) {
            return Err(MembershipError::NoVoter);
        }
        let voters = self.members.iter().filter(|member| member.role.is_incoming()).count();
        if voters > Configuration::VOTERS_MAX || self.members.len() > Configuration::MEMBERS_MAX {
            return Err(MembershipError::TooMany);
        }
        Ok(self)
    }

    /// A node may have the address of the one that it replaces: it may run on the same machine.
    fn may_share(&self, one: u64, other: u64) -> bool {
        let replaced = |node: u64| {
            self.members.iter().find(|member| member.node == node).and_then(|member| {
                match member.role {
                    MemberRole::Joining { replaces } | MemberRole::Incoming { replaces } => {
                        replaces
                    }
                    _ => None,
                }
            })
        };
        one != other && (replaced(one) == Some(other) || replaced(other) == Some(one))
    }

    /// The same members, with this rule for nodes that join.
    #[must_use]
    pub fn with_admission(self, admission: Admission) -> Self {
        Self { admission, ..self }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> ConfigId {
        self.id
    }

    /// The highest node id that was ever given.
    #[must_use]
    pub fn last_node(&self) -> u64 {
        self.last_node
    }

    /// Whether this id was given and belongs to no member any more.
    #[must_use]
    pub fn has_removed(&self, node: u64) -> bool {
        (1..=self.last_node).contains(&node) && self.find(node).is_none()
    }

    /// Whether the configuration is joint: two sets of voters must agree.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.members.iter().any(|member| member.role.is_joint())
    }

    fn find(&self, node: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// Returns the members, sorted by id.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the member with this id.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node.get())
    }

    /// Returns the voters and learners as the core's configuration.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        let with = |wanted: fn(MemberRole) -> bool| {
            let members = self.members.iter().filter(move |member| wanted(member.role));
            members.filter_map(|member| NodeId::new(member.node))
        };
        let incoming = Configuration::new(with(MemberRole::is_incoming), with(MemberRole::learns));
        if !self.is_joint() {
            return incoming;
        }
        Configuration::new(with(MemberRole::is_outgoing), None).joint_with(&incoming)
    }

    /// Returns the same members, each with its address in `moved` if it has the one that it had at
    /// `birth`.
    #[must_use]
    pub fn with_moved(&self, birth: &Self, moved: &Self) -> Self {
        let mut after = self.clone();
        for member in &mut after.members {
            let (Some(born), Some(moved)) = (birth.find(member.node), moved.find(member.node))
            else {
                continue;
            };
            if member.peer_addr == born.peer_addr {
                member.peer_addr.clone_from(&moved.peer_addr);
            }
            if member.client_addr == born.client_addr {
                member.client_addr.clone_from(&moved.client_addr);
            }
        }
        after
    }

    /// Returns the same members, with `incarnation` bound to `node`. Unchanged if `node` is no
    /// member.
    #[must_use]
    pub fn with_incarnation(&self, node: NodeId, incarnation: Incarnation) -> Self {
        let mut bound = self.clone();
        for member in &mut bound.members {
            if member.node == node.get() {
                member.incarnation = Some(incarnation);
            }
        }
        bound
    }

    /// Returns the bytes that membership entries and the identity file store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = postcard::to_allocvec(self).unwrap_or_default();
        let mut encoded = Vec::with_capacity(body.len() + 1);
        encoded.push(FORMAT_VERSION);
        encoded.extend_from_slice(&body);
        Bytes::from(encoded)
    }

    /// Decodes the bytes of [`Membership::encode`].
    ///
    /// # Errors
    /// [`MembershipError::Undecodable`] for an unknown version or malformed bytes, and the errors
    /// of [`Membership::new`] for a list that violates its rules.
    pub fn decode(encoded: &[u8]) -> Result<Self, MembershipError> {
        let undecodable = |what: String| MembershipError::Undecodable(what);
        let (version, body) =
            encoded.split_first().ok_or_else(|| undecodable("it is empty".to_owned()))?;
        match *version {
            FORMAT_VERSION => postcard::from_bytes::<Self>(body)
                .map_err(|error| undecodable(error.to_string()))?
                .checked(),
            // The roles of version 1 are the first two of today.
            FORMAT_VERSION_1 => Self::new(
                postcard::from_bytes::<Vec<Member>>(body)
                    .map_err(|error| undecodable(error.to_string()))?,
            )
            // Nobody could join such a cluster, so nobody may until its operator says so.
            .map(|membership| membership.with_admission(Admission::Invited)),
            version => Err(undecodable(format!(
                "it has format version {version}, this program reads versions up to \
                 {FORMAT_VERSION}"
            ))),
        }
    }
}
