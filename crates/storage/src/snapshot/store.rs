//! The directory of snapshots: what is there, and what comes and goes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use d_engine_core::{GroupId, LogId};

use super::chunks::{CHUNK_FRAME_LEN, TRAILER_LEN};
use super::directory::{Inner, STAGING_DIR, TEMPORARY_SUFFIX, UNPACKED_DIR};
use super::error::io_error;
use super::header::MAX_CHUNK_BYTES;
use super::{
    Compression, Hold, Offer, Pace, Receiver, SnapshotArchive, SnapshotError, SnapshotFacts, SnapshotHeader,
    Staging,
};
use crate::ClusterId;
use crate::fs::{Fs, ensure_dir};

/// How a [`SnapshotStore`] keeps its snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// The cluster; snapshots of another one are refused.
    pub cluster: ClusterId,
    /// The Raft group; snapshots of another one are refused.
    pub group: GroupId,
    /// How many snapshots [`SnapshotStore::prune`] leaves; at least one always stays.
    pub retained: usize,
    /// The name of the state machine; snapshots of another one are refused. Empty: not compared.
    pub machine: String,
    /// Newest version of the state machine's data that its code reads. Newer snapshots are refused.
    pub user_format: u32,
    /// Highest version of a command that the state machine decodes. Snapshots of a state in which a command of a higher
    /// version took effect are refused: a node could not go on from there.
    pub command_version_max: u32,
    /// A longer archive is taken by no node: it serves this one alone, and the log is not purged behind it. What
    /// [`SnapshotStore::receive`] believes is told to that call.
    pub max_bytes: u64,
    /// So many bytes of the disk are left to the log: a snapshot that would need them is refused.
    pub reserve_bytes: u64,
    /// What is done to the content of archives that are built here.
    pub compression: Compression,
    /// The content of an archive is checked in chunks of this length, 1 to 4 MiB.
    pub chunk_bytes: u32,
    /// Archives are synced each time so much has been written, so that no write-back grows so large
    /// that it stalls the log's syncs on the same disk.
    pub sync_bytes: u64,
}

impl SnapshotOptions {
    /// Two snapshots retained, of any length, 64 MiB left to the log, chunks of 256 KiB, a sync every 4 MiB.
    #[must_use]
    pub fn new(cluster: ClusterId, group: GroupId) -> Self {
        Self {
            cluster,
            group,
            retained: 2,
            machine: String::new(),
            user_format: 0,
            command_version_max: 0,
            max_bytes: u64::MAX,
            reserve_bytes: 64 << 20,
            compression: Compression::None,
            chunk_bytes: 256 << 10,
            sync_bytes: 4 << 20,
        }
    }
}

/// Attempts at a snapshot that were given up and may still write, at most.
const GIVEN_UP_MAX: usize = 2;

/// The next attempt in this process, of whatever store: blocking work may outlive even the node that began it.
static ATTEMPT: AtomicU64 = AtomicU64::new(0);

/// What is known about the content of an archive. Its header verifies in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It was not read since the store was opened.
    Unchecked,
    /// Every checksum matched, or it was written by this process.
    Whole,
    /// It does not verify. It is kept until a whole one takes its place, and never offered.
    Damaged,
}

/// A finished archive.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// The verified header.
    pub header: Arc<SnapshotHeader>,
    /// Length of the archive in bytes.
    pub len: u64,
    /// SHA-256 as its trailer says.
    pub sha256: [u8; 32],
    /// The file.
    pub path: PathBuf,
    /// What is known about its content.
    pub health: Health,
}

impl SnapshotInfo {
    pub(super) fn of(archive: &SnapshotArchive, health: Health) -> Self {
        Self {
            header: Arc::clone(archive.header()),
            len: archive.len(),
            sha256: archive.sha256(),
            path: archive.path.clone(),
            health,
        }
    }

    /// The last entry that the snapshot contains.
    #[must_use]
    pub fn label(&self) -> LogId {
        self.header.facts.label
    }
}

/// See [`SnapshotStore::coverage`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// The label of the newest snapshot.
    pub newest: LogId,
    /// Length of the newest one in bytes.
    pub newest_bytes: u64,
    /// The label of the oldest one; both are the same if there is one.
    pub oldest: LogId,
}

