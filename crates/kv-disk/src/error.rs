//! What can go wrong with a database.

use std::io;
use std::path::PathBuf;

/// Why the machine cannot go on. None of these loses what was durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskKvError {
    /// The file system failed. Mend it and start the node again.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The database failed. Mend the disk and start the node again. A damaged file is found at the start, put aside, and
    /// the machine filled anew from the snapshot and the log.
    #[error("the database {path}: {source}")]
    Database {
        /// Its file.
        path: PathBuf,
        /// The failure.
        source: Box<redb::Error>,
    },
    /// The file is damaged. Look at the disk, and start the node again: the file is put aside, and the machine filled anew
    /// from the snapshot and the log.
    #[error(
        "the database {path} is damaged: {what}; look at the disk, and start the node again: it puts the file \
             aside and is filled anew from the snapshot and the log"
    )]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The database was made by a newer program. Upgrade this node.
    #[error("the database {path} has format version {found}, this program reads {expected}")]
    Newer {
        /// Its file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version of this program.
        expected: u64,
    },
    /// Somebody else has the directory open. Stop that process, or give this one another directory.
    #[error("{dir} is in use by {holder}")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who, as far as the lock tells.
        holder: String,
    },
    /// While a snapshot was written, the file has grown beyond the bound: pages that the snapshot reads are not written
    /// anew. The snapshot is tried again; write less meanwhile, or raise `view_growth_bytes`.
    #[error(
        "the database {path} has grown from {began_at} to {grown_to} bytes while a snapshot of it was written, which \
             was given up; it is tried again when less is written, or raise view_growth_bytes"
    )]
    ViewGivenUp {
        /// Its file.
        path: PathBuf,
        /// Bytes when the snapshot was begun.
        began_at: u64,
        /// Bytes when it was given up.
        grown_to: u64,
    },
    /// A snapshot takes the place of the records, and there was no room for both. Ask again when it is installed.
    #[error("the machine in {dir} is being filled from a snapshot; ask again later")]
    BeingFilled {
        /// Its directory.
        dir: PathBuf,
    },
    /// The machine has not been started. The engine does that; call `start` where there is none.
    #[error("the machine in {dir} has not been started")]
    NotStarted {
        /// Its directory.
        dir: PathBuf,
    },
}

impl DiskKvError {
    /// Whether it is the file that is wrong, not the disk or the moment.
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
}

/// Whether the disk has done what it was asked to, and what it gave makes no sense.
pub(crate) fn is_wrong_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// A failure of the database, without its file: the rules do not know that.
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
