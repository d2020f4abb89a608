//! Data directories on the simulated disk, and what a start finds in a recovered one.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
use d_engine_fs::{Fs, OpenMode, ensure_dir, write_all_at};
use d_engine_offline::inspect::{Directory, Snapshots};
pub(crate) use d_engine_offline::recover::RecoverRequest;
use d_engine_offline::recover::{RecoverError, Recovered, TERMS_ABOVE, recover};
use d_engine_storage::fs::tree::tree_checksum;
use d_engine_storage::snapshot::{
    FullSpeed, SNAPSHOT_DIR, SnapshotFacts, SnapshotOptions, SnapshotStore,
};
use d_engine_storage::{
    Alignment, ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, Member,
    MemberRole, Membership, OpenRequest, OpenedStorage, SessionSerial, StorageEngine, StorageError,
};

pub(crate) const OLD: ClusterId = ClusterId([0xC1; 16]);
pub(crate) const DIR: &str = "/nodes/data";
pub(crate) const TIME_MS: u64 = 1_764_338_531_000;

/// What the node has noted about its state machine.
pub(crate) const NOTED: &[u8] = b"skipped";

pub(crate) fn incarnation(number: u8) -> Incarnation {
    Incarnation([number; 16])
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

/// Voters 1 to `count`.
pub(crate) fn voters(count: u64) -> Membership {
    let member = |node: u64| Member {
        node,
        peer_addr: format!("old-{node}:7101"),
        client_addr: format!("old-{node}:7001"),
        role: MemberRole::Voter,
        incarnation: None,
    };
    Membership::new((1..=count).map(member)).unwrap()
}

/// The directory of node 2 of a cluster that grows from three voters to four and five.
#[derive(Clone, Debug)]
pub(crate) struct Old {
    pub(crate) dir: PathBuf,
    pub(crate) cluster: ClusterId,
    pub(crate) node: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) entries: u64,
    pub(crate) commit: u64,
    /// The last included index of a snapshot of its own.
    pub(crate) snapshot: Option<u64>,
    /// The log was purged up to here.
    pub(crate) purged: u64,
    /// Bytes that each command has at least.
    pub(crate) payload: usize,
}

impl Default for Old {
    fn default() -> Self {
        Self {
            dir: DIR.into(),
            cluster: OLD,
            node: 2,
            incarnation: incarnation(2),
            entries: 30,
            commit: 27,
            snapshot: None,
            purged: 0,
            payload: 0,
        }
    }
}

impl Old {
    pub(crate) fn id(index: u64) -> LogId {
        log_id(if index <= 12 { 3 } else { 5 }, index)
    }

    /// The configuration that the entry at this index writes.
    fn membership_at(index: u64) -> Option<Membership> {
        match index {
            8 => Some(voters(4).following(&voters(3), 3)),
            24 => Self::membership_at(8).map(|before| voters(5).following(&before, 5)),
            _ => None,
        }
    }

    pub(crate) fn entry(&self, index: u64) -> LogEntry {
        let id = Self::id(index);
        let time_ms = TIME_MS - 1_000 + index;
        let mut data = format!("put key-{index}").into_bytes();
        data.resize(data.len().max(self.payload), b'.');
        let session =
            index.is_multiple_of(3).then_some(SessionSerial { session: 1, serial: index });
        let (kind, data, version) = (EntryKind::Command, Bytes::from(data), 2);
        let command = LogEntry { id, kind, time_ms, session, version, data };
        match Self::membership_at(index) {
            None => command,
            Some(members) => LogEntry {
                kind: EntryKind::Membership,
                session: None,
                version: 0,
                data: members.encode(),
                ..command
            },
        }
    }

    /// Small segments, which a few entries fill.
    fn options() -> FileStorageOptions {
        FileStorageOptions {
            segment_bytes: 4096,
            alignment: Alignment::Sector,
            grow_bytes: 1024,
            prepare_bytes: 2048,
            spare_segments: 2,
            reserve_bytes: 1024,
        }
    }