/// What [`SnapshotStore::open`] found beside good archives, for the node's log and its status.
#[derive(Clone, Debug, Default)]
pub struct SnapshotReport {
    /// What a crash had left and was removed: temporary files, staging directories.
    pub removed: Vec<String>,
    /// Archives that cannot be used, each with the reason. Nothing was done to them.
    pub unusable: Vec<SnapshotError>,
    /// Transfers that can go on where they were cut.
    pub partial: Vec<String>,
}

/// The snapshots of one Raft group in one directory. A clone is another handle on the same store; it
/// can be used from several threads. One snapshot at a time is built, and one received.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    pub(super) inner: Arc<Inner>,
}

impl SnapshotStore {
    /// Opens the directory, creating it if it is missing: removes what a crash has left of unfinished
    /// work and lists the archives by their verified headers. An archive that does not verify, belongs
    /// to somebody else or lies under another name than its header's is reported and left alone.
    ///
    /// # Errors
    /// Only I/O errors; bad archives are part of the report.
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

    /// The empty directory for the next snapshot. No directory is ever used again: an attempt that was given up may have
    /// left blocking work behind, which goes on writing into its own one. Nobody can see when such work has ended: after
    /// two such attempts no other one is begun until the store is opened again.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while another one is held, [`SnapshotError::GivenUp`] after two that were given up
    /// while they were lent to a future ([`Staging::lend`]); an I/O error.
    pub fn staging(&self) -> Result<Staging, SnapshotError> {
        let inner = &self.inner;
        let mut busy = inner.busy();
        if busy.staging {
            return Err(SnapshotError::Busy { what: "a snapshot" });
        }
        if busy.given_up >= GIVEN_UP_MAX {
            return Err(SnapshotError::GivenUp { attempts: busy.given_up });
        }
        busy.staging = true;
        drop(busy);
        // From here on, dropping it makes room for the next one.
        let attempts = inner.dir.join(STAGING_DIR);
        let number = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let path = attempts.join(format!("{number:016x}"));
        let staging = Staging { inner: Arc::clone(inner), path, is_lent: false };
        ensure_dir(&*inner.fs, &attempts).map_err(io_error("create", &attempts))?;
        for name in inner.fs.list(&attempts).map_err(io_error("list", &attempts))? {
            // What somebody still writes to is removed by the next attempt, or at the next open.
            inner.fs.remove_tree(&attempts.join(name)).ok();
        }
        inner.fs.create_dir(&staging.path).map_err(io_error("create", &staging.path))?;
        Ok(staging)
    }

