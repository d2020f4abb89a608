//! The process dies at every single file operation of building, receiving, finishing, unpacking and
//! pruning, with or without the power: the old thing is there or the new one, whole.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::collections::BTreeSet;

use d_engine_core::LogId;
use d_engine_storage::Fs;
use d_engine_storage::fs_sim::SimFs;
use d_engine_storage::snapshot::{FullSpeed, Offer, SnapshotArchive, SnapshotError, SnapshotStore};
use snapshot_kit::{assert_unpacks, labels, log_id, names, open, take, try_open};

/// What must be there after a crash, and what may be.
#[derive(Clone, Default)]
struct Expected {
    certain: BTreeSet<LogId>,
    possible: BTreeSet<LogId>,
}

impl Expected {
    fn adds(
        &mut self,
        label: LogId,
        work: impl FnOnce() -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        self.possible.insert(label);
        work()?;
        self.certain.insert(label);
        Ok(())
    }

    fn prunes(&mut self, store: &SnapshotStore, keep: &[LogId]) -> Result<(), SnapshotError> {
        self.certain.retain(|label| keep.contains(label));
        store.prune(0, &[])?;
        self.possible.retain(|label| keep.contains(label));
        Ok(())
    }
}

fn sent(label: LogId) -> SnapshotArchive {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, label).unwrap();
    store.open_archive(label).unwrap()
}

/// Receives in two goes, the second of which resumes the first.
fn receive(store: &SnapshotStore, archive: &SnapshotArchive) -> Result<(), SnapshotError> {
    for end in [archive.len() / 2, archive.len()] {
        let mut receiver = store.receive(Offer::from(archive), 1 << 20, &mut FullSpeed)?;
        while receiver.received() < end {
            let piece = archive.read_at(receiver.received(), 400)?;
            receiver.write(piece.offset, &piece.bytes, piece.crc)?;
        }
        if end == archive.len() {
            receiver.finish(&mut FullSpeed)?;
        }
    }
    Ok(())
}

fn live(fs: &SimFs, archive: &SnapshotArchive, expected: &mut Expected) -> Result<(), SnapshotError> {
    let (store, _) = try_open(fs)?;
    for index in [3, 5, 7] {
        expected.adds(log_id(1, index), || take(fs, &store, log_id(1, index)).map(drop))?;
    }
    expected.prunes(&store, &[log_id(1, 5), log_id(1, 7)])?;
    expected.adds(archive.label(), || receive(&store, archive))?;
    let out = store.unpack_dir();
    store.unpack(archive.label(), &out, &mut FullSpeed)?;
    fs.remove_tree(&out).ok();
    expected.prunes(&store, &[log_id(1, 7), archive.label()])?;
    // The same label once more: the old archive or the new one is there at any moment.
    expected.adds(archive.label(), || take(fs, &store, archive.label()).map(drop))
}

fn assert_survived(fs: &SimFs, expected: &Expected, context: &str) -> BTreeSet<LogId> {
    let (store, report) = try_open(fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.unusable.is_empty(), "{context}: {report:?}");
    let found: BTreeSet<LogId> = labels(&store).into_iter().collect();
    assert!(found.is_superset(&expected.certain), "{context}: {found:?} without {:?}", expected.certain);
    assert!(found.is_subset(&expected.possible), "{context}: {found:?} beside {:?}", expected.possible);
    for label in &found {
        store.verify(*label, &mut FullSpeed).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_unpacks(fs, &store, *label);
    }
    let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
    assert_eq!(whole.map(|info| info.label()), found.last().copied(), "{context}: {damage:?}");
    let strange: Vec<String> =
        names(fs).into_iter().filter(|name| !name.ends_with(".snap") && !name.ends_with(".part")).collect();
    assert!(strange.is_empty(), "{context}: {strange:?} are left");
    found
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n.max(1)
    }
}

/// Dies at operation `at`. `false` when the life does not have so many.
fn die_and_come_back(at: u64, seed: u64, archive: &SnapshotArchive) -> bool {
    let context = format!("operation {at}, seed {seed}");
    let fs = SimFs::new();
    let mut random = random(seed ^ (at << 16));
    let mut expected = Expected::default();
    fs.halt_at(at);
    if live(&fs, archive, &mut expected).is_ok() {
        return false;
    }
    if seed == 0 {
        fs.kill();
    } else {
        fs.crash(&mut random);
    }
    let found = assert_survived(&fs, &expected, &context);
    // What was found is relied upon (the log is purged up to it), so it stays, whatever comes next.
    fs.crash(&mut random);
    let relied = Expected { certain: found.clone(), possible: found };
    assert_survived(&fs, &relied, &format!("{context}, after a second crash"));
    let mut again = Expected { certain: BTreeSet::new(), possible: expected.possible };
    live(&fs, archive, &mut again).unwrap_or_else(|error| panic!("{context}, next life: {error}"));
    fs.crash(&mut random);
    assert_survived(&fs, &again, &format!("{context}, next life"));
    true
}

