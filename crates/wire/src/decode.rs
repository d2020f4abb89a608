//! Decodes wire bytes to messages. The input is untrusted.

use std::time::Duration;

use bytes::Bytes;
use d_engine_core::{
    AppendOutcome, EntryKind, FollowerReport, GroupId, LogId, LogIndex, MAX_ACCEPTED_TIME_MS, Term,
};
use d_engine_replica::PeerMessage;
use d_engine_storage::{LogEntry, SessionSerial};
use prost::Message as _;

use crate::message::{self as peer, append_reply::Outcome, peer_frame::Body};
use crate::{ENTRIES_KEY, MAX_ENTRIES_PER_FRAME, MAX_ENTRY_DATA_BYTES, MAX_FRAME_BYTES};

/// Why a frame cannot be decoded. Its sender is faulty, newer or hostile: close the connection;
/// nothing of the frame may reach the core.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than allowed.
    #[error("the frame has {length} bytes; at most {limit} are allowed")]
    TooLong {
        /// Length of the frame in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The bytes are not this protobuf message.
    #[error("the frame is not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The bytes are cut off, or contain a wire type that protobuf 3 does not have.
    #[error("the frame is not a protobuf message: it is cut off or malformed at byte {0}")]
    Malformed(usize),
    /// A mandatory part of the message is missing or of an unknown kind.
    #[error("the frame has no `{0}`, or the sender is newer than this node")]
    Missing(&'static str),
    /// The group id is the reserved 0.
    #[error("the frame names the reserved group 0")]
    ReservedGroup,
    /// A number is higher than any cluster can reach.
    #[error("`{field}` is {value}; at most {limit} is accepted")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The highest accepted value.
        limit: u64,
    },
    /// An entry is of an unknown kind.
    #[error("entry {index} has the unknown kind {kind}")]
    UnknownKind {
        /// The entry.
        index: u64,
        /// The kind's number.
        kind: u32,
    },
    /// The head announces a different number of entries than the frame contains.
    #[error("the append announces {announced} entries, but the frame contains {found}")]
    EntryCount {
        /// Number of entries according to the head.
        announced: usize,
        /// Number of entries in the frame.
        found: usize,
    },
    /// The terms of the entries decrease, or exceed the leader's term.
    #[error("entry {index} has term {term}, outside {lowest}..={highest}")]
    TermOrder {
        /// The entry.
        index: u64,
        /// Its term.
        term: u64,
        /// The term of the entry before it.
        lowest: u64,
        /// The leader's term.
        highest: u64,
    },
}

/// Decodes one frame. Payloads of entries are copies, so they do not keep `frame` in memory.
///
/// # Errors
/// See [`FrameError`]: close the connection from which the frame came.
pub fn decode_frame(frame: &Bytes) -> Result<(GroupId, PeerMessage), FrameError> {
    if frame.len() > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { length: frame.len(), limit: MAX_FRAME_BYTES });
    }
    let found = count_entries(frame)?;
    at_most("entries", found as u64, MAX_ENTRIES_PER_FRAME as u64)?;
    let frame = peer::PeerFrame::decode(frame.clone())?;
    let group = GroupId::new(frame.group).ok_or(FrameError::ReservedGroup)?;
    let body = frame.body.ok_or(FrameError::Missing("body"))?;
    let announced = match &body {
        Body::Append(append) => append.entry_count as usize,
        _ => 0,
    };
    if announced != frame.entries.len() {
        return Err(FrameError::EntryCount { announced, found: frame.entries.len() });
    }
    Ok((group, message(body, frame.entries)?))
}

fn message(body: Body, entries: Vec<peer::Entry>) -> Result<PeerMessage, FrameError> {
    Ok(match body {
        Body::PreVote(m) => {
            PeerMessage::PreVote { term: term(m.term)?, last: position("last", m.last)? }
        }
        Body::PreVoteReply(m) => PeerMessage::PreVoteReply {
            term: term(m.term)?,
            granted: m.granted,
            wall_ms: time_ms("wall_ms", m.wall_ms)?,
        },
        Body::RequestVote(m) => PeerMessage::RequestVote {
            term: term(m.term)?,
            last: position("last", m.last)?,
            transfer: m.transfer,
        },
        Body::VoteReply(m) => PeerMessage::VoteReply {
            term: term(m.term)?,
            granted: m.granted,
            wall_ms: time_ms("wall_ms", m.wall_ms)?,
        },
        Body::Append(m) => {
            let (term, prev) = (term(m.term)?, position("prev", m.prev)?);
            PeerMessage::Append {
                term,
                prev,
                commit: index("commit", m.commit)?,
                entries: log_entries(term, prev, entries)?.into(),
            }
        }
        Body::AppendReply(m) => append_reply(m)?,
        Body::Heartbeat(m) => PeerMessage::Heartbeat {
            term: term(m.term)?,
            commit: index("commit", m.commit)?,
            round: m.round,
            matched: index("matched", m.matched)?,
        },
        Body::HeartbeatReply(m) => PeerMessage::HeartbeatReply {
            term: term(m.term)?,
            round: m.round,
            received: index("received", m.received)?,
            persisted: index("stored", m.persisted)?,
            report: follower_report(&m)?,
        },
        Body::TimeoutNow(m) => PeerMessage::TimeoutNow { term: term(m.term)? },
        Body::ReadRequest(m) => PeerMessage::ReadRequest { term: term(m.term)?, token: m.token },
        Body::ReadReply(m) => PeerMessage::ReadReply {
            term: term(m.term)?,
            token: m.token,
            index: m.index.map(|value| index("index", value)).transpose()?,
        },
    })
}

