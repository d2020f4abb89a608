//! What each role does: elections, replication, reads, leadership transfer, snapshots, skipped
//! entries, log time.

pub(crate) mod clock;
pub(crate) mod election;
pub(crate) mod follower;
pub(crate) mod invariants;
pub(crate) mod leader;
mod membership;
pub(crate) mod observe;
pub(crate) mod reads;
pub(crate) mod role;
pub(crate) mod skip;
pub(crate) mod snapshot;
pub(crate) mod transfer;
