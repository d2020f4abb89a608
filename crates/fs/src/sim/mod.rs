//! A file system in memory that loses what was not synced. Deterministic: the numbers that the test
//! or the simulator draws decide what survives a crash.
//!
//! It is stricter than any real one:
//! - unsynced writes are tracked per 512-byte sector. A crash keeps all of a file's unsynced
//!   sectors, or keeps those up to some position, or loses, keeps or tears each one separately;
//!   also if it interrupts their sync;
//! - changes of names (create, rename, remove) are durable only after the directory is synced; a
//!   crash loses or keeps each change separately;
//! - after a failed sync the data stays readable and is lost at the next power loss, although later
//!   syncs succeed.

mod disk;
mod failure;
mod image;
mod inode;
mod space;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use d_engine_locks::Unpoisoned;

use self::disk::{Disk, Step};
pub use self::failure::Failure;
pub use self::image::SimImage;
use crate::{FileKind, Fs, FsCounts, FsFile, FsLock, FsOp, LockAttempt, OpenMode};

/// The simulated file system. A clone is another handle on the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

impl SimFs {
    /// Returns an empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a disk with this content, all of it durable.
    #[must_use]
    pub fn from_image(image: &SimImage) -> Self {
        Self { disk: Arc::new(Mutex::new(Disk::from_image(image))) }
    }

    /// Returns what a reader sees now, durable or not.
    #[must_use]
    pub fn image(&self) -> SimImage {
        self.disk().image()
    }

    /// Simulates a power loss and a restart. `random(n)` must return a number below `n`; it decides
    /// for each unsynced sector and name whether it survives. Invalidates all open files and locks
    /// and clears all failpoints.
    pub fn crash(&self, random: &mut dyn FnMut(u64) -> u64) {
        self.disk().crash(random);
    }

    /// Simulates a crash of the process alone: unsynced writes stay readable. Invalidates all open
    /// files and locks and clears all failpoints.
    pub fn kill(&self) {
        self.disk().end_process();
    }

    /// Makes the `nth` operation of this kind from now on fail (1 is the next one).
    pub fn fail(&self, op: FsOp, nth: u64, failure: Failure) {
        self.disk().fail(op, nth, failure);
    }

    /// Takes back every failure that was chosen by [`SimFs::fail`] and has not occurred yet.
    pub fn fail_no_more(&self) {
        self.disk().fail_no_more();
    }

    /// Makes the `nth` operation of any kind from now on, and everything after it, fail until
    /// [`SimFs::crash`] or [`SimFs::kill`]: the process crashes at that operation.
    pub fn halt_at(&self, nth: u64) {
        self.disk().halt_at(nth);
    }

    /// Whether the operation chosen by [`SimFs::halt_at`] has been reached.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.disk().is_halted()
    }

    /// Cancels [`SimFs::halt_at`], if its operation has not been reached.
    pub fn keep_running(&self) {
        self.disk().keep_running();
    }

    /// Returns the files below `dir` that are certain to survive a power loss with all of their
    /// content: they are synced, and so is their name, and no unsynced change removes it.
    #[must_use]
    pub fn surviving(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        self.disk().surviving(dir)
    }

    /// Sets the size of the disk in bytes; initially, and with `None`, it is unlimited. A write
    /// that does not fit is cut short. One that finds no space at all fails with ENOSPC until
    /// something is freed: a file frees space if it is truncated, or loses its last name and its
    /// last handle. Space counts in sectors of 512 bytes, and an empty file occupies one. Files
    /// that are larger than the new size stay.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().space.capacity = bytes;
    }

    /// Returns the bytes occupied by files that have a name or are open.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.disk().used_bytes()
    }

    /// Limits the handles that may be open at a time; opening another one fails with EMFILE.
    pub fn set_max_open(&self, handles: Option<usize>) {
        self.disk().space.max_open = handles;
    }

    /// Sets what [`Fs::free_bytes`] returns from now on, regardless of the actual space. With
    /// `None` it returns what is left of [`SimFs::set_capacity`]; without a capacity, `None`.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        self.disk().space.claimed = free;
    }

    /// Flips one bit of a file, durably. Returns whether the file has that byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        self.disk().damage(path, offset, |byte| byte ^ (1 << (bit % 8)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unpoisoned()
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
        let boot = disk.boot();
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.disk), inode, boot, _token: token }))
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
        let Some(number) = disk.lock(path)? else {
            return Ok(LockAttempt::InUse { holder: "another simulated process".to_owned() });
        };
        let lock = SimLock { disk: Arc::clone(&self.disk), number, boot: disk.boot() };
        Ok(LockAttempt::Held(Box::new(lock)))
    }

    fn try_lock_dir(&self, dir: &Path) -> io::Result<LockAttempt> {
        self.try_lock(&dir.join("."))
    }

    fn lock_holder(&self, path: &Path) -> io::Result<Option<String>> {
        let mut disk = self.disk();
        disk.begin(FsOp::Lock)?;
        let is_locked = disk.is_locked(path) || disk.is_locked(&path.join("."));
        Ok(is_locked.then(|| "another simulated process".to_owned()))
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
    number: u64,
    boot: u64,
}

impl FsLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.lock().unpoisoned().unlock(self.number, self.boot);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
    boot: u64,
    /// Marks the file as open for the disk, also after its last name is gone.
    _token: Arc<()>,
}

impl SimFile {
    /// Returns the disk, if the process that opened this file still runs and `op` was not made to
    /// fail.
    fn begin(&self, op: FsOp) -> io::Result<(MutexGuard<'_, Disk>, Step)> {
        let mut disk = self.disk.lock().unpoisoned();
        if disk.boot() != self.boot {
            return Err(io::Error::other("the process that opened this file has crashed"));
        }
        match disk.begin(op) {
            Ok(step) => Ok((disk, step)),
            Err(error) => {
                // Only an operating system that keeps running drops pages. A sync that a crash
                // interrupts may have written any of them: they stay unsynced, and the crash
                // decides.
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
