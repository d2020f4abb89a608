#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, LogIndex, NodeId, Term};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{FullSpeed, SnapshotFacts, SnapshotOptions};
use d_engine_storage::{ClusterId, Fs, Member, MemberRole, Membership, OpenMode};
use sha2::{Digest, Sha256};

use super::*;

const DIR: &str = "/data/snapshots";

fn id(index: u64) -> LogId {
    LogId::new(Term::new(1), LogIndex::new(index))
}

/// A disk with archives of these last included indexes; their content is this many bytes long.
fn disk(archives: &[(u64, usize)]) -> SimFs {
    let fs = SimFs::new();
    fs.create_dir(Path::new("/data")).unwrap();
    let store = open(&fs, u64::MAX);
    for (index, len) in archives {
        let content = vec![7; *len];
        let staging = store.staging().unwrap();
        let file = fs.open(&staging.path().join("data"), OpenMode::CreateNew).unwrap();
        assert_eq!(file.write_at(0, &content).unwrap(), content.len());
        file.sync_all().unwrap();
        let mut hash = Sha256::new();
        hash.update(4_u32.to_le_bytes());
        hash.update(b"data");
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(&content);
        let member = Member {
            node: 1,
            peer_addr: "peer:1".to_owned(),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        let facts = SnapshotFacts {
            last_included: id(*index),
            time_ms: 77,
            membership: Membership::new([member]).unwrap(),
            envelope: Bytes::new(),
            machine: "one".to_owned(),
            user_format: 0,
            command_version: 0,
            checksum: hash.finalize().into(),
        };
        store.pack(staging, &facts, &mut FullSpeed).unwrap();
    }
    fs
}

/// Opens the store as a new process does: nothing is verified yet.
fn open(fs: &SimFs, max_bytes: u64) -> SnapshotStore {
    let options = SnapshotOptions {
        reserve_bytes: 0,
        retained: 9,
        max_bytes,
        ..SnapshotOptions::new(ClusterId([1; 16]), GroupId::FIRST)
    };
    SnapshotStore::open(Arc::new(fs.clone()), Path::new(DIR), options).unwrap().0
}

/// Flips a bit in the middle of an archive's content.
fn damage(fs: &SimFs, store: &SnapshotStore, index: u64) {
    let info = store.list().into_iter().find(|info| info.last_included() == id(index)).unwrap();
    assert!(fs.flip_bit(&info.path, info.len / 2, 0));
}

fn order(at_least: u64) -> SnapshotSendRequest {
    let to = NodeId::new(2).unwrap();
    SnapshotSendRequest { to, term: Term::new(1), at_least: LogIndex::new(at_least) }
}

fn prefer(resume: Option<u64>, recorded: Option<u64>) -> ArchivePreference {
    ArchivePreference { resume: resume.map(id), recorded: recorded.map(id) }
}

/// The index of the chosen archive, and the number of archives that were unusable.
fn chosen(store: &SnapshotStore, at_least: u64, preference: ArchivePreference) -> (u64, usize) {
    let mut unusable = 0;
    let choice =
        choose_archive(store, order(at_least), preference, &mut FullSpeed, |_| unusable += 1);
    let ArchiveChoice::Send(archive) = choice else { panic!("{choice:?}") };
    (archive.last_included().index.get(), unusable)
}

#[test]
fn the_resumable_archive_comes_first_then_the_recorded_one_then_the_newest() {
    let store = open(&disk(&[(10, 99), (20, 99), (30, 99)]), u64::MAX);
    assert_eq!(chosen(&store, 0, prefer(Some(10), Some(20))), (10, 0));
    assert_eq!(chosen(&store, 0, prefer(None, Some(20))), (20, 0));
    assert_eq!(chosen(&store, 0, prefer(None, None)), (30, 0));
    assert_eq!(chosen(&store, 0, prefer(Some(15), Some(25))), (30, 0), "those were pruned");
}

/// The follower would still lack the entries between the archive and the log.
#[test]
fn an_archive_that_does_not_reach_the_log_is_not_sent() {
    let store = open(&disk(&[(10, 99), (20, 99)]), u64::MAX);
    assert_eq!(chosen(&store, 20, prefer(Some(10), Some(10))), (20, 0));
    let none = choose_archive(&store, order(21), prefer(Some(10), None), &mut FullSpeed, |_| {});
    assert!(matches!(none, ArchiveChoice::NoneUsable), "{none:?}");
}

#[test]
fn a_damaged_archive_gives_way_to_the_next_and_is_never_sent() {
    let fs = disk(&[(10, 5_000), (20, 5_000)]);
    let store = open(&fs, u64::MAX);
    damage(&fs, &store, 20);
    assert_eq!(chosen(&store, 0, prefer(None, Some(20))), (10, 1));
    let mut unusable = 0;
    let none =
        choose_archive(&store, order(11), prefer(Some(20), Some(20)), &mut FullSpeed, |_| {
            unusable += 1;
        });
    assert!(matches!(none, ArchiveChoice::NoneUsable), "{none:?}");
    assert_eq!(unusable, 1, "each archive is tried once, however often it is preferred");
}

/// A new snapshot of the same state would be as long: it is not requested.
#[test]
fn an_archive_that_no_node_accepts_is_not_sent() {
    let fs = disk(&[(10, 100), (20, 50_000)]);
    let store = open(&fs, 20_000);
    assert_eq!(chosen(&store, 0, prefer(Some(20), None)), (10, 0));
    let none = choose_archive(&store, order(11), prefer(None, None), &mut FullSpeed, |_| {});
    assert!(matches!(none, ArchiveChoice::TooLong(len) if len > 50_000), "{none:?}");
}

#[test]
fn a_node_that_stops_verifies_no_further_archive() {
    let fs = disk(&[(10, 5_000), (20, 5_000)]);
    let store = open(&fs, u64::MAX);
    let mut stops = |_: u64| ControlFlow::Break(());
    let choice = choose_archive(&store, order(0), prefer(None, None), &mut stops, |_| {});
    assert!(matches!(choice, ArchiveChoice::Aborted), "{choice:?}");
    damage(&fs, &store, 20);
    let mut steps = 0;
    // It stops just after the first archive has turned out to be damaged.
    let mut stops = |bytes: u64| {
        steps += u64::from(bytes == 0);
        if steps > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let choice = choose_archive(&store, order(0), prefer(None, None), &mut stops, |_| {});
    assert!(matches!(choice, ArchiveChoice::Aborted), "{choice:?}");
}
