//! What a crash may do to bytes that were not acknowledged: the log opens, and loses nothing else.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{
    GROUP, Picture, Random, entries, entry, hard_state, open, roomy, segments, small, with_content,
};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FsOp, StorageError};

/// Returns a log with `acknowledged` synced, and one more group written after it whose sync failed:
/// the disk, the two pictures, and the offset at which the last group begins.
fn interrupted() -> (SimFs, Picture, Picture, usize) {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    let mut acknowledged = Picture::default();
    for index in 1..=6 {
        let stored = [entry(1, index)];
        opened.log.append(GROUP, Some(hard_state(1, 2, index)), &stored).unwrap();
        opened.log.sync().unwrap();
        acknowledged.append(Some(hard_state(1, 2, index)), &stored);
    }
    let end = used(&fs);
    let mut attempted = acknowledged.clone();
    let stored = entries(2, 5..=15);
    opened.log.append(GROUP, Some(hard_state(2, 3, 4)), &stored).unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    opened.log.sync().unwrap_err();
    attempted.append(Some(hard_state(2, 3, 4)), &stored);
    drop(opened);
    fs.kill();
    (fs, acknowledged, attempted, end)
}

/// Returns the offset of the first block without content in the newest segment.
fn used(fs: &SimFs) -> usize {
    let content = &fs.image().files[segments(fs).last().unwrap()];
    content.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(512)
}

