//! Runs the decoders on valid, damaged and arbitrary bytes.

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
use proptest::prelude::*;

use super::*;
use crate::log::segment::SegmentHeader;

fn header() -> GroupHeader {
    GroupHeader {
        incarnation: Incarnation([3; 16]),
        at: Position { segment: 4, offset: 1024 },
        epoch: 5,
        sequence: 6,
        body_len: 0,
        records: 0,
        watermark: Position { segment: 4, offset: 512 },
    }
}

fn entry(index: u64, session: Option<SessionSerial>) -> LogEntry {
    let id = LogId::new(Term::new(7), LogIndex::new(index));
    let data = Bytes::from_static(b"payload");
    LogEntry { id, kind: EntryKind::Command, time_ms: 8, session, version: 0, data }
}

fn group() -> Vec<u8> {
    let mut buffer = GroupBuffer::new();
    let state = HardState {
        term: Term::new(7),
        vote: NodeId::new(2),
        commit: LogIndex::new(1),
        ..HardState::default()
    };
    buffer.push_hard_state(GroupId::FIRST, &state);
    buffer.push_entry(GroupId::FIRST, &entry(1, None));
    buffer.push_entry(GroupId::FIRST, &entry(2, Some(SessionSerial { session: 1, serial: 9 })));
    buffer.push_entry(GroupId::FIRST, &LogEntry { version: 2, ..entry(3, None) });
    buffer.finish(header(), 512).to_vec()
}

fn decode(bytes: &[u8]) -> Result<Vec<Framed>, Fault> {
    let (header, checksum) = GroupHeader::decode(bytes)?;
    let end = GROUP_HEADER_LEN.saturating_add(header.body_len as usize);
    let body = bytes.get(GROUP_HEADER_LEN..end).ok_or(Fault::Invalid("cut off"))?;
    decode_body(&header, checksum, &Bytes::copy_from_slice(body))
}

#[test]
fn a_group_comes_back_as_it_was_written() {
    let bytes = group();
    assert_eq!(bytes.len(), 512);
    let (found, _) = GroupHeader::decode(&bytes).unwrap();
    let body_len = 4 * RECORD_LEN + 3 * 7 + 16 + 4;
    assert_eq!(found, GroupHeader { body_len: body_len as u32, records: 4, ..header() });
    let records: Vec<_> = decode(&bytes).unwrap().into_iter().map(|framed| framed.record).collect();
    assert!(matches!(&records[0], Record::HardState { state, .. } if state.vote == NodeId::new(2)));
    assert!(matches!(&records[1], Record::Entry { entry: found, .. } if *found == entry(1, None)));
    let session = Some(SessionSerial { session: 1, serial: 9 });
    assert!(
        matches!(&records[2], Record::Entry { entry: found, .. } if *found == entry(2, session))
    );
    assert!(matches!(&records[3], Record::Entry { entry: found, .. } if found.version == 2));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = group();
    let used = GROUP_HEADER_LEN + 3 * RECORD_LEN + 2 * 7 + 16;
    for bit in 0..used * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&flipped).is_err(), "bit {bit}");
    }
}

/// The checksums are chained: a record that verifies in one group does not verify in another.
#[test]
fn records_of_another_group_do_not_verify() {
    let bytes = group();
    let mut buffer = GroupBuffer::new();
    let state = HardState {
        term: Term::new(7),
        vote: NodeId::new(2),
        commit: LogIndex::new(1),
        ..HardState::default()
    };
    buffer.push_hard_state(GroupId::FIRST, &state);
    buffer.push_entry(GroupId::FIRST, &entry(1, None));
    buffer.push_entry(GroupId::FIRST, &entry(2, Some(SessionSerial { session: 1, serial: 9 })));
    let mut other = buffer.finish(GroupHeader { epoch: 6, ..header() }, 512).to_vec();
    assert!(decode(&other).is_ok());
    other[GROUP_HEADER_LEN..].copy_from_slice(&bytes[GROUP_HEADER_LEN..]);
    assert_eq!(decode(&other), Err(Fault::Invalid("the record's checksum does not match")));
}

