//! What a replica holds in memory. Each amount is bounded; `docs/durability.md`, section 8.

use d_engine_core::CoreGauges;

use crate::Replica;

/// What a replica holds in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gauges {
    /// What the core holds.
    pub core: CoreGauges,
    /// Commands whose callers wait for a reply.
    pub proposals: usize,
    /// Reads whose callers wait for a reply.
    pub reads: usize,
    /// Payload bytes that wait for this node's disk.
    pub unsynced_bytes: usize,
    /// Bytes of recent entries in memory, including those that wait for this node's disk.
    pub cache_bytes: usize,
    /// Appends that wait for entries from the log.
    pub loads: usize,
    /// Jobs in flight at the apply worker.
    pub apply_jobs: usize,
}

impl Replica {
    /// What this replica holds in memory.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            core: self.core.gauges(),
            proposals: self.proposals.len(),
            reads: self.reads.len(),
            unsynced_bytes: self.unsynced.bytes(),
            cache_bytes: self.cache.bytes(),
            loads: self.loads.len(),
            apply_jobs: self.apply.jobs_out(),
        }
    }
}
