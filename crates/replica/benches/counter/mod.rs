//! A real state machine of negligible cost: it counts how often each key was named.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_locks::Unpoisoned;
use d_engine_replica::{Entry, Error, LogId, Result, SnapshotMetadata, StateMachine};

#[derive(Default)]
pub(crate) struct Counter {
    counts: Mutex<BTreeMap<Bytes, u64>>,
}

impl Counter {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<Bytes, u64>> {
        self.counts.lock().unpoisoned()
    }
}

#[async_trait]
impl StateMachine for Counter {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let count = self.counts().get(key).copied();
        Ok(count.map(|count| Bytes::copy_from_slice(&count.to_le_bytes())))
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut counts = self.counts();
        for entry in &chunk {
            let count = counts.entry(entry.data.clone()).or_default();
            *count += 1;
            entry.reply(count.to_le_bytes().to_vec());
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.counts().len()
    }

    async fn apply_snapshot_from_file(
        &self,
        _meta: &SnapshotMetadata,
        _path: PathBuf,
    ) -> Result<()> {
        Err(Error::msg("the counter has no snapshots"))
    }

    async fn generate_snapshot_data(
        &self,
        _dir: PathBuf,
        _last_included: LogId,
    ) -> Result<[u8; 32]> {
        Err(Error::msg("the counter has no snapshots"))
    }

    async fn reset(&self) -> Result<()> {
        self.counts().clear();
        Ok(())
    }
}
