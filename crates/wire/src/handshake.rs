//! The handshake before the first frame of a connection.

use bytes::Bytes;
use d_engine_core::{GroupId, NodeId};
use d_engine_storage::{ClusterId, ConfigId, Incarnation};
use prost::Message as _;

use crate::PROTOCOL_VERSION;
use crate::message::{self, Handshake, Purpose};

/// Which node dials which: the validated form of [`Handshake`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The cluster to which both nodes must belong.
    pub cluster: ClusterId,
    /// The group of the connection.
    pub group: GroupId,
    /// The dialing node.
    pub from: NodeId,
    /// The node that it expects to reach.
    pub to: NodeId,
    /// The incarnation of the dialing node's data directory.
    pub incarnation: Incarnation,
    /// The purpose of the connection.
    pub purpose: Purpose,
    /// The ids of the members that the dialing node knows, in rising order.
    pub members: Vec<u64>,
    /// A random number that the dialing node draws at every start; never 0.
    pub start: u64,
    /// The name of its state machine; empty: not compared.
    pub state_machine: String,
    /// The name of its configuration in force.
    pub config: ConfigId,
    /// The address at which other nodes reach it; empty if none is configured.
    pub peer_addr: String,
    /// The address at which clients reach it; empty if there is none.
    pub client_addr: String,
}

/// A connection from a node that need not be a member: to ask something, or to learn who listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// The cluster that it expects; `None` accepts any.
    pub cluster: Option<ClusterId>,
    /// The group of the connection.
    pub group: GroupId,
    /// The incarnation of its data directory.
    pub incarnation: Incarnation,
    /// Whether a question follows.
    pub wants: InquiryPurpose,
}

/// A random number that a node draws before it asks to join. Nobody else knows it, so the node that
/// knows it is the one that has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinNumber(pub [u8; 16]);

/// What an [`Inquiry`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InquiryPurpose {
    /// One question and its answer.
    Ask,
    /// Only the handshake.
    Probe {
        /// The number of the join that this node was asked for, if that is why it probes. A node
        /// that has not joined yet names its directory only to who knows its number.
        number: Option<JoinNumber>,
    },
}

/// The validated form of a connection's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node of the cluster.
    Peer(Box<Greeting>),
    /// Any node.
    Inquirer(Inquiry),
}

/// Why a handshake message is invalid. Refuse the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GreetingError {
    /// The bytes are not a handshake message.
    #[error("the handshake is not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The peer has another protocol version.
    #[error("the peer has protocol version {theirs}, this node has {ours}")]
    Version {
        /// The peer's version.
        theirs: u32,
        /// This program's version.
        ours: u32,
    },
    /// A field is missing or invalid.
    #[error("the field `{0}` of the handshake is invalid")]
    Field(&'static str),
}

/// Encodes a greeting.
#[must_use]
pub fn encode_handshake(greeting: &Greeting) -> Bytes {
    Handshake {
        protocol_version: PROTOCOL_VERSION,
        cluster_id: Bytes::copy_from_slice(&greeting.cluster.0),
        group: greeting.group.get(),
        from_node: greeting.from.get(),
        to_node: greeting.to.get(),
        incarnation: Bytes::copy_from_slice(&greeting.incarnation.0),
        purpose: greeting.purpose.into(),
        members: greeting.members.clone(),
        start: greeting.start,
        state_machine: greeting.state_machine.clone(),
        config: Some(config_to_wire(greeting.config)),
        peer_addr: greeting.peer_addr.clone(),
        client_addr: greeting.client_addr.clone(),
        join_number: Bytes::new(),
    }
    .encode_to_vec()
    .into()
}

/// Encodes an inquiry.
#[must_use]
pub fn encode_inquiry(inquiry: &Inquiry) -> Bytes {
    let (purpose, number) = match inquiry.wants {
        InquiryPurpose::Ask => (Purpose::Ask, None),
        InquiryPurpose::Probe { number } => (Purpose::Probe, number),
    };
    Handshake {
        protocol_version: PROTOCOL_VERSION,
        cluster_id: inquiry.cluster.map(|id| Bytes::copy_from_slice(&id.0)).unwrap_or_default(),
        group: inquiry.group.get(),
        incarnation: Bytes::copy_from_slice(&inquiry.incarnation.0),
        purpose: purpose.into(),
        join_number: number.map(|it| Bytes::copy_from_slice(&it.0)).unwrap_or_default(),
        ..Handshake::default()
    }
    .encode_to_vec()
    .into()
}

/// The form of a membership's name on the wire.
#[must_use]
pub fn config_to_wire(id: ConfigId) -> message::ConfigId {
    message::ConfigId { term: id.term, version: id.version }
}

/// A membership's name from the wire. An absent one is that of the cluster's birth.
#[must_use]
pub fn config_from_wire(id: Option<message::ConfigId>) -> ConfigId {
    id.map(|id| ConfigId { term: id.term, version: id.version }).unwrap_or_default()
}

/// Decodes what [`encode_handshake`] or [`encode_inquiry`] wrote.
///
/// # Errors
/// See [`GreetingError`]: refuse the connection.
pub fn decode_handshake(bytes: &Bytes) -> Result<Caller, GreetingError> {
    let greeting = Handshake::decode(bytes.clone())?;
    if greeting.protocol_version != PROTOCOL_VERSION {
        return Err(GreetingError::Version {
            theirs: greeting.protocol_version,
            ours: PROTOCOL_VERSION,
        });
    }
    let group = GroupId::new(greeting.group).ok_or(GreetingError::Field("group"))?;
    let incarnation = sixteen(&greeting.incarnation)
        .map(Incarnation)
        .ok_or(GreetingError::Field("incarnation"))?;
    let cluster = sixteen(&greeting.cluster_id).map(ClusterId);
    let inquirer = |wants| match (&greeting.cluster_id[..], cluster) {
        ([], _) => Ok(Caller::Inquirer(Inquiry { cluster: None, group, incarnation, wants })),
        (_, None) => Err(GreetingError::Field("cluster_id")),
        (_, cluster) => Ok(Caller::Inquirer(Inquiry { cluster, group, incarnation, wants })),
    };
    let purpose =
        Purpose::try_from(greeting.purpose).map_err(|_| GreetingError::Field("purpose"))?;
    match purpose {
        Purpose::Ask => return inquirer(InquiryPurpose::Ask),
        Purpose::Probe => {
            let number = sixteen(&greeting.join_number).map(JoinNumber);
            return inquirer(InquiryPurpose::Probe { number });
        }
        Purpose::Messages | Purpose::Snapshot => {}
    }
    Ok(Caller::Peer(Box::new(Greeting {
        cluster: cluster.ok_or(GreetingError::Field("cluster_id"))?,
        group,
        from: NodeId::new(greeting.from_node).ok_or(GreetingError::Field("from_node"))?,
        to: NodeId::new(greeting.to_node).ok_or(GreetingError::Field("to_node"))?,
        incarnation,
        purpose,
        // Empty at a node that has joined and received no entry yet.
        members: Some(greeting.members)
            .filter(|members| members.is_sorted_by(|one, next| one < next))
            .ok_or(GreetingError::Field("members"))?,
        start: Some(greeting.start)
            .filter(|start| *start != 0)
            .ok_or(GreetingError::Field("start"))?,
        state_machine: greeting.state_machine,
        config: config_from_wire(greeting.config),
        peer_addr: greeting.peer_addr,
        client_addr: greeting.client_addr,
    })))
}

pub(crate) fn sixteen(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}