/// Opens, compares, appends, and opens again: the repair must hide nothing (FAULTS row 28).
fn assert_opens_twice(fs: &SimFs, allowed: &[&Picture], context: &str) {
    let mut opened = open(fs, &roomy()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut found = Picture::of(&opened);
    assert!(allowed.contains(&&found), "{context}: {found:?}");
    let next = [entry(3, found.last() + 1)];
    opened.log.append(GROUP, Some(hard_state(3, 1, 0)), &next).unwrap();
    opened.log.sync().unwrap();
    found.append(Some(hard_state(3, 1, 0)), &next);
    drop(opened);
    for _ in 0..2 {
        let opened = open(fs, &roomy()).unwrap_or_else(|error| panic!("{context}, again: {error}"));
        assert_eq!(Picture::of(&opened), found, "{context}, again");
        assert_eq!(opened.report.torn_bytes, 0, "{context}, again");
    }
}

/// FAULTS row 26.
#[test]
fn a_log_cut_at_any_byte_of_its_last_group_opens() {
    let (fs, acknowledged, attempted, end) = interrupted();
    let path = segments(&fs).pop().unwrap();
    let content = fs.image().files[&path].clone();
    let group_end = used(&fs);
    assert!(group_end >= end + 1024, "the last group spans several sectors");
    let filled = common::filled(&fs);
    let (mut refused, mut opened) = (0, 0);
    for cut in end..=content.len() {
        let cut_off = with_content(&fs, &path, content[..cut].to_vec());
        if (cut as u64) < filled {
            // No crash can cause that: this length was synced before the group was written.
            let error = open(&cut_off, &roomy()).unwrap_err().to_string();
            assert!(error.contains("cut off") && error.contains("restore"), "{error}");
            refused += 1;
        } else {
            assert_opens_twice(&cut_off, &[&acknowledged, &attempted], &format!("cut at {cut}"));
            opened += 1;
        }
    }
    assert!(refused > 0 && opened > 0, "{refused}, {opened}: filled to {filled}");
    for cut in end..=group_end {
        let mut zeroed = content.clone();
        zeroed[cut..].fill(0);
        let zeroed = with_content(&fs, &path, zeroed);
        assert_opens_twice(&zeroed, &[&acknowledged, &attempted], &format!("zero from {cut}"));
    }
}

/// FAULTS row 26: sectors of an unsynced group get lost or garbled one by one.
#[test]
fn garbage_or_zeros_in_any_sectors_of_the_last_group_are_a_torn_tail() {
    let (fs, acknowledged, attempted, end) = interrupted();
    let path = segments(&fs).pop().unwrap();
    let content = fs.image().files[&path].clone();
    let sectors = (used(&fs) - end) / 512;
    let mut random = Random::new(7);
    for pick in 1..1_u32 << sectors {
        let mut garbled = content.clone();
        for sector in (0..sectors).filter(|sector| pick & (1 << sector) != 0) {
            let start = end + sector * 512;
            let garbage = random.below(2) == 0;
            garbled[start..start + 512]
                .fill_with(|| if garbage { random.number() as u8 } else { 0 });
        }
        let fs = with_content(&fs, &path, garbled);
        assert_opens_twice(&fs, &[&acknowledged, &attempted], &format!("sectors {pick:b}"));
    }
}

/// FAULTS row 27.
#[test]
fn random_lengths_in_the_last_group_are_a_torn_tail() {
    let (fs, acknowledged, _, end) = interrupted();
    let path = segments(&fs).pop().unwrap();
    let content = fs.image().files[&path].clone();
    let mut random = Random::new(1);
    // The group's body length, its record count, and the first record's length.
    for at in [end + 56, end + 60, end + 84 + 4] {
        for _ in 0..200 {
            let mut garbled = content.clone();
            garbled[at..at + 4].copy_from_slice(&(random.number() as u32).to_le_bytes());
            let fs = with_content(&fs, &path, garbled);
            assert_opens_twice(&fs, &[&acknowledged], &format!("length at {at}"));
        }
    }
}

#[test]
fn the_report_names_the_segment_and_the_bytes_that_were_cut() {
    let (fs, acknowledged, _, end) = interrupted();
    let path = segments(&fs).pop().unwrap();
    assert!(fs.flip_bit(&path, end as u64 + 90, 0));
    assert_opens_twice(&SimFs::from_image(&fs.image()), &[&acknowledged], "flipped");
    let opened = open(&fs, &roomy()).unwrap();
    assert_eq!(Picture::of(&opened), acknowledged);
    let (segment, offset) = opened.report.torn_at.clone().unwrap();
    assert!(path.ends_with(&segment));
    assert_eq!(offset, end as u64);
    assert!(opened.report.torn_bytes > 512);
    let left = fs.image().files[&path].len();
    assert!(left <= end, "the torn bytes are gone from the file: {left}");
}

/// The creation of a segment was interrupted: any part of its header may be there.
#[test]
fn a_segment_torn_while_it_was_prepared_is_passed_over() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, Some(hard_state(1, 1, 0)), &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
    while segments(&fs).len() < 2 {
        opened.log.idle().unwrap();
    }
    let expected = Picture {
        hard_state: hard_state(1, 1, 0),
        base: Picture::default().base,
        entries: [(1, entry(1, 1))].into(),
    };
    drop(opened);
    let path = segments(&fs).pop().unwrap();
    let content = fs.image().files[&path].clone();
    for cut in 0..=600 {
        let cut_off = with_content(&fs, &path, content[..cut].to_vec());
        assert_opens_twice(&cut_off, &[&expected], &format!("cut at {cut}"));
        let mut garbled = content.clone();
        garbled[cut] ^= 0x10;
        let garbled = with_content(&fs, &path, garbled);
        assert_opens_twice(&garbled, &[&expected], &format!("garbled at {cut}"));
    }
}

/// FAULTS row 33: after a failed sync the pages may still be readable and yet be lost. Recovery
/// writes again what it reads after the last watermark, before it counts.
#[test]
fn a_tail_that_is_only_readable_is_written_again_before_it_counts() {
    let (fs, _, attempted, _) = interrupted();
    let opened = open(&fs, &roomy()).unwrap();
    assert_eq!(Picture::of(&opened), attempted, "the pages are still in the cache");
    drop(opened);
    fs.crash(&mut |_| 0);
    let opened = open(&fs, &roomy()).unwrap();
    assert_eq!(Picture::of(&opened), attempted, "recovery reported it, so it must be durable");
}

