//! Length-framed protobuf over plain TCP, one connection per direction.
//!
//! Each node dials every other member and sends its own messages on the connection that it dialled;
//! on an accepted connection it only reads. A connection therefore has one sender with one queue,
//! responses need no matching, and a path that works in only one direction is noticed.
//!
//! ```text
//! both sides first   "d-engine"   protocol version u32     (never changes: any version reads it)
//! then frames        length u32   CRC-32C of length and payload u32   payload
//!                    (highest bits of the length: 31 a part of a payload, 30 its last part)
//! first payload      Handshake from the side that dialled, HandshakeReply from the other
//! afterwards         PeerFrame; an empty payload is a ping, answered by one byte
//! ```
//! Numbers are little-endian. TCP's own checksum misses one damaged segment in 65,536, hence the
//! CRC.
//!
//! **Heartbeats do not wait for appends.** Each peer has two lanes; every message that is not an
//! append is sent first. Bytes that the kernel has accepted cannot be overtaken, so they are kept
//! few: a long append is sent in parts of [`PART_BYTES`](wire::PART_BYTES), a batch takes no
//! further append once it has [`BATCH_BYTES`] of them, and the kernel accepts more only while it
//! has less than [`UNSENT_BYTES`] that are not sent yet (`TCP_NOTSENT_LOWAT`). So no more than 64
//! KiB of appends are ahead of a heartbeat. Appends keep their order among themselves, since one
//! that overtakes another would be rejected as a gap.
//!
//! **Dead paths are noticed.** After a partition, TCP waits for up to minutes before it
//! retransmits. A connection whose pings are not answered is closed and dialled anew.

mod accept;
mod backoff;
mod batch;
mod dial;
mod inquire;
mod line;
mod outbox;
mod places;
mod refusals;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d_engine_core::{GroupId, NodeId};
use d_engine_locks::Unpoisoned as _;
use d_engine_replica::PeerMessage;
use d_engine_storage::{ClusterId, Incarnation};
use d_engine_wire::{FrameEncoder, MAX_FRAME_BYTES};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{PeerEvents, Sent};
use outbox::{Lane, Outbox};
use refusals::Refusals;

pub(crate) use inquire::{answer_probes, ask, probe, probe_joiner};
pub use line::{LineBreaker, SnapshotConnection};
pub use refusals::RefusalKind;

/// A batch takes no further append once it has this many bytes of them.
const BATCH_BYTES: usize = 16 << 10;
/// Unsent bytes that the kernel may hold.
const UNSENT_BYTES: u32 = 32 << 10;
/// The kernel's send buffer; Linux doubles it.
const SEND_BUFFER_BYTES: u32 = 256 << 10;
/// Questions of one kind that are answered at once.
const QUESTIONS_MAX: usize = 16;
/// How long a stopping transport waits for its last messages to be sent.
const FLUSH_WITHIN: Duration = Duration::from_millis(100);

/// The identity of this node, sent in every handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The Raft group of the connections.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// The incarnation of this node's data directory.
    pub incarnation: Incarnation,
    /// A random number, drawn at every start; never 0.
    pub start: u64,
    /// The name of the state machine; empty: not compared.
    pub state_machine: String,
    /// The clusters that this node's cluster continues by force, each with the directory whose log
    /// it continues.
    pub continues: Vec<(ClusterId, Incarnation)>,
    /// The address at which other nodes reach this one; empty if none is configured.
    pub peer_addr: String,
    /// The address at which clients reach this node; empty if there is none.
    pub client_addr: String,
}

