//! The small records of a directory, each copy by itself, and whose the directory is.

use std::path::Path;
use std::sync::Arc;

use d_engine_core::Incarnation;

use super::parts::Parts;
use super::{Damage, Loss, Owner, Survey};
use crate::fs::{Fs, ReadOnlyFs};
use crate::log::file_engine::{FileStorageEngine, LOCK_FILE, LOG_DIR, reserved};
use crate::log::latch::{FsLatch, io_error};
use crate::log::meta::LogMeta;
use crate::log::options::FileStorageOptions;
use crate::log::record::LogRecord;
use crate::meta_store::{FileMetaStore, IDENTITY, JOIN};
use crate::{Identity, StorageEngine, StorageError};

/// The records of a directory.
#[derive(Default)]
struct Records {
    identity: Option<Identity>,
    reserved: Option<Incarnation>,
    record: LogRecord,
    record_is_lost: bool,
    damage: Vec<Damage>,
    refusal: Option<StorageError>,
}

pub(super) fn begin(fs: Arc<dyn Fs>, dir: &Path) -> Result<Survey, StorageError> {
    let fs: Arc<dyn Fs> = Arc::new(ReadOnlyFs::new(fs));
    fs.list(dir).map_err(io_error("list", dir))?;
    let holder = holder(&*fs, dir)?;
    let records = Records::read(&fs, dir)?;
    let log_dir = dir.join(LOG_DIR);
    let known = records.identity.as_ref().map(Owner::of);
    let parts = Parts::find(&*fs, &log_dir, known, &records.record, records.record_is_lost)?;
    Ok(Survey {
        dir: dir.to_owned(),
        holder,
        owner: parts.owner,
        identity: records.identity,
        reserved: records.reserved,
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
        // Whoever may not read the lock file may still read the rest.
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
    fn read(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Self, StorageError> {
        let latch = Arc::new(FsLatch::default());
        let meta = FileMetaStore::new(Arc::clone(fs), dir, Arc::clone(&latch));
        let mut records = Self::default();
        records.read_identity(fs, dir, &meta)?;
        match LogMeta::open(Arc::clone(fs), dir, latch) {
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
            if let Some(name) = FileMetaStore::name_of_other(&name)
                && let Err(error) = meta.read(name)
            {
                records.refuse_nothing(&error)?;
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
                Err(StorageError::DamagedFile { what, .. }) => {
                    self.note(&path, &format!("{what}; the other copy counts"), Loss::Copy);
                }
                Err(error) => return Err(error),
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
        match &error {
            StorageError::DamagedFile { path, what } => {
                self.note(path, what, Loss::Record);
            }
            StorageError::UnsupportedFormat { path, .. } => {
                self.note(path, &error.to_string(), Loss::Record);
            }
            _ => return Err(error),
        }
        self.refusal.get_or_insert(error);
        Ok(())
    }

    /// Notes damage that does not keep a node from starting.
    fn refuse_nothing(&mut self, error: &StorageError) -> Result<(), StorageError> {
        match error {
            StorageError::DamagedFile { path, what } => self.note(path, what, Loss::Record),
            StorageError::UnsupportedFormat { path, .. } => {
                self.note(path, &error.to_string(), Loss::Record);
            }
            _ => return Err(error.clone()),
        }
        Ok(())
    }
}

const LEFT_OVER: &str = "it is damaged, and no longer needed, because the node has joined";
