//! What a node says about its snapshots.

use std::sync::atomic::Ordering;
use std::time::Duration;

use d_engine_replica::LogId;
use d_engine_storage::LogStats;
use d_engine_storage::snapshot::{Health, SnapshotInfo};

use crate::raft_thread::Shared;
use crate::{ReceivingSnapshot, SendingSnapshot};

/// What a node says about its snapshots and the log that they make shorter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// The last entry in the newest snapshot.
    pub newest: Option<LogId>,
    /// Bytes of the newest snapshot.
    pub newest_bytes: u64,
    /// How many snapshots there are.
    pub count: usize,
    /// Bytes of all of them.
    pub disk_bytes: u64,
    /// Whether one is being built, and how many bytes of it are there.
    pub building: Option<u64>,
    /// How many were built since the node started.
    pub built: u64,
    /// How many were given up since the node started.
    pub failed: u64,
    /// Why the last one was, if none has been built since.
    pub last_failure: Option<String>,
    /// For how long the newest one has held apply up, or the one that is being built does now.
    pub pause: Duration,
    /// Bytes that the log has grown by since the newest one, or since the node started.
    pub bytes_since: u64,
    /// Bytes that the log takes up on disk at most.
    pub log_bytes: u64,
    /// An alarm: the log behind the newest snapshot is larger than `snapshots.max_log_bytes`. Snapshots fail, or the policy takes none.
    pub overdue: bool,
    /// Snapshots on their way to followers.
    pub sending: Vec<SendingSnapshot>,
    /// A snapshot on its way to this node.
    pub receiving: Option<ReceivingSnapshot>,
    /// What an operator must look at, each with the next step.
    pub alarms: Vec<String>,
}

impl SnapshotStatus {
    pub(crate) fn of(shared: &Shared, log: &LogStats) -> Self {
        let list = shared.snapshots.list();
        let (sending, receiving) = shared.transfers.status();
        let building = &shared.building;
        let failures = building.failures();
        let (pauses, paused) = building.pauses();
        let is_building = building.is_building.load(Ordering::Relaxed);
        let packed = if is_building { building.packed.load(Ordering::Relaxed) } else { 0 };
        let bytes_since = building.log_bytes.load(Ordering::Relaxed);
        // With two of them the log reaches back to the older one; what lies behind the newest must not grow.
        let behind_newest = match list.len() {
            0 | 1 => log.log_bytes,
            _ => bytes_since.min(log.log_bytes),
        };
        Self {
            newest: list.first().map(|info| info.label().into()),
            newest_bytes: list.first().map_or(0, |info| info.len),
            count: list.len(),
            disk_bytes: list.iter().map(|info| info.len).sum(),
            building: (is_building || pauses.is_some()).then_some(packed),
            built: building.built.load(Ordering::Relaxed),
            failed: failures.count,
            last_failure: failures.last,
            pause: pauses.unwrap_or(paused),
            bytes_since,
            log_bytes: log.log_bytes,
            overdue: behind_newest > shared.max_log_bytes,
            sending,
            receiving,
            alarms: too_long(list.first().filter(|info| !shared.snapshots.may_travel(info)))
                .into_iter()
                .chain(damaged(&list))
                .collect(),
        }
    }
}

/// No node takes the newest snapshot.
fn too_long(newest: Option<&SnapshotInfo>) -> Option<String> {
    newest.map(|info| {
        format!(
            "the newest snapshot, {}, has {} bytes, which is more than snapshots.max_bytes: no node takes it, and the log is \
             not purged behind it; raise snapshots.max_bytes on every node and restart them",
            LogId::from(info.label()),
            info.len
        )
    })
}

/// Archives that no longer verify, and that no whole one has taken the place of yet.
fn damaged(list: &[SnapshotInfo]) -> impl Iterator<Item = String> + '_ {
    list.iter().filter(|info| info.health == Health::Damaged).map(|info| {
        format!(
            "the snapshot {} is damaged; it is removed once another one is whole: take one (d-engine snapshot) if this stays, and \
             look at this disk",
            info.path.display()
        )
    })
}
