//! Reads the data directory of a node that does not run, and changes nothing: what is in it, what
//! is damaged, and what a start would do with it.
//!
//! Recovery (`recover.rs`) refuses a damaged log as a whole. A survey continues after the damage,
//! by the same rules and with the same decoders, and names each damaged place with the entries that
//! are lost there. It reads segment by segment and group by group: its memory is bounded by the
//! largest group, plus about a hundred bytes for each segment and each place where a suffix of the
//! log was replaced, whatever the log's size.
//!
//! The first pass, [`Survey::read_log`], finds out which records count: a later entry with the same
//! index replaces an entry and everything after it. The second pass, [`Survey::entries`], visits
//! the entries that count.

mod directory;
mod entries;
mod parts;
mod replay;
mod tail;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, HardState, LogId, LogIndex, NodeId};

pub use self::entries::{Found, Range};
use self::parts::Part;
use self::replay::Cut;
use crate::fs::Fs;
use crate::log::record::LogRecord;
use crate::{ClusterId, Identity, Incarnation, LogEntry, StorageError};

/// A data directory that is being read.
#[derive(Debug)]
pub struct Survey {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    holder: Option<String>,
    identity: Option<Identity>,
    owner: Option<Owner>,
    reserved: Option<Incarnation>,
    /// What `log.meta` says; the default if it is damaged.
    record: LogRecord,
    record_is_lost: bool,
    /// The segments of the log, oldest first.
    parts: Vec<Part>,
    unused: Vec<String>,
    damage: Vec<Damage>,
    refusal: Option<StorageError>,
}

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

/// The result of the first pass over a log.
#[derive(Clone, Debug)]
pub struct LogSummary {
    /// The last hard state that can be read; `None` if there is none.
    pub hard_state: Option<HardState>,
    /// Whether damage follows the last hard state: a later term or vote may be lost.
    pub hard_state_may_be_older: bool,
    /// The segment and the offset up to which the log is known to be durable.
    pub watermark: (u64, u64),
    /// The last purged entry; `None` if the record that knows it is lost.
    pub base: Option<LogId>,
    /// Log time at `base`, in UNIX milliseconds, if it is known.
    pub base_time_ms: Option<u64>,
    /// The first entry that counts.
    pub first: Option<LogId>,
    /// The last entry that counts.
    pub last: Option<LogId>,
    /// The last membership entry that counts, with its payload.
    pub membership: Option<(LogIndex, Bytes)>,
    /// The payload of the last membership entry up to `base`, if the log knows it.
    pub base_membership: Option<Bytes>,
    /// The segments, oldest first.
    pub segments: Vec<SegmentSummary>,
    /// What a crash left half-written at the end.
    pub torn: Option<TornTail>,
    /// The number of damaged places.
    pub damaged: u64,
    /// If the log is damaged: a start succeeds with a whole snapshot up to this index or a later
    /// one. `None` if no snapshot would help.
    pub covered_by: Option<LogIndex>,
    /// What a start would do.
    pub start: StartOutcome,
    cuts: Vec<Cut>,
    /// Where the first pass ended: the second one reads no further.
    end: (u64, u64),
}

impl Survey {
    /// Begins to read the directory `dir`: its owner, the small records, and the headers of the
    /// segments. Whatever `fs` is, it is only read.
    ///
    /// # Errors
    /// [`StorageError::Io`] if the directory does not exist or must not be read. Damage is part of
    /// the result.
    pub fn of(fs: Arc<dyn Fs>, dir: &Path) -> Result<Self, StorageError> {
        directory::begin(fs, dir)
    }

    /// Returns the directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the file system, for reading only.
    #[must_use]
    pub fn fs(&self) -> &Arc<dyn Fs> {
        &self.fs
    }

    /// Returns the process that has the directory open, as far as its lock file names it. While it
    /// runs, the end of the log may change, and segments may be purged.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    /// Returns the identity, from a copy that verifies.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Returns the owner: the one in the identity or, if that is lost, the one in the newest
    /// segment's header.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Returns the incarnation under which the directory is reserved for a node that joins.
    #[must_use]
    pub fn reserved(&self) -> Option<Incarnation> {
        self.reserved
    }

    /// Returns the Raft group whose log is read.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.identity.as_ref().map_or(GroupId::FIRST, |identity| identity.group)
    }

    /// Returns the damage in files beside the log.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Returns why a start refuses the directory, if it does so before it reads the log.
    #[must_use]
    pub fn refusal(&self) -> Option<&StorageError> {
        self.refusal.as_ref()
    }

    /// Returns the names of segment files that hold no part of the log: purged, prepared, or
    /// skipped by an earlier recovery.
    #[must_use]
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Whether no node has ever used the directory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owner.is_none() && self.parts.is_empty() && self.damage.is_empty()
    }
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
