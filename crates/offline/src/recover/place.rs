//! What is special of the exchange of directories in a recovery: the old one is retired before it
//! is renamed, and names the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_fs::Fs;
use d_engine_storage::{DirectoryLocks, RECOVERING, Retired, RetiredBy, StorageEngine};

use super::error::{RecoverError, Unfit};
use crate::replacement::{Names, Pending, Replacement, ReplacementError};

/// What the name of the new directory ends with until it is in its place.
pub const UNFINISHED_SUFFIX: &str = RECOVERING;
/// What follows the name of the old directory, before the time, once it is renamed.
pub const BEFORE_INFIX: &str = ".before-recover-";

/// Both directories.
pub(super) struct Place<'a>(Replacement<'a>);

impl<'a> std::ops::Deref for Place<'a> {
    type Target = Replacement<'a>;

    fn deref(&self) -> &Replacement<'a> {
        &self.0
    }
}

impl<'a> Place<'a> {
    pub(super) fn of(fs: &'a Arc<dyn Fs>, data_dir: &Path) -> Result<Self, RecoverError> {
        let (suffix, infix) = (UNFINISHED_SUFFIX, BEFORE_INFIX);
        let names = Names { suffix, infix, marker: "recover.lock" };
        Ok(Self(Replacement::of(fs, data_dir, names)?))
    }

    pub(super) fn without_successor(&self) -> RecoverError {
        RecoverError::NoSuccessor { path: self.old.clone(), new: self.new.clone() }
    }

    /// Why a retired directory is not recovered. One that was renamed has a successor.
    pub(super) fn is_retired(&self, retired: &Retired) -> RecoverError {
        let is_its_own = Path::new(&retired.successor) == self.old;
        if is_its_own && retired.by == RetiredBy::Recover {
            return self.without_successor();
        }
        let reason = Unfit::Retired(Box::new(retired.clone()));
        RecoverError::Unfit { path: self.old.clone(), reason }
    }

    /// Finds what an earlier run has completed and not put into its place.
    pub(super) fn pending(&self) -> Result<Option<Pending>, RecoverError> {
        let Ok(Some(new)) = self.engine(&self.new).owner() else { return Ok(None) };
        let new = (new.cluster, new.incarnation);
        Ok(self.0.pending(|retired| (retired.cluster, retired.incarnation) == new)?)
    }

    /// No node runs in the old directory any more. The new one is complete.
    pub(super) fn retire(
        &self,
        retired: &Retired,
        held: &DirectoryLocks,
    ) -> Result<(), RecoverError> {
        let stored = self.engine(&self.old).retire(retired, held);
        stored.map_err(|error| self.not_finished(ReplacementError::Storage(error)))
    }

    /// Renames the old directory away and puts the new one into its place. Returns where the old
    /// one is now.
    pub(super) fn swap(&self, retired: &Retired) -> Result<PathBuf, RecoverError> {
        let moved = self.move_old_away(retired.at_ms).map_err(|error| self.not_finished(error))?;
        self.finish().map(|()| moved)
    }

    /// Puts the new directory where the old one was.
    pub(super) fn finish(&self) -> Result<(), RecoverError> {
        self.put_new().map_err(|error| match error {
            error @ ReplacementError::Occupied { .. } => error.into(),
            error => self.not_finished(error),
        })
    }

    fn not_finished(&self, source: ReplacementError) -> RecoverError {
        RecoverError::NotFinished { new: self.new.clone(), source: Box::new(source.into()) }
    }
}
