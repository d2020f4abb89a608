#![allow(clippy::unwrap_used, reason = "a test may stop there")]

use std::path::Path;

use bytes::Bytes;
use d_engine_core::{GroupId, LogId, LogIndex, Term};
use proptest::prelude::*;

use super::{Compression, ENGINE_FORMAT, SnapshotFacts, SnapshotFile, SnapshotHeader};
use crate::snapshot::SnapshotError;
use crate::{ClusterId, Member, MemberRole, Membership};

const PATH: &str = "snap-3-9.snap";

fn header(files: &[(&str, u64)]) -> SnapshotHeader {
    let member = Member {
        node: 1,
        peer_addr: "127.0.0.1:7001".to_owned(),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    SnapshotHeader {
        cluster: ClusterId([0xC1; 16]),
        group: GroupId::FIRST,
        facts: SnapshotFacts {
            last_included: LogId::new(Term::new(3), LogIndex::new(9)),
            time_ms: 1_700_000_000_000,
            membership: Membership::new([member]).unwrap(),
            envelope: Bytes::from_static(b"sessions"),
            machine: String::new(),
            user_format: 2,
            command_version: 3,
            checksum: [0xAB; 32],
        },
        engine_format: ENGINE_FORMAT,
        compression: Compression::None,
        chunk_bytes: 4096,
        files: files
            .iter()
            .map(|(name, len)| SnapshotFile { name: (*name).to_owned(), len: *len })
            .collect(),
    }
}

fn unchecked(header: &SnapshotHeader) -> Vec<u8> {
    let membership = header.facts.membership.encode();
    let names: usize = header.files.iter().map(|file| 10 + file.name.len()).sum();
    let len = super::FIXED_LEN + membership.len() + header.facts.envelope.len() + names + 4;
    header.encode_unchecked(&membership, len).to_vec()
}

fn decode(bytes: Vec<u8>) -> Result<SnapshotHeader, SnapshotError> {
    SnapshotHeader::decode(Path::new(PATH), &Bytes::from(bytes))
}

/// Returns the header with these four bytes at `at` and a matching checksum.
fn patched(header: &SnapshotHeader, at: usize, value: u32) -> Vec<u8> {
    let mut bytes = unchecked(header);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let end = bytes.len() - 4;
    let checksum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn a_header_is_read_as_it_was_written() {
    for files in [&[][..], &[("a", 0)], &[("a", 1), ("b/c", u64::from(u32::MAX)), ("b/d", 0)]] {
        let written = header(files);
        let bytes = written.encode(Path::new(PATH)).unwrap();
        assert_eq!(bytes, unchecked(&written));
        assert_eq!(decode(bytes.to_vec()).unwrap(), written);
    }
}

/// FAULTS section 5, path traversal: no header from a sender can make the receiver write outside.
#[test]
fn hostile_names_are_refused_by_writer_and_reader() {
    let hostile: [&[(&str, u64)]; 12] = [
        &[("../x", 1)],
        &[("/etc/passwd", 1)],
        &[("a/../../x", 1)],
        &[("a//b", 1)],
        &[("a/", 1)],
        &[("", 1)],
        &[(".", 1)],
        &[("a\0b", 1)],
        &[("..\\x", 1)],
        &[("a", 1), ("a", 1)],
        &[("b", 1), ("a", 1)],
        &[("a", 1), ("a.b", 1), ("a/b", 1)],
    ];
    for files in hostile {
        let header = header(files);
        let read = decode(unchecked(&header)).unwrap_err();
        let written = header.encode(Path::new(PATH)).unwrap_err();
        for error in [read, written] {
            assert!(matches!(error, SnapshotError::Name { .. }), "{files:?}: {error}");
        }
    }
}

#[test]
fn a_name_that_is_not_utf8_is_refused() {
    let mut bytes = unchecked(&header(&[("ab", 1)]));
    let at = bytes.len() - 6;
    assert_eq!(&bytes[at..at + 2], b"ab");
    bytes[at] = 0xFF;
    let end = bytes.len() - 4;
    let checksum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    assert!(decode(bytes).unwrap_err().to_string().contains("UTF-8"));
}

/// Sizes are compared with the bytes available before anything is allocated for them.
#[test]
fn absurd_lengths_and_counts_are_refused() {
    let header = header(&[("a", 1)]);
    // Offsets of: header length, chunk length, membership length, envelope length, number of files,
    // name length, reserved field.
    for at in [12, 108, 112, 116, 120, 124, 132] {
        for value in [u32::MAX, u32::MAX / 2, 1 << 27] {
            let error = decode(patched(&header, at, value)).unwrap_err();
            let is_refused =
                matches!(error, SnapshotError::Damaged { .. } | SnapshotError::TooLarge { .. });
            assert!(is_refused, "{value} at {at}: {error}");
        }
    }
    assert!(decode(patched(&header, 108, 0)).is_err(), "chunks of no length");
    let sum = self::header(&[("a", u64::MAX), ("b", 2)]);
    assert!(matches!(decode(unchecked(&sum)), Err(SnapshotError::TooLarge { .. })));
}

#[test]
fn too_many_files_are_refused() {
    let names: Vec<String> = (0..65_537).map(|number| format!("{number:05}")).collect();
    let mut sorted: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 0)).collect();
    sorted.sort_unstable();
    let header = header(&sorted);
    assert!(matches!(decode(unchecked(&header)), Err(SnapshotError::TooLarge { .. })));
    assert!(matches!(header.encode(Path::new(PATH)), Err(SnapshotError::TooLarge { .. })));
}

