//! Which archive is sent to a follower.

use std::ops::ControlFlow;

use d_engine_core::LogId;
use d_engine_storage::snapshot::{
    Health, Pace, SnapshotArchive, SnapshotError, SnapshotInfo, SnapshotStore,
};

use crate::event::SnapshotSendRequest;

/// The archives that are preferred to the newest one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ArchivePreference {
    /// The archive of the attempt before, which the follower can resume.
    pub resume: Option<LogId>,
    /// The archive that the state machine was last informed of. It is not pruned meanwhile.
    pub recorded: Option<LogId>,
}

/// The result of [`choose_archive`].
#[derive(Debug)]
pub enum ArchiveChoice {
    /// Send this archive. It is verified.
    Send(SnapshotArchive),
    /// No intact archive reaches the first entry of the log.
    NoneUsable,
    /// An archive would help the follower, but no node accepts one of this length in bytes.
    TooLong(u64),
    /// [`Pace`] stopped the work.
    Aborted,
}

/// Chooses the archive to send: first that of the attempt before, so that the follower can resume;
/// then the one that the state machine knows of; then the newest intact one. A damaged archive is
/// never sent: one that this process has neither written nor verified is verified first.
///
/// Calls `unusable` for each archive that would have been sent but cannot be read or is damaged.
pub fn choose_archive(
    store: &SnapshotStore,
    order: SnapshotSendRequest,
    preference: ArchivePreference,
    pace: &mut dyn Pace,
    mut unusable: impl FnMut(SnapshotError),
) -> ArchiveChoice {
    let mut too_long = None;
    for info in candidates(store.list(), order, preference) {
        if !store.may_travel(&info) {
            too_long = Some(info.len);
            continue;
        }
        match open_verified(store, &info, pace) {
            Ok(archive) => return ArchiveChoice::Send(archive),
            Err(SnapshotError::Aborted) => return ArchiveChoice::Aborted,
            Err(error) => unusable(error),
        }
        if pace.step(0) == ControlFlow::Break(()) {
            return ArchiveChoice::Aborted;
        }
    }
    // Another snapshot of this state would be as long.
    too_long.map_or(ArchiveChoice::NoneUsable, ArchiveChoice::TooLong)
}

/// The archives that would help the follower, the preferred ones first.
fn candidates(
    mut list: Vec<SnapshotInfo>,
    order: SnapshotSendRequest,
    preference: ArchivePreference,
) -> Vec<SnapshotInfo> {
    list.retain(|info| info.last_included().index >= order.at_least);
    // Stable: archives of equal rank remain in the order of the list, the newest first.
    list.sort_by_key(|info| {
        let last_included = Some(info.last_included());
        (last_included != preference.resume, last_included != preference.recorded)
    });
    list
}

fn open_verified(
    store: &SnapshotStore,
    info: &SnapshotInfo,
    pace: &mut dyn Pace,
) -> Result<SnapshotArchive, SnapshotError> {
    if info.health != Health::Whole {
        store.verify(info.last_included(), pace)?;
    }
    store.open_archive(info.last_included())
}

#[cfg(test)]
mod tests;
