//! The first I/O error of a store is final (`docs/file-format.md`, "After an error").
//!
//! After a failed sync the system may have dropped the dirty pages and forgotten the error: a
//! second sync would succeed with the data lost. So nothing is retried. Every later call fails.
//!
//! Want of room is no such error when opening, writing or renaming is what fails: then nothing was promised yet,
//! and the caller can try again. A sync that fails for want of room (delayed allocation) is as final as any.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::StorageError;

/// Remembers the first error; shared by everything that writes into one data directory.
#[derive(Debug, Default)]
pub(crate) struct FsLatch {
    first: OnceLock<Arc<str>>,
}

impl FsLatch {
    /// Fails with [`StorageError::Stopped`] once an error has been seen.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.first.get() {
            None => Ok(()),
            Some(first) => Err(StorageError::Stopped { first: Arc::clone(first) }),
        }
    }

    /// Runs `work` unless an error came before, and remembers its error. An error in the order of
    /// calls, or for want of room, leaves what is stored as it was and is not remembered.
    pub(crate) fn guard<T>(&self, work: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
        self.check()?;
        let result = work();
        self.remember(&result);
        result
    }

    /// Remembers the error in `result`, if there is one.
    pub(crate) fn remember<T>(&self, result: &Result<T, StorageError>) {
        if let Err(error) = result
            && !matches!(error, StorageError::Order(_) | StorageError::NoRoom { .. })
        {
            self.first.get_or_init(|| error.to_string().into());
        }
    }
}

/// Names the operation and the file of an I/O error.
pub(crate) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io { operation, path, source: Arc::new(source) }
}

/// As [`io_error`], for what may be tried again: want of room is told apart.
pub(crate) fn room_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| match is_want_of_room(&source) {
        true => StorageError::NoRoom { operation, path, source: Arc::new(source) },
        false => StorageError::Io { operation, path, source: Arc::new(source) },
    }
}

/// Whether the system lacks space (ENOSPC, EDQUOT) or file handles (EMFILE, ENFILE): both come back.
#[must_use]
pub fn is_want_of_room(error: &std::io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}
