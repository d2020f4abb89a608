//! What nodes say to each other, without payloads: one variant per RPC, with its own fields.

use alloc::vec::Vec;

use crate::{Duration, EntryMeta, LogId, LogIndex, Term};

/// The latest time that is accepted from a peer or a file, in UNIX milliseconds: the end of the year
/// 9999. A later one is damage, or a clock that no node should follow.
pub const MAX_ACCEPTED_TIME_MS: u64 = 253_402_300_799_999;

/// A message between two nodes of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Would you vote for me? (Raft thesis, section 9.6.) Changes no state.
    PreVote {
        /// The term the sender would campaign in: its own plus one.
        term: Term,
        /// The sender's last entry.
        last: LogId,
    },
    /// The answer to [`Message::PreVote`].
    PreVoteReply {
        /// The term that was asked about when granted, the sender's own term when refused.
        term: Term,
        /// Whether the sender would vote.
        granted: bool,
        /// The sender's wall clock in UNIX milliseconds.
        wall_ms: u64,
    },
    /// Requests a vote (Raft paper, section 5.2).
    RequestVote {
        /// The candidate's term.
        term: Term,
        /// The candidate's last entry.
        last: LogId,
        /// Set by a candidate that the leader told to take over: vote stickiness does not apply.
        transfer: bool,
    },
    /// The answer to [`Message::RequestVote`].
    VoteReply {
        /// The sender's term.
        term: Term,
        /// Whether the vote was given.
        granted: bool,
        /// The sender's wall clock in UNIX milliseconds.
        wall_ms: u64,
    },
    /// Replicates entries (Raft paper, section 5.3). Received only: what is to be sent is an
    /// [`crate::AppendPlan`], because the payloads stay with the driver.
    Append {
        /// The leader's term.
        term: Term,
        /// The entry before the first one.
        prev: LogId,
        /// The leader's commit index.
        commit: LogIndex,
        /// The entries, in order, from the index after `prev`.
        entries: Vec<EntryMeta>,
    },
    /// The answer to [`Message::Append`].
    AppendReply {
        /// The sender's term.
        term: Term,
        /// What became of it.
        outcome: AppendOutcome,
    },
    /// Keeps leadership and confirms reads.
    Heartbeat {
        /// The leader's term.
        term: Term,
        /// What the leader has committed. The receiver commits no more of it than it knows to match the leader's log.
        commit: LogIndex,
        /// The number of this round; an answer confirms all reads of rounds up to it.
        round: u64,
        /// What the receiver has acknowledged as stored in this term. A receiver that no longer has
        /// it has lost a part of its log.
        matched: LogIndex,
    },
    /// The answer to [`Message::Heartbeat`].
    HeartbeatReply {
        /// The sender's term.
        term: Term,
        /// The round that is answered.
        round: u64,
        /// The last index received that is known to match the leader's log, stored or not.
        received: LogIndex,
        /// The last index stored that is known to match the leader's log, at least what is committed; counts as an ack.
        stored: LogIndex,
        /// What the leader is told of the sender beside its log.
        report: FollowerReport,
    },
    /// Campaign at once: the leader hands over to the receiver (Raft thesis, section 3.10).
    TimeoutNow {
        /// The leader's term.
        term: Term,
    },
    /// A follower asks the leader for an index to read at (Raft thesis, section 6.4).
    ReadRequest {
        /// The sender's term.
        term: Term,
        /// The name of the question; no other one of this node ever had it.
        token: u64,
    },
    /// The answer to [`Message::ReadRequest`], after a round of heartbeats sent since it arrived.
    ReadReply {
        /// The sender's term.
        term: Term,
        /// The name of the question.
        token: u64,
        /// The commit index when the round was sent; `None` when the sender does not lead or has no
        /// room.
        index: Option<LogIndex>,
    },
}

