//! The handshake before the first frame of a connection.

use bytes::Bytes;
use d_engine_core::{GroupId, NodeId};
use d_engine_storage::{ClusterId, Incarnation};
use prost::Message as _;

use crate::{
    PROTOCOL_VERSION,
    peer::{Hello, Purpose},
};

/// Who dials whom: the checked form of [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The cluster both must belong to.
    pub cluster: ClusterId,
    /// The group the connection is for.
    pub group: GroupId,
    /// The node that dials.
    pub from: NodeId,
    /// The node it means to reach.
    pub to: NodeId,
    /// The data directory of the node that dials.
    pub incarnation: Incarnation,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The ids of the members that the node that dials knows, rising.
    pub members: Vec<u64>,
    /// Drawn at every start of the node that dials; never 0.
    pub start: u64,
    /// What its state machine calls itself; empty: not compared.
    pub state_machine: String,
}

/// Why a handshake message cannot be used. Refuse the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GreetingError {
    /// The bytes are no handshake message.
    #[error("the handshake is not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The other side speaks another version.
    #[error("the peer speaks protocol version {theirs}, this node speaks {ours}")]
    Version {
        /// The peer's.
        theirs: u32,
        /// This program's.
        ours: u32,
    },
    /// An identity is missing or has a wrong length.
    #[error("the handshake has an unusable `{0}`")]
    Field(&'static str),
}

/// The bytes of a greeting.
#[must_use]
pub fn encode_hello(greeting: &Greeting) -> Bytes {
    Hello {
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

/// Reads what [`encode_hello`] wrote.
///
/// # Errors
/// See [`GreetingError`]: the connection must be refused.
pub fn decode_hello(bytes: &Bytes) -> Result<Greeting, GreetingError> {
    let hello = Hello::decode(bytes.clone())?;
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(GreetingError::Version { theirs: hello.protocol_version, ours: PROTOCOL_VERSION });
    }
    Ok(Greeting {
        cluster: sixteen(&hello.cluster_id).map(ClusterId).ok_or(GreetingError::Field("cluster_id"))?,
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
        start: Some(hello.start).filter(|start| *start != 0).ok_or(GreetingError::Field("start"))?,
        state_machine: hello.state_machine,
    })
}

fn sixteen(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}
