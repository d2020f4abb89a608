//! Why a directory was not mended.

use std::path::PathBuf;

use d_engine_storage::snapshot::SnapshotError;
use d_engine_storage::{Retired, StorageError};

use crate::inspect::InspectError;
use crate::replacement::ReplacementError;

/// Why nothing was mended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The directory cannot be mended, or need not be.
    #[error("{path} {cause}")]
    Cannot {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do instead.
        cause: Cause,
    },
    /// The directory cannot be read.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The new log cannot be written, or a node runs in the directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The fetched snapshot is damaged or cannot be read. Run the command again.
    #[error("the snapshot of the other node cannot be used: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The fetched snapshot does not fit. Fetch it from another member of the node's cluster.
    #[error("the snapshot of the other node {what}; name another member of the node's cluster")]
    WrongSnapshot {
        /// Why.
        what: String,
    },
    /// Something else is where the work must be done. Move it away.
    #[error("{path} {what}; move it away, and run the command again")]
    Occupied {
        /// The place.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// There is too little space for a second log. Make space.
    #[error("the disk of {path} has {free} bytes free, and {needed} are needed; make space")]
    NoSpace {
        /// The directory that was checked.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        needed: u64,
    },
    /// The directory has changed while it was read. Run the command again.
    #[error("{path} has changed while entry {index} was copied; run the command again")]
    Changed {
        /// The directory.
        path: PathBuf,
        /// The entry.
        index: u64,
    },
    /// The file system failed.
    #[error("failed to {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// The mended directory is complete, and is not in its place yet. Correct the cause, and run
    /// the same command again.
    #[error(
        "the mended directory is complete in {new}, but could not be put into its place: {source}; \
         correct the cause, and run the same command again"
    )]
    NotFinished {
        /// Where the mended directory is.
        new: PathBuf,
        /// The failure.
        source: Box<Self>,
    },
    /// The caller's progress function has ended the work.
    #[error("the repair was stopped before it was done; nothing was changed")]
    Stopped,
}

/// Why a directory is not mended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// Its log is intact.
    #[error("has no damaged log: start the node")]
    Intact,
    /// A snapshot of its own holds everything that is damaged.
    #[error("needs no repair: an intact snapshot holds what is damaged; start the node")]
    Covered,
    /// An earlier repair or recovery has replaced it.
    #[error("{0}")]
    Retired(Box<Retired>),
    /// Something besides the log is damaged, or another program wrote it.
    #[error(
        "cannot be mended: {reason}; let a new node vote in its place: start one on an empty \
         directory with `replaces = {node}` (docs/members.md)"
    )]
    Refused {
        /// What a start says.
        reason: String,
        /// The node, or N.
        node: String,
    },
    /// No hard state or no entry can be read after the damage.
    #[error(
        "cannot be mended: after the damaged place no vote, or no entry, can be read, so the \
         node's last one may be in it, and a forgotten vote can elect two leaders; let a new node \
         vote in its place: start one on an empty directory with `replaces = {node}` \
         (docs/members.md)"
    )]
    VoteMayBeLost {
        /// The node.
        node: String,
    },
    /// As far as can be read, no other node has the entries. The entry that made others voters may
    /// be among the damaged ones.
    #[error(
        "cannot be mended: as far as can be read, node {node} is the only voter, so no other node \
         has the damaged entries; restore a backup (docs/recovery.md). If the cluster has more \
         voters, replace this one: start a node on an empty directory with `replaces = {node}` \
         (docs/members.md)"
    )]
    SoleVoter {
        /// The node.
        node: String,
    },
    /// The log begins after entries that no intact snapshot holds. Fetch one.
    #[error(
        "cannot be mended without a snapshot of another node: the log begins after entry {base}, \
         and no intact snapshot reaches that entry; run the command again with `--from HOST:PORT`, \
         the client address of another member, which sends one"
    )]
    NoSnapshot {
        /// The last purged index.
        base: u64,
    },
}

impl From<ReplacementError> for RepairError {
    fn from(error: ReplacementError) -> Self {
        match error {
            ReplacementError::Inspect(error) => Self::Inspect(error),
            ReplacementError::Storage(error) => Self::Storage(error),
            ReplacementError::Occupied { path, what } => Self::Occupied { path, what },
            ReplacementError::NoSpace { path, free, needed } => {
                Self::NoSpace { path, free, needed }
            }
            ReplacementError::Io { operation, path, source } => {
                Self::Io { operation, path, source }
            }
        }
    }
}