#[test]
fn a_newer_version_is_named_and_not_taken_for_damage() {
    let mut bytes = group();
    bytes[4] = 2;
    let checksum = crc32c::crc32c(&bytes[..GROUP_HEADER_LEN - 4]);
    bytes[GROUP_HEADER_LEN - 4..GROUP_HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(GroupHeader::decode(&bytes), Err(Fault::Version(2)));
}

#[test]
fn a_watermark_behind_its_own_group_is_refused() {
    let bytes = GroupHeader { watermark: Position { segment: 5, offset: 0 }, ..header() }.encode();
    assert!(matches!(GroupHeader::decode(&bytes), Err(Fault::Invalid(_))));
}

#[test]
fn a_group_with_fewer_records_than_it_says_is_refused() {
    let bytes = GroupHeader { records: 1, ..header() }.encode();
    assert!(matches!(decode(&bytes), Err(Fault::Invalid(_))));
}

/// FAULTS row 27: a garbage length is compared with the bytes available before anything is
/// allocated.
#[test]
fn a_length_beyond_the_buffer_or_the_cap_is_refused() {
    for len in [0, 1, 43, 1 << 20, (MAX_PAYLOAD_BYTES + 61) as u32, u32::MAX] {
        let mut record = vec![0; RECORD_LEN];
        record[4..8].copy_from_slice(&len.to_le_bytes());
        let checksum = crc32c::crc32c_append(9, &record[4..]);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
        assert!(decode_record(&Bytes::from(record), 0, 9).is_err(), "length {len}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0_usize..220,
        chain in any::<u32>(),
    ) {
        let mut group = GROUP_MAGIC.to_vec();
        group.extend_from_slice(&bytes);
        prop_assert!(GroupHeader::decode(&bytes).is_err());
        prop_assert!(GroupHeader::decode(&group).is_err());
        prop_assert!(SegmentHeader::decode(&bytes).is_err());
        drop(decode_record(&Bytes::from(bytes), at, chain));
    }

    /// Every field is checked even if the checksum matches.
    #[test]
    fn a_record_with_a_right_checksum_and_any_content_is_decoded_without_panic(
        content in proptest::collection::vec(any::<u8>(), 36..120),
        kind in 0_u8..4,
        entry_kind in 0_u8..8,
        flags in 0_u8..4,
    ) {
        let mut record = vec![0; 4];
        record.extend_from_slice(&(content.len() as u32 + 8).to_le_bytes());
        record.extend_from_slice(&content);
        record[8..11].copy_from_slice(&[kind, entry_kind, flags]);
        let checksum = crc32c::crc32c_append(1, &record[4..]);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
        drop(decode_record(&Bytes::from(record), 0, 1));
    }

    #[test]
    fn any_entry_comes_back(
        term in any::<u64>(),
        index in any::<u64>(),
        time_ms in 0..=d_engine_core::MAX_ACCEPTED_TIME_MS,
        kind in 1_u8..=5,
        session in proptest::option::of((any::<u64>(), any::<u64>())),
        version in prop_oneof![Just(0), any::<u32>()],
        data in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let entry = LogEntry {
            id: LogId::new(Term::new(term), LogIndex::new(index)),
            kind: EntryKind::from_number(kind).unwrap(),
            time_ms,
            session: session.map(|(session, serial)| SessionSerial { session, serial }),
            version,
            data: Bytes::from(data),
        };
        let mut buffer = GroupBuffer::new();
        buffer.push_entry(GroupId::FIRST, &entry);
        let records = decode(buffer.finish(header(), 4096)).unwrap();
        prop_assert_eq!(&records[0].record, &Record::Entry { group: GroupId::FIRST, entry });
    }
}
