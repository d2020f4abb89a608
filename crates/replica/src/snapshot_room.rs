//! Whether there is still room for the files of a snapshot that is being written.

use std::cell::Cell;

use d_engine_storage::snapshot::SnapshotStore;

use crate::Result;

/// Bytes written between two looks at the free space.
const LOOK_EVERY_BYTES: u64 = 4 << 20;

/// What a [`SnapshotView`](crate::SnapshotView) tells how much it has written, so that a snapshot that does not fit is given
/// up while there is still room for the log.
#[derive(Debug)]
pub struct SnapshotRoom<'a> {
    store: Option<&'a SnapshotStore>,
    unseen: Cell<u64>,
}

impl<'a> SnapshotRoom<'a> {
    /// The room beside the snapshots in `store`.
    #[must_use]
    pub fn beside(store: &'a SnapshotStore) -> Self {
        Self { store: Some(store), unseen: Cell::new(0) }
    }
}

impl SnapshotRoom<'_> {
    /// Room without end: nobody looks.
    #[must_use]
    pub fn unlimited() -> SnapshotRoom<'static> {
        SnapshotRoom { store: None, unseen: Cell::new(0) }
    }

    /// So many bytes more were written, or are about to be. Every few MiB this looks at the free space.
    ///
    /// # Errors
    /// Less is free than snapshots leave to the log (`snapshots.reserve_bytes`): end with this error; what was
    /// written is removed.
    pub fn written(&self, bytes: u64) -> Result<()> {
        let unseen = self.unseen.get().saturating_add(bytes);
        self.unseen.set(unseen);
        match self.store {
            Some(store) if unseen >= LOOK_EVERY_BYTES => {
                self.unseen.set(0);
                Ok(store.has_room_for(0)?)
            }
            _ => Ok(()),
        }
    }
}
