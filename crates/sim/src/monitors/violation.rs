//! The rules that a run checks, and what broke one.

use std::fmt;

/// A rule that must hold in every run. The reports of the simulator print the names that
/// [`fmt::Display`] gives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// Raft paper, figure 3: at most one leader per term.
    ElectionSafety,
    /// The leader that a node follows was elected in that term.
    LeaderFollowed,
    /// One vote per node and term, across restarts.
    VoteOnce,
    /// A vote, an ack or a new term is sent only after its write is durable.
    DurableBeforeSent,
    /// The disks of a quorum hold a committed entry, including those of crashed nodes.
    CommittedOnDurableQuorum,
    /// Raft paper, section 5.4.2: counting commits only entries of the leader's own term.
    CommitTerm,
    /// State Machine Safety: one entry for each committed index.
    CommittedIsImmutable,
    /// The log begins after a snapshot of committed entries.
    SnapshotsAreCommitted,
    /// Raft paper, figure 3: a new leader holds all committed entries.
    LeaderCompleteness,
    /// Raft paper, section 5.3: index and term fix the entry and the one before it.
    LogMatching,
    /// Commit index and last applied never fall within a boot.
    Monotonic,
    /// Base and last applied do not exceed the commit index, nor that the last index.
    OrderOfWatermarks,
    /// Nothing is applied that is not committed.
    AppliedIsCommitted,
    /// Nothing is applied that the node's own disk does not hold.
    AppliedIsStored,
    /// A restart finds what was synced, plus at most whole writes that were not.
    Recovery,
    /// A start changes the log only to finish an install that was interrupted.
    Restore,
    /// All replicas that have applied up to the same index have the same state, whatever state
    /// machine they run.
    EqualState,
    /// A new state machine that reads an archive gets the state after entry 1 up to the snapshot's
    /// last included.
    SnapshotState,
    /// A snapshot that is reported as built or received survives a power loss whole. Checked again
    /// just before an install, because a log begins only after a snapshot that survives one.
    BuiltIsDurable,
    /// The log is purged only up to a whole and durable snapshot, and with a durable state machine
    /// only up to what the machine has flushed.
    PurgedIsCovered,
    /// A follower that is being sent a snapshot continues after its last included.
    NoPurgeDuringSend,
    /// A sender learns of success only after the follower has applied the snapshot.
    SentIsApplied,
    /// After a crash, the snapshot that a state machine has stored as its newest one exists.
    MetadataNamesFile,
    /// The memory that a node holds for others is bounded (`docs/durability.md`, section 8).
    Bounds,
    /// A node that has committed the binding of a data directory knows it from then on.
    BoundDirectories,
    /// The core's configuration and the members are two views of the same entry.
    OneMembership,
    /// The committed memberships follow each other by legal steps; no joint one is skipped or left
    /// before it is committed.
    LegalSteps,
    /// The disk of a node that is to vote holds all that was committed two shortest election
    /// timeouts before.
    KeepsUpBeforeItVotes,
    /// The membership in force is that of the last membership entry in the node's log.
    ConfigOfLog,
    /// At a leader at most one membership entry is uncommitted, or a joint one and the return from
    /// it.
    OneChange,
    /// Every quorum of a configuration that may decide meets every quorum of every other one.
    Overlap,
    /// An id belongs to one data directory for ever, and a directory to one id.
    IdsOnce,
    /// A node joins although the members admit only invited nodes and nobody invited it.
    JoinsByInvitation,
    /// A member leaves, and a voter stops voting, only if somebody asked for that.
    NoNodeLeavesUnasked,
    /// An accepted request has reached its goal in the end.
    IntentCompletes,
    /// A request that names the membership on which it is based is accepted only if that one is in
    /// force.
    ExpectedMembership,
    /// A node that was removed does not depose a leader by campaigning.
    NoDisturbance,
    /// A leader that is no voter of the committed configuration gives way.
    LeaderOutside,
    /// The bytes of entries that leaders send for each byte that a follower stores are bounded.
    Traffic,
    /// No node leads a later term beside a valid lease while the clocks keep their bound.
    Lease,
    /// An entry is skipped only after a majority of the nodes has halted at it.
    Skip,
    /// A leader creates an entry of a version only if each voter has announced in this term that it
    /// decodes it, or if an entry of that version is committed.
    NewerCommand,
    /// A node stops because its program is too old only if it ran a newer one before, and the log
    /// holds commands that the program does not decode.
    OnlyDowngradedStops,
    /// No key with a time to live is lost early, and all expire in the end.
    Expiry,
    /// The clients' history has an order that explains every observation.
    Linearizability,
    /// A client gets a reply that its command can have.
    Replies,
    /// The calm cluster elects a leader, acknowledges writes and converges to one state.
    Liveness,
    /// Every frame that a node sends can be decoded by the others.
    Wire,
    /// A replica stops only on request.
    Replica,
    /// A log fails only if its disk does.
    Log,
    /// The apply worker reports only what its jobs can lead to.
    Apply,
    /// A snapshot is abandoned, and pruning fails, only if the disk does.
    Snapshot,
    /// An archive can be read by its sender and used by its receiver, unless a disk fails.
    SnapshotSend,
    /// Starts that are refused for lack of space do not use more space each time.
    FullDisk,
    /// An orderly shutdown leaves no torn tail.
    Shutdown,
    /// Nothing panics.
    Panic,
    /// A run is a function of its seed.
    Determinism,
    /// No rule of the engine: the run was asked to fail at a certain state.
    FailOn,
}

