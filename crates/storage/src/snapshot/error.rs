//! Errors of snapshots, and what to do about each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::LogId;

use crate::error::program_that_reads;
use crate::fs::tree::TreeError;

impl SnapshotError {
    /// Whether the disk has too little free space, or the process too few file handles. The same
    /// call can succeed later.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::fs::is_out_of_space(source),
            Self::NoSpace { .. } => true,
            _ => false,
        }
    }
}

/// Errors of building, keeping, sending and receiving snapshots. None of them affects the log or an
/// older snapshot: the node continues with those.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The operating system refused a file operation. Repair the cause (space, permissions,
    /// device); the snapshot can then be taken or received again.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation that failed, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<std::io::Error>,
    },
    /// The archive does not verify. It was not changed. Use the previous snapshot, or let the
    /// leader send one.
    #[error("snapshot {path} is damaged at offset {offset}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset in bytes.
        offset: u64,
        /// What was expected at that offset, and what was found.
        what: String,
    },
    /// A program that writes another version of the format wrote the archive. Install a program on
    /// this node that reads it.
    #[error(
        "{path}: {what} has version {found}, and this program reads versions up to {supported}; \
         use {} program on this node", program_that_reads(*found, *supported)
    )]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// "the archive", "the engine's data" or "the state machine's data".
        what: &'static str,
        /// The version in the archive.
        found: u32,
        /// The newest version that this program reads.
        supported: u32,
    },
    /// The snapshot's state contains the effect of commands that this program does not decode, so a
    /// node could not continue from it. Start a newer program on this node.
    #[error(
        "{path} contains the effect of commands of version {found}, and this program decodes \
         versions up to {supported}; start a newer program on this node"
    )]
    NewerCommands {
        /// The file.
        path: PathBuf,
        /// The highest version of a command in the state.
        found: u32,
        /// The highest version that this program decodes.
        supported: u32,
    },
    /// The content is compressed with a method that this program does not read. Install a newer
    /// program on this node.
    #[error(
        "{path} is compressed with method {number}, which this program does not read; install a \
         newer program on this node"
    )]
    Compressed {
        /// The file.
        path: PathBuf,
        /// The number of the method.
        number: u32,
    },
    /// The snapshot belongs to another cluster or group, or is another one than requested. It was
    /// not used.
    #[error("{path} has {what} {found}, but {what} {expected} was expected; the file was not used")]
    WrongOwner {
        /// The file.
        path: PathBuf,
        /// The field that differs: "cluster", "group", "last included entry", "SHA-256" or "state
        /// machine".
        what: &'static str,
        /// The value in the archive.
        found: String,
        /// The expected value.
        expected: String,
    },
    /// The store does not contain this snapshot; it may have been pruned. List the snapshots again.
    #[error("there is no snapshot {last_included} in {dir}")]
    Missing {
        /// Log id of the last included entry.
        last_included: LogId,
        /// The directory of the store.
        dir: PathBuf,
    },
    /// A file name that a snapshot must not contain. The state machine must choose another name. In
    /// a received archive, refuse the archive.
    #[error("{path}: the file name {name:?} {what}")]
    Name {
        /// The archive or directory.
        path: PathBuf,
        /// The name.
        name: String,
        /// The rule that the name violates.
        what: &'static str,
    },
    /// Something is larger than the format or the caller's limit allows.
    #[error("{path}: {what} is {found}; at most {limit} is allowed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// Its size or count.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk has too little free space. Make space, or retain fewer snapshots.
    #[error(
        "{path}: {needed} bytes are needed{}, and {free} are free; make space on this disk",
        reserve_words(*reserve)
    )]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes needed, including the reserve for the log.
        needed: u64,
        /// The part of `needed` that snapshots leave to the log.
        reserve: u64,
        /// Free bytes.
        free: u64,
    },
    /// A file changed while it was read. The state machine must not write to its files after it has
    /// returned. Take the snapshot again.
    #[error(
        "{path} changed while it was read: {expected} bytes were expected, and {found} were found"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length at the start.
        expected: u64,
        /// Bytes that could be read.
        found: u64,
    },
    /// The files do not have the checksum that the state machine returned. Take the snapshot again.
    /// If the error comes again, the state machine does not compute the checksum as
    /// `snapshot_checksum` does.
    #[error(
        "the files of snapshot {last_included} have checksum {found}, but the state machine returned \
         {expected}; it must return snapshot_checksum(&dir) after its last write"
    )]
    ContentChecksum {
        /// Log id of the last included entry.
        last_included: LogId,
        /// The checksum that the state machine returned, in hexadecimal digits.
        expected: String,
        /// The checksum of the files.
        found: String,
    },
    /// A piece of a received snapshot leaves a gap after the bytes before it. Send from `expected`
    /// on.
    #[error("{path}: a piece begins at offset {offset}, but the next one must begin at {expected}")]
    Gap {
        /// The file.
        path: PathBuf,
        /// Where the piece begins.
        offset: u64,
        /// Where the next piece must begin.
        expected: u64,
    },
    /// A piece of a received snapshot differs from bytes that were received before. Begin again at
    /// offset 0.
    #[error("{path}: a piece at offset {offset} differs from the bytes received there before")]
    Overlap {
        /// The file.
        path: PathBuf,
        /// Where the piece begins.
        offset: u64,
    },
    /// A piece of a received snapshot extends past the announced end. Begin again at offset 0.
    #[error("{path}: a piece ends at offset {end}, but {length} bytes were announced")]
    PastEnd {
        /// The file.
        path: PathBuf,
        /// Where the piece ends.
        end: u64,
        /// The announced length.
        length: u64,
    },
    /// A piece of a received snapshot was corrupted in flight. Send it again.
    #[error(
        "{path}: the piece at offset {offset} has checksum {found:08x}, but was sent with checksum \
         {expected:08x}"
    )]
    Piece {
        /// The file.
        path: PathBuf,
        /// Where the piece begins.
        offset: u64,
        /// The checksum sent with the piece.
        expected: u32,
        /// The checksum of its bytes.
        found: u32,
    },
    /// The snapshot has not been received to its end. Continue at offset `received`.
    #[error("{path}: {received} of {length} bytes have been received; continue from there")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// Bytes received.
        received: u64,
        /// The announced length.
        length: u64,
    },
    /// There is a file where a backup is to go. Nothing is overwritten: name another file.
    #[error("{path} exists; a backup overwrites nothing: name another file, or move this one away")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes a backup to the same file. Wait for it, or stop it.
    #[error("another process ({holder}) writes a backup to {path}; wait for it, or stop it")]
    Locked {
        /// The file.
        path: PathBuf,
        /// The process, as far as the lock names it.
        holder: String,
    },
    /// The directory to unpack into is not empty. Remove it, or choose another one.
    #[error("{path} is not empty; a snapshot can only be unpacked into an empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Only one can be in progress at a time. Wait until the other one has ended.
    #[error("{what} is already in progress; wait until it has ended")]
    Busy {
        /// The work in progress: "taking a snapshot" or "receiving a snapshot".
        what: &'static str,
    },
    /// Two attempts were given up before they had ended, and may still write. Start the node again,
    /// with a longer `snapshots.pause_max_ms`, or implement `snapshot_view` in the state machine.
    #[error(
        "{attempts} snapshots were given up before generate_snapshot_data had ended, and may still \
         write, so no other one is begun; raise snapshots.pause_max_ms, or implement \
         snapshot_view, and start the node again"
    )]
    GivenUp {
        /// The number of these attempts.
        attempts: usize,
    },
    /// [`super::Pace`] stopped the work. Nothing of it is left.
    #[error("the work on the snapshot was stopped before it was done")]
    Aborted,
}

impl From<TreeError> for SnapshotError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Io { operation, path, source } => Self::Io { operation, path, source },
            TreeError::Name { path, name, what } => Self::Name { path, name, what },
            TreeError::Changed { path, expected, found } => Self::Changed { path, expected, found },
        }
    }
}

/// Names the part of the needed space that is left to the log.
fn reserve_words(reserve: u64) -> String {
    match reserve {
        0 => String::new(),
        _ => format!(
            ", including {reserve} that snapshots leave to the log (snapshots.reserve_bytes)"
        ),
    }
}

/// Returns a function that adds the operation and the file to an I/O error.
pub(super) fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { operation, path, source: Arc::new(source) }
}

/// Damage at `offset`; `what` says what was expected and what was found.
pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> SnapshotError {
    SnapshotError::Damaged { path: path.to_owned(), offset, what: what.into() }
}

/// Returns the bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
