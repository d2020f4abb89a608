//! The directory of snapshots: what it contains, what is added and what is removed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use d_engine_core::LogId;

use super::chunks::{CHUNK_FRAME_LEN, TRAILER_LEN};
use super::directory::{Inner, STAGING_DIR, TEMPORARY_SUFFIX, UNPACKED_DIR};
use super::error::io_error;
use super::header::MAX_CHUNK_BYTES;
use super::info::{Coverage, Health, SnapshotInfo, SnapshotOptions, SnapshotReport};
use super::{
    Hold, Offer, Pace, Receiver, SnapshotArchive, SnapshotError, SnapshotFacts, SnapshotHeader,
    Staging,
};
use crate::fs::{Fs, ensure_dir};

/// The most attempts at a snapshot that were given up and may still write.
const GIVEN_UP_MAX: usize = 2;

/// The number of the next attempt in this process, shared by all stores: blocking work may outlive
/// even the node that began it.
static ATTEMPT: AtomicU64 = AtomicU64::new(0);

/// The snapshots of one Raft group in one directory. A clone is another handle on the same store
/// and can be used from another thread. One snapshot is built at a time, and one received.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    pub(super) inner: Arc<Inner>,
}

impl SnapshotStore {
    /// Opens the directory and creates it if it is missing. Removes what a crash has left of
    /// unfinished work and lists the archives by their verified headers. Reports an archive, and
    /// leaves it alone, if it does not verify, has another owner, or has another name than its
    /// header requires.
    ///
    /// # Errors
    /// Only I/O errors; unusable archives are part of the report.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        mut options: SnapshotOptions,
    ) -> Result<(Self, SnapshotReport), SnapshotError> {
        options.chunk_bytes = options.chunk_bytes.clamp(1, MAX_CHUNK_BYTES);
        ensure_dir(&*fs, dir).map_err(io_error("create", dir))?;
        let mut inner = Inner::new(fs, dir, options);
        let report = inner.scan()?;
        inner.unusable.clone_from(&report.unusable);
        Ok((Self { inner: Arc::new(inner) }, report))
    }

    /// Creates the empty directory for the next snapshot. No directory is ever used twice: an
    /// attempt that was given up may have left blocking work, which continues to write into
    /// its own directory. The end of such work cannot be detected, so after two such attempts no
    /// other one is begun until the store is opened again.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while another [`Staging`] exists, [`SnapshotError::GivenUp`] after
    /// two that were given up while they were lent to a future ([`Staging::lend`]); or an I/O
    /// error.
    pub fn staging(&self) -> Result<Staging, SnapshotError> {
        let inner = &self.inner;
        let mut busy = inner.busy();
        if busy.staging {
            return Err(SnapshotError::Busy { what: "taking a snapshot" });
        }
        if busy.given_up >= GIVEN_UP_MAX {
            return Err(SnapshotError::GivenUp { attempts: busy.given_up });
        }
        busy.staging = true;
        drop(busy);
        // From here on, dropping `staging` allows the next one.
        let attempts = inner.dir.join(STAGING_DIR);
        let number = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let path = attempts.join(format!("{number:016x}"));
        let staging = Staging { inner: Arc::clone(inner), path, is_lent: false };
        ensure_dir(&*inner.fs, &attempts).map_err(io_error("create", &attempts))?;
        for name in inner.fs.list(&attempts).map_err(io_error("list", &attempts))? {
            // A directory that is still written to is removed by the next attempt, or at the next
            // open.
            inner.fs.remove_tree(&attempts.join(name)).ok();
        }
        inner.fs.create_dir(&staging.path).map_err(io_error("create", &staging.path))?;
        Ok(staging)
    }

    /// Packs the files in `staging` into an archive. It is durable and listed when the call
    /// returns; the staging directory is removed in any case. An archive with the same last
    /// included entry is replaced.
    ///
    /// # Errors
    /// [`SnapshotError::ContentChecksum`] if the files do not have the checksum in `facts`,
    /// [`SnapshotError::Name`], [`SnapshotError::TooLarge`], [`SnapshotError::Changed`],
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Aborted`], or an I/O error. Existing snapshots
    /// are not affected.
    #[expect(clippy::needless_pass_by_value, reason = "the directory goes with the value")]
    pub fn pack(
        &self,
        staging: Staging,
        facts: &SnapshotFacts,
        pace: &mut dyn Pace,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let inner = &self.inner;
        let header = inner.header_for(&staging.path, facts)?;
        let path = inner.path_of(facts.last_included);
        let encoded = header.encode(&path)?;
        let frames = header.chunks().saturating_mul(CHUNK_FRAME_LEN as u64);
        inner
            .check_space((encoded.len() + TRAILER_LEN) as u64 + header.content_bytes() + frames)?;
        let temporary = inner.dir.join(inner.name_of(facts.last_included, TEMPORARY_SUFFIX));
        let packed = inner
            .write_archive(&staging.path, &temporary, &header, &encoded, pace)
            .and_then(|()| SnapshotArchive::open(&*inner.fs, &temporary))
            .and_then(|archive| inner.publish(&temporary, &path).map(|()| archive));
        match packed {
            Ok(archive) => Ok(inner.register(&archive, path, Health::Whole)),
            Err(error) => {
                // If it cannot be removed now, it is removed at the next start.
                inner.fs.remove_file(&temporary).ok();
                Err(error)
            }
        }
    }

    /// Returns all archives whose headers verify, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.inner.list().clone()
    }

    /// Returns the directory of the archives.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Returns why archives that existed when the directory was opened are not in the list.
    #[must_use]
    pub fn unusable(&self) -> &[SnapshotError] {
        &self.inner.unusable
    }

    /// Returns the newest archive that is not known to be damaged.
    #[must_use]
    pub fn newest(&self) -> Option<SnapshotInfo> {
        self.inner.list().iter().find(|info| info.health != Health::Damaged).cloned()
    }

    /// Returns the newest archive whose content is known to be whole. The log may be purged up to
    /// its last included entry.
    #[must_use]
    pub fn newest_whole(&self) -> Option<SnapshotInfo> {
        self.inner.list().iter().find(|info| info.health == Health::Whole).cloned()
    }

    /// Returns how far the retained snapshots allow the log to be purged: the newest one that is
    /// known to be whole, and the oldest that is not known to be damaged. If the log after the
    /// oldest one is kept, each of them can be used. Snapshots that no node would accept
    /// ([`SnapshotOptions::max_bytes`]) do not count.
    #[must_use]
    pub fn coverage(&self) -> Option<Coverage> {
        let list = self.inner.list();
        let retained = self.inner.options.retained.max(1);
        let usable =
            || list.iter().filter(|info| info.health != Health::Damaged && self.may_travel(info));
        let newest = usable().find(|info| info.health == Health::Whole)?;
        let (newest, newest_bytes) = (newest.last_included(), newest.len);
        let oldest = usable().take(retained).last().map_or(newest, SnapshotInfo::last_included);
        Some(Coverage { newest, newest_bytes, oldest: oldest.min(newest) })
    }

    /// Whether other nodes accept an archive of this length.
    #[must_use]
    pub fn may_travel(&self, info: &SnapshotInfo) -> bool {
        info.len <= self.inner.options.max_bytes
    }

    /// Reads archives from the newest on until one is whole. Returns it, and what was wrong with
    /// those before it. The caller must check that the log still reaches back to it.
    ///
    /// # Errors
    /// [`SnapshotError::Aborted`]. Damage, and files that cannot be read, are part of the result.
    pub fn find_whole(
        &self,
        pace: &mut dyn Pace,
    ) -> Result<(Option<SnapshotInfo>, Vec<SnapshotError>), SnapshotError> {
        let mut damage = Vec::new();
        for info in self.list() {
            match self.verify(info.last_included(), pace) {
                Ok(info) => return Ok((Some(info), damage)),
                Err(SnapshotError::Aborted) => return Err(SnapshotError::Aborted),
                Err(error) => damage.push(error),
            }
        }
        Ok((None, damage))
    }

    /// Reads the whole archive with this last included entry, and records its health.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] with the place, [`SnapshotError::Missing`],
    /// [`SnapshotError::Aborted`], or an I/O error.
    pub fn verify(
        &self,
        last_included: LogId,
        pace: &mut dyn Pace,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let read = self
            .open_archive(last_included)
            .and_then(|archive| archive.verify(pace).map(|()| archive));
        let health = match &read {
            Ok(_) => {
                // Its publisher may have failed to sync its name, and a whole archive is relied
                // upon.
                self.inner.sync_dir()?;
                Health::Whole
            }
            Err(SnapshotError::Damaged { .. }) => Health::Damaged,
            Err(_) => return read.map(|archive| SnapshotInfo::of(&archive, Health::Whole)),
        };
        // This has no effect if it is no longer listed: it may have been pruned while it was read.
        self.note_health(last_included, health);
        read.map(|archive| SnapshotInfo::of(&archive, health))
    }

    /// Opens an archive for reading or sending. It stays readable if it is pruned meanwhile.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`], [`SnapshotError::Damaged`], or an I/O error.
    pub fn open_archive(&self, last_included: LogId) -> Result<SnapshotArchive, SnapshotError> {
        let known = self
            .inner
            .list()
            .iter()
            .find(|info| info.last_included() == last_included)
            .map(|info| info.path.clone());
        let dir = || self.inner.dir.clone();
        let path = known.ok_or_else(|| SnapshotError::Missing { last_included, dir: dir() })?;
        let archive = match SnapshotArchive::open(&*self.inner.fs, &path) {
            Err(SnapshotError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                // The file was removed from outside; it must no longer be relied upon.
                self.inner.list().retain(|info| info.path != path);
                return Err(SnapshotError::Missing { last_included, dir: dir() });
            }
            opened => opened?,
        };
        self.inner.check_owner(archive.header(), &path)?;
        if archive.last_included() != last_included {
            return Err(SnapshotError::Missing { last_included, dir: dir() });
        }
        Ok(archive)
    }

    /// Returns the directory where [`Self::unpack`] may put temporary files. What a crash leaves
    /// there is removed at the next start. Remove it with [`Fs::remove_tree`] after use.
    #[must_use]
    pub fn unpack_dir(&self) -> PathBuf {
        self.inner.dir.join(UNPACKED_DIR)
    }

    /// Removes [`Self::unpack_dir`] with its content, if it exists.
    ///
    /// # Errors
    /// An I/O error.
    pub fn clear_unpacked(&self) -> Result<(), SnapshotError> {
        let path = self.unpack_dir();
        if self.inner.fs.kind(&path).is_err() {
            return Ok(());
        }
        self.inner.fs.remove_tree(&path).map_err(io_error("remove", &path))
    }

    /// Checks that there is space for `bytes` more.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpace`], or an I/O error.
    pub fn has_room(&self, bytes: u64) -> Result<(), SnapshotError> {
        self.inner.check_space(bytes)
    }

    /// Checks that there is space for a snapshot of about `bytes` together with the files that it
    /// is made of. Call it before anything is written.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpace`], or an I/O error.
    pub fn has_room_for(&self, bytes: u64) -> Result<(), SnapshotError> {
        self.inner.check_space(bytes.saturating_mul(2))
    }

    /// Records the health of the archive with this last included entry, after it was read.
    fn note_health(&self, last_included: LogId, health: Health) {
        let mut list = self.inner.list();
        list.iter_mut()
            .filter(|info| info.last_included() == last_included)
            .for_each(|info| info.health = health);
    }

    /// Writes the files of an archive into `into`, which must be empty or missing. Compares every
    /// checksum, and syncs everything before it returns.
    ///
    /// # Errors
    /// As [`SnapshotArchive::unpack`] and [`Self::open_archive`], and [`SnapshotError::NoSpace`].
    pub fn unpack(
        &self,
        last_included: LogId,
        into: &Path,
        pace: &mut dyn Pace,
    ) -> Result<Arc<SnapshotHeader>, SnapshotError> {
        let archive = self.open_archive(last_included)?;
        // The files are temporary and the node cannot continue without them, so they may use the
        // space that is reserved for the log.
        self.inner.check_space_beyond(0, archive.header().content_bytes())?;
        let unpacked = archive.unpack(&*self.inner.fs, into, pace);
        match &unpacked {
            Ok(()) => self.note_health(last_included, Health::Whole),
            Err(SnapshotError::Damaged { path, .. }) if *path == archive.path => {
                self.note_health(last_included, Health::Damaged);
            }
            Err(_) => {}
        }
        unpacked?;
        Ok(Arc::clone(archive.header()))
    }

    /// Keeps the snapshot with this last included entry from being pruned, whether it exists
    /// already or not.
    pub fn hold(&self, last_included: LogId) -> Hold {
        Hold::new(&self.inner, last_included)
    }

    /// Checks whether the archive with this header could be used here. Call it before anything else
    /// of the archive is received. `encoded` is [`SnapshotArchive::header_bytes`] of the sender.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::WrongOwner`],
    /// [`SnapshotError::UnsupportedFormat`], [`SnapshotError::Name`].
    pub fn check_header(&self, encoded: &Bytes) -> Result<SnapshotHeader, SnapshotError> {
        let path = Path::new("the offered snapshot");
        let header = SnapshotHeader::decode(path, encoded)?;
        self.inner.check_owner(&header, path)?;
        Ok(header)
    }

    /// Begins to receive what a sender offers, or continues where the last attempt ended. Removes
    /// what was received of any other offer. Refuses an offer that announces more than `max_len`
    /// bytes.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while another receiver exists, [`SnapshotError::TooLarge`],
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Aborted`], or an I/O error.
    pub fn receive(
        &self,
        offer: Offer,
        max_len: u64,
        pace: &mut dyn Pace,
    ) -> Result<Receiver, SnapshotError> {
        let inner = &self.inner;
        if std::mem::replace(&mut inner.busy().receiving, true) {
            return Err(SnapshotError::Busy { what: "receiving a snapshot" });
        }
        let receiver = inner
            .admit(&offer, max_len)
            .and_then(|()| Receiver::open(Arc::clone(inner), offer, pace));
        if receiver.is_err() {
            inner.busy().receiving = false;
        }
        receiver
    }
}
