//! A scrub reads old data again while the log is open, and names what has changed.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{GROUP, Picture, entry_with, hard_state, log_id, open, segments, small};
use d_engine_core::LogIndex;
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FsOp, LogDamage, LogReader, OpenedStorage, ScrubPlace, StorageError};

/// Scrubs the whole log; returns the damage that was found, and how many bytes were read.
fn scrub(reader: &dyn LogReader) -> (Vec<LogDamage>, u64) {
    let (mut found, mut bytes, mut place) = (Vec::new(), 0, Some(ScrubPlace::default()));
    while let Some(from) = place {
        let looked = reader.scrub(GROUP, from).unwrap();
        found.extend(looked.damage);
        bytes += looked.bytes;
        assert!(looked.next.is_none_or(|next| next > from), "the scrub must advance");
        place = looked.next;
    }
    (found, bytes)
}

fn append(opened: &mut OpenedStorage, expected: &mut Picture, count: usize) {
    for _ in 0..count {
        let index = expected.last() + 1;
        let stored = [entry_with(1, index, vec![index as u8; 700])];
        opened.log.append(GROUP, Some(hard_state(1, 1, 0)), &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(None, &stored);
    }
}

/// Returns a log with several opens, an interrupted boot in between, and purged and recycled
/// segments.
fn opened() -> (SimFs, OpenedStorage, Picture) {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    for boot in 0..3 {
        let mut opened = open(&fs, &small()).unwrap();
        append(&mut opened, &mut expected, 12);
        if boot == 1 {
            let through = expected.entries[&(expected.last() - 6)].id;
            opened.log.purge(GROUP, through).unwrap();
            expected.purge(through);
        } else {
            opened.log.idle().unwrap();
        }
    }
    let mut opened = open(&fs, &small()).unwrap();
    append(&mut opened, &mut expected, 7);
    (fs, opened, expected)
}

#[test]
fn a_whole_log_has_no_damage_while_it_is_written_purged_and_installed() {
    let (_, mut opened, mut expected) = opened();
    let reader = opened.log.reader();
    let (found, bytes) = scrub(&*reader);
    assert!(found.is_empty(), "{found:?}");
    assert!(bytes > 10_000, "{bytes}");
    append(&mut opened, &mut expected, 20);
    assert!(scrub(&*reader).0.is_empty());
    opened.log.purge(GROUP, log_id(1, expected.last() - 1)).unwrap();
    append(&mut opened, &mut expected, 20);
    assert!(scrub(&*reader).0.is_empty());
    opened.log.install(GROUP, log_id(2, 500), d_engine_storage::LogSuffix::Drop).unwrap();
    assert!(scrub(&*reader).0.is_empty());
}

/// A bit flips in any byte of a group or header that the log still needs: the damage is found, and
/// the entries that it affects do not lie after the reported index.
#[test]
fn a_flipped_bit_in_any_group_is_found() {
    let (fs, opened, expected) = opened();
    let reader = opened.log.reader();
    let (mut found, mut elsewhere) = (0, 0);
    for path in segments(&fs) {
        let len = fs.image().files[&path].len() as u64;
        for at in (0..len).step_by(23) {
            assert!(fs.flip_bit(&path, at, (at % 8) as u8));
            let (damage, _) = scrub(&*reader);
            for LogDamage { through, error } in &damage {
                assert!(
                    matches!(error, StorageError::Damaged { segment, offset, .. }
                    if path.ends_with(segment) && *offset <= at),
                    "{} at {at}: {error}",
                    path.display()
                );
                let last = LogIndex::new(expected.last());
                let hit = (1..=expected.last()).rev().map(LogIndex::new).find(|index| {
                    *index > expected.base.index && reader.read(GROUP, *index, *index, 0).is_err()
                });
                assert!(
                    hit.unwrap_or_default() <= *through && *through <= last,
                    "{at}: {hit:?}, {through}"
                );
            }
            found += damage.len();
            if damage.is_empty() {
                elsewhere += 1;
                let count = expected.entries.len() as u64;
                let read = common::read_all(&*opened.log, expected.base, count);
                assert_eq!(read.len() as u64, count, "{} at {at}: not found", path.display());
            }
            assert!(fs.flip_bit(&path, at, (at % 8) as u8));
        }
    }
    assert!(found > 500 && elsewhere > 50, "{found} found, {elsewhere} in unused places");
}

/// A sector that cannot be read.
#[test]
fn what_cannot_be_read_is_damage_and_want_of_handles_is_none() {
    let (fs, opened, _) = opened();
    let reader = opened.log.reader();
    fs.fail(FsOp::Read, 2, Failure::Io);
    let (found, _) = scrub(&*reader);
    assert!(found.len() == 1 && found[0].error.to_string().contains("cannot be read"), "{found:?}");
}
