//! Linearizable reads: rounds of heartbeats, reads at a follower, the leader lease.

pub(crate) mod follower_reads;
pub(crate) mod lease;
pub(crate) mod rounds;
