//! One flipped bit in a byte of a small directory: it is noticed before anything is served, or
//! harmless, or repaired. The test covers every byte of headers, of the content of records and of
//! archives; every 37th byte of the rest of segments, and every seventh of the zeros after records,
//! so that it does not take minutes.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;
mod snapshot_kit;

use std::path::{Path, PathBuf};

use common::{GROUP, Picture, entries, entry_with, goes_on, hard_state, log_id, open};
use d_engine_storage::fs::sim::{SimFs, SimImage};
use d_engine_storage::snapshot::{FullSpeed, SnapshotError};
use d_engine_storage::{Alignment, FileStorageOptions, StorageError};

fn options() -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: 64 << 10,
        alignment: Alignment::Page,
        grow_bytes: 4 << 10,
        prepare_bytes: 64 << 10,
        spare_segments: 1,
        reserve_bytes: 8 << 10,
    }
}

/// Returns a log of four segments that was purged, and closed in an orderly way.
fn stopped() -> (SimFs, Picture) {
    let fs = SimFs::new();
    let mut opened = open(&fs, &options()).unwrap();
    let mut expected = Picture::default();
    while common::segments(&fs).len() < 4 {
        let index = expected.last() + 1;
        let stored = [entry_with(2, index, vec![index as u8; 3_000])];
        opened.log.append(GROUP, Some(hard_state(2, 1, index - 1)), &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(Some(hard_state(2, 1, index - 1)), &stored);
    }
    opened.log.append(GROUP, None, &entries(2, expected.last() + 1..=expected.last() + 3)).unwrap();
    opened.log.sync().unwrap();
    expected.append(None, &entries(2, expected.last() + 1..=expected.last() + 3));
    opened.log.purge(GROUP, log_id(2, 5)).unwrap();
    expected.purge(log_id(2, 5));
    opened.log.idle().unwrap();
    (fs, expected)
}

/// The outcome of a flipped bit.
#[derive(Default)]
struct Outcomes {
    refused: u64,
    mended: u64,
    harmless: u64,
}

fn flip(image: &SimImage, path: &Path, at: usize, expected: &Picture, outcomes: &mut Outcomes) {
    let mut image = image.clone();
    image.files.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
    let fs = SimFs::from_image(&image);
    let context = format!("{} at {at}", path.display());
    match open(&fs, &options()) {
        Ok(opened) => {
            assert_eq!(&Picture::of(&opened), expected, "{context}: served");
            let is_mended = !opened.report.mended.is_empty();
            outcomes.mended += u64::from(is_mended);
            outcomes.harmless += u64::from(!is_mended);
            drop(opened);
            if at.is_multiple_of(512) {
                goes_on(&fs, &options(), &context);
            }
        }
        Err(
            error @ (StorageError::Damaged { .. }
            | StorageError::DamagedFile { .. }
            | StorageError::UnsupportedFormat { .. }),
        ) => {
            if at.is_multiple_of(64) {
                assert_eq!(fs.image(), image, "{context}: it was changed");
            }
            assert!(!error.to_string().is_empty());
            outcomes.refused += 1;
        }
        Err(error) => panic!("{context}: {error}"),
    }
}

#[test]
fn a_flipped_bit_in_log_or_records_is_noticed_or_mended_or_harmless() {
    let (fs, expected) = stopped();
    let image = fs.image();
    let log_bytes: usize = common::segments(&fs).iter().map(|path| image.files[path].len()).sum();
    assert!(log_bytes >= 256 << 10, "{log_bytes}");
    let files: Vec<(PathBuf, usize)> =
        image.files.iter().map(|(path, content)| (path.clone(), content.len())).collect();
    let names: Vec<_> =
        files.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
    for record in ["identity.meta", "identity.meta.2", "log.meta", "log.meta.2"] {
        assert!(names.contains(&record), "{names:?}");
    }
    let halves: Vec<Outcomes> = std::thread::scope(|scope| {
        let half = |odd: usize| {
            let (files, image, expected) = (&files, &image, &expected);
            scope.spawn(move || {
                let mut outcomes = Outcomes::default();
                for (path, len) in files {
                    let is_log = path.extension().is_some_and(|extension| extension == "seg");
                    let (begin, step) = if is_log { (100, 37) } else { (400, 7) };
                    let is_taken = |at: &usize| at % 4096 < begin || at.is_multiple_of(step);
                    for at in (0..*len).filter(is_taken).filter(|at| at % 2 == odd) {
                        flip(image, path, at, expected, &mut outcomes);
                    }
                }
                outcomes
            })
        };
        let halves = [half(0), half(1)];
        halves.into_iter().map(|half| half.join().unwrap()).collect()
    });
    let sum = |of: fn(&Outcomes) -> u64| halves.iter().map(of).sum::<u64>();
    let (refused, mended, harmless) =
        (sum(|it| it.refused), sum(|it| it.mended), sum(|it| it.harmless));
    assert!(
        refused > 10_000 && mended > 1_500 && harmless > 1_000,
        "{refused}, {mended}, {harmless}"
    );
}

#[test]
fn a_flipped_bit_in_any_byte_of_an_archive_is_noticed_before_it_is_unpacked() {
    let fs = SimFs::new();
    let (store, _) = snapshot_kit::open(&fs);
    let last_included = snapshot_kit::log_id(3, 9);
    snapshot_kit::take(&fs, &store, last_included).unwrap();
    drop(store);
    let path = snapshot_kit::path_of(last_included);
    let whole = fs.image().files[&path].clone();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let fs = snapshot_kit::with_content(&fs, &path, flipped);
        let (store, report) = snapshot_kit::open(&fs);
        let unpacked = store.unpack(last_included, &store.unpack_dir(), &mut FullSpeed);
        let error = unpacked.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, SnapshotError::Damaged { .. }) || !report.unusable.is_empty(),
            "byte {at}: {error}"
        );
        assert!(store.newest_whole().is_none(), "byte {at}: it would be used");
    }
}
