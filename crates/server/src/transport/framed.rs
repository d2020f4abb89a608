//! Length-framed protobuf over plain TCP, one connection per direction.
//!
//! Each node dials every other member and sends its own messages on the connection it dialled; on a
//! connection it accepted it only reads. So a connection has one sender with one queue, answers
//! need no matching, and a path that works in one direction only is noticed.
//!
//! ```text
//! both sides first   "d-engine"   protocol version u32        (fixed for ever: strangers are told too)
//! then frames        length u32   CRC-32C of length and payload u32   payload
//!                    (highest bits of the length: 31 a part of a payload, 30 its last part)
//! first payload      Hello from the side that dialled, HelloReply from the other
//! afterwards         PeerFrame; an empty payload is a ping, answered by one byte
//! ```
//! Numbers are little-endian. TCP's own checksum misses one damaged segment in 65,536, hence the CRC.
//!
//! **Heartbeats do not queue behind bulk.** Each peer has two lanes; whatever is not an append goes
//! first. What has been handed to the kernel cannot be overtaken, so that is kept short: a long append
//! goes in parts of [`PART_BYTES`], a batch takes no more once it has [`BATCH_BYTES`] of appends, and the
//! kernel is given more only while it has less than [`UNSENT_BYTES`] that are not on their way yet
//! (`TCP_NOTSENT_LOWAT`). So no more than 64 KiB of appends wait before a heartbeat. Appends keep their
//! order among themselves, since one that overtakes another would be refused as a gap.
//!
//! **Dead paths are noticed.** After a partition TCP waits for up to minutes before it tries again. A
//! connection whose pings are not answered is given up and dialled anew.

mod accept;
mod backoff;
mod batch;
mod dial;
mod line;
mod outbox;
mod places;
mod refusals;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use d_engine_core::{GroupId, NodeId};
use d_engine_proto::engine::{FrameEncoder, MAX_FRAME_BYTES};
use d_engine_replica::PeerMessage;
use d_engine_storage::{ClusterId, Incarnation};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{PeerEvents, Sent, Transport};
use outbox::{Lane, Outbox};
use refusals::Refusals;

pub use line::{LineBreaker, SnapshotLine};
pub use refusals::RefusalKind;

/// A write takes no more appends once it has so many bytes of them.
const BATCH_BYTES: usize = 16 << 10;
/// Appends that are longer go in parts of this length.
const PART_BYTES: usize = 16 << 10;
/// Bytes that the kernel may hold without having sent them.
const UNSENT_BYTES: u32 = 32 << 10;
/// The kernel's send buffer; Linux doubles it.
const SEND_BUFFER_BYTES: u32 = 256 << 10;
/// How long the end of a transport waits for its last messages to leave.
const FLUSH_WITHIN: Duration = Duration::from_millis(100);

/// Who this node is, as told in every handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group that connections are for.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// This node's data directory.
    pub incarnation: Incarnation,
    /// Drawn at every start; never 0.
    pub start: u64,
    /// What the state machine calls itself; empty: not compared.
    pub state_machine: String,
}

/// Bounds and times of a [`FramedTransport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportSettings {
    /// The longest frame that is accepted, in bytes.
    pub max_frame_bytes: usize,
    /// Frames waiting for one peer, by number, in each lane.
    pub queue_frames: usize,
    /// Frames waiting for one peer, in bytes, in each lane.
    pub queue_bytes: usize,
    /// Received messages that one peer may have waiting at this node, in bytes.
    pub inbound_bytes: usize,
    /// For connecting and for each handshake.
    pub handshake_timeout: Duration,
    /// How often a ping is sent.
    pub ping_interval: Duration,
    /// How long a connection may go without an answer to its pings.
    pub silence_timeout: Duration,
    /// The first wait before dialling again; doubled each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait before dialling again.
    pub backoff_max: Duration,
    /// Connections that have not finished their handshake yet; one more ends the oldest, of a stranger's address if there
    /// is one.
    pub max_handshakes: usize,
    /// Where the jitter comes from; different for every start.
    pub entropy: u64,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            max_frame_bytes: MAX_FRAME_BYTES,
            queue_frames: 4_096,
            queue_bytes: 16 << 20,
            inbound_bytes: 16 << 20,
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(1),
            silence_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            max_handshakes: 64,
            entropy: 0,
        }
    }
}

/// What every task of a transport needs.
struct Shared {
    identity: TransportIdentity,
    settings: TransportSettings,
    events: Arc<dyn PeerEvents>,
    refusals: Refusals,
    /// Where members were found when they were dialled.
    known_hosts: std::sync::Mutex<BTreeMap<NodeId, IpAddr>>,
    /// Some peer has dialled this node: whoever waits to dial it again need not wait longer.
    greeted: tokio::sync::Notify,
}

/// Counters of a transport, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Connections refused or given up, by kind; kinds that never happened are left out.
    pub refused: BTreeMap<RefusalKind, u64>,
    /// Messages lost because a queue was full.
    pub dropped: u64,
    /// Bytes waiting to be sent.
    pub queued_bytes: usize,
}

