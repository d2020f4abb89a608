//! A log entry as it is stored: the envelope and the payload.

use bytes::Bytes;
use d_engine_core::{EntryKind, LogId, SessionSerial};

/// A whole log entry. The envelope (everything but `data`) belongs to the engine, `data` to its
/// proposer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Term and index.
    pub id: LogId,
    /// What the entry is for.
    pub kind: EntryKind,
    /// Log time: UNIX milliseconds, never going back along the log.
    pub time_ms: u64,
    /// Set for commands that belong to a session.
    pub session: Option<SessionSerial>,
    /// The version of the command in `data`, as determined by the leader's state machine; 0 for
    /// entries of the engine. It is stored beside the payload, so that a program that does not
    /// decode the command still knows its version.
    pub version: u32,
    /// The payload: a command, an encoded [`crate::Membership`], or empty.
    pub data: Bytes,
}

/// What the core needs to know of a stored entry: everything but the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHead {
    /// Term and index.
    pub id: LogId,
    /// What the entry is for.
    pub kind: EntryKind,
    /// Log time in UNIX milliseconds.
    pub time_ms: u64,
    /// The version of the command; 0 for entries of the engine.
    pub version: u32,
    /// Length of the payload in bytes.
    pub data_len: u32,
}

impl LogEntry {
    /// Returns the entry without its payload.
    #[must_use]
    pub fn head(&self) -> EntryHead {
        EntryHead {
            id: self.id,
            kind: self.kind,
            time_ms: self.time_ms,
            version: self.version,
            data_len: u32::try_from(self.data.len()).unwrap_or(u32::MAX),
        }
    }
}
