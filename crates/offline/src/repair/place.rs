//! What is special of the exchange of directories in a repair: the snapshots move over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_fs::Fs;
use d_engine_storage::snapshot::SNAPSHOT_DIR;
use d_engine_storage::survey::Owner;
use d_engine_storage::{DirectoryLocks, REPAIRING, Retired, RetiredBy, StorageEngine};

use super::error::RepairError;
use crate::replacement::{Names, Pending, Replacement, ReplacementError, io};

/// What the name of the mended directory ends with until it is in its place.
pub const UNFINISHED_SUFFIX: &str = REPAIRING;
/// What follows the name of the damaged directory, before the time, once it is renamed.
pub const BEFORE_INFIX: &str = ".before-repair-";

/// Both directories.
pub(super) struct Place<'a>(Replacement<'a>);

impl<'a> std::ops::Deref for Place<'a> {
    type Target = Replacement<'a>;

    fn deref(&self) -> &Replacement<'a> {
        &self.0
    }
}

impl<'a> Place<'a> {
    pub(super) fn of(fs: &'a Arc<dyn Fs>, data_dir: &Path) -> Result<Self, RepairError> {
        let (suffix, infix) = (UNFINISHED_SUFFIX, BEFORE_INFIX);
        let names = Names { suffix, infix, marker: "repair.lock" };
        Ok(Self(Replacement::of(fs, data_dir, names)?))
    }

    /// Finishes what an earlier run has begun after it had retired the damaged directory: until
    /// then that run may be forgotten. Returns whose the directory is, and where the damaged one
    /// is.
    pub(super) fn finish_earlier(&self) -> Result<Option<(Owner, PathBuf)>, RepairError> {
        let engine = self.engine(&self.new);
        let (Ok(Some(new)), Ok(Some(repaired))) = (engine.owner(), engine.repaired()) else {
            return Ok(None);
        };
        let is_ours = |it: &Retired| {
            it.by == RetiredBy::Repair
                && (it.cluster, it.incarnation) == (new.cluster, new.incarnation)
                && it.at_ms == repaired.at_ms
        };
        let Some(Pending { old, retired }) = self.pending(is_ours)? else { return Ok(None) };
        // No node runs in either of them.
        let _old = self.lock_in(&old)?;
        let new_locks = self.lock_in(&self.new)?;
        let finished = match old == self.old {
            true => self.exchange(&retired),
            false => self.put_new().map(|()| old),
        };
        let moved = finished.map_err(|error| self.not_finished(error))?;
        self.remove_marker();
        drop(new_locks);
        let (cluster, node) = (new.cluster, new.node);
        Ok(Some((Owner { cluster, node, incarnation: new.incarnation }, moved)))
    }

    /// Retires the damaged directory, moves its snapshots, renames it away and puts the mended one
    /// into its place. Returns where the damaged one is now.
    pub(super) fn swap(
        &self,
        retired: &Retired,
        held: &DirectoryLocks,
    ) -> Result<PathBuf, RepairError> {
        let stored = self.engine(&self.old).retire(retired, held);
        let swapped = match stored {
            Ok(()) => self.exchange(retired),
            Err(error) => Err(ReplacementError::Storage(error)),
        };
        let moved = swapped.map_err(|error| self.not_finished(error))?;
        self.remove_marker();
        Ok(moved)
    }

    fn exchange(&self, retired: &Retired) -> Result<PathBuf, ReplacementError> {
        self.move_snapshots()?;
        let moved = self.move_old_away(retired.at_ms)?;
        self.put_new()?;
        Ok(moved)
    }

    /// They move whole, or were moved by an earlier run.
    fn move_snapshots(&self) -> Result<(), ReplacementError> {
        let (here, there) = (self.old.join(SNAPSHOT_DIR), self.new.join(SNAPSHOT_DIR));
        if self.fs.kind(&here).is_ok() && self.fs.kind(&there).is_err() {
            self.fs.rename(&here, &there).map_err(io("rename", &here))?;
        }
        self.sync(&self.new)?;
        self.sync(&self.old)
    }

    fn not_finished(&self, source: ReplacementError) -> RepairError {
        RepairError::NotFinished { new: self.new.clone(), source: Box::new(source.into()) }
    }
}
