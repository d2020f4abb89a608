//! Every file operation of d-engine passes [`Fs`]: it is counted there and can be failed there,
//! whatever system call does it.

use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dir_handles::{DirHandles, is_same};

/// The kinds of file operations, as they are counted and failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(usize)]
pub enum FsOp {
    /// [`Fs::create_dir`].
    CreateDir,
    /// [`Fs::open`].
    Open,
    /// [`Fs::rename`].
    Rename,
    /// [`Fs::remove_file`].
    Remove,
    /// [`Fs::list`].
    List,
    /// [`Fs::sync_dir`].
    SyncDir,
    /// [`Fs::try_lock`].
    Lock,
    /// [`FsFile::read_at`].
    Read,
    /// [`FsFile::write_at`].
    Write,
    /// [`FsFile::sync_data`].
    SyncData,
    /// [`FsFile::sync_all`].
    SyncAll,
    /// [`FsFile::set_len`].
    SetLen,
    /// [`FsFile::len`].
    Len,
    /// [`Fs::kind`].
    Kind,
    /// [`Fs::remove_tree`].
    RemoveTree,
    /// [`Fs::free_bytes`].
    FreeBytes,
}

impl FsOp {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::CreateDir,
        Self::Open,
        Self::Rename,
        Self::Remove,
        Self::List,
        Self::SyncDir,
        Self::Lock,
        Self::Read,
        Self::Write,
        Self::SyncData,
        Self::SyncAll,
        Self::SetLen,
        Self::Len,
        Self::Kind,
        Self::RemoveTree,
        Self::FreeBytes,
    ];
}

/// How many operations of each kind were tried, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsCounts {
    by_kind: [u64; FsOp::ALL.len()],
}

impl FsCounts {
    /// Operations of one kind.
    #[must_use]
    pub fn of(&self, op: FsOp) -> u64 {
        self.by_kind[op as usize]
    }

    /// Operations of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_kind.iter().sum()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn add(&mut self, op: FsOp) {
        self.by_kind[op as usize] += 1;
    }
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// The file must exist; nothing is changed by opening it. For reading and writing.
    Existing,
    /// As [`OpenMode::Existing`], for reading alone.
    ReadOnly,
    /// The file must not exist; it is created with access for its owner alone (0600).
    CreateNew,
}

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: a link, a socket, a device.
    Other,
}

/// What became of an attempt to lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// The lock is held until the guard is dropped, or the process ends.
    Held(Box<dyn FsLock>),
    /// Somebody else holds it.
    InUse {
        /// Who, as far as the lock file tells.
        holder: String,
    },
}