/// The same over several restarts, with a tail that is the first group of a segment.
#[test]
fn restarts_without_writes_in_between_leave_one_tail_segment_and_lose_nothing() {
    let (fs, _, attempted, _) = interrupted();
    for round in 0..6 {
        let opened = open(&fs, &roomy()).unwrap();
        assert_eq!(Picture::of(&opened), attempted);
        drop(opened);
        fs.crash(&mut |_| 0);
        assert!(segments(&fs).len() <= 2, "round {round}");
    }
}

#[test]
fn a_failed_open_can_be_tried_again() {
    let (fs, _, attempted, _) = interrupted();
    let interrupted = fs.image();
    let mut failed = 0;
    for op in FsOp::ALL {
        for nth in 1..20 {
            let fs = SimFs::from_image(&interrupted);
            fs.fail(op, nth, Failure::Io);
            let Err(error) = open(&fs, &roomy()) else { break };
            assert!(matches!(error, StorageError::Io { .. }), "{op:?} {nth}: {error}");
            failed += 1;
            fs.kill();
            assert_eq!(Picture::of(&open(&fs, &roomy()).unwrap()), attempted, "{op:?} {nth}");
        }
    }
    assert!(failed >= 20, "{failed}");
}

/// Bytes of another segment after the end, as a reused file or block leaves them, must never be
/// taken for a part of the log.
#[test]
fn groups_of_another_segment_behind_the_end_are_garbage() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::default();
    opened.log.append(GROUP, Some(hard_state(1, 1, 0)), &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
    expected.append(Some(hard_state(1, 1, 0)), &[entry(1, 1)]);
    let early = fs.image();
    let mut index = 1;
    while segments(&fs).len() < 3 {
        index += 1;
        opened.log.append(GROUP, None, &[entry(1, index)]).unwrap();
        opened.log.sync().unwrap();
    }
    let [first, second, third] = &segments(&fs)[..] else { panic!("three segments") };
    let files = fs.image().files;
    for (name, groups) in [("second", &files[second][512..]), ("third", &files[third][512..])] {
        for gap in [0, 512] {
            let fs = SimFs::from_image(&early);
            let mut content = early.files[first].clone();
            content.truncate(used(&fs) + gap);
            content.resize(used(&fs) + gap, 0);
            content.extend_from_slice(groups);
            content.resize(content.len().max(early.files[first].len()), 0);
            let fs = with_content(&fs, first, content);
            assert_opens_twice(
                &fs,
                &[&expected],
                &format!("groups of the {name}, {gap} bytes after the end"),
            );
        }
    }
}

/// A group that verifies on its own is not the next group if it was written under an earlier open,
/// or does not follow the group before it.
#[test]
fn a_group_of_an_earlier_epoch_or_out_of_sequence_ends_the_log() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    opened.log.append(GROUP, None, &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
    opened.log.idle().unwrap();
    drop(opened);
    let path = segments(&fs).pop().unwrap();
    let content = fs.image().files[&path].clone();
    let group = used(&fs) - 512;
    for (what, field, value) in [("epoch", group + 40, 0), ("sequence", group + 48, 9)] {
        let mut changed = content.clone();
        assert_ne!(changed[field], value);
        changed[field] = value;
        let checksum = crc32c::crc32c(&changed[group..group + 80]);
        changed[group + 80..group + 84].copy_from_slice(&checksum.to_le_bytes());
        let fs = with_content(&fs, &path, changed);
        common::goes_on(&fs, &roomy(), what);
        let opened = open(&fs, &roomy()).unwrap();
        assert_eq!(opened.report.torn_at.unwrap().1, group as u64, "{what}");
        assert_eq!(opened.recovered.entries.len(), 1);
    }
}
