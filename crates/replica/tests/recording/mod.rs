//! A real, small state machine that writes down every call: a list of numbers, their sum as the reply.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, LogIndex, NodeId, Term};
use d_engine_replica::{
    Durability, Entry, Error, LogId, Result, SnapshotMetadata, Start, StateMachine, snapshot_checksum,
};
use d_engine_storage::snapshot::{SnapshotOptions, SnapshotStore};
use d_engine_storage::{
    ClusterId, EntryHead, FileStorageEngine, FileStorageOptions, Fs, Incarnation, LogEntry, Member,
    MemberRole, Membership, OpenRequest, OpenedStorage, RealFs, RecoveredLog, StorageEngine,
};

#[derive(Default)]
pub(crate) struct Recording {
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) numbers: Mutex<Vec<u8>>,
    pub(crate) durable_at: Option<LogId>,
    pub(crate) says_term: Option<u64>,
    pub(crate) snapshot: Mutex<Option<SnapshotMetadata>>,
    /// `apply_chunk` fails when it meets this number.
    pub(crate) fails_at: Option<u8>,
}

impl Recording {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[async_trait]
impl StateMachine for Recording {
    fn start(&self) -> Result<()> {
        self.note("start");
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        self.note("stop");
        Ok(())
    }

    fn is_running(&self) -> bool {
        true
    }

    fn get(&self, _key: &[u8]) -> Result<Option<Bytes>> {
        Ok(None)
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        self.note(format!("entry_term {entry_id}"));
        self.says_term
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let indexes: Vec<u64> = chunk.iter().map(|entry| entry.index).collect();
        self.note(format!("apply_chunk {indexes:?}"));
        let mut numbers = self.numbers.lock().unwrap();
        let mut next = numbers.clone();
        for entry in &chunk {
            let number = entry.data[0];
            next.push(number);
            entry.reply(vec![next.iter().sum()]);
            if Some(number) == self.fails_at {
                return Err(Error::msg("the backend is gone"));
            }
        }
        *numbers = next;
        Ok(())
    }

    fn len(&self) -> usize {
        self.numbers.lock().unwrap().len()
    }

    fn update_last_applied(&self, last: LogId) {
        self.note(format!("update_last_applied {}", last.index));
    }

    fn last_applied(&self) -> LogId {
        self.note("last_applied");
        self.durable_at.unwrap_or_default()
    }

    fn persist_last_applied(&self, last: LogId) -> Result<()> {
        self.note(format!("persist_last_applied {}", last.index));
        Ok(())
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.note(format!("update_last_snapshot_metadata {}", meta.last_included.index));
        *self.snapshot.lock().unwrap() = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.snapshot.lock().unwrap().clone()
    }

    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.note(format!("persist_last_snapshot_metadata {}", meta.last_included.index));
        Ok(())
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.note(format!("apply_snapshot_from_file {}", meta.last_included.index));
        if snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg("wrong checksum"));
        }
        *self.numbers.lock().unwrap() = std::fs::read(path.join("numbers"))?;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        self.note(format!("generate_snapshot_data {}", last_included.index));
        std::fs::write(dir.join("numbers"), &*self.numbers.lock().unwrap())?;
        Ok(snapshot_checksum(&dir)?)
    }

    fn save_hard_state(&self) -> Result<()> {
        self.note("save_hard_state");
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.note("flush");
        Ok(())
    }

    async fn reset(&self) -> Result<()> {
        self.note("reset");
        self.numbers.lock().unwrap().clear();
        Ok(())
    }

    fn durability(&self) -> Durability {
        if self.durable_at.is_some() { Durability::Durable } else { Durability::Rebuilt }
    }

    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        self.note(format!("advance_time {} {time_ms}", at.index));
        Ok(())
    }
}

pub(crate) fn id(term: u64, index: u64) -> d_engine_core::LogId {
    d_engine_core::LogId::new(Term::new(term), LogIndex::new(index))
}

pub(crate) fn at(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

/// An entry of term 1 at `index`; commands carry one number.
pub(crate) fn entry(index: u64, kind: EntryKind, number: u8) -> LogEntry {
    LogEntry {
        id: id(1, index),
        kind,
        time_ms: 1_000 + index,
        session: None,
        data: Bytes::from(vec![number]),
    }
}

/// A recovered log of `last` entries of term 1.
pub(crate) fn recovered(last: u64) -> RecoveredLog {
    let head = |index| EntryHead { id: id(1, index), kind: EntryKind::Command, time_ms: 0, data_len: 1 };
    RecoveredLog { entries: (1..=last).map(head).collect(), ..RecoveredLog::default() }
}

/// A data directory of a node alone, on the real file system: log and snapshots.
pub(crate) struct Ground {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) opened: OpenedStorage,
    pub(crate) store: SnapshotStore,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    pub(crate) fn at(dir: tempfile::TempDir) -> Self {
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
            fresh_incarnation: Incarnation([2; 16]),
        };
        let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
        let options = FileStorageOptions { segment_bytes: 64 << 10, ..FileStorageOptions::default() };
        let opened =
            FileStorageEngine::new(dir.path().join("data"), options, fs.clone()).open(&request).unwrap();
        let options = SnapshotOptions {
            reserve_bytes: 0,
            ..SnapshotOptions::new(opened.identity.cluster, opened.identity.group)
        };
        let (store, _) = SnapshotStore::open(fs, &dir.path().join("data/snapshots"), options).unwrap();
        Self { dir, opened, store }
    }

    /// The same directory after a restart.
    pub(crate) fn again(self) -> Self {
        drop((self.opened, self.store));
        Self::at(self.dir)
    }

    /// What a node starts from here.
    pub(crate) fn start(&mut self) -> Start<'_> {
        Start {
            identity: &self.opened.identity,
            log: self.opened.log.as_mut(),
            recovered: &mut self.opened.recovered,
            snapshots: &self.store,
        }
    }
}
