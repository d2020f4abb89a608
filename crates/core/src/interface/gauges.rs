//! What a node holds in memory on behalf of others. Each of these is bounded; `docs/durability.md`,
//! section 8.

/// What a node holds in memory on behalf of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreGauges {
    /// Messages that wait for the disk.
    pub held_messages: usize,
    /// Bytes in the log that are not committed: payloads and 64 for each entry.
    pub uncommitted_bytes: u64,
    /// Reads that wait for confirmation, of this node's callers and of followers.
    pub waiting_reads: usize,
    /// Appends in flight to the follower that has most of them.
    pub inflight_appends: usize,
    /// Payload bytes in flight to the follower that has most of them.
    pub inflight_bytes: u64,
}
