//! The small records of a directory, each copy by itself, and whose the directory is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::GroupId;

use super::parts::{Part, Parts};
use super::report::{Damage, Loss, Owner};
use crate::fs::{Fs, ReadOnlyFs};
use crate::log::file_engine::{FileStorageEngine, LOCK_FILE, LOG_DIR, reserved};
use crate::log::group_reader::is_bad_sector;
use crate::log::latch::{FsLatch, io_error};
use crate::log::meta::LogMeta;
use crate::log::options::FileStorageOptions;
use crate::log::record::LogRecord;
use crate::meta_store::{FileMetaStore, IDENTITY, JOIN};
use crate::promise::Repaired;
use crate::succession::{Origin, Retired};
use crate::{DirectoryLocks, Identity, Incarnation, StorageEngine, StorageError};

/// A data directory that is being read.
#[derive(Debug)]
pub struct Survey {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) dir: PathBuf,
    pub(super) holder: Option<String>,
    pub(super) identity: Option<Identity>,
    pub(super) owner: Option<Owner>,
    pub(super) reserved: Option<Incarnation>,
    pub(super) origin: Option<Origin>,
    pub(super) retired: Option<Retired>,
    pub(super) repaired: Option<Repaired>,
    pub(super) others: Vec<(String, Bytes)>,
    /// What `log.meta` says; the default if it is damaged.
    pub(super) record: LogRecord,
    pub(super) record_is_lost: bool,
    /// The segments of the log, oldest first.
    pub(super) parts: Vec<Part>,
    pub(super) unused: Vec<String>,
    pub(super) damage: Vec<Damage>,
    pub(super) refusal: Option<StorageError>,
}

impl Survey {
    /// Begins to read the directory `dir`: its owner, the small records, and the headers of the
    /// segments. Whatever `fs` is, it is only read.
    ///
    /// # Errors
    /// [`StorageError::Io`] if the directory does not exist or must not be read. Damage is part of
    /// the result.
    pub fn of(fs: Arc<dyn Fs>, dir: &Path) -> Result<Self, StorageError> {
        let fs: Arc<dyn Fs> = Arc::new(ReadOnlyFs::new(fs));
        fs.list(dir).map_err(io_error("list", dir))?;
        let holder = holder(&*fs, dir)?;
        begin(fs, dir, holder)
    }

    /// As [`Survey::of`], for a directory whose locks `held` are, so that no node runs there.
    ///
    /// # Errors
    /// As [`Survey::of`].
    pub fn of_locked(
        fs: Arc<dyn Fs>,
        dir: &Path,
        held: &DirectoryLocks,
    ) -> Result<Self, StorageError> {
        for lock in held.iter() {
            if !lock.is_held().map_err(io_error("check the lock of", dir))? {
                return Err(StorageError::LockLost { path: dir.to_owned() });
            }
        }
        begin(Arc::new(ReadOnlyFs::new(fs)), dir, None)
    }

    /// Returns the directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the file system, for reading only.
    #[must_use]
    pub fn fs(&self) -> &Arc<dyn Fs> {
        &self.fs
    }

    /// Returns the process that has the directory open, as far as its lock file names it. While it
    /// runs, the end of the log may change, and segments may be purged.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    /// Returns the identity, from a copy that verifies.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Returns the owner: the one in the identity or, if that is lost, the one in the newest
    /// segment's header.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Returns the incarnation under which the directory is reserved for a node that joins.
    #[must_use]
    pub fn reserved(&self) -> Option<Incarnation> {
        self.reserved
    }

    /// Returns where the directory comes from, if it was made by force from another one.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Returns by what the directory was replaced, if it was.
    #[must_use]
    pub fn retired(&self) -> Option<&Retired> {
        self.retired.as_ref()
    }

    /// Returns what the directory may have acknowledged before its log was repaired.
    #[must_use]
    pub fn repaired(&self) -> Option<&Repaired> {
        self.repaired.as_ref()
    }

    /// Returns name and content of the records beside the log that belong to no particular
    /// directory, of those that verify: what a node notes about its state machine.
    #[must_use]
    pub fn other_records(&self) -> &[(String, Bytes)] {
        &self.others
    }

    /// Returns the Raft group whose log is read.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.identity.as_ref().map_or(GroupId::FIRST, |identity| identity.group)
    }

    /// Returns the damage in files beside the log.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Returns why a start refuses the directory, if it does so before it reads the log.
    #[must_use]
    pub fn refusal(&self) -> Option<&StorageError> {
        self.refusal.as_ref()
    }

    /// Returns the names of segment files that hold no part of the log: purged, prepared, or
    /// skipped by an earlier recovery.
    #[must_use]
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Whether no node has ever used the directory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owner.is_none() && self.parts.is_empty() && self.damage.is_empty()
    }
}

/// The records of a directory.
#[derive(Default)]
struct Records {
    identity: Option<Identity>,
    reserved: Option<Incarnation>,
    origin: Option<Origin>,
    retired: Option<Retired>,
    repaired: Option<Repaired>,
    others: Vec<(String, Bytes)>,
    record: LogRecord,
    record_is_lost: bool,
    damage: Vec<Damage>,
    refusal: Option<StorageError>,
}

fn begin(fs: Arc<dyn Fs>, dir: &Path, holder: Option<String>) -> Result<Survey, StorageError> {
    fs.list(dir).map_err(io_error("list", dir))?;
    let records = Records::read(&fs, dir, holder.is_some())?;
    let log_dir = dir.join(LOG_DIR);
    let known = records.identity.as_ref().map(Owner::of);
    let parts = Parts::find(&*fs, &log_dir, known, &records.record, records.record_is_lost)?;
    Ok(Survey {
        dir: dir.to_owned(),
        holder,
        owner: parts.owner,
        identity: records.identity,
        reserved: records.reserved,
        origin: records.origin,
        retired: records.retired,
        repaired: records.repaired,
        others: records.others,
        record: records.record,
        record_is_lost: records.record_is_lost,
        parts: parts.parts,
        unused: parts.unused,
        damage: records.damage,
        refusal: records.refusal,
        fs,
    })
}

