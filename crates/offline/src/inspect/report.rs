//! Options, progress and errors of an inspection.

use std::path::PathBuf;

use d_engine_storage::StorageError;
use d_engine_storage::snapshot::SnapshotError;

/// Whether the content of the snapshots is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshots {
    /// Every chunk of every snapshot is verified.
    Verify,
    /// Only headers and trailers are read. A snapshot whose header is intact counts as intact.
    HeadersOnly,
}

/// What was read since the last report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// This many bytes of the log.
    Log(u64),
    /// This many bytes of a snapshot.
    Snapshot(u64),
}

/// Why a directory or file could not be inspected. Damage is not an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// A file of the directory must not be read. Give the user of this process access, or run it as
    /// the user of the node.
    #[error(transparent)]
    Directory(#[from] StorageError),
    /// A snapshot must not be read. As for [`InspectError::Directory`].
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The directory has neither an identity nor a log, nor was it reserved. Correct the path.
    #[error(
        "{path} is not the data directory of a node: it has neither an identity nor a log; name \
         the `data_dir` of the node's configuration"
    )]
    NotADirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The caller's progress function has ended the work.
    #[error("the inspection was stopped before it was done")]
    Stopped,
}

impl InspectError {
    /// Whether the directory or file does not exist: correct the path.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Directory(StorageError::Io { source, .. })
            | Self::Snapshot(SnapshotError::Io { source, .. }) => {
                source.kind() == std::io::ErrorKind::NotFound
            }
            _ => false,
        }
    }
}