/// FAULTS rows 30, 31, 34, 35 and 39.
#[test]
fn a_crash_at_any_operation_leaves_whole_snapshots_only() {
    let archive = sent(log_id(2, 9));
    let mut operations = 0;
    for seed in 0..24 {
        let mut at = 1;
        while die_and_come_back(at, seed, &archive) {
            at += 1;
        }
        operations = at - 1;
    }
    assert!(operations > 200, "the life has {operations} operations");
}

/// FAULTS row 30: a process that dies between rename and sync leaves a name that is seen and that a power
/// cut takes away. What `open` lists is relied upon, so it must be past that.
#[test]
fn what_is_listed_after_a_kill_outlives_a_power_cut() {
    let mut listed = 0;
    for at in 1..120 {
        let fs = SimFs::new();
        fs.halt_at(at);
        drop(try_open(&fs).and_then(|(store, _)| take(&fs, &store, log_id(1, 3))));
        fs.kill();
        let before = labels(&open(&fs).0);
        fs.crash(&mut |_| 0);
        assert_eq!(labels(&open(&fs).0), before, "operation {at}");
        listed += before.len();
    }
    assert!(listed > 1, "the process died late enough");
}

/// FAULTS row 35: a temporary file of a longer snapshot, left by a crash, is no part of a shorter one.
#[test]
fn nothing_of_an_earlier_attempt_is_left_in_a_new_archive() {
    let mut left = 0;
    for at in 1..120 {
        let fs = SimFs::new();
        fs.halt_at(at);
        let died = try_open(&fs).and_then(|(store, _)| take(&fs, &store, log_id(1, 3)).map(drop)).is_err();
        fs.kill();
        left += usize::from(died && names_or_none(&fs).iter().any(|name| name.ends_with(".tmp")));
        let (store, _) = open(&fs);
        // The same label, and fewer bytes.
        let staging = store.staging().unwrap();
        let files: snapshot_kit::Files = [("a".to_owned(), b"short".to_vec())].into();
        snapshot_kit::write_files(&fs, staging.path(), &files).unwrap();
        let facts = snapshot_kit::facts(log_id(1, 3), &files);
        store.pack(staging, &facts, &mut FullSpeed).unwrap_or_else(|error| panic!("operation {at}: {error}"));
        let (store, report) = open(&fs);
        assert!(report.unusable.is_empty(), "operation {at}: {report:?}");
        store.verify(log_id(1, 3), &mut FullSpeed).unwrap();
    }
    assert!(left > 5, "{left} crashes left a temporary file");
}

fn names_or_none(fs: &SimFs) -> Vec<String> {
    fs.list(std::path::Path::new(snapshot_kit::DIR)).unwrap_or_default()
}

/// Half an unpacked snapshot is never taken for a whole one.
#[test]
fn an_unpacking_that_dies_anywhere_leaves_a_directory_that_is_refused_or_removed() {
    let label = log_id(1, 3);
    let mut image = SimFs::new();
    take(&image, &open(&image).0, label).unwrap();
    image = SimFs::from_image(&image.image());
    for seed in 1..6 {
        for at in 1.. {
            let fs = SimFs::from_image(&image.image());
            let (store, _) = open(&fs);
            fs.halt_at(at);
            if store.unpack(label, &store.unpack_dir(), &mut FullSpeed).is_ok() {
                assert!(at > 30, "{at} operations");
                fs.crash(&mut random(seed));
                let files = snapshot_kit::read_files(&fs, &store.unpack_dir());
                assert_eq!(files, snapshot_kit::files(label), "unpacked is durable");
                break;
            }
            fs.crash(&mut random(seed ^ (at << 8)));
            let is_empty = fs.list(&store.unpack_dir()).unwrap_or_default().is_empty();
            let same_process = store.unpack(label, &store.unpack_dir(), &mut FullSpeed);
            assert_eq!(same_process.is_ok(), is_empty, "operation {at}");
            let (store, _) = open(&fs);
            assert_unpacks(&fs, &store, label);
        }
    }
}
