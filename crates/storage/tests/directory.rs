//! A data directory belongs to one node, one process at a time, and one format, and only its owner
//! may read it. On the real file system.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{GROUP, Picture, entries, entry, hard_state, request, small};
use d_engine_core::{GroupId, NodeId};
use d_engine_storage::fs::OpenMode;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{
    ClusterId, FileStorageEngine, Fs, FsOp, Incarnation, OpenRequest, OpenedStorage, RealFs,
    StorageEngine, StorageError,
};

fn open(dir: &Path, request: &OpenRequest) -> Result<OpenedStorage, StorageError> {
    FileStorageEngine::new(dir, small(), Arc::new(RealFs::new())).open(request)
}

fn error(result: Result<OpenedStorage, StorageError>) -> StorageError {
    match result {
        Ok(opened) => panic!("opened: {:?}", opened.report),
        Err(error) => error,
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.clone());
        if path.is_dir() {
            found.extend(files(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn a_log_on_a_real_disk_comes_back() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("several/levels/deep");
    let mut expected = Picture::default();
    for round in 0..4 {
        let mut opened = open(&dir, &request()).unwrap();
        assert_eq!(opened.report.created, round == 0);
        assert_eq!(Picture::of(&opened), expected);
        for index in round * 20 + 1..=round * 20 + 20 {
            let stored = [entry(round + 1, index)];
            opened.log.append(GROUP, Some(hard_state(round + 1, 1, index)), &stored).unwrap();
            opened.log.sync().unwrap();
            expected.append(Some(hard_state(round + 1, 1, index)), &stored);
        }
        opened.log.idle().unwrap();
        let through = expected.entries[&(round * 20 + 10)].id;
        opened.log.purge(GROUP, through).unwrap();
        expected.purge(through);
        opened.meta.store("snapshot", &[round as u8]).unwrap();
        assert_eq!(opened.meta.load("snapshot").unwrap().unwrap(), [round as u8].as_slice());
    }
}

#[test]
fn files_are_open_to_their_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut opened = open(&dir, &request()).unwrap();
    opened.meta.store("snapshot", b"pointer").unwrap();
    opened.log.idle().unwrap();
    for path in files(&dir).into_iter().chain([dir.clone()]) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
}

#[test]
fn a_directory_in_use_is_refused_with_the_holder_and_free_once_the_log_is_dropped() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let opened = open(&dir, &request()).unwrap();
    let refused = error(open(&dir, &request()));
    let StorageError::InUse { holder, .. } = &refused else { panic!("{refused}") };
    assert_eq!(*holder, format!("process {}", std::process::id()));
    assert!(refused.to_string().contains(holder.as_str()));
    let OpenedStorage { log, meta, .. } = opened;
    drop(meta);
    assert!(matches!(error(open(&dir, &request())), StorageError::InUse { .. }));
    drop(log);
    open(&dir, &request()).unwrap();
}

#[test]
fn two_simulated_processes_cannot_share_a_directory() {
    let fs = SimFs::new();
    let first = common::open(&fs, &small()).unwrap();
    assert!(matches!(error(common::open(&fs, &small())), StorageError::InUse { .. }));
    fs.kill();
    let mut second = common::open(&fs, &small()).unwrap();
    drop(first);
    assert!(matches!(error(common::open(&fs, &small())), StorageError::InUse { .. }));
    second.log.append(GROUP, None, &entries(1, 1..=2)).unwrap();
    second.log.sync().unwrap();
}

#[test]
fn the_log_of_a_process_that_died_cannot_write_any_more() {
    let fs = SimFs::new();
    let mut first = common::open(&fs, &small()).unwrap();
    fs.kill();
    let second = common::open(&fs, &small()).unwrap();
    first.log.append(GROUP, None, &[entry(1, 1)]).unwrap();
    assert!(matches!(first.log.sync(), Err(StorageError::Io { .. })));
    drop(second);
    assert_eq!(Picture::of(&common::open(&fs, &small()).unwrap()), Picture::default());
}

#[test]
fn a_directory_of_another_cluster_node_or_group_is_refused_naming_both() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    drop(open(&dir, &request()).unwrap());
    let wrong_cluster = OpenRequest { cluster: Some(ClusterId([2; 16])), ..request() };
    let wrong_node = OpenRequest { node: NodeId::new(2).unwrap(), ..request() };
    let wrong_group = OpenRequest { group: GroupId::new(5).unwrap(), ..request() };
    let cases = [
        (
            wrong_cluster,
            "cluster",
            ClusterId([0xC1; 16]).to_string(),
            ClusterId([2; 16]).to_string(),
        ),
        (wrong_node, "node", "1".to_owned(), "2".to_owned()),
        (wrong_group, "group", "1".to_owned(), "5".to_owned()),
    ];
    for (request, kind, in_directory, asked_for) in cases {
        let error = error(open(&dir, &request));
        let StorageError::WrongOwner { what, found, expected, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((*what, found, expected), (kind, &in_directory, &asked_for));
    }
    let right = OpenRequest {
        cluster: Some(ClusterId([0xC1; 16])),
        fresh_cluster: ClusterId([7; 16]),
        fresh_incarnation: Incarnation([7; 16]),
        ..request()
    };
    let opened = open(&dir, &right).unwrap();
    assert_eq!(
        opened.identity.incarnation,
        request().fresh_incarnation,
        "an existing directory keeps its own"
    );
}

#[test]
fn a_log_without_an_identity_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    drop(open(&dir, &request()).unwrap());
    for name in ["identity.meta", "identity.meta.2"] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    let before = files(&dir);
    let error = error(open(&dir, &request()));
    assert!(
        matches!(&error, StorageError::DamagedFile { path, .. } if path.ends_with("identity.meta")),
        "{error}"
    );
    assert_eq!(files(&dir), before);
}

