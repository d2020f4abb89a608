//! Errors of the durable log and its directory, and what to do about each.

use std::path::PathBuf;
use std::sync::Arc;

use crate::succession::Retired;

/// Advice for an operating system error, appended to its text; empty if there is none to give.
pub(crate) fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        _ if is_want_of_handles(error) => {
            "; raise the limit of open files (`ulimit -n`, or LimitNOFILE of the service) and \
             start the node again"
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; make space on this disk and start the node again"
        }
        std::io::ErrorKind::PermissionDenied => "; give the user of this process access to it",
        std::io::ErrorKind::ReadOnlyFilesystem => {
            "; remount the file system for writing and start the node again"
        }
        _ => "",
    }
}

/// Names the kind of program that reads format version `found`.
pub(crate) const fn program_that_reads(found: u32, supported: u32) -> &'static str {
    if found > supported { "a newer" } else { "an older" }
}

/// ENFILE and EMFILE.
fn is_want_of_handles(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Errors of the durable log and its directory.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused a file operation. The error is final for this store: repair the
    /// cause (space, permissions, device) and start the node again. Nothing acknowledged is lost.
    #[error("cannot {operation} {path}: {source}{}", advice(source))]
    Io {
        /// The operation that failed, as a verb: "write", "sync", "rename".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<std::io::Error>,
    },
    /// The disk has no free space, or no file handle is left. Not final: nothing is lost, and the
    /// same call can be repeated once there is space or a handle.
    #[error(
        "cannot {operation} {path}: {source}; the log waits until there is space or a free file \
         handle, and nothing is lost"
    )]
    NoRoom {
        /// The operation that failed, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<std::io::Error>,
    },
    /// An earlier error stopped this store. Act on `first`.
    #[error("an earlier error stopped the log: {first}")]
    Stopped {
        /// The text of the first error.
        first: Arc<str>,
    },
    /// Bytes that were known to be durable have changed. Nothing was deleted. Copy a snapshot of
    /// another node that covers the damage, or put back a copy of this node's directory that was
    /// taken after its last stop (`docs/snapshots.md`).
    #[error("segment {segment} is damaged at offset {offset}: {what}; nothing was changed")]
    Damaged {
        /// The segment file.
        segment: String,
        /// Offset in bytes.
        offset: u64,
        /// What does not verify.
        what: String,
    },
    /// A file beside the log is damaged. Nothing was deleted. Act as for [`StorageError::Damaged`].
    #[error("{path} is damaged: {what}; nothing was changed")]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// What does not verify.
        what: String,
    },
    /// Another process, or an earlier node of this process, holds the directory's lock. Stop it, or
    /// choose another directory.
    #[error("data directory {path} is in use by {holder}; {}", in_use_advice(holder))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The holder of the lock, as far as the lock file names it.
        holder: String,
    },
    /// The directory is no longer the one that this process locked: it was moved or replaced, and
    /// another process may be working in it. Stop that process and start the node again.
    #[error(
        "the data directory of {path} is no longer the one that this process locked: it was moved \
         or replaced; stop the process that works in it and start the node again"
    )]
    LockLost {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to another cluster, node or group than the configuration says. Correct
    /// the configuration or the path.
    #[error(
        "data directory {path} belongs to {what} {found}, but the configuration says {what} \
         {expected}; correct the configuration or the path"
    )]
    WrongOwner {
        /// The directory.
        path: PathBuf,
        /// "cluster", "node" or "group".
        what: &'static str,
        /// The value in the directory.
        found: String,
        /// The value in the configuration.
        expected: String,
    },
    /// The directory was reserved by a node that began to join a cluster, and is opened without
    /// joining. Configure `join` again, or empty the directory.
    #[error(
        "data directory {path} was reserved by a node that began to join a cluster; set `join` \
         again, or empty the directory"
    )]
    ReservedToJoin {
        /// The directory.
        path: PathBuf,
    },
    /// `recover` or `repair` has made another directory from this one. Start that one.
    #[error("data directory {path} {retired}")]
    Retired {
        /// The directory.
        path: PathBuf,
        /// When, and by which directory.
        retired: Box<Retired>,
    },
    /// A command that builds the directory was interrupted: it has not put it into its place yet.
    /// Run the command again; if it has nothing to finish, remove what it has built.
    #[error(
        "data directory {path} is missing or empty, but {unfinished} is beside it: `d-engine \
         {command}` was interrupted; run it again, and if it has nothing to finish, remove \
         {unfinished}"
    )]
    Unfinished {
        /// The directory.
        path: PathBuf,
        /// What the command has built so far.
        unfinished: PathBuf,
        /// The command.
        command: &'static str,
    },
    /// The storage engine cannot reserve a directory, so its node cannot join a cluster. Implement
    /// `StorageEngine::reserve`, or list the node in `members` when the cluster is created.
    #[error(
        "this storage engine cannot reserve a directory, so its node cannot join a cluster; \
         implement `StorageEngine::reserve`"
    )]
    CannotReserve,
    /// A program that writes another version of the format wrote the directory. Use a program that
    /// reads it.
    #[error(
        "{path} has format version {found}, and this program reads version {supported}; use {} \
         program", program_that_reads(*found, *supported)
    )]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version that this program reads.
        supported: u32,
    },
    /// The caller violated the order of the log (a gap, an unknown index). This is a defect of the
    /// engine; report it.
    #[error("a call violates the order of the log: {0}")]
    Order(String),
}

impl StorageError {
    /// Converts an error for the start of a node. A start does not wait for free space, so
    /// [`StorageError::NoRoom`] becomes [`StorageError::Io`], whose text says what to do.
    #[must_use]
    pub fn final_at_start(self) -> Self {
        match self {
            Self::NoRoom { operation, path, source } => Self::Io { operation, path, source },
            other => other,
        }
    }
}

/// A process that drops an engine and opens its directory at once finds the lock held by itself.
fn in_use_advice(holder: &str) -> &'static str {
    if holder == format!("process {}", std::process::id()) {
        "that is this process: a dropped node shuts down in the background, so await its `stop()` \
         before you open the directory again"
    } else {
        "stop that process or choose another directory"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that has no space at its start stops; it does not wait.
    #[test]
    fn want_of_room_at_a_start_says_what_to_do_and_does_not_speak_of_waiting() {
        for (number, advice) in
            [(28, "make space on this disk"), (23, "ulimit -n"), (24, "ulimit -n")]
        {
            let source = Arc::new(std::io::Error::from_raw_os_error(number));
            let waits = StorageError::NoRoom {
                operation: "write",
                path: PathBuf::from("/data/log"),
                source,
            };
            assert!(waits.to_string().contains("waits until there is space"), "{waits}");
            let text = waits.final_at_start().to_string();
            assert!(text.contains(advice) && text.contains("start the node again"), "{text}");
            assert!(!text.contains("waits"), "{text}");
        }
    }
}
