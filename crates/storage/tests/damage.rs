//! Bytes that were known to be stored have changed: the log is refused, the error names the place,
//! and nothing is changed.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{
    GROUP, Picture, entries, entry, filled, goes_on, hard_state, log_id, open, segments, small,
    with_content,
};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{FileStorageOptions, StorageError};

/// Three segments; all groups but the last lie before a watermark.
fn three_segments() -> (SimFs, Picture) {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::default();
    let mut index = 0;
    while segments(&fs).len() < 3 || index % 4 != 0 {
        index += 1;
        let stored = entries(1, index..=index + 2);
        opened.log.append(GROUP, Some(hard_state(1, 2, index)), &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(Some(hard_state(1, 2, index)), &stored);
    }
    while segments(&fs).len() < 4 {
        opened.log.idle().unwrap();
    }
    drop(opened);
    (fs, expected)
}

/// Opens a disk that must be refused, and checks that nothing was changed by that.
fn refusal(fs: &SimFs, context: &str) -> StorageError {
    let before = fs.image();
    let error = match open(fs, &small()) {
        Err(error) => error,
        Ok(opened) => panic!("{context}: opened with {:?}", opened.report),
    };
    assert_eq!(fs.image(), before, "{context}: the disk was changed");
    error
}

/// FAULTS row 29: a flipped bit in anything known to be stored is an error, never a shorter log.
#[test]
fn a_flipped_bit_in_any_byte_before_the_watermark_is_refused_by_name() {
    let (fs, expected) = three_segments();
    assert_eq!(Picture::of(&open(&SimFs::from_image(&fs.image()), &small()).unwrap()), expected);
    let mut flipped = 0;
    // The last file is prepared and empty; the one before it ends with a group that only records
    // that all groups before it are stored.
    let paths = segments(&fs);
    let (_, used) = paths.split_last().unwrap();
    for path in used {
        let content = fs.image().files[path].clone();
        let last = content.iter().rposition(|byte| *byte != 0).unwrap();
        let end = if Some(path) == used.last() { last / 512 * 512 } else { last / 512 * 512 + 512 };
        for at in 0..end {
            let mut damaged = content.clone();
            damaged[at] ^= 1 << (at % 8);
            let error =
                refusal(&with_content(&fs, path, damaged), &format!("{} at {at}", path.display()));
            let StorageError::Damaged { segment, offset, .. } = &error else {
                panic!("byte {at}: {error}")
            };
            assert!(path.ends_with(segment), "byte {at} of {}: {error}", path.display());
            assert!(*offset <= at as u64, "byte {at}: {error}");
            assert!(error.to_string().contains("nothing was changed"));
            flipped += 1;
        }
    }
    assert!(flipped > 8_000, "{flipped}");
}

/// Whole sectors that were zeroed look like the end of the log, but are not.
#[test]
fn a_zeroed_sector_before_the_watermark_is_refused() {
    let (fs, _) = three_segments();
    let paths = segments(&fs);
    let used = &paths[..paths.len() - 1];
    for path in used {
        let content = fs.image().files[path].clone();
        let last = content.iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512;
        for sector in (0..=last).step_by(512) {
            if Some(path) == used.last() && sector == last {
                continue;
            }
            let mut damaged = content.clone();
            damaged[sector..sector + 512].fill(0);
            let error = refusal(
                &with_content(&fs, path, damaged),
                &format!("{} at {sector}", path.display()),
            );
            assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        }
    }
}

/// FAULTS rows 29 and 32.
#[test]
fn a_missing_shortened_or_exchanged_segment_is_refused() {
    let (fs, _) = three_segments();
    let paths = segments(&fs);
    for (number, path) in paths[..paths.len() - 1].iter().enumerate() {
        let mut image = fs.image();
        let content = image.files.remove(path).unwrap();
        let missing = refusal(&SimFs::from_image(&image), &format!("segment {number} missing"));
        assert!(matches!(missing, StorageError::Damaged { .. }), "{missing}");

        // The newest segment cannot be cut shorter than the length that `log.meta` records.
        if number < 2 || filled(&fs) > 1024 {
            let shortened = with_content(&fs, path, content[..1024].to_vec());
            let error = refusal(&shortened, &format!("segment {number} shortened"));
            assert!(
                matches!(&error, StorageError::Damaged { segment, .. } if path.ends_with(segment)),
                "{error}"
            );
        }

        let exchanged = with_content(&fs, path, image.files[&paths[(number + 1) % 2]].clone());
        let exchanged = refusal(&exchanged, &format!("segment {number} exchanged"));
        assert!(exchanged.to_string().contains("renamed"), "{exchanged}");

        let mut renamed = image.clone();
        renamed.files.insert(path.with_file_name("00000000000000000099.seg"), content);
        refusal(&SimFs::from_image(&renamed), &format!("segment {number} renamed"));
    }
}

#[test]
fn a_log_directory_that_was_emptied_is_refused() {
    let (fs, _) = three_segments();
    let mut image = fs.image();
    image.files.retain(|path, _| path.extension().is_none_or(|extension| extension != "seg"));
    let error = refusal(&SimFs::from_image(&image), "no segments");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_segment_of_another_directory_is_refused() {
    let (fs, _) = three_segments();
    let other = SimFs::new();
    let mut request = common::request();
    request.fresh_incarnation = d_engine_storage::Incarnation([9; 16]);
    drop(
        d_engine_storage::StorageEngine::open(&common::engine(&other, &small()), &request).unwrap(),
    );
    let foreign = other.image().files[&segments(&other)[0]].clone();
    let path = segments(&fs)[0].clone();
    let error = refusal(&with_content(&fs, &path, foreign), "foreign segment");
    assert!(error.to_string().contains("another data directory"), "{error}");
}

#[test]
fn a_segment_of_another_format_is_refused_with_the_program_to_use() {
    let (fs, _) = three_segments();
    let path = segments(&fs)[0].clone();
    for (version, program) in [(0, "use an older program"), (2, "use a newer program")] {
        let mut content = fs.image().files[&path].clone();
        content[8] = version;
        let checksum = crc32c::crc32c(&content[..76]);
        content[76..80].copy_from_slice(&checksum.to_le_bytes());
        let error = refusal(&with_content(&fs, &path, content), "segment of another format");
        let StorageError::UnsupportedFormat { found, supported, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((found, supported), (version.into(), 1));
        assert!(error.to_string().ends_with(program), "{error}");
    }
}

#[test]
fn a_reader_notices_damage_that_happens_while_the_log_is_open() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, None, &entries(1, 1..=3)).unwrap();
    opened.log.sync().unwrap();
    let path = segments(&fs)[0].clone();
    let content = fs.image().files[&path].clone();
    let at = content.windows(9).position(|window| window == b"command 2").unwrap();
    assert!(fs.flip_bit(&path, at as u64, 3));
    let reader = opened.log.reader();
    let read = |first: u64, last: u64| {
        reader.read(GROUP, log_id(1, first).index, log_id(1, last).index, usize::MAX)
    };
    assert_eq!(read(1, 1).unwrap(), [entry(1, 1)]);
    assert!(matches!(read(1, 3), Err(StorageError::Damaged { .. })));
    assert_eq!(read(3, 3).unwrap(), [entry(1, 3)]);
}

/// FAULTS row 34: purged segments that reappear after a crash are no part of the log.
#[test]
fn segments_that_were_purged_and_came_back_are_no_part_of_the_log() {
    let (fs, mut expected) = three_segments();
    let before = fs.image();
    let removing = FileStorageOptions { spare_segments: 0, ..small() };
    let mut opened = open(&fs, &removing).unwrap();
    let through = expected.entries[&(expected.last() - 1)].id;
    opened.log.purge(GROUP, through).unwrap();
    expected.purge(through);
    drop(opened);
    let mut image = fs.image();
    for (path, content) in before.files {
        if path.extension().is_some_and(|extension| extension == "seg") {
            image.files.entry(path).or_insert(content);
        }
    }
    let fs = SimFs::from_image(&image);
    let come_back = segments(&fs).len();
    assert!(come_back > 3);
    // They may be reused, up to a bound.
    assert_eq!(goes_on(&fs, &small(), "purged segments reappeared"), expected);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
    assert_eq!(
        segments(&fs).len(),
        3,
        "two in use, one of them in a file that reappeared, and one spare"
    );
    assert_eq!(Picture::of(&open(&fs, &removing).unwrap()), expected);
    assert!(segments(&fs).len() <= 2, "{:?}", segments(&fs));
}

/// FAULTS row 32: a log whose entries have a gap is refused, even if every file verifies.
#[test]
fn a_log_that_does_not_begin_where_it_was_purged_is_refused() {
    let (fs, _) = three_segments();
    let mut image = fs.image();
    image.files.remove(&segments(&fs)[0]);
    // `log.meta` records that the first segment is purged, but not that its entries are.
    let path = std::path::Path::new(common::DIR).join("log.meta");
    image.files.remove(&path.with_file_name("log.meta.2")).unwrap();
    let record = image.files.get_mut(&path).unwrap();
    record[28 + 16..28 + 24].copy_from_slice(&2_u64.to_le_bytes());
    let len = u32::from_le_bytes(record[12..16].try_into().unwrap()) as usize;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(b"log"), &record[..16]);
    let checksum = crc32c::crc32c_append(checksum, &record[20..20 + len]);
    record[16..20].copy_from_slice(&checksum.to_le_bytes());
    let error = refusal(&SimFs::from_image(&image), "the first segment is missing");
    assert!(error.to_string().contains("entry 1 is missing"), "{error}");
}

