//! Errors of the on-disk key-value machine.

use std::io;
use std::path::PathBuf;

/// Why the machine cannot continue. None of these loses durable data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskKvError {
    /// The file system failed. Repair it and start the node again.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// There is no space for the database. Nothing is lost: what was applied is kept in memory, and
    /// the machine opens its file again and continues once there is space.
    #[error("the database {path} waits for space on its disk and then continues: {source}")]
    NoRoom {
        /// Its file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The database failed. Repair the disk and start the node again. A start detects a damaged
    /// file and moves it aside; the machine is then refilled from the snapshot and the log.
    #[error("the database {path} failed: {source}; repair the disk and start the node again")]
    Database {
        /// Its file.
        path: PathBuf,
        /// The failure.
        source: Box<redb::Error>,
    },
    /// The file is damaged. Check the disk and start the node again: the start moves the file
    /// aside, and the machine is refilled from the snapshot and the log.
    #[error(
        "the database {path} is damaged: {what}; check the disk and start the node again: the \
         start moves the file aside and refills the machine from the snapshot and the log"
    )]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A newer program created the database. Upgrade this node.
    #[error(
        "the database {path} has format version {found}, but this program reads {expected}; \
         upgrade this node"
    )]
    Newer {
        /// Its file.
        path: PathBuf,
        /// The file's format version.
        found: u64,
        /// The format version that this program reads.
        expected: u64,
    },
    /// Another process has the directory open. Stop that process, or give this one another
    /// directory.
    #[error("{dir} is in use by {holder}; stop that process or use another directory")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process, as far as the lock identifies it.
        holder: String,
    },
    /// While a snapshot was written, the file grew beyond the limit, because pages that the
    /// snapshot reads cannot be reused. The snapshot is retried; reduce the write rate, or raise
    /// `view_growth_bytes`.
    #[error(
        "the snapshot was cancelled because the database {path} grew from {began_at} to \
         {grown_to} bytes while it was written; it will be retried; reduce the write rate or \
         raise view_growth_bytes"
    )]
    ViewGivenUp {
        /// Its file.
        path: PathBuf,
        /// File length in bytes when the snapshot began.
        began_at: u64,
        /// File length in bytes when the snapshot was cancelled.
        grown_to: u64,
    },
    /// A snapshot is replacing the records, and there was not enough free space for both. Retry
    /// after the install.
    #[error("the machine in {dir} is installing a snapshot; retry later")]
    BeingFilled {
        /// Its directory.
        dir: PathBuf,
    },
    /// The machine has not been started. The engine starts it; call `start` when using it without
    /// an engine.
    #[error("the machine in {dir} has not been started")]
    NotStarted {
        /// Its directory.
        dir: PathBuf,
    },
}

impl DiskKvError {
    /// Whether the file itself is damaged, as opposed to a failing disk or a temporary condition.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Database { source, .. } => match &**source {
                redb::Error::Corrupted(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TypeDefinitionChanged { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TableDoesNotExist(_)
                | redb::Error::UpgradeRequired(_)
                | redb::Error::RepairAborted => true,
                redb::Error::Io(error) => is_wrong_content(error),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the file could not be used, or is not open any more because of that.
    pub(crate) fn is_of_file(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Database { source, .. } => {
                matches!(**source, redb::Error::PreviousIo | redb::Error::DatabaseClosed)
            }
            _ => false,
        }
    }
}

/// Whether the disk returned data without error and the data are corrupt.
pub(crate) fn is_wrong_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// A failure of the database without its path, which the rules do not know.
#[derive(Debug)]
pub(crate) enum Failure {
    Database(Box<redb::Error>),
    /// What is wrong with a record.
    Damaged(String),
}

macro_rules! from {
    ($($error:ident)*) => {
        $(impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}

from! { StorageError TableError TransactionError CommitError DatabaseError SetDurabilityError }
