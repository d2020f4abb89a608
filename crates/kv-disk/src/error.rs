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
    /// The database failed: the disk did, or its file is damaged. Mend the disk and start the node again; if the file
    /// is damaged, remove the directory: the machine is rebuilt from the snapshot and the log, or from another node.
    #[error("the database {path}: {source}")]
    Database {
        /// Its file.
        path: PathBuf,
        /// The failure.
        source: Box<redb::Error>,
    },
    /// A record of the machine's own has another form than this program writes. As a damaged database.
    #[error("the database {path} is damaged: {what}")]
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

/// A failure of the database, without its file: the rules do not know that.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<redb::Error>);

macro_rules! from {
    ($($error:ident)*) => {
        $(impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                Self(Box::new(error.into()))
            }
        })*
    };
}

from! { StorageError TableError TransactionError CommitError DatabaseError SetDurabilityError }