/// A first group must name an earlier segment: a chain that leads back to itself would never end.
#[test]
fn a_chain_of_segments_that_leads_in_a_circle_is_refused() {
    let fs = SimFs::new();
    drop(open(&fs, &small()).unwrap());
    let path = segments(&fs)[0].clone();
    let mut content = fs.image().files[&path].clone();
    // The first group has no records; its watermark is changed to name its own position.
    content[512 + 64..512 + 72].copy_from_slice(&1_u64.to_le_bytes());
    content[512 + 72..512 + 80].copy_from_slice(&512_u64.to_le_bytes());
    let checksum = crc32c::crc32c(&content[512..512 + 80]);
    content[512 + 80..512 + 84].copy_from_slice(&checksum.to_le_bytes());
    let error = refusal(&with_content(&fs, &path, content), "circle");
    assert!(error.to_string().contains("names no segment before it"), "{error}");
}

/// The rule for recycling: the renamed file of a purged segment, still with its old header, is a
/// segment that was not begun.
#[test]
fn a_purged_segment_renamed_for_reuse_is_passed_over() {
    let (fs, mut expected) = three_segments();
    let purged = fs.image().files[&segments(&fs)[0]].clone();
    let mut opened = open(&fs, &small()).unwrap();
    let through = expected.entries[&expected.last()].id;
    opened.log.purge(GROUP, through).unwrap();
    expected.purge(through);
    drop(opened);
    let newest = segments(&fs).pop().unwrap();
    let fs = with_content(&fs, &newest.with_file_name("00000000000000000009.seg"), purged);
    assert_eq!(goes_on(&fs, &small(), "renamed"), expected);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
    assert!(!segments(&fs).iter().any(|path| path.ends_with("00000000000000000009.seg")));
}

