//! What a survey reports.

use std::path::PathBuf;

use d_engine_core::{LogId, LogIndex, NodeId};

use crate::{ClusterId, Incarnation, LogEntry, StorageError};

/// Whose a data directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The directory.
    pub incarnation: Incarnation,
}

/// A place that does not verify.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Offset in bytes.
    pub offset: u64,
    /// The next offset at which the file verifies again; `None` if that is unknown or there is
    /// none.
    pub to: Option<u64>,
    /// What does not verify.
    pub what: String,
    /// What of the log cannot be read because of it.
    pub loss: Loss,
}

/// What is lost with a damaged place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Nothing: another copy of the same record counts, and a start rewrites this one.
    Copy,
    /// A record beside the log, which has no readable copy.
    Record,
    /// These entries of the log, both included.
    Entries {
        /// The first one.
        first: LogIndex,
        /// The last one.
        last: LogIndex,
    },
    /// All entries from this one on that the log had. How many there were is unknown.
    From(LogIndex),
    /// Only the header of a segment: every group in it can be read.
    Header,
    /// No index is missing. The damaged place held only terms and votes, or entries that later ones
    /// replace, or newer versions of entries before it.
    NoIndex,
    /// Unknown: the readable part of the log has no beginning to count from.
    Unknown,
}

/// A write that was interrupted, at the end of the log. Its entries were never acknowledged, and a
/// start cuts it off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TornTail {
    /// The segment file.
    pub path: PathBuf,
    /// The offset of the first byte that a start cuts off.
    pub offset: u64,
    /// The number of bytes up to the last one that was written.
    pub bytes: u64,
}

/// A segment of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// The file.
    pub path: PathBuf,
    /// Its number.
    pub number: u64,
    /// The open epoch in its header; `None` if the header does not verify.
    pub epoch: Option<u64>,
    /// The index of the first entry in it, whether that entry still counts or not.
    pub first: Option<LogIndex>,
    /// The index of the last one.
    pub last: Option<LogIndex>,
    /// Length of the file in bytes, with the zeros ahead of the log.
    pub len: u64,
    /// The end of its last whole group, in bytes.
    pub end: u64,
    /// The number of whole groups.
    pub groups: u64,
    /// The number of damaged places.
    pub damaged: u64,
}

/// What a start would do with the log.
#[derive(Clone, Debug)]
pub enum StartOutcome {
    /// It reads all of it.
    Whole,
    /// It begins after the snapshot up to this entry, which holds everything that the damage may
    /// have destroyed.
    After(LogId),
    /// It refuses the directory with this error.
    Refused(StorageError),
}

/// An entry that counts, and where it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEntry {
    /// The entry.
    pub entry: LogEntry,
    /// The number of its segment.
    pub segment: u64,
    /// The offset of its record.
    pub offset: u64,
}
