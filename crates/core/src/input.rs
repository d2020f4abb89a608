//! Everything that can happen to the core.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::{Configuration, EntryKind, LogId, LogIndex, Message, NodeId, PersistId, Term};

/// The driver's name for a read that waits for confirmation.
pub type ReadId = u64;

/// What the core knows of an entry: everything but its index (told by its place) and payload.
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

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message has arrived from a node whose identity the transport has checked.
    Message {
        /// The sender.
        from: NodeId,
        /// The message.
        message: Message,
    },
    /// Callers want these commands in the log: payload bytes of each, in order.
    Propose {
        /// Payload bytes of each command.
        sizes: Vec<u32>,
    },
    /// The driver wants a membership entry in the log. For now only the addresses and incarnations
    /// in its payload may differ from the configuration in force, not who votes.
    ProposeMembership {
        /// The configuration in the entry.
        configuration: Box<Configuration>,
        /// Payload bytes of the entry.
        bytes: u32,
    },
    /// Somebody wants another node to lead (Raft thesis, section 3.10). The outcome shows as a change of
    /// leader, or as none within an election timeout: then the transfer is given up.
    TransferLeadership {
        /// The node that shall lead; `None` leaves the choice to the core: the voter that is furthest.
        to: Option<NodeId>,
    },
    /// An operator wants no state machine to apply this entry, because it stops them all. Refused unless a quorum
    /// reports to stand at it, and nobody to have applied it.
    ProposeSkip {
        /// The entry.
        target: LogId,
        /// Payload bytes of the entry that says so.
        bytes: u32,
    },
    /// The own state machine stops at this entry, or at none any more. Leaders are told with the answers to their
    /// heartbeats.
    StandsAt(Option<LogId>),
    /// The state machine waits for a time that the wall clock has passed: an entry that carries
    /// nothing but the time. Only a leader takes it.
    Tick,
    /// Callers want to read (linearizably, Raft thesis section 6.4). A follower asks its leader for the
    /// read index.
    Read {
        /// The driver's names for the reads.
        ids: Vec<ReadId>,
        /// Whether the leader's lease may confirm them; without a valid one a round does.
        lease: bool,
    },
    /// Everything ordered up to and including this id is on stable storage.
    Persisted(PersistId),
    /// Term and vote of everything ordered up to and including this id are on stable storage; entries of
    /// these orders may not be. A disk without room for entries still stores terms and votes.
    HardStateStored(PersistId),
    /// Everything up to and including this index has been applied to the state machine.
    Applied(LogIndex),
    /// A snapshot that `from`, the leader of `term`, has sent: received whole, verified, and on stable
    /// storage. It takes the place of the log up to `last` unless that is committed here already.
    InstallSnapshot {
        /// Who sent it.
        from: NodeId,
        /// The term in which it was sent.
        term: Term,
        /// The last entry in it.
        last: LogId,
        /// Log time at that entry.
        time_ms: u64,
        /// The configuration at that entry, which is a committed one.
        configuration: Box<Configuration>,
    },
    /// Sending a snapshot to this follower has failed. It is ordered again with the next heartbeat.
    SnapshotFailed(NodeId),
    /// The log has been purged up to and including this entry, which has been applied.
    Purged(LogId),
    /// Messages on the way to this node may have been lost.
    PeerLost(NodeId),
    /// An append of [`crate::Effects::appends`] was not sent: there is no connection, no room in the
    /// queue, or its entries could not be read. Appends before it to the same node are on their way.
    AppendNotSent {
        /// The receiver.
        to: NodeId,
        /// The term of the plan.
        term: Term,
        /// The entry before its first one.
        prev: LogIndex,
    },
    /// Whether this node's disk hangs: a write has not returned for the longest election timeout. A
    /// leader gives way, and the node does not campaign, until the disk answers again.
    DiskHangs(bool),
    /// Whether this node has too little room on its disk to lead. Leaders are told with the answers to
    /// their heartbeats, and hand leadership to a voter that has room.
    ShortOfRoom(bool),
    /// [`crate::RaftCore::next_deadline`] has come.
    Deadline,
}

