//! A received snapshot replaces the log: what is dropped never reappears, and what is kept stays,
//! wherever the process dies.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    DIR, GROUP, Picture, Random, entries, entry, entry_with, hard_state, log_id, open, segments,
    small,
};
use d_engine_core::{GroupId, LogId, LogIndex};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FsOp, LogStore, LogSuffix, OpenedStorage, StorageError};

fn append(log: &mut dyn LogStore, term: u64, indexes: std::ops::RangeInclusive<u64>) {
    for chunk in entries(term, indexes).chunks(3) {
        log.append(GROUP, Some(hard_state(term, 1, 0)), chunk).unwrap();
        log.sync().unwrap();
    }
}

/// Returns a log with entries 1 to 20 of term 1 and a vote in term 4.
fn twenty() -> (SimFs, OpenedStorage, Picture) {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    append(&mut *opened.log, 1, 1..=20);
    opened.log.append(GROUP, Some(hard_state(4, 3, 7)), &[]).unwrap();
    opened.log.sync().unwrap();
    let mut expected = Picture::default();
    expected.append(Some(hard_state(4, 3, 7)), &entries(1, 1..=20));
    (fs, opened, expected)
}

fn reopened(fs: &SimFs) -> Picture {
    Picture::of(&open(fs, &small()).unwrap())
}

/// FAULTS row 36: entries after the last included one that do not follow from the snapshot, some
/// with indexes that will not be written again for a long time.
#[test]
fn a_conflicting_suffix_is_dropped_and_never_comes_back() {
    let (fs, mut opened, mut expected) = twenty();
    opened.log.install(GROUP, log_id(3, 12), LogSuffix::Drop).unwrap();
    expected.restart(log_id(3, 12));
    let reader = opened.log.reader();
    for index in [1, 12, 13, 20] {
        assert!(
            reader.read(GROUP, LogIndex::new(index), LogIndex::new(index), usize::MAX).is_err(),
            "{index}"
        );
    }
    drop(opened);
    fs.kill();
    assert_eq!(reopened(&fs), expected, "with nothing written after it");
    fs.crash(&mut |_| 0);
    assert_eq!(reopened(&fs), expected, "after a second recovery");
    let mut opened = open(&fs, &small()).unwrap();
    append(&mut *opened.log, 4, 13..=14);
    expected.append(Some(hard_state(4, 1, 0)), &entries(4, 13..=14));
    drop(opened);
    for _ in 0..3 {
        fs.crash(&mut |_| 0);
        assert_eq!(reopened(&fs), expected, "15 to 20 are older than what was written");
    }
}

#[test]
fn a_snapshot_far_ahead_of_the_log_is_its_new_beginning() {
    let (fs, mut opened, mut expected) = twenty();
    opened.log.install(GROUP, log_id(6, 1000), LogSuffix::Drop).unwrap();
    let gap = opened.log.append(GROUP, None, &[entry(6, 21)]);
    assert!(matches!(gap, Err(StorageError::Order(_))), "the log must continue after the snapshot");
    append(&mut *opened.log, 7, 1001..=1010);
    expected.restart(log_id(6, 1000));
    expected.append(Some(hard_state(7, 1, 0)), &entries(7, 1001..=1010));
    drop(opened);
    fs.crash(&mut |_| 0);
    assert_eq!(reopened(&fs), expected);
}

#[test]
fn a_new_node_begins_with_a_snapshot() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.install(GROUP, log_id(5, 77), LogSuffix::Drop).unwrap();
    drop(opened);
    fs.crash(&mut |_| 0);
    let mut opened = open(&fs, &small()).unwrap();
    assert_eq!(opened.recovered.base, log_id(5, 77));
    append(&mut *opened.log, 5, 78..=80);
    drop(opened);
    fs.crash(&mut |_| 0);
    assert_eq!(reopened(&fs).last(), 80);
}

