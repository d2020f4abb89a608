//! The options of a snapshot store, and what it reports of its archives.

use std::path::PathBuf;
use std::sync::Arc;

use d_engine_core::{ClusterId, GroupId, LogId};

use super::archive::SnapshotArchive;
use super::error::SnapshotError;
use super::header::{Compression, SnapshotHeader};

/// How a [`super::SnapshotStore`] keeps its snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// The cluster; snapshots of another one are refused.
    pub cluster: ClusterId,
    /// The Raft group; snapshots of another one are refused.
    pub group: GroupId,
    /// The number of snapshots that [`super::SnapshotStore::prune`] retains; at least one always
    /// stays.
    pub retained: usize,
    /// The name of the state machine; snapshots of another one are refused. If empty, names are not
    /// compared.
    pub machine: String,
    /// The newest version of the state machine's data that its code reads. Newer snapshots are
    /// refused.
    pub user_format: u32,
    /// The highest version of a command that the state machine decodes. Snapshots of a state that
    /// contains the effect of a command of a higher version are refused, because a node could not
    /// continue from it.
    pub command_version_max: u32,
    /// No other node accepts a longer archive. It serves this node alone, and the log is not purged
    /// because of it. [`super::SnapshotStore::receive`] takes a limit of its own.
    pub max_bytes: u64,
    /// Bytes of the disk that are left to the log: a snapshot that would need them is refused.
    pub reserve_bytes: u64,
    /// The compression of archives that are built here.
    pub compression: Compression,
    /// The content of an archive is checksummed in chunks of this length, 1 byte to 4 MiB.
    pub chunk_bytes: u32,
    /// Archives are synced each time this many bytes have been written, so that no write-back grows
    /// so large that it stalls the log's syncs on the same disk.
    pub sync_bytes: u64,
}

impl SnapshotOptions {
    /// The defaults: two snapshots retained, of any length, 64 MiB left to the log, chunks of 256
    /// KiB, a sync every 4 MiB.
    #[must_use]
    pub fn new(cluster: ClusterId, group: GroupId) -> Self {
        Self {
            cluster,
            group,
            retained: 2,
            machine: String::new(),
            user_format: 0,
            command_version_max: 0,
            max_bytes: u64::MAX,
            reserve_bytes: 64 << 20,
            compression: Compression::None,
            chunk_bytes: 256 << 10,
            sync_bytes: 4 << 20,
        }
    }
}

/// What is known about the content of an archive. Its header verifies in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// The content has not been read since the store was opened.
    Unchecked,
    /// Every checksum matched, or it was written by this process.
    Whole,
    /// It does not verify. It is kept until a whole one replaces it, and never offered.
    Damaged,
}

/// A finished archive.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// The verified header.
    pub header: Arc<SnapshotHeader>,
    /// Length of the archive in bytes.
    pub len: u64,
    /// The SHA-256 in its trailer.
    pub sha256: [u8; 32],
    /// The file.
    pub path: PathBuf,
    /// What is known about the content.
    pub health: Health,
}

impl SnapshotInfo {
    pub(super) fn of(archive: &SnapshotArchive, health: Health) -> Self {
        Self {
            header: Arc::clone(archive.header()),
            len: archive.len(),
            sha256: archive.sha256(),
            path: archive.path.clone(),
            health,
        }
    }

    /// Returns the log id of the last included entry.
    #[must_use]
    pub fn last_included(&self) -> LogId {
        self.header.facts.last_included
    }
}

/// See [`super::SnapshotStore::coverage`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// The last included entry of the newest snapshot.
    pub newest: LogId,
    /// Length of the newest snapshot in bytes.
    pub newest_bytes: u64,
    /// The last included entry of the oldest snapshot; equal to `newest` if there is only one.
    pub oldest: LogId,
}

/// What [`super::SnapshotStore::open`] found besides usable archives, for the node's log and its
/// status.
#[derive(Clone, Debug, Default)]
pub struct SnapshotReport {
    /// Names of what a crash had left and `open` removed: temporary files, staging directories.
    pub removed: Vec<String>,
    /// Why archives cannot be used, one error for each. They were not changed.
    pub unusable: Vec<SnapshotError>,
    /// Partial files of received snapshots, which can be continued where they ended.
    pub partial: Vec<String>,
}
