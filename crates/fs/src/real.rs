//! The file system of the operating system.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dir_handles::{DirHandles, is_same};
use crate::fs::NoLock;
use crate::{FileKind, Fs, FsCounts, FsFile, FsLock, FsOp, LockAttempt, OpenMode};

/// The file system of the machine.
#[derive(Debug, Default)]
pub struct RealFs {
    counters: Arc<Counters>,
    directories: DirHandles,
}

#[derive(Debug, Default)]
struct Counters {
    by_kind: [AtomicU64; FsOp::ALL.len()],
}

impl Counters {
    fn add(&self, op: FsOp) {
        self.by_kind[op as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl RealFs {
    /// Returns the file system with all counters at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Fs for RealFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.counters.add(FsOp::CreateDir);
        DirBuilder::new().mode(0o700).create(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>> {
        self.counters.add(FsOp::Open);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let file = match mode {
            OpenMode::Existing => options.open(path)?,
            OpenMode::ReadOnly => File::open(path)?,
            OpenMode::CreateNew => options.create_new(true).open(path)?,
        };
        Ok(Arc::new(RealFile { file, counters: Arc::clone(&self.counters) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.counters.add(FsOp::Rename);
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.counters.add(FsOp::Remove);
        std::fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.counters.add(FsOp::List);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.counters.add(FsOp::SyncDir);
        self.directories.open(dir)?.sync_all()
    }

    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt> {
        self.counters.add(FsOp::Lock);
        let mut file = open_lock(path)?;
        match file.try_lock() {
            Ok(()) => {
                // A process that has just ended may have removed the file between the two calls;
                // then the next process locks another one.
                if !is_there(&file, path)? {
                    return Ok(LockAttempt::InUse { holder: JUST_ENDED.to_owned() });
                }
                file.set_len(0)?;
                file.write_all(format!("process {}\n", std::process::id()).as_bytes())?;
                Ok(LockAttempt::Held(Box::new(RealLock { _file: file })))
            }
            Err(TryLockError::WouldBlock) => Ok(LockAttempt::InUse { holder: holder_in(&file)? }),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn try_lock_dir(&self, dir: &Path) -> io::Result<LockAttempt> {
        self.counters.add(FsOp::Lock);
        let file = File::open(dir)?;
        match file.try_lock() {
            Ok(()) => Ok(LockAttempt::Held(Box::new(RealDirLock { file, path: dir.to_owned() }))),
            Err(TryLockError::WouldBlock) => {
                Ok(LockAttempt::InUse { holder: HOLDER_WITHOUT_FILE.to_owned() })
            }
            // Network file systems can lock only files.
            Err(TryLockError::Error(error)) if cannot_be_locked(&error) => {
                Ok(LockAttempt::Held(Box::new(NoLock)))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn lock_holder(&self, path: &Path) -> io::Result<Option<String>> {
        self.counters.add(FsOp::Lock);
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match file.try_lock_shared() {
            // Closing the file releases the lock.
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) if file.metadata()?.is_dir() => {
                Ok(Some(HOLDER_WITHOUT_FILE.to_owned()))
            }
            Err(TryLockError::WouldBlock) => holder_in(&file).map(Some),
            Err(TryLockError::Error(error)) if cannot_be_locked(&error) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        self.counters.add(FsOp::Kind);
        let found = std::fs::symlink_metadata(path)?.file_type();
        Ok(match (found.is_file(), found.is_dir()) {
            (true, _) => FileKind::File,
            (_, true) => FileKind::Dir,
            _ => FileKind::Other,
        })
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        self.counters.add(FsOp::RemoveTree);
        std::fs::remove_dir_all(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<Option<u64>> {
        self.counters.add(FsOp::FreeBytes);
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn counts(&self) -> FsCounts {
        let mut counts = FsCounts::default();
        for (count, counter) in counts.by_kind.iter_mut().zip(&self.counters.by_kind) {
            *count = counter.load(Ordering::Relaxed);
        }
        counts
    }
}

/// The holder of a lock file that was removed while it was being locked.
const JUST_ENDED: &str = "a process that has just ended";

fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether `file` is what has the name `path`.
fn is_there(file: &File, path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(is_same(&file.metadata()?, &found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The holder of a lock on a directory, if its lock file does not name it.
const HOLDER_WITHOUT_FILE: &str = "another process, whose lock file was removed";

/// Returns the process that a locked lock file names.
fn holder_in(file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.take(200).read_to_string(&mut text)?;
    let holder = text.trim();
    Ok(if holder.is_empty() { "another process" } else { holder }.to_owned())
}

/// The operating system releases the lock when the file is closed.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl FsLock for RealLock {}

/// As [`RealLock`], for a directory.
#[derive(Debug)]
struct RealDirLock {
    file: File,
    path: PathBuf,
}

impl FsLock for RealDirLock {
    fn is_held(&self) -> io::Result<bool> {
        is_there(&self.file, &self.path)
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    counters: Arc<Counters>,
}

impl FsFile for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.counters.add(FsOp::Read);
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.counters.add(FsOp::Write);
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counters.add(FsOp::SyncData);
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.counters.add(FsOp::SyncAll);
        self.file.sync_all()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.counters.add(FsOp::SetLen);
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.counters.add(FsOp::Len);
        self.file.metadata().map(|metadata| metadata.len())
    }
}

/// Whether the file system has no locks for directories. Network file systems lock files only: some
/// report that, others require a handle for writing (EBADF) or reject the call (EINVAL).
fn cannot_be_locked(error: &io::Error) -> bool {
    const EBADF: i32 = 9;
    const EINVAL: i32 = 22;
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(EBADF | EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ENOSYS, EOPNOTSUPP, EBADF and EINVAL say that there are no such locks; EIO, EINTR and ENOLCK
    /// are errors.
    #[test]
    fn only_a_file_system_without_locks_for_directories_counts_as_locked() {
        for (errno, expected) in
            [(38, true), (95, true), (9, true), (22, true), (5, false), (4, false), (37, false)]
        {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(cannot_be_locked(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_directory_that_is_locked_is_in_use_and_one_that_is_missing_an_error() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let LockAttempt::Held(lock) = fs.try_lock_dir(dir.path()).unwrap() else {
            panic!("nobody else has locked it");
        };
        assert!(lock.is_held().unwrap());
        assert!(matches!(fs.try_lock_dir(dir.path()).unwrap(), LockAttempt::InUse { .. }));
        let error = fs.try_lock_dir(&dir.path().join("missing")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_holder_of_a_lock_is_named_and_asking_neither_locks_nor_creates() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("LOCK");
        assert_eq!(fs.lock_holder(&path).unwrap(), None);
        assert!(!path.exists());
        let held = fs.try_lock(&path).unwrap();
        let holder = fs.lock_holder(&path).unwrap();
        assert_eq!(holder, Some(format!("process {}", std::process::id())));
        drop(held);
        assert_eq!(fs.lock_holder(&path).unwrap(), None);
        assert!(matches!(fs.try_lock(&path).unwrap(), LockAttempt::Held(_)));
        let held = fs.try_lock_dir(dir.path()).unwrap();
        assert!(fs.lock_holder(dir.path()).unwrap().is_some());
        drop(held);
        assert_eq!(fs.lock_holder(dir.path()).unwrap(), None);
    }
}
