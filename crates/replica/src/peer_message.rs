//! What nodes say to each other, with payloads. The core sees the same messages without them.

use std::sync::Arc;

use d_engine_core::{FollowerReport, LogId, LogIndex, Term};
use d_engine_storage::LogEntry;

/// A message between two nodes of one group. `d-engine-proto` turns it into wire bytes and back;
/// the simulator uses the same encoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerMessage {
    /// Would you vote for me? (Raft thesis, section 9.6.) Changes no state.
    PreVote {
        /// The term the sender would campaign in: its own plus one.
        term: Term,
        /// The sender's last entry.
        last: LogId,
    },
    /// The answer to [`PeerMessage::PreVote`].
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
    /// The answer to [`PeerMessage::RequestVote`].
    VoteReply {
        /// The sender's term.
        term: Term,
        /// Whether the vote was given.
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
        /// The entries, shared by all followers that get the same range.
        entries: Arc<[LogEntry]>,
    },
    /// The answer to [`PeerMessage::Append`].
    AppendReply {
        /// The sender's term.
        term: Term,
        /// What became of it.
        outcome: d_engine_core::AppendOutcome,
    },
    /// Keeps leadership and confirms reads.
    Heartbeat {
        /// The leader's term.
        term: Term,
        /// What the leader has committed. The receiver commits no more of it than it knows to match the leader's log.
        commit: LogIndex,
        /// The number of this round; an answer confirms all reads of rounds up to it.
        round: u64,
        /// What the receiver has acknowledged as stored in this term.
        matched: LogIndex,
    },
    /// The answer to [`PeerMessage::Heartbeat`].
    HeartbeatReply {
        /// The sender's term.
        term: Term,
        /// The round that is answered.
        round: u64,
        /// The last index received that is known to match the leader's log, stored or not.
        received: LogIndex,
        /// The last index stored that is known to match the leader's log; counts as an ack.
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
    /// The answer to [`PeerMessage::ReadRequest`], after a round of heartbeats sent since it arrived.
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
