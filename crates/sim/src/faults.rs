//! Kinds of faults, rare states that a series of seeds must reach, and how often each occurred in a
//! run.

use std::collections::BTreeMap;
use std::fmt;

/// A kind of fault. The summary of a series prints the names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the names of the other variants say it all")]
pub enum Fault {
    MessageDropped,
    MessageDuplicated,
    /// An old message arrives again.
    MessageReplayed,
    MessageLongDelayed,
    /// A message arrives before one that was sent earlier on the same path.
    MessageOvertaken,
    /// One node is cut off from all others.
    PartitionIsolate,
    /// The cluster falls into two halves.
    PartitionSplit,
    /// Two halves that reach each other only through one node.
    PartitionBridge,
    /// Each node reaches only its neighbours in a chain.
    PartitionChain,
    /// Messages from, or to, one node are lost; the other direction works.
    PartitionOneWay,
    Crash,
    /// A node crashes in the middle of a log write or of the log's idle work.
    CrashInWrite,
    /// All nodes crash at once.
    CrashOfAll,
    /// A node crashes while it starts.
    CrashInRecovery,
    /// A crash lost a write that was not synced.
    UnsyncedBytesLost,
    /// A node does nothing for a while, as a suspended process does.
    Pause,
    /// A leader is asked to transfer its leadership.
    LeadershipTransfer,
    /// A connection between two nodes breaks and is established again.
    Reconnect,
    /// A sync takes 0.5 to 10 seconds.
    SyncStall,
    /// A disk error, or a full disk, stops a node.
    DiskError,
    /// A node's monotonic clock runs fast or slow.
    ClockDrift,
    /// A node's wall clock jumps.
    ClockJump,
    /// A client makes no calls for a long while.
    QuietClient,
    /// A node crashes in a step of a snapshot: building, purging, receiving or installing.
    CrashInSnapshot,
    /// A disk error makes a node abandon the snapshot that it is building.
    SnapshotDiskError,
    /// A bit of a node's newest snapshot is flipped while the node is down.
    SnapshotDamaged,
    /// The connection over which a snapshot is sent breaks.
    SendCut,
    /// A connection breaks, and the frames that waited on it are lost.
    ConnectionLost,
    /// The links between two nodes are slow for a while.
    SlowLink,
    /// Many commands arrive at one node at once.
    Burst,
    /// No operation of a node's disk completes for a while.
    DiskHang,
    /// A node's state machine does not return for a while.
    ApplyHang,
    /// A node shuts down in an orderly way.
    Shutdown,
    /// A node's disk is full for a while.
    DiskFull,
    /// A command arrives that some or all programs cannot apply.
    BadCommand,
    /// A node is started with a newer or an older program.
    ProgramChanged,
    /// An operator or a joining node asks for a change of the members.
    MembersChange,
    /// A voter's disk is lost for good. Rare, as it needs a cluster that can do without it:
    /// [`Sometimes::LostNodeReplaced`] has a share.
    DiskLost,
    /// A bit of a node's log is flipped while the node is down, and the log is mended.
    LogDamaged,
}

impl Fault {
    /// All kinds of faults.
    pub const ALL: [Self; 38] = [
        Self::MessageDropped,
        Self::MessageDuplicated,
        Self::MessageReplayed,
        Self::MessageLongDelayed,
        Self::MessageOvertaken,
        Self::PartitionIsolate,
        Self::PartitionSplit,
        Self::PartitionBridge,
        Self::PartitionChain,
        Self::PartitionOneWay,
        Self::Crash,
        Self::CrashInWrite,
        Self::CrashOfAll,
        Self::CrashInRecovery,
        Self::UnsyncedBytesLost,
        Self::Pause,
        Self::LeadershipTransfer,
        Self::Reconnect,
        Self::SyncStall,
        Self::DiskError,
        Self::ClockDrift,
        Self::ClockJump,
        Self::QuietClient,
        Self::CrashInSnapshot,
        Self::SnapshotDiskError,
        Self::SnapshotDamaged,
        Self::SendCut,
        Self::ConnectionLost,
        Self::SlowLink,
        Self::Burst,
        Self::DiskHang,
        Self::ApplyHang,
        Self::Shutdown,
        Self::DiskFull,
        Self::BadCommand,
        Self::ProgramChanged,
        Self::MembersChange,
        Self::LogDamaged,
    ];
}

