//! A recording state machine, and the directory of a node on the real file system.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

mod machine;
pub(crate) mod node;

use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, LogIndex, NodeId, Term};
use d_engine_replica::{LogId, Start};
use d_engine_storage::snapshot::{SnapshotOptions, SnapshotStore};
use d_engine_storage::{
    ClusterId, EntryHead, FileStorageEngine, FileStorageOptions, Fs, Identity, Incarnation,
    LogEntry, LogStore, Member, MemberRole, Membership, MetaStore, OpenRequest, OpenedStorage,
    RealFs, RecoveredLog, RecoveryReport, StorageEngine,
};

pub(crate) use self::machine::{Calls, Held, Manner, Recording};

pub(crate) fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

pub(crate) fn at(term: u64, index: u64) -> LogId {
    LogId::of(term, index)
}

/// An entry of term 1 at `index`; commands carry one number.
pub(crate) fn entry(index: u64, kind: EntryKind, number: u8) -> LogEntry {
    LogEntry {
        id: id(1, index),
        kind,
        time_ms: 1_000 + index,
        session: None,
        version: 0,
        data: Bytes::from(vec![number]),
    }
}

/// A recovered log of `last` entries of term 1.
pub(crate) fn recovered(last: u64) -> RecoveredLog {
    let head = |index| EntryHead {
        id: id(1, index),
        kind: EntryKind::Command,
        time_ms: 0,
        version: 0,
        data_len: 1,
    };
    RecoveredLog { entries: (1..=last).map(head).collect(), ..RecoveredLog::default() }
}

/// The data directory of a single node on the real file system: log and snapshots.
pub(crate) struct Ground {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) opened: Opened,
    /// `None` once a worker has taken it.
    pub(crate) meta: Option<Box<dyn MetaStore>>,
    pub(crate) store: SnapshotStore,
}

/// The opened storage of a node, without its records.
pub(crate) struct Opened {
    pub(crate) identity: Identity,
    pub(crate) log: Box<dyn LogStore>,
    pub(crate) recovered: RecoveredLog,
    pub(crate) report: RecoveryReport,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    pub(crate) fn new_with_incarnation(incarnation: u8) -> Self {
        Self::open(tempfile::tempdir().unwrap(), Incarnation([incarnation; 16]))
    }

    pub(crate) fn at(dir: tempfile::TempDir) -> Self {
        Self::open(dir, Incarnation([2; 16]))
    }

    fn open(dir: tempfile::TempDir, fresh_incarnation: Incarnation) -> Self {
        let member = Member {
            node: 1,
            peer_addr: "peer:1".to_owned(),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        let request = OpenRequest {
            cluster: None,
            node: NodeId::new(1).unwrap(),
            group: GroupId::FIRST,
            initial: Membership::new([member]).unwrap(),
            fresh_cluster: ClusterId([1; 16]),
            fresh_incarnation,
        };
        let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
        let options =
            FileStorageOptions { segment_bytes: 64 << 10, ..FileStorageOptions::default() };
        let opened = FileStorageEngine::new(dir.path().join("data"), options, fs.clone())
            .open(&request)
            .unwrap();
        let options = SnapshotOptions {
            reserve_bytes: 0,
            command_version_max: 9,
            ..SnapshotOptions::new(opened.identity.cluster, opened.identity.group)
        };
        let (store, _) =
            SnapshotStore::open(fs, &dir.path().join("data/snapshots"), options).unwrap();
        let OpenedStorage { identity, meta, log, recovered, report } = opened;
        Self { dir, opened: Opened { identity, log, recovered, report }, meta: Some(meta), store }
    }

    /// The same directory after a restart.
    pub(crate) fn again(self) -> Self {
        drop((self.opened, self.meta, self.store));
        Self::at(self.dir)
    }

    /// The state from which a node starts in this directory.
    pub(crate) fn start(&mut self) -> Start<'_> {
        Start {
            identity: &self.opened.identity,
            log: self.opened.log.as_mut(),
            recovered: &mut self.opened.recovered,
            snapshots: &self.store,
        }
    }
}
