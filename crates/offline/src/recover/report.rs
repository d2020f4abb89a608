//! What is asked of a recovery, and what it reports.

use std::path::PathBuf;

use d_engine_core::{ClusterId, LogId, NodeId};
use d_engine_storage::Membership;

/// What to recover.
#[derive(Clone, Debug)]
pub struct RecoverRequest {
    /// The data directory of the node. The new directory takes its place.
    pub data_dir: PathBuf,
    /// The address at which other nodes will reach the node; the one that the old cluster knew if
    /// `None`.
    pub peer_addr: Option<String>,
    /// The address at which clients will reach the node; as above.
    pub client_addr: Option<String>,
    /// The time on the machine's clock, in UNIX milliseconds. It names the old directory.
    pub at_ms: u64,
}

/// What was handled since the last report, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Bytes of the old directory that were read and verified.
    Read(u64),
    /// Bytes that were written into the new directory.
    Written(u64),
}

/// A new cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The id of the new cluster.
    pub cluster: ClusterId,
    /// The cluster that has ended.
    pub from: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The members of the new cluster: the node.
    pub membership: Membership,
    /// Where the old directory is now. It is retired; remove it once nothing in it is missed.
    pub old_dir: PathBuf,
    /// What was taken over; `None` if an earlier run had done it and this one has only put the new
    /// directory into its place.
    pub kept: Option<Kept>,
}

/// What a new cluster has of the old one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The last entry.
    pub last: LogId,
    /// The last entry that the log had before it was repaired, if it has not reached that entry
    /// since: everything after `last` is lost.
    pub promised: Option<LogId>,
    /// How many of the entries were not known to be committed. They count as committed from now on.
    pub not_known_committed: u64,
    /// The snapshot after which the log begins.
    pub snapshot: Option<LogId>,
    /// Log time at `last`, in UNIX milliseconds; 0 if the log is empty. Log time continues from
    /// here.
    pub time_ms: u64,
    /// Membership entries that became no-ops.
    pub memberships: u64,
}