/// A peer that is dialled.
struct Peer {
    address: String,
    outbox: Arc<Outbox>,
    task: JoinHandle<()>,
}

/// Length-framed protobuf over TCP; see the head of this file. Dropping it closes everything.
pub struct FramedTransport {
    shared: Arc<Shared>,
    runtime: Handle,
    encoder: FrameEncoder,
    peers: BTreeMap<NodeId, Peer>,
    dropped_before: u64,
    local_addr: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl FramedTransport {
    /// Listens at `listen` (`host:port`) and runs from now on as tasks of the runtime it is called on.
    ///
    /// # Errors
    /// The address cannot be listened on: it is taken, or not one of this machine.
    pub async fn start(
        identity: TransportIdentity,
        settings: TransportSettings,
        listen: &str,
        events: Arc<dyn PeerEvents>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            identity,
            settings,
            events,
            refusals: Refusals::default(),
            known_hosts: std::sync::Mutex::default(),
            greeted: tokio::sync::Notify::new(),
        });
        let runtime = Handle::current();
        let accepting = Some(runtime.spawn(accept::accept(listener, shared.clone())));
        Ok(Self {
            shared,
            runtime,
            encoder: FrameEncoder::new(),
            peers: BTreeMap::new(),
            dropped_before: 0,
            local_addr,
            accepting,
        })
    }

    /// Closes everything and returns once the listening address is free again. Dropping closes everything
    /// too, but some moments later.
    pub async fn stop(mut self) {
        self.flush().await;
        self.abort();
        let peers = std::mem::take(&mut self.peers);
        for task in peers.into_values().map(|peer| peer.task).chain(self.accepting.take()) {
            // Aborted on purpose: that it was cancelled is no news.
            task.await.unwrap_or(());
        }
    }

    /// Gives the last messages, a vote for the successor among them, the time to leave.
    async fn flush(&self) {
        let began = tokio::time::Instant::now();
        let waits = || self.peers.values().any(|peer| peer.outbox.stats().queued_bytes > 0);
        while waits() && began.elapsed() < FLUSH_WITHIN {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What was taken out last is written in the task's next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn abort(&self) {
        let peers = self.peers.values().map(|peer| &peer.task);
        for task in peers.chain(&self.accepting) {
            task.abort();
        }
    }

    /// Where this node listens for others, with the port that was really taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What opens connections for snapshots to `node`; `None` for a node that is not dialled.
    #[must_use]
    pub fn snapshot_dialer(&self, node: NodeId) -> Option<SnapshotDialer> {
        let address = self.peers.get(&node)?.address.clone();
        Some(SnapshotDialer { shared: self.shared.clone(), runtime: self.runtime.clone(), node, address })
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        let queues = self.peers.values().map(|peer| peer.outbox.stats());
        let (dropped, queued_bytes) =
            queues.fold((self.dropped_before, 0), |sum, one| (sum.0 + one.dropped, sum.1 + one.queued_bytes));
        TransportStats { refused: self.shared.refusals.counts(), dropped, queued_bytes }
    }
}

/// Opens connections for snapshots to one node, from a thread that may wait.
pub struct SnapshotDialer {
    shared: Arc<Shared>,
    runtime: Handle,
    node: NodeId,
    address: String,
}

impl SnapshotDialer {
    /// Connects and shakes hands. Waits for as long as a handshake may take; not for a thread of a runtime.
    ///
    /// # Errors
    /// Why there is no connection, in words.
    pub fn dial(&self) -> Result<SnapshotLine, String> {
        let (answer, dialled) = tokio::sync::oneshot::channel();
        let dialling = dial::dial_for_snapshot(self.shared.clone(), self.node, self.address.clone());
        self.runtime.spawn(async move {
            // Whoever asked may have ended.
            answer.send(dialling.await).ok();
        });
        dialled.blocking_recv().unwrap_or_else(|_| Err("the node shuts down".to_owned()))
    }
}

impl Transport for FramedTransport {
    fn connect(&mut self, node: NodeId, address: &str) {
        if self.peers.get(&node).is_some_and(|peer| peer.address == address) {
            return;
        }
        self.disconnect(node);
        let settings = &self.shared.settings;
        let outbox = Arc::new(Outbox::new(settings.queue_frames, settings.queue_bytes));
        let dialling = dial::dial(self.shared.clone(), node, address.to_owned(), outbox.clone());
        let task = self.runtime.spawn(dialling);
        self.peers.insert(node, Peer { address: address.to_owned(), outbox, task });
    }

    fn disconnect(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.remove(&node) {
            peer.task.abort();
            self.dropped_before += peer.outbox.stats().dropped;
            // The aborted task cannot tell any more.
            if peer.outbox.retire() {
                self.shared.events.down(node);
            }
        }
    }

    fn send(&mut self, to: NodeId, group: GroupId, message: &PeerMessage) -> Sent {
        match self.peers.get(&to) {
            Some(peer) if peer.outbox.is_open() => {
                let frame = self.encoder.encode(group, message);
                peer.outbox.push(Lane::of(message), frame)
            }
            _ => Sent::Lost,
        }
    }
}

impl Drop for FramedTransport {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests;
