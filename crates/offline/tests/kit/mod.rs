//! Real data directories on the real file system, made by the storage crate.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
use d_engine_fs::RealFs;
use d_engine_offline::inspect::{Damage, Directory, Found, InspectError, Range, Snapshots};
use d_engine_storage::fs::tree::tree_checksum;
use d_engine_storage::snapshot::{
    FullSpeed, SNAPSHOT_DIR, SnapshotFacts, SnapshotOptions, SnapshotStore,
};
use d_engine_storage::{
    Alignment, ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, Member,
    MemberRole, Membership, OpenRequest, OpenedStorage, SessionSerial, StorageEngine,
};

pub(crate) const CLUSTER: ClusterId = ClusterId([0xC1; 16]);

/// A data directory in a temporary one.
pub(crate) struct Node {
    _temporary: tempfile::TempDir,
    pub(crate) dir: PathBuf,
}

pub(crate) fn members(count: u64) -> Membership {
    let member = |node: u64| Member {
        node,
        peer_addr: format!("10.0.0.{node}:7101"),
        client_addr: format!("10.0.0.{node}:7001"),
        role: MemberRole::Voter,
        incarnation: None,
    };
    Membership::new((1..=count).map(member)).unwrap()
}

pub(crate) fn request() -> OpenRequest {
    OpenRequest {
        cluster: None,
        node: NodeId::new(3).unwrap(),
        group: GroupId::FIRST,
        initial: members(3),
        fresh_cluster: CLUSTER,
        fresh_incarnation: Incarnation([0x1C; 16]),
    }
}

/// Small segments, which a few entries fill.
fn small() -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: 4096,
        alignment: Alignment::Sector,
        grow_bytes: 1024,
        prepare_bytes: 2048,
        spare_segments: 2,
        reserve_bytes: 1024,
    }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

pub(crate) fn command(term: u64, index: u64) -> LogEntry {
    LogEntry {
        id: log_id(term, index),
        kind: EntryKind::Command,
        time_ms: 1_764_338_531_000 + index,
        session: index.is_multiple_of(3).then_some(SessionSerial { session: 1, serial: index }),
        version: 0,
        data: Bytes::from(format!("put key-{index} of term {term}")),
    }
}

pub(crate) fn membership_entry(term: u64, index: u64, members: &Membership) -> LogEntry {
    let command = command(term, index);
    LogEntry { kind: EntryKind::Membership, session: None, data: members.encode(), ..command }
}

pub(crate) fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term: Term::new(term),
        vote: NodeId::new(vote),
        commit: LogIndex::new(commit),
        ..HardState::default()
    }
}

impl Node {
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("data");
        Self { _temporary: temporary, dir }
    }

    pub(crate) fn open(&self) -> OpenedStorage {
        self.try_open(None).unwrap()
    }

    pub(crate) fn try_open(
        &self,
        covered: Option<LogId>,
    ) -> Result<OpenedStorage, d_engine_storage::StorageError> {
        let engine = FileStorageEngine::new(&self.dir, small(), Arc::new(RealFs::new()));
        engine.open_behind(&request(), &mut |_| covered)
    }

    /// Appends one group, durable when it returns.
    pub(crate) fn append(&self, opened: &mut OpenedStorage, entries: &[LogEntry]) {
        let last = entries.last().unwrap().id;
        let state = hard_state(last.term.get(), 2, last.index.get().saturating_sub(4));
        opened.log.append(GroupId::FIRST, Some(state), entries).unwrap();
        opened.log.sync().unwrap();
    }

    /// Commands 1 to `count` of term 1, three in a group, over several segments, closed in an
    /// orderly way.
    pub(crate) fn with_commands(count: u64) -> Self {
        let node = Self::new();
        let mut opened = node.open();
        for first in (1..=count).step_by(3) {
            let last = (first + 2).min(count);
            let group: Vec<LogEntry> = (first..=last).map(|index| command(1, index)).collect();
            node.append(&mut opened, &group);
        }
        opened.log.idle().unwrap();
        node
    }

    /// A snapshot of some content, up to this entry.
    pub(crate) fn take_snapshot(&self, last_included: LogId) -> PathBuf {
        let fs = Arc::new(RealFs::new());
        let options =
            SnapshotOptions { chunk_bytes: 1_000, ..SnapshotOptions::new(CLUSTER, GroupId::FIRST) };
        let dir = self.dir.join(SNAPSHOT_DIR);
        let (store, _) = SnapshotStore::open(fs.clone(), &dir, options).unwrap();
        let staging = store.staging().unwrap();
        fs::write(staging.path().join("state"), vec![7; 4_500]).unwrap();
        let facts = SnapshotFacts {
            last_included,
            time_ms: 1_764_338_531_000,
            membership: members(5),
            envelope: Bytes::new(),
            machine: "test".to_owned(),
            user_format: 0,
            command_version: 0,
            checksum: tree_checksum(&*fs, staging.path()).unwrap(),
        };
        store.pack(staging, &facts, &mut FullSpeed).unwrap().path
    }

    /// The segment files, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.dir.join("log")).unwrap();
        let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// Inspects the directory; everything in it, times included, must be as before.
    pub(crate) fn inspect(&self) -> Directory {
        self.try_inspect(Snapshots::Verify).unwrap()
    }

    pub(crate) fn try_inspect(&self, which: Snapshots) -> Result<Directory, InspectError> {
        let before = state_of(&self.dir);
        let go_on = &mut |_| ControlFlow::Continue(());
        let read = Directory::read(Arc::new(RealFs::new()), &self.dir, which, go_on);
        if let Ok(directory) = &read {
            shown(directory);
        }
        assert!(before == state_of(&self.dir), "the directory was changed");
        read
    }
}

/// Every file and directory: its mode, its time of modification, and its content.
pub(crate) type State = BTreeMap<PathBuf, (u32, SystemTime, Vec<u8>)>;

pub(crate) fn state_of(dir: &Path) -> State {
    use std::os::unix::fs::PermissionsExt as _;
    let mut state = State::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::metadata(&path).unwrap();
        let mut content = Vec::new();
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            content = fs::read(&path).unwrap();
        }
        let mode = metadata.permissions().mode();
        state.insert(path, (mode, metadata.modified().unwrap(), content));
    }
    state
}

/// What a visit of all entries shows, in order.
pub(crate) fn shown(directory: &Directory) -> Vec<Found> {
    let mut shown = Vec::new();
    let flow = directory.entries(Range::default(), &mut |found| {
        shown.push(found);
        ControlFlow::Continue(())
    });
    assert!(flow.unwrap().is_continue());
    shown
}

pub(crate) fn entries(directory: &Directory) -> Vec<LogEntry> {
    let found = shown(directory).into_iter().filter_map(|found| match found {
        Found::Entry(stored) => Some(stored.entry),
        Found::Damage(_) => None,
    });
    found.collect()
}

pub(crate) fn damage(directory: &Directory) -> Vec<Damage> {
    let found = shown(directory).into_iter().filter_map(|found| match found {
        Found::Entry(_) => None,
        Found::Damage(damage) => Some(damage),
    });
    found.collect()
}

/// Flips one bit of a file.
pub(crate) fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap();
    content[at] ^= 1;
    fs::write(path, content).unwrap();
}