/// The bounds and timeouts of a [`FramedTransport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportSettings {
    /// The longest accepted frame, in bytes.
    pub max_frame_bytes: usize,
    /// Frames waiting for one peer, by number, in each lane.
    pub queue_frames: usize,
    /// Frames waiting for one peer, in bytes, in each lane.
    pub queue_bytes: usize,
    /// Received messages of one peer that may wait at this node, in bytes.
    pub inbound_bytes: usize,
    /// Whether this node neither votes nor campaigns while it knows no leader and a member's
    /// address answers for a cluster that continues its own by force.
    pub heeds_superseded: bool,
    /// The timeout of connecting and of each handshake.
    pub handshake_timeout: Duration,
    /// The interval of pings.
    pub ping_interval: Duration,
    /// The time without an answer to pings after which a connection is closed.
    pub silence_timeout: Duration,
    /// The first wait before dialling again; doubled each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait before dialling again.
    pub backoff_max: Duration,
    /// Accepted connections that may be in their handshake at once. A further one closes the
    /// oldest, preferably one from a host that is not a known member's.
    pub max_handshakes: usize,
    /// The seed of the jitter; different at every start.
    pub entropy: u64,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            max_frame_bytes: MAX_FRAME_BYTES,
            queue_frames: 4_096,
            queue_bytes: 16 << 20,
            inbound_bytes: 16 << 20,
            heeds_superseded: true,
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

/// The state that all tasks of a transport share.
struct Shared {
    identity: TransportIdentity,
    settings: TransportSettings,
    events: Arc<dyn PeerEvents>,
    refusals: Refusals,
    /// The IP addresses at which members were last dialled.
    known_hosts: Mutex<BTreeMap<NodeId, IpAddr>>,
    /// The connections that were accepted from peers.
    connected: places::Connected,
    /// Bounds the questions of nodes that join.
    joining: tokio::sync::Semaphore,
    /// Bounds the questions of members.
    changing: tokio::sync::Semaphore,
    /// Notified when a peer has dialled this node; the tasks that wait before they dial again then
    /// dial at once.
    greeted: tokio::sync::Notify,
}

/// The counters of a transport, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Connections refused or closed for a violation, by kind; kinds that never occurred are
    /// absent.
    pub refused: BTreeMap<RefusalKind, u64>,
    /// Messages lost because a queue was full.
    pub dropped: u64,
    /// Bytes waiting to be sent.
    pub queued_bytes: usize,
}

/// A peer that is dialled.
struct Peer {
    /// Shared with the task, which tries one after the other.
    addresses: Arc<Mutex<Vec<String>>>,
    outbox: Arc<Outbox>,
    task: JoinHandle<()>,
}

