//! A log that was closed in an orderly way continues in its newest segment, and no crash of the
//! process loses anything there. However many segments there are, few of them are open.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{
    GROUP, Picture, Random, entries, entry, entry_with, goes_on, hard_state, log_id, open, roomy,
    segments, small, with_content,
};
use d_engine_core::LogIndex;
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{Fs, FsOp, LogSuffix, OpenMode, OpenedStorage, StorageError};

/// Closes a log as a node does that is stopped.
fn close(mut opened: OpenedStorage) -> Result<(), StorageError> {
    opened.log.sync()?;
    opened.log.idle()
}

fn append(opened: &mut OpenedStorage, expected: &mut Picture, term: u64, count: u64) {
    let stored = entries(term, expected.last() + 1..=expected.last() + count);
    let state = Some(hard_state(term, 1, expected.last()));
    opened.log.append(GROUP, state, &stored).unwrap();
    opened.log.sync().unwrap();
    expected.append(state, &stored);
}

#[test]
fn a_hundred_orderly_restarts_leave_one_segment() {
    for appends in [0, 1] {
        let fs = SimFs::new();
        let mut expected = Picture::default();
        for restart in 0..100 {
            let mut opened = open(&fs, &roomy()).unwrap();
            assert_eq!(Picture::of(&opened), expected, "restart {restart}");
            if appends > 0 && restart % 2 == 0 {
                append(&mut opened, &mut expected, restart + 1, appends);
            }
            assert_eq!(opened.log.stats().segments, 1, "restart {restart}");
            close(opened).unwrap();
            if restart % 3 == 0 {
                fs.crash(&mut |_| 0);
            }
        }
        assert_eq!(Picture::of(&open(&fs, &roomy()).unwrap()), expected);
        assert_eq!(segments(&fs).len(), 1);
    }
}

/// A restart with nothing to store writes nothing.
#[test]
fn a_start_behind_an_orderly_stop_writes_nothing() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    let mut opened = open(&fs, &roomy()).unwrap();
    append(&mut opened, &mut expected, 1, 5);
    close(opened).unwrap();
    let before = fs.image();
    close(open(&fs, &roomy()).unwrap()).unwrap();
    let mut after = fs.image();
    // The zeros ahead of the log are no content.
    for (path, content) in &before.files {
        let longer = after.files.get_mut(path).unwrap();
        assert!(
            longer.split_off(content.len()).iter().all(|byte| *byte == 0),
            "{}",
            path.display()
        );
    }
    assert_eq!(after, before);
}

/// What may be found after a crash: what was acknowledged, or that and the step in progress.
#[derive(Clone, Default)]
struct Expected {
    acknowledged: Picture,
    attempted: Picture,
}

/// Six boots in one or two segments, each closed in an orderly way. Groups of one block and of
/// several replace the group without records.
fn live(fs: &SimFs, expected: &mut Expected) -> Result<(), StorageError> {
    for boot in 1..=6_u64 {
        let mut opened = open(fs, &small())?;
        assert_eq!(opened.recovered.entries.len(), expected.acknowledged.entries.len());
        for step in 0..boot % 3 + 1 {
            let last = expected.acknowledged.last();
            let back = u64::from(step == 1 && last > 2);
            let size = if (boot + step) % 2 == 0 { 20 } else { 1_300 };
            let stored = [
                entry_with(boot, last + 1 - back, vec![boot as u8; size]),
                entry(boot, last + 2 - back),
            ];
            let state = hard_state(boot, 1, last.saturating_sub(2));
            expected.attempted.append(Some(state), &stored);
            opened.log.append(GROUP, Some(state), &stored)?;
            opened.log.sync()?;
            expected.acknowledged = expected.attempted.clone();
        }
        if boot == 4 {
            let through = expected.acknowledged.entries[&(expected.acknowledged.last() - 2)].id;
            expected.attempted.purge(through);
            opened.log.purge(GROUP, through)?;
            expected.acknowledged = expected.attempted.clone();
        }
        close(opened)?;
    }
    Ok(())
}

fn die_and_come_back(at: u64, again: u64, seed: u64) -> (bool, u64) {
    let context = format!("operation {at}, then {again}, seed {seed}");
    let fs = SimFs::new();
    let mut random = Random::new(seed ^ (at << 8));
    let mut expected = Expected::default();
    fs.halt_at(at);
    if live(&fs, &mut expected).is_ok() {
        return (false, 0);
    }
    random.crash(&fs);
    fs.halt_at(again);
    drop(open(&fs, &small()).and_then(close));
    random.crash(&fs);
    let opened = open(&fs, &small()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = Picture::of(&opened);
    let torn = u64::from(opened.report.torn_bytes > 0);
    let allowed = [&expected.acknowledged, &expected.attempted];
    assert!(allowed.contains(&&found), "{context}: {found:#?}\nis neither of {allowed:#?}");
    drop(opened);
    // What was found once must be found after later crashes too.
    random.crash(&fs);
    assert_eq!(goes_on(&fs, &small(), &context), found, "{context}");
    (true, torn)
}

/// Groups of several opens in one segment: a crash at any moment loses nothing acknowledged.
#[test]
fn nothing_is_lost_wherever_the_process_dies_in_a_segment_of_several_opens() {
    let (mut boots, mut torn) = (0, 0);
    for seed in 0..16 {
        for at in 1.. {
            let (died, half) = die_and_come_back(at, 1 + (at * 5 + seed * 3) % 30, seed);
            if !died {
                assert!(at > 120, "the boots have {at} operations");
                break;
            }
            (boots, torn) = (boots + 1, torn + half);
        }
    }
    assert!(torn * 100 > boots, "{torn} of {boots}");
}

/// A flipped bit in a segment of several opens is refused, and the error names the place; the last
/// group is the exception.
#[test]
fn damage_in_a_segment_of_several_opens_is_refused() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    for boot in 1..=3 {
        let mut opened = open(&fs, &roomy()).unwrap();
        append(&mut opened, &mut expected, boot, 3);
        append(&mut opened, &mut expected, boot, 2);
        close(opened).unwrap();
    }
    let [path] = &segments(&fs)[..] else { panic!("one segment: {:?}", segments(&fs)) };
    let content = fs.image().files[path].clone();
    let last = content.iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512;
    for at in 0..last {
        let mut damaged = content.clone();
        damaged[at] ^= 1 << (at % 8);
        let error = open(&with_content(&fs, path, damaged), &roomy()).map(drop).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "byte {at}: {error}");
    }
}

