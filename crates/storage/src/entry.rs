//! A log entry as it is stored: the envelope and the payload.

use bytes::Bytes;
use d_engine_core::{EntryKind, LogId};

/// The session of a client and the number of its command within the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionSerial {
    /// The session, as the log index of the entry that opened it.
    pub session: u64,
    /// The number of the command; a retry carries the same number.
    pub serial: u64,
}

/// A whole log entry. The envelope (everything but `data`) belongs to the engine, `data` to
/// whoever proposed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Term and index.
    pub id: LogId,
    /// What the entry is for.
    pub kind: EntryKind,
    /// Log time: UNIX milliseconds, never going back along the log.
    pub time_ms: u64,
    /// Set for commands sent under a session.
    pub session: Option<SessionSerial>,
    /// The version of the command in `data`, as the state machine that led has judged it; 0 for entries of the engine.
    /// It stands beside the payload, so that a program that does not decode the command still knows its version.
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
    /// The entry without its payload.
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