fn append_reply(reply: peer::AppendReply) -> Result<PeerMessage, FrameError> {
    let outcome = match reply.outcome.ok_or(FrameError::Missing("outcome"))? {
        Outcome::Persisted(persisted) => AppendOutcome::Persisted(index("stored", persisted)?),
        Outcome::Conflict(conflict) => AppendOutcome::Conflict {
            refused: index("refused", conflict.refused)?,
            hint: position("hint", conflict.hint)?,
        },
    };
    Ok(PeerMessage::AppendReply { term: term(reply.term)?, outcome })
}

fn follower_report(reply: &peer::HeartbeatReply) -> Result<FollowerReport, FrameError> {
    Ok(FollowerReport {
        applied: index("applied", reply.applied)?,
        stickiness: Duration::from_nanos(reply.stickiness_ns),
        wall_ms: time_ms("wall_ms", reply.wall_ms)?,
        log_lost: reply.log_lost,
        short_of_space: reply.short_of_space,
        halted_at: reply.halted_at.map(|at| position("halted_at", Some(at))).transpose()?,
        command_version_max: reply.command_version_max,
    })
}

/// Assigns the entries their indexes and checks that their terms can be those of a log: never
/// decreasing, none above the leader's (Raft paper, section 5.3).
fn log_entries(
    leader: Term,
    prev: LogId,
    entries: Vec<peer::Entry>,
) -> Result<Vec<LogEntry>, FrameError> {
    let last = prev.index.plus(entries.len() as u64);
    index("index of the last entry", last.get())?;
    let mut before = prev;
    let mut checked = Vec::with_capacity(entries.len());
    for entry in entries {
        let id = LogId::new(term(entry.term)?, before.index.next());
        if id.term < before.term || id.term > leader || id.term == Term::ZERO {
            return Err(FrameError::TermOrder {
                index: id.index.get(),
                term: id.term.get(),
                lowest: before.term.get().max(1),
                highest: leader.get(),
            });
        }
        at_most("length of an entry", entry.data.len() as u64, MAX_ENTRY_DATA_BYTES as u64)?;
        let kind = u8::try_from(entry.kind)
            .ok()
            .and_then(EntryKind::from_number)
            .ok_or(FrameError::UnknownKind { index: id.index.get(), kind: entry.kind })?;
        let session =
            entry.session.map(|one| SessionSerial { session: one.session, serial: one.serial });
        let time_ms = time_ms("time of an entry", entry.time_ms)?;
        // A copy: a slice would keep the whole buffer of the frame in memory, however small the
        // entry, for as long as a cache or a state machine holds it.
        let data = Bytes::copy_from_slice(&entry.data);
        checked.push(LogEntry { id, kind, time_ms, session, version: entry.version, data });
        before = id;
    }
    Ok(checked)
}

fn at_most(field: &'static str, value: u64, limit: u64) -> Result<u64, FrameError> {
    if value > limit { Err(FrameError::OutOfRange { field, value, limit }) } else { Ok(value) }
}

pub(super) fn term(value: u64) -> Result<Term, FrameError> {
    at_most("term", value, Term::MAX_ACCEPTED.get()).map(Term::new)
}

fn time_ms(field: &'static str, value: u64) -> Result<u64, FrameError> {
    at_most(field, value, MAX_ACCEPTED_TIME_MS)
}

fn index(field: &'static str, value: u64) -> Result<LogIndex, FrameError> {
    at_most(field, value, LogIndex::MAX_ACCEPTED.get()).map(LogIndex::new)
}

pub(super) fn position(
    field: &'static str,
    value: Option<peer::LogPosition>,
) -> Result<LogId, FrameError> {
    let value = value.ok_or(FrameError::Missing(field))?;
    Ok(LogId::new(term(value.term)?, index(field, value.index)?))
}

/// Counts the entries of a frame by its top-level fields before anything is decoded: two bytes on
/// the wire could decode to a hundred in memory.
fn count_entries(frame: &[u8]) -> Result<usize, FrameError> {
    let mut rest = frame;
    let mut count = 0;
    while !rest.is_empty() {
        let at = frame.len() - rest.len();
        let walk = |rest: &mut &[u8]| -> Option<bool> {
            let key = take_varint(rest)?;
            let length = match key & 7 {
                0 => take_varint(rest).map(|_| 0)?,
                1 => 8,
                2 => usize::try_from(take_varint(rest)?).ok()?,
                5 => 4,
                _ => return None,
            };
            *rest = rest.get(length..)?;
            Some(key == u64::from(ENTRIES_KEY))
        };
        count += usize::from(walk(&mut rest).ok_or(FrameError::Malformed(at))?);
    }
    Ok(count)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
