//! A real state machine that costs next to nothing: how often each key was named.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_replica::{Entry, Error, LogId, Result, SnapshotMetadata, StateMachine};

#[derive(Default)]
pub(crate) struct Counter {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<Bytes, u64>,
    applied: LogId,
}

impl Counter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl StateMachine for Counter {
    fn start(&self) -> Result<()> {
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        Ok(())
    }

    fn is_running(&self) -> bool {
        true
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let count = self.state().counts.get(key).copied();
        Ok(count.map(|count| Bytes::copy_from_slice(&count.to_le_bytes())))
    }

    fn entry_term(&self, _entry_id: u64) -> Option<u64> {
        None
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut state = self.state();
        for entry in &chunk {
            let count = state.counts.entry(entry.data.clone()).or_default();
            *count += 1;
            entry.reply(count.to_le_bytes().to_vec());
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.state().counts.len()
    }

    fn update_last_applied(&self, last: LogId) {
        self.state().applied = last;
    }

    fn last_applied(&self) -> LogId {
        self.state().applied
    }

    fn persist_last_applied(&self, _last: LogId) -> Result<()> {
        Ok(())
    }

    fn update_last_snapshot_metadata(&self, _meta: &SnapshotMetadata) -> Result<()> {
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        None
    }

    fn persist_last_snapshot_metadata(&self, _meta: &SnapshotMetadata) -> Result<()> {
        Ok(())
    }

    async fn apply_snapshot_from_file(&self, _meta: &SnapshotMetadata, _path: PathBuf) -> Result<()> {
        Err(Error::msg("the counter has no snapshots"))
    }

    async fn generate_snapshot_data(&self, _dir: PathBuf, _last_included: LogId) -> Result<[u8; 32]> {
        Err(Error::msg("the counter has no snapshots"))
    }

    fn save_hard_state(&self) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn reset(&self) -> Result<()> {
        *self.state() = State::default();
        Ok(())
    }
}
