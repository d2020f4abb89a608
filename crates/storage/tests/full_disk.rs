//! A full disk stops nothing: what does not fit waits, terms and votes are still stored, and
//! nothing is lost.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{GROUP, Picture, Random, entries, entry, entry_with, hard_state, log_id, open, small};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FileStorageOptions, Fs, FsOp, LogStore, OpenedStorage, StorageError};

fn is_no_room<T: std::fmt::Debug>(result: &Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::NoRoom { .. }))
}

/// Appends entries of 400 bytes until there is no space. Returns what was acknowledged, and the
/// entry that waits.
fn fill(log: &mut dyn LogStore, expected: &mut Picture) -> d_engine_storage::LogEntry {
    loop {
        let next = entry_with(2, expected.last() + 1, vec![7; 400]);
        log.append(GROUP, Some(hard_state(2, 1, 0)), std::slice::from_ref(&next)).unwrap();
        match log.sync() {
            Ok(()) => expected.append(Some(hard_state(2, 1, 0)), std::slice::from_ref(&next)),
            Err(StorageError::NoRoom { .. }) => return next,
            Err(error) => panic!("{error}"),
        }
    }
}

fn full() -> (SimFs, OpenedStorage, Picture, d_engine_storage::LogEntry) {
    let fs = SimFs::new();
    fs.set_capacity(Some(96 << 10));
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::default();
    let waiting = fill(&mut *opened.log, &mut expected);
    assert!(expected.last() > 40, "{}", expected.last());
    (fs, opened, expected, waiting)
}

/// A record beside the log that finds no room must not stop the log.
#[test]
fn a_record_that_does_not_fit_is_stored_later_and_the_log_goes_on() {
    let (fs, mut opened, _, _) = full();
    let used = fs.used_bytes();
    fs.set_capacity(Some(used));
    assert!(is_no_room(&opened.meta.store("apply", &[7; 4_000])));
    assert_eq!(fs.used_bytes(), used, "half a record is left");
    assert_eq!(opened.meta.load("apply").unwrap(), None);
    fs.set_capacity(Some(192 << 10));
    opened.log.sync().unwrap();
    opened.meta.store("apply", &[7; 4_000]).unwrap();
    assert_eq!(opened.meta.load("apply").unwrap().unwrap().len(), 4_000);
}

#[test]
fn what_does_not_fit_waits_and_is_stored_once_there_is_room() {
    let (fs, mut opened, mut expected, waiting) = full();
    for _ in 0..3 {
        assert!(is_no_room(&opened.log.sync()), "there is still no space");
        let more = opened.log.append(GROUP, None, &[entry(2, 900)]);
        assert!(
            matches!(more, Err(StorageError::Order(_))),
            "nothing may be queued after what waits: {more:?}"
        );
        opened.log.idle().unwrap_err();
    }
    let died = Picture::of(&open(&SimFs::from_image(&fs.image()), &small()).unwrap());
    // The entry that waits may be readable, and then counts. Nothing else may be there, and nothing
    // acknowledged may be missing.
    assert!(died.last() - expected.last() <= 1, "{} after {}", died.last(), expected.last());
    fs.set_capacity(Some(128 << 10));
    opened.log.sync().unwrap();
    expected.append(None, &[waiting]);
    opened.log.append(GROUP, None, &entries(2, expected.last() + 1..=expected.last() + 3)).unwrap();
    opened.log.sync().unwrap();
    expected.append(None, &entries(2, expected.last() + 1..=expected.last() + 3));
    drop(opened);
    fs.crash(&mut |_| 0);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
}

/// Idling writes what is useful, not what was requested: a lack of space there is no error, however
/// often it occurs, and what idling has queued does not block other writes.
#[test]
fn idling_without_room_is_no_error() {
    for left in (0..=8_u64 << 10).step_by(512) {
        let fs = SimFs::new();
        let options = FileStorageOptions { segment_bytes: 32 << 10, ..small() };
        let mut opened = open(&fs, &options).unwrap();
        let mut expected = Picture::default();
        // The segment is full to its last sector, and no other segment is prepared.
        while opened.log.stats().log_bytes < options.segment_bytes {
            let rest =
                usize::try_from(options.segment_bytes - opened.log.stats().log_bytes).unwrap();
            let next = entry_with(1, expected.last() + 1, vec![3; (rest - 200).min(3_000)]);
            opened
                .log
                .append(GROUP, Some(hard_state(1, 1, 0)), std::slice::from_ref(&next))
                .unwrap();
            opened.log.sync().unwrap();
            expected.append(Some(hard_state(1, 1, 0)), &[next]);
        }
        assert_eq!(
            (opened.log.stats().segments, opened.log.stats().log_bytes),
            (1, options.segment_bytes)
        );
        fs.set_capacity(Some(fs.used_bytes() + left));
        for _ in 0..4 {
            opened.log.idle().unwrap();
        }
        fs.set_capacity(None);
        let next = entry_with(1, expected.last() + 1, vec![3; 10]);
        opened.log.append(GROUP, None, std::slice::from_ref(&next)).unwrap();
        opened.log.sync().unwrap();
        expected.append(None, &[next]);
        drop(opened);
        fs.crash(&mut |_| 0);
        assert_eq!(Picture::of(&open(&fs, &options).unwrap()), expected, "{left} bytes were left");
    }
}