/// Holds a lock; dropping it releases the lock.
pub trait FsLock: Send + Sync + Debug {
    /// Whether what was locked is still what lies at its path.
    ///
    /// # Errors
    /// The system's error.
    fn is_held(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Stands for a lock where there is none to take.
#[derive(Debug)]
struct NoLock;

impl FsLock for NoLock {}

/// A file system. All calls block.
pub trait Fs: Send + Sync + Debug + 'static {
    /// Creates one directory, open to its owner alone (0700). The name is durable only after
    /// [`Fs::sync_dir`] of the parent.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` when the parent is missing, or the system's error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file. The name of a new file is durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, or the system's error.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>>;

    /// Renames a file, replacing `to`. Durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// The system's error.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// `NotFound`, or the system's error.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. Names that are not UTF-8 are none of ours and left out.
    ///
    /// # Errors
    /// `NotFound`, or the system's error.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The system's error; whether the names are durable is then unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock on the file at `path`, creating it, or says who holds it.
    ///
    /// # Errors
    /// The system's error.
    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt>;

    /// Takes the exclusive lock on a directory itself, which nobody can remove without its content, unlike a
    /// lock file. Where directories cannot be locked, `Held` says nothing.
    ///
    /// # Errors
    /// The system's error.
    fn try_lock_dir(&self, _dir: &Path) -> io::Result<LockAttempt> {
        Ok(LockAttempt::Held(Box::new(NoLock)))
    }

    /// What the name stands for. A link is not followed. An implementation that wraps another one
    /// must pass this on: snapshots need it.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` where it is not implemented, or the system's error.
    fn kind(&self, _path: &Path) -> io::Result<FileKind> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a directory with everything below it, following no links. Durable only after
    /// [`Fs::sync_dir`] of the parent; a crash may leave a part. An implementation that wraps another
    /// one must pass this on: snapshots need it.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` where it is not implemented, or the system's error; a part may be gone.
    fn remove_tree(&self, _dir: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How many bytes can still be written below `dir`; `None` where nobody knows.
    ///
    /// # Errors
    /// `NotFound`, or the system's error.
    fn free_bytes(&self, _dir: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Operations so far.
    fn counts(&self) -> FsCounts;
}

/// An open file with positional reads and writes.
#[allow(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait FsFile: Send + Sync + Debug {
    /// Reads into `buffer` from `offset`; returns how much was read, 0 at the end of the file.
    ///
    /// # Errors
    /// The system's error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes from `bytes` at `offset`; returns how much was written, which may be less.
    ///
    /// # Errors
    /// The system's error.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Makes the content, and the length as far as the content needs it, durable.
    ///
    /// # Errors
    /// The system's error. The content may be lost although later syncs succeed: never retry.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes content and all metadata durable.
    ///
    /// # Errors
    /// As [`FsFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// Cuts the file, or lengthens it with zeros.
    ///
    /// # Errors
    /// The system's error.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// The system's error.
    fn len(&self) -> io::Result<u64>;
}

/// Writes all of `bytes`, however many calls it takes.
///
/// # Errors
/// The system's error; `WriteZero` when it stops taking bytes.
pub fn write_all_at(file: &dyn FsFile, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until `buffer` is full or the file ends; returns how much was read.
///
/// # Errors
/// The system's error.
pub fn read_up_to(file: &dyn FsFile, mut offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(offset, rest) {
            Ok(0) => break,
            Ok(read) => {
                filled += read;
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a whole file.
///
/// # Errors
/// `NotFound`, or the system's error.
pub fn read_file(fs: &dyn Fs, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Existing)?;
    read_whole(&*file)
}

/// Reads all of an open file. What is allocated is bounded by what really lies on the disk.
///
/// # Errors
/// The system's error.
pub fn read_whole(file: &dyn FsFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut content = vec![0; len];
    let read = read_up_to(file, 0, &mut content)?;
    content.truncate(read);
    Ok(content)
}

/// Creates a directory and its missing parents, each durable before the next.
///
/// # Errors
/// The system's error.
pub fn ensure_dir(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    let parent = parent_of(path);
    match fs.create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(parent) = parent else { return Err(error) };
            ensure_dir(fs, parent)?;
            fs.create_dir(path)?;
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Also when it was there before: whoever created it may have died before this line.
    parent.map_or(Ok(()), |parent| fs.sync_dir(parent))
}

/// The directory that holds `path`; the current one for a bare name.
fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

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
    /// The file system with all counters at zero.
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
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.write_all(format!("process {}\n", std::process::id()).as_bytes())?;
                Ok(LockAttempt::Held(Box::new(RealLock { _file: file })))
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                (&file).take(200).read_to_string(&mut text)?;
                let holder = text.trim();
                let holder = if holder.is_empty() { "another process" } else { holder };
                Ok(LockAttempt::InUse { holder: holder.to_owned() })
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn try_lock_dir(&self, dir: &Path) -> io::Result<LockAttempt> {
        self.counters.add(FsOp::Lock);
        let file = File::open(dir)?;
        match file.try_lock() {
            Ok(()) => Ok(LockAttempt::Held(Box::new(RealDirLock { file, path: dir.to_owned() }))),
            Err(TryLockError::WouldBlock) => {
                Ok(LockAttempt::InUse { holder: "another process, whose lock file was removed".to_owned() })
            }
            // Network file systems lock files alone.
            Err(TryLockError::Error(_)) => Ok(LockAttempt::Held(Box::new(NoLock))),
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

/// The system releases the lock when the file is closed.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl FsLock for RealLock {}

/// As [`RealLock`], of a directory.
#[derive(Debug)]
struct RealDirLock {
    file: File,
    path: PathBuf,
}

impl FsLock for RealDirLock {
    fn is_held(&self) -> io::Result<bool> {
        match std::fs::metadata(&self.path) {
            Ok(found) => Ok(is_same(&self.file.metadata()?, &found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
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
