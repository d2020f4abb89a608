//! Encodes messages to wire bytes.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use d_engine_core::{AppendOutcome, FollowerReport, GroupId, LogId, LogIndex, Term, nanos};
use d_engine_replica::PeerMessage;
use d_engine_storage::LogEntry;
use prost::Message as _;

use crate::message::{self as peer, append_reply::Outcome, peer_frame::Body};
use crate::{ENTRIES_KEY, MAX_ENTRIES_PER_FRAME, MAX_FRAME_BYTES};

/// Space reserved in a frame for everything but the entries.
const HEAD_ROOM: usize = 256;

/// A frame in two parts, to write one after the other; concatenated, they are one `PeerFrame`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The message itself, a few dozen bytes.
    pub head: Bytes,
    /// The entries of an append, shared by all frames that carry the same ones; otherwise empty.
    pub entries: Bytes,
}

impl EncodedFrame {
    /// Returns the length of the whole frame in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.entries.len()
    }

    /// Always false: a frame contains at least its group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the whole frame in one buffer; copies unless one part is empty.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        if self.entries.is_empty() {
            return self.head.clone();
        }
        let mut whole = BytesMut::with_capacity(self.len());
        whole.put_slice(&self.head);
        whole.put_slice(&self.entries);
        whole.freeze()
    }
}

/// Encodes one message. To send the same entries to several followers, use a [`FrameEncoder`].
#[must_use]
pub fn encode_frame(group: GroupId, message: &PeerMessage) -> EncodedFrame {
    FrameEncoder::new().encode(group, message)
}

/// Encodes messages and caches the last encoded entries, so that an append to several followers is
/// encoded once.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    last: Option<EncodedEntries>,
}

/// Entries and their wire form. Holding the `Arc` keeps its address from being reused, so that an
/// equal address means the same entries.
#[derive(Clone, Debug)]
struct EncodedEntries {
    entries: Arc<[LogEntry]>,
    count: usize,
    block: Bytes,
}

impl FrameEncoder {
    /// Creates an encoder with an empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `message` for any peer of `group`.
    ///
    /// An append with more entries than fit into a frame is truncated. The rest is itself a valid
    /// append, and the follower's response tells the leader where to continue.
    ///
    /// # Panics
    /// If the entries of an append do not follow `prev` without a gap: indexes are not sent, so the
    /// follower would store the entries at other indexes than the leader.
    pub fn encode(&mut self, group: GroupId, message: &PeerMessage) -> EncodedFrame {
        let (body, block) = match message {
            PeerMessage::Append { term, prev, commit, entries } => {
                let encoded = self.encode_entries(*prev, entries);
                let append = peer::Append {
                    term: term.get(),
                    prev: Some(position(*prev)),
                    commit: commit.get(),
                    entry_count: u32::try_from(encoded.count).unwrap_or(u32::MAX),
                };
                (Body::Append(append), encoded.block)
            }
            other => (small_body(other), Bytes::new()),
        };
        let frame = peer::PeerFrame { group: group.get(), body: Some(body), entries: Vec::new() };
        EncodedFrame { head: frame.encode_to_vec().into(), entries: block }
    }

    fn encode_entries(&mut self, prev: LogId, entries: &Arc<[LogEntry]>) -> EncodedEntries {
        if let Some(first) = entries.first() {
            assert_eq!(
                first.id.index,
                prev.index.next(),
                "the first entry of an append does not follow its previous entry, {prev:?}"
            );
        }
        if let Some(last) = &self.last
            && Arc::ptr_eq(&last.entries, entries)
        {
            return last.clone();
        }
        let (count, block) = encode_block(prev, entries);
        let encoded = EncodedEntries { entries: entries.clone(), count, block };
        if !entries.is_empty() {
            self.last = Some(encoded.clone());
        }
        encoded
    }
}

