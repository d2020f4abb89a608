//! The directory of a store: names, the list of archives, and how a finished file becomes a
//! snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use d_engine_core::{LogId, LogIndex, Term};
use d_engine_locks::Unpoisoned;

use super::error::io_error;
use super::offer::{is_partial, partial_name};
use super::{
    Health, Offer, SnapshotArchive, SnapshotError, SnapshotHeader, SnapshotInfo, SnapshotOptions,
    SnapshotReport,
};
use crate::fs::{FileKind, Fs, OpenMode};

/// The directory where a state machine writes; each attempt has a directory of its own below it.
pub(super) const STAGING_DIR: &str = "staging";
/// The directory where a snapshot is unpacked temporarily.
pub(super) const UNPACKED_DIR: &str = "unpacked";
/// The ending of an archive's name while it is written.
pub(super) const TEMPORARY_SUFFIX: &str = ".snap.tmp";
const PREFIX: &str = "snap-";
const SUFFIX: &str = ".snap";

/// The state shared by all handles on one store.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) dir: PathBuf,
    pub(super) options: SnapshotOptions,
    /// Newest first.
    list: Mutex<Vec<SnapshotInfo>>,
    busy: Mutex<Busy>,
    /// Why archives that existed when the store was opened are not in the list.
    pub(super) unusable: Vec<SnapshotError>,
    /// The names of those archives that are damaged.
    damaged: Mutex<Vec<String>>,
}

/// The work in progress.
#[derive(Debug, Default)]
pub(super) struct Busy {
    pub(super) staging: bool,
    /// Attempts whose future was dropped before its end. Their blocking work may continue,
    /// unnoticed, until the process ends.
    pub(super) given_up: usize,
    pub(super) receiving: bool,
    /// Snapshots that must not be pruned, one element for each [`super::Hold`].
    pub(super) held: Vec<LogId>,
}

impl Inner {
    pub(super) fn new(fs: Arc<dyn Fs>, dir: &Path, options: SnapshotOptions) -> Self {
        let (list, busy) = (Mutex::default(), Mutex::default());
        Self {
            fs,
            dir: dir.to_owned(),
            options,
            list,
            busy,
            unusable: Vec::new(),
            damaged: Mutex::default(),
        }
    }

