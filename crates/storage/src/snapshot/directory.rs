//! The directory behind a store: names, what is listed, and what makes a finished file a snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use d_engine_core::{LogId, LogIndex, Term};

use super::error::io_error;
use super::receive::{is_partial, partial_name};
use super::{
    Health, Offer, SnapshotArchive, SnapshotError, SnapshotHeader, SnapshotInfo, SnapshotOptions,
    SnapshotReport,
};
use crate::fs::{FileKind, Fs, OpenMode};

/// Where a state machine writes: each attempt in a directory of its own below it.
pub(super) const STAGING_DIR: &str = "staging";
/// Where a snapshot is unpacked for a moment.
pub(super) const UNPACKED_DIR: &str = "unpacked";
/// How the name of an archive ends while it is written.
pub(super) const TEMPORARY_SUFFIX: &str = ".snap.tmp";
const PREFIX: &str = "snap-";
const SUFFIX: &str = ".snap";

/// What the handles on one store share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) dir: PathBuf,
    pub(super) options: SnapshotOptions,
    /// Newest first.
    list: Mutex<Vec<SnapshotInfo>>,
    busy: Mutex<Busy>,
    /// Why archives that were there at the opening are not in the list.
    pub(super) unusable: Vec<SnapshotError>,
    /// The names of those of them that are damaged.
    damaged: Mutex<Vec<String>>,
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Busy {
    pub(super) staging: bool,
    /// Attempts whose future was dropped before its end: blocking work of theirs may go on, unseen, until the process ends.
    pub(super) given_up: usize,
    pub(super) receiving: bool,
    /// What must stay, once for each who wants that.
    pub(super) held: Vec<LogId>,
}

impl Inner {
    pub(super) fn new(fs: Arc<dyn Fs>, dir: &Path, options: SnapshotOptions) -> Self {
        let (list, busy) = (Mutex::default(), Mutex::default());
        Self { fs, dir: dir.to_owned(), options, list, busy, unusable: Vec::new(), damaged: Mutex::default() }
    }

    pub(super) fn list(&self) -> MutexGuard<'_, Vec<SnapshotInfo>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn busy(&self) -> MutexGuard<'_, Busy> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn damaged(&self) -> MutexGuard<'_, Vec<String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name_of(&self, label: LogId, suffix: &str) -> String {
        format!("{PREFIX}{}-{}{suffix}", label.term, label.index)
    }

    pub(super) fn path_of(&self, label: LogId) -> PathBuf {
        self.dir.join(self.name_of(label, SUFFIX))
    }

    pub(super) fn sync_dir(&self) -> Result<(), SnapshotError> {
        self.fs.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))
    }

    pub(super) fn scan(&self) -> Result<SnapshotReport, SnapshotError> {
        let mut report = SnapshotReport::default();
        for name in self.fs.list(&self.dir).map_err(io_error("list", &self.dir))? {
            let path = self.dir.join(&name);
            if [STAGING_DIR, UNPACKED_DIR].contains(&name.as_str()) {
                if self.fs.kind(&path).map_err(io_error("look at", &path))? == FileKind::Dir {
                    self.fs.remove_tree(&path).map_err(io_error("remove", &path))?;
                    report.removed.push(name);
                }
            } else if name.starts_with(PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
                if !cfg!(any(mutant = "snapshot-stale-tmp", mutant = "snapshot-tmp-appended")) {
                    self.fs.remove_file(&path).map_err(io_error("remove", &path))?;
                    report.removed.push(name);
                }
            } else if is_partial(&name) {
                report.partial.push(name);
            } else if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                match self.usable(&path) {
                    Ok(archive) => drop(self.register(&archive, path, Health::Unchecked)),
                    // Also when it cannot be read: a bad sector in one must not hide the others.
                    Err(error) => {
                        if matches!(error, SnapshotError::Damaged { .. }) {
                            self.damaged().push(name);
                        }
                        report.unusable.push(error);
                    }
                }
            }
        }
        // A name that is seen is not yet a name that a power cut leaves: the process may have died
        // between the rename and the sync behind it.
        self.sync_dir()?;
        Ok(report)
    }

    fn usable(&self, path: &Path) -> Result<SnapshotArchive, SnapshotError> {
        let archive = SnapshotArchive::open(&*self.fs, path)?;
        self.check_owner(archive.header(), path)?;
        if path != self.path_of(archive.label()) {
            return Err(SnapshotError::WrongOwner {
                path: path.to_owned(),
                what: "label",
                found: archive.label().to_string(),
                expected: path.file_name().map(|name| name.display().to_string()).unwrap_or_default(),
            });
        }
        Ok(archive)
    }

    /// Whether an archive is of this cluster and group, and of versions that this program reads.
    pub(super) fn check_owner(&self, header: &SnapshotHeader, path: &Path) -> Result<(), SnapshotError> {
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
            Err(SnapshotError::NewerFormat { path: path.to_owned(), what, found, supported })
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
        match self.fs.free_bytes(&self.dir).map_err(io_error("look at the space of", &self.dir))? {
            Some(free) if free < needed => {
                Err(SnapshotError::NoSpace { path: self.dir.clone(), needed, reserve, free })
            }
            _ => Ok(()),
        }
    }

    /// Whether there is room for what is offered; removes what was received of other offers.
    pub(super) fn admit(&self, offer: &Offer, max_len: u64) -> Result<(), SnapshotError> {
        if offer.len > max_len {
            return Err(SnapshotError::TooLarge {
                path: self.path_of(offer.label),
                what: "the length of the offered snapshot in bytes (snapshots.max_bytes)",
                found: offer.len,
                limit: max_len,
            });
        }
        let mut there = 0;
        for name in self.fs.list(&self.dir).map_err(io_error("list", &self.dir))? {
            let path = self.dir.join(&name);
            if name == partial_name(offer) {
                let file = self.fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
                there = file.len().map_err(io_error("look at", &path))?;
            } else if is_partial(&name) {
                self.fs.remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        self.check_space(offer.len.saturating_sub(there))
    }

    /// Gives a finished and synced file its name, durably.
    pub(super) fn publish(&self, from: &Path, to: &Path) -> Result<(), SnapshotError> {
        self.fs.rename(from, to).map_err(io_error("rename", from))?;
        if cfg!(mutant = "snapshot-no-dir-sync") {
            return Ok(());
        }
        self.sync_dir().inspect_err(|_| {
            // It is there, but nobody knows for how long: nothing may rest on it, and it is not to be forgotten.
            if let Ok(archive) = self.usable(to) {
                self.register(&archive, to.to_owned(), Health::Unchecked);
            }
        })
    }

    /// Puts an archive into the list, in the place of one with the same label.
    pub(super) fn register(&self, archive: &SnapshotArchive, path: PathBuf, health: Health) -> SnapshotInfo {
        let info = SnapshotInfo { path, ..SnapshotInfo::of(archive, health) };
        let name = self.name_of(info.label(), SUFFIX);
        self.damaged().retain(|damaged| *damaged != name);
        let mut list = self.list();
        list.retain(|known| known.label() != info.label());
        let at = list.partition_point(|known| known.label() > info.label());
        list.insert(at, info.clone());
        info
    }
}

/// Whether two names of state machines are known and differ.
fn differ(one: &str, other: &str) -> bool {
    !one.is_empty() && !other.is_empty() && one != other
}

/// The label in the name of an archive, or of one on its way in.
pub(super) fn label_in(name: &str) -> Option<LogId> {
    let (term, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let index = rest.split(['-', '.']).next()?;
    Some(LogId::new(Term::new(term.parse().ok()?), LogIndex::new(index.parse().ok()?)))
}
