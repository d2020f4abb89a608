//! What is special of the exchange of directories in a repair: the snapshots move over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_fs::Fs;
use d_engine_storage::StorageEngine;
use d_engine_storage::snapshot::SNAPSHOT_DIR;
use d_engine_storage::survey::Owner;

use super::error::RepairError;
use crate::replacement::{Names, Replacement, ReplacementError, io};

/// What the name of the mended directory ends with until it is in its place.
pub const UNFINISHED_SUFFIX: &str = ".repairing";
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

    /// Finishes what an earlier run has begun after the damaged directory was renamed away: until
    /// then that run may be forgotten, and afterwards nothing else can be in its place. Returns
    /// whose the directory is, and where the damaged one is.
    pub(super) fn finish_earlier(&self) -> Result<Option<(Owner, PathBuf)>, RepairError> {
        if self.fs.kind(&self.old).is_ok() {
            return Ok(None);
        }
        let engine = self.engine(&self.new);
        let (Ok(Some(identity)), Ok(Some(_))) = (engine.owner(), engine.repaired()) else {
            return Ok(None);
        };
        // The newest one: their names end with the time.
        let Some(moved) = self.moved_away()?.pop() else { return Ok(None) };
        self.put_new().map_err(|error| self.not_finished(error))?;
        self.remove_marker();
        let (cluster, node) = (identity.cluster, identity.node);
        Ok(Some((Owner { cluster, node, incarnation: identity.incarnation }, moved)))
    }

    /// Undoes the move of an earlier run. A start of the node that was refused meanwhile may have
    /// created an empty directory in their place.
    pub(super) fn put_snapshots_back(&self) -> Result<(), RepairError> {
        let (here, there) = (self.old.join(SNAPSHOT_DIR), self.new.join(SNAPSHOT_DIR));
        if self.fs.kind(&there).is_err() {
            return Ok(());
        }
        if self.fs.kind(&here).is_err() {
            self.fs.create_dir(&here).map_err(io("create", &here))?;
            self.sync(&self.old)?;
        }
        for name in self.fs.list(&there).map_err(io("list", &there))? {
            let (from, to) = (there.join(&name), here.join(&name));
            if self.fs.kind(&to).is_err() {
                self.fs.rename(&from, &to).map_err(io("rename", &from))?;
            }
        }
        self.sync(&here)?;
        Ok(self.sync(&there)?)
    }

    /// Moves the snapshots, renames the damaged directory away and puts the mended one into its
    /// place. Returns where the damaged one is now.
    pub(super) fn swap(&self, at_ms: u64) -> Result<PathBuf, RepairError> {
        let swapped = self.move_snapshots().and_then(|()| self.move_old_away(at_ms));
        let swapped = swapped.and_then(|moved| self.put_new().map(|()| moved));
        let moved = swapped.map_err(|error| self.not_finished(error))?;
        self.remove_marker();
        Ok(moved)
    }

    fn move_snapshots(&self) -> Result<(), ReplacementError> {
        let (here, there) = (self.old.join(SNAPSHOT_DIR), self.new.join(SNAPSHOT_DIR));
        if self.fs.kind(&here).is_err() {
            return Ok(());
        }
        self.fs.rename(&here, &there).map_err(io("rename", &here))?;
        self.sync(&self.new)?;
        self.sync(&self.old)
    }

    fn not_finished(&self, source: ReplacementError) -> RepairError {
        RepairError::NotFinished { new: self.new.clone(), source: Box::new(source.into()) }
    }
}
