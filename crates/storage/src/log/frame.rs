//! Write groups and the records in them, byte by byte as `docs/file-format.md` draws them.
//!
//! Decoders accept any bytes: they never panic, and compare every length with the bytes available
//! before they allocate.

use std::time::Duration;

use bytes::Bytes;
use d_engine_core::{
    EntryKind, GroupId, HardState, LogId, LogIndex, MAX_ACCEPTED_TIME_MS, NodeId, Term, nanos,
};

use crate::{Incarnation, LogEntry, SessionSerial};

/// Version of groups and segments that this program writes.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// Length of a group header.
pub(crate) const GROUP_HEADER_LEN: usize = 84;
/// Length of a record without session, version and payload.
pub(crate) const RECORD_LEN: usize = 44;
/// Length of the vote stickiness, which a hard state contains only once it has been announced.
const STICKINESS_LEN: usize = 8;
/// Largest payload of one entry.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
/// Largest body of one group.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 30;

const GROUP_MAGIC: [u8; 4] = *b"dGRP";
const SESSION_LEN: usize = 16;
const VERSION_LEN: usize = 4;
const KIND_HARD_STATE: u8 = 1;
const KIND_ENTRY: u8 = 2;
const FLAG_SESSION: u8 = 1;
const FLAG_VERSION: u8 = 2;

/// Why bytes do not decode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// They do not verify.
    Invalid(&'static str),
    /// They verify, and a newer program wrote them.
    Version(u32),
    /// They verify, but contain an impossible value: the checksum matches content that must never
    /// have been written.
    Impossible(&'static str),
}

/// A position in the log. Ordered as the log is written; `(0, 0)` is before everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// The start of a write group. It can be verified alone, because it names the place where it
/// belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupHeader {
    pub(crate) incarnation: Incarnation,
    /// The position of the group.
    pub(crate) at: Position,
    /// The number of the open under which it was written.
    pub(crate) epoch: u64,
    /// Rises by one per group within a segment, and never falls along the log.
    pub(crate) sequence: u64,
    pub(crate) body_len: u32,
    pub(crate) records: u32,
    /// Everything before this position was known to be durable when the group was written.
    pub(crate) watermark: Position,
}

impl GroupHeader {
    /// Returns the header's bytes. The last four are its checksum, from which the records'
    /// checksums are chained.
    pub(crate) fn encode(&self) -> [u8; GROUP_HEADER_LEN] {
        let mut bytes = Vec::with_capacity(GROUP_HEADER_LEN);
        bytes.extend_from_slice(&GROUP_MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.incarnation.0);
        for number in [self.at.segment, self.at.offset, self.epoch, self.sequence] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.body_len.to_le_bytes());
        bytes.extend_from_slice(&self.records.to_le_bytes());
        bytes.extend_from_slice(&self.watermark.segment.to_le_bytes());
        bytes.extend_from_slice(&self.watermark.offset.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let mut header = [0; GROUP_HEADER_LEN];
        header.copy_from_slice(&bytes);
        header
    }

    /// Reads a header and its checksum.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, u32), Fault> {
        let fields = bytes
            .get(..GROUP_HEADER_LEN - 4)
            .ok_or(Fault::Invalid("the group header is cut off"))?;
        let mut rest = Decoder(bytes);
        if rest.array() != Some(GROUP_MAGIC) {
            return Err(Fault::Invalid("no group begins here"));
        }
        let checksum = Decoder(bytes.get(GROUP_HEADER_LEN - 4..).unwrap_or_default()).u32();
        if checksum != Some(crc32c::crc32c(fields)) {
            return Err(Fault::Invalid("the group header's checksum does not match"));
        }
        let header = Self::decode_fields(rest)?;
        Ok((header, checksum.unwrap_or_default()))
    }

    fn decode_fields(mut rest: Decoder<'_>) -> Result<Self, Fault> {
        const SHORT: Fault = Fault::Invalid("the group header is cut off");
        let version = rest.u16().ok_or(SHORT)?;
        if version != FORMAT_VERSION {
            return Err(Fault::Version(version.into()));
        }
        if rest.u16() != Some(0) {
            return Err(Fault::Invalid("a reserved field of the group header is not zero"));
        }
        let header = Self {
            incarnation: Incarnation(rest.array().ok_or(SHORT)?),
            at: rest.position().ok_or(SHORT)?,
            epoch: rest.u64().ok_or(SHORT)?,
            sequence: rest.u64().ok_or(SHORT)?,
            body_len: rest.u32().ok_or(SHORT)?,
            records: rest.u32().ok_or(SHORT)?,
            watermark: rest.position().ok_or(SHORT)?,
        };
        if header.watermark > header.at {
            return Err(Fault::Invalid("the group's watermark is after the group"));
        }
        Ok(header)
    }
}