/// A rare-state marker. A series of seeds is good only if it reaches these states. The summary
/// prints the names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the names of the other variants say it all")]
pub enum Sometimes {
    /// Two nodes are leaders at the same time, in different terms.
    TwoLeadersAtOnce,
    /// A node's last log entry is replaced by one of another term.
    SuffixSuperseded,
    /// A starting node finds a torn tail and cuts it.
    TornTailCut,
    /// A disk error, or a full disk, stops a node.
    NodeStoppedByDisk,
    /// A leader loads entries from its log to send them, because they are no longer in memory.
    EntriesLoadedFromLog,
    /// Entries to apply are read from the log, because they are no longer in memory.
    AppliedFromLog,
    /// A client's command ends with an unknown outcome.
    OutcomeUnknown,
    /// A client's read fails because the node is not, or no longer, the leader.
    ReadLost,
    /// A node becomes leader again, within four terms of leading before.
    LeaderReelectedInLaterTerm,
    /// A majority holds an uncommitted entry of an earlier term than its leader's (paper, figure
    /// 8).
    OldTermEntryOnMajority,
    /// The log binds data directories to their nodes.
    IncarnationsBound,
    /// A timer of the core expires while the node is paused.
    DeadlineWhilePaused,
    /// A lease read is served without the raft thread.
    ReadAtGate,
    /// A caller's request for a snapshot is answered with one.
    SnapshotRequestServed,
    /// A read arrives at a node that holds a valid lease.
    LeaseRead,
    /// A read arrives at a valid lease while another node already leads a later term. This is
    /// possible only if clocks exceed their bound, so no share of the seeds has to reach it.
    LeaseBesideNewLeader,
    /// A follower serves a linearizable read.
    FollowerRead,
    /// A tick is written to a log.
    TickWritten,
    SnapshotBuilt,
    SnapshotInstalled,
    /// A purge leaves entries in the log.
    Purged,
    /// A purge leaves no entry in the log.
    PurgedToZero,
    /// The log is purged although a snapshot is being sent: the limit of held bytes is reached, or
    /// the disk is nearly full.
    PurgedDuringSend,
    /// A node crashes while it builds a snapshot.
    CrashInBuild,
    /// A node crashes while its state machine stores the metadata of a new snapshot.
    CrashInMetadata,
    /// A node crashes while it removes old snapshots.
    CrashInPrune,
    /// A node crashes while it purges its log.
    CrashInPurge,
    /// A node crashes while it receives a snapshot.
    CrashInReceive,
    /// A node crashes between receiving a snapshot and having installed it.
    CrashBeforeInstall,
    /// A node crashes while it installs a snapshot.
    CrashInInstall,
    /// A starting node finishes an install that a crash interrupted.
    InstallFinishedAtStart,
    /// An install keeps the log entries after the snapshot's last included.
    InstallKeepsSuffix,
    /// An install drops a log whose entry at the snapshot's last index has another term.
    InstallOverConflict,
    /// An install replaces a log that reaches beyond the snapshot.
    InstallOverLongerLog,
    /// A node installs a snapshot whose sender's term is over.
    SnapshotOfDeposedInstalled,
    /// A starting node restores an older snapshot, because the newest one is damaged.
    OlderSnapshotRestored,
    /// A durable state machine starts with a state beyond its newest snapshot.
    DurableAheadOfSnapshot,
    /// A durable state machine is restored from a snapshot at its start.
    DurableRestored,
    /// Sending a snapshot resumes where an earlier connection broke.
    SendResumed,
    /// Sending a snapshot is resumed by another node than the one that began it.
    SendResumedByAnother,
    /// The connection breaks at the last piece of a snapshot.
    SendCutAtEnd,
    /// A node is offered a snapshot while it is still receiving one.
    ReceivesAtOnce,
    /// A leader whose log holds no entry has to send a snapshot.
    SnapshotOnQuietCluster,
    /// A message is refused because there is no connection.
    SentWithoutConnection,
    /// A message is refused because its lane is full.
    LaneOverflowed,
    /// A write waits because the kernel's send buffer is full.
    KernelFull,
    /// Frames on a connection are delayed by a partition.
    ConnectionStalled,
    /// A connection is closed because its peer was silent for too long.
    ConnectionSilent,
    /// One turn of the raft thread handles several events.
    TurnOfMany,
    /// A call is refused because a limit is reached.
    Busy,
    /// A call is refused because its deadline has passed.
    Expired,
    /// A command is refused because it is too large.
    TooLarge,
    /// One apply job answers several callers.
    ChunkOfMany,
    /// Trial: the leader's disk hangs.
    TrialLeaderDisk,
    /// Trial: the leader's state machine hangs.
    TrialLeaderApply,
    /// Trial: a follower's disk hangs.
    TrialFollowerDisk,
    /// Trial: a follower's state machine hangs.
    TrialFollowerApply,
    /// Trial: the leader's links to one follower are very slow.
    TrialLink,
    /// Trial: the leader shuts down.
    TrialLeaderStops,
    /// A leader shuts down in an orderly way.
    LeaderShutDown,
    /// A shutdown reaches its timeout before the node is idle.
    ShutdownOutOfPatience,
    /// A node starts with the `d-engine-kv-disk` state machine.
    DiskMachine,
    /// A node with the `d-engine-kv-disk` state machine starts with a state.
    DiskMachineRestarted,
    /// A log write waits for free disk space.
    LogWaitedForRoom,
    /// An install waits for free disk space.
    InstallWaitedForRoom,
    /// A state machine had no space for entries, and applied them later.
    ApplyWaitedForRoom,
    /// A state machine had no space for a snapshot, and installed it later.
    MachineWaitedToInstall,
    /// A damaged log was mended, and entries that it had are missing.
    MendedLogLacksEntries,
    /// A start skipped damage that a snapshot covers.
    DamageSkipped,
    /// A repair fetched a snapshot of another node.
    RepairFetchedSnapshot,
    /// On a full disk, the hard state is written from the log's reserve.
    HardStateFromReserve,
    /// A purge waits for free disk space.
    PurgeWaited,
    /// A node does not start because its disk is full.
    StartRefusedForRoom,
    /// A log disk has less free space than the limit below which commands are refused.
    ShortOfSpace,
    /// Trial: the leader's disk is full.
    TrialLeaderFull,
    /// Trial: a follower's disk is full.
    TrialFollowerFull,
    /// Trial: all disks are full.
    TrialAllFull,
    /// A state machine halts at a command that it cannot apply.
    MachineStands,
    /// A state machine halts in a chunk of several entries, so that the entry is not known.
    StandsInChunk,
    /// A leader's state machine halts.
    LeaderStands,
    /// A halted node is given a newer program, which applies the entry.
    ProgramMended,
    /// A leader refuses to skip an entry.
    SkipRefused,
    /// A leader writes that an entry is skipped.
    EntrySkipped,
    /// A command is refused because some voter does not decode its version.
    NewerCommandRefused,
    /// A leader writes a command of a version above 0.
    NewerCommandTaken,
    /// A node stops, or does not start, because its program does not decode a command.
    OlderProgramStopped,
    /// A leader enters a joint configuration.
    JointEntered,
    /// A leader leaves a joint configuration for its incoming voters.
    JointLeft,
    /// A leader returns from a joint configuration that it could not commit.
    JointRolledBack,
    /// The entry of a joint configuration is superseded.
    JointTruncated,
    /// A leader is no voter of the configuration that it has appended.
    LeaderLeftOut,
    /// A node learns of several memberships at once, from a snapshot.
    MembershipFromSnapshot,
    /// A joining node gets its id from the leader.
    IdGivenByLeader,
    /// A node whose disk was lost is a member no more.
    LostNodeReplaced,
    /// A request is refused because its caller knew an earlier membership.
    StaleRequestRefused,
    /// A leader created entries although the clocks of no quorum agreed, so nothing is guaranteed
    /// about the expiry of what was written after that.
    LogTimeAlone,
    /// A node joined because it was invited.
    JoinedByInvitation,
    /// A node was refused because nobody had invited it.
    NotInvited,
    /// A node that is to vote crashes while the configuration is joint.
    JoinerDiedInJoint,
    /// A leader is asked to transfer its leadership while its configuration is joint.
    TransferInJoint,
    /// A node that was cut off when it was removed comes back to the recovered cluster.
    RemovedNodeCameBack,
    /// A node becomes leader while its configuration is joint.
    NewLeaderInJoint,
    /// A leader executes an intent that an earlier leader has written.
    IntentTakenOver,
    /// A node learns of a joint configuration from a snapshot.
    JointFromSnapshot,
    /// The entry by which a joint configuration was left is superseded.
    FinalTruncated,
}