/// A node without space still stores its votes, and an older term in the entries that wait does not
/// overwrite them.
#[test]
fn a_term_and_a_vote_are_stored_while_entries_wait() {
    for crash_before_room in [true, false] {
        let (fs, mut opened, mut expected, waiting) = full();
        let commit = expected.last();
        for term in 3..=4 {
            opened.log.store_hard_state(GROUP, hard_state(term, 2, 9_999)).unwrap();
        }
        // Never more than what is stored.
        expected.hard_state = hard_state(4, 2, commit);
        if !crash_before_room {
            fs.set_capacity(Some(128 << 10));
            opened.log.sync().unwrap();
            expected.append(None, &[waiting]);
        }
        drop(opened);
        fs.set_capacity(None);
        fs.crash(&mut |_| 0);
        assert_eq!(
            Picture::of(&open(&fs, &small()).unwrap()),
            expected,
            "crash first: {crash_before_room}"
        );
    }
}

/// The reserve is bounded, and refilled as soon as there is space.
#[test]
fn the_reserve_is_used_up_at_last_and_filled_again() {
    let (fs, mut opened, _, _) = full();
    let mut stored = 0;
    while opened.log.store_hard_state(GROUP, hard_state(3 + stored, 2, 0)).is_ok() {
        stored += 1;
    }
    assert!((2..20).contains(&stored), "{stored}");
    fs.set_capacity(Some(128 << 10));
    opened.log.sync().unwrap();
    fs.set_capacity(Some(fs.used_bytes()));
    assert!(opened.log.store_hard_state(GROUP, hard_state(100, 2, 0)).is_ok());
    drop(opened);
    fs.set_capacity(None);
    assert_eq!(open(&fs, &small()).unwrap().recovered.hard_state, hard_state(100, 2, 0));
}

/// A purge needs no space, and frees some.
#[test]
fn a_purge_on_a_full_disk_makes_room_for_what_waits() {
    let (fs, mut opened, mut expected, waiting) = full();
    fs.set_capacity(Some(fs.used_bytes()));
    let through = expected.entries[&(expected.last() - 3)].id;
    opened.log.purge(GROUP, through).unwrap();
    expected.purge(through);
    opened.log.sync().unwrap();
    expected.append(None, &[waiting]);
    drop(opened);
    fs.crash(&mut |_| 0);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
}

/// Every error for a lack of space, from every operation but the syncs, at every place: a retry of
/// the same call succeeds.
#[test]
fn want_of_room_is_waited_out_wherever_it_comes_from() {
    let failures =
        [Failure::NoSpace, Failure::Quota, Failure::TooManyFiles, Failure::TooManyFilesInSystem];
    let mut waited = 0;
    for failure in failures {
        for op in [FsOp::Open, FsOp::Write, FsOp::Rename] {
            for nth in 1..80 {
                let fs = SimFs::new();
                let mut opened = open(&fs, &small()).unwrap();
                let mut expected = Picture::default();
                fs.fail(op, nth, failure);
                let context = format!("{failure:?} at {op:?} {nth}");
                waited += live(&mut opened, &mut expected, &context);
                drop(opened);
                Random::new(nth).crash(&fs);
                assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected, "{context}");
            }
        }
    }
    assert!(waited > 50, "{waited}");
}

/// A boot with rolls, purges and pauses. Returns how often a call had to be retried.
fn live(opened: &mut OpenedStorage, expected: &mut Picture, context: &str) -> u64 {
    let mut waited = 0;
    let mut again = |call: &mut dyn FnMut() -> Result<(), StorageError>| loop {
        match call() {
            Ok(()) => break,
            Err(StorageError::NoRoom { .. }) => waited += 1,
            Err(error) => panic!("{context}: {error}"),
        }
    };
    for index in 1..=40 {
        let stored = [entry_with(1, index, vec![3; 300])];
        opened.log.append(GROUP, Some(hard_state(1, 1, index)), &stored).unwrap();
        again(&mut || opened.log.sync());
        expected.append(Some(hard_state(1, 1, index)), &stored);
        if index % 10 == 0 {
            again(&mut || opened.log.idle());
            again(&mut || opened.log.purge(GROUP, log_id(1, index - 5)));
            expected.purge(log_id(1, index - 5));
        }
    }
    waited
}

