//! The messages between nodes: one variant per RPC.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::time::Duration;

use crate::{Configuration, EntryKind, LogId, LogIndex, Term};

/// The latest time that is accepted from a peer or a file, in UNIX milliseconds: the end of the
/// year 9999. A later one is corrupt, or from a clock that no node should follow.
pub const MAX_ACCEPTED_TIME_MS: u64 = 253_402_300_799_999;

/// A message between two nodes of one group. `A` is what an append carries: the core receives its
/// entries without payloads, the driver sends and receives them with payloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message<A = Vec<EntryMeta>> {
    /// Requests a pre-vote: would the receiver grant its vote? (Raft thesis, section 9.6.) Changes
    /// no state.
    PreVote {
        /// The term the sender would campaign in: its own plus one.
        term: Term,
        /// The sender's last entry.
        last: LogId,
    },
    /// The reply to [`Message::PreVote`].
    PreVoteReply {
        /// The requested term if granted; the sender's own term if refused.
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
        /// Set by a candidate that the leader told to campaign: vote stickiness does not apply.
        transfer: bool,
    },
    /// The reply to [`Message::RequestVote`].
    VoteReply {
        /// The sender's term.
        term: Term,
        /// Whether the vote was granted.
        granted: bool,
        /// The sender's wall clock in UNIX milliseconds.
        wall_ms: u64,
    },
    /// Replicates entries (Raft paper, section 5.3).
    Append {
        /// The leader's term.
        term: Term,
        /// The entry before the first one.
        prev: LogId,
        /// The leader's commit index.
        commit: LogIndex,
        /// The entries, in order, from the index after `prev`.
        entries: A,
    },
    /// The reply to [`Message::Append`].
    AppendReply {
        /// The sender's term.
        term: Term,
        /// The outcome.
        outcome: AppendOutcome,
    },
    /// Maintains leadership and confirms reads.
    Heartbeat {
        /// The leader's term.
        term: Term,
        /// The leader's commit index. The receiver commits no further than its log is known to
        /// match the leader's.
        commit: LogIndex,
        /// The number of this round; a reply confirms all reads of rounds up to it.
        round: u64,
        /// What the receiver has acknowledged as persisted in this term. A receiver that lacks it
        /// has lost a part of its log.
        matched: LogIndex,
    },
    /// The reply to [`Message::Heartbeat`].
    HeartbeatReply {
        /// The sender's term.
        term: Term,
        /// The round that this message replies to.
        round: u64,
        /// The last received index that is known to match the leader's log, persisted or not.
        received: LogIndex,
        /// The last persisted index that is known to match the leader's log, at least the
        /// receiver's commit index; counts as an ack.
        persisted: LogIndex,
        /// The sender's report to the leader.
        report: FollowerReport,
    },
    /// Tells the receiver to campaign at once: leadership transfer (Raft thesis, section 3.10).
    TimeoutNow {
        /// The leader's term.
        term: Term,
    },
    /// A follower requests a read index from the leader (Raft thesis, section 6.4).
    ReadRequest {
        /// The sender's term.
        term: Term,
        /// The name of the request; no other request of this node ever had it.
        token: u64,
    },
    /// The reply to [`Message::ReadRequest`], after a round of heartbeats sent since it arrived.
    ReadReply {
        /// The sender's term.
        term: Term,
        /// The name of the request.
        token: u64,
        /// The commit index when the round was sent; `None` if the sender does not lead or its
        /// queue of reads is full.
        index: Option<LogIndex>,
    },
}

/// A message that the core sends. It is no append: the core plans those ([`crate::AppendPlan`]),
/// because the payloads stay with the driver.
pub type SentMessage = Message<Infallible>;

/// What the core knows of an entry: everything except its index, which its position implies, and
/// its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryMeta {
    /// The term of the leader that created it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// Log time in UNIX milliseconds.
    pub time_ms: u64,
    /// Payload bytes, for flow control.
    pub bytes: u32,
    /// The configuration in a membership entry.
    pub configuration: Option<Box<Configuration>>,
}

/// What a follower reports of itself with each heartbeat reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FollowerReport {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// How long it grants no vote after it has heard a leader, by its own clock. The value is on
    /// its stable storage, so it also binds after a restart (Raft thesis, section 6.4.1).
    pub stickiness: Duration,
    /// Its wall clock in UNIX milliseconds.
    pub wall_ms: u64,
    /// It has too little free disk space to lead: it would refuse commands.
    pub short_of_space: bool,
    /// It lacks entries that it has acknowledged to this leader: its directory was rolled back or
    /// damaged. It stops; an operator must investigate.
    pub log_lost: bool,
    /// Its state machine is halted at this entry and applies nothing from there on.
    pub halted_at: Option<LogId>,
    /// The highest version of a command that its program decodes.
    pub command_version_max: u32,
}

