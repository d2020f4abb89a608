//! A log entry as it is stored: the envelope and the payload.

use bytes::Bytes;
use d_engine_core::{EntryKind, LogId, LogIndex, SessionSerial, Term};

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

/// Payload bytes of an entry that skips another.
pub const SKIP_BYTES: u32 = 16;

/// Encodes the id of an entry that is skipped: the payload of an [`EntryKind::Skip`].
#[must_use]
pub fn encode_skip(target: LogId) -> Bytes {
    let mut bytes = [0; SKIP_BYTES as usize];
    let (term, index) = bytes.split_at_mut(8);
    term.copy_from_slice(&target.term.get().to_le_bytes());
    index.copy_from_slice(&target.index.get().to_le_bytes());
    Bytes::copy_from_slice(&bytes)
}

/// Decodes the entry that such a payload names; `None` for a payload that no leader has written.
#[must_use]
pub fn decode_skip(payload: &[u8]) -> Option<LogId> {
    let (term, index) = payload.split_first_chunk::<8>()?;
    let index: [u8; 8] = index.try_into().ok()?;
    let (term, index) = (u64::from_le_bytes(*term), u64::from_le_bytes(index));
    let in_range = term <= Term::MAX_ACCEPTED.get() && index <= LogIndex::MAX_ACCEPTED.get();
    in_range.then(|| LogId::new(Term::new(term), LogIndex::new(index)))
}
