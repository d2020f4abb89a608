//! The input of a replica ([`Event`]) and its output ([`Jobs`]).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{HardState, Instant, LogIndex, NodeId, PersistId, ReadMode, Term};
use d_engine_storage::snapshot::{Coverage, Hold};
use d_engine_storage::{ConfigId, Incarnation, LogEntry, LogSuffix, Membership};

use crate::membership_driver::ChangeMembers;
use crate::{
    InstallError, LogId, PeerMessage, ProposeError, ReadError, SkipError, StopReason, TransferError,
};

/// Called exactly once with the outcome of a proposal: the state machine's reply or an error.
/// Must not block; it is called from the raft thread or from the apply worker.
pub type ProposeResponder = Box<dyn FnOnce(Result<Bytes, ProposeError>) + Send>;

/// Called exactly once when a read is confirmed and everything up to the read index has been
/// applied here; the value is the read index. Must not block.
pub type ReadResponder = Box<dyn FnOnce(Result<u64, ReadError>) + Send>;

/// Called exactly once: with `Ok` once a leadership transfer has begun, or with the reason why none
/// has. Must not block.
pub type TransferResponder = Box<dyn FnOnce(Result<(), TransferError>) + Send>;

/// Called exactly once: with the index of the entry that skips another, once it is committed, or
/// with the reason why none is. Must not block.
pub type SkipResponder = Box<dyn FnOnce(Result<u64, SkipError>) + Send>;

/// Called exactly once: with `Ok` once the state machine holds a received snapshot, or with the
/// reason why it does not. Must not block.
pub type InstallResponder = Box<dyn FnOnce(Result<(), InstallError>) + Send>;

/// A snapshot that a leader has sent. Its archive is complete and durable in this node's store.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    /// The leader that sent it.
    pub from: NodeId,
    /// The leader's term when it sent it.
    pub term: Term,
    /// The last included entry.
    pub last_included: LogId,
    /// Log time at the last included entry, in UNIX milliseconds.
    pub time_ms: u64,
    /// The membership at the last included entry.
    pub membership: Membership,
    /// Protects the archive from pruning until the snapshot is installed.
    pub hold: Hold,
}

/// A command that a caller proposes.
pub struct Proposal {
    /// The command.
    pub command: Bytes,
    /// The caller's deadline; after it the command is not proposed. `None`: no deadline.
    pub deadline: Option<Instant>,
    /// The result of the state machine's [`check`](crate::StateMachine::check), called on the
    /// caller's thread. A leader does not propose a refused command. A node that does not lead
    /// returns `NotLeader` even for a refused command, because its program may be older than the
    /// leader's.
    pub checked: Result<(), Arc<str>>,
    /// The result of the state machine's [`command_version`](crate::StateMachine::command_version),
    /// called on the caller's thread. A leader refuses a version that not every voter is known to
    /// decode.
    pub version: u32,
    /// Receives the outcome.
    pub responder: ProposeResponder,
}

impl Proposal {
    /// A command of version 0 that the state machine's check has accepted.
    #[must_use]
    pub fn new(command: Bytes, deadline: Option<Instant>, responder: ProposeResponder) -> Self {
        Self { command, deadline, checked: Ok(()), version: 0, responder }
    }

    /// The same command with this version.
    #[must_use]
    pub fn with_version(self, version: u32) -> Self {
        Self { version, ..self }
    }
}

/// A linearizable read that waits for confirmation.
pub struct ReadRequest {
    /// How a leader confirms it.
    pub mode: ReadMode,
    /// The caller's deadline. `None`: no deadline.
    pub deadline: Option<Instant>,
    /// Receives the outcome.
    pub responder: ReadResponder,
}

/// The state of the disk that contains the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogDisk {
    /// Whether the disk is full, so that entries wait for space. Terms and votes are still
    /// persisted.
    pub full: bool,
    /// Free bytes on the log's disk at the last check; `None` if unknown.
    pub free_bytes: Option<u64>,
}

