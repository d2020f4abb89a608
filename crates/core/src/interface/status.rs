//! The status of a core.

use alloc::vec::Vec;

use crate::{
    ClockState, Configuration, Instant, LogId, LogIndex, LogSummary, NodeId, RoleKind, Term,
};

/// The state of the core at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreStatus {
    /// This node.
    pub node: NodeId,
    /// Its role in the term.
    pub role: RoleKind,
    /// The term.
    pub term: Term,
    /// The vote given in the term.
    pub vote: Option<NodeId>,
    /// The leader of the term, if known.
    pub leader: Option<NodeId>,
    /// The log's watermarks.
    pub log: LogSummary,
    /// The configuration in force: the last one appended.
    pub configuration: Configuration,
    /// On a leader: what it knows of each follower.
    pub followers: Vec<FollowerStatus>,
    /// Messages waiting for the disk.
    pub held_messages: usize,
    /// On a leader: the basis of its log time.
    pub clock: Option<ClockState>,
    /// On a leader: its lease is revoked until the next election, because it has told another node
    /// to campaign. Lease reads cost a round meanwhile.
    pub lease_revoked: bool,
    /// It neither votes nor campaigns ([`crate::Input::Superseded`]).
    pub abstains: bool,
    /// It has lost entries to damage, votes as if it had this one, and does not lead before it has
    /// it ([`crate::Initial::promised`]).
    pub lacks: Option<LogId>,
}

/// What a leader knows of a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowerStatus {
    /// The follower.
    pub node: NodeId,
    /// The last entry that it has persisted.
    pub matched: LogIndex,
    /// The next entry to send.
    pub next: LogIndex,
    /// When it was last heard.
    pub last_contact: Instant,
    /// No configuration needs it any more; it is dropped once it has learned so.
    pub is_departed: bool,
    /// The last entry that it has applied, as of its last heartbeat reply.
    pub applied: LogIndex,
    /// It has lost entries that it had acknowledged; an operator must investigate.
    pub log_lost: bool,
    /// Its state machine is halted at this entry.
    pub halted_at: Option<LogId>,
    /// The highest command version that its program decodes; `None` until it has announced one to
    /// the leader.
    pub command_version_max: Option<u32>,
}
