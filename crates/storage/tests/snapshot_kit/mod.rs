//! What the snapshot tests share: a small tree of files, and a store on the simulated file system.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "every test file uses a part of it"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, LogId, LogIndex, Term};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::fs::{FileKind, OpenMode, read_file, write_all_at};
use d_engine_storage::snapshot::{
    FullSpeed, SnapshotError, SnapshotFacts, SnapshotInfo, SnapshotOptions, SnapshotReport,
    SnapshotStore,
};
use d_engine_storage::{ClusterId, Fs, Member, MemberRole, Membership};
use sha2::{Digest, Sha256};

pub const DIR: &str = "/node/snapshots";
pub const OUT: &str = "/node/out";

pub type Files = BTreeMap<String, Vec<u8>>;

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

/// Small chunks and syncs, so that a few files have several of them.
pub fn options() -> SnapshotOptions {
    SnapshotOptions {
        chunk_bytes: 700,
        sync_bytes: 1500,
        reserve_bytes: 0,
        ..SnapshotOptions::new(ClusterId([0xC1; 16]), GroupId::FIRST)
    }
}

pub fn open(fs: &SimFs) -> (SnapshotStore, SnapshotReport) {
    try_open(fs).unwrap()
}

pub fn try_open(fs: &SimFs) -> Result<(SnapshotStore, SnapshotReport), SnapshotError> {
    SnapshotStore::open(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR), options())
}

/// The state at a last included entry: files that cross chunks, empty files, files in directories.
pub fn files(last_included: LogId) -> Files {
    let seed = last_included.index.get() as u8;
    let bytes = |len: usize, salt: u8| {
        (0..len).map(|at| (at as u8).wrapping_mul(seed | 1) ^ salt).collect()
    };
    [
        ("a-empty".to_owned(), Vec::new()),
        ("data".to_owned(), bytes(1900, seed)),
        ("sub/deep/x".to_owned(), bytes(10, 7)),
        ("sub/y".to_owned(), bytes(190, seed ^ 9)),
        ("z-empty".to_owned(), Vec::new()),
    ]
    .into()
}

/// The rule of the state machine's contract, implemented a second time.
pub fn checksum(files: &Files) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (name, content) in files {
        hash.update((name.len() as u32).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}

pub fn facts(last_included: LogId, files: &Files) -> SnapshotFacts {
    let member = Member {
        node: 1,
        peer_addr: "127.0.0.1:7001".to_owned(),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    SnapshotFacts {
        last_included,
        time_ms: 1_000 + last_included.index.get(),
        membership: Membership::new([member]).unwrap(),
        envelope: Bytes::from_static(b"envelope"),
        machine: String::new(),
        user_format: 0,
        command_version: 0,
        checksum: checksum(files),
    }
}

/// Writes as a state machine does, without a sync.
pub fn write_files(fs: &dyn Fs, dir: &Path, files: &Files) -> std::io::Result<()> {
    for (name, content) in files {
        let path = dir.join(name);
        let mut missing = Vec::new();
        for parent in path.ancestors().skip(1).take_while(|parent| *parent != dir) {
            missing.push(parent.to_owned());
        }
        for parent in missing.iter().rev().filter(|parent| fs.kind(parent).is_err()) {
            fs.create_dir(parent)?;
        }
        write_all_at(&*fs.open(&path, OpenMode::CreateNew)?, 0, content)?;
    }
    Ok(())
}

pub fn read_files(fs: &dyn Fs, dir: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for name in fs.list(&next).unwrap() {
            let path: PathBuf = next.join(name);
            if fs.kind(&path).unwrap() == FileKind::Dir {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, read_file(fs, &path).unwrap());
            }
        }
    }
    files
}

/// Takes a snapshot as a node does.
pub fn take(
    fs: &SimFs,
    store: &SnapshotStore,
    last_included: LogId,
) -> Result<SnapshotInfo, SnapshotError> {
    let staging = store.staging()?;
    let files = files(last_included);
    write_files(fs, staging.path(), &files).map_err(|source| SnapshotError::Io {
        operation: "write",
        path: staging.path().to_owned(),
        source: Arc::new(source),
    })?;
    store.pack(staging, &facts(last_included, &files), &mut FullSpeed)
}

pub fn log_ids(store: &SnapshotStore) -> Vec<LogId> {
    store.list().iter().map(SnapshotInfo::last_included).collect()
}

pub fn path_of(last_included: LogId) -> PathBuf {
    Path::new(DIR).join(format!("snap-{}-{}.snap", last_included.term, last_included.index))
}

/// Unpacks, and compares with the state at the last included entry.
pub fn assert_unpacks(fs: &SimFs, store: &SnapshotStore, last_included: LogId) {
    let out = store.unpack_dir();
    let header = store.unpack(last_included, &out, &mut FullSpeed).unwrap();
    assert_eq!(header.facts, facts(last_included, &files(last_included)));
    assert_eq!(read_files(fs, &out), files(last_included), "{last_included}");
    fs.remove_tree(&out).unwrap();
}

/// Returns the names in the directory of snapshots.
pub fn names(fs: &SimFs) -> Vec<String> {
    fs.list(Path::new(DIR)).unwrap()
}

/// Replaces the content of a file, durably.
pub fn with_content(fs: &SimFs, path: &Path, content: Vec<u8>) -> SimFs {
    let mut image = fs.image();
    image.files.insert(path.to_owned(), content);
    SimFs::from_image(&image)
}