/// Encodes as many entries as fit, at least one.
fn encode_block(prev: LogId, entries: &[LogEntry]) -> (usize, Bytes) {
    let payload: usize = entries.iter().map(|entry| entry.data.len() + 32).sum();
    let mut block = BytesMut::with_capacity(payload.min(MAX_FRAME_BYTES));
    let mut count = 0;
    for (entry, after) in entries.iter().zip(0_u64..) {
        assert_eq!(
            entry.id.index,
            prev.index.plus(after + 1),
            "an append after {prev:?} has a gap before its entry {after}"
        );
        let wire = peer::Entry {
            term: entry.id.term.get(),
            kind: u32::from(entry.kind.number()),
            time_ms: entry.time_ms,
            session: entry
                .session
                .map(|one| peer::SessionSerial { session: one.session, serial: one.serial }),
            data: entry.data.clone(),
            version: entry.version,
        };
        let length = wire.encoded_len();
        let added = 1 + prost::length_delimiter_len(length) + length;
        let full =
            count == MAX_ENTRIES_PER_FRAME || block.len() + added > MAX_FRAME_BYTES - HEAD_ROOM;
        if full && count > 0 {
            break;
        }
        block.reserve(added);
        block.put_u8(ENTRIES_KEY);
        wire.encode_length_delimited(&mut block)
            .unwrap_or_else(|error| unreachable!("{added} bytes were reserved, but: {error}"));
        count += 1;
    }
    (count, block.freeze())
}

/// Encodes every message but an append.
fn small_body(message: &PeerMessage) -> Body {
    match message {
        PeerMessage::PreVote { term, last } => {
            Body::PreVote(peer::PreVote { term: term.get(), last: Some(position(*last)) })
        }
        PeerMessage::PreVoteReply { term, granted, wall_ms } => {
            Body::PreVoteReply(peer::PreVoteReply {
                term: term.get(),
                granted: *granted,
                wall_ms: *wall_ms,
            })
        }
        PeerMessage::RequestVote { term, last, transfer } => Body::RequestVote(peer::RequestVote {
            term: term.get(),
            last: Some(position(*last)),
            transfer: *transfer,
        }),
        PeerMessage::VoteReply { term, granted, wall_ms } => Body::VoteReply(peer::VoteReply {
            term: term.get(),
            granted: *granted,
            wall_ms: *wall_ms,
        }),
        PeerMessage::Append { .. } => unreachable!("appends are encoded with their entries"),
        PeerMessage::AppendReply { term, outcome } => append_reply(*term, *outcome),
        PeerMessage::Heartbeat { term, commit, round, matched } => {
            Body::Heartbeat(peer::Heartbeat {
                term: term.get(),
                commit: commit.get(),
                round: *round,
                matched: matched.get(),
            })
        }
        PeerMessage::HeartbeatReply { term, round, received, persisted, report } => {
            Body::HeartbeatReply(peer::HeartbeatReply {
                term: term.get(),
                round: *round,
                received: received.get(),
                persisted: persisted.get(),
                ..follower_report(report)
            })
        }
        PeerMessage::TimeoutNow { term } => Body::TimeoutNow(peer::TimeoutNow { term: term.get() }),
        PeerMessage::ReadRequest { term, token } => {
            Body::ReadRequest(peer::ReadRequest { term: term.get(), token: *token })
        }
        PeerMessage::ReadReply { term, token, index } => Body::ReadReply(peer::ReadReply {
            term: term.get(),
            token: *token,
            index: index.map(LogIndex::get),
        }),
    }
}

fn append_reply(term: Term, outcome: AppendOutcome) -> Body {
    let outcome = match outcome {
        AppendOutcome::Persisted(index) => Outcome::Persisted(index.get()),
        AppendOutcome::Conflict { refused, hint } => {
            Outcome::Conflict(peer::Conflict { refused: refused.get(), hint: Some(position(hint)) })
        }
    };
    Body::AppendReply(peer::AppendReply { term: term.get(), outcome: Some(outcome) })
}

/// Encodes what a follower reports with each heartbeat reply; leaves the other fields at zero.
fn follower_report(report: &FollowerReport) -> peer::HeartbeatReply {
    peer::HeartbeatReply {
        applied: report.applied.get(),
        stickiness_ns: nanos(report.stickiness),
        wall_ms: report.wall_ms,
        log_lost: report.log_lost,
        short_of_space: report.short_of_space,
        halted_at: report.halted_at.map(position),
        command_version_max: report.command_version_max,
        ..peer::HeartbeatReply::default()
    }
}

fn position(id: LogId) -> peer::LogPosition {
    peer::LogPosition { term: id.term.get(), index: id.index.get() }
}
