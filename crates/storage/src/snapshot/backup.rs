//! A snapshot archive that is copied out of the cluster: to a file of its own, which appears when
//! it is complete, verified and durable.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{LogId, LogIndex, Term};

use super::error::{hex, io_error};
use super::partial::PartialArchive;
use super::{Offer, Pace, SnapshotArchive, SnapshotError, SnapshotHeader};
use crate::fs::{Fs, FsLock, LockAttempt};

/// What the name of an incomplete backup ends with.
const PARTIAL: &str = ".partial";
const LOCK: &str = ".partial.lock";
/// An incomplete backup is synced after this many bytes.
const SYNC_BYTES: u64 = 16 << 20;
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// The file of a backup while it is written. It has the name FILE.TERM-INDEX-LENGTH-SHA256.partial
/// beside its target until [`BackupFile::finish`] renames it. Dropping it keeps what was received;
/// [`BackupFile::begin`] of the same offer continues there, also after a crash. Its methods block.
#[derive(Debug)]
pub struct BackupFile {
    fs: Arc<dyn Fs>,
    partial: PartialArchive,
    target: PathBuf,
    dir: PathBuf,
    lock_path: PathBuf,
    /// Held until the end, so that no other process writes the same file.
    _lock: Box<dyn FsLock>,
}

impl Drop for BackupFile {
    fn drop(&mut self) {
        // An empty file that is left behind does no harm.
        self.fs.remove_file(&self.lock_path).ok();
    }
}

