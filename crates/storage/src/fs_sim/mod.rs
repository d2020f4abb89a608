//! A file system in memory that loses what was not synced. Deterministic: what survives a crash
//! is decided by the numbers that the test or the simulator draws.
//!
//! It is stricter than any real one:
//! - unsynced writes are kept apart per 512-byte sector; a crash keeps all of a file's, keeps those up
//!   to some place, or loses, keeps or tears each by itself, also when it interrupts their sync;
//! - names (create, rename, remove) are durable only after the directory is synced; a crash loses
//!   or keeps each change by itself;
//! - after a failed sync the data stays readable and is gone at the next power cut, although later
//!   syncs succeed.

mod disk;
mod space;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::disk::{Disk, Step};
use crate::fs::{FileKind, Fs, FsCounts, FsFile, FsLock, FsOp, LockAttempt, OpenMode};

/// The simulated file system. A clone is another handle on the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

/// What an operation that was chosen to fail does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// EIO. A failed sync drops the dirty pages: they stay readable and will never be durable.
    Io,
    /// ENOSPC. Nothing is written. A failed sync drops the dirty pages as with [`Failure::Io`].
    NoSpace,
    /// EDQUOT, as [`Failure::NoSpace`].
    Quota,
    /// EMFILE: the process has no descriptor left.
    TooManyFiles,
    /// ENFILE: the system has no descriptor left.
    TooManyFilesInSystem,
    /// A write takes only half of the bytes and says so. Other operations succeed.
    Short,
}

/// The content of a disk: every file by its path, and every directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimImage {
    /// The directories.
    pub dirs: Vec<PathBuf>,
    /// The files.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

impl SimFs {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk with this content, all of it durable.
    #[must_use]
    pub fn from_image(image: &SimImage) -> Self {
        Self { disk: Arc::new(Mutex::new(Disk::from_image(image))) }
    }

    /// What a reader sees now, durable or not.
    #[must_use]
    pub fn image(&self) -> SimImage {
        self.disk().image()
    }

    /// The power goes and comes back. `random(n)` must return a number below `n`; it decides for
    /// each unsynced sector and name what survives. All open files and locks of before are invalid
    /// afterwards, and all failpoints are cleared.
    pub fn crash(&self, random: &mut dyn FnMut(u64) -> u64) {
        self.disk().crash(random);
    }

    /// The process dies, the machine lives: unsynced writes stay readable. Open files and locks of
    /// before are invalid afterwards, and all failpoints are cleared.
    pub fn kill(&self) {
        self.disk().end_process();
    }

    /// Makes the `nth` operation of this kind from now (1 is the next one) fail.
    pub fn fail(&self, op: FsOp, nth: u64, failure: Failure) {
        self.disk().fail(op, nth, failure);
    }

    /// Makes the `nth` operation of any kind from now, and everything after it, fail until
    /// [`SimFs::crash`] or [`SimFs::kill`]: the moment at which the process dies.
    pub fn halt_at(&self, nth: u64) {
        self.disk().halt_at(nth);
    }

