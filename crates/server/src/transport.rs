//! How messages get from node to node: the seam that the raft thread sees, and behind it
//! [`FramedTransport`].
//!
//! The raft thread calls [`Transport`]; the transport calls [`PeerEvents`] from tasks on the
//! runtime it was started on. Raft asks little of a transport (Raft paper, section 5.1): messages may
//! be lost, repeated and overtaken. What is asked here beyond that is for speed and safety of the
//! node: nothing is queued without bound, bulk does not hold up heartbeats and votes, and no
//! stranger's bytes reach the core.

mod framed;

use d_engine_core::{GroupId, NodeId};
use d_engine_replica::PeerMessage;
use d_engine_storage::Incarnation;
use tokio::sync::OwnedSemaphorePermit;

pub use framed::{
    FramedTransport, LineBreaker, RefusalKind, SnapshotDialer, SnapshotLine, TransportIdentity,
    TransportSettings, TransportStats,
};

/// Sends messages to the other nodes of a cluster. Never blocks.
pub trait Transport: Send {
    /// Keeps a connection to `node` at `address` (`host:port`) from now on, however often it breaks.
    /// With a new address, the old connection is given up.
    fn connect(&mut self, node: NodeId, address: &str);

    /// Gives the connection to `node` up for good.
    fn disconnect(&mut self, node: NodeId);

    /// Hands a message over for sending.
    fn send(&mut self, to: NodeId, group: GroupId, message: &PeerMessage) -> Sent;
}

/// What became of a message handed to [`Transport::send`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Sent {
    /// It will be sent, unless the connection breaks first: then [`PeerEvents::down`] is called.
    Queued,
    /// It is lost: there is no connection, or the queue is full. A lost append must be reported to the
    /// replica ([`d_engine_replica::Event::AppendNotSent`]).
    Lost,
}

/// What a transport tells its node. Called from the transport's tasks; must not block.
pub trait PeerEvents: Send + Sync + 'static {
    /// Whether this node may talk to `node`, whose data directory is `incarnation`. Asked in the
    /// handshake, in both directions.
    fn admit(&self, node: NodeId, incarnation: Incarnation) -> Admission;

    /// A message from a peer whose handshake was accepted. Keep `room` as long as the message takes up memory.
    fn message(&self, from: NodeId, group: GroupId, message: PeerMessage, room: Room);

    /// A peer whose handshake was accepted wants to send a snapshot.
    fn snapshot(&self, from: NodeId, line: SnapshotLine);

    /// The ids of the members that this node knows, rising. Told in every handshake; whoever knows others is refused.
    fn members(&self) -> Vec<u64>;

    /// A peer was refused, or has refused this node. Told again at every attempt.
    fn refused(&self, refusal: PeerRefusal);

    /// The connection on which messages to `node` go stands.
    fn up(&self, node: NodeId, incarnation: Incarnation);

    /// The connection on which messages to `node` go was lost, and with it what was queued.
    fn down(&self, node: NodeId);
}

/// A handshake between two nodes that came to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRefusal {
    /// The other node.
    pub node: NodeId,
    /// Whether the other node refused this one, or this one the other.
    pub by_peer: bool,
    /// Why.
    pub kind: RefusalKind,
    /// The same for people.
    pub text: String,
}

/// The answer of [`PeerEvents::admit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It may.
    Welcome,
    /// It is no member that this node knows of.
    UnknownNode,
    /// The cluster has bound this node to another data directory: it was wiped or copied.
    OtherIncarnation {
        /// The directory that was bound.
        bound: Incarnation,
    },
}

/// The memory that a received message takes up, counted against its sender. While a sender has used
/// up its share, nothing more is read from it; TCP then slows it down. Dropping the room gives it
/// back, so keep it as long as the message waits in a queue.
#[derive(Debug, Default)]
pub struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Counted against nobody: for messages that did not come through a socket.
    #[must_use]
    pub fn uncounted() -> Self {
        Self::default()
    }

    fn counted(permit: OwnedSemaphorePermit) -> Self {
        Self { permit: Some(permit) }
    }

    /// Bytes counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}
