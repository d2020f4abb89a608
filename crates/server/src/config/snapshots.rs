//! When snapshots are taken, how many are retained, and how much disk and network they may use.

use std::sync::Arc;
use std::time::Duration;

use d_engine_replica::{AfterBytes, AfterEntries, AfterTime, AnyOf, SnapshotPolicy};
use d_engine_storage::snapshot::Compression;
use serde::{Deserialize, Serialize};

/// When snapshots are taken, how many are retained, and how much disk and network they may use. A
/// snapshot is due when the first of the three `after_` values is reached. 0 turns a value off;
/// with all three off, snapshots are taken only on request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// Entries applied since the last snapshot. Default 0: off.
    pub after_entries: u64,
    /// Bytes by which the log has grown since the last snapshot, padding included. If the last
    /// snapshot was larger than this, its size applies instead, but at most twice this. Default 128
    /// MiB.
    pub after_log_bytes: u64,
    /// Seconds since the last snapshot by the node's monotonic clock, if anything was applied
    /// since. Default 0: off.
    pub after_seconds: u64,
    /// The size of the log after the newest snapshot, in bytes, above which the node's status
    /// reports a snapshot as overdue. Default 512 MiB.
    pub max_log_bytes: u64,
    /// How many snapshots are retained. If the newest is damaged, the node uses the one before it;
    /// the log after the oldest is therefore not purged, unless the disk is full. A snapshot that
    /// is being sent is kept in addition. Default 2.
    pub retained: usize,
    /// Entries that a purge leaves in the log although a snapshot contains them, so that a follower
    /// that was away for a moment needs no snapshot. Default 10,000.
    pub tail_entries: u64,
    /// The same limit in bytes; the one that is reached first applies. Default 32 MiB.
    pub tail_bytes: u64,
    /// Whether archives are compressed: `none` (the default) or `zstd`. Compression costs processor
    /// time on the nodes that build and install; every node reads both.
    pub compression: SnapshotCompression,
    /// How long a state machine without
    /// [`snapshot_view`](d_engine_replica::StateMachine::snapshot_view) may delay apply while it
    /// writes its data, in milliseconds; then the snapshot is abandoned. The limit is enforced at
    /// await points; a future that never yields is measured but cannot be stopped. Default 30,000.
    pub pause_max_ms: u64,
    /// How fast archives are packed, in bytes a second, so that the log's writes keep their pace.
    /// 0: no limit. Default 64 MiB.
    pub build_bytes_per_second: u64,
    /// How fast a snapshot is sent to one follower, in bytes a second. 0: no limit. Default 100
    /// MiB, which leaves the follower's disk capacity for the log's writes.
    pub send_bytes_per_second: u64,
    /// How fast the daily scrub reads the log and the snapshots, in bytes a second. It reads each
    /// file from beginning to end, and the node's status shows the damage that it finds. 0: no
    /// scrub. Default 4 MiB.
    pub scrub_bytes_per_second: u64,
    /// How long the other node may be silent while a snapshot is sent or received, in milliseconds.
    /// Then the attempt is abandoned; the next one resumes at the same offset. Default 30,000.
    pub peer_timeout_ms: u64,
    /// How long a follower may take to install a snapshot that it has received completely, in
    /// milliseconds. Default 600,000.
    pub apply_timeout_ms: u64,
    /// How long a leader retains its log for a follower that confirms no further part of a
    /// snapshot, in milliseconds. Default 600,000.
    pub purge_waits_ms: u64,
    /// The largest snapshot that this node receives, in bytes. The same on every node: a node with
    /// a larger snapshot does not purge its log up to it, and its status raises an alarm. Default
    /// 64 GiB.
    pub max_bytes: u64,
    /// The free space that snapshots leave to the log, in bytes. Default 64 MiB.
    pub reserve_bytes: u64,
}

/// Whether archives are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotCompression {
    /// No compression.
    #[default]
    None,
    /// Zstandard, in chunks.
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
            peer_timeout_ms: 30_000,
            apply_timeout_ms: 600_000,
            purge_waits_ms: 600_000,
            max_bytes: 64 << 30,
            reserve_bytes: 64 << 20,
        }
    }
}

impl Snapshots {
    /// Returns the policy that these settings describe.
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