/// The fields of [`Message::HeartbeatReply`] beside the term.
pub(crate) struct HeartbeatReply {
    pub(crate) round: u64,
    pub(crate) received: LogIndex,
    pub(crate) persisted: LogIndex,
    pub(crate) report: FollowerReport,
}

/// The outcome of an append at a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendOutcome {
    /// Everything up to and including this index is persisted and matches the leader's log.
    Persisted(LogIndex),
    /// The entry before the first one is missing. `hint` is the sender's last entry that could
    /// still match: its index is below the refused one and its term is at most the refused term.
    Conflict {
        /// The index that did not match.
        refused: LogIndex,
        /// Where to probe next.
        hint: LogId,
    },
}

impl<A> Message<A> {
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

    /// The same message; an append carries `entries(..)` of what it carried.
    ///
    /// # Errors
    /// The error of `entries`.
    pub fn map_entries<B, E>(
        self,
        entries: impl FnOnce(A) -> Result<B, E>,
    ) -> Result<Message<B>, E> {
        Ok(match self {
            Self::Append { term, prev, commit, entries: carried } => {
                Message::Append { term, prev, commit, entries: entries(carried)? }
            }
            Self::PreVote { term, last } => Message::PreVote { term, last },
            Self::PreVoteReply { term, granted, wall_ms } => {
                Message::PreVoteReply { term, granted, wall_ms }
            }
            Self::RequestVote { term, last, transfer } => {
                Message::RequestVote { term, last, transfer }
            }
            Self::VoteReply { term, granted, wall_ms } => {
                Message::VoteReply { term, granted, wall_ms }
            }
            Self::AppendReply { term, outcome } => Message::AppendReply { term, outcome },
            Self::Heartbeat { term, commit, round, matched } => {
                Message::Heartbeat { term, commit, round, matched }
            }
            Self::HeartbeatReply { term, round, received, persisted, report } => {
                Message::HeartbeatReply { term, round, received, persisted, report }
            }
            Self::TimeoutNow { term } => Message::TimeoutNow { term },
            Self::ReadRequest { term, token } => Message::ReadRequest { term, token },
            Self::ReadReply { term, token, index } => Message::ReadReply { term, token, index },
        })
    }
}

impl SentMessage {
    /// The message as its receiver gets it, among appends that carry `A`.
    #[must_use]
    pub fn received<A>(self) -> Message<A> {
        let Ok(message) = self.map_entries(|none| -> Result<A, Infallible> { match none {} });
        message
    }
}

impl Message {
    /// Whether every number in the message is in the accepted range.
    pub(crate) fn in_range(&self) -> bool {
        let id_ok =
            |id: &LogId| id.term <= Term::MAX_ACCEPTED && id.index <= LogIndex::MAX_ACCEPTED;
        self.term() <= Term::MAX_ACCEPTED
            && match self {
                Self::PreVote { last, .. } | Self::RequestVote { last, .. } => id_ok(last),
                Self::Append { prev, commit, entries, .. } => {
                    id_ok(prev)
                        && *commit <= LogIndex::MAX_ACCEPTED
                        && entries.iter().all(|entry| {
                            entry.term <= Term::MAX_ACCEPTED
                                && entry.time_ms <= MAX_ACCEPTED_TIME_MS
                        })
                }
                Self::AppendReply { outcome: AppendOutcome::Persisted(index), .. } => {
                    *index <= LogIndex::MAX_ACCEPTED
                }
                Self::AppendReply {
                    outcome: AppendOutcome::Conflict { refused, hint }, ..
                } => *refused <= LogIndex::MAX_ACCEPTED && id_ok(hint),
                Self::Heartbeat { commit, matched, .. } => {
                    *commit <= LogIndex::MAX_ACCEPTED && *matched <= LogIndex::MAX_ACCEPTED
                }
                Self::HeartbeatReply { received, persisted, report, .. } => {
                    *received <= LogIndex::MAX_ACCEPTED
                        && *persisted <= LogIndex::MAX_ACCEPTED
                        && report.applied <= LogIndex::MAX_ACCEPTED
                        && report.wall_ms <= MAX_ACCEPTED_TIME_MS
                        && report.halted_at.as_ref().is_none_or(id_ok)
                }
                Self::ReadReply { index, .. } => {
                    index.is_none_or(|index| index <= LogIndex::MAX_ACCEPTED)
                }
                Self::PreVoteReply { wall_ms, .. } | Self::VoteReply { wall_ms, .. } => {
                    *wall_ms <= MAX_ACCEPTED_TIME_MS
                }
                Self::ReadRequest { .. } | Self::TimeoutNow { .. } => true,
            }
    }
}