/// One decoded record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    HardState { group: GroupId, state: HardState },
    Entry { group: GroupId, entry: LogEntry },
}

/// A record and its location.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Framed {
    pub(crate) record: Record,
    /// Offset in the buffer that it was read from.
    pub(crate) at: usize,
    pub(crate) len: u32,
    /// The checksum before this record, which its own checksum continues.
    pub(crate) chain: u32,
    /// Its own checksum.
    pub(crate) checksum: u32,
}

/// Reads the record at `at`, whose checksum continues `chain`.
pub(crate) fn decode_record(buffer: &Bytes, at: usize, chain: u32) -> Result<Framed, Fault> {
    const SHORT: Fault = Fault::Invalid("the record is cut off");
    let mut head = Decoder(buffer.get(at..).ok_or(SHORT)?);
    let checksum = head.u32().ok_or(SHORT)?;
    let len = head.u32().ok_or(SHORT)?;
    let whole = len as usize;
    if !(RECORD_LEN..=RECORD_LEN + SESSION_LEN + VERSION_LEN + MAX_PAYLOAD_BYTES).contains(&whole) {
        return Err(Fault::Invalid("the record's length is impossible"));
    }
    let end = at.checked_add(whole).ok_or(SHORT)?;
    let covered = buffer.get(at + 4..end).ok_or(SHORT)?;
    if checksum != crc32c::crc32c_append(chain, covered) {
        return Err(Fault::Invalid("the record's checksum does not match"));
    }
    let record = decode_content(buffer, at, end)?;
    Ok(Framed { record, at, len, chain, checksum })
}

/// Decodes the content of a record whose checksum matches.
fn decode_content(buffer: &Bytes, at: usize, end: usize) -> Result<Record, Fault> {
    const SHORT: Fault = Fault::Invalid("the record is cut off");
    let mut rest = Decoder(buffer.get(at + 8..end).ok_or(SHORT)?);
    let [kind, entry_kind, flags, reserved] = rest.array().ok_or(SHORT)?;
    let group =
        rest.u64().and_then(GroupId::new).ok_or(Fault::Invalid("the record has no group"))?;
    let term = Term::new(rest.u64().ok_or(SHORT)?);
    let second = rest.u64().ok_or(SHORT)?;
    let third = rest.u64().ok_or(SHORT)?;
    if reserved != 0 || flags & !(FLAG_SESSION | FLAG_VERSION) != 0 {
        return Err(Fault::Invalid("the record has unknown flags"));
    }
    match kind {
        KIND_HARD_STATE
            if entry_kind == 0 && flags == 0 && matches!(rest.0.len(), 0 | STICKINESS_LEN) =>
        {
            let stickiness = Duration::from_nanos(rest.u64().unwrap_or(0));
            let (vote, commit) = (NodeId::new(second), LogIndex::new(third));
            Ok(Record::HardState { group, state: HardState { term, vote, commit, stickiness } })
        }
        KIND_ENTRY => {
            let kind = EntryKind::from_number(entry_kind)
                .ok_or(Fault::Invalid("unknown kind of entry"))?;
            let session = match flags & FLAG_SESSION {
                0 => None,
                _ => Some(SessionSerial {
                    session: rest.u64().ok_or(SHORT)?,
                    serial: rest.u64().ok_or(SHORT)?,
                }),
            };
            let version = match flags & FLAG_VERSION {
                0 => 0,
                _ => rest.u32().ok_or(SHORT)?,
            };
            let data = buffer.slice(end - rest.0.len()..end);
            if third > MAX_ACCEPTED_TIME_MS {
                return Err(Fault::Impossible("the entry's time is after the year 9999"));
            }
            let id = LogId::new(term, LogIndex::new(second));
            Ok(Record::Entry {
                group,
                entry: LogEntry { id, kind, time_ms: third, session, version, data },
            })
        }
        _ => Err(Fault::Invalid("unknown kind of record")),
    }
}

/// Reads all records of a group: exactly `header.records` records in exactly `body`.
pub(crate) fn decode_body(
    header: &GroupHeader,
    checksum: u32,
    body: &Bytes,
) -> Result<Vec<Framed>, Fault> {
    let mut records = Vec::new();
    let (mut at, mut chain) = (0, checksum);
    while at < body.len() {
        let framed = decode_record(body, at, chain)?;
        at += framed.len as usize;
        chain = framed.checksum;
        records.push(framed);
    }
    if records.len() != header.records as usize {
        return Err(Fault::Invalid(
            "the number of records in the group differs from the one in its header",
        ));
    }
    Ok(records)
}

/// Collects records and builds a group of them. Its memory is reused for the next group.
#[derive(Debug)]
pub(crate) struct GroupBuffer {
    /// Space for the header, then the records; `finish` fills in their checksums.
    bytes: Vec<u8>,
    records: Vec<(usize, usize)>,
    chains: Vec<u32>,
}

