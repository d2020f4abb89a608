//! The inputs of the core, and why they are rejected.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::{Configuration, LogId, LogIndex, Message, NodeId, PersistId, Term};

/// The driver's id of a read that waits for confirmation.
pub type ReadId = u64;

/// A snapshot that has been received completely, verified and synced.
#[derive(Clone, Debug)]
pub struct SnapshotToInstall {
    /// The sender.
    pub from: NodeId,
    /// The term in which it was sent.
    pub term: Term,
    /// Its last included entry.
    pub last: LogId,
    /// Log time at that entry, in UNIX milliseconds.
    pub time_ms: u64,
    /// The committed configuration at that entry.
    pub configuration: Box<Configuration>,
}

/// How a leader confirms a linearizable read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadMode {
    /// A round of heartbeats confirms the leadership (Raft thesis, section 6.4).
    Round,
    /// The leader's lease confirms it if there is one, otherwise a round does (Raft thesis, section
    /// 6.4.1).
    Lease,
}

/// What a leader does with a change of the voters after which too few voters may answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuorumRisk {
    /// It refuses the change.
    Refuse,
    /// It makes the change. An operator has asked for that.
    Accept,
}

/// One of the two sets of voters of a joint configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VoterSet {
    /// The set that votes before the change.
    Outgoing,
    /// The set that votes after it.
    Incoming,
}

/// An input of the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message has arrived from a node whose identity the transport has checked.
    Message {
        /// The sender.
        from: NodeId,
        /// The message.
        message: Message,
    },
    /// Callers propose these commands, in order.
    Propose {
        /// Payload bytes of each command.
        sizes: Vec<u32>,
    },
    /// The driver proposes a membership entry. The core accepts the legal steps
    /// ([`crate::MembershipStep`]) at a time when they are safe, and refuses all others.
    ProposeMembership {
        /// The configuration in the entry.
        configuration: Box<Configuration>,
        /// Payload bytes of the entry.
        bytes: u32,
        /// What happens if the change may leave the cluster without a quorum.
        risk: QuorumRisk,
    },
    /// A leadership transfer was requested (Raft thesis, section 3.10). It ends with a change of
    /// leader, or is abandoned after an election timeout.
    TransferLeadership {
        /// The target; `None` lets the core choose the voter with the longest matching log.
        to: Option<NodeId>,
    },
    /// An operator requests that every state machine skips this entry, because it halts them all.
    /// Refused unless a quorum reports that it is halted there, and if any node reports that it has
    /// applied the entry.
    ProposeSkip {
        /// The entry.
        target: LogId,
        /// Payload bytes of the entry that records the decision.
        bytes: u32,
    },
    /// This node's state machine is halted at this entry, or at none any more. Heartbeat replies
    /// report it to leaders.
    HaltedAt(Option<LogId>),
    /// A node of a cluster that continues this one by force (an operator has given up the majority)
    /// answers at a member's address. While this node knows no leader it neither votes nor
    /// campaigns, so that the old majority, when it comes back, does not serve beside the new
    /// cluster. With a leader nothing changes: the new cluster may have been made by mistake.
    Superseded,
    /// The state machine waits for a time that the wall clock has passed: append an entry that only
    /// carries the time. Only a leader accepts it.
    Tick,
    /// Callers request linearizable reads (Raft thesis, section 6.4). A follower requests the read
    /// index from its leader.
    Read {
        /// The driver's ids of the reads.
        ids: Vec<ReadId>,
        /// How a leader confirms them.
        mode: ReadMode,
    },
    /// All persist requests up to and including this id are on stable storage.
    Persisted(PersistId),
    /// Term and vote of all persist requests up to and including this id are on stable storage;
    /// their entries may not be. A disk without space for entries still persists terms and votes.
    HardStatePersisted(PersistId),
    /// Everything up to and including this index has been applied to the state machine.
    Applied(LogIndex),
    /// A snapshot sent by `from`, the leader of `term`: received completely, verified, and on
    /// stable storage. It replaces the log up to `last` unless that is already committed here.
    InstallSnapshot(SnapshotToInstall),
    /// Sending a snapshot to this follower has failed. It is requested again with the next
    /// heartbeat.
    SnapshotFailed(NodeId),
    /// The log has been purged up to and including this entry, which has been applied.
    Purged(LogId),
    /// Messages in flight to this node may have been lost.
    PeerLost(NodeId),
    /// An append of [`crate::Effects::appends`] was not sent: there is no connection, its queue is
    /// full, or the entries could not be read. Earlier appends to the same node are in flight.
    AppendNotSent {
        /// The receiver.
        to: NodeId,
        /// The term of the plan.
        term: Term,
        /// The entry before its first one.
        prev: LogIndex,
    },
    /// Whether this node's disk hangs: a write has not returned for the longest election timeout.
    /// Until the disk works again, a leader gives way, and the node does not campaign.
    DiskHangs(bool),
    /// Whether this node has too little free disk space to lead. Heartbeat replies report it to
    /// leaders; a leader transfers its leadership to a voter that has space.
    ShortOfSpace(bool),
    /// [`crate::RaftCore::next_deadline`] has been reached.
    Deadline,
}