/// Progress of a snapshot that is being sent to a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotProgress {
    /// The follower.
    pub to: NodeId,
    /// The index of the last included entry.
    pub last_included: LogIndex,
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// Length of the archive in bytes.
    pub len: u64,
}

/// An input of a replica, for [`Replica::handle`](crate::Replica::handle).
pub enum Event {
    /// A message from a peer. The transport has verified the peer's identity.
    Peer {
        /// The sender.
        from: NodeId,
        /// The message.
        message: PeerMessage,
    },
    /// A connection with a peer was established. Its handshake carried the peer's incarnation.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// The incarnation of its data directory.
        incarnation: Incarnation,
    },
    /// The connection that carries messages to this peer was lost, and with it the messages in
    /// flight.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// Commands of callers, drained in one batch.
    Propose(Vec<Proposal>),
    /// Linearizable reads of callers, drained in one batch; a round or the lease confirms them.
    Read(Vec<ReadRequest>),
    /// A request to transfer leadership. With `None` the core chooses the target.
    TransferLeadership {
        /// The target.
        to: Option<NodeId>,
        /// Called with the outcome. Must not block.
        responder: TransferResponder,
    },
    /// A peer has named the addresses at which it is reached, in its handshake.
    Advertised {
        /// The peer.
        node: NodeId,
        /// Its address for other nodes.
        peer_addr: String,
        /// Its address for clients; empty if it serves none.
        client_addr: String,
    },
    /// A member may be reached at this address; it has not said so itself.
    FoundAt {
        /// The member.
        node: NodeId,
        /// The address for other nodes.
        peer_addr: String,
    },
    /// A connection to a peer was made at this address.
    Reached {
        /// The peer.
        node: NodeId,
        /// The address.
        peer_addr: String,
    },
    /// A member has refused this node, because this committed configuration has removed it.
    RemovedBy(ConfigId),
    /// A node that answers at a member's address belongs to a cluster that continues this one by
    /// force ([`d_engine_core::Input::Superseded`]).
    Superseded,
    /// A caller's request to change the members.
    ChangeMembers(Box<ChangeMembers>),
    /// An operator's request to skip an entry that halts every state machine.
    SkipEntry {
        /// The entry.
        target: LogId,
        /// Called with the outcome. Must not block.
        responder: SkipResponder,
    },
    /// The log worker has persisted all jobs up to and including this id.
    Persisted(PersistId),
    /// The log worker has persisted term and vote of all jobs up to and including this id. Their
    /// entries wait for space on the disk.
    HardStatePersisted(PersistId),
    /// The state of the log's disk has changed.
    LogDisk(LogDisk),
    /// The apply worker has applied everything up to and including this entry.
    Applied {
        /// The entry.
        through: LogId,
        /// The log time of the state machine's next expiry, if it has one; a tick is due then.
        next_expiry_ms: Option<u64>,
        /// The highest command version among the applied entries.
        command_version: u32,
    },
    /// The state machine cannot apply an entry and is halted; the node continues without it. Sent
    /// for every job that is not executed because of it.
    ApplyStopped {
        /// The last applied entry.
        through: LogId,
        /// Where and why it is halted.
        stop: ApplyStop,
    },
    /// The log worker has read entries for a follower that lags behind.
    Loaded {
        /// The follower.
        to: NodeId,
        /// The job's token.
        token: u64,
        /// The entries; may end before the requested last index.
        entries: Arc<[LogEntry]>,
    },
    /// The log worker cannot read an entry for a follower, because the log is damaged there.
    LoadFailed {
        /// The follower.
        to: NodeId,
        /// The job's token.
        token: u64,
        /// The entry.
        at: LogIndex,
        /// The damage.
        reason: StopReason,
    },
    /// A scrub has found damage in the log.
    LogDamaged {
        /// The last entry that the damage may affect; zero if it affects no entry that is kept.
        through: LogIndex,
        /// The damage.
        reason: StopReason,
    },
    /// A scrub has found that a snapshot of this node is damaged.
    SnapshotDamaged {
        /// The damage.
        reason: StopReason,
    },
    /// The transport did not accept an append of [`Jobs::send`]: there is no connection, or the
    /// receiver's queue is full. Earlier appends to the same node are in flight.
    AppendNotSent {
        /// The receiver.
        to: NodeId,
        /// The term of the append.
        term: Term,
        /// The entry before its first one.
        prev: LogIndex,
    },
    /// A snapshot from the leader was received completely and is durable on this node.
    SnapshotReceived {
        /// The snapshot.
        snapshot: Box<ReceivedSnapshot>,
        /// Called with the outcome of the installation. Must not block.
        responder: InstallResponder,
    },
    /// A snapshot was chosen for a follower, or the follower has confirmed more bytes of it.
    /// Reporting it once a second is enough.
    SnapshotProgress(SnapshotProgress),
    /// A follower that was sent a snapshot has applied it.
    SnapshotSent(NodeId),
    /// Sending a snapshot to this follower has failed; it is requested again with the next
    /// heartbeat.
    SnapshotFailed {
        /// The follower.
        to: NodeId,
        /// Whether no snapshot of this node can be sent. A new one is due then.
        none_usable: bool,
    },
    /// This node has a new snapshot that is verified and durable, and that the other nodes accept.
    /// The state machine has been informed of it and, if it is durable itself, has flushed
    /// everything up to there.
    SnapshotKept(Coverage),
    /// Apply pauses (`true`) or continues (`false`), because a state machine without views
    /// generates a snapshot. The pause does not count as a hang.
    ApplyPaused(bool),
    /// The log worker has purged the log up to and including this entry.
    Purged(LogId),
    /// The time of `Replica::next_deadline` has come.
    Deadline,
    /// A worker has failed. The replica stops permanently.
    Failed(StopReason),
}

