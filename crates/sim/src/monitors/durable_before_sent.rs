//! "durable before sent": a vote, an ack or a new term is sent only after its write is durable.

use d_engine_core::{AppendOutcome, LogIndex, NodeId, RaftCore, Term};
use d_engine_replica::PeerMessage;

use crate::monitors::committed::Committed;
use crate::monitors::disks::Disk;
use crate::monitors::violation::{Rule, Violation};

/// Checks a message that a node sends, given what its disk holds.
///
/// # Errors
/// The message claims more than the disk holds.
pub(crate) fn check(
    node: u64,
    core: &RaftCore,
    to: NodeId,
    message: &PeerMessage,
    disk: &Disk,
    committed: &Committed,
) -> Result<(), Violation> {
    let Some(early) = premature(node, core, to, message, disk, committed) else { return Ok(()) };
    let stored = disk.hard_state;
    Rule::DurableBeforeSent.broken_by(
        node,
        format_args!(
            "node {node} sends {early} ({message:?}), but its disk holds {stored:?} and entries \
             {}..={}",
            disk.base.index.next(),
            disk.last()
        ),
    )
}

/// Describes what a message claims that is not durable.
fn premature(
    node: u64,
    core: &RaftCore,
    to: NodeId,
    message: &PeerMessage,
    disk: &Disk,
    committed: &Committed,
) -> Option<&'static str> {
    let stored = disk.hard_state;
    let lacks_vote = |term: Term, vote: Option<NodeId>| {
        stored.term < term || (stored.term == term && stored.vote != vote)
    };
    match message {
        PeerMessage::RequestVote { term, .. } if lacks_vote(*term, NodeId::new(node)) => {
            Some("a vote request before its own vote is durable")
        }
        PeerMessage::VoteReply { term, granted: true, .. } if lacks_vote(*term, Some(to)) => {
            Some("a vote that is not durable")
        }
        PeerMessage::AppendReply { term, outcome: AppendOutcome::Persisted(index) }
            if is_early(*index, *term, core, disk, committed) =>
        {
            Some("an ack for entries that are not durable")
        }
        PeerMessage::HeartbeatReply { persisted: index, term, .. }
            if is_early(*index, *term, core, disk, committed) =>
        {
            Some("an ack (in a heartbeat response) for entries that are not durable")
        }
        PeerMessage::PreVoteReply { term, granted: false, wall_ms: 0 }
        | PeerMessage::VoteReply { term, .. }
        | PeerMessage::Append { term, .. }
        | PeerMessage::AppendReply { term, .. }
        | PeerMessage::Heartbeat { term, .. }
        | PeerMessage::HeartbeatReply { term, .. }
            if *term > stored.term =>
        {
            Some("a message of a term that is not durable")
        }
        PeerMessage::PreVote { .. }
        | PeerMessage::PreVoteReply { .. }
        | PeerMessage::RequestVote { .. }
        | PeerMessage::VoteReply { .. }
        | PeerMessage::Append { .. }
        | PeerMessage::AppendReply { .. }
        | PeerMessage::Heartbeat { .. }
        | PeerMessage::HeartbeatReply { .. }
        | PeerMessage::TimeoutNow { .. }
        | PeerMessage::ReadRequest { .. }
        | PeerMessage::ReadReply { .. } => None,
    }
}

/// Whether an ack up to `index` claims more than the disk holds. The disk must hold the same entry
/// that the log has at that index. An ack of a term before the node's current one was correct when
/// it was created.
fn is_early(
    index: LogIndex,
    term: Term,
    core: &RaftCore,
    disk: &Disk,
    committed: &Committed,
) -> bool {
    // A snapshot holds committed entries, which may no longer be in the log.
    let covered = committed.term_at(index).filter(|_| index < core.log().base.index);
    let in_log = covered.or_else(|| core.term_at(index).map(Term::get));
    index > disk.base.index && term == core.term() && disk.term_at(index) != in_log
}
