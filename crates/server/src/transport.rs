//! Sends and receives messages between nodes.
//!
//! The raft thread calls [`FramedTransport`]; the transport calls [`PeerEvents`] from tasks on the
//! runtime on which it was started. Raft requires little of a transport (Raft paper, section 5.1):
//! messages may be lost, repeated and reordered. The further rules here serve speed and the safety
//! of the node: every queue is bounded, appends do not delay heartbeats and votes, and only bytes
//! of admitted peers reach the core.

mod framed;
pub(crate) mod peer_refusals;

use std::pin::Pin;
use std::sync::Arc;

use d_engine_core::{GroupId, NodeId};
use d_engine_replica::{Admission, PeerMessage};
use d_engine_storage::{ConfigId, Incarnation};
use d_engine_wire::{Answer, Question};
use tokio::sync::OwnedSemaphorePermit;

pub use framed::{
    FramedTransport, LineBreaker, RefusalKind, SnapshotConnection, SnapshotDialer,
    TransportIdentity, TransportSettings, TransportStats,
};
pub(crate) use framed::{answer_probes, ask, probe, probe_joiner};

/// The outcome of [`FramedTransport::send`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Sent {
    /// The message is queued and will be sent unless the connection breaks first;
    /// [`PeerEvents::down`] is then called.
    Queued,
    /// The message is lost: there is no connection, or the queue is full. A lost append must be
    /// reported to the replica ([`d_engine_replica::Event::AppendNotSent`]).
    Lost,
}

/// The events that a transport reports to its node. They are called from the transport's tasks and
/// must not block.
pub trait PeerEvents: Send + Sync + 'static {
    /// Returns what this node knows of its members. Called in the handshake, in both directions.
    fn admission(&self) -> Admission;

    /// A peer that is no member here knows a later configuration; it is reached at `peer_addr`.
    /// Returns whether there is a place for it.
    fn provisional(&self, node: NodeId, peer_addr: String) -> bool;

    /// A member has refused this node, because this committed configuration has removed it.
    fn removed(&self, by: ConfigId);

    /// A node at a member's address belongs to a cluster that continues this one by force.
    fn superseded(&self);

    /// Answers a node that need not be a member, and that may know this cluster's id.
    fn ask(
        self: Arc<Self>,
        question: Question,
        knows_cluster: bool,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

    /// A message from a peer whose handshake was accepted. Keep `room` for as long as the message
    /// takes up memory.
    fn message(&self, from: NodeId, group: GroupId, message: PeerMessage, room: ReceivePermit);

    /// A connection on which a peer, whose handshake was accepted, sends a snapshot.
    fn snapshot(&self, from: NodeId, line: SnapshotConnection);

    /// A peer was refused, or has refused this node. Called again at every attempt.
    fn refused(&self, refusal: PeerRefusal);

    /// A peer whose handshake was accepted names the addresses at which it is reached.
    fn advertised(&self, node: NodeId, peer_addr: String, client_addr: String);

    /// The connection for messages to `node` is open; it was made at `address`.
    fn up(&self, node: NodeId, incarnation: Incarnation, address: &str);

    /// The connection for messages to `node` was lost, together with the queued messages.
    fn down(&self, node: NodeId);
}

/// A refused handshake between two nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRefusal {
    /// The other node.
    pub node: NodeId,
    /// `true` if the other node refused this one, `false` if this node refused the other.
    pub by_peer: bool,
    /// The reason, for programs.
    pub kind: RefusalKind,
    /// The reason, for people.
    pub text: String,
}

/// The memory that a received message takes up, counted against its sender. While a sender has used
/// up its share, the transport reads nothing more from it, and TCP slows the sender down. Dropping
/// this value releases the memory, so keep it for as long as the message waits in a queue.
#[derive(Debug, Default)]
pub struct ReceivePermit {
    permit: Option<OwnedSemaphorePermit>,
}

impl ReceivePermit {
    /// Counts against no sender: for messages that did not arrive on a connection.
    #[must_use]
    pub fn uncounted() -> Self {
        Self::default()
    }

    fn counted(permit: OwnedSemaphorePermit) -> Self {
        Self { permit: Some(permit) }
    }

    /// Returns the counted bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}
