//! The status of a node's snapshots.

use std::sync::atomic::Ordering;

use d_engine_api::message::EntryId;
use d_engine_api::{SendingSnapshot, SnapshotStatus};
use d_engine_core::LogId;
use d_engine_storage::LogStats;
use d_engine_storage::snapshot::{Health, SnapshotInfo};

use crate::threads::shared::Shared;

/// The position of an entry, as a message carries it.
pub(crate) fn entry_id(id: LogId) -> EntryId {
    EntryId { term: id.term.get(), index: id.index.get() }
}

/// Returns the status of the node's snapshots.
pub(crate) fn snapshot_status(shared: &Shared, log: &LogStats) -> SnapshotStatus {
    let list = shared.snapshots.list();
    let (sending, receiving) = shared.exchange.status();
    let building = &shared.building;
    let failures = building.failures();
    let (pauses, paused) = building.pauses();
    let is_building = building.is_building.load(Ordering::Relaxed);
    let packed = if is_building { building.packed.load(Ordering::Relaxed) } else { 0 };
    let bytes_since = building.log_bytes.load(Ordering::Relaxed);
    // With two snapshots the log reaches back to the older one. The alarm is about the part after
    // the newest.
    let behind_newest = match list.len() {
        0 | 1 => log.log_bytes,
        _ => bytes_since.min(log.log_bytes),
    };
    let mut status = SnapshotStatus::default();
    status.newest = list.first().map(|info| entry_id(info.last_included()));
    status.newest_bytes = list.first().map_or(0, |info| info.len);
    status.count = list.len() as u64;
    status.disk_bytes = list.iter().map(|info| info.len).sum();
    status.building = (is_building || pauses.is_some()).then_some(packed);
    status.built = building.built.load(Ordering::Relaxed);
    status.failed = failures.count;
    status.last_failure = failures.last;
    status.pause = pauses.unwrap_or(paused);
    status.bytes_since = bytes_since;
    status.overdue = behind_newest > shared.max_log_bytes;
    status.sending = sending.into_iter().map(sending_status).collect();
    status.receiving = receiving;
    status
}

fn sending_status(sending: d_engine_replica::SendingSnapshot) -> SendingSnapshot {
    let mut status = SendingSnapshot::default();
    status.to = sending.to;
    status.index = Some(sending.last_included).filter(|index| *index > 0);
    status.confirmed = sending.confirmed;
    status.bytes = sending.len;
    status.resumed_at = sending.resumed_at;
    status.is_installing = sending.is_installing;
    status.failures = sending.failures;
    status.last_failure = sending.last_failure;
    status
}

/// Returns what an operator must attend to, each with the next step.
pub(crate) fn snapshot_alarms(shared: &Shared) -> Vec<String> {
    let list = shared.snapshots.list();
    let newest = list.first();
    too_long(newest.filter(|info| !shared.snapshots.may_travel(info)))
        .into_iter()
        .chain(damaged(&list))
        .collect()
}

/// The alarm for a newest snapshot that no other node accepts.
fn too_long(newest: Option<&SnapshotInfo>) -> Option<String> {
    newest.map(|info| {
        format!(
            "the newest snapshot, {}, has {} bytes, more than snapshots.max_bytes: no other node \
             accepts it, and the log is not purged up to it; raise snapshots.max_bytes on every \
             node and restart them",
            info.last_included(),
            info.len
        )
    })
}

/// The alarms for damaged archives that no intact one has replaced yet.
fn damaged(list: &[SnapshotInfo]) -> impl Iterator<Item = String> + '_ {
    list.iter().filter(|info| info.health == Health::Damaged).map(|info| {
        format!(
            "the snapshot {} is damaged; it is removed once another one is intact: if this alarm \
             stays, take one (d-engine snapshot), and check this disk",
            info.path.display()
        )
    })
}