fn holder(fs: &dyn Fs, dir: &Path) -> Result<Option<String>, StorageError> {
    let path = dir.join(LOCK_FILE);
    match fs.lock_holder(&path) {
        // A user who may not read the lock file may still read the rest.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Ok(None) => fs.lock_holder(dir).map_err(io_error("check the lock of", dir)),
        asked => asked.map_err(io_error("check the lock of", &path)),
    }
}

impl Owner {
    fn of(identity: &Identity) -> Self {
        let Identity { cluster, node, incarnation, .. } = *identity;
        Self { cluster, node, incarnation }
    }
}

impl Records {
    fn read(fs: &Arc<dyn Fs>, dir: &Path, is_in_use: bool) -> Result<Self, StorageError> {
        let latch = Arc::new(FsLatch::default());
        let meta = FileMetaStore::new(Arc::clone(fs), dir, Arc::clone(&latch));
        let mut records = Self::default();
        match meta.retired() {
            Ok(None) => {}
            Ok(Some(retired)) => {
                let (path, by) = (dir.to_owned(), Box::new(retired.clone()));
                records.refusal = Some(StorageError::Retired { path, retired: by });
                records.retired = Some(retired);
            }
            Err(error) => records.refuse(error)?,
        }
        records.read_identity(fs, dir, &meta)?;
        match meta.origin() {
            Ok(origin) => records.origin = origin,
            Err(error) => records.refuse(error)?,
        }
        match meta.repaired() {
            Ok(repaired) => records.repaired = repaired,
            Err(error) => records.refuse(error)?,
        }
        let open = || LogMeta::open(Arc::clone(fs), dir, Arc::clone(&latch));
        let mut opened = open();
        if is_in_use && opened.as_ref().map_or(true, |(log, _)| !log.mended.is_empty()) {
            // The process may have been overwriting a copy.
            opened = open();
        }
        match opened {
            Ok((log, record)) => {
                records.record = record;
                for path in &log.mended {
                    records.note(
                        path,
                        "it is damaged or missing; the other copy counts",
                        Loss::Copy,
                    );
                }
            }
            Err(error) => {
                records.record_is_lost = true;
                records.refuse(error)?;
            }
        }
        match reserved(&meta) {
            Ok(found) => records.reserved = found,
            Err(error) if records.identity.is_none() => records.refuse(error)?,
            Err(_) => records.note(&meta.path(JOIN), LEFT_OVER, Loss::Copy),
        }
        for name in fs.list(dir).map_err(io_error("list", dir))? {
            let Some(name) = FileMetaStore::name_of_other(&name) else { continue };
            match meta.read(name) {
                Ok(stored) => {
                    records.others.extend(stored.map(|stored| (name.to_owned(), stored)));
                }
                Err(error) => records.refuse_nothing(&error)?,
            }
        }
        Ok(records)
    }

    fn read_identity(
        &mut self,
        fs: &Arc<dyn Fs>,
        dir: &Path,
        meta: &FileMetaStore,
    ) -> Result<(), StorageError> {
        let engine = FileStorageEngine::new(dir, FileStorageOptions::default(), Arc::clone(fs));
        let path = meta.path(IDENTITY);
        match engine.owner() {
            Ok(Some(identity)) => self.identity = Some(identity),
            Ok(None) => {
                if let Err(error) = engine.refuse_orphans(path) {
                    self.refuse(error)?;
                }
                return Ok(());
            }
            Err(error) => return self.refuse(error),
        }
        let copies =
            [(path, meta.read(IDENTITY)), (meta.copy_path(IDENTITY), meta.read_copy(IDENTITY))];
        for (path, read) in copies {
            match read {
                Ok(Some(_)) => {}
                Ok(None) => self.note(&path, "it is missing; the other copy counts", Loss::Copy),
                Err(error) => {
                    let (_, what) = read_as_damage(&error)?;
                    self.note(&path, &format!("{what}; the other copy counts"), Loss::Copy);
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, what: &str, loss: Loss) {
        let (path, what) = (path.to_owned(), what.to_owned());
        self.damage.push(Damage { path, offset: 0, to: None, what, loss });
    }

    /// Notes damage, or a newer version, because of which a start refuses the directory.
    fn refuse(&mut self, error: StorageError) -> Result<(), StorageError> {
        self.refuse_nothing(&error)?;
        self.refusal.get_or_insert(error);
        Ok(())
    }

    /// Notes damage that does not keep a node from starting.
    fn refuse_nothing(&mut self, error: &StorageError) -> Result<(), StorageError> {
        let (path, what) = read_as_damage(error)?;
        self.note(&path, &what, Loss::Record);
        Ok(())
    }
}

/// Returns the record that an error is about, and what is wrong with it: damage, a version that
/// this program does not read, or a sector that the medium has lost.
///
/// # Errors
/// Any other error: the record must not be read.
fn read_as_damage(error: &StorageError) -> Result<(PathBuf, String), StorageError> {
    match error {
        StorageError::DamagedFile { path, what } => Ok((path.clone(), what.clone())),
        StorageError::UnsupportedFormat { path, .. } => Ok((path.clone(), error.to_string())),
        StorageError::Io { path, source, .. } if is_bad_sector(source) => {
            Ok((path.clone(), "it cannot be read".to_owned()))
        }
        _ => Err(error.clone()),
    }
}

const LEFT_OVER: &str = "it is damaged, and no longer needed, because the node has joined";
