//! The settings of a replica.

use std::time::Duration;

use d_engine_core::CoreConfig;

/// The settings of a replica.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// The settings of the Raft core.
    pub core: CoreConfig,
    /// Largest command in bytes.
    pub command_bytes_max: usize,
    /// Most proposals in flight; beyond it [`crate::ProposeError::Busy`].
    pub proposals_max: usize,
    /// Most reads in flight; beyond it [`crate::ReadError::Busy`].
    pub reads_max: usize,
    /// Most bytes of recent entries kept in memory.
    pub cache_bytes_max: usize,
    /// Most jobs in flight at the apply worker.
    pub apply_jobs_max: usize,
    /// Most entries in one apply job.
    pub apply_entries_max: u64,
    /// Entries that stay in the log although a snapshot covers them, for followers that lag
    /// slightly behind.
    pub tail_entries: u64,
    /// With fewer free bytes on the log's disk, commands are refused, so that snapshots and purges
    /// still have space.
    pub min_free_bytes: u64,
    /// The same limit in bytes, for `tail_entries`; the one that is reached first counts.
    pub tail_bytes: u64,
    /// How long the log is kept for a follower that was sent a snapshot and makes no progress: it
    /// confirms nothing more of the snapshot and persists no entry after it.
    pub purge_timeout: Duration,
    /// Most bytes of the log that are kept for it if the free space is unknown or too small.
    pub held_bytes: u64,
    /// Bytes that a snapshot leaves free on the log's disk. The log that is kept for a follower
    /// leaves as many free, and space for the next snapshot.
    pub snapshot_reserve_bytes: u64,
    /// Accept the wall clock of a single-voter cluster however far it is from the log; see
    /// [`d_engine_core::ClockState::Held`].
    pub accept_clock: bool,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self {
            core: CoreConfig::default(),
            command_bytes_max: 1 << 20,
            proposals_max: 65_536,
            reads_max: 65_536,
            cache_bytes_max: 32 << 20,
            apply_jobs_max: 2,
            apply_entries_max: 4096,
            tail_entries: 10_000,
            tail_bytes: 32 << 20,
            min_free_bytes: 2 << 20,
            purge_timeout: Duration::from_millis(600_000),
            held_bytes: 256 << 20,
            snapshot_reserve_bytes: 64 << 20,
            accept_clock: false,
        }
    }
}