#[test]
fn a_newer_archive_is_refused_with_both_versions() {
    let error = decode(patched(&header(&[]), 8, 7)).unwrap_err();
    assert!(
        matches!(error, SnapshotError::UnsupportedFormat { found: 7, supported: 1, .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("version 7") && text.contains("up to 1") && text.contains("a newer"));
    let text = decode(patched(&header(&[]), 8, 0)).unwrap_err().to_string();
    assert!(text.contains("version 0") && text.contains("an older"), "{text}");
    // The engine's data of a newer program, with a membership that this one cannot read.
    let mut bytes = patched(&header(&[]), 96, 2);
    bytes[super::FIXED_LEN] = 99;
    let end = bytes.len() - 4;
    let checksum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    assert!(matches!(
        decode(bytes),
        Err(SnapshotError::UnsupportedFormat { found: 2, supported: 1, .. })
    ));
}

#[test]
fn an_unknown_compression_is_refused() {
    assert!(matches!(
        decode(patched(&header(&[]), 104, 2)),
        Err(SnapshotError::Compressed { number: 2, .. })
    ));
    assert_eq!(decode(patched(&header(&[]), 104, 1)).unwrap().compression, Compression::Zstd);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = unchecked(&header(&[("a", 1), ("b/c", 2)]));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(flipped).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(decode(bytes[..len].to_vec()).is_err(), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_panic(
        at in 8_usize..200,
        content in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        prop_assert!(decode(content.clone()).is_err());
        let mut bytes = unchecked(&header(&[("a", 1), ("b/c", 2)]));
        let end = bytes.len() - 4;
        for (byte, new) in bytes[..end].iter_mut().skip(at).zip(&content) {
            *byte = *new;
        }
        let checksum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(header) = decode(bytes) {
            prop_assert!(header.encode(Path::new(PATH)).is_ok());
        }
    }
}

/// Log time never goes back, so it would stay beyond that limit forever.
#[test]
fn a_time_after_the_year_9999_is_refused() {
    let header = header(&[("a", 1)]);
    let error = decode(patched(&header, 60, 0x0001_0000)).unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Damaged { .. }) && error.to_string().contains("time"),
        "{error}"
    );
}
