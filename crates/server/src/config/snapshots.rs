//! When snapshots are taken, how many are kept, and how much disk and network they may use.

use std::sync::Arc;
use std::time::Duration;

use d_engine_replica::{AfterBytes, AfterEntries, AfterTime, AnyOf, SnapshotPolicy};
use d_engine_storage::snapshot::Compression;
use serde::{Deserialize, Serialize};

/// When snapshots are taken, how many are kept, and how much disk and network they may use. A snapshot is due
/// when the first of the three `after_` measures is reached; 0 turns a measure off, and with all three off
/// none is taken unless somebody asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// Entries applied since the last snapshot. Default 0: off.
    pub after_entries: u64,
    /// Bytes that the log has grown by since the last snapshot, padding included. Where the last snapshot was larger, as
    /// large as it was, but at most twice this. Default 128 MiB.
    pub after_log_bytes: u64,
    /// Seconds of log time since the last snapshot, if anything was applied since. Default 0: off.
    pub after_seconds: u64,
    /// When the log behind the newest snapshot has more bytes than this, the node's status says that a snapshot is overdue. Default
    /// 512 MiB.
    pub max_log_bytes: u64,
    /// How many snapshots are kept. Default 2. If the newest turns out to be damaged, the one before it is used: the
    /// log behind the oldest stays, unless the disk is full. A transfer under way keeps its own.
    pub retained: usize,
    /// Entries that stay in the log although a snapshot covers them, so that a follower that was away for a
    /// moment needs no snapshot. Default 10,000.
    pub tail_entries: u64,
    /// As much of them in bytes; whichever is reached first counts. Default 32 MiB.
    pub tail_bytes: u64,
    /// Whether archives are compressed: `none` (the default) or `zstd`. It takes processor time on the nodes that build and
    /// install; every node reads both.
    pub compression: SnapshotCompression,
    /// How long a state machine without [`snapshot_view`](d_engine_replica::StateMachine::snapshot_view) may hold apply up while
    /// it writes its data, in milliseconds; the snapshot is given up after that. It is looked at where the machine's
    /// future waits: one that never does is measured, but not stopped. Default 30,000.
    pub pause_max_ms: u64,
    /// How fast archives are built, in bytes a second, so that the log's writes keep their pace; 0: as fast as
    /// the disk. Default 64 MiB.
    pub build_bytes_per_second: u64,
    /// How fast a snapshot is sent to one follower, in bytes a second; 0: as fast as the network. Default 100 MiB,
    /// which leaves a follower's disk to the log's writes.
    pub send_bytes_per_second: u64,
    /// How fast the log and the snapshots are read once a day to look for damage, in bytes a second, each file from its
    /// beginning to its end; 0: never. What is found shows in the node's status. Default 4 MiB.
    pub scrub_bytes_per_second: u64,
    /// How long a transfer may stand still before it is given up, in milliseconds; it is resumed where it
    /// stood. Default 30,000.
    pub transfer_timeout_ms: u64,
    /// How long a follower may take to apply a snapshot that it has received, in milliseconds. Default 600,000.
    pub apply_timeout_ms: u64,
    /// For so long, in milliseconds, a leader keeps its log for a follower that confirms nothing more of a snapshot.
    /// Default 600,000.
    pub purge_waits_ms: u64,
    /// The largest snapshot that is received, in bytes. The log is not purged behind a longer one, and the node's status
    /// says so: the same on every node. Default 64 GiB.
    pub max_bytes: u64,
    /// Free space that snapshots leave to the log, in bytes. Default 64 MiB.
    pub reserve_bytes: u64,
}

/// Whether archives are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotCompression {
    /// They are not.
    #[default]
    None,
    /// Zstandard, chunk by chunk.
    Zstd,
}

impl From<SnapshotCompression> for Compression {
    fn from(compression: SnapshotCompression) -> Self {
        match compression {
            SnapshotCompression::None => Self::None,
            SnapshotCompression::Zstd => Self::Zstd,
        }
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            after_entries: 0,
            after_log_bytes: 128 << 20,
            after_seconds: 0,
            max_log_bytes: 512 << 20,
            retained: 2,
            tail_entries: 10_000,
            tail_bytes: 32 << 20,
            compression: SnapshotCompression::None,
            pause_max_ms: 30_000,
            build_bytes_per_second: 64 << 20,
            send_bytes_per_second: 100 << 20,
            scrub_bytes_per_second: 4 << 20,
            transfer_timeout_ms: 30_000,
            apply_timeout_ms: 600_000,
            purge_waits_ms: 600_000,
            max_bytes: 64 << 30,
            reserve_bytes: 64 << 20,
        }
    }
}

impl Snapshots {
    /// The policy that these settings describe.
    #[must_use]
    pub fn policy(&self) -> Arc<dyn SnapshotPolicy> {
        let mut any: Vec<Arc<dyn SnapshotPolicy>> = Vec::new();
        if self.after_entries > 0 {
            any.push(Arc::new(AfterEntries(self.after_entries)));
        }
        if self.after_log_bytes > 0 {
            any.push(Arc::new(AfterBytes(self.after_log_bytes)));
        }
        if self.after_seconds > 0 {
            any.push(Arc::new(AfterTime(Duration::from_secs(self.after_seconds))));
        }
        Arc::new(AnyOf(any))
    }
}
