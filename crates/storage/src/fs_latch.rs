//! The first I/O error of a store is final (`docs/file-format.md`, "After an error").
//!
//! After a failed sync the system may have dropped the dirty pages and forgotten the error: a
//! second sync would succeed with the data lost. So nothing is retried. Every later call fails.

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
    /// calls leaves the disk as it was and is not remembered.
    pub(crate) fn guard<T>(&self, work: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
        self.check()?;
        let result = work();
        self.remember(&result);
        result
    }

    /// Remembers the error in `result`, if there is one.
    pub(crate) fn remember<T>(&self, result: &Result<T, StorageError>) {
        if let Err(error) = result
            && !matches!(error, StorageError::Order(_))
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