/// Why a request to skip an entry is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SkipRefusal {
    /// This leader knows of no such committed entry.
    NotCommitted,
    /// This node has applied it: its effect is in the state and may have been acknowledged.
    AppliedBy(NodeId),
    /// Fewer voters than a quorum report that they are halted at it.
    TooFew {
        /// The number of those voters.
        standing: usize,
        /// The number of voters.
        voters: usize,
    },
}

impl fmt::Display for SkipRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCommitted => {
                f.write_str("the leader knows of no committed entry with this term and index")
            }
            Self::AppliedBy(node) => {
                write!(
                    f,
                    "node {node} has applied it, so its effect is in the state, unless it was \
                     already skipped"
                )
            }
            Self::TooFew { standing, voters } => write!(
                f,
                "{standing} of {voters} voters report that their state machine is halted at \
                 exactly this entry; a majority must"
            ),
        }
    }
}

/// Why an input changed nothing. Never a failure of the whole node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Rejected {
    /// Only a leader can do this. Retry at `leader` if it is known.
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Too many payload bytes are uncommitted. Retry after a pause.
    TooMuchUncommitted,
    /// Too many reads wait for confirmation. Retry after a pause.
    TooManyReads,
    /// A number in a message is outside the accepted range; the sender is faulty.
    OutOfRange,
    /// A message claims to come from this node itself.
    FromSelf,
    /// Another node claims to lead the term that this node leads; the sender is faulty.
    SecondLeader,
    /// An append contradicts a committed entry. The sender or this node has lost its log; nothing
    /// was changed.
    ContradictsCommitted,
    /// The terms of an append's entries decrease, or a membership entry has no configuration.
    MalformedAppend,
    /// The snapshot is from the leader of an earlier term, or ends no later than what is committed
    /// here.
    SnapshotStale,
    /// The driver reported a write that was never requested, or an apply that was not allowed.
    OutOfSequence,
    /// A membership entry, or the term's first entry, is not committed yet. Retry later.
    MembershipBusy,
    /// The step is none of [`crate::MembershipStep`], or there would be too many members.
    IllegalStep,
    /// This node is to vote and does not keep up with the log yet. Wait: it is measured all the
    /// time.
    NotCaughtUp(NodeId),
    /// Too few voters of a set were heard lately to commit the change. Bring them back or replace
    /// them first, or accept the risk.
    WouldLoseQuorum(VoterSet),
    /// The entry may not be skipped, or not yet.
    SkipRefused(SkipRefusal),
    /// A leadership transfer is in progress, so nothing is proposed. Retry at the new leader.
    TransferInProgress,
    /// The target is not a voter, or is this node, or there is no other voter.
    NoTransferTarget,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => {
                write!(f, "this node is not the leader; node {leader} is")
            }
            Self::NotLeader { leader: None } => {
                f.write_str("this node is not the leader; no leader is known")
            }
            Self::TooMuchUncommitted => f.write_str("too many bytes wait for commit"),
            Self::TooManyReads => f.write_str("too many reads wait for confirmation"),
            Self::OutOfRange => f.write_str("a number in the message is out of range"),
            Self::FromSelf => f.write_str("the message names this node as its sender"),
            Self::SecondLeader => f.write_str("another node claims to lead this node's term"),
            Self::ContradictsCommitted => f.write_str("the append contradicts a committed entry"),
            Self::SnapshotStale => f.write_str(
                "the snapshot does not reach past this node's commit index, or its sender no \
                     longer leads",
            ),
            Self::MalformedAppend => f.write_str("the entries of the append are not in order"),
            Self::OutOfSequence => {
                f.write_str("the driver reported work that the core has not requested or allowed")
            }
            Self::MembershipBusy => f.write_str("another membership entry is not committed yet"),
            Self::SkipRefused(refusal) => write!(f, "the entry is not skipped: {refusal}"),
            Self::TransferInProgress => f.write_str("a leadership transfer is in progress"),
            Self::NoTransferTarget => {
                f.write_str("leadership can be transferred only to another voter of this cluster")
            }
            Self::IllegalStep => {
                f.write_str("the membership in force cannot become the proposed one in one step")
            }
            Self::NotCaughtUp(node) => {
                write!(f, "node {node} does not keep up with the log yet, so it cannot vote")
            }
            Self::WouldLoseQuorum(VoterSet::Outgoing) => {
                f.write_str("too few of the present voters answer to commit the change")
            }
            Self::WouldLoseQuorum(VoterSet::Incoming) => {
                f.write_str("too few of the voters after the change answer to commit it")
            }
        }
    }
}

impl core::error::Error for Rejected {}
