//! The handshake before the first frame of a connection.

use bytes::Bytes;
use d_engine_core::{GroupId, NodeId};
use d_engine_storage::{ClusterId, Incarnation};
use prost::Message as _;

use crate::PROTOCOL_VERSION;
use crate::message::{Handshake, Purpose};

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
    }
    .encode_to_vec()
    .into()
}

/// Decodes what [`encode_handshake`] wrote.
///
/// # Errors
/// See [`GreetingError`]: refuse the connection.
pub fn decode_handshake(bytes: &Bytes) -> Result<Greeting, GreetingError> {
    let hello = Handshake::decode(bytes.clone())?;
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(GreetingError::Version {
            theirs: hello.protocol_version,
            ours: PROTOCOL_VERSION,
        });
    }
    Ok(Greeting {
        cluster: sixteen(&hello.cluster_id)
            .map(ClusterId)
            .ok_or(GreetingError::Field("cluster_id"))?,
        group: GroupId::new(hello.group).ok_or(GreetingError::Field("group"))?,
        from: NodeId::new(hello.from_node).ok_or(GreetingError::Field("from_node"))?,
        to: NodeId::new(hello.to_node).ok_or(GreetingError::Field("to_node"))?,
        incarnation: sixteen(&hello.incarnation)
            .map(Incarnation)
            .ok_or(GreetingError::Field("incarnation"))?,
        purpose: Purpose::try_from(hello.purpose).map_err(|_| GreetingError::Field("purpose"))?,
        members: Some(hello.members)
            .filter(|members| !members.is_empty() && members.is_sorted_by(|one, next| one < next))
            .ok_or(GreetingError::Field("members"))?,
        start: Some(hello.start)
            .filter(|start| *start != 0)
            .ok_or(GreetingError::Field("start"))?,
        state_machine: hello.state_machine,
    })
}

fn sixteen(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}
