//! The settings of a replica.

use d_engine_core::CoreConfig;

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
        }
    }
}
