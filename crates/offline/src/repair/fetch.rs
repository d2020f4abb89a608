//! A snapshot of another node, for a directory whose log begins after the end of every intact one.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{GroupId, LogId, LogIndex};
use d_engine_fs::{Fs, OpenMode, ensure_dir};
use d_engine_storage::snapshot::{
    FETCHED_NAME, SNAPSHOT_DIR, SnapshotArchive, SnapshotError, archive_name,
};
use d_engine_storage::survey::Owner;

use super::error::{Cause, RepairError};
use crate::inspect::{Directory, SnapshotFile};
use crate::replacement::io;

/// A snapshot that a directory lacks: its log begins after the last entry of every intact one, so
/// that a state machine without files of its own cannot be rebuilt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingSnapshot {
    /// Whose the directory is. The snapshot must be of the same cluster.
    pub owner: Owner,
    /// The Raft group of the snapshot.
    pub group: GroupId,
    /// The snapshot must end at this entry or at a later one.
    pub base: LogIndex,
    /// The file to write, in a directory that exists.
    /// [`BackupFile`](crate::backup::BackupFile) writes it durably, and continues what an earlier
    /// run has received.
    pub file: PathBuf,
}

impl MissingSnapshot {
    /// Returns the snapshot that the directory lacks; `None` if it lacks none, or if its records
    /// cannot be read.
    pub(super) fn of(directory: &Directory) -> Option<Self> {
        let survey = directory.survey();
        let base = directory.log().base?.index;
        let intact = directory.snapshots().iter().find(|file| file.state.may_be_used());
        let newest = intact.and_then(SnapshotFile::id).unwrap_or_default();
        if base <= newest.index {
            return None;
        }
        let file = survey.dir().join(SNAPSHOT_DIR).join(FETCHED_NAME);
        Some(Self { owner: survey.owner()?, group: survey.group(), base, file })
    }

    pub(super) fn cause(&self) -> Cause {
        Cause::NoSnapshot { base: self.base.get() }
    }

    /// Puts the snapshot into its place. An earlier run may have received all of it already;
    /// otherwise, or if that one does not fit, `fetch` writes the file.
    pub(super) fn get(
        &self,
        fs: &Arc<dyn Fs>,
        fetch: Fetch<'_>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<LogId, RepairError> {
        let dir = self.file.parent().unwrap_or(&self.file);
        ensure_dir(&**fs, dir).map_err(io("create", dir))?;
        if fs.kind(&self.file).is_ok() {
            match self.put(fs, dir, progress) {
                Err(
                    RepairError::Snapshot(SnapshotError::Damaged { .. })
                    | RepairError::WrongSnapshot { .. },
                ) => fs.remove_file(&self.file).map_err(io("remove", &self.file))?,
                put => return put,
            }
        }
        if fetch(self).is_break() {
            return Err(RepairError::Stopped);
        }
        self.put(fs, dir, progress).inspect_err(|error| {
            if matches!(error, RepairError::WrongSnapshot { .. }) {
                // If it cannot be removed now, the next run removes it.
                fs.remove_file(&self.file).ok();
            }
        })
    }

    /// Verifies the file and gives it its name, which may be that of a damaged snapshot.
    fn put(
        &self,
        fs: &Arc<dyn Fs>,
        dir: &Path,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<LogId, RepairError> {
        let archive = SnapshotArchive::open_file(&**fs, &self.file)?;
        archive.verify(&mut |bytes| progress(bytes)).map_err(|error| match error {
            SnapshotError::Aborted => RepairError::Stopped,
            error => error.into(),
        })?;
        let header = archive.header();
        let last_included = header.facts.last_included;
        let wrong = |what: String| Err(RepairError::WrongSnapshot { what });
        if header.cluster != self.owner.cluster {
            return wrong(format!(
                "is of cluster {}, and the directory of cluster {}",
                header.cluster, self.owner.cluster
            ));
        }
        if header.group != self.group {
            let (found, own) = (header.group.get(), self.group.get());
            return wrong(format!("is of Raft group {found}, and the directory of group {own}"));
        }
        if last_included.index < self.base {
            return wrong(format!(
                "ends at entry {}, and the log of the directory begins after entry {}",
                last_included.index, self.base
            ));
        }
        let file = fs.open(&self.file, OpenMode::Existing).map_err(io("open", &self.file))?;
        file.sync_all().map_err(io("sync", &self.file))?;
        let path = dir.join(archive_name(last_included));
        fs.rename(&self.file, &path).map_err(io("rename", &self.file))?;
        fs.sync_dir(dir).map_err(io("sync", dir))?;
        Ok(last_included)
    }
}

/// Fetches a snapshot from another node into [`MissingSnapshot::file`], or ends the work.
pub type Fetch<'a> = &'a mut dyn FnMut(&MissingSnapshot) -> ControlFlow<()>;
