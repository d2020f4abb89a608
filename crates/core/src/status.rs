//! What a node can tell about itself.

use alloc::vec::Vec;

use crate::{ClockState, Configuration, Instant, LogId, LogIndex, LogSummary, NodeId, RoleKind, Term};

/// A picture of the core at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreStatus {
    /// This node.
    pub node: NodeId,
    /// Its part in the term.
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
    /// On a leader: what its log time rests on.
    pub clock: Option<ClockState>,
    /// On a leader: its lease is off until the next election, because it has told another node to
    /// campaign. Lease reads cost a round meanwhile.
    pub lease_revoked: bool,
}

/// What a leader knows of a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowerStatus {
    /// The follower.
    pub node: NodeId,
    /// The last entry it has stored.
    pub matched: LogIndex,
    /// The next entry to send.
    pub next: LogIndex,
    /// When it was last heard.
    pub last_contact: Instant,
    /// The last entry that it has applied, as of its last answer to a heartbeat.
    pub applied: LogIndex,
    /// It has lost entries that it had acknowledged; an operator must look.
    pub log_lost: bool,
    /// Its state machine stops at this entry.
    pub stands_at: Option<LogId>,
    /// The highest version of a command that its program decodes; `None` while it has not told the leader.
    pub command_version_max: Option<u32>,
}