/// Length-framed protobuf over TCP; see the head of this file. Dropping the transport closes all
/// connections.
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
    /// Accepts connections on `listener` and runs as tasks of the current runtime from then on.
    ///
    /// # Errors
    /// The listener cannot be used by this runtime, or its address cannot be read.
    pub fn start(
        identity: TransportIdentity,
        settings: TransportSettings,
        listener: std::net::TcpListener,
        events: Arc<dyn PeerEvents>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            identity,
            settings,
            events,
            refusals: Refusals::default(),
            known_hosts: Mutex::default(),
            connected: places::Connected::default(),
            joining: tokio::sync::Semaphore::new(QUESTIONS_MAX),
            changing: tokio::sync::Semaphore::new(QUESTIONS_MAX),
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

    /// Keeps a connection to `node` at one of `addresses` (`host:port`) from now on, and dials
    /// again whenever it breaks. A call with none of the former addresses closes the connection.
    pub fn connect(&mut self, node: NodeId, addresses: &[&str]) {
        if let Some(peer) = self.peers.get(&node) {
            let mut known = peer.addresses.lock().unpoisoned();
            let stays = known.iter().any(|one| addresses.contains(&one.as_str()));
            if stays {
                if *known != addresses {
                    *known = addresses.iter().map(|one| (*one).to_owned()).collect();
                }
                return;
            }
        }
        self.disconnect(node);
        let settings = &self.shared.settings;
        let outbox = Arc::new(Outbox::new(settings.queue_frames, settings.queue_bytes));
        let addresses = addresses.iter().map(|one| (*one).to_owned()).collect();
        let addresses = Arc::new(Mutex::new(addresses));
        let dialling = dial::dial(self.shared.clone(), node, addresses.clone(), outbox.clone());
        let task = self.runtime.spawn(dialling);
        self.peers.insert(node, Peer { addresses, outbox, task });
    }

    /// Closes the connections of all nodes for which `keeps` is false, in both directions.
    pub fn keep_only(&mut self, keeps: impl Fn(NodeId) -> bool) {
        let others: Vec<NodeId> = self.peers.keys().copied().filter(|node| !keeps(*node)).collect();
        for node in others {
            self.disconnect(node);
        }
        self.shared.connected.keep_only(keeps);
    }

    /// Closes the connection to `node` for good.
    pub fn disconnect(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.remove(&node) {
            self.shared.known_hosts.lock().unpoisoned().remove(&node);
            peer.task.abort();
            self.dropped_before += peer.outbox.stats().dropped;
            // The aborted task can no longer report it.
            if peer.outbox.retire() {
                self.shared.events.down(node);
            }
        }
    }

    /// Enqueues a message. Never blocks.
    pub fn send(&mut self, to: NodeId, group: GroupId, message: &PeerMessage) -> Sent {
        match self.peers.get(&to) {
            Some(peer) if peer.outbox.is_open() => {
                let frame = self.encoder.encode(group, message);
                peer.outbox.push(Lane::of(message), frame)
            }
            _ => Sent::Lost,
        }
    }

    /// Sends the queued messages for up to 100 ms, closes everything, and returns once the
    /// listening address is free again. Dropping the transport closes everything too, but a moment
    /// later and without sending.
    pub async fn stop(mut self) {
        self.flush().await;
        self.abort();
        let peers = std::mem::take(&mut self.peers);
        for task in peers.into_values().map(|peer| peer.task).chain(self.accepting.take()) {
            // The task was aborted, so a cancellation is no error.
            task.await.unwrap_or(());
        }
    }

    /// Waits until the last messages are sent, for example a vote for the successor.
    async fn flush(&self) {
        let began = tokio::time::Instant::now();
        let waits = || self.peers.values().any(|peer| peer.outbox.stats().queued_bytes > 0);
        while waits() && began.elapsed() < FLUSH_WITHIN {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The task writes the batch that it took last in its next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn abort(&self) {
        let peers = self.peers.values().map(|peer| &peer.task);
        for task in peers.chain(&self.accepting) {
            task.abort();
        }
    }

    /// Returns the address on which this node listens for others, with the actual port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns a dialer for snapshot connections to `node`; `None` if this node does not dial it.
    #[must_use]
    pub fn snapshot_dialer(&self, node: NodeId) -> Option<SnapshotDialer> {
        let addresses = self.peers.get(&node)?.addresses.lock().unpoisoned().clone();
        Some(SnapshotDialer {
            shared: self.shared.clone(),
            runtime: self.runtime.clone(),
            node,
            addresses,
        })
    }

    /// Returns the counters since the start.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        let queues = self.peers.values().map(|peer| peer.outbox.stats());
        let (dropped, queued_bytes) = queues.fold((self.dropped_before, 0), |sum, one| {
            (sum.0 + one.dropped, sum.1 + one.queued_bytes)
        });
        TransportStats { refused: self.shared.refusals.counts(), dropped, queued_bytes }
    }
}

/// Opens connections for snapshots to one node, from a thread that may block.
pub struct SnapshotDialer {
    shared: Arc<Shared>,
    runtime: Handle,
    node: NodeId,
    addresses: Vec<String>,
}

impl SnapshotDialer {
    /// Connects and performs the handshake. Blocks for up to the handshake timeout; do not call it
    /// from a thread of an async runtime.
    ///
    /// # Errors
    /// The reason why there is no connection.
    pub fn dial(&self) -> Result<SnapshotConnection, String> {
        let (answer, dialled) = tokio::sync::oneshot::channel();
        let dialling =
            dial::dial_for_snapshot(self.shared.clone(), self.node, self.addresses.clone());
        self.runtime.spawn(async move {
            // The caller may have ended.
            answer.send(dialling.await).ok();
        });
        dialled.blocking_recv().unwrap_or_else(|_| Err("the node is shutting down".to_owned()))
    }
}

impl Drop for FramedTransport {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod outbox_tests;
#[cfg(test)]
mod tests;
