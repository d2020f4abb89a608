//! A snapshot file becomes the directory of a new cluster, whole or not at all.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{GroupId, LogIndex, Term};
use d_engine_fs::sim::SimFs;
use d_engine_fs::{Fs, OpenMode, ensure_dir, write_all_at};
use d_engine_offline::restore::{
    Admission, ClusterId, LogId, NodeId, RestoreError, RestoreRequest, Restored, TERMS_ABOVE,
    restore,
};
use d_engine_storage::fs::tree::tree_checksum;
use d_engine_storage::snapshot::{
    Compression, FullSpeed, SNAPSHOT_DIR, SnapshotFacts, SnapshotOptions, SnapshotStore,
};
use d_engine_storage::{
    FileStorageEngine, FileStorageOptions, Member, MemberRole, Membership, OpenRequest,
    StorageEngine,
};

const OLD: ClusterId = ClusterId([0xC1; 16]);
const TIME_MS: u64 = 1_764_338_531_000;

fn last_included() -> LogId {
    LogId::new(Term::new(7), LogIndex::new(812))
}

fn old_members() -> Membership {
    let member = |node: u64| Member {
        node,
        peer_addr: format!("old-{node}:7101"),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    Membership::new((1..=5).map(member)).unwrap()
}

/// A snapshot of a cluster of five, as a file outside any data directory.
fn backup(fs: &Arc<dyn Fs>, compression: Compression) -> PathBuf {
    let options = SnapshotOptions {
        chunk_bytes: 700,
        compression,
        ..SnapshotOptions::new(OLD, GroupId::FIRST)
    };
    let (store, _) = SnapshotStore::open(fs.clone(), Path::new("/old"), options).unwrap();
    let staging = store.staging().unwrap();
    for (name, bytes) in [("a", 3_000), ("b", 0), ("c", 1)] {
        let file = fs.open(&staging.path().join(name), OpenMode::CreateNew).unwrap();
        write_all_at(&*file, 0, &b"content ".repeat(500)[..bytes]).unwrap();
    }
    let facts = SnapshotFacts {
        last_included: last_included(),
        time_ms: TIME_MS,
        membership: old_members(),
        envelope: bytes::Bytes::from_static(b"sessions"),
        machine: "kv".to_owned(),
        user_format: 3,
        command_version: 2,
        checksum: tree_checksum(&**fs, staging.path()).unwrap(),
    };
    store.pack(staging, &facts, &mut FullSpeed).unwrap().path
}

fn request(file: &Path) -> RestoreRequest {
    RestoreRequest {
        file: file.to_owned(),
        data_dir: "/new/data".into(),
        node: NodeId::new(2).unwrap(),
        peer_addr: "db-2.example:7101".to_owned(),
        client_addr: "db-2.example:7001".to_owned(),
    }
}

fn run(fs: &Arc<dyn Fs>, request: &RestoreRequest) -> Result<Restored, RestoreError> {
    restore(fs, request, &mut |_| ControlFlow::Continue(()))
}

/// What a start of a node finds in the restored directory: a log that begins after a whole
/// snapshot.
fn check(fs: &Arc<dyn Fs>, request: &RestoreRequest) -> (ClusterId, Membership) {
    let dir = &request.data_dir;
    let engine = FileStorageEngine::new(dir, FileStorageOptions::default(), fs.clone());
    let owner = engine.owner().unwrap().unwrap();
    let open = OpenRequest {
        cluster: Some(owner.cluster),
        node: request.node,
        group: GroupId::FIRST,
        initial: Membership::nobody(),
        fresh_cluster: ClusterId([1; 16]),
        fresh_incarnation: d_engine_storage::Incarnation([1; 16]),
    };
    let opened = engine.open(&open).unwrap();
    assert!(!opened.report.created);
    assert_eq!(opened.recovered.base, last_included());
    assert_eq!(opened.recovered.entries, []);
    let term = opened.recovered.hard_state.term.get();
    assert!((7 + TERMS_ABOVE..7 + 2 * TERMS_ABOVE).contains(&term), "{term}");
    assert_eq!(owner.initial.id().term, term);
    assert_eq!(opened.recovered.hard_state.vote, None);
    let options = SnapshotOptions {
        user_format: 3,
        command_version_max: 2,
        ..SnapshotOptions::new(owner.cluster, GroupId::FIRST)
    };
    let (store, report) =
        SnapshotStore::open(fs.clone(), &dir.join(SNAPSHOT_DIR), options).unwrap();
    assert!(report.unusable.is_empty(), "{report:?}");
    let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
    assert!(damage.is_empty(), "{damage:?}");
    let facts = whole.unwrap().header.facts.clone();
    assert_eq!((facts.last_included, facts.time_ms), (last_included(), TIME_MS));
    assert_eq!((facts.machine.as_str(), facts.user_format, facts.command_version), ("kv", 3, 2));
    assert_eq!(&facts.envelope[..], b"sessions");
    assert_eq!(facts.membership, owner.initial);
    let unpacked = Path::new("/unpacked");
    store.unpack(last_included(), unpacked, &mut FullSpeed).unwrap();
    assert_eq!(tree_checksum(&**fs, unpacked).unwrap(), facts.checksum, "the same content");
    fs.remove_tree(unpacked).unwrap();
    (owner.cluster, owner.initial)
}

#[test]
fn a_snapshot_becomes_a_cluster_of_one() {
    for compression in [Compression::None, Compression::Zstd] {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::new());
        let request = request(&backup(&fs, compression));
        let restored = run(&fs, &request).unwrap();
        let (cluster, members) = check(&fs, &request);
        assert_eq!((restored.cluster, restored.from), (cluster, OLD));
        assert_ne!(cluster, OLD, "no node of the old cluster takes it for its own");
        assert_eq!(restored.last_included, last_included());
        assert_eq!(restored.membership, members);
        let [only] = members.members() else { panic!("{members:?}") };
        assert_eq!((only.node, only.role), (2, MemberRole::Voter));
        assert_eq!(only.peer_addr, "db-2.example:7101");
        assert!(only.incarnation.is_some(), "a wiped directory is noticed from the beginning");
        assert!(members.has_removed(5), "ids of the old cluster are not given again");
        assert_eq!(members.admission(), Admission::Invited, "it is not on loopback");
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_behind() {
    let fs: Arc<dyn Fs> = Arc::new(SimFs::new());
    let file = backup(&fs, Compression::None);
    let before = fs.list(Path::new("/")).unwrap();
    let refused = |request: &RestoreRequest| run(&fs, request).unwrap_err().to_string();
    let missing = refused(&RestoreRequest { file: "/old/no".into(), ..request(&file) });
    assert!(missing.contains("/old/no"), "{missing}");
    for wrong in ["db-2", "0.0.0.0:1", "db-2:0"] {
        let said = refused(&RestoreRequest { peer_addr: wrong.to_owned(), ..request(&file) });
        assert!(said.contains(wrong) && said.contains("host:port"), "{said}");
    }
    ensure_dir(&*fs, Path::new("/new/data")).unwrap();
    fs.open(Path::new("/new/data/mine"), OpenMode::CreateNew).unwrap();
    let occupied = refused(&request(&file));
    assert!(occupied.contains("/new/data is not empty"), "{occupied}");
    let occupied = refused(&RestoreRequest { data_dir: "/new/data/mine".into(), ..request(&file) });
    assert!(occupied.contains("is no directory"), "{occupied}");
    fs.remove_file(Path::new("/new/data/mine")).unwrap();
    ensure_dir(&*fs, Path::new("/new/data.restoring")).unwrap();
    fs.open(Path::new("/new/data.restoring/mine"), OpenMode::CreateNew).unwrap();
    let occupied = refused(&request(&file));
    assert!(occupied.contains("/new/data.restoring is where"), "{occupied}");
    fs.remove_tree(Path::new("/new/data.restoring")).unwrap();
    // A node was started there in the meantime.
    let raced = restore(&fs, &request(&file), &mut |_| {
        fs.open(Path::new("/new/data/mine"), OpenMode::CreateNew).ok();
        ControlFlow::Continue(())
    });
    assert!(matches!(raced, Err(RestoreError::Io { .. })), "{raced:?}");
    assert_eq!(fs.list(Path::new("/new/data")).unwrap(), ["mine"]);
    fs.remove_file(Path::new("/new/data/mine")).unwrap();
    // Ended in the middle by the caller.
    let mut pieces = 3;
    let stopped = restore(&fs, &request(&file), &mut |_| {
        pieces -= 1;
        if pieces == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(RestoreError::Stopped)));
    assert_eq!(fs.list(Path::new("/new")).unwrap(), ["data"]);
    // An empty directory is replaced.
    run(&fs, &request(&file)).unwrap();
    check(&fs, &request(&file));
    assert_eq!(fs.list(Path::new("/new")).unwrap(), ["data"]);
    assert_eq!(before.len() + 1, fs.list(Path::new("/")).unwrap().len());
}

#[test]
fn a_damaged_file_is_refused_wherever_the_damage_is() {
    let sim = SimFs::new();
    let fs: Arc<dyn Fs> = Arc::new(sim.clone());
    let file = backup(&fs, Compression::None);
    let len = fs.open(&file, OpenMode::ReadOnly).unwrap().len().unwrap();
    for at in (0..len).step_by(13) {
        assert!(sim.flip_bit(&file, at, (at % 8) as u8));
        let error = run(&fs, &request(&file)).unwrap_err();
        assert!(matches!(error, RestoreError::Snapshot(_)), "{at}: {error}");
        assert!(sim.flip_bit(&file, at, (at % 8) as u8));
        assert!(fs.list(Path::new("/new")).unwrap_or_default().is_empty(), "{at}");
    }
    run(&fs, &request(&file)).unwrap();
}

/// After a power cut at any file operation the target is missing or whole, and the same command
/// finishes the work.
#[test]
fn a_restore_that_is_cut_off_anywhere_is_run_again() {
    let (mut missing, mut whole) = (0, 0);
    for operation in 1.. {
        let sim = SimFs::new();
        let fs: Arc<dyn Fs> = Arc::new(sim.clone());
        let file = backup(&fs, Compression::None);
        sim.halt_at(operation);
        let finished = run(&fs, &request(&file)).is_ok() && !sim.is_halted();
        let mut state = operation;
        sim.crash(&mut |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if below == 0 { 0 } else { (state >> 33) % below }
        });
        match fs.kind(Path::new("/new/data")) {
            Ok(_) => {
                check(&fs, &request(&file));
                whole += 1;
            }
            Err(_) => {
                run(&fs, &request(&file)).unwrap();
                check(&fs, &request(&file));
                missing += 1;
            }
        }
        assert_eq!(fs.list(Path::new("/new")).unwrap(), ["data"], "{operation}");
        if finished {
            break;
        }
    }
    assert!(missing > 40 && whole > 0, "{missing} and {whole}");
}

#[test]
fn a_disk_without_room_is_found_out_first() {
    let sim = SimFs::new();
    let fs: Arc<dyn Fs> = Arc::new(sim.clone());
    let file = backup(&fs, Compression::None);
    sim.set_capacity(Some(sim.used_bytes() + (1 << 20)));
    let said = run(&fs, &request(&file)).unwrap_err().to_string();
    assert!(said.contains("bytes free") && said.contains("are needed"), "{said}");
    assert!(fs.list(Path::new("/new")).unwrap().is_empty());
}