/// FAULTS row 36, the other half: what follows from the snapshot may have been acknowledged.
#[test]
fn a_matching_suffix_is_kept() {
    let (fs, mut opened, mut expected) = twenty();
    opened.log.install(GROUP, log_id(1, 12), LogSuffix::Keep).unwrap();
    expected.purge(log_id(1, 12));
    append(&mut *opened.log, 4, 21..=22);
    expected.append(Some(hard_state(4, 1, 0)), &entries(4, 21..=22));
    drop(opened);
    fs.crash(&mut |_| 0);
    assert_eq!(reopened(&fs), expected);
}

#[test]
fn what_does_not_fit_the_log_is_refused_and_changes_nothing() {
    let (fs, mut opened, mut expected) = twenty();
    let mut refused = |base: LogId, suffix: LogSuffix, why: &str| {
        let error = opened.log.install(GROUP, base, suffix).unwrap_err();
        assert!(matches!(&error, StorageError::Order(text) if text.contains(why)), "{error}");
    };
    refused(log_id(2, 12), LogSuffix::Keep, "does not contain");
    refused(log_id(1, 21), LogSuffix::Keep, "does not contain");
    refused(log_id(1, 12), LogSuffix::Drop, "must be kept");
    opened.log.purge(GROUP, log_id(1, 10)).unwrap();
    expected.purge(log_id(1, 10));
    for base in [log_id(1, 9), log_id(2, 10), log_id(9, 3)] {
        for suffix in [LogSuffix::Keep, LogSuffix::Drop] {
            let error = opened.log.install(GROUP, base, suffix).unwrap_err();
            assert!(error.to_string().contains("begins after"), "{error}");
        }
    }
    opened.log.append(GROUP, None, &[entry(4, 21)]).unwrap();
    for suffix in [LogSuffix::Keep, LogSuffix::Drop] {
        let error = opened.log.install(GROUP, log_id(5, 30), suffix).unwrap_err();
        assert!(error.to_string().contains("sync them first"), "{error}");
    }
    opened.log.sync().unwrap();
    expected.append(None, &[entry(4, 21)]);
    drop(opened);
    assert_eq!(reopened(&fs), expected);
}

/// A node that died between the install and the removal of its marker repeats the install.
#[test]
fn installing_the_same_snapshot_again_changes_nothing() {
    let (fs, mut opened, mut expected) = twenty();
    opened.log.install(GROUP, log_id(3, 12), LogSuffix::Drop).unwrap();
    append(&mut *opened.log, 4, 13..=14);
    opened.log.install(GROUP, log_id(3, 12), LogSuffix::Drop).unwrap();
    opened.log.install(GROUP, log_id(3, 12), LogSuffix::Keep).unwrap();
    expected.restart(log_id(3, 12));
    expected.append(Some(hard_state(4, 1, 0)), &entries(4, 13..=14));
    drop(opened);
    assert_eq!(reopened(&fs), expected);
}

#[test]
fn the_log_of_another_group_is_untouched() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let other = GroupId::new(2).unwrap();
    opened.log.append(other, Some(hard_state(8, 2, 1)), &entries(8, 1..=5)).unwrap();
    opened.log.sync().unwrap();
    append(&mut *opened.log, 1, 1..=40);
    assert!(segments(&fs).len() > 2, "the other group's entries lie in an older segment");
    opened.log.install(GROUP, log_id(6, 50), LogSuffix::Drop).unwrap();
    append(&mut *opened.log, 7, 51..=51);
    drop(opened);
    for _ in 0..2 {
        fs.crash(&mut |_| 0);
        let opened = open(&fs, &small()).unwrap();
        assert_eq!(Picture::of(&opened).entries.len(), 1);
        let read = opened
            .log
            .reader()
            .read(other, LogIndex::new(1), LogIndex::new(5), usize::MAX)
            .unwrap();
        assert_eq!(read, entries(8, 1..=5));
    }
}

