//! The process dies at every single file operation of building, receiving, finishing, unpacking and
//! pruning, with or without a power cut: the old state or the new one is there, complete.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::collections::BTreeSet;

use d_engine_core::{LogId, SplitMix64};
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{FullSpeed, Offer, SnapshotArchive, SnapshotError, SnapshotStore};
use snapshot_kit::{assert_unpacks, log_id, log_ids, names, open, take, try_open};

/// What must be there after a crash, and what may be.
#[derive(Clone, Default)]
struct Expected {
    certain: BTreeSet<LogId>,
    possible: BTreeSet<LogId>,
}

impl Expected {
    fn adds(
        &mut self,
        last_included: LogId,
        work: impl FnOnce() -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        self.possible.insert(last_included);
        work()?;
        self.certain.insert(last_included);
        Ok(())
    }

    fn prunes(&mut self, store: &SnapshotStore, keep: &[LogId]) -> Result<(), SnapshotError> {
        self.certain.retain(|last_included| keep.contains(last_included));
        store.prune(0, &[])?;
        self.possible.retain(|last_included| keep.contains(last_included));
        Ok(())
    }
}

fn sent(last_included: LogId) -> SnapshotArchive {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, last_included).unwrap();
    store.open_archive(last_included).unwrap()
}

/// Receives in two parts; the second one resumes the first.
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

fn live(
    fs: &SimFs,
    archive: &SnapshotArchive,
    expected: &mut Expected,
) -> Result<(), SnapshotError> {
    let (store, _) = try_open(fs)?;
    for index in [3, 5, 7] {
        expected.adds(log_id(1, index), || take(fs, &store, log_id(1, index)).map(drop))?;
    }
    expected.prunes(&store, &[log_id(1, 5), log_id(1, 7)])?;
    expected.adds(archive.last_included(), || receive(&store, archive))?;
    let out = store.unpack_dir();
    store.unpack(archive.last_included(), &out, &mut FullSpeed)?;
    fs.remove_tree(&out).ok();
    expected.prunes(&store, &[log_id(1, 7), archive.last_included()])?;
    // The same last included entry once more: the old archive or the new one is there at any
    // moment.
    expected.adds(archive.last_included(), || take(fs, &store, archive.last_included()).map(drop))
}

fn assert_survived(fs: &SimFs, expected: &Expected, context: &str) -> BTreeSet<LogId> {
    let (store, report) = try_open(fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.unusable.is_empty(), "{context}: {report:?}");
    let found: BTreeSet<LogId> = log_ids(&store).into_iter().collect();
    assert!(
        found.is_superset(&expected.certain),
        "{context}: {found:?} without {:?}",
        expected.certain
    );
    assert!(
        found.is_subset(&expected.possible),
        "{context}: {found:?} beside {:?}",
        expected.possible
    );
    for last_included in &found {
        store
            .verify(*last_included, &mut FullSpeed)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_unpacks(fs, &store, *last_included);
    }
    let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
    assert_eq!(
        whole.map(|info| info.last_included()),
        found.last().copied(),
        "{context}: {damage:?}"
    );
    let strange: Vec<String> = names(fs)
        .into_iter()
        .filter(|name| !name.ends_with(".snap") && !name.ends_with(".part"))
        .collect();
    assert!(strange.is_empty(), "{context}: {strange:?} are left");
    found
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = SplitMix64::new(seed);
    move |n| random.below(n)
}

/// Dies at operation `at`. Returns `false` if the boot has fewer operations.
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
    // What was found is used (the log is purged up to it), so it must stay, whatever happens next.
    fs.crash(&mut random);
    let relied = Expected { certain: found.clone(), possible: found };
    assert_survived(&fs, &relied, &format!("{context}, after a second crash"));
    let mut again = Expected { certain: BTreeSet::new(), possible: expected.possible };
    live(&fs, archive, &mut again).unwrap_or_else(|error| panic!("{context}, next boot: {error}"));
    fs.crash(&mut random);
    assert_survived(&fs, &again, &format!("{context}, next boot"));
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
    assert!(operations > 200, "the boot has {operations} operations");
}

