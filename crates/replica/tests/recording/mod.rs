//! A real, small state machine that writes down every call: a list of numbers, their sum as the reply.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_core::{EntryKind, LogIndex, Term};
use d_engine_replica::{
    Durability, Entry, Error, LogId, Result, SnapshotMetadata, StateMachine, snapshot_checksum,
};
use d_engine_storage::{EntryHead, LogEntry, RecoveredLog};

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