#[test]
fn the_segments_of_the_old_log_serve_again() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    for index in 1..=60 {
        opened.log.append(GROUP, None, &[entry_with(1, index, vec![1; 400])]).unwrap();
        opened.log.sync().unwrap();
    }
    assert!(segments(&fs).len() > 8);
    opened.log.install(GROUP, log_id(2, 500), LogSuffix::Drop).unwrap();
    assert_eq!(segments(&fs).len(), 3, "the one in use, and two spares");
    let before = opened.log.stats().recycled;
    append(&mut *opened.log, 3, 501..=540);
    assert!(opened.log.stats().recycled >= before + 2);
    drop(opened);
    fs.crash(&mut |_| 0);
    let found = reopened(&fs);
    assert_eq!((found.base, found.entries.len()), (log_id(2, 500), 40));
}

/// The record of the install proves that everything before it was stored: the end of the log, with
/// the vote in it, cannot be taken for a torn tail.
#[test]
fn damage_before_the_place_of_an_install_is_not_a_torn_tail() {
    let (fs, mut opened, _) = twenty();
    opened.log.install(GROUP, log_id(6, 50), LogSuffix::Drop).unwrap();
    drop(opened);
    let newest = segments(&fs).pop().unwrap();
    let content = fs.image().files[&newest].clone();
    let vote = content.rchunks(512).position(|sector| sector.starts_with(b"dGRP")).unwrap();
    let offset = content.len() - (vote + 1) * 512;
    assert!(fs.flip_bit(&newest, offset as u64 + 100, 1));
    let error = open(&fs, &small()).unwrap_err();
    assert!(
        matches!(&error, StorageError::Damaged { what, .. } if what.contains("log.meta")),
        "{error}"
    );
}