    pub(super) fn list(&self) -> MutexGuard<'_, Vec<SnapshotInfo>> {
        self.list.lock().unpoisoned()
    }

    pub(super) fn busy(&self) -> MutexGuard<'_, Busy> {
        self.busy.lock().unpoisoned()
    }

    pub(super) fn damaged(&self) -> MutexGuard<'_, Vec<String>> {
        self.damaged.lock().unpoisoned()
    }

    pub(super) fn name_of(&self, last_included: LogId, suffix: &str) -> String {
        name_with(last_included, suffix)
    }

    pub(super) fn path_of(&self, last_included: LogId) -> PathBuf {
        self.dir.join(self.name_of(last_included, SUFFIX))
    }

    pub(super) fn sync_dir(&self) -> Result<(), SnapshotError> {
        self.fs.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))
    }

    pub(super) fn scan(&self) -> Result<SnapshotReport, SnapshotError> {
        let mut report = SnapshotReport::default();
        for name in self.fs.list(&self.dir).map_err(io_error("list", &self.dir))? {
            let path = self.dir.join(&name);
            if [STAGING_DIR, UNPACKED_DIR].contains(&name.as_str()) {
                if self.fs.kind(&path).map_err(io_error("read the type of", &path))?
                    == FileKind::Dir
                {
                    self.fs.remove_tree(&path).map_err(io_error("remove", &path))?;
                    report.removed.push(name);
                }
            } else if name.starts_with(PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
                self.fs.remove_file(&path).map_err(io_error("remove", &path))?;
                report.removed.push(name);
            } else if is_partial(&name) {
                report.partial.push(name);
            } else if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                match self.usable(&path) {
                    Ok(archive) => drop(self.register(&archive, path, Health::Unchecked)),
                    // This includes archives that cannot be read: a bad sector in one must not hide
                    // the others.
                    Err(error) => {
                        if matches!(error, SnapshotError::Damaged { .. }) {
                            self.damaged().push(name);
                        }
                        report.unusable.push(error);
                    }
                }
            } else if name.starts_with(FETCHED_NAME) {
                self.fs.remove_file(&path).map_err(io_error("remove", &path))?;
                report.removed.push(name);
            }
        }
        // A name that is visible does not yet survive a power loss: the process may have crashed
        // between the rename and the sync after it.
        self.sync_dir()?;
        Ok(report)
    }

    fn usable(&self, path: &Path) -> Result<SnapshotArchive, SnapshotError> {
        let archive = SnapshotArchive::open(&*self.fs, path)?;
        self.check_owner(archive.header(), path)?;
        if path != self.path_of(archive.last_included()) {
            return Err(SnapshotError::WrongOwner {
                path: path.to_owned(),
                what: "last included entry",
                found: archive.last_included().to_string(),
                expected: path
                    .file_name()
                    .map(|name| name.display().to_string())
                    .unwrap_or_default(),
            });
        }
        Ok(archive)
    }

    /// Checks that an archive is of this cluster, group and state machine, and of versions that
    /// this program reads.
    pub(super) fn check_owner(
        &self,
        header: &SnapshotHeader,
        path: &Path,
    ) -> Result<(), SnapshotError> {
        let wrong = |what, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            Err(SnapshotError::WrongOwner { path: path.to_owned(), what, found, expected })
        };
        let options = &self.options;
        if header.cluster != options.cluster {
            wrong("cluster", &header.cluster, &options.cluster)
        } else if header.group != options.group {
            wrong("group", &header.group, &options.group)
        } else if differ(&header.facts.machine, &options.machine) {
            wrong("state machine", &header.facts.machine, &options.machine)
        } else if header.facts.user_format > options.user_format {
            let (found, supported) = (header.facts.user_format, options.user_format);
            let what = "the state machine's data";
            Err(SnapshotError::UnsupportedFormat { path: path.to_owned(), what, found, supported })
        } else if header.facts.command_version > options.command_version_max {
            let (found, supported) = (header.facts.command_version, options.command_version_max);
            Err(SnapshotError::NewerCommands { path: path.to_owned(), found, supported })
        } else {
            Ok(())
        }
    }

    pub(super) fn check_space(&self, bytes: u64) -> Result<(), SnapshotError> {
        self.check_space_beyond(self.options.reserve_bytes, bytes)
    }

    pub(super) fn check_space_beyond(&self, reserve: u64, bytes: u64) -> Result<(), SnapshotError> {
        let needed = bytes.saturating_add(reserve);
        match self
            .fs
            .free_bytes(&self.dir)
            .map_err(io_error("read the free space of", &self.dir))?
        {
            Some(free) if free < needed => {
                Err(SnapshotError::NoSpace { path: self.dir.clone(), needed, reserve, free })
            }
            _ => Ok(()),
        }
    }

    /// Checks that there is space for what is offered. Removes what was received of other offers.
    pub(super) fn admit(&self, offer: &Offer, max_len: u64) -> Result<(), SnapshotError> {
        if offer.len > max_len {
            return Err(SnapshotError::TooLarge {
                path: self.path_of(offer.last_included),
                what: "the length of the offered snapshot in bytes (snapshots.max_bytes)",
                found: offer.len,
                limit: max_len,
            });
        }
        let mut there = 0;
        for name in self.fs.list(&self.dir).map_err(io_error("list", &self.dir))? {
            let path = self.dir.join(&name);
            if name == partial_name(offer) {
                let file =
                    self.fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
                there = file.len().map_err(io_error("read the length of", &path))?;
            } else if is_partial(&name) {
                self.fs.remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        self.check_space(offer.len.saturating_sub(there))
    }

    /// Gives a finished and synced file its name durably.
    pub(super) fn publish(&self, from: &Path, to: &Path) -> Result<(), SnapshotError> {
        self.fs.rename(from, to).map_err(io_error("rename", from))?;
        self.sync_dir().inspect_err(|_| {
            // The archive exists, but its name may not survive a power loss: nothing may rely on
            // it, and it must not be forgotten.
            if let Ok(archive) = self.usable(to) {
                self.register(&archive, to.to_owned(), Health::Unchecked);
            }
        })
    }

    /// Puts an archive into the list. Replaces one with the same last included entry.
    pub(super) fn register(
        &self,
        archive: &SnapshotArchive,
        path: PathBuf,
        health: Health,
    ) -> SnapshotInfo {
        let info = SnapshotInfo { path, ..SnapshotInfo::of(archive, health) };
        let name = self.name_of(info.last_included(), SUFFIX);
        self.damaged().retain(|damaged| *damaged != name);
        let mut list = self.list();
        list.retain(|known| known.last_included() != info.last_included());
        let at = list.partition_point(|known| known.last_included() > info.last_included());
        list.insert(at, info.clone());
        info
    }
}

fn name_with(last_included: LogId, suffix: &str) -> String {
    format!("{PREFIX}{}-{}{suffix}", last_included.term, last_included.index)
}

/// The name of the directory of snapshots inside of a node's data directory.
pub const SNAPSHOT_DIR: &str = "snapshots";

/// What the name of a snapshot begins with that a repair has not finished fetching. The next start
/// removes it.
pub const FETCHED_NAME: &str = "fetched";

/// Returns the name of the finished archive with this last included entry.
#[must_use]
pub fn archive_name(last_included: LogId) -> String {
    name_with(last_included, SUFFIX)
}

/// Whether a file name is that of a finished archive.
#[must_use]
pub fn is_archive(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Whether both names of state machines are known and differ.
fn differ(one: &str, other: &str) -> bool {
    !one.is_empty() && !other.is_empty() && one != other
}

/// Returns the last included entry in the name of an archive, or of one that is being received.
pub(super) fn last_included_in(name: &str) -> Option<LogId> {
    let (term, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let index = rest.split(['-', '.']).next()?;
    Some(LogId::new(Term::new(term.parse().ok()?), LogIndex::new(index.parse().ok()?)))
}