/// Why an entry is not skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SkipRefusal {
    /// No such entry is committed, as far as this leader knows.
    NotCommitted,
    /// This node has applied it: its effect is in the state, and callers may have been told so.
    AppliedBy(NodeId),
    /// Fewer voters than a quorum report to stand at it.
    TooFew {
        /// How many do.
        standing: usize,
        /// How many voters there are.
        voters: usize,
    },
}

impl fmt::Display for SkipRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCommitted => {
                f.write_str("no entry of this term and index is committed, as far as the leader knows")
            }
            Self::AppliedBy(node) => {
                write!(
                    f,
                    "node {node} has applied it, so its effect is in the state, unless it was skipped before"
                )
            }
            Self::TooFew { standing, voters } => write!(
                f,
                "{standing} of {voters} voters report that their state machine stops at exactly this entry; a majority must"
            ),
        }
    }
}

/// Why an input changed nothing. Never an error of the whole node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Rejected {
    /// Only a leader can do this. Go to `leader` if one is known.
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Too many payload bytes wait for commit. Try again after a pause.
    TooMuchUncommitted,
    /// Too many reads wait for confirmation. Try again after a pause.
    TooManyReads,
    /// A number in a message is out of the accepted range; the sender is broken.
    OutOfRange,
    /// A message came from this very node.
    FromSelf,
    /// Another node claims to lead the term that this node leads; the sender is broken.
    SecondLeader,
    /// An append contradicts a committed entry. The sender or this node has lost its log; nothing
    /// was changed.
    ContradictsCommitted,
    /// The entries of an append do not rise in term, or a membership entry has no configuration.
    MalformedAppend,
    /// The snapshot is of an earlier term's leader, or not newer than what is committed here.
    SnapshotStale,
    /// The driver reported a write that was never ordered, or an apply that was not allowed.
    UnknownOrder,
    /// A membership entry is not committed yet, or the term's first entry is not. Try again later.
    MembershipBusy,
    /// The change of voters is not supported yet.
    MembershipUnsupported,
    /// The entry is not to be skipped, or not yet.
    SkipRefused(SkipRefusal),
    /// Leadership is being handed over: nothing new is proposed meanwhile. Try again, at the new leader.
    TransferInProgress,
    /// The node that shall lead is no voter, or is this node, or there is no other voter.
    NoTransferTarget,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => write!(f, "not the leader; node {leader} is"),
            Self::NotLeader { leader: None } => f.write_str("not the leader; no leader is known"),
            Self::TooMuchUncommitted => f.write_str("too many bytes wait for commit"),
            Self::TooManyReads => f.write_str("too many reads wait for confirmation"),
            Self::OutOfRange => f.write_str("a number in the message is out of range"),
            Self::FromSelf => f.write_str("the message names this node as its sender"),
            Self::SecondLeader => f.write_str("another node claims to lead this node's term"),
            Self::ContradictsCommitted => f.write_str("the append contradicts a committed entry"),
            Self::SnapshotStale => f.write_str("the snapshot is not newer than what is committed here"),
            Self::MalformedAppend => f.write_str("the append's entries are not in order"),
            Self::UnknownOrder => f.write_str("the driver reported something that was never ordered"),
            Self::MembershipBusy => f.write_str("another membership entry is not committed yet"),
            Self::SkipRefused(refusal) => write!(f, "the entry is not skipped: {refusal}"),
            Self::TransferInProgress => f.write_str("leadership is being handed over"),
            Self::NoTransferTarget => {
                f.write_str("leadership can be handed over only to another voter of this cluster")
            }
            Self::MembershipUnsupported => f.write_str("changing who votes is not supported yet"),
        }
    }
}

impl core::error::Error for Rejected {}