/// The buffer frees memory above this size after each group.
const KEPT_CAPACITY: usize = 4 << 20;

impl GroupBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; GROUP_HEADER_LEN], records: Vec::new(), chains: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the bytes of all records.
    pub(crate) fn body_len(&self) -> usize {
        self.records.last().map_or(0, |(at, len)| at + len - GROUP_HEADER_LEN)
    }

    /// Returns the length of the group with its padding.
    pub(crate) fn padded_len(&self, alignment: usize) -> usize {
        (GROUP_HEADER_LEN + self.body_len()).next_multiple_of(alignment)
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(GROUP_HEADER_LEN);
        self.bytes.shrink_to(KEPT_CAPACITY);
        self.records.clear();
        self.chains.clear();
    }

    pub(crate) fn push_hard_state(&mut self, group: GroupId, state: &HardState) {
        let vote = state.vote.map_or(0, NodeId::get);
        let fields = [group.get(), state.term.get(), vote, state.commit.get()];
        if state.stickiness == Duration::ZERO {
            self.push(RECORD_LEN, [KIND_HARD_STATE, 0, 0, 0], fields);
            return;
        }
        self.push(RECORD_LEN + STICKINESS_LEN, [KIND_HARD_STATE, 0, 0, 0], fields);
        self.bytes.extend_from_slice(&nanos(state.stickiness).to_le_bytes());
    }

    /// Adds an entry and returns the record's number in the group. The payload must not exceed
    /// [`MAX_PAYLOAD_BYTES`].
    pub(crate) fn push_entry(&mut self, group: GroupId, entry: &LogEntry) -> usize {
        let number = self.records.len();
        let (mut flags, mut len) = (0, RECORD_LEN + entry.data.len());
        if entry.session.is_some() {
            (flags, len) = (flags | FLAG_SESSION, len + SESSION_LEN);
        }
        if entry.version != 0 {
            (flags, len) = (flags | FLAG_VERSION, len + VERSION_LEN);
        }
        let fields = [group.get(), entry.id.term.get(), entry.id.index.get(), entry.time_ms];
        self.push(len, [KIND_ENTRY, entry.kind.number(), flags, 0], fields);
        if let Some(SessionSerial { session, serial }) = entry.session {
            self.bytes.extend_from_slice(&session.to_le_bytes());
            self.bytes.extend_from_slice(&serial.to_le_bytes());
        }
        if entry.version != 0 {
            self.bytes.extend_from_slice(&entry.version.to_le_bytes());
        }
        self.bytes.extend_from_slice(&entry.data);
        number
    }

    fn push(&mut self, len: usize, kind: [u8; 4], fields: [u64; 4]) {
        self.unfinish();
        self.records.push((self.bytes.len(), len));
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&(len as u32).to_le_bytes());
        self.bytes.extend_from_slice(&kind);
        for field in fields {
            self.bytes.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// Removes what `finish` added, so that records can be added and the group finished again.
    fn unfinish(&mut self) {
        let end = self.records.last().map_or(GROUP_HEADER_LEN, |(at, len)| at + len);
        self.bytes.truncate(end);
        self.chains.clear();
    }

    /// Completes `header` with length and count, chains the records and pads with zeros. A group
    /// that could not be written may be finished again, for the same or another place.
    pub(crate) fn finish(&mut self, mut header: GroupHeader, alignment: usize) -> &[u8] {
        self.unfinish();
        header.body_len = self.body_len() as u32;
        header.records = self.records.len() as u32;
        let encoded = header.encode();
        self.bytes[..GROUP_HEADER_LEN].copy_from_slice(&encoded);
        let mut chain = Decoder(&encoded[GROUP_HEADER_LEN - 4..]).u32().unwrap_or_default();
        for (at, len) in &self.records {
            self.chains.push(chain);
            chain = crc32c::crc32c_append(chain, &self.bytes[at + 4..at + len]);
            self.bytes[*at..at + 4].copy_from_slice(&chain.to_le_bytes());
        }
        self.bytes.resize(self.padded_len(alignment), 0);
        &self.bytes
    }

    /// Returns the location of record `number` in the finished group: its offset, its length, and
    /// the checksum before it.
    pub(crate) fn span(&self, number: usize) -> (u64, u32, u32) {
        let (at, len) = self.records[number];
        (at as u64, len as u32, self.chains[number])
    }
}

/// Decodes fixed-size fields from the front of a slice; returns `None` once it is too short.
pub(crate) struct Decoder<'a>(pub(crate) &'a [u8]);

impl Decoder<'_> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn position(&mut self) -> Option<Position> {
        Some(Position { segment: self.u64()?, offset: self.u64()? })
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