/// The work that a replica requests from its driver. The driver must execute all of it, then
/// clear the buffers and pass them in again.
#[derive(Default)]
pub struct Jobs {
    /// For the log worker, in this order; one sync may cover all of them.
    pub persist: Vec<PersistJob>,
    /// For the transport, to be sent at once.
    pub send: Vec<Outgoing>,
    /// For the apply worker, in this order.
    pub apply: Vec<ApplyJob>,
    /// Log reads for followers that lag behind; run them on a thread other than the log writer's. A
    /// new job for a follower replaces one that is still queued.
    pub load: Vec<LoadJob>,
    /// For the log worker, after persist and load jobs: purge the log up to here.
    pub purge: Option<LogId>,
    /// For the transport: followers that need a snapshot, each over its own connection.
    pub snapshots: Vec<SnapshotSendRequest>,
    /// For the transport: nodes that no configuration needs any more. End all sends to them and
    /// close their connections.
    pub dropped: Vec<NodeId>,
    /// For the apply worker: take a snapshot, regardless of the policy.
    pub snapshot_due: bool,
    /// The status (role, leader, term, commit index, members) has changed.
    pub status_changed: bool,
    /// Term or vote were persisted: call `StateMachine::save_hard_state`, off the write path.
    pub hard_state_saved: bool,
}

impl Outgoing {
    /// The event to report if this message cannot be sent. Only a lost append needs one; votes and
    /// heartbeats are repeated anyway.
    #[must_use]
    pub fn not_sent(&self) -> Option<Event> {
        match &self.message {
            PeerMessage::Append { term, prev, .. } => {
                Some(Event::AppendNotSent { to: self.to, term: *term, prev: prev.index })
            }
            _ => None,
        }
    }
}

impl Jobs {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.persist.is_empty()
            && self.send.is_empty()
            && self.apply.is_empty()
            && self.load.is_empty()
            && self.purge.is_none()
            && self.snapshots.is_empty()
            && self.dropped.is_empty()
            && !self.snapshot_due
            && !self.status_changed
            && !self.hard_state_saved
    }

    /// Removes all jobs and keeps the buffers.
    pub fn clear(&mut self) {
        self.persist.clear();
        self.send.clear();
        self.apply.clear();
        self.load.clear();
        self.purge = None;
        self.snapshots.clear();
        self.dropped.clear();
        self.snapshot_due = false;
        self.status_changed = false;
        self.hard_state_saved = false;
    }
}