    /// Whether the moment chosen by [`SimFs::halt_at`] has come.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.disk().is_halted()
    }

    /// Takes back what [`SimFs::halt_at`] has chosen, if that moment has not come.
    pub fn keep_running(&self) {
        self.disk().keep_running();
    }

    /// The files below `dir` that a power cut is certain to leave, with all of their content: synced, under a
    /// name that is synced and that nothing unsynced takes away.
    #[must_use]
    pub fn surviving(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        self.disk().surviving(dir)
    }

    /// Gives the disk a size in bytes; at first, and with `None`, it has no end. A write that does not
    /// fit is cut short, and one that finds no room at all fails with ENOSPC, until something is freed:
    /// a file by being cut, or by losing its last name and its last handle. Space counts in sectors
    /// of 512 bytes, and an empty file takes one. Files that are larger than the new size stay.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().space.capacity = bytes;
    }

    /// Bytes taken by files that have a name or are open.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.disk().used_bytes()
    }

    /// Lets at most so many handles be open at a time; opening another one fails with EMFILE.
    pub fn set_max_open(&self, handles: Option<usize>) {
        self.disk().space.max_open = handles;
    }

    /// Says what [`Fs::free_bytes`] answers from now on, whatever there really is. With `None` it
    /// answers what is left of [`SimFs::set_capacity`]; without a capacity, nobody knows.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        self.disk().space.claimed = free;
    }

    /// Turns one bit of a file around, durably. Returns whether there is such a byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        self.disk().damage(path, offset, |byte| byte ^ (1 << (bit % 8)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fs for SimFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(FsOp::CreateDir)?;
        disk.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>> {
        let mut disk = self.disk();
        disk.begin(FsOp::Open)?;
        let (inode, token) = disk.open(path, mode)?;
        let life = disk.life();
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.disk), inode, life, _token: token }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(FsOp::Rename)?;
        disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(FsOp::Remove)?;
        disk.remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.begin(FsOp::List)?;
        disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(FsOp::SyncDir)?;
        disk.sync_dir(dir)
    }

    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt> {
        let mut disk = self.disk();
        disk.begin(FsOp::Lock)?;
        if !disk.lock(path)? {
            return Ok(LockAttempt::InUse { holder: "another simulated process".to_owned() });
        }
        let lock = SimLock { disk: Arc::clone(&self.disk), path: path.to_owned(), life: disk.life() };
        Ok(LockAttempt::Held(Box::new(lock)))
    }

    fn try_lock_dir(&self, dir: &Path) -> io::Result<LockAttempt> {
        self.try_lock(&dir.join("."))
    }

    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        let mut disk = self.disk();
        disk.begin(FsOp::Kind)?;
        disk.kind(path)
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(FsOp::RemoveTree)?;
        disk.remove_tree(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<Option<u64>> {
        let mut disk = self.disk();
        disk.begin(FsOp::FreeBytes)?;
        disk.kind(dir).map(|_| disk.free_bytes())
    }

    fn counts(&self) -> FsCounts {
        self.disk().counts()
    }
}

#[derive(Debug)]
struct SimLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
    life: u64,
}

impl FsLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).unlock(&self.path, self.life);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
    life: u64,
    /// Tells the disk that the file is still open when its last name is gone.
    _token: Arc<()>,
}

impl SimFile {
    /// The disk, if the process that opened this file still lives and `op` is not chosen to fail.
    fn begin(&self, op: FsOp) -> io::Result<(MutexGuard<'_, Disk>, Step)> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.life() != self.life {
            return Err(io::Error::other("the process that opened this file has died"));
        }
        match disk.begin(op) {
            Ok(step) => Ok((disk, step)),
            Err(error) => {
                // Only a system that goes on drops pages. A sync that the crash interrupts may have
                // written any of them: they stay unsynced, and the crash decides.
                if matches!(op, FsOp::SyncData | FsOp::SyncAll) && !disk.is_halted() {
                    disk.drop_dirty_pages(self.inode);
                }
                Err(error)
            }
        }
    }
}

impl FsFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let (disk, _) = self.begin(FsOp::Read)?;
        Ok(disk.read(self.inode, offset, buffer))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let (mut disk, step) = self.begin(FsOp::Write)?;
        let taken = match step {
            Step::Short => bytes.len().div_ceil(2),
            Step::Whole => bytes.len(),
        };
        let taken = disk.room_for(self.inode, offset, taken)?;
        disk.write(self.inode, offset, bytes.get(..taken).unwrap_or(bytes));
        Ok(taken)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut disk, _) = self.begin(FsOp::SyncData)?;
        disk.sync(self.inode);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        let (mut disk, _) = self.begin(FsOp::SyncAll)?;
        disk.sync(self.inode);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let (mut disk, _) = self.begin(FsOp::SetLen)?;
        let grown = usize::try_from(len.saturating_sub(disk.len(self.inode))).unwrap_or(usize::MAX);
        if disk.room_for(self.inode, len - grown as u64, grown)? < grown {
            return Err(space::no_space());
        }
        disk.set_len(self.inode, len);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let (disk, _) = self.begin(FsOp::Len)?;
        Ok(disk.len(self.inode))
    }
}
