//! Damage in a part of the log that an intact snapshot contains is skipped; any other damage is
//! refused as before.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{
    GROUP, Picture, Random, engine, entries, entry_with, goes_on, hard_state, log_id, open,
    request, roomy, segments, small, with_content,
};
use d_engine_core::LogId;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{FileStorageOptions, OpenedStorage, StorageEngine, StorageError};

/// Opens a log whose node has an intact snapshot up to `covered`.
fn open_behind(
    fs: &SimFs,
    options: &FileStorageOptions,
    covered: LogId,
) -> Result<OpenedStorage, StorageError> {
    engine(fs, options).open_behind(&request(), &mut |_| Some(covered))
}

/// Terms 1 to 3 with superseded suffixes, over several segments of small groups; each group
/// contains the hard state. Returns the picture of the log at its end.
fn written(fs: &SimFs, options: &FileStorageOptions, rounds: u64) -> Picture {
    let mut opened = open(fs, options).unwrap();
    let mut expected = Picture::default();
    for round in 0..rounds {
        let term = 1 + round / 4;
        let back = if round > 0 && round % 4 == 0 { 2 } else { 0 };
        let first = expected.last() + 1 - back;
        let mut stored = entries(term, first..=first + 2);
        stored.push(entry_with(term, first + 3, vec![term as u8; 150]));
        let state = Some(hard_state(term, 1 + round % 3, first.saturating_sub(3)));
        opened.log.append(GROUP, state, &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(state, &stored);
    }
    opened.log.idle().unwrap();
    expected
}

/// Returns what is left of `expected` after the snapshot.
fn behind(expected: &Picture, covered: LogId) -> Picture {
    let mut behind = expected.clone();
    behind.purge(covered);
    behind
}

/// Returns the bytes to damage, `step` apart. The last group without records is in doubt: damage in
/// it is neither refused nor skipped.
fn places(fs: &SimFs, step: usize) -> Vec<(std::path::PathBuf, usize)> {
    let mut places = Vec::new();
    for path in segments(fs) {
        let len = fs.image().files[&path].len();
        places.extend((0..len).step_by(step).map(|at| (path.clone(), at)));
    }
    places
}

/// A bit flips anywhere: the log is what it was, or what follows the snapshot, or it is refused and
/// nothing is changed. It is never anything else, and it opens again without the snapshot.
#[test]
fn damage_that_a_snapshot_holds_is_passed_over_and_any_other_is_refused() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 16);
    let image = fs.image();
    let ids: Vec<LogId> = expected.entries.values().map(|entry| entry.id).collect();
    let (mut passed, mut refused) = (0, 0);
    for covered in [ids[4], ids[ids.len() / 2], ids[ids.len() - 3], ids[ids.len() - 1]] {
        for (path, at) in places(&fs, 37) {
            let context = format!("{} at {at}, snapshot to {covered}", path.display());
            let mut content = image.files[&path].clone();
            content[at] ^= 1 << (at % 8);
            let fs = with_content(&fs, &path, content);
            let before = fs.image();
            match open_behind(&fs, &small(), covered) {
                Ok(opened) if opened.report.skipped_corruption.is_some() => {
                    passed += 1;
                    let found = Picture::of(&opened);
                    assert_eq!(found, behind(&expected, covered), "{context}");
                    assert_eq!(
                        opened.recovered.base_time_ms, None,
                        "{context}: the snapshot contains it"
                    );
                    drop(opened);
                    assert_eq!(
                        goes_on(&fs, &small(), &context),
                        found,
                        "{context}: without the snapshot"
                    );
                }
                Ok(opened) => assert_eq!(Picture::of(&opened), expected, "{context}"),
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error, StorageError::Damaged { .. }), "{context}: {error}");
                    assert_eq!(fs.image(), before, "{context}: it was changed");
                }
            }
        }
    }
    assert!(passed > 300 && refused > 100, "{passed} skipped, {refused} refused");
}

/// Two damaged places, one of them a segment that is missing.
#[test]
fn several_damaged_places_are_passed_over_together() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 24);
    let covered = expected.entries[&(expected.last() - 2)].id;
    let paths = segments(&fs);
    assert!(paths.len() > 4);
    let mut image = fs.image();
    image.files.remove(&paths[0]).unwrap();
    image.files.get_mut(&paths[1]).unwrap()[700] ^= 1;
    image.files.get_mut(&paths[2]).unwrap()[20] ^= 1;
    let fs = SimFs::from_image(&image);
    let error = open(&fs, &small()).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    let opened = open_behind(&fs, &small(), covered).unwrap();
    assert_eq!(Picture::of(&opened), behind(&expected, covered));
    assert!(
        opened.report.skipped_corruption.unwrap().contains("00000000000000000003.seg is damaged")
    );
}

