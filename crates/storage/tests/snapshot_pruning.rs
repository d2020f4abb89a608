//! Which snapshots are removed, and up to where those that stay allow the log to be purged.
#![allow(clippy::unwrap_used)]

mod snapshot_kit;

use std::path::Path;
use std::sync::Arc;

use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::snapshot::{FullSpeed, SnapshotError, SnapshotOptions, SnapshotStore};
use d_engine_storage::{Fs, FsOp};
use snapshot_kit::{
    DIR, Files, facts, log_id, log_ids, names, open, options, path_of, take, with_content,
    write_files,
};

#[test]
fn pruning_keeps_the_newest_and_what_is_needed() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    for index in 1..=6 {
        take(&fs, &store, log_id(1, index)).unwrap();
    }
    assert_eq!(store.prune(4, &[]).unwrap(), [log_id(1, 1), log_id(1, 2)]);
    assert_eq!(store.prune(0, &[log_id(1, 3)]).unwrap(), [log_id(1, 4)]);
    assert_eq!(log_ids(&store), [log_id(1, 6), log_id(1, 5), log_id(1, 3)]);
    assert_eq!(names(&fs).len(), 3);
    let archive = store.open_archive(log_id(1, 3)).unwrap();
    assert_eq!(store.prune(0, &[]).unwrap(), [log_id(1, 3)]);
    assert!(matches!(store.open_archive(log_id(1, 3)), Err(SnapshotError::Missing { .. })));
    archive.verify(&mut FullSpeed).expect("an open archive stays readable");
}

/// A snapshot that was received and waits for its install stays, even if newer ones were taken.
#[test]
fn pruning_leaves_what_is_held() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let hold = store.hold(log_id(1, 1));
    let again = store.hold(log_id(1, 1));
    for index in 1..=4 {
        take(&fs, &store, log_id(1, index)).unwrap();
    }
    assert_eq!(store.prune(0, &[]).unwrap(), [log_id(1, 2)]);
    drop(hold);
    assert_eq!(store.prune(0, &[]).unwrap(), []);
    drop(again);
    assert_eq!(store.prune(0, &[]).unwrap(), [log_id(1, 1)]);
}

/// Two damaged newer snapshots must not displace the intact older one.
#[test]
fn pruning_never_removes_the_last_whole_snapshot() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    for index in 1..=3 {
        take(&fs, &store, log_id(1, index)).unwrap();
    }
    for index in [2, 3] {
        assert!(fs.flip_bit(&path_of(log_id(1, index)), 1000, 3));
    }
    let (store, _) = open(&fs);
    let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
    assert_eq!((whole.unwrap().last_included(), damage.len()), (log_id(1, 1), 2));
    take(&fs, &store, log_id(1, 4)).unwrap();
    store.prune(0, &[]).unwrap();
    assert_eq!(log_ids(&store), [log_id(1, 4), log_id(1, 1)], "the damaged ones are removed");
}

/// An archive may have been removed by hand, and one failed removal must not prevent the others.
#[test]
fn pruning_goes_on_behind_what_cannot_be_removed_and_what_is_gone() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    for index in 1..=5 {
        take(&fs, &store, log_id(1, index)).unwrap();
    }
    fs.remove_file(&path_of(log_id(1, 1))).unwrap();
    fs.fail(FsOp::Remove, 2, Failure::Io);
    let failed = store.prune(2, &[]).unwrap_err().to_string();
    assert!(failed.contains("snap-1-2.snap"), "{failed}");
    assert_eq!(log_ids(&store), [log_id(1, 5), log_id(1, 4), log_id(1, 2)]);
    fs.crash(&mut |_| 0);
    assert_eq!(names(&fs).len(), 3, "removals are durable");
    assert_eq!(store.prune(2, &[]).unwrap(), [log_id(1, 2)]);
}

/// An archive that cannot be listed takes up space like any other file.
#[test]
fn an_archive_with_a_damaged_header_makes_room_when_a_newer_one_is_whole() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    for index in [1, 3] {
        take(&fs, &store, log_id(1, index)).unwrap();
        assert!(fs.flip_bit(&path_of(log_id(1, index)), 20, 3));
    }
    let (store, report) = open(&fs);
    assert_eq!((report.unusable.len(), store.list().len()), (2, 0));
    take(&fs, &store, log_id(1, 2)).unwrap();
    store.prune(0, &[]).unwrap();
    assert_eq!(
        names(&fs),
        ["snap-1-2.snap", "snap-1-3.snap"],
        "the newer one may be the only one that can be repaired"
    );
    take(&fs, &store, log_id(1, 3)).unwrap();
    take(&fs, &store, log_id(1, 4)).unwrap();
    store.prune(2, &[]).unwrap();
    assert_eq!(names(&fs), ["snap-1-3.snap", "snap-1-4.snap"], "an intact one has replaced it");
}

