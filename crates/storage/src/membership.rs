//! The members of a cluster with their addresses: the payload of membership entries and part of
//! the identity file. The core knows only the [`Configuration`] in it.

use std::collections::BTreeSet;

use bytes::Bytes;
use d_engine_core::{Configuration, NodeId};
use serde::{Deserialize, Serialize};

use crate::Incarnation;

/// What a member does in its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberRole {
    /// Votes and counts towards every quorum.
    Voter,
    /// Receives the log and decides nothing.
    Learner,
}

/// One node of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The node's id; never zero.
    pub node: u64,
    /// Where other nodes reach it, as `host:port`.
    pub peer_addr: String,
    /// Where clients reach it, as `host:port`; empty when it serves none.
    pub client_addr: String,
    /// Voter or learner.
    pub role: MemberRole,
    /// The data directory that the cluster has bound to this node, once it has.
    pub incarnation: Option<Incarnation>,
}

/// The members of a cluster, sorted by node id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Membership {
    members: Vec<Member>,
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
    /// Nobody votes.
    #[error("the membership has no voter; at least one is needed")]
    NoVoter,
    /// The stored bytes are not a membership that this version reads.
    #[error("the stored membership cannot be read: {0}")]
    Undecodable(String),
}

/// First byte of every encoded membership.
const FORMAT_VERSION: u8 = 1;

impl Membership {
    /// Sorts and checks a list of members.
    ///
    /// # Errors
    /// See [`MembershipError`]; the list must be corrected by whoever wrote it.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Result<Self, MembershipError> {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_by_key(|member| member.node);
        let mut addresses = BTreeSet::new();
        for (position, member) in members.iter().enumerate() {
            if member.node == 0 {
                return Err(MembershipError::ReservedId);
            }
            if position > 0 && members.get(position - 1).is_some_and(|before| before.node == member.node) {
                return Err(MembershipError::DuplicateId(member.node));
            }
            for address in [member.peer_addr.as_str(), member.client_addr.as_str()] {
                if address.is_empty() {
                    continue;
                }
                if !addresses.insert(address) {
                    return Err(MembershipError::DuplicateAddress(address.to_owned()));
                }
            }
        }
        if !members.iter().any(|member| member.role == MemberRole::Voter) {
            return Err(MembershipError::NoVoter);
        }
        Ok(Self { members })
    }

    /// The members, sorted by id.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member with this id.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node.get())
    }

    /// Who votes, in the core's terms.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        let with_role = |role: MemberRole| {
            self.members.iter().filter(move |member| member.role == role).filter_map(|m| NodeId::new(m.node))
        };
        Configuration::new(with_role(MemberRole::Voter), with_role(MemberRole::Learner))
    }

    /// The same members, found where `other` says, as far as it knows them.
    #[must_use]
    pub fn with_addresses_of(&self, other: &Self) -> Self {
        let mut moved = self.clone();
        for member in &mut moved.members {
            if let Some(known) = other.members.iter().find(|known| known.node == member.node) {
                member.peer_addr.clone_from(&known.peer_addr);
                member.client_addr.clone_from(&known.client_addr);
            }
        }
        moved
    }

    /// The same members, with `incarnation` bound to `node`. Unchanged when `node` is no member.
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

    /// The bytes stored in membership entries and in the identity file.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = postcard::to_allocvec(self).unwrap_or_default();
        let mut encoded = Vec::with_capacity(body.len() + 1);
        encoded.push(FORMAT_VERSION);
        encoded.extend_from_slice(&body);
        Bytes::from(encoded)
    }

    /// Reads what [`Membership::encode`] wrote.
    ///
    /// # Errors
    /// [`MembershipError::Undecodable`] for an unknown version or malformed bytes, and the errors
    /// of [`Membership::new`] for a list that breaks its rules.
    pub fn decode(encoded: &[u8]) -> Result<Self, MembershipError> {
        let (version, body) =
            encoded.split_first().ok_or_else(|| MembershipError::Undecodable("it is empty".to_owned()))?;
        if *version != FORMAT_VERSION {
            return Err(MembershipError::Undecodable(format!(
                "it has format version {version}, this program reads {FORMAT_VERSION}"
            )));
        }
        let decoded: Self =
            postcard::from_bytes(body).map_err(|error| MembershipError::Undecodable(error.to_string()))?;
        Self::new(decoded.members)
    }
}