/// A concurrent read returns the old entries, the new ones, or an error.
#[test]
fn a_reader_never_sees_a_mix_of_old_and_new() {
    let (_fs, mut opened, _) = twenty();
    let reader = opened.log.reader();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = [0_usize; 2];
                    while !done.load(Ordering::SeqCst) {
                        match reader.read(GROUP, LogIndex::new(13), LogIndex::new(20), usize::MAX) {
                            Ok(read) => {
                                let term = read[0].id.term.get();
                                assert_eq!(read, entries(term, 13..=20));
                                seen[usize::from(term != 1)] += 1;
                            }
                            Err(StorageError::Order(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    seen
                })
            })
            .collect();
        while reader.read(GROUP, LogIndex::new(13), LogIndex::new(13), usize::MAX).is_err() {}
        opened.log.install(GROUP, log_id(3, 12), LogSuffix::Drop).unwrap();
        append(&mut *opened.log, 4, 13..=40);
        // The old segments are overwritten while a reader may still read in them.
        for index in 41..=120 {
            opened.log.append(GROUP, None, &[entry_with(4, index, vec![4; 300])]).unwrap();
            opened.log.sync().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[derive(Clone, Default)]
struct Expected {
    acknowledged: Picture,
    attempted: Picture,
}

enum Act {
    Append(u64, std::ops::RangeInclusive<u64>),
    Purge(LogId),
    Install(LogId, LogSuffix),
    Idle,
}

fn script() -> Vec<Act> {
    vec![
        Act::Append(1, 1..=14),
        Act::Install(log_id(1, 6), LogSuffix::Keep),
        Act::Append(2, 15..=17),
        Act::Install(log_id(3, 10), LogSuffix::Drop),
        Act::Append(3, 11..=12),
        Act::Idle,
        Act::Install(log_id(4, 40), LogSuffix::Drop),
        Act::Install(log_id(4, 41), LogSuffix::Drop),
        Act::Append(5, 42..=60),
        Act::Purge(log_id(5, 50)),
        Act::Install(log_id(5, 58), LogSuffix::Keep),
        Act::Append(5, 61..=62),
        Act::Install(log_id(6, 60), LogSuffix::Drop),
        Act::Idle,
        Act::Append(7, 61..=75),
    ]
}

fn live(opened: &mut OpenedStorage, expected: &mut Expected) -> Result<(), StorageError> {
    for act in script() {
        match act {
            Act::Append(term, indexes) => {
                for chunk in entries(term, indexes).chunks(4) {
                    let state = hard_state(term, 1, chunk[0].id.index.get() - 1);
                    expected.attempted.append(Some(state), chunk);
                    opened.log.append(GROUP, Some(state), chunk)?;
                    opened.log.sync()?;
                    expected.acknowledged = expected.attempted.clone();
                }
            }
            Act::Purge(through) => {
                expected.attempted.purge(through);
                opened.log.purge(GROUP, through)?;
            }
            Act::Install(base, suffix) => {
                match suffix {
                    LogSuffix::Keep => expected.attempted.purge(base),
                    LogSuffix::Drop => expected.attempted.restart(base),
                }
                opened.log.install(GROUP, base, suffix)?;
            }
            Act::Idle => opened.log.idle()?,
        }
        expected.acknowledged = expected.attempted.clone();
    }
    Ok(())
}

/// Dies at operation `at`, and at operation `again` of the recovery.
fn die_and_come_back(at: u64, again: Option<u64>, seed: u64) -> bool {
    let context = format!("operation {at}, then {again:?}, seed {seed}");
    let fs = SimFs::new();
    let mut random = Random::new(seed ^ (at << 8));
    let mut expected = Expected::default();
    fs.halt_at(at);
    if open(&fs, &small()).and_then(|mut opened| live(&mut opened, &mut expected)).is_ok() {
        return false;
    }
    random.crash(&fs);
    if let Some(again) = again {
        fs.halt_at(again);
        drop(open(&fs, &small()));
        random.crash(&fs);
    }
    let opened = open(&fs, &small()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut found = Picture::of(&opened);
    drop(opened);
    let allowed = [&expected.acknowledged, &expected.attempted];
    assert!(allowed.contains(&&found), "{context}: {found:#?}\nis neither of {allowed:#?}");
    random.crash(&fs);
    let mut opened = open(&fs, &small()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(Picture::of(&opened), found, "{context}: what was found once stays");
    let next = entries(9, found.last() + 1..=found.last() + 2);
    opened.log.append(GROUP, Some(hard_state(9, 3, 0)), &next).unwrap();
    opened.log.sync().unwrap();
    found.append(Some(hard_state(9, 3, 0)), &next);
    drop(opened);
    random.crash(&fs);
    assert_eq!(reopened(&fs), found, "{context}: at the end");
    true
}

/// FAULTS rows 34, 36 and 39: the log is the old one or the new one, never a mixture.
#[test]
fn a_crash_at_any_operation_leaves_the_old_log_or_the_new_one() {
    for seed in 0..24 {
        let mut at = 1;
        while die_and_come_back(at, None, seed) {
            at += 1;
        }
        assert!(at > 120, "the boot has {at} operations");
    }
}

#[test]
fn a_recovery_that_dies_too_changes_nothing_about_it() {
    for again in (1..40).step_by(3) {
        let mut at = 1 + again % 5;
        while die_and_come_back(at, Some(again), again) {
            at += 5;
        }
    }
}

/// FAULTS row 33: an install whose record could not be written is final for the store, and the log
/// is the old one or the new one afterwards.
#[test]
fn an_io_error_during_an_install_stops_the_log() {
    for op in [FsOp::Write, FsOp::SyncAll] {
        let (fs, mut opened, old) = twenty();
        let mut new = old.clone();
        new.restart(log_id(3, 12));
        fs.fail(op, 1, Failure::Io);
        let error = opened.log.install(GROUP, log_id(3, 12), LogSuffix::Drop).unwrap_err();
        assert!(matches!(error, StorageError::Io { .. }), "{op:?}: {error}");
        let later = opened.log.append(GROUP, None, &[entry(4, 13)]);
        assert!(matches!(later, Err(StorageError::Stopped { .. })), "{op:?}");
        drop(opened);
        Random::new(op as u64).crash(&fs);
        let found = reopened(&fs);
        assert!(found == old || found == new, "{op:?}: {found:#?}");
        assert!(!fs.image().files.contains_key(&Path::new(DIR).join("log.meta.tmp")), "{op:?}");
    }
}