/// Returns a log in several groups, purged up to entry `through`, and closed without an idle
/// watermark.
fn purged(through: u64) -> SimFs {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    for index in 1..=9 {
        opened.log.append(GROUP, Some(hard_state(1, 2, index)), &[entry(1, index)]).unwrap();
        opened.log.sync().unwrap();
    }
    if through > 0 {
        opened.log.purge(GROUP, log_id(1, through)).unwrap();
    }
    drop(opened);
    fs
}

/// Damage is refused, or what is left is a log like any other; also if the damaged group held only
/// purged entries, so that the log ends before its own base.
#[test]
fn a_log_that_opens_after_any_damage_goes_on() {
    let (mut opened, mut ends_before_base) = (0, 0);
    for through in 0..=9 {
        let fs = purged(through);
        for path in segments(&fs) {
            let content = fs.image().files[&path].clone();
            for sector in (0..content.len()).step_by(512) {
                let end = content.len().min(sector + 512);
                let (mut flipped, mut zeroed) = (content.clone(), content.clone());
                flipped[sector + 17] ^= 4;
                zeroed[sector..end].fill(0);
                let changed =
                    [("flip", flipped), ("zero", zeroed), ("cut", content[..sector].to_vec())];
                for (what, content) in changed {
                    let context = format!("purged to {through}, {what} at {sector}");
                    let damaged = with_content(&fs, &path, content);
                    let Ok(found) = open(&SimFs::from_image(&damaged.image()), &small()) else {
                        continue;
                    };
                    drop(found);
                    let found = goes_on(&damaged, &small(), &context);
                    assert_eq!(found.base.index.get(), through, "{context}");
                    opened += 1;
                    ends_before_base += u64::from(through == 9);
                }
            }
        }
    }
    assert!(opened > 100 && ends_before_base > 10, "{opened}, {ends_before_base}");
}

/// Log time could never go back from such a value. The record verifies, so it was stored, and is no
/// torn tail.
#[test]
fn an_entry_with_a_time_after_the_year_9999_is_refused_when_it_is_written_and_when_it_is_read() {
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let late = d_engine_storage::LogEntry { time_ms: YEAR_10000_MS, ..entry(1, 1) };
    let error = opened.log.append(GROUP, None, &[late]).unwrap_err();
    assert!(
        matches!(error, StorageError::Order(_)) && error.to_string().contains("9999"),
        "{error}"
    );
    opened.log.append(GROUP, None, &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let path = segments(&fs)[0].clone();
    let mut content = fs.image().files[&path].clone();
    // The group at 1024 holds the only record; its checksum continues the group header's.
    let (chain, record) = (1024 + 80, 1024 + 84);
    let number =
        |content: &[u8], at: usize| u32::from_le_bytes(content[at..at + 4].try_into().unwrap());
    let len = number(&content, record + 4) as usize;
    content[record + 36..record + 44].copy_from_slice(&YEAR_10000_MS.to_le_bytes());
    let checksum =
        crc32c::crc32c_append(number(&content, chain), &content[record + 4..record + len])
            .to_le_bytes();
    content[record..record + 4].copy_from_slice(&checksum);
    let error = refusal(&with_content(&fs, &path, content), "late");
    assert!(error.to_string().contains("9999"), "{error}");
}
