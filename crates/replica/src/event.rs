//! What a replica is told and what it asks for.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{HardState, Instant, LogIndex, NodeId, PersistId, Term};
use d_engine_storage::snapshot::{Coverage, Hold};
use d_engine_storage::{Incarnation, LogEntry, LogSuffix, Membership};

use crate::{
    InstallError, LogId, PeerMessage, ProposeError, ReadError, SkipError, StopReason, TransferError,
};

/// Called exactly once with the outcome of a proposal: the state machine's reply or an error.
/// Must not block; it is called from the raft thread or from the apply worker.
pub type ProposeResponder = Box<dyn FnOnce(Result<Bytes, ProposeError>) + Send>;

/// Called exactly once when a read is confirmed and everything up to the read index has been
/// applied here; the value is the read index. Must not block.
pub type ReadResponder = Box<dyn FnOnce(Result<u64, ReadError>) + Send>;

/// Called exactly once with whether a transfer of leadership has begun. Must not block.
pub type TransferResponder = Box<dyn FnOnce(Result<(), TransferError>) + Send>;

/// Called exactly once: with the index of the entry that skips another, once that is committed, or with why there is
/// none. Must not block.
pub type SkipResponder = Box<dyn FnOnce(Result<u64, SkipError>) + Send>;

/// Called exactly once: when the state machine holds a received snapshot, or with why it does not. Must not block.
pub type InstallResponder = Box<dyn FnOnce(Result<(), InstallError>) + Send>;

/// A snapshot that a leader has sent: an archive that is whole and durable in this node's store.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    /// The leader that sent it.
    pub from: NodeId,
    /// The term in which it did.
    pub term: Term,
    /// The last entry in it.
    pub label: d_engine_core::LogId,
    /// Log time at the label, in UNIX milliseconds.
    pub time_ms: u64,
    /// The members as of the label.
    pub membership: Membership,
    /// Keeps the archive from being pruned until it is installed.
    pub hold: Hold,
}

/// A command on its way into the log.
pub struct Proposal {
    /// The command.
    pub command: Bytes,
    /// When nobody waits for it any more: from then on it is not proposed. `None`: never.
    pub deadline: Option<Instant>,
    /// What the state machine's [`check`](crate::StateMachine::check) said on the caller's thread. A refused command is
    /// not proposed; a node that does not lead answers `NotLeader` all the same: its program may be an older one.
    pub checked: Result<(), Arc<str>>,
    /// What the state machine's [`command_version`](crate::StateMachine::command_version) said there. A leader refuses
    /// a version that not every voter is known to decode.
    pub version: u32,
    /// Who waits for the reply.
    pub responder: ProposeResponder,
}

impl Proposal {
    /// A command of version 0 that the state machine has not refused.
    #[must_use]
    pub fn new(command: Bytes, deadline: Option<Instant>, responder: ProposeResponder) -> Self {
        Self { command, deadline, checked: Ok(()), version: 0, responder }
    }

    /// The same command, of this version.
    #[must_use]
    pub fn with_version(self, version: u32) -> Self {
        Self { version, ..self }
    }
}

/// A read on its way to confirmation.
pub struct ReadRequest {
    /// Whether the leader's lease may confirm it; otherwise, and without a valid lease, a round does.
    pub lease: bool,
    /// When nobody waits for it any more. `None`: never.
    pub deadline: Option<Instant>,
    /// Who waits.
    pub responder: ReadResponder,
}

/// How a log stands with its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogDisk {
    /// Whether entries wait for room. Terms and votes are still stored.
    pub full: bool,
    /// Bytes that can still be written where the log lies, as of lately; `None` where nobody knows.
    pub free_bytes: Option<u64>,
}

/// How far a snapshot on its way to a follower has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotProgress {
    /// The follower.
    pub to: NodeId,
    /// The last entry in the snapshot.
    pub label: LogIndex,
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// Bytes of the archive.
    pub len: u64,
}

