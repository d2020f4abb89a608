//! A directory that is built beside the data directory of a stopped node and then takes its place,
//! while the old one is kept under another name.
//!
//! The order on disk: the new directory is complete and durable; the old one is retired, and names
//! the new one; it is renamed away; the new one takes its name. After a crash, a retired directory
//! that names the new one is how the next run knows that the new one is complete and of today.
//! Between the renames no node creates a directory (`StorageError::Unfinished`).

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_fs::{FileKind, Fs, FsLock, LockAttempt, OpenMode};
use d_engine_storage::survey::Survey;
use d_engine_storage::{
    DirectoryLocks, FileStorageEngine, FileStorageOptions, MetaStore, Retired, StorageError,
    rfc3339,
};

use crate::inspect::InspectError;

/// What one tool calls its files.
pub(crate) struct Names {
    /// What the name of the new directory ends with until it is in its place.
    pub(crate) suffix: &'static str,
    /// What follows the name of the old directory, before the time, once it is renamed.
    pub(crate) infix: &'static str,
    /// Marks a directory as one that may be removed by the next run.
    pub(crate) marker: &'static str,
}

/// Why a step failed.
#[derive(Debug)]
pub(crate) enum ReplacementError {
    Inspect(InspectError),
    Storage(StorageError),
    Occupied { path: PathBuf, what: &'static str },
    NoSpace { path: PathBuf, free: u64, needed: u64 },
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

/// A complete new directory whose old one is retired, and which is not in its place yet.
pub(crate) struct Pending {
    /// Where the old one is.
    pub(crate) old: PathBuf,
    pub(crate) retired: Retired,
}

/// Both directories and their parent.
pub(crate) struct Replacement<'a> {
    pub(crate) fs: &'a Arc<dyn Fs>,
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
    pub(crate) parent: PathBuf,
    pub(crate) name: OsString,
    names: Names,
}

impl<'a> Replacement<'a> {
    pub(crate) fn of(
        fs: &'a Arc<dyn Fs>,
        data_dir: &Path,
        names: Names,
    ) -> Result<Self, ReplacementError> {
        let old = std::path::absolute(data_dir).map_err(io("resolve", data_dir))?;
        // Without a slash at the end, with which a symbolic link could not be renamed.
        let old: PathBuf = old.components().collect();
        let (Some(parent), Some(name)) = (old.parent(), old.file_name()) else {
            let what = "is the root of the file system, which cannot be renamed";
            return Err(ReplacementError::Occupied { path: old, what });
        };
        let mut unfinished = name.to_owned();
        unfinished.push(names.suffix);
        let (parent, name) = (parent.to_owned(), name.to_owned());
        let new = parent.join(unfinished);
        Ok(Self { fs, old, new, parent, name, names })
    }

    pub(crate) fn engine(&self, dir: &Path) -> FileStorageEngine {
        FileStorageEngine::new(dir, FileStorageOptions::default(), Arc::clone(self.fs))
    }

