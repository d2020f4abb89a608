//! What a node reports about its snapshots.

use std::time::Duration;

use crate::message::{EntryId, TakeSnapshotReply};

/// A snapshot that a node has taken.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TakenSnapshot {
    /// Last included index.
    pub index: u64,
    /// Last included term.
    pub term: u64,
    /// Length of the archive in bytes.
    pub bytes: u64,
    /// SHA-256 of the archive.
    pub sha256: Vec<u8>,
}

/// The status of a node's snapshots, and of the log that they make shorter. Later versions add
/// fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// The last included entry of the newest snapshot.
    pub newest: Option<EntryId>,
    /// Length of the newest snapshot in bytes.
    pub newest_bytes: u64,
    /// Number of snapshots on disk.
    pub count: u64,
    /// Length of all of them in bytes.
    pub disk_bytes: u64,
    /// Bytes written so far of a snapshot that is being built.
    pub building: Option<u64>,
    /// Snapshots built since the node started.
    pub built: u64,
    /// Attempts that failed since the node started.
    pub failed: u64,
    /// Why the last attempt failed, unless a snapshot was built since.
    pub last_failure: Option<String>,
    /// How long apply waited for the newest snapshot, or has waited so far for the one that is
    /// being built. In whole microseconds over the network.
    pub pause: Duration,
    /// Bytes by which the log has grown since the newest snapshot, or since the node started.
    pub bytes_since: u64,
    /// An alarm: the log after the newest snapshot is larger than `snapshots.max_log_bytes`,
    /// because snapshots fail or the policy takes none. Check `last_failure`, or take a snapshot.
    pub overdue: bool,
    /// Snapshots being sent to followers.
    pub sending: Vec<SendingSnapshot>,
    /// The snapshot being received.
    pub receiving: Option<ReceivingSnapshot>,
}

/// A snapshot that is being sent to a follower.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SendingSnapshot {
    /// The follower.
    pub to: u64,
    /// Its last included index; `None` before a snapshot is chosen.
    pub index: Option<u64>,
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// Length of the archive in bytes.
    pub bytes: u64,
    /// Offset at which this attempt began; more than 0 if it resumed an earlier one.
    pub resumed_at: u64,
    /// Whether the follower has received all of it and is installing it.
    pub is_installing: bool,
    /// Failed attempts so far.
    pub failures: u64,
    /// Why the last attempt failed.
    pub last_failure: Option<String>,
}

/// A snapshot that the node is receiving.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ReceivingSnapshot {
    /// The sender, which is the leader.
    pub from: u64,
    /// Its last included index.
    pub index: u64,
    /// Bytes received so far.
    pub received: u64,
    /// Length of the archive in bytes.
    pub bytes: u64,
    /// Whether all of it has been received and is being installed.
    pub is_installing: bool,
}

impl From<TakeSnapshotReply> for TakenSnapshot {
    fn from(reply: TakeSnapshotReply) -> Self {
        let TakeSnapshotReply { index, term, bytes, sha256 } = reply;
        Self { index, term, bytes, sha256: sha256.to_vec() }
    }
}