    pub(crate) fn create(&self, fs: &Arc<dyn Fs>) {
        ensure_dir(&**fs, self.dir.parent().unwrap()).unwrap();
        let engine = FileStorageEngine::new(&self.dir, Self::options(), fs.clone());
        let request = OpenRequest {
            cluster: Some(self.cluster),
            node: NodeId::new(self.node).unwrap(),
            group: GroupId::FIRST,
            initial: voters(3),
            fresh_cluster: self.cluster,
            fresh_incarnation: self.incarnation,
        };
        let mut opened = engine.open(&request).unwrap();
        let log = &mut opened.log;
        for first in (1..=self.entries).step_by(3) {
            let last = (first + 2).min(self.entries);
            let group: Vec<LogEntry> = (first..=last).map(|index| self.entry(index)).collect();
            // Elections without a winner.
            let term = Self::id(last).term.get() + 2;
            let state = HardState {
                term: Term::new(term),
                vote: NodeId::new(3),
                commit: LogIndex::new(self.commit.min(last)),
                ..HardState::default()
            };
            log.append(GroupId::FIRST, Some(state), &group).unwrap();
            log.sync().unwrap();
        }
        log.idle().unwrap();
        opened.meta.store("apply", NOTED).unwrap();
        if let Some(index) = self.snapshot {
            self.take_snapshot(fs, Self::id(index));
        }
        if self.purged > 0 {
            log.purge(GroupId::FIRST, Self::id(self.purged)).unwrap();
        }
    }

    pub(crate) fn take_snapshot(&self, fs: &Arc<dyn Fs>, last_included: LogId) {
        let options = SnapshotOptions {
            chunk_bytes: 700,
            ..SnapshotOptions::new(self.cluster, GroupId::FIRST)
        };
        let (store, _) =
            SnapshotStore::open(fs.clone(), &self.dir.join(SNAPSHOT_DIR), options).unwrap();
        let staging = store.staging().unwrap();
        let file = fs.open(&staging.path().join("state"), OpenMode::CreateNew).unwrap();
        write_all_at(&*file, 0, &b"content ".repeat(500)).unwrap();
        let index = last_included.index.get();
        let mut earlier = (0..=index).rev().filter_map(Self::membership_at);
        let facts = SnapshotFacts {
            last_included,
            time_ms: TIME_MS - 1_000 + index,
            membership: earlier.next().unwrap_or_else(|| voters(3)),
            envelope: Bytes::from_static(b"sessions"),
            machine: "kv".to_owned(),
            user_format: 3,
            command_version: 2,
            checksum: tree_checksum(&**fs, staging.path()).unwrap(),
        };
        store.pack(staging, &facts, &mut FullSpeed).unwrap();
    }

    fn segments(&self, fs: &Arc<dyn Fs>) -> Vec<PathBuf> {
        let go_on = &mut |_| ControlFlow::Continue(());
        let directory =
            Directory::read(fs.clone(), &self.dir, Snapshots::HeadersOnly, go_on).unwrap();
        directory.log().segments.iter().map(|segment| segment.path.clone()).collect()
    }

    pub(crate) fn newest_segment(&self, fs: &Arc<dyn Fs>) -> PathBuf {
        self.segments(fs).pop().unwrap()
    }

    pub(crate) fn oldest_segment(&self, fs: &Arc<dyn Fs>) -> PathBuf {
        self.segments(fs).swap_remove(0)
    }
}

pub(crate) fn request() -> RecoverRequest {
    RecoverRequest { data_dir: DIR.into(), peer_addr: None, client_addr: None, at_ms: TIME_MS }
}

pub(crate) fn run(fs: &Arc<dyn Fs>, request: &RecoverRequest) -> Result<Recovered, RecoverError> {
    recover(fs, request, &mut |_| ControlFlow::Continue(()), &mut |_| ControlFlow::Continue(()))
}

/// Opens a directory as its node does.
pub(crate) fn open(fs: &Arc<dyn Fs>, dir: &Path) -> Result<OpenedStorage, StorageError> {
    let engine = FileStorageEngine::new(dir, FileStorageOptions::default(), fs.clone());
    let owner = engine.owner()?.expect("it has an identity");
    engine.open(&OpenRequest {
        cluster: Some(owner.cluster),
        node: owner.node,
        group: GroupId::FIRST,
        initial: Membership::nobody(),
        fresh_cluster: ClusterId([1; 16]),
        fresh_incarnation: Incarnation([1; 16]),
    })
}