/// Newer snapshots that were not verified do not displace the one that is known to be intact.
#[test]
fn pruning_keeps_what_is_known_to_be_whole_beside_newer_ones_that_are_not() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    for index in 1..=4 {
        take(&fs, &store, log_id(1, index)).unwrap();
    }
    let (store, _) = open(&fs);
    store.verify(log_id(1, 1), &mut FullSpeed).unwrap();
    assert_eq!(store.prune(0, &[]).unwrap(), [log_id(1, 2)]);
    assert_eq!(log_ids(&store), [log_id(1, 4), log_id(1, 3), log_id(1, 1)]);
}

/// Returns the newest and the oldest snapshot that limit how far the log may be purged.
fn coverage(store: &SnapshotStore) -> Option<(d_engine_core::LogId, d_engine_core::LogId)> {
    let coverage = store.coverage()?;
    let newest =
        store.list().into_iter().find(|info| info.last_included() == coverage.newest).unwrap();
    assert_eq!(coverage.newest_bytes, newest.len);
    Some((coverage.newest, coverage.oldest))
}

/// With the log after the oldest retained snapshot, each of them is as good as the newest.
#[test]
fn the_log_may_be_purged_to_the_oldest_snapshot_that_is_retained() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let ids = [6, 12, 18].map(|index| log_id(3, index));
    let between = |newest: usize, oldest: usize| Some((ids[newest], ids[oldest]));
    assert_eq!(coverage(&store), None);
    let expected = [between(0, 0), between(1, 0), between(2, 1)];
    for (last_included, expected) in ids.into_iter().zip(expected) {
        take(&fs, &store, last_included).unwrap();
        assert_eq!(coverage(&store), expected, "the oldest of three is about to go");
    }
    store.prune(1, &[]).unwrap();
    assert_eq!(coverage(&store), between(2, 1));
    drop(store);
    let (store, _) = open(&fs);
    assert_eq!(coverage(&store), None, "they were not verified yet");
    store.verify(ids[2], &mut FullSpeed).unwrap();
    assert_eq!(coverage(&store), between(2, 1), "less is purged than the newest one contains");
    drop(store);
    let mut damaged = fs.image().files[&path_of(ids[1])].clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let (store, _) = open(&with_content(&fs, &path_of(ids[1]), damaged));
    store.verify(ids[2], &mut FullSpeed).unwrap();
    store.verify(ids[1], &mut FullSpeed).unwrap_err();
    assert_eq!(coverage(&store), between(2, 2), "the damaged one needs nothing");
}

/// No node accepts a snapshot this large: the log is not purged up to it, and the older one stays.
#[test]
fn nothing_is_purged_behind_a_snapshot_that_no_node_takes() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let (first, ids) = (log_id(3, 6), [12, 18, 24].map(|index| log_id(3, index)));
    let len = take(&fs, &store, first).unwrap().len;
    drop(store);
    let options = |max_bytes| SnapshotOptions { max_bytes, ..options() };
    let reopen = |max_bytes| {
        SnapshotStore::open(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR), options(max_bytes))
            .unwrap()
            .0
    };
    let store = reopen(len);
    store.verify(first, &mut FullSpeed).unwrap();
    for last_included in ids {
        let staging = store.staging().unwrap();
        let content: Files = [("data".to_owned(), vec![7; 4_000])].into();
        write_files(&fs, staging.path(), &content).unwrap();
        store.pack(staging, &facts(last_included, &content), &mut FullSpeed).unwrap();
        store.prune(1, &[]).unwrap();
        assert_eq!(coverage(&store), Some((first, first)));
    }
    assert_eq!(log_ids(&store), [ids[2], ids[1], first]);
    drop(store);
    // With a higher limit it is a snapshot like any other.
    let store = reopen(u64::MAX);
    store.verify(ids[2], &mut FullSpeed).unwrap();
    assert_eq!(coverage(&store), Some((ids[2], ids[1])));
}

#[test]
fn an_archive_that_somebody_has_removed_is_not_counted_on() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    for index in 1..=2 {
        take(&fs, &store, log_id(1, index)).unwrap();
    }
    fs.remove_file(&path_of(log_id(1, 2))).unwrap();
    assert!(matches!(store.open_archive(log_id(1, 2)), Err(SnapshotError::Missing { .. })));
    assert_eq!(store.newest_whole().unwrap().last_included(), log_id(1, 1));
}