    /// Takes the locks of the node.
    pub(crate) fn lock_old(&self) -> Result<DirectoryLocks, ReplacementError> {
        let names = match self.fs.list(&self.old) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io("list", &self.old)(error));
            }
            listed => listed.unwrap_or_default(),
        };
        // No lock file is left in a directory that is none of a node.
        if !names.iter().any(|name| name.contains(".meta") || name == "log") {
            let path = self.old.clone();
            return Err(ReplacementError::Inspect(InspectError::NotADirectory { path }));
        }
        self.lock_in(&self.old)
    }

    pub(crate) fn lock_in(&self, dir: &Path) -> Result<DirectoryLocks, ReplacementError> {
        self.engine(dir).lock_stopped().map_err(ReplacementError::Storage)
    }

    pub(crate) fn check_space(&self, needed: u64) -> Result<(), ReplacementError> {
        let free = self.fs.free_bytes(&self.parent).map_err(io("look at", &self.parent))?;
        match free.filter(|free| *free < needed) {
            Some(free) => {
                Err(ReplacementError::NoSpace { path: self.parent.clone(), free, needed })
            }
            None => Ok(()),
        }
    }

    /// Creates the empty new directory. What an earlier run has left there is removed.
    pub(crate) fn begin(&self) -> Result<Box<dyn FsLock>, ReplacementError> {
        let (fs, dir) = (self.fs, &self.new);
        if fs.kind(dir).is_ok() {
            let found = fs.list(dir).map_err(io("list", dir))?;
            if !found.is_empty() && !found.iter().any(|name| name == self.names.marker) {
                let what = "is where the new directory is to be built, and was not made by this \
                            command";
                return Err(ReplacementError::Occupied { path: dir.clone(), what });
            }
            self.clear_new()?;
        }
        fs.create_dir(dir).map_err(io("create", dir))?;
        let marker = dir.join(self.names.marker);
        fs.open(&marker, OpenMode::CreateNew).map_err(io("create", &marker))?;
        self.sync(dir)?;
        self.sync(&self.parent)?;
        match fs.try_lock(&marker).map_err(io("lock", &marker))? {
            LockAttempt::Held(lock) => Ok(lock),
            LockAttempt::InUse { holder } => {
                Err(ReplacementError::Storage(StorageError::InUse { path: dir.clone(), holder }))
            }
        }
    }

    /// Removes the new directory, the marker last: without it, the next run would leave the rest.
    pub(crate) fn clear_new(&self) -> Result<(), ReplacementError> {
        let (fs, dir, marker) = (self.fs, &self.new, self.names.marker);
        for name in fs.list(dir).map_err(io("list", dir))?.iter().filter(|name| *name != marker) {
            let path = dir.join(name);
            let removed = match fs.kind(&path).map_err(io("look at", &path))? {
                FileKind::Dir => fs.remove_tree(&path),
                _ => fs.remove_file(&path),
            };
            removed.map_err(io("remove", &path))?;
        }
        self.sync(dir)?;
        fs.remove_tree(dir).map_err(io("remove", dir))
    }

    /// Finds what an earlier run has completed and not put into its place: a retired directory that
    /// names the new one. A new directory that none names is not known to be complete.
    pub(crate) fn pending(
        &self,
        names_new: impl Fn(&Retired) -> bool,
    ) -> Result<Option<Pending>, ReplacementError> {
        for old in std::iter::once(self.old.clone()).chain(self.moved_away()?) {
            // A record that does not verify is that of another run, or is found again.
            let retired = self.engine(&old).retired().unwrap_or_default();
            if let Some(retired) = retired.filter(&names_new) {
                return Ok(Some(Pending { old, retired }));
            }
        }
        Ok(None)
    }

    /// Renames the old directory away, to a name that is not taken, as of a run at this time.
    /// Returns where it is now.
    pub(crate) fn move_old_away(&self, at_ms: u64) -> Result<PathBuf, ReplacementError> {
        let before = self.free_name(at_ms);
        let operation = "rename (a mount point cannot be renamed: mount its parent)";
        self.fs.rename(&self.old, &before).map_err(io(operation, &self.old))?;
        // Otherwise a power loss could keep the second rename and lose the first.
        self.sync(&self.parent)?;
        Ok(before)
    }

    /// Puts the new directory where the old one was.
    pub(crate) fn put_new(&self) -> Result<(), ReplacementError> {
        // An empty directory, such as a supervisor may create, is replaced.
        let found = match self.fs.list(&self.old) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(io("list", &self.old))?,
        };
        if !found.is_empty() {
            let what = "was created while the new directory was to be put there";
            return Err(ReplacementError::Occupied { path: self.old.clone(), what });
        }
        self.fs.rename(&self.new, &self.old).map_err(io("rename", &self.new))?;
        self.sync(&self.parent)
    }

    /// Removes the marker from the directory that is in its place. A node does not mind it.
    pub(crate) fn remove_marker(&self) {
        self.fs.remove_file(&self.old.join(self.names.marker)).ok();
    }

    pub(crate) fn sync(&self, dir: &Path) -> Result<(), ReplacementError> {
        self.fs.sync_dir(dir).map_err(io("sync", dir))
    }

    /// The directories to which earlier runs have renamed an old one.
    pub(crate) fn moved_away(&self) -> Result<Vec<PathBuf>, ReplacementError> {
        let mut prefix = self.name.to_string_lossy().into_owned();
        prefix.push_str(self.names.infix);
        let names = self.fs.list(&self.parent).map_err(io("list", &self.parent))?;
        let moved = names.iter().filter(|name| name.starts_with(&prefix));
        Ok(moved.map(|name| self.parent.join(name)).collect())
    }

    fn free_name(&self, at_ms: u64) -> PathBuf {
        let time = rfc3339(at_ms);
        let seconds = time.split('.').next().unwrap_or_default();
        let mut name = self.name.clone();
        name.push(self.names.infix);
        name.push(seconds.replace(['-', ':'], ""));
        name.push("Z");
        let mut path = self.parent.join(&name);
        let mut number = 2;
        while self.fs.kind(&path).is_ok() {
            let mut numbered = name.clone();
            numbered.push(format!("-{number}"));
            path = self.parent.join(numbered);
            number += 1;
        }
        path
    }
}

/// Copies what a node has noted about its state machine: which entries it has skipped, and where it
/// was halted. The entries keep their terms and indexes.
pub(crate) fn copy_records(survey: &Survey, to: &mut dyn MetaStore) -> Result<(), StorageError> {
    survey.other_records().iter().try_for_each(|(name, record)| to.store(name, record))
}

/// Returns a function that adds the operation and the path to an I/O error.
pub(crate) fn io(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> ReplacementError {
    let path = path.to_owned();
    move |source| ReplacementError::Io { operation, path, source }
}
