//! Every file operation of d-engine goes through [`Fs`], where it is counted and can be made to
//! fail, whichever system call performs it.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

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
    /// [`Fs::try_lock`], [`Fs::try_lock_dir`] and [`Fs::lock_holder`].
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
    /// All kinds, in numerical order.
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

/// The number of operations of each kind that were tried, including failed ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsCounts {
    pub(crate) by_kind: [u64; FsOp::ALL.len()],
}

impl FsCounts {
    /// Returns the number of operations of one kind.
    #[must_use]
    pub fn of(&self, op: FsOp) -> u64 {
        self.by_kind[op as usize]
    }

    /// Returns the number of operations of all kinds.
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
    /// The file must exist; opening it changes nothing. For reading and writing.
    Existing,
    /// As [`OpenMode::Existing`], for reading only.
    ReadOnly,
    /// The file must not exist; it is created with access only for its owner (0600).
    CreateNew,
}

/// The kind of the file that a name refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: a link, a socket, a device.
    Other,
}

/// The result of an attempt to lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// The lock is held until the guard is dropped, or the process ends.
    Held(Box<dyn FsLock>),
    /// Another process, or another owner in this one, holds the lock.
    InUse {
        /// The holder, as far as the lock file names it.
        holder: String,
    },
}

/// Holds a lock; dropping it releases the lock.
pub trait FsLock: Send + Sync + Debug {
    /// Whether the locked file or directory is still the one at its path.
    ///
    /// # Errors
    /// An error of the operating system.
    fn is_held(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Stands for a lock where none can be taken.
#[derive(Debug)]
pub(crate) struct NoLock;

impl FsLock for NoLock {}

/// A file system. All calls block.
pub trait Fs: Send + Sync + Debug + 'static {
    /// Creates one directory with access only for its owner (0700). The name is durable only after
    /// [`Fs::sync_dir`] of the parent.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` if the parent is missing, or another error of the operating
    /// system.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file. The name of a new file is durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, or another error of the operating system.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>>;

    /// Renames a file, replacing `to`. Durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// An error of the operating system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// `NotFound`, or another error of the operating system.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Returns the names in a directory, sorted. Names that are not UTF-8 are left out; the engine
    /// never creates them.
    ///
    /// # Errors
    /// `NotFound`, or another error of the operating system.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// An error of the operating system; whether the names are durable is then unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock on the file at `path`, creating the file, or returns the holder.
    ///
    /// # Errors
    /// An error of the operating system.
    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt>;

    /// Takes the exclusive lock on a directory itself. Unlike a lock file, a directory cannot be
    /// removed without its content. Where directories cannot be locked, returns `Held` without a
    /// lock.
    ///
    /// # Errors
    /// An error of the operating system.
    fn try_lock_dir(&self, _dir: &Path) -> io::Result<LockAttempt> {
        Ok(LockAttempt::Held(Box::new(NoLock)))
    }

    /// Returns who holds the lock on the file or directory at `path`; `None` if nobody does, if
    /// there is no such file, or if it is unknown. Creates and writes nothing. For a moment the
    /// real file system holds a shared lock, so a process that tries to lock at the same moment may
    /// find the file in use: ask once, not in a loop.
    ///
    /// # Errors
    /// An error of the operating system.
    fn lock_holder(&self, _path: &Path) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Returns the kind of the file at `path`. A link is not followed. An implementation that wraps
    /// another one must forward this call, because snapshots need it.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` if not implemented, or another error of the operating system.
    fn kind(&self, _path: &Path) -> io::Result<FileKind> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a directory with everything below it, following no links. Durable only after
    /// [`Fs::sync_dir`] of the parent; a crash may leave a part. An implementation that wraps
    /// another one must forward this call, because snapshots need it.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` if not implemented, or another error of the operating system; a
    /// part may be removed.
    fn remove_tree(&self, _dir: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns the bytes that can still be written below `dir`; `None` if unknown.
    ///
    /// # Errors
    /// `NotFound`, or another error of the operating system.
    fn free_bytes(&self, _dir: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Returns the counts of operations so far.
    fn counts(&self) -> FsCounts;
}

/// An open file with positional reads and writes.
#[allow(clippy::len_without_is_empty, reason = "no caller needs to know whether a file is empty")]
pub trait FsFile: Send + Sync + Debug {
    /// Reads into `buffer` from `offset`. Returns the number of bytes read, 0 at the end of the
    /// file.
    ///
    /// # Errors
    /// An error of the operating system.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes `bytes` at `offset`. Returns the number of bytes written, which may be fewer.
    ///
    /// # Errors
    /// An error of the operating system.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Makes the content durable, and the length as far as the content needs it.
    ///
    /// # Errors
    /// An error of the operating system. The content may be lost although later syncs succeed:
    /// never retry.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes the content and all metadata durable.
    ///
    /// # Errors
    /// As [`FsFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// Truncates the file, or extends it with zeros.
    ///
    /// # Errors
    /// An error of the operating system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns the length in bytes.
    ///
    /// # Errors
    /// An error of the operating system.
    fn len(&self) -> io::Result<u64>;
}

/// Writes all of `bytes`, in as many calls as needed.
///
/// # Errors
/// An error of the operating system; `WriteZero` if the file accepts no more bytes.
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

/// Reads until `buffer` is full or the file ends. Returns the number of bytes read.
///
/// # Errors
/// An error of the operating system.
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
/// `NotFound`, or another error of the operating system.
pub fn read_file(fs: &dyn Fs, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Existing)?;
    read_whole(&*file)
}

/// Reads all of an open file. The allocation is bounded by the file's length on the disk.
///
/// # Errors
/// An error of the operating system.
pub fn read_whole(file: &dyn FsFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut content = vec![0; len];
    let read = read_up_to(file, 0, &mut content)?;
    content.truncate(read);
    Ok(content)
}

/// Whether the operating system lacks space (ENOSPC, EDQUOT) or file handles (EMFILE, ENFILE). Both
/// are temporary.
#[must_use]
pub fn is_out_of_space(error: &std::io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// Creates a directory and its missing parents, each durable before the next.
///
/// # Errors
/// An error of the operating system.
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
    // Sync also if it existed before: the process that created it may have crashed before this
    // line.
    parent.map_or(Ok(()), |parent| fs.sync_dir(parent))
}

/// Returns the directory that contains `path`; the current one for a bare name.
fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}
