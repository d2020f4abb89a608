//! What can go wrong on disk, and what to do about each.

use std::path::PathBuf;
use std::sync::Arc;

/// What to do about an error of the system that says it without a word of advice.
pub(crate) fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        _ if is_want_of_handles(error) => {
            "; raise the limit of open files (`ulimit -n`, or LimitNOFILE of the service) and start the node again"
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; make room on this disk and start the node again"
        }
        std::io::ErrorKind::PermissionDenied => "; give this process's user the right to it",
        std::io::ErrorKind::ReadOnlyFilesystem => {
            "; mount the file system for writing and start the node again"
        }
        _ => "",
    }
}

/// ENFILE and EMFILE.
fn is_want_of_handles(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Errors of the durable log and its directory.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused a file operation. Final for this store: repair the cause (space,
    /// permissions, device) and start the node again; nothing acknowledged is lost.
    #[error("{operation} {path}: {source}{}", advice(source))]
    Io {
        /// What was tried, as a verb: "write", "sync", "rename".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// There is no room on the disk, or no file handle left. Not final: nothing is lost, and the same
    /// call may be made again once there is room.
    #[error("{operation} {path}: {source}; the log waits until there is room, nothing is lost")]
    NoRoom {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// An earlier error ended this store. See `first`.
    #[error("the log was stopped by an earlier error: {first}")]
    Stopped {
        /// The first error, in words.
        first: Arc<str>,
    },
    /// Bytes that were known to be stored have changed. Nothing was deleted. Restore the directory
    /// from a copy, or remove the node and add it again with an empty directory.
    #[error("segment {segment} is damaged at offset {offset}: {what}; nothing was changed")]
    Damaged {
        /// The segment file.
        segment: String,
        /// Offset in bytes.
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// A file beside the log is damaged. Nothing was deleted.
    #[error("{path} is damaged: {what}; nothing was changed")]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Another process holds the directory.
    #[error("data directory {path} is in use by {holder}; {}", in_use_advice(holder))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as far as the lock file tells.
        holder: String,
    },
    /// The directory is no longer the one that this process has locked: it was moved, or replaced. Another process may
    /// work in it. Stop whoever works on it, and start the node again.
    #[error(
        "data directory of {path} is no longer the one that this process has locked; it was moved or replaced: stop \
         whatever works on it and start the node again"
    )]
    LockLost {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to somebody else.
    #[error("data directory {path} belongs to {what} {found}, but {what} {expected} was asked for")]
    WrongOwner {
        /// The directory.
        path: PathBuf,
        /// "cluster", "node" or "group".
        what: &'static str,
        /// What the directory says.
        found: String,
        /// What the configuration says.
        expected: String,
    },
    /// The directory was written by a newer version of the program.
    #[error("{path} has format version {found}; this program reads up to {supported}: use a newer program")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Newest version this program reads.
        supported: u32,
    },
    /// The caller broke the order of the log (a gap, an unknown index). A defect of the engine.
    #[error("log order: {0}")]
    Order(String),
}

impl StorageError {
    /// The same, for whoever does not wait: want of room ends a start.
    #[must_use]
    pub fn final_at_start(self) -> Self {
        match self {
            Self::NoRoom { operation, path, source } => Self::Io { operation, path, source },
            other => other,
        }
    }
}

/// Whoever drops an engine and opens its directory at once meets itself.
fn in_use_advice(holder: &str) -> &'static str {
    if holder == format!("process {}", std::process::id()) {
        "that is this process: a node that was dropped ends in the background, so await its `stop()` before"
    } else {
        "stop that process or choose another directory"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that has no room at its start ends: it does not wait.
    #[test]
    fn want_of_room_at_a_start_says_what_to_do_and_does_not_speak_of_waiting() {
        for (number, advice) in [(28, "make room on this disk"), (23, "ulimit -n"), (24, "ulimit -n")] {
            let source = Arc::new(std::io::Error::from_raw_os_error(number));
            let waits = StorageError::NoRoom { operation: "write", path: PathBuf::from("/data/log"), source };
            assert!(waits.to_string().contains("waits until there is room"), "{waits}");
            let text = waits.final_at_start().to_string();
            assert!(text.contains(advice) && text.contains("start the node again"), "{text}");
            assert!(!text.contains("waits"), "{text}");
        }
    }
}