    /// Makes an archive of the files in `staging`. It is durable and listed when the call returns; the
    /// staging directory is gone in any case. An archive with the same label is replaced.
    ///
    /// # Errors
    /// [`SnapshotError::ContentChecksum`] when the files are not those that `facts` speaks of,
    /// [`SnapshotError::Name`], [`SnapshotError::TooLarge`], [`SnapshotError::Changed`],
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Aborted`], or an I/O error. The snapshots that were
    /// there are still there.
    #[expect(clippy::needless_pass_by_value, reason = "the directory goes with the value")]
    pub fn pack(
        &self,
        staging: Staging,
        facts: &SnapshotFacts,
        pace: &mut dyn Pace,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let inner = &self.inner;
        let header = inner.header_for(&staging.path, facts)?;
        let path = inner.path_of(facts.label);
        let encoded = header.encode(&path)?;
        let frames = header.chunks().saturating_mul(CHUNK_FRAME_LEN as u64);
        inner.check_space((encoded.len() + TRAILER_LEN) as u64 + header.content_bytes() + frames)?;
        let temporary = inner.dir.join(inner.name_of(facts.label, TEMPORARY_SUFFIX));
        let packed = inner
            .write_archive(&staging.path, &temporary, &header, &encoded, pace)
            .and_then(|()| SnapshotArchive::open(&*inner.fs, &temporary))
            .and_then(|archive| inner.publish(&temporary, &path).map(|()| archive));
        match packed {
            Ok(archive) => Ok(inner.register(&archive, path, Health::Whole)),
            Err(error) => {
                // What cannot be removed now is removed at the next start.
                inner.fs.remove_file(&temporary).ok();
                Err(error)
            }
        }
    }

    /// All archives whose headers verify, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.inner.list().clone()
    }

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Why archives that were there when the directory was opened are not in the list.
    #[must_use]
    pub fn unusable(&self) -> &[SnapshotError] {
        &self.inner.unusable
    }

    /// The newest archive that is not known to be damaged.
    #[must_use]
    pub fn newest(&self) -> Option<SnapshotInfo> {
        self.inner.list().iter().find(|info| info.health != Health::Damaged).cloned()
    }

    /// The newest archive whose content is known to be whole: up to its label the log may be purged.
    #[must_use]
    pub fn newest_whole(&self) -> Option<SnapshotInfo> {
        self.inner.list().iter().find(|info| info.health == Health::Whole).cloned()
    }

    /// Up to where the retained snapshots hold what the log may forget: the newest one that is known to be whole, and the
    /// oldest that is not known to be damaged. With the log behind the oldest one, each of them can be used. Those that
    /// no node would take ([`SnapshotOptions::max_bytes`]) do not count.
    #[must_use]
    pub fn coverage(&self) -> Option<Coverage> {
        let list = self.inner.list();
        let retained = self.inner.options.retained.max(1);
        let usable = || list.iter().filter(|info| info.health != Health::Damaged && self.may_travel(info));
        let newest = usable().find(|info| info.health == Health::Whole)?;
        let (newest, newest_bytes) = (newest.label(), newest.len);
        let oldest = usable().take(retained).last().map_or(newest, SnapshotInfo::label);
        Some(Coverage { newest, newest_bytes, oldest: oldest.min(newest) })
    }

    /// Whether other nodes take an archive of this length.
    #[must_use]
    pub fn may_travel(&self, info: &SnapshotInfo) -> bool {
        info.len <= self.inner.options.max_bytes
    }

    /// Reads archives from the newest on until one is whole; with it, what was wrong with those before
    /// it. The caller has to see whether the log still reaches back to that one.
    ///
    /// # Errors
    /// [`SnapshotError::Aborted`]. Damage, and files that cannot be read, are part of the result.
    pub fn find_whole(
        &self,
        pace: &mut dyn Pace,
    ) -> Result<(Option<SnapshotInfo>, Vec<SnapshotError>), SnapshotError> {
        let mut damage = Vec::new();
        for info in self.list() {
            match self.verify(info.label(), pace) {
                Ok(info) => return Ok((Some(info), damage)),
                Err(SnapshotError::Aborted) => return Err(SnapshotError::Aborted),
                Err(error) => damage.push(error),
            }
        }
        Ok((None, damage))
    }

    /// Reads the whole archive with this label, and keeps in mind what it found.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] with the place, [`SnapshotError::Missing`],
    /// [`SnapshotError::Aborted`], or an I/O error.
    pub fn verify(&self, label: LogId, pace: &mut dyn Pace) -> Result<SnapshotInfo, SnapshotError> {
        let read = self.open_archive(label).and_then(|archive| archive.verify(pace).map(|()| archive));
        let health = match &read {
            Ok(_) => {
                // Whoever published it may have failed to sync its name: what is whole is relied upon.
                self.inner.sync_dir()?;
                Health::Whole
            }
            Err(SnapshotError::Damaged { .. }) => Health::Damaged,
            Err(_) => return read.map(|archive| SnapshotInfo::of(&archive, Health::Whole)),
        };
        // Only if it is still listed: it may have been pruned while it was read.
        self.note_health(label, health);
        read.map(|archive| SnapshotInfo::of(&archive, health))
    }

    /// Opens an archive for reading or sending. It stays readable when it is pruned meanwhile.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`], [`SnapshotError::Damaged`], or an I/O error.
    pub fn open_archive(&self, label: LogId) -> Result<SnapshotArchive, SnapshotError> {
        let known = self.inner.list().iter().find(|info| info.label() == label).map(|info| info.path.clone());
        let dir = || self.inner.dir.clone();
        let path = known.ok_or_else(|| SnapshotError::Missing { label, dir: dir() })?;
        let archive = match SnapshotArchive::open(&*self.inner.fs, &path) {
            Err(SnapshotError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                // Somebody else has removed it; it must not be counted on any more.
                self.inner.list().retain(|info| info.path != path);
                return Err(SnapshotError::Missing { label, dir: dir() });
            }
            opened => opened?,
        };
        self.inner.check_owner(archive.header(), &path)?;
        if archive.label() != label {
            return Err(SnapshotError::Missing { label, dir: dir() });
        }
        Ok(archive)
    }

    /// Where [`Self::unpack`] may put files that are needed for a moment only: what a crash leaves there
    /// is removed at the next start. Remove it with [`Fs::remove_tree`] after use.
    #[must_use]
    pub fn unpack_dir(&self) -> PathBuf {
        self.inner.dir.join(UNPACKED_DIR)
    }

    /// Removes what is in [`Self::unpack_dir`], if anything.
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

    /// Whether there is room for `bytes` more.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpace`], or an I/O error.
    pub fn has_room(&self, bytes: u64) -> Result<(), SnapshotError> {
        self.inner.check_space(bytes)
    }

    /// Whether a snapshot of about `bytes` has room beside the files it is made of; ask before anything is
    /// written.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpace`], or an I/O error.
    pub fn has_room_for(&self, bytes: u64) -> Result<(), SnapshotError> {
        self.inner.check_space(bytes.saturating_mul(2))
    }

    /// Keeps in mind that the archive with this label was just read whole.
    fn note_health(&self, label: LogId, health: Health) {
        let mut list = self.inner.list();
        list.iter_mut().filter(|info| info.label() == label).for_each(|info| info.health = health);
    }

    /// Writes the files of an archive into `into`, which must be empty or missing; every checksum is
    /// compared, and everything is synced before it says so.
    ///
    /// # Errors
    /// As [`SnapshotArchive::unpack`] and [`Self::open_archive`], and [`SnapshotError::NoSpace`].
    pub fn unpack(
        &self,
        label: LogId,
        into: &Path,
        pace: &mut dyn Pace,
    ) -> Result<Arc<SnapshotHeader>, SnapshotError> {
        let archive = self.open_archive(label)?;
        // For a moment, and the node cannot go on without it: what is reserved for the log is there for that too.
        self.inner.check_space_beyond(0, archive.header().content_bytes())?;
        let unpacked = archive.unpack(&*self.inner.fs, into, pace);
        match &unpacked {
            Ok(()) => self.note_health(label, Health::Whole),
            Err(SnapshotError::Damaged { path, .. }) if *path == archive.path => {
                self.note_health(label, Health::Damaged);
            }
            Err(_) => {}
        }
        unpacked?;
        Ok(Arc::clone(archive.header()))
    }

    /// Keeps the snapshot with this label from being pruned, whether it is there already or not.
    pub fn hold(&self, label: LogId) -> Hold {
        Hold::new(&self.inner, label)
    }

    /// Whether the archive with this header could be used here: ask before anything else of it is
    /// received. The header was read by [`SnapshotArchive::header_bytes`] of the sender.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::WrongOwner`], [`SnapshotError::NewerFormat`],
    /// [`SnapshotError::Name`].
    pub fn check_header(&self, encoded: &Bytes) -> Result<SnapshotHeader, SnapshotError> {
        let path = Path::new("the offered snapshot");
        let header = SnapshotHeader::decode(path, encoded)?;
        self.inner.check_owner(&header, path)?;
        Ok(header)
    }

    /// Begins to receive what a sender offers, or goes on where the last attempt was cut. What was
    /// received of any other offer is removed. `max_len` bounds what is believed of the offer.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while another receiver is held, [`SnapshotError::TooLarge`],
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Aborted`], or an I/O error.
    pub fn receive(
        &self,
        offer: Offer,
        max_len: u64,
        pace: &mut dyn Pace,
    ) -> Result<Receiver, SnapshotError> {
        let inner = &self.inner;
        if std::mem::replace(&mut inner.busy().receiving, true) {
            return Err(SnapshotError::Busy { what: "a transfer to this node" });
        }
        let receiver =
            inner.admit(&offer, max_len).and_then(|()| Receiver::open(Arc::clone(inner), offer, pace));
        if receiver.is_err() {
            inner.busy().receiving = false;
        }
        receiver
    }
}
