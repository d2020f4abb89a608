//! One archive, read by itself: each damaged place is named by chunk and offset, and nothing else
//! is.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{
    Compression, SnapshotContent, SnapshotError, SnapshotOptions, SnapshotStore, SnapshotSurvey,
};
use sha2::{Digest, Sha256};
use snapshot_kit::{DIR, facts, files, log_id, options, path_of, take, with_content};

fn taken(compression: Compression) -> SimFs {
    let fs = SimFs::new();
    let options = SnapshotOptions { compression, ..options() };
    let shared = Arc::new(fs.clone()) as Arc<dyn Fs>;
    let (store, _) = SnapshotStore::open(shared, Path::new(DIR), options).unwrap();
    take(&fs, &store, log_id(1, 5)).unwrap();
    fs
}

fn read(fs: &SimFs) -> (SnapshotSurvey, SnapshotContent) {
    let before = fs.image();
    let survey = SnapshotSurvey::of(fs, &path_of(log_id(1, 5))).unwrap();
    let content = survey.read(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(fs.image(), before, "the disk was changed");
    (survey, content)
}

#[test]
fn a_whole_archive_has_its_header_every_chunk_and_its_sha256() {
    for compression in [Compression::None, Compression::Zstd] {
        let fs = taken(compression);
        let (survey, content) = read(&fs);
        assert!(content.is_whole(), "{:?}", content.damage);
        assert_eq!(survey.header().unwrap().facts, facts(log_id(1, 5), &files(log_id(1, 5))));
        assert_eq!((content.whole, content.damaged, content.unread), (survey.chunks(), 0, 0));
        assert!(content.whole > 2);
        let bytes = &fs.image().files[&path_of(log_id(1, 5))];
        let expected: [u8; 32] = Sha256::digest(&bytes[..bytes.len() - 52]).into();
        assert_eq!(content.sha256, Some(expected));
        assert_eq!(survey.announced_sha256().unwrap(), expected);
    }
}

#[test]
fn a_flipped_bit_is_named_with_its_chunk_and_the_chunks_after_it_are_read() {
    let fs = taken(Compression::None);
    let (survey, whole) = read(&fs);
    let path = path_of(log_id(1, 5));
    let bytes = fs.image().files[&path].clone();
    let header = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let (_, content) = read(&with_content(&fs, &path, damaged));
        assert!(!content.is_whole(), "byte {at}");
        let [found] = &content.damage[..] else { panic!("byte {at}: {:?}", content.damage) };
        let chunk = if at < header || at >= bytes.len() - 52 {
            None
        } else {
            assert_eq!((content.whole, content.damaged), (whole.whole - 1, 1), "byte {at}");
            Some((at - header) as u64 / 708)
        };
        assert_eq!(found.chunk, chunk, "byte {at}: {found:?}");
        // A wrong length of the header is noticed where the header would end.
        assert!(found.offset <= at as u64 || at < header, "byte {at}: {found:?}");
    }
    assert!(survey.chunks() == 3);
}

/// A chunk that is compressed says how long it is; if it lies, the chunks after it are lost.
#[test]
fn a_damaged_length_of_a_compressed_chunk_leaves_the_rest_unread_or_damaged() {
    let fs = taken(Compression::Zstd);
    let (_, whole) = read(&fs);
    let path = path_of(log_id(1, 5));
    let mut bytes = fs.image().files[&path].clone();
    let header = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    bytes[header + 3] = 0x7F;
    let (_, content) = read(&with_content(&fs, &path, bytes));
    assert_eq!((content.whole, content.damaged, content.unread), (0, 1, whole.whole - 1));
    assert_eq!(content.damage[0].chunk, Some(0));
}

#[test]
fn a_cut_archive_a_garbled_one_and_a_missing_one_are_told_apart() {
    let fs = taken(Compression::None);
    let path = path_of(log_id(1, 5));
    let bytes = fs.image().files[&path].clone();
    let (survey, content) = read(&with_content(&fs, &path, bytes[..bytes.len() - 60].to_vec()));
    assert!(survey.header().is_ok() && survey.announced_sha256().is_err());
    assert_eq!(content.damage.last().unwrap().chunk, None);
    let (survey, content) = read(&with_content(&fs, &path, vec![0xA5; 5_000]));
    assert!(survey.header().is_err() && !content.is_whole());
    let missing = SnapshotSurvey::of(&fs, Path::new("/node/none.snap")).unwrap_err();
    assert!(matches!(missing, SnapshotError::Io { .. }), "{missing}");
}

#[test]
fn reading_ends_when_it_is_asked_to() {
    let fs = taken(Compression::None);
    let survey = SnapshotSurvey::of(&fs, &path_of(log_id(1, 5))).unwrap();
    let ended = survey.read(&mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(SnapshotError::Aborted)), "{ended:?}");
}
