//! The roles. What only matters in a role lives in the role.

use alloc::collections::BTreeMap;

use crate::lease::Lease;
use crate::log_clock::LogClock;
use crate::progress::Progress;
use crate::read::ReadRounds;
use crate::{Instant, LogIndex, NodeId, PersistId};

/// A node's part in its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RoleKind {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether an election could be won (Raft thesis, section 9.6).
    PreCandidate,
    /// Campaigns in its term.
    Candidate,
    /// Leads its term.
    Leader,
}

#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower(Follower),
    PreCandidate(Votes),
    Candidate(Candidate),
    Leader(Leader),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    pub(crate) leader: Option<NodeId>,
    /// The last index known to match the leader's log in this term. What lies behind it may be a
    /// leftover of an earlier term and is neither acknowledged nor committed.
    pub(crate) verified: LogIndex,
    /// The highest commit index that the leader of this term has told of; `None` before its first word of it.
    pub(crate) leader_commit: Option<LogIndex>,
}

/// Answers of voters, by node.
pub(crate) type Votes = BTreeMap<NodeId, bool>;

#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) votes: Votes,
    /// The own vote counts once this order is durable.
    pub(crate) own_vote: PersistId,
    /// The election is won, but the wall clocks heard so far do not agree: others may answer until then.
    pub(crate) clock_wait_until: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) followers: BTreeMap<NodeId, Progress>,
    /// The no-op that opened the term: reads and membership wait for its commit.
    pub(crate) first_of_term: LogIndex,
    pub(crate) reads: ReadRounds,
    pub(crate) lease: Lease,
    pub(crate) heartbeat_at: Instant,
    /// What new entries are stamped with.
    pub(crate) clock: LogClock,
    /// The round of heartbeats whose answers are taken as clock samples, and when it was sent.
    pub(crate) clock_round: (u64, Instant),
    pub(crate) transfer: Option<Transfer>,
}

/// Leadership on its way to another node (Raft thesis, section 3.10).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    /// When it is given up, and proposals are taken in again.
    pub(crate) until: Instant,
    /// The target has been told to campaign; until then it is brought up to date.
    pub(crate) told: bool,
    /// This leader cannot serve: if the transfer comes to nothing, it steps down.
    pub(crate) gives_way: bool,
}

impl Role {
    pub(crate) fn kind(&self) -> RoleKind {
        match self {
            Self::Follower(_) => RoleKind::Follower,
            Self::PreCandidate(_) => RoleKind::PreCandidate,
            Self::Candidate(_) => RoleKind::Candidate,
            Self::Leader(_) => RoleKind::Leader,
        }
    }
}