/// FAULTS row 2: an undecodable record is an error, never an empty record.
#[test]
fn a_garbled_or_empty_record_is_refused_and_a_newer_one_named() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    drop(open(&dir, &request()).unwrap());
    for name in ["identity.meta", "log.meta"] {
        let (path, copy) = (dir.join(name), dir.join(format!("{name}.2")));
        std::fs::write(&copy, b"garbled").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len().min(256) {
            let mut garbled = whole.clone();
            garbled[at] ^= 4;
            std::fs::write(&path, garbled).unwrap();
            assert!(
                matches!(error(open(&dir, &request())), StorageError::DamagedFile { .. }),
                "{name} at {at}"
            );
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(
                matches!(error(open(&dir, &request())), StorageError::DamagedFile { .. }),
                "{name} cut at {at}"
            );
        }
        let mut newer = whole.clone();
        newer[8] = 9;
        let checksum = crc32c::crc32c(name.trim_end_matches(".meta").as_bytes());
        let len = u32::from_le_bytes(newer[12..16].try_into().unwrap()) as usize;
        let content = &newer[20..20 + len];
        let checksum =
            crc32c::crc32c_append(crc32c::crc32c_append(checksum, &newer[..16]), content);
        newer[16..20].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(&path, newer).unwrap();
        let error = error(open(&dir, &request()));
        assert!(
            matches!(error, StorageError::UnsupportedFormat { found: 9, supported: 1, .. }),
            "{error}"
        );
        std::fs::write(&path, whole).unwrap();
        drop(open(&dir, &request()).unwrap());
    }
}

/// Each record has two copies; a copy that is damaged, cut or missing is repaired from the other.
#[test]
fn a_record_of_which_one_copy_is_lost_is_read_from_the_other_and_mended() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut opened = open(&dir, &request()).unwrap();
    let identity = opened.identity.clone();
    opened.log.append(GROUP, None, &entries(1, 1..=3)).unwrap();
    opened.log.sync().unwrap();
    opened.log.purge(GROUP, common::log_id(1, 2)).unwrap();
    drop(opened);
    for name in ["identity.meta", "identity.meta.2", "log.meta", "log.meta.2"] {
        let path = dir.join(name);
        let whole = std::fs::read(&path).unwrap();
        for damage in 0..3 {
            match damage {
                0 => std::fs::remove_file(&path).unwrap(),
                1 => std::fs::write(&path, &whole[..whole.len().min(60)]).unwrap(),
                _ => {
                    let mut flipped = whole.clone();
                    flipped[30] ^= 8;
                    std::fs::write(&path, flipped).unwrap();
                }
            }
            let opened = open(&dir, &request()).unwrap();
            assert_eq!(
                opened.report.mended,
                std::slice::from_ref(&path),
                "{name}, damage {damage}"
            );
            assert_eq!(opened.identity, identity);
            assert!(!opened.report.created);
            assert_eq!(opened.recovered.base, common::log_id(1, 2));
            drop(opened);
            let opened = open(&dir, &request()).unwrap();
            assert!(opened.report.mended.is_empty(), "{name}, damage {damage}, mended");
        }
    }
}