/// FAULTS row 30: a process that dies between rename and sync leaves a name that is visible and
/// that a power cut removes. What `open` lists is used, so it must survive a power cut.
#[test]
fn what_is_listed_after_a_kill_outlives_a_power_cut() {
    let mut listed = 0;
    for at in 1..120 {
        let fs = SimFs::new();
        fs.halt_at(at);
        drop(try_open(&fs).and_then(|(store, _)| take(&fs, &store, log_id(1, 3))));
        fs.kill();
        let before = log_ids(&open(&fs).0);
        fs.crash(&mut |_| 0);
        assert_eq!(log_ids(&open(&fs).0), before, "operation {at}");
        listed += before.len();
    }
    assert!(listed > 1, "the process died late enough");
}

/// FAULTS row 35: a temporary file of a longer snapshot, left by a crash, does not become part of a
/// shorter one.
#[test]
fn nothing_of_an_earlier_attempt_is_left_in_a_new_archive() {
    let mut left = 0;
    for at in 1..120 {
        let fs = SimFs::new();
        fs.halt_at(at);
        let died =
            try_open(&fs).and_then(|(store, _)| take(&fs, &store, log_id(1, 3)).map(drop)).is_err();
        fs.kill();
        left += usize::from(died && names_or_none(&fs).iter().any(|name| name.ends_with(".tmp")));
        let (store, _) = open(&fs);
        // The same last included entry, and fewer bytes.
        let staging = store.staging().unwrap();
        let files: snapshot_kit::Files = [("a".to_owned(), b"short".to_vec())].into();
        snapshot_kit::write_files(&fs, staging.path(), &files).unwrap();
        let facts = snapshot_kit::facts(log_id(1, 3), &files);
        store
            .pack(staging, &facts, &mut FullSpeed)
            .unwrap_or_else(|error| panic!("operation {at}: {error}"));
        let (store, report) = open(&fs);
        assert!(report.unusable.is_empty(), "operation {at}: {report:?}");
        store.verify(log_id(1, 3), &mut FullSpeed).unwrap();
    }
    assert!(left > 5, "{left} crashes left a temporary file");
}

fn names_or_none(fs: &SimFs) -> Vec<String> {
    fs.list(std::path::Path::new(snapshot_kit::DIR)).unwrap_or_default()
}

/// A half-unpacked snapshot is never taken for a complete one.
#[test]
fn an_unpacking_that_dies_anywhere_leaves_a_directory_that_is_refused_or_removed() {
    let last_included = log_id(1, 3);
    let mut image = SimFs::new();
    take(&image, &open(&image).0, last_included).unwrap();
    image = SimFs::from_image(&image.image());
    for seed in 1..6 {
        for at in 1.. {
            let fs = SimFs::from_image(&image.image());
            let (store, _) = open(&fs);
            fs.halt_at(at);
            if store.unpack(last_included, &store.unpack_dir(), &mut FullSpeed).is_ok() {
                assert!(at > 30, "{at} operations");
                fs.crash(&mut random(seed));
                let files = snapshot_kit::read_files(&fs, &store.unpack_dir());
                assert_eq!(files, snapshot_kit::files(last_included), "unpacked is durable");
                break;
            }
            fs.crash(&mut random(seed ^ (at << 8)));
            let is_empty = fs.list(&store.unpack_dir()).unwrap_or_default().is_empty();
            let same_process = store.unpack(last_included, &store.unpack_dir(), &mut FullSpeed);
            assert_eq!(same_process.is_ok(), is_empty, "operation {at}");
            let (store, _) = open(&fs);
            assert_unpacks(&fs, &store, last_included);
        }
    }
}
