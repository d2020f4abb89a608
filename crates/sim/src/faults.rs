//! Counts of what the simulator did to the cluster, and of rare states that were reached.

use std::collections::BTreeMap;
use std::fmt;

/// What can be done to a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the names say it all, and the summary prints them")]
pub enum Fault {
    MessageDropped,
    MessageDuplicated,
    MessageReplayed,
    MessageLongDelayed,
    MessageOvertaken,
    PartitionIsolate,
    PartitionSplit,
    PartitionBridge,
    PartitionChain,
    PartitionOneWay,
    Crash,
    CrashInWrite,
    CrashOfAll,
    CrashInRecovery,
    UnsyncedBytesLost,
    Pause,
    LeadershipTransfer,
    Reconnect,
    SyncStall,
    DiskError,
    ClockDrift,
    ClockJump,
    QuietClient,
    CrashInSnapshot,
    SnapshotDiskError,
    SnapshotDamaged,
    TransferCut,
    ConnectionLost,
    SlowLink,
    Burst,
    DiskHang,
    ApplyHang,
    Shutdown,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 33] = [
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
        Self::TransferCut,
        Self::ConnectionLost,
        Self::SlowLink,
        Self::Burst,
        Self::DiskHang,
        Self::ApplyHang,
        Self::Shutdown,
    ];
}

/// Rare states that a good set of seeds reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the names say it all, and the summary prints them")]
pub enum Sometimes {
    TwoLeadersAtOnce,
    SuffixSuperseded,
    TornTailCut,
    NodeStoppedByDisk,
    EntriesLoadedFromLog,
    AppliedFromLog,
    OutcomeUnknown,
    ReadLost,
    LeaderReelectedInLaterTerm,
    OldTermEntryOnMajority,
    IncarnationsBound,
    DeadlineWhilePaused,
    LeaseRead,
    LeaseBesideNewLeader,
    FollowerRead,
    TickWritten,
    SnapshotBuilt,
    SnapshotInstalled,
    Purged,
    PurgedToZero,
    PurgedDuringTransfer,
    CrashInBuild,
    CrashInMetadata,
    CrashInPrune,
    CrashInPurge,
    CrashInReceive,
    CrashBeforeInstall,
    CrashInInstall,
    InstallFinishedAtStart,
    InstallKeepsSuffix,
    InstallOverConflict,
    InstallOverLongerLog,
    OlderSnapshotRestored,
    DurableAheadOfSnapshot,
    DurableRestored,
    TransferResumed,
    TransferResumedByAnother,
    TransferCutAtEnd,
    TransfersAtOnce,
    SnapshotOnQuietCluster,
    SentWithoutConnection,
    LaneOverflowed,
    KernelFull,
    ConnectionStalled,
    ConnectionSilent,
    TurnOfMany,
    Busy,
    Expired,
    TooLarge,
    ChunkOfMany,
    TrialLeaderDisk,
    TrialLeaderApply,
    TrialFollowerDisk,
    TrialFollowerApply,
    TrialLink,
    TrialLeaderStops,
    LeaderShutDown,
    ShutdownOutOfPatience,
    DiskMachine,
    DiskMachineRestarted,
}

impl Sometimes {
    /// What snapshots add: each must be reached by the seeds that a change has to pass.
    pub const OF_SNAPSHOTS: [Self; 24] = [
        Self::SnapshotBuilt,
        Self::SnapshotInstalled,
        Self::Purged,
        Self::PurgedToZero,
        Self::PurgedDuringTransfer,
        Self::CrashInBuild,
        Self::CrashInMetadata,
        Self::CrashInPrune,
        Self::CrashInPurge,
        Self::CrashInReceive,
        Self::CrashBeforeInstall,
        Self::CrashInInstall,
        Self::InstallFinishedAtStart,
        Self::InstallKeepsSuffix,
        Self::InstallOverConflict,
        Self::InstallOverLongerLog,
        Self::OlderSnapshotRestored,
        Self::DurableAheadOfSnapshot,
        Self::DurableRestored,
        Self::TransferResumed,
        Self::TransferResumedByAnother,
        Self::TransferCutAtEnd,
        Self::TransfersAtOnce,
        Self::SnapshotOnQuietCluster,
    ];
}

/// How often each fault was done and each rare state reached.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    faults: BTreeMap<Fault, u64>,
    sometimes: BTreeMap<Sometimes, u64>,
}

impl Counts {
    /// Counts one fault.
    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Counts one rare state.
    pub fn reached(&mut self, state: Sometimes) {
        *self.sometimes.entry(state).or_default() += 1;
    }

    /// How often `fault` was done.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// The rare states reached.
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