/// What a follower reports of itself with each answer to a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FollowerReport {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// How long it grants no vote after it has heard a leader, by its own clock. It is on its stable
    /// storage: also a restart keeps to it (Raft thesis, section 6.4.1).
    pub stickiness: Duration,
    /// Its wall clock in UNIX milliseconds.
    pub wall_ms: u64,
    /// It has too little room on its disk to lead: commands would be refused.
    pub short_of_room: bool,
    /// It no longer has entries that it has acknowledged to this leader: its directory was rolled back
    /// or damaged. It stops; an operator must look.
    pub log_lost: bool,
    /// Its state machine stops at this entry, whenever it is given it: nothing is applied from there on.
    pub stands_at: Option<LogId>,
    /// The highest version of a command that its program decodes.
    pub command_version_max: u32,
}

/// What became of an append at a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendOutcome {
    /// Everything up to and including this index is stored and matches the leader's log.
    Stored(LogIndex),
    /// The entry before the first one is not there. `hint` is the sender's last entry that could
    /// still match: its index is below the refused one and its term is at most the refused term.
    Conflict {
        /// The index that did not match.
        refused: LogIndex,
        /// Where to look next.
        hint: LogId,
    },
}

impl Message {
    /// The term that the message carries.
    #[must_use]
    pub const fn term(&self) -> Term {
        match self {
            Self::PreVote { term, .. }
            | Self::PreVoteReply { term, .. }
            | Self::RequestVote { term, .. }
            | Self::VoteReply { term, .. }
            | Self::Append { term, .. }
            | Self::AppendReply { term, .. }
            | Self::Heartbeat { term, .. }
            | Self::HeartbeatReply { term, .. }
            | Self::TimeoutNow { term }
            | Self::ReadRequest { term, .. }
            | Self::ReadReply { term, .. } => *term,
        }
    }

    /// Whether every number in the message is in the accepted range.
    pub(crate) fn in_range(&self) -> bool {
        let id_ok = |id: &LogId| id.term <= Term::MAX_ACCEPTED && id.index <= LogIndex::MAX_ACCEPTED;
        self.term() <= Term::MAX_ACCEPTED
            && match self {
                Self::PreVote { last, .. } | Self::RequestVote { last, .. } => id_ok(last),
                Self::Append { prev, commit, entries, .. } => {
                    id_ok(prev)
                        && *commit <= LogIndex::MAX_ACCEPTED
                        && entries.iter().all(|entry| {
                            entry.term <= Term::MAX_ACCEPTED && entry.time_ms <= MAX_ACCEPTED_TIME_MS
                        })
                }
                Self::AppendReply { outcome: AppendOutcome::Stored(index), .. } => {
                    *index <= LogIndex::MAX_ACCEPTED
                }
                Self::AppendReply { outcome: AppendOutcome::Conflict { refused, hint }, .. } => {
                    *refused <= LogIndex::MAX_ACCEPTED && id_ok(hint)
                }
                Self::Heartbeat { commit, matched, .. } => {
                    *commit <= LogIndex::MAX_ACCEPTED && *matched <= LogIndex::MAX_ACCEPTED
                }
                Self::HeartbeatReply { received, stored, report, .. } => {
                    *received <= LogIndex::MAX_ACCEPTED
                        && *stored <= LogIndex::MAX_ACCEPTED
                        && report.applied <= LogIndex::MAX_ACCEPTED
                        && report.wall_ms <= MAX_ACCEPTED_TIME_MS
                        && report.stands_at.as_ref().is_none_or(id_ok)
                }
                Self::ReadReply { index, .. } => index.is_none_or(|index| index <= LogIndex::MAX_ACCEPTED),
                Self::PreVoteReply { wall_ms, .. } | Self::VoteReply { wall_ms, .. } => {
                    *wall_ms <= MAX_ACCEPTED_TIME_MS
                }
                Self::ReadRequest { .. } | Self::TimeoutNow { .. } => true,
            }
    }
}
