//! The roles (Raft paper, section 5.1). State that matters in one role only is part of that role.

mod transitions;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::read::lease::Lease;
use crate::read::rounds::ReadRounds;
use crate::state::log_clock::LogClock;
use crate::state::progress::Progress;
use crate::{Instant, LogIndex, NodeId, PersistId};

/// A node's role in its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RoleKind {
    /// Follows a leader, or waits to hear one.
    Follower,
    /// Requests pre-votes, to learn whether it could win an election (Raft thesis, section 9.6).
    PreCandidate,
    /// Requests votes in its term.
    Candidate,
    /// Leads its term.
    Leader,
}

#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower(Follower),
    PreCandidate(Votes),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    pub(crate) leader: Option<NodeId>,
    /// The last index known to match the leader's log in this term. Entries after it may be left
    /// over from an earlier term; they are neither acknowledged nor committed.
    pub(crate) verified: LogIndex,
    /// The highest commit index that the leader of this term has reported; `None` before its first
    /// report.
    pub(crate) leader_commit: Option<LogIndex>,
}

/// Replies of voters, by node; `true` is a granted vote.
pub(crate) type Votes = BTreeMap<NodeId, bool>;

/// Why a node campaigns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Campaign {
    /// It has heard no leader for an election timeout.
    Timeout,
    /// The leader has asked it to. Vote stickiness does not apply to its requests.
    Transfer,
}

#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) votes: Votes,
    /// This node's own vote counts once this persist request is durable.
    pub(crate) own_vote: PersistId,
    /// The election is won, but the reported wall clocks disagree: more replies are awaited until
    /// this time.
    pub(crate) clock_wait_until: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) followers: BTreeMap<NodeId, Progress>,
    /// The no-op that opened the term. Reads and membership entries wait until it is committed.
    pub(crate) first_of_term: LogIndex,
    pub(crate) reads: ReadRounds,
    pub(crate) lease: Lease,
    pub(crate) heartbeat_at: Instant,
    /// The log time of new entries.
    pub(crate) clock: LogClock,
    /// The round of heartbeats whose replies serve as clock samples, and when it was sent.
    pub(crate) clock_round: (u64, Instant),
    pub(crate) transfer: Option<Transfer>,
    /// Followers that no configuration in play needs any more.
    pub(crate) departed: BTreeMap<NodeId, Departed>,
    /// Since when this leader has had its joint configuration in its log, uncommitted.
    pub(crate) joint_since: Option<Instant>,
}

/// A node that is about to be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departed {
    /// It has learned that it is dropped once it has replied to this round of heartbeats, ...
    pub(crate) round: u64,
    /// ... and has persisted this membership entry.
    pub(crate) dropped_by: LogIndex,
    /// It is dropped at this time in any case.
    pub(crate) until: Instant,
}

/// A leadership transfer in progress (Raft thesis, section 3.10).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    /// When the transfer is abandoned and proposals are accepted again.
    pub(crate) until: Instant,
    /// The target has been asked to campaign. Before that it receives the rest of the log.
    pub(crate) asked_to_campaign: bool,
    /// This leader cannot serve: if the transfer fails, it steps down.
    pub(crate) gives_way: bool,
}

/// The role that a node has now. Only the functions in `role/transitions.rs` replace it.
#[derive(Clone, Debug)]
pub(crate) struct CurrentRole(Role);

impl CurrentRole {
    /// A node starts as a follower without a leader.
    pub(crate) fn at_start() -> Self {
        Self(Role::Follower(Follower::default()))
    }

    pub(crate) fn get(&self) -> &Role {
        &self.0
    }

    pub(crate) fn kind(&self) -> RoleKind {
        match &self.0 {
            Role::Follower(_) => RoleKind::Follower,
            Role::PreCandidate(_) => RoleKind::PreCandidate,
            Role::Candidate(_) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    pub(crate) fn is_leader(&self) -> bool {
        matches!(self.0, Role::Leader(_))
    }

    pub(crate) fn leader(&self) -> Option<&Leader> {
        if let Role::Leader(leader) = &self.0 { Some(leader) } else { None }
    }

    pub(crate) fn leader_mut(&mut self) -> Option<&mut Leader> {
        if let Role::Leader(leader) = &mut self.0 { Some(leader) } else { None }
    }

    pub(crate) fn follower(&self) -> Option<&Follower> {
        if let Role::Follower(follower) = &self.0 { Some(follower) } else { None }
    }

    pub(crate) fn follower_mut(&mut self) -> Option<&mut Follower> {
        if let Role::Follower(follower) = &mut self.0 { Some(follower) } else { None }
    }

    pub(crate) fn candidate(&self) -> Option<&Candidate> {
        if let Role::Candidate(candidate) = &self.0 { Some(candidate) } else { None }
    }

    pub(crate) fn candidate_mut(&mut self) -> Option<&mut Candidate> {
        if let Role::Candidate(candidate) = &mut self.0 { Some(candidate) } else { None }
    }

    pub(crate) fn pre_votes_mut(&mut self) -> Option<&mut Votes> {
        if let Role::PreCandidate(votes) = &mut self.0 { Some(votes) } else { None }
    }

    /// The replies that a pre-candidate or candidate has received.
    pub(crate) fn votes(&self) -> Option<&Votes> {
        match &self.0 {
            Role::PreCandidate(votes) => Some(votes),
            Role::Candidate(candidate) => Some(&candidate.votes),
            Role::Follower(_) | Role::Leader(_) => None,
        }
    }
}