/// `log.meta` records the new beginning before anything is changed: wherever the process dies, the
/// next start finds the damaged log or the one after the snapshot.
#[test]
fn a_crash_while_damage_is_passed_over_loses_nothing() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 16);
    let covered = expected.entries[&(expected.last() - 4)].id;
    let mut image = fs.image();
    image.files.get_mut(&segments(&fs)[0]).unwrap()[1_200] ^= 1;
    let mut interrupted = 0;
    for seed in 0..8 {
        for at in 1.. {
            let fs = SimFs::from_image(&image);
            fs.halt_at(at);
            if open_behind(&fs, &small(), covered).is_ok() {
                break;
            }
            interrupted += 1;
            Random::new(seed * 1_000 + at).crash(&fs);
            let context = format!("operation {at}, seed {seed}");
            let found = match open(&fs, &small()) {
                Ok(opened) => Picture::of(&opened),
                Err(StorageError::Damaged { .. }) => {
                    Picture::of(&open_behind(&fs, &small(), covered).unwrap())
                }
                Err(error) => panic!("{context}: {error}"),
            };
            assert_eq!(found, behind(&expected, covered), "{context}");
            goes_on(&fs, &small(), &context);
        }
    }
    assert!(interrupted > 100, "{interrupted}");
}

/// The votes after the damage are unknown: the node must not forget what it has promised.
#[test]
fn without_a_hard_state_behind_the_damage_it_is_refused() {
    let damaged = |vote_behind: bool| {
        let fs = SimFs::new();
        let mut opened = open(&fs, &roomy()).unwrap();
        for index in 1..=6 {
            let state = match index {
                2 => Some(hard_state(1, 2, 0)),
                5 if vote_behind => Some(hard_state(1, 2, 3)),
                _ => None,
            };
            opened.log.append(GROUP, state, &entries(1, index..=index)).unwrap();
            opened.log.sync().unwrap();
        }
        opened.log.idle().unwrap();
        drop(opened);
        let path = segments(&fs)[0].clone();
        let mut content = fs.image().files[&path].clone();
        // The group of entry 2, with the vote.
        content[1024 + 512 + 90] ^= 1;
        with_content(&fs, &path, content)
    };
    let error = open_behind(&damaged(false), &roomy(), log_id(1, 6)).map(drop).unwrap_err();
    assert!(error.to_string().contains("does not contain everything"), "{error}");
    let opened = open_behind(&damaged(true), &roomy(), log_id(1, 6)).unwrap();
    assert_eq!(opened.recovered.hard_state, hard_state(1, 2, 3));
}

/// A log that holds another entry at the index of the snapshot's last included entry has not been
/// replaced by the snapshot yet; what follows in it does not follow from the snapshot.
#[test]
fn a_log_that_does_not_fit_the_snapshot_is_refused() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 16);
    let last = expected.entries[&expected.last()].id;
    let mut image = fs.image();
    image.files.get_mut(&segments(&fs)[0]).unwrap()[1_200] ^= 1;
    let fs = SimFs::from_image(&image);
    for covered in [log_id(9, last.index.get()), log_id(9, last.index.get() - 1)] {
        let error = open_behind(&fs, &small(), covered).map(drop).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{covered}: {error}");
        assert_eq!(fs.image(), image, "it was changed");
    }
}

/// Returns a log with one entry in each of `last` groups, a last group with a hard state alone, and
/// a flipped bit in the group of entry `at`.
fn one_by_one(last: u64, at: u64) -> SimFs {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    for index in 1..=last {
        opened.log.append(GROUP, Some(hard_state(1, 2, 0)), &entries(1, index..=index)).unwrap();
        opened.log.sync().unwrap();
    }
    opened.log.append(GROUP, Some(hard_state(1, 2, 1)), &[]).unwrap();
    opened.log.sync().unwrap();
    opened.log.idle().unwrap();
    drop(opened);
    let path = segments(&fs)[0].clone();
    let mut content = fs.image().files[&path].clone();
    content[1024 + 512 * (at as usize - 1) + 90] ^= 1;
    with_content(&fs, &path, content)
}

/// If no entry follows the damaged group, the number of its entries is unknown.
#[test]
fn damage_behind_the_last_entry_that_can_be_read_is_refused() {
    let error = open_behind(&one_by_one(6, 6), &roomy(), log_id(1, 5)).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    let error = open_behind(&one_by_one(6, 4), &roomy(), log_id(1, 3)).map(drop).unwrap_err();
    assert!(
        matches!(error, StorageError::Damaged { .. }),
        "entry 4 is not in the snapshot: {error}"
    );
    assert!(open_behind(&one_by_one(6, 4), &roomy(), log_id(1, 4)).is_ok());
}

/// The snapshot's last included entry lies in the damage, and what follows has an older term: it
/// does not follow from the snapshot.
#[test]
fn entries_of_an_older_term_do_not_follow_from_the_snapshot() {
    let error = open_behind(&one_by_one(6, 4), &roomy(), log_id(9, 4)).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
}
