//! The settings of a replica.

use d_engine_core::{CoreConfig, Duration};

/// The settings of a replica.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// The algorithm's settings.
    pub core: CoreConfig,
    /// Largest command in bytes.
    pub command_bytes_max: usize,
    /// Proposals on their way: beyond it [`crate::ProposeError::Busy`].
    pub proposals_max: usize,
    /// Reads on their way: beyond it [`crate::ReadError::Busy`].
    pub reads_max: usize,
    /// Bytes of recent entries kept in memory.
    pub cache_bytes_max: usize,
    /// Jobs on their way to the apply worker.
    pub apply_jobs_max: usize,
    /// Entries in one apply job.
    pub apply_entries_max: u64,
    /// Entries that stay in the log although a snapshot covers them, for followers that are a little behind.
    pub tail_entries: u64,
    /// With fewer free bytes where the log lies, commands are to be refused: snapshots and purges still have room.
    pub min_free_bytes: u64,
    /// As much of them in bytes; whichever is reached first counts.
    pub tail_bytes: u64,
    /// How long the log is kept for a follower that is sent a snapshot and does not come forward: nothing more of the
    /// snapshot is confirmed, and no entry behind it is stored.
    pub purge_patience: Duration,
    /// So many bytes of the log are kept for it at most where nobody knows how many are free, or too few are.
    pub held_bytes: u64,
    /// Bytes that a snapshot leaves free on the log's disk. What is kept of the log for a follower leaves as much, and room
    /// for the next snapshot.
    pub snapshot_reserve_bytes: u64,
    /// Believe the wall clock of a node that is alone however far it is from its log; see
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
            purge_patience: Duration::from_millis(600_000),
            held_bytes: 256 << 20,
            snapshot_reserve_bytes: 64 << 20,
            accept_clock: false,
        }
    }
}