impl BackupFile {
    /// Begins the backup of an offered archive, or continues it where an earlier attempt ended.
    /// Removes what was received for the same target of other archives. `pace` is called while the
    /// part that exists is verified.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`] if there is a file at `target`: it is not overwritten.
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Locked`], [`SnapshotError::Aborted`], or an I/O
    /// error.
    pub fn begin(
        fs: &Arc<dyn Fs>,
        target: &Path,
        offer: Offer,
        pace: &mut dyn Pace,
    ) -> Result<Self, SnapshotError> {
        let place = Place::of(&**fs, target)?;
        let lock_path = place.dir.join(format!("{}{LOCK}", place.name));
        let lock = match fs.try_lock(&lock_path).map_err(io_error("lock", &lock_path))? {
            LockAttempt::Held(lock) => lock,
            LockAttempt::InUse { holder } => {
                return Err(SnapshotError::Locked { path: place.target, holder });
            }
        };
        let path = place.dir.join(partial_name(&place.name, &offer));
        for (name, other) in place.partials(&**fs)? {
            if other != offer {
                let path = place.dir.join(name);
                fs.remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        let Place { target, dir, .. } = place;
        let opened = PartialArchive::open(Arc::clone(fs), path, offer, SYNC_BYTES, pace).and_then(
            |partial| check_space(&**fs, &dir, offer.len - partial.received()).map(|()| partial),
        );
        match opened {
            Ok(partial) => {
                Ok(Self { fs: Arc::clone(fs), partial, target, dir, lock_path, _lock: lock })
            }
            Err(error) => {
                fs.remove_file(&lock_path).ok();
                Err(error)
            }
        }
    }

    /// Returns what was begun for this target and not finished; `None` if there is nothing. Changes
    /// nothing.
    ///
    /// # Errors
    /// As [`BackupFile::begin`].
    pub fn unfinished(fs: &dyn Fs, target: &Path) -> Result<Option<Offer>, SnapshotError> {
        let partials = Place::of(fs, target)?.partials(fs)?;
        Ok(partials.into_iter().map(|(_, offer)| offer).max_by_key(|offer| offer.last_included))
    }

    /// Checks that a backup could be written to `target`: nothing is there, and its directory
    /// exists. Changes nothing.
    ///
    /// # Errors
    /// As [`BackupFile::begin`].
    pub fn check_target(fs: &dyn Fs, target: &Path) -> Result<(), SnapshotError> {
        Place::of(fs, target).map(drop)
    }

    /// Returns the archive that is received.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        self.partial.offer()
    }

    /// Returns the name of the file until it is finished.
    #[must_use]
    pub fn partial_path(&self) -> &Path {
        self.partial.path()
    }

    /// Returns the offset at which the next piece must begin.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.partial.received()
    }

    /// Writes the piece at `offset`. A piece may arrive twice.
    ///
    /// # Errors
    /// As [`super::Receiver::write`].
    pub fn write(&mut self, offset: u64, bytes: &[u8], crc: u32) -> Result<(), SnapshotError> {
        self.partial.write(offset, bytes, crc)
    }

    /// Copies the rest of an archive that can be read here.
    ///
    /// # Errors
    /// Those of reading and of writing, and [`SnapshotError::Aborted`].
    pub fn copy_from(
        &mut self,
        archive: &SnapshotArchive,
        pace: &mut dyn Pace,
    ) -> Result<(), SnapshotError> {
        while self.received() < self.offer().len {
            let piece = archive.read_at(self.received(), COPY_BYTES)?;
            self.write(piece.offset, &piece.bytes, piece.crc)?;
            super::pace::keep_pace(pace, piece.bytes.len() as u64)?;
        }
        Ok(())
    }

    /// Makes the backup durable, verifies every checksum of it, and gives it its name. On success
    /// it also survives a power loss.
    ///
    /// # Errors
    /// [`SnapshotError::Incomplete`], [`SnapshotError::Damaged`] or [`SnapshotError::WrongOwner`]:
    /// what was received is not what was offered; it is removed. [`SnapshotError::Exists`] if a
    /// file has appeared at the target. After [`SnapshotError::Aborted`] or an I/O error, begin
    /// again; it continues where it ended.
    pub fn finish(mut self, pace: &mut dyn Pace) -> Result<Arc<SnapshotHeader>, SnapshotError> {
        let archive = self.partial.complete(pace, |_, _| Ok(()))?;
        if self.fs.kind(&self.target).is_ok() {
            return Err(SnapshotError::Exists { path: self.target.clone() });
        }
        let renamed = self.fs.rename(self.partial.path(), &self.target);
        renamed.map_err(io_error("rename the complete backup to", &self.target))?;
        let synced = self.fs.sync_dir(&self.dir);
        synced.map_err(io_error("sync the name of the complete backup in", &self.dir))?;
        Ok(Arc::clone(archive.header()))
    }
}

/// Where a backup goes.
struct Place {
    target: PathBuf,
    dir: PathBuf,
    name: String,
}

impl Place {
    fn of(fs: &dyn Fs, target: &Path) -> Result<Self, SnapshotError> {
        let path = std::path::absolute(target).map_err(io_error("resolve", target))?;
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let (Some(dir), Some(name)) = (path.parent().map(Path::to_owned), name) else {
            let source = std::io::ErrorKind::InvalidInput.into();
            return Err(io_error("use as a file name", target)(source));
        };
        match fs.kind(&path) {
            Ok(_) => Err(SnapshotError::Exists { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs.kind(&dir).map_err(io_error("find the directory", &dir))?;
                Ok(Self { target: path, dir, name })
            }
            Err(error) => Err(io_error("look at", &path)(error)),
        }
    }

    /// The incomplete backups for this target.
    fn partials(&self, fs: &dyn Fs) -> Result<Vec<(String, Offer)>, SnapshotError> {
        let names = fs.list(&self.dir).map_err(io_error("list", &self.dir))?;
        let offers = names.into_iter().filter_map(|name| {
            let offer = offer_in(name.strip_prefix(&self.name)?)?;
            Some((name, offer))
        });
        Ok(offers.collect())
    }
}

fn check_space(fs: &dyn Fs, dir: &Path, needed: u64) -> Result<(), SnapshotError> {
    match fs.free_bytes(dir).map_err(io_error("read the free space of", dir))? {
        Some(free) if free < needed => {
            Err(SnapshotError::NoSpace { path: dir.to_owned(), needed, reserve: 0, free })
        }
        _ => Ok(()),
    }
}

/// The name contains the whole offer, so that bytes of two archives are never in one file.
fn partial_name(target: &str, offer: &Offer) -> String {
    let Offer { last_included, len, sha256 } = offer;
    let (term, index) = (last_included.term, last_included.index);
    format!("{target}.{term}-{index}-{len}-{}{PARTIAL}", hex(sha256))
}

/// The offer in a name, after the name of the target.
fn offer_in(rest: &str) -> Option<Offer> {
    let mut parts = rest.strip_prefix('.')?.strip_suffix(PARTIAL)?.split('-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (term, index, len) = (number()?, number()?, number()?);
    let digits = parts.next().filter(|it| it.len() == 64 && it.is_ascii())?;
    let mut sha256 = [0; 32];
    for (at, byte) in sha256.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let last_included = LogId::new(Term::new(term), LogIndex::new(index));
    parts.next().is_none().then_some(Offer { last_included, len, sha256 })
}
