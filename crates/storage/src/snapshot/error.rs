//! What can go wrong with a snapshot, and what to do about each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::LogId;

impl SnapshotError {
    /// Whether the disk has too little room, or the process too few file handles: the same can succeed later.
    #[must_use]
    pub fn is_want_of_room(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::fs_latch::is_want_of_room(source),
            Self::NoSpace { .. } => true,
            _ => false,
        }
    }
}

/// Errors of building, keeping, sending and receiving snapshots. None of them touches the log or an
/// older snapshot: the node goes on with what it has.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The operating system refused a file operation. Repair the cause (space, permissions, device);
    /// the snapshot can then be taken or received again.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// The archive does not verify. It was not changed. Use the snapshot before it, or let the leader
    /// send one.
    #[error("snapshot {path} is damaged at offset {offset}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset in bytes.
        offset: u64,
        /// What was expected there, and what was found.
        what: String,
    },
    /// A newer program wrote it.
    #[error(
        "{path}: {what} has version {found}; this program reads up to {supported}: use a newer program on this node"
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// "the archive", "the engine's part" or "the state machine's data".
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version that this program reads.
        supported: u32,
    },
    /// Commands took effect in its state that the program does not decode: it could not go on from there.
    #[error(
        "{path} is of a state in which commands of version {found} took effect; this program decodes up to {supported}: \
         start a newer program on this node"
    )]
    NewerCommands {
        /// The file.
        path: PathBuf,
        /// The highest version of a command in the state.
        found: u32,
        /// The highest version that this program decodes.
        supported: u32,
    },
    /// The content is compressed in a way that this version does not read.
    #[error(
        "{path} is compressed by method {number}, which this version does not read; install a newer one on this node"
    )]
    Compressed {
        /// The file.
        path: PathBuf,
        /// The method's number.
        number: u32,
    },
    /// The snapshot belongs to another cluster or group, or has another label than was asked for.
    #[error("{path} belongs to {what} {found}, but {what} {expected} was expected; it was not used")]
    WrongOwner {
        /// The file.
        path: PathBuf,
        /// "cluster", "group" or "label".
        what: &'static str,
        /// What the archive says.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// There is no such snapshot here. Ask for the list again.
    #[error("there is no snapshot {label} in {dir}")]
    Missing {
        /// The label.
        label: LogId,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A file name that a snapshot must not have. The state machine has to choose another name; from
    /// a sender, refuse the transfer.
    #[error("{path}: the file name {name:?} {what}")]
    Name {
        /// The archive or directory.
        path: PathBuf,
        /// The name.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Something is larger than the format, or the limit given by the caller, allows.
    #[error("{path}: {what} is {found}, and at most {limit} is allowed")]
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
    /// The disk has too little space. Make room, or let fewer snapshots be kept.
    #[error(
        "{path}: {needed} bytes are needed, with {reserve} that snapshots leave to the log (snapshots.reserve_bytes), and {free} are free; make room on this disk"
    )]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes needed, with the reserve for the log.
        needed: u64,
        /// The part of them that is left to the log.
        reserve: u64,
        /// Bytes free.
        free: u64,
    },
    /// A file changed while it was read. The state machine must leave its files alone once it has
    /// returned; take the snapshot again.
    #[error("{path} changed while it was read: {expected} bytes were announced, {found} were there")]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length at the start.
        expected: u64,
        /// Bytes that could be read.
        found: u64,
    },
    /// The files are not those whose checksum the state machine returned. Take the snapshot again; if
    /// it happens again, the state machine computes the checksum in another way than
    /// `snapshot_checksum`.
    #[error(
        "the files of snapshot {label} have the checksum {found}, but the state machine said {expected}: it has to return \
         snapshot_checksum(&dir) after its last write"
    )]
    ContentChecksum {
        /// The snapshot.
        label: LogId,
        /// What the state machine said, in hexadecimal digits.
        expected: String,
        /// What the files have.
        found: String,
    },
    /// A piece of a transfer does not fit behind what has been received. Send from `expected` on.
    #[error("{path}: a piece at offset {offset} was sent, but the next one must begin at {expected}")]
    Gap {
        /// The file.
        path: PathBuf,
        /// Where the piece begins.
        offset: u64,
        /// Where the next piece must begin.
        expected: u64,
    },
    /// A piece of a transfer says something else about bytes that were received before. Start the
    /// transfer anew.
    #[error("{path}: a piece at offset {offset} differs from what was received there before")]
    Overlap {
        /// The file.
        path: PathBuf,
        /// Where the piece begins.
        offset: u64,
    },
    /// A piece of a transfer reaches past the announced end. Start the transfer anew.
    #[error("{path}: a piece reaches to offset {end}, but {length} bytes were announced")]
    PastEnd {
        /// The file.
        path: PathBuf,
        /// Where the piece ends.
        end: u64,
        /// The announced length.
        length: u64,
    },
    /// A piece of a transfer was changed on its way. Send it again.
    #[error(
        "{path}: the piece at offset {offset} has checksum {found:08x}, but {expected:08x} was sent with it"
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
    /// The transfer is not at its end. Go on at `received`.
    #[error("{path}: {received} of {length} bytes have been received; go on from there")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// Bytes received.
        received: u64,
        /// The announced length.
        length: u64,
    },
    /// The directory to unpack into is not empty. Remove it, or choose another one.
    #[error("{path} is not empty; a snapshot is unpacked into an empty directory only")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Only one may be under way at a time. Wait until the other one has ended.
    #[error("{what} is under way already; wait until it has ended")]
    Busy {
        /// "a snapshot" or "a transfer to this node".
        what: &'static str,
    },
    /// Two attempts were given up before they came to their end, and may still write. Start the node again, with a longer
    /// `snapshots.pause_max_ms`, or let the state machine have a `snapshot_view`.
    #[error(
        "{attempts} snapshots were given up before generate_snapshot_data had come to its end, and may still write: no \
         other one is begun; raise snapshots.pause_max_ms, or implement snapshot_view, and start the node again"
    )]
    GivenUp {
        /// How many.
        attempts: usize,
    },
    /// [`super::Pace`] ended the work. Nothing of it is left.
    #[error("the work on the snapshot was ended before it was done")]
    Aborted,
}

/// Names the operation and the file of an I/O error.
pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { operation, path, source: Arc::new(source) }
}

/// Damage at `offset`, with what was expected and what was found.
pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> SnapshotError {
    SnapshotError::Damaged { path: path.to_owned(), offset, what: what.into() }
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
