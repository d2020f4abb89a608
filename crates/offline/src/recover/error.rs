//! Why a directory cannot be recovered.

use std::path::PathBuf;

use d_engine_core::{GroupId, NodeId};
use d_engine_storage::snapshot::SnapshotError;
use d_engine_storage::{ClusterId, MembershipError, Retired, StorageError};

use crate::inspect::InspectError;
use crate::replacement::ReplacementError;

/// Why a directory is not one to recover.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// A process has it open.
    #[error("{holder} has it open; stop that process")]
    InUse {
        /// The process, as far as its lock names it.
        holder: String,
    },
    /// It was recovered already.
    #[error("it {0}")]
    Retired(Box<Retired>),
    /// Its node has never been a member, or has received nothing of the log.
    #[error("its node has never joined a cluster, so there is nothing in it")]
    NeverJoined,
    /// A start of the node refuses it.
    #[error(
        "a start of its node refuses it: {reason}; take the directory of another survivor, or mend \
         this one first (`d-engine repair --data-dir DIR`), or put back a copy of it that was taken \
         after its node's last stop, or restore its newest intact snapshot (docs/recovery.md)"
    )]
    Damaged {
        /// The damage, with its place.
        reason: String,
    },
    /// It is of another cluster than the first usable directory.
    #[error("it is of cluster {cluster}, not {expected}; look at each cluster by itself")]
    OtherCluster {
        /// Its cluster.
        cluster: ClusterId,
        /// The cluster of the first directory.
        expected: ClusterId,
    },
    /// It is of another Raft group than the first usable directory.
    #[error("it is of Raft group {group}, not {expected}; look at each group by itself")]
    OtherGroup {
        /// Its group.
        group: GroupId,
        /// The group of the first directory.
        expected: GroupId,
    },
    /// Another of the directories is of the same node and has as much or more.
    #[error("it is a copy of {of}, which has as much or more; a node survives once")]
    Copy {
        /// The other one.
        of: PathBuf,
    },
    /// The cluster knows the node by another directory.
    #[error("the cluster knows node {node} by another directory: this one was replaced or wiped")]
    OtherDirectory {
        /// The node.
        node: NodeId,
    },
}

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The directory cannot be read.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The directory is not one to recover. The reason says what to do.
    #[error("{path} cannot be recovered: {reason}")]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: Unfit,
    },
    /// The node is the only voter of its cluster, so nothing is lost. Start it.
    #[error("node {node} is the only voter of its cluster: start it on {path} as it is")]
    SoleVoter {
        /// The directory.
        path: PathBuf,
        /// The node.
        node: NodeId,
    },
    /// A node runs in the directory, or the new log cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The snapshot cannot be copied.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The member cannot be one. Correct its addresses.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Nobody can be reached at this address. Write it as `host:port`, without a wildcard.
    #[error(
        "nobody can be reached at {0:?}; write the address at which others will reach the node, as \
         host:port"
    )]
    Address(String),
    /// There is something where a directory is to be put. Move it away.
    #[error("{path} {what}; move it away and run the command again")]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The directory is retired, but the one that continues it is not there. Put it back.
    #[error(
        "{path} was retired by `recover`, but the directory of its new cluster, {new}, is missing; \
         put it back and run the command again; if it is lost and has never been started, remove \
         retired.meta from {path} and recover it anew"
    )]
    NoSuccessor {
        /// The old directory.
        path: PathBuf,
        /// Where the new one was built.
        new: PathBuf,
    },
    /// There is too little space. Make space.
    #[error("the disk of {path} has {free} bytes free, and {needed} are needed; make space")]
    NoSpace {
        /// The directory that was checked.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        needed: u64,
    },
    /// The log was read twice and differed. Check the disk.
    #[error("{path} was read twice, and entry {index} differs or is missing; check the disk")]
    Changed {
        /// The directory.
        path: PathBuf,
        /// The first entry that differs.
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
    /// The system gives no random numbers.
    #[error("no random number can be drawn for the new cluster: {0}")]
    Entropy(String),
    /// The new directory is complete, and the old one is retired or about to be, but they were not
    /// exchanged. Repair the cause and run the same command again.
    #[error(
        "{source}; the new directory {new} is complete, but it is not certain that it is in its \
         place: repair the cause and run the same command again"
    )]
    NotFinished {
        /// The new directory.
        new: PathBuf,
        /// The failure.
        source: Box<Self>,
    },
    /// The caller has ended the work. Nothing was changed.
    #[error("the recovery was stopped before it was done; nothing was changed")]
    Stopped,
}

impl From<ReplacementError> for RecoverError {
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
