//! The first I/O error of a store is final (`docs/file-format.md`, "After an error").
//!
//! After a failed sync the operating system may have dropped the dirty pages and forgotten the
//! error; a second sync would succeed with the data lost. So nothing is retried: every later call
//! fails.
//!
//! Lack of space or file handles is not final if opening, writing or renaming fails with it:
//! nothing was promised yet, and the caller can try again. A sync that fails for lack of space
//! (delayed allocation) is final like any other.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::StorageError;
use crate::fs::is_out_of_space;

/// Remembers the first error. Shared by everything that writes into one data directory.
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
    /// calls, or a lack of space or file handles, leaves what is stored as it was and is not
    /// remembered.
    pub(crate) fn guard<T>(
        &self,
        work: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
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

/// Returns a function that adds the operation and the file to an I/O error.
pub(crate) fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io { operation, path, source: Arc::new(source) }
}

/// As [`io_error`], for operations that may be tried again: lack of space or file handles becomes
/// [`StorageError::NoRoom`].
pub(crate) fn room_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| match is_out_of_space(&source) {
        true => StorageError::NoRoom { operation, path, source: Arc::new(source) },
        false => StorageError::Io { operation, path, source: Arc::new(source) },
    }
}