impl Rule {
    /// The name under which documents cite the rule.
    const fn name(self) -> &'static str {
        match self {
            Self::ElectionSafety => "election safety",
            Self::LeaderFollowed => "whom one follows",
            Self::VoteOnce => "vote once",
            Self::DurableBeforeSent => "durable before sent",
            Self::CommittedOnDurableQuorum => "committed on a durable quorum",
            Self::CommitTerm => "commit-term rule",
            Self::CommittedIsImmutable => "committed is immutable",
            Self::SnapshotsAreCommitted => "snapshots are committed",
            Self::LeaderCompleteness => "leader completeness",
            Self::LogMatching => "log matching",
            Self::Monotonic => "monotonic",
            Self::OrderOfWatermarks => "order of watermarks",
            Self::AppliedIsCommitted => "applied is committed",
            Self::AppliedIsStored => "applied is stored",
            Self::Recovery => "recovery",
            Self::Restore => "restore",
            Self::EqualState => "equal state at equal index",
            Self::SnapshotState => "a snapshot is the state at its last included entry",
            Self::BuiltIsDurable => "built means durable",
            Self::PurgedIsCovered => "purged is covered",
            Self::NoPurgeDuringSend => "no purge while a snapshot is sent",
            Self::SentIsApplied => "sent means applied",
            Self::MetadataNamesFile => "metadata name a file",
            Self::Bounds => "bounds",
            Self::BoundDirectories => "bound directories",
            Self::OneMembership => "one membership",
            Self::LegalSteps => "legal steps of the membership",
            Self::KeepsUpBeforeItVotes => "keeps up before it votes",
            Self::ConfigOfLog => "config = f(log)",
            Self::OneChange => "one change at a time",
            Self::Overlap => "overlap",
            Self::IdsOnce => "ids once",
            Self::JoinsByInvitation => "joins by invitation",
            Self::NoNodeLeavesUnasked => "no node leaves unasked",
            Self::IntentCompletes => "an intent completes",
            Self::ExpectedMembership => "expected membership",
            Self::NoDisturbance => "removed nodes never disturb",
            Self::LeaderOutside => "a leader outside gives way",
            Self::Traffic => "traffic",
            Self::Lease => "lease",
            Self::Skip => "skip",
            Self::NewerCommand => "no entry above what every voter has announced",
            Self::OnlyDowngradedStops => "only a downgraded node stops",
            Self::Expiry => "expiry",
            Self::Linearizability => "linearizability",
            Self::Replies => "replies",
            Self::Liveness => "liveness",
            Self::Wire => "wire",
            Self::Replica => "replica",
            Self::Log => "log",
            Self::Apply => "apply",
            Self::Snapshot => "snapshot",
            Self::SnapshotSend => "snapshot sent",
            Self::FullDisk => "full disk",
            Self::Shutdown => "shutdown",
            Self::Panic => "panic",
            Self::Determinism => "determinism",
            Self::FailOn => "fail on",
        }
    }
}

impl Rule {
    /// Fails with a violation by one node.
    pub(crate) fn broken_by<T>(self, node: u64, what: fmt::Arguments<'_>) -> Result<T, Violation> {
        Err(Violation::by(node, self, what))
    }

    /// Fails with a violation by the whole cluster or its clients.
    pub(crate) fn broken<T>(self, what: fmt::Arguments<'_>) -> Result<T, Violation> {
        Err(Violation::of(self, what))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The node that broke it; `None` if the rule is about the whole cluster or its clients.
    pub node: Option<u64>,
    /// What broke it.
    pub what: String,
}

impl Violation {
    /// A violation by one node.
    pub(crate) fn by(node: u64, rule: Rule, what: fmt::Arguments<'_>) -> Self {
        Self { rule, node: Some(node), what: what.to_string() }
    }

    /// A violation by the whole cluster or its clients.
    pub(crate) fn of(rule: Rule, what: fmt::Arguments<'_>) -> Self {
        Self { rule, node: None, what: what.to_string() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

impl std::error::Error for Violation {}