/// A hard state and entries to be made durable in one step.
#[derive(Clone, Debug)]
pub struct PersistJob {
    /// Reported in [`Event::Persisted`], which also covers all smaller ids.
    pub id: PersistId,
    /// The new hard state, if it has changed.
    pub hard_state: Option<HardState>,
    /// The new entries; the first may replace a conflicting suffix.
    pub entries: Vec<LogEntry>,
    /// A snapshot that replaces the log; installed after the hard state is durable.
    pub install: Option<Install>,
}

/// The log restarts after an installed snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Install {
    /// The last included entry.
    pub base: LogId,
    /// Whether the entries after it are kept.
    pub suffix: LogSuffix,
}

/// A request to send a snapshot to a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotSendRequest {
    /// The follower.
    pub to: NodeId,
    /// The term in which this node leads; the snapshot is sent in this term.
    pub term: Term,
    /// The last index before the log's first entry. A snapshot that ends before it would not help
    /// the follower.
    pub at_least: LogIndex,
}

/// A message for a peer.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The receiver.
    pub to: NodeId,
    /// The message.
    pub message: PeerMessage,
}

/// Committed entries for the apply worker.
pub struct ApplyJob {
    /// The entries, or their location.
    pub source: ApplySource,
    /// The callers that wait for replies, as (index, responder), ordered by index.
    pub responders: Vec<(LogIndex, ProposeResponder)>,
    /// The entry in this job that is skipped, if there is one.
    pub skip: Option<SkippedEntry>,
}

/// An entry that the cluster has decided to skip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SkippedEntry {
    /// The entry.
    pub target: LogId,
    /// The index of the entry that contains the decision.
    pub decided_at: u64,
}

/// What halts a state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HaltCause {
    /// It returned an error.
    Error,
    /// It panicked, so its state is unknown.
    Panic,
}

/// Where and why a state machine is halted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApplyStop {
    /// The first entry of the chunk that it did not apply.
    pub first: LogId,
    /// The last entry of the same chunk.
    pub last: LogId,
    /// Whether it panicked; its state is unknown then.
    pub panicked: bool,
    /// The machine's error, and what to do about it.
    pub reason: StopReason,
}

impl ApplyStop {
    /// The entry at which it is halted; `None` if unknown, because the chunk had several entries.
    #[must_use]
    pub fn halted_at(&self) -> Option<LogId> {
        (self.first == self.last).then_some(self.first)
    }

    /// Whether only a restart of the process continues after the entry, even once it is skipped:
    /// the machine may have applied a part of the chunk.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        self.panicked || self.first != self.last
    }
}

/// The location of the entries of an [`ApplyJob`].
#[derive(Clone, Debug)]
pub enum ApplySource {
    /// In memory, in this job.
    Entries(Vec<LogEntry>),
    /// In the log, from the first to the last index, both inclusive; read in bounded portions.
    Stored(LogIndex, LogIndex),
    /// No entries: the snapshot with this last included entry, in the node's store, replaces the
    /// state.
    Snapshot(LogId),
}

impl fmt::Debug for ApplyJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyJob")
            .field("source", &self.source)
            .field("responders", &self.responders.len())
            .finish()
    }
}

/// Entries to be read from the log for a follower.
#[derive(Clone, Copy, Debug)]
pub struct LoadJob {
    /// The follower.
    pub to: NodeId,
    /// Reported in [`Event::Loaded`].
    pub token: u64,
    /// First index.
    pub first: LogIndex,
    /// Last index.
    pub last: LogIndex,
    /// Stop early once the payloads pass this many bytes.
    pub max_bytes: usize,
}
