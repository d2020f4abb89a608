//! What a node holds in memory on behalf of others. Each of these is bounded; `docs/durability.md`, section 8.

use crate::progress::Flow;
use crate::raft_core::RaftCore;
use crate::role::Role;

/// What a node holds in memory on behalf of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreGauges {
    /// Messages that wait for the disk.
    pub held_messages: usize,
    /// Bytes in the log that are not committed: payloads and 64 for each entry.
    pub uncommitted_bytes: u64,
    /// Reads that wait for confirmation, of callers here and of followers.
    pub waiting_reads: usize,
    /// Appends on their way to the follower that has most of them.
    pub inflight_appends: usize,
    /// Payload bytes on their way to the follower that has most of them.
    pub inflight_bytes: u64,
}

impl RaftCore {
    /// What this node holds in memory on behalf of others.
    #[must_use]
    pub fn gauges(&self) -> CoreGauges {
        let mut gauges = CoreGauges {
            held_messages: self.held.len(),
            uncommitted_bytes: self.log.uncommitted_bytes(),
            waiting_reads: self.forwarded.len(),
            ..CoreGauges::default()
        };
        if let Role::Leader(leader) = &self.role {
            gauges.waiting_reads += leader.reads.len();
            for progress in leader.followers.values() {
                if let Flow::Replicate { inflight, bytes, .. } = &progress.flow {
                    gauges.inflight_appends = gauges.inflight_appends.max(inflight.len());
                    gauges.inflight_bytes = gauges.inflight_bytes.max(*bytes);
                }
            }
        }
        gauges
    }
}