/// A node that dies at any operation while its disk is full restarts with everything that it
/// acknowledged.
#[test]
fn nothing_is_lost_wherever_the_process_dies_on_a_full_disk() {
    for seed in 0..4 {
        for at in 1.. {
            let fs = SimFs::new();
            let mut opened = open(&fs, &small()).unwrap();
            fs.set_capacity(Some(24 << 10));
            let (mut stored, mut attempted) = (Picture::default(), Picture::default());
            fs.halt_at(at);
            let ended = live_full(&fs, &mut opened, &mut stored, &mut attempted);
            drop(opened);
            let mut random = Random::new(seed ^ (at << 8));
            fs.set_capacity(None);
            random.crash(&fs);
            let found = Picture::of(&open(&fs, &small()).unwrap());
            let entries: Vec<_> = found.entries.values().collect();
            let known: Vec<_> = stored.entries.values().collect();
            assert!(entries.starts_with(&known), "operation {at}, seed {seed}: {found:?}");
            let states = [stored.hard_state, attempted.hard_state];
            let (term, vote) = (found.hard_state.term, found.hard_state.vote);
            assert!(
                states.iter().any(|state| (state.term, state.vote) == (term, vote)),
                "operation {at}, seed {seed}: {term} {vote:?}, not {states:?}"
            );
            if ended.is_ok() {
                assert!(at > 60, "the boot has {at} operations");
                break;
            }
        }
    }
}

fn live_full(
    fs: &SimFs,
    opened: &mut OpenedStorage,
    stored: &mut Picture,
    attempted: &mut Picture,
) -> Result<(), StorageError> {
    let log = &mut opened.log;
    let mut waits = false;
    for step in 1..=60 {
        let index = stored.last() + 1;
        if !waits {
            log.append(
                GROUP,
                Some(hard_state(step, 1, 0)),
                &[entry_with(step, index, vec![3; 400])],
            )?;
            attempted
                .append(Some(hard_state(step, 1, 0)), &[entry_with(step, index, vec![3; 400])]);
        }
        match log.sync() {
            Ok(()) => {
                *stored = attempted.clone();
                waits = false;
            }
            Err(StorageError::NoRoom { .. }) => {
                waits = true;
                attempted.hard_state = hard_state(step, 2, 0);
                match log.store_hard_state(GROUP, hard_state(step, 2, 0)) {
                    Ok(()) => stored.hard_state = hard_state(step, 2, 0),
                    Err(StorageError::NoRoom { .. }) => attempted.hard_state = stored.hard_state,
                    Err(error) => return Err(error),
                }
                if step % 5 == 0 {
                    fs.set_capacity(Some(
                        Fs::free_bytes(fs, "/".as_ref()).ok().flatten().unwrap_or(0)
                            + fs.used_bytes()
                            + 2048,
                    ));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The requirement for a node on a small disk: it idles, is restarted repeatedly, and accepts a
/// command each time.
#[test]
fn a_log_on_24_mib_idles_and_starts_ten_times_and_takes_a_command_each_time() {
    for segment_bytes in [16 << 20, 64 << 20] {
        let fs = SimFs::new();
        fs.set_capacity(Some(24 << 20));
        let options = FileStorageOptions { segment_bytes, ..FileStorageOptions::default() };
        for round in 1..=10 {
            let mut opened = open(&fs, &options).unwrap();
            for _ in 0..16 {
                opened.log.idle().unwrap();
            }
            let free = opened.log.stats().free_bytes.unwrap();
            assert!(free >= 4 << 20, "round {round}: zeros have left {free}");
            opened.log.append(GROUP, None, &[entry_with(1, round, vec![1; 1024])]).unwrap();
            opened.log.sync().unwrap();
            for _ in 0..16 {
                opened.log.idle().unwrap();
            }
            assert_eq!(opened.recovered.entries.len() as u64, round - 1);
        }
    }
}

/// A start without enough space leaves the directory as it was, however often it is tried.
#[test]
fn a_start_without_room_leaves_nothing_behind() {
    let (fs, opened, expected, _) = full();
    drop(opened);
    fs.kill();
    let mut refused = 0;
    for room in (0..4096).step_by(512) {
        let image = fs.image();
        let fs = SimFs::from_image(&image);
        fs.set_capacity(Some(fs.used_bytes() + room));
        let before: Vec<_> = fs.image().files.into_keys().collect();
        for _ in 0..3 {
            if let Err(error) = open(&fs, &small()) {
                refused += 1;
                assert!(error.to_string().contains("No space"), "{error}");
                assert_eq!(
                    fs.image().files.into_keys().collect::<Vec<_>>(),
                    before,
                    "space for {room} bytes"
                );
            }
            fs.kill();
        }
        fs.set_capacity(None);
        let found = Picture::of(&open(&fs, &small()).unwrap()).last();
        assert!(found - expected.last() <= 1, "{found}");
    }
    assert!(refused > 3, "{refused}");
}