/// As a start does it that would also create the directory.
pub(crate) fn create(fs: &Arc<dyn Fs>, dir: &Path) -> Result<OpenedStorage, StorageError> {
    FileStorageEngine::new(dir, FileStorageOptions::default(), fs.clone()).open(&OpenRequest {
        cluster: Some(OLD),
        node: NodeId::new(2).unwrap(),
        group: GroupId::FIRST,
        initial: voters(3),
        fresh_cluster: OLD,
        fresh_incarnation: incarnation(9),
    })
}

/// What a start of the node finds in the recovered directory: everything of the old log, under the
/// same terms and indexes, with one member.
pub(crate) fn check(fs: &Arc<dyn Fs>, old: &Old) -> OpenedStorage {
    let opened = open(fs, Path::new(DIR)).unwrap();
    let (identity, found) = (&opened.identity, &opened.recovered);
    assert!(!opened.report.created);
    assert_eq!(opened.meta.load("apply").unwrap().as_deref(), Some(NOTED));
    assert_eq!((identity.node.get(), identity.group), (old.node, GroupId::FIRST));
    assert_ne!(identity.incarnation, old.incarnation);
    assert_eq!(identity.continues, [(old.cluster, old.incarnation)]);
    assert_eq!(found.base, old.snapshot.map(Old::id).unwrap_or_default());
    let first = old.snapshot.unwrap_or(0) + 1;
    assert_eq!(found.entries.len() as u64, (old.entries + 1).saturating_sub(first));
    let reader = opened.log.reader();
    for (index, head) in (first..).zip(&found.entries) {
        let expected = old.entry(index);
        let at = LogIndex::new(index);
        let read = reader.read(GroupId::FIRST, at, at, usize::MAX).unwrap().remove(0);
        assert_eq!((head.id, head.time_ms), (expected.id, expected.time_ms), "{index}");
        match expected.kind {
            EntryKind::Membership => {
                assert_eq!((read.kind, read.data.len()), (EntryKind::Noop, 0), "{index}");
                assert_eq!(read.session, None);
            }
            _ => assert_eq!(read, expected),
        }
    }
    let state = found.hard_state;
    let highest = Old::id(old.entries).term.get() + 2;
    let above = highest.min(state.term.get())..highest + 2 * TERMS_ABOVE;
    assert!(above.contains(&state.term.get()) && state.term.get() >= TERMS_ABOVE, "{state:?}");
    assert_eq!((state.vote, state.commit.get()), (None, old.entries));
    assert_eq!(identity.initial.id().term, state.term.get());
    check_snapshot(fs, old, &opened);
    opened
}

fn check_snapshot(fs: &Arc<dyn Fs>, old: &Old, opened: &OpenedStorage) {
    let options = SnapshotOptions {
        user_format: 3,
        command_version_max: 2,
        ..SnapshotOptions::new(opened.identity.cluster, GroupId::FIRST)
    };
    let dir = Path::new(DIR).join(SNAPSHOT_DIR);
    let (store, report) = SnapshotStore::open(fs.clone(), &dir, options).unwrap();
    assert!(report.unusable.is_empty(), "{report:?}");
    let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
    assert!(damage.is_empty(), "{damage:?}");
    assert_eq!(whole.as_ref().map(|it| it.last_included()), old.snapshot.map(Old::id));
    let Some(whole) = whole else { return };
    let facts = &whole.header.facts;
    assert_eq!(facts.membership, opened.identity.initial);
    assert_eq!(&facts.envelope[..], b"sessions");
    let unpacked = Path::new("/unpacked");
    store.unpack(facts.last_included, unpacked, &mut FullSpeed).unwrap();
    assert_eq!(tree_checksum(&**fs, unpacked).unwrap(), facts.checksum, "the same content");
    fs.remove_tree(unpacked).unwrap();
}

/// A second voter joins the recovered cluster: its membership entry is appended.
pub(crate) fn grow(fs: &Arc<dyn Fs>, before: &Membership) {
    let mut opened = open(fs, Path::new(DIR)).unwrap();
    let state = opened.recovered.hard_state;
    let last = opened.recovered.entries.last().unwrap().id.index.next();
    let entry = LogEntry {
        id: LogId::new(state.term, last),
        kind: EntryKind::Membership,
        time_ms: TIME_MS,
        session: None,
        version: 0,
        data: voters(4).following(before, state.term.get()).encode(),
    };
    opened.log.append(GroupId::FIRST, None, &[entry]).unwrap();
    opened.log.sync().unwrap();
}