/// Everything that can happen to a replica.
pub enum Event {
    /// A message from a peer whose identity the transport has checked.
    Peer {
        /// The sender.
        from: NodeId,
        /// The message.
        message: PeerMessage,
    },
    /// A connection with a peer stands; the handshake told its incarnation.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// Its data directory.
        incarnation: Incarnation,
    },
    /// The connection on which messages to this peer go was lost, and with it what was in flight.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// Commands of callers, drained in one batch.
    Propose(Vec<Proposal>),
    /// Reads of callers, drained in one batch. Linearizable, whatever confirms them.
    Read(Vec<ReadRequest>),
    /// Somebody wants another node to lead; `None` leaves the choice to the core.
    TransferLeadership {
        /// The node that shall lead.
        to: Option<NodeId>,
        /// Called with whether the transfer has begun. Must not block.
        responder: TransferResponder,
    },
    /// An operator wants no state machine to apply an entry that stops them all.
    SkipEntry {
        /// The entry.
        target: d_engine_core::LogId,
        /// Called with the outcome. Must not block.
        responder: SkipResponder,
    },
    /// The log worker has stored everything up to and including this order.
    Persisted(PersistId),
    /// The log worker has stored term and vote of everything up to and including this order; its entries
    /// wait for room on the disk.
    HardStateStored(PersistId),
    /// How the log stands with its disk; told when it changes.
    LogDisk(LogDisk),
    /// The apply worker has applied everything up to and including this entry.
    Applied {
        /// The entry.
        through: LogId,
        /// The log time at which the state machine wants to be told the time, if it does.
        next_expiry_ms: Option<u64>,
        /// The highest version of a command up to there.
        command_version: u32,
    },
    /// The state machine cannot apply an entry: it stands, and the node goes on without it. Told for every job that is
    /// not done because of it.
    ApplyStopped {
        /// The last entry that is applied.
        through: LogId,
        /// Where it stands.
        stop: ApplyStop,
    },
    /// The log worker has read entries for a follower that is behind.
    Loaded {
        /// The follower.
        to: NodeId,
        /// The job's token.
        token: u64,
        /// The entries; may end before the range that was asked for.
        entries: Arc<[LogEntry]>,
    },
    /// The log worker cannot read an entry for a follower: the log is damaged there.
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
        /// No entry behind this one is touched by it; zero if none that is kept is.
        through: LogIndex,
        /// The damage.
        reason: StopReason,
    },
    /// A scrub has found that a snapshot of this node is damaged.
    SnapshotDamaged {
        /// The damage.
        reason: StopReason,
    },
    /// The transport did not take an append of [`Jobs::send`]: there is no connection, or no room in the
    /// queue of its receiver. Appends before it to the same node are on their way.
    AppendNotSent {
        /// The receiver.
        to: NodeId,
        /// The term of the append.
        term: Term,
        /// The entry before its first one.
        prev: LogIndex,
    },
    /// A snapshot of the leader's has been received whole and is durable here.
    SnapshotReceived {
        /// What it is of.
        snapshot: Box<ReceivedSnapshot>,
        /// Called with whether it is installed. Must not block.
        responder: InstallResponder,
    },
    /// A snapshot on its way to a follower was chosen, or the follower has confirmed more of it. About once a second
    /// is often enough.
    SnapshotProgress(SnapshotProgress),
    /// A follower that was sent a snapshot has applied it.
    SnapshotSent(NodeId),
    /// Sending a snapshot to this follower has failed; it is ordered again with the next heartbeat.
    SnapshotFailed {
        /// The follower.
        to: NodeId,
        /// No snapshot here could be sent: a new one is due.
        none_usable: bool,
    },
    /// This node has a new snapshot, verified and durable, that other nodes take; the state machine knows of it and, if it keeps its
    /// own state, has flushed everything up to there.
    SnapshotKept(Coverage),
    /// Apply pauses on purpose, for a snapshot of a machine that has no view, or goes on: meanwhile the
    /// state machine is not taken to hang.
    ApplyPaused(bool),
    /// The log worker has purged the log up to and including this entry.
    Purged(d_engine_core::LogId),
    /// The time of `Replica::next_deadline` has come.
    Deadline,
    /// A worker can no longer go on. The replica stops for good.
    Failed(StopReason),
}

