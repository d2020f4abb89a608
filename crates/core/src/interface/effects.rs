//! The effects of a step.

use alloc::vec::Vec;

use crate::{EntryKind, HardState, LogId, LogIndex, NodeId, PersistId, ReadId, SentMessage, Term};

/// The effects of a step. Each step clears and refills them; the driver must act on every field.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// To be persisted, in the order of the ids. The driver reports completion with
    /// [`crate::Input::Persisted`].
    pub persist: Option<PersistRequest>,
    /// To be sent now. Everything that these messages depend on is durable.
    pub messages: Vec<Envelope>,
    /// Appends to be filled with payloads and sent now. They do not depend on this node's disk, so
    /// they are sent before its own write completes (Raft thesis, section 10.2.1).
    pub appends: Vec<AppendPlan>,
    /// The state machine may apply up to and including this index: it is committed, and persisted
    /// on this node.
    pub apply_to: Option<LogIndex>,
    /// Followers that need entries which are purged here: send each the newest snapshot. The driver
    /// reports a failure with [`crate::Input::SnapshotFailed`]; success shows in the follower's
    /// heartbeat replies.
    pub snapshots: Vec<NodeId>,
    /// Nodes that no configuration needs any more, and that have learned so if they could be
    /// reached. Nothing is sent to them from now on; close their connections.
    pub dropped: Vec<NodeId>,
    /// Confirmed reads: serve each once its index has been applied.
    pub reads_confirmed: Vec<(ReadId, LogIndex)>,
    /// Reads that this node can no longer confirm; retry them at the new leader.
    pub reads_lost: Vec<ReadId>,
    /// Entries from this index on were replaced by those of another leader. They will never be
    /// committed with their old terms.
    pub superseded_from: Option<LogIndex>,
    /// This node is no longer leader. The outcome of what it proposed is unknown.
    pub lost_leadership: bool,
    /// Role, term, leader or the configuration in force have changed.
    pub status_changed: bool,
    /// A changed term or vote has become durable.
    pub hard_state_saved: bool,
    /// This node has acknowledged entries up to this index to the leader, and its log lacks them:
    /// the directory was rolled back or damaged. The node must stop once this step's messages are
    /// sent; as a voter it could elect a leader that lacks committed entries.
    pub log_lost: Option<LogIndex>,
}

/// Hard state and entries that become durable together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistRequest {
    /// Rises by one per request.
    pub id: PersistId,
    /// The new hard state, if it has changed.
    pub hard_state: Option<HardState>,
    /// The new entries.
    pub appended: Appended,
}

/// The entries of a persist request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// None.
    Nothing,
    /// Entries created by this step, with ids from `first` on: the no-op of a new term (no
    /// payload), a membership entry, or the proposed commands in their order.
    Created {
        /// The first entry's id; all have its term.
        first: LogId,
        /// How many.
        count: u64,
        /// What they are.
        kind: EntryKind,
        /// Their log time.
        time_ms: u64,
    },
    /// Entries of the append message that this step was called with, without its first `skip`.
    Received {
        /// How many entries of the message were there already.
        skip: usize,
        /// The index of the first new entry; whatever the log held from there on is superseded.
        first: LogIndex,
    },
    /// The snapshot of this step's input replaces the log up to `last`.
    Snapshot {
        /// The last included entry of the snapshot.
        last: LogId,
        /// What happens to the entries after it.
        suffix: LogSuffix,
    },
}

/// What happens to the entries after the last included entry of an installed snapshot (Raft paper
/// figure 13, rules 6 and 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogSuffix {
    /// They are kept: the log contains the last included entry with its term, so they follow from
    /// the snapshot.
    Keep,
    /// They are dropped, with everything before them, and never reappear: the log does not contain
    /// the last included entry, so nothing proves that later entries follow from the snapshot.
    Drop,
}

/// A message and its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The receiver.
    pub to: NodeId,
    /// The message.
    pub message: SentMessage,
}

/// An append message without its payloads: entries after `prev` up to `last`.
///
/// A driver that does not fill it at once must check that the log still contains `last` (same term)
/// and that the node still leads `term`, and drop the plan otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendPlan {
    /// The receiver.
    pub to: NodeId,
    /// The leader's term.
    pub term: Term,
    /// The entry before the first one.
    pub prev: LogId,
    /// The last entry; equal to `prev` when the message carries none.
    pub last: LogId,
    /// The leader's commit index.
    pub commit: LogIndex,
}

impl Effects {
    /// Clears all effects and keeps the buffers.
    pub fn clear(&mut self) {
        self.persist = None;
        self.messages.clear();
        self.appends.clear();
        self.apply_to = None;
        self.snapshots.clear();
        self.dropped.clear();
        self.reads_confirmed.clear();
        self.reads_lost.clear();
        self.superseded_from = None;
        self.lost_leadership = false;
        self.status_changed = false;
        self.hard_state_saved = false;
        self.log_lost = None;
    }
}