/// The last write of a boot was never synced: it is in doubt, and the log does not continue in that
/// segment.
#[test]
fn a_tail_in_doubt_is_written_again_in_a_new_segment() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    let mut opened = open(&fs, &roomy()).unwrap();
    append(&mut opened, &mut expected, 1, 3);
    close(opened).unwrap();
    let mut opened = open(&fs, &roomy()).unwrap();
    let stored = entries(2, 4..=5);
    opened.log.append(GROUP, None, &stored).unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    opened.log.sync().unwrap_err();
    drop(opened);
    // Readable, but lost with the next power cut unless it is written again.
    expected.append(None, &stored);
    assert_eq!(Picture::of(&open(&fs, &roomy()).unwrap()), expected);
    fs.crash(&mut |_| 0);
    assert_eq!(Picture::of(&open(&fs, &roomy()).unwrap()), expected);
}

/// The group without records can be read, but its sync failed: the next group is written in its
/// place, not after it.
#[test]
fn a_watermark_that_is_only_readable_is_not_built_upon() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    let mut opened = open(&fs, &roomy()).unwrap();
    append(&mut opened, &mut expected, 1, 3);
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    close(opened).unwrap_err();
    let mut opened = open(&fs, &roomy()).unwrap();
    assert_eq!(opened.log.stats().segments, 1);
    append(&mut opened, &mut expected, 2, 2);
    drop(opened);
    fs.crash(&mut |_| 0);
    assert_eq!(Picture::of(&open(&fs, &roomy()).unwrap()), expected);
}

/// After the install of a snapshot the log begins after the group without records, and no entry may
/// lie before that.
#[test]
fn a_log_that_begins_anew_behind_the_last_group_goes_on_behind_it() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    let mut opened = open(&fs, &roomy()).unwrap();
    append(&mut opened, &mut expected, 1, 3);
    opened.log.idle().unwrap();
    opened.log.install(GROUP, log_id(2, 9), LogSuffix::Drop).unwrap();
    expected.restart(log_id(2, 9));
    close(opened).unwrap();
    for term in 3..5 {
        let mut opened = open(&fs, &roomy()).unwrap();
        append(&mut opened, &mut expected, term, 2);
        close(opened).unwrap();
        assert_eq!(Picture::of(&open(&fs, &roomy()).unwrap()), expected);
    }
}

/// Returns a log of 500 segments.
fn long() -> (SimFs, Picture) {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::default();
    while opened.log.stats().segments < 500 {
        let stored = [entry_with(1, expected.last() + 1, vec![1; 3_300])];
        opened.log.append(GROUP, Some(hard_state(1, 1, 0)), &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(Some(hard_state(1, 1, 0)), &stored);
    }
    close(opened).unwrap();
    (fs, expected)
}

#[test]
fn a_log_of_many_segments_holds_a_bounded_number_of_handles() {
    let (fs, expected) = long();
    // Sixteen segments for reading, the segment in use, the next one, and the two records.
    fs.set_max_open(Some(16 + 8));
    let mut opened = open(&fs, &small()).unwrap();
    assert!(opened.log.stats().segments >= 500, "{:?}", opened.log.stats());
    assert_eq!(Picture::of(&opened), expected);
    let reader = opened.log.reader();
    for index in (1..=expected.last()).rev().step_by(7) {
        let read =
            reader.read(GROUP, LogIndex::new(index), LogIndex::new(index), usize::MAX).unwrap();
        assert_eq!(read, [expected.entries[&index].clone()]);
    }
    // The files are closed even if no limit forces it.
    fs.set_max_open(None);
    for index in 1..=200 {
        reader.read(GROUP, LogIndex::new(index), LogIndex::new(index), usize::MAX).unwrap();
    }
    fs.set_max_open(Some(16 + 8));
    drop(fs.open(&segments(&fs)[0], OpenMode::ReadOnly).unwrap());
    // Purging all segments needs no handles either.
    opened.log.purge(GROUP, log_id(1, expected.last() - 1)).unwrap();
    assert!(segments(&fs).len() < 6, "{:?}", segments(&fs));
}

/// The process is out of handles: the log closes the files of other segments, and if it has none,
/// the caller may retry the read.
#[test]
fn a_read_without_a_handle_closes_others_and_may_be_made_again() {
    let (fs, expected) = long();
    let opened = open(&fs, &small()).unwrap();
    let reader = opened.log.reader();
    let read =
        |index: u64| reader.read(GROUP, LogIndex::new(index), LogIndex::new(index), usize::MAX);
    for index in 200..220 {
        read(index).unwrap();
    }
    fs.fail(FsOp::Open, 1, Failure::TooManyFiles);
    assert_eq!(read(5).unwrap(), [expected.entries[&5].clone()]);
    fs.set_max_open(Some(0));
    let error = read(100).unwrap_err();
    assert!(matches!(error, StorageError::NoRoom { .. }), "{error}");
    fs.set_max_open(None);
    assert_eq!(read(100).unwrap(), [expected.entries[&100].clone()]);
}