/// Everything that a replica asks its driver to do. Cleared and refilled; nothing may be ignored.
#[derive(Default)]
pub struct Jobs {
    /// For the log worker, in this order; one sync may serve them all.
    pub persist: Vec<PersistJob>,
    /// For the transport, now.
    pub send: Vec<Outgoing>,
    /// For the apply worker, in this order.
    pub apply: Vec<ApplyJob>,
    /// Reads of the log for followers that are behind; not on the thread that writes. A new one for a
    /// follower replaces one that is still queued.
    pub load: Vec<LoadJob>,
    /// For the log worker, after the persists and loads: how far the log is to be purged.
    pub purge: Option<d_engine_core::LogId>,
    /// For the transport: followers that need a snapshot, each over a connection of its own.
    pub snapshots: Vec<SnapshotOrder>,
    /// For the apply worker: a snapshot is due, whatever the policy says.
    pub snapshot_due: bool,
    /// The status (role, leader, term, commit, members) has changed.
    pub status_changed: bool,
    /// Term or vote were stored: `StateMachine::save_hard_state` is due, off the write path.
    pub hard_state_saved: bool,
}

impl Outgoing {
    /// What is to be told when this message cannot be sent: only a lost append needs it. Votes and
    /// heartbeats are repeated by themselves.
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
            && !self.snapshot_due
            && !self.status_changed
            && !self.hard_state_saved
    }

    /// Forgets everything, keeping the buffers.
    pub fn clear(&mut self) {
        self.persist.clear();
        self.send.clear();
        self.apply.clear();
        self.load.clear();
        self.purge = None;
        self.snapshots.clear();
        self.snapshot_due = false;
        self.status_changed = false;
        self.hard_state_saved = false;
    }
}

/// Hard state and entries to be made durable in one step.
#[derive(Clone, Debug)]
pub struct PersistJob {
    /// Told back in [`Event::Persisted`]; cumulative.
    pub id: PersistId,
    /// The new hard state, if it has changed.
    pub hard_state: Option<HardState>,
    /// The new entries; the first may replace a conflicting suffix.
    pub entries: Vec<LogEntry>,
    /// A snapshot that takes the place of the log, after the hard state.
    pub install: Option<Install>,
}

/// The log begins anew behind an installed snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Install {
    /// The last entry in the snapshot.
    pub base: d_engine_core::LogId,
    /// What becomes of the entries behind it.
    pub suffix: LogSuffix,
}

/// A follower needs a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotOrder {
    /// The follower.
    pub to: NodeId,
    /// The term that this node leads; the snapshot is sent in it.
    pub term: Term,
    /// The log begins behind this entry: a snapshot that ends before it would not help.
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
    /// The entries, or where to find them.
    pub source: ApplySource,
    /// Who waits for the replies: (index, responder), in order of index.
    pub responders: Vec<(LogIndex, ProposeResponder)>,
    /// One of the entries that is not given to the state machine, if any is.
    pub skip: Option<SkippedEntry>,
}

/// An entry that the cluster has decided to skip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SkippedEntry {
    /// The entry.
    pub target: LogId,
    /// The index of the entry that says so.
    pub decided_at: u64,
}

/// Where a state machine stands that cannot apply an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApplyStop {
    /// The first entry that it was given and did not apply.
    pub first: LogId,
    /// The last one of the same chunk.
    pub last: LogId,
    /// It panicked there: nobody knows what it holds.
    pub panicked: bool,
    /// What it said, and what to do.
    pub reason: StopReason,
}

impl ApplyStop {
    /// The entry at which it stands, if that is known: the chunk held no other.
    #[must_use]
    pub fn stands_at(&self) -> Option<LogId> {
        (self.first == self.last).then_some(self.first)
    }

    /// Whether nothing but a new process goes on behind the entry, also once that is skipped: the machine may hold half of
    /// a chunk.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        self.panicked || self.first != self.last
    }
}

/// Where the entries of an [`ApplyJob`] are.
#[derive(Clone, Debug)]
pub enum ApplySource {
    /// Here.
    Entries(Vec<LogEntry>),
    /// In the log, from the first to the last index, both included; read in bounded portions.
    Stored(LogIndex, LogIndex),
    /// The state is replaced by the snapshot with this label, which is in the node's store.
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
    /// Told back in [`Event::Loaded`].
    pub token: u64,
    /// First index.
    pub first: LogIndex,
    /// Last index.
    pub last: LogIndex,
    /// Stop early once the payloads pass this many bytes.
    pub max_bytes: usize,
}
