//! Everything that must be done after a step.

use alloc::vec::Vec;

use crate::{EntryKind, HardState, LogId, LogIndex, Message, NodeId, PersistId, ReadId, Term};

/// Everything that must be done after a step. Cleared and refilled by each step; the driver must
/// act on every field.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// To be made durable. Orders must be written in the order of their ids; the completion is
    /// told back with [`crate::Input::Persisted`].
    pub persist: Option<PersistOrder>,
    /// To be sent now. Whatever a message promises is durable already.
    pub messages: Vec<Send>,
    /// Appends to be filled with payloads and sent now. They promise nothing about this node's
    /// disk, so they run beside its write (Raft thesis, section 10.2.1).
    pub appends: Vec<AppendPlan>,
    /// The state machine may apply up to and including this index: it is committed, and stored on
    /// this node.
    pub apply_to: Option<LogIndex>,
    /// Followers that need entries which are purged here: send each the newest snapshot. How it ends is told
    /// with [`crate::Input::SnapshotFailed`], or shows in the follower's answers to heartbeats.
    pub snapshots: Vec<NodeId>,
    /// Reads that are confirmed: serve them once this index has been applied.
    pub reads_confirmed: Vec<(ReadId, LogIndex)>,
    /// Reads that cannot be confirmed here any more; they go to the new leader.
    pub reads_lost: Vec<ReadId>,
    /// Entries from this index on were superseded by another leader's: they will never be
    /// committed with the terms they had.
    pub superseded_from: Option<LogIndex>,
    /// This node has stopped being the leader. The outcome of what it proposed is unknown.
    pub lost_leadership: bool,
    /// Role, term, leader or the configuration in force have changed.
    pub status_changed: bool,
    /// A changed term or vote has become durable.
    pub hard_state_saved: bool,
    /// The leader has on record that this node stored entries up to this index, and they are not there:
    /// the directory was rolled back or damaged. The node must stop after this step's messages are sent;
    /// as a voter it could elect a leader that lacks committed entries.
    pub log_lost: Option<LogIndex>,
}

/// Hard state and entries that become durable in one step or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistOrder {
    /// Rises by one per order.
    pub id: PersistId,
    /// The new hard state, if it has changed.
    pub hard_state: Option<HardState>,
    /// The new entries.
    pub appended: Appended,
}

/// Which entries an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// None.
    Nothing,
    /// Entries created by this step, with ids from `first` on: the no-op of a new term (no payload),
    /// a membership entry, or the proposed commands in their order.
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
    /// The snapshot that this step was called with takes the place of the log up to `last`.
    Snapshot {
        /// The last entry in the snapshot.
        last: LogId,
        /// Whether the log holds this entry and keeps what is behind it; otherwise it is dropped whole.
        keeps_suffix: bool,
    },
}

/// A message and its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// The receiver.
    pub to: NodeId,
    /// The message; never an [`Message::Append`].
    pub message: Message,
}

/// An append message without its payloads: entries after `prev` up to `last`.
///
/// Whoever fills it later than at once must check that the log still holds `last` (same term) and
/// that the node still leads `term`, and drop the plan otherwise.
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
    /// Forgets everything, keeping the buffers.
    pub fn clear(&mut self) {
        self.persist = None;
        self.messages.clear();
        self.appends.clear();
        self.apply_to = None;
        self.snapshots.clear();
        self.reads_confirmed.clear();
        self.reads_lost.clear();
        self.superseded_from = None;
        self.lost_leadership = false;
        self.status_changed = false;
        self.hard_state_saved = false;
        self.log_lost = None;
    }
}
