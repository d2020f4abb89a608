//! What a tool does with the directory of a node that does not run: it locks it, retires it, and
//! notes where a new one comes from, and what a repaired one has promised.

use crate::log::file_engine::FileStorageEngine;
use crate::log::latch::io_error;
use crate::meta_store::{FileMetaStore, ORIGIN, REPAIR, RETIRED};
use crate::promise::Repaired;
use crate::succession::{Origin, Retired};
use crate::{DirectoryLocks, StorageError};

impl FileStorageEngine {
    /// Takes the locks that a node holds while it runs. Neither reads nor changes anything else.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while a node runs there, or [`StorageError::Io`], also for a
    /// directory that does not exist.
    pub fn lock_stopped(&self) -> Result<DirectoryLocks, StorageError> {
        self.take_locks()
    }

    /// Returns by what the directory was replaced, if it was.
    ///
    /// # Errors
    /// The record is damaged or cannot be read.
    pub fn retired(&self) -> Result<Option<Retired>, StorageError> {
        self.meta().retired()
    }

    /// Makes every later open fail with [`StorageError::Retired`]. Durable when the call returns.
    /// `held` are the locks of this directory.
    ///
    /// # Errors
    /// [`StorageError::Io`] or [`StorageError::NoRoom`]; then the directory is as before.
    pub fn retire(&self, retired: &Retired, held: &DirectoryLocks) -> Result<(), StorageError> {
        self.write_held(RETIRED, &retired.encode(), held)
    }

    /// Returns where the directory comes from, if it was made by force from another one.
    ///
    /// # Errors
    /// The record is damaged or cannot be read.
    pub fn origin(&self) -> Result<Option<Origin>, StorageError> {
        self.meta().origin()
    }

    /// Stores where the directory comes from. Durable when the call returns. `held` are the locks
    /// of this directory.
    ///
    /// # Errors
    /// [`StorageError::Io`] or [`StorageError::NoRoom`].
    pub fn set_origin(&self, origin: &Origin, held: &DirectoryLocks) -> Result<(), StorageError> {
        self.write_held(ORIGIN, &origin.encode(), held)
    }

    /// Returns what the directory may have acknowledged before its log was repaired.
    ///
    /// # Errors
    /// The record is damaged or cannot be read.
    pub fn repaired(&self) -> Result<Option<Repaired>, StorageError> {
        self.meta().repaired()
    }

    /// Stores what the directory may have acknowledged before its log was repaired. Durable when
    /// the call returns. `held` are the locks of this directory.
    ///
    /// # Errors
    /// [`StorageError::Io`] or [`StorageError::NoRoom`].
    pub fn set_repaired(
        &self,
        repaired: &Repaired,
        held: &DirectoryLocks,
    ) -> Result<(), StorageError> {
        self.write_held(REPAIR, &repaired.encode(), held)
    }

    fn write_held(
        &self,
        name: &str,
        record: &[u8],
        held: &DirectoryLocks,
    ) -> Result<(), StorageError> {
        for lock in held.iter() {
            if !lock.is_held().map_err(io_error("check the lock of", self.dir()))? {
                return Err(StorageError::LockLost { path: self.dir().to_owned() });
            }
        }
        let meta = self.meta();
        // What a crash has left of an earlier attempt.
        meta.remove_temporary(name)?;
        meta.write(name, record)
    }

    /// Refuses to open a directory that another one has replaced.
    pub(crate) fn refuse_retired(&self, meta: &FileMetaStore) -> Result<(), StorageError> {
        match meta.retired()? {
            Some(retired) => {
                let (path, retired) = (self.dir().to_owned(), Box::new(retired));
                Err(StorageError::Retired { path, retired })
            }
            None => Ok(()),
        }
    }
}