impl Sometimes {
    /// The share of seeds, in thousandths, that must reach each state: half of what was measured
    /// over 400 seeds; for torn tails, what the design requires.
    pub const SHARES: [(Self, u64); 96] = [
        (Self::MendedLogLacksEntries, 40),
        (Self::DamageSkipped, 6),
        (Self::RepairFetchedSnapshot, 12),
        (Self::TwoLeadersAtOnce, 100),
        (Self::SuffixSuperseded, 75),
        (Self::TornTailCut, 50),
        (Self::NodeStoppedByDisk, 170),
        (Self::EntriesLoadedFromLog, 240),
        (Self::AppliedFromLog, 420),
        (Self::OutcomeUnknown, 220),
        (Self::ReadLost, 440),
        (Self::LeaderReelectedInLaterTerm, 360),
        (Self::OldTermEntryOnMajority, 360),
        (Self::IncarnationsBound, 500),
        (Self::DeadlineWhilePaused, 230),
        (Self::LeaseRead, 420),
        (Self::ReadAtGate, 400),
        (Self::SnapshotRequestServed, 200),
        (Self::FollowerRead, 410),
        (Self::TickWritten, 360),
        (Self::SnapshotBuilt, 420),
        (Self::SnapshotInstalled, 230),
        (Self::Purged, 400),
        (Self::PurgedToZero, 50),
        (Self::PurgedDuringSend, 7),
        (Self::CrashInBuild, 100),
        (Self::CrashInMetadata, 40),
        (Self::CrashInPrune, 65),
        (Self::CrashInPurge, 75),
        (Self::CrashInReceive, 16),
        (Self::CrashBeforeInstall, 25),
        (Self::CrashInInstall, 14),
        (Self::InstallFinishedAtStart, 2),
        (Self::InstallKeepsSuffix, 1),
        (Self::InstallOverConflict, 1),
        (Self::InstallOverLongerLog, 2),
        (Self::SnapshotOfDeposedInstalled, 4),
        (Self::OlderSnapshotRestored, 20),
        (Self::DurableAheadOfSnapshot, 100),
        (Self::DurableRestored, 9),
        (Self::SendResumed, 100),
        (Self::SendResumedByAnother, 2),
        (Self::SendCutAtEnd, 35),
        (Self::ReceivesAtOnce, 16),
        (Self::SnapshotOnQuietCluster, 3),
        (Self::SentWithoutConnection, 260),
        (Self::LaneOverflowed, 10),
        (Self::KernelFull, 38),
        (Self::ConnectionStalled, 120),
        (Self::ConnectionSilent, 130),
        (Self::TurnOfMany, 280),
        (Self::Busy, 200),
        (Self::Expired, 10),
        (Self::TooLarge, 35),
        (Self::ChunkOfMany, 390),
        (Self::TrialLeaderDisk, 45),
        (Self::TrialLeaderApply, 45),
        (Self::TrialFollowerDisk, 45),
        (Self::TrialFollowerApply, 45),
        (Self::TrialLink, 45),
        (Self::TrialLeaderStops, 45),
        (Self::LeaderShutDown, 160),
        (Self::ShutdownOutOfPatience, 5),
        (Self::DiskMachine, 130),
        (Self::DiskMachineRestarted, 100),
        (Self::LogWaitedForRoom, 190),
        (Self::HardStateFromReserve, 70),
        (Self::PurgeWaited, 9),
        (Self::StartRefusedForRoom, 25),
        (Self::ShortOfSpace, 110),
        (Self::TrialLeaderFull, 45),
        (Self::TrialFollowerFull, 45),
        (Self::TrialAllFull, 45),
        (Self::MachineStands, 65),
        (Self::StandsInChunk, 35),
        (Self::LeaderStands, 55),
        (Self::ProgramMended, 14),
        (Self::SkipRefused, 40),
        (Self::EntrySkipped, 50),
        (Self::NewerCommandRefused, 90),
        (Self::NewerCommandTaken, 80),
        (Self::OlderProgramStopped, 13),
        (Self::JointEntered, 210),
        (Self::JointLeft, 210),
        (Self::JointRolledBack, 20),
        (Self::LeaderLeftOut, 90),
        (Self::MembershipFromSnapshot, 150),
        (Self::IdGivenByLeader, 190),
        (Self::LostNodeReplaced, 4),
        (Self::StaleRequestRefused, 60),
        (Self::LogTimeAlone, 35),
        (Self::JoinedByInvitation, 50),
        (Self::NotInvited, 50),
        (Self::JoinerDiedInJoint, 15),
        (Self::TransferInJoint, 50),
        (Self::RemovedNodeCameBack, 40),
    ];
}