#[test]
fn unfinished_records_are_removed_and_other_files_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    drop(open(&dir, &request()).unwrap());
    std::fs::write(dir.join("log.meta.tmp"), b"half").unwrap();
    std::fs::write(dir.join("notes.txt"), b"of the operator").unwrap();
    std::fs::write(dir.join("log/notes.txt"), b"of the operator").unwrap();
    drop(open(&dir, &request()).unwrap());
    assert!(!dir.join("log.meta.tmp").exists());
    assert!(dir.join("notes.txt").exists() && dir.join("log/notes.txt").exists());
}

#[test]
fn names_of_records_are_checked() {
    let fs = SimFs::new();
    let mut opened = common::open(&fs, &small()).unwrap();
    for name in ["", "../up", "Upper", "identity", "log", "with space", "a/b"] {
        assert!(matches!(opened.meta.store(name, b"x"), Err(StorageError::Order(_))), "{name:?}");
        assert!(matches!(opened.meta.load(name), Err(StorageError::Order(_))), "{name:?}");
    }
    assert_eq!(opened.meta.load("install-marker").unwrap(), None);
    opened.meta.store("install-marker", b"").unwrap();
    assert_eq!(opened.meta.load("install-marker").unwrap().unwrap(), b"".as_slice());
}

#[test]
fn the_real_file_system_counts_its_operations() {
    let parent = tempfile::tempdir().unwrap();
    let fs = Arc::new(RealFs::new());
    let engine = FileStorageEngine::new(parent.path().join("data"), small(), Arc::clone(&fs) as _);
    let mut opened = engine.open(&request()).unwrap();
    opened.log.idle().unwrap();
    let before = Fs::counts(&*fs);
    opened.log.append(GROUP, None, &entries(1, 1..=3)).unwrap();
    opened.log.sync().unwrap();
    let after = Fs::counts(&*fs);
    assert_eq!(after.of(FsOp::Write) - before.of(FsOp::Write), 1);
    assert_eq!(after.of(FsOp::SyncData) - before.of(FsOp::SyncData), 1);
    assert_eq!(after.total() - before.total(), 2);
}

/// The lock file can be removed; the directory cannot, unless what is in it is removed too.
#[test]
fn a_directory_whose_lock_file_was_removed_is_still_locked() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let opened = open(&dir, &request()).unwrap();
    std::fs::remove_file(dir.join("LOCK")).unwrap();
    let error = error(open(&dir, &request()));
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    drop(opened);
    drop(open(&dir, &request()).unwrap());
}

/// Checked before each new segment: a directory that was moved away no longer belongs to this
/// process.
#[test]
fn a_log_whose_directory_was_replaced_begins_no_segment_there() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut opened = open(&dir, &request()).unwrap();
    std::fs::rename(&dir, parent.path().join("moved")).unwrap();
    let _other = open(&dir, &request()).unwrap();
    let before = files(&dir);
    let mut stopped = None;
    for index in 1..=100 {
        opened.log.append(GROUP, None, &entries(1, index..=index)).unwrap();
        stopped = opened.log.sync().err();
        if stopped.is_some() {
            break;
        }
    }
    let error = stopped.unwrap();
    assert!(matches!(error, StorageError::LockLost { .. }), "{error}");
    assert_eq!(files(&dir), before);
}

/// Each sync reaches the system: a device and a file system without storage refuse it (EINVAL), and
/// a missing directory is reported.
#[test]
#[cfg(target_os = "linux")]
fn syncs_of_files_and_directories_are_asked_of_the_system() {
    let fs = RealFs::new();
    let open = |path: &str| Fs::open(&fs, Path::new(path), OpenMode::Existing).unwrap();
    let refused = |result: std::io::Result<()>| result.unwrap_err().kind();
    assert_eq!(refused(open("/dev/null").sync_data()), std::io::ErrorKind::InvalidInput);
    assert_eq!(refused(open("/dev/null").sync_all()), std::io::ErrorKind::InvalidInput);
    assert_eq!(refused(fs.sync_dir(Path::new("/proc"))), std::io::ErrorKind::InvalidInput);
    let gone = tempfile::tempdir().unwrap().path().join("gone");
    assert_eq!(refused(fs.sync_dir(&gone)), std::io::ErrorKind::NotFound);
    let dir = tempfile::tempdir().unwrap();
    fs.sync_dir(dir.path()).unwrap();
}

/// An archive that this process may only read can be sent and unpacked.
#[test]
fn a_file_that_may_only_be_read_is_opened_for_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snap");
    std::fs::write(&path, b"content").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    let fs = RealFs::new();
    let file = Fs::open(&fs, &path, OpenMode::ReadOnly).unwrap();
    assert_eq!(d_engine_storage::fs::read_whole(&*file).unwrap(), b"content");
    // This holds for root as well: the handle itself is read-only.
    file.write_at(0, b"x").unwrap_err();
}