impl Sometimes {
    /// The same for runs in which the members change.
    pub const SHARES_WITH_CHANGES: [(Self, u64); 14] = [
        (Self::JointEntered, 430),
        (Self::JointLeft, 430),
        (Self::JointRolledBack, 50),
        (Self::JointTruncated, 2),
        (Self::LeaderLeftOut, 200),
        (Self::MembershipFromSnapshot, 320),
        (Self::IdGivenByLeader, 380),
        (Self::LostNodeReplaced, 12),
        (Self::StaleRequestRefused, 130),
        (Self::JoinedByInvitation, 100),
        (Self::NotInvited, 95),
        (Self::JoinerDiedInJoint, 35),
        (Self::TransferInJoint, 110),
        (Self::RemovedNodeCameBack, 90),
    ];
}

/// How often each fault occurred and each rare state was reached.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    faults: BTreeMap<Fault, u64>,
    sometimes: BTreeMap<Sometimes, u64>,
}

impl Counts {
    /// Counts one occurrence of `fault`.
    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Counts one visit of the rare state.
    pub fn reached(&mut self, state: Sometimes) {
        *self.sometimes.entry(state).or_default() += 1;
    }

    /// Returns the kinds of faults that occurred more often than in `before`.
    pub(crate) fn faults_since(&self, before: &Self) -> Vec<Fault> {
        let more = self.faults.iter().filter(|(fault, count)| before.of(**fault) < **count);
        more.map(|(fault, _)| *fault).collect()
    }

    /// Whether the rare state was reached.
    pub(crate) fn has_reached(&self, state: Sometimes) -> bool {
        self.sometimes.contains_key(&state)
    }

    /// Returns how often `fault` occurred.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// Returns the rare states that were reached, and how often.
    pub fn states(&self) -> impl Iterator<Item = (Sometimes, u64)> {
        self.sometimes.iter().map(|(state, count)| (*state, *count))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, count) in &self.faults {
            write!(f, "{fault:?}={count} ")?;
        }
        for (state, count) in &self.sometimes {
            write!(f, "{state:?}={count} ")?;
        }
        Ok(())
    }
}
