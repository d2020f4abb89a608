//! The key-value state machine: the store under a lock, with its position.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_fs::{Fs, RealFs};
use d_engine_kv_language::{KvCommand, KvQuery, KvReply, MACHINE_NAME};
use d_engine_locks::Unpoisoned;
use d_engine_state_machine::{
    Entry, LogId, Result, SnapshotMetadata, SnapshotRoom, SnapshotView, StateMachine,
    snapshot_checksum_in,
};

use crate::snapshot;
use crate::snapshot_file::{SnapshotFileError, check_files, file_bytes};
use crate::store::Store;

/// Ordered keys in memory, rebuilt from snapshot and log at every start
/// ([`Rebuilt`](d_engine_state_machine::Durability::Rebuilt)).
///
/// Commands are [`KvCommand`], replies [`KvReply`], and queries ([`StateMachine::query`])
/// [`KvQuery`]. Bytes that are not a command of this version get the reply [`KvReply::Rejected`]
/// and change nothing, because a client that may propose must not be able to stop a node. A format
/// that older nodes would reject may therefore be used only once every member reads it.
///
/// Keys with a time to live expire by log time alone: every applied entry advances log time, and on
/// an idle log the leader's ticks do. No read uses a clock, so all replicas have the same keys at
/// the same log position.
#[derive(Debug)]
pub struct KvStateMachine {
    fs: Arc<dyn Fs>,
    state: RwLock<State>,
    running: AtomicBool,
}

impl Default for KvStateMachine {
    fn default() -> Self {
        Self::with_fs(Arc::new(RealFs::new()))
    }
}

/// Everything that changes together. One lock, so that a reader sees data and position of the same
/// moment.
#[derive(Debug, Default)]
struct State {
    store: Store,
    last_applied: LogId,
    snapshot: Option<SnapshotMetadata>,
}

impl KvStateMachine {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty machine whose snapshot files go through `fs`.
    #[must_use]
    pub fn with_fs(fs: Arc<dyn Fs>) -> Self {
        Self { fs, state: RwLock::default(), running: AtomicBool::new(false) }
    }

    /// SHA-256 over log time and all records with their expiries. Equal on all replicas that have
    /// applied the same entries.
    #[must_use]
    pub fn state_hash(&self) -> [u8; 32] {
        self.read().store.hash()
    }

    /// Position and hash at one moment, for comparing replicas while entries are applied.
    #[must_use]
    pub fn position_and_hash(&self) -> (LogId, [u8; 32]) {
        let state = self.read();
        (state.last_applied, state.store.hash())
    }

    /// A copy of the current state. The lock is held only while two reference counts are raised.
    fn freeze(&self) -> View {
        let state = self.read();
        View {
            fs: Arc::clone(&self.fs),
            last_included: state.last_applied,
            store: state.store.clone(),
        }
    }

    // Nothing in this file panics while it holds the lock, so a poisoned lock still guards whole
    // entries; a reader must not fail because another thread panicked.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unpoisoned()
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unpoisoned()
    }
}

/// A frozen state that is being written into a snapshot: records, expiries, log time and position
/// of one moment. It shares every unchanged record with the machine. The last owner of a record
/// frees it, so records that were replaced in the meantime are freed with the view, on the thread
/// that wrote it.
struct View {
    fs: Arc<dyn Fs>,
    last_included: LogId,
    store: Store,
}

impl SnapshotView for View {
    fn last_included(&self) -> LogId {
        self.last_included
    }

    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]> {
        self.write_within(dir, &SnapshotRoom::unlimited())
    }

    fn write_within(self: Box<Self>, dir: &Path, room: &SnapshotRoom<'_>) -> Result<[u8; 32]> {
        snapshot::write(&*self.fs, dir, self.last_included, &self.store, room)?;
        Ok(snapshot_checksum_in(&*self.fs, dir)?)
    }
}

#[async_trait]
impl StateMachine for KvStateMachine {
    /// Discards the state of an earlier start of this value: the machine is rebuilt.
    fn start(&self) -> Result<()> {
        let before = std::mem::take(&mut *self.write());
        drop(before);
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        self.running.store(false, Ordering::Release);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.read().store.get(key))
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        let state = self.read();
        let snapshot = state.snapshot.as_ref().map(|meta| meta.last_included);
        let known = [Some(state.last_applied), snapshot];
        known
            .into_iter()
            .flatten()
            .find(|id| id.index == entry_id && id.index > 0)
            .map(|id| id.term.get())
    }

    /// Takes one write lock for the chunk: commands are decoded before it and replies sent after
    /// it. Each command sees the effects of the previous one.
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let commands: Vec<_> = chunk.iter().map(|entry| KvCommand::decode(&entry.data)).collect();
        let mut replies = Vec::with_capacity(chunk.len());
        {
            let mut state = self.write();
            for (entry, command) in chunk.iter().zip(&commands) {
                if state.last_applied.index >= entry.index {
                    continue;
                }
                let reply = match command {
                    Ok(command) => state.store.apply(command, entry.time_ms()),
                    Err(error) => {
                        state.store.pass_time(entry.time_ms());
                        KvReply::Rejected { reason: error.to_string() }
                    }
                };
                state.last_applied = entry.id();
                replies.push((entry, reply));
            }
        }
        for (entry, reply) in replies {
            entry.reply(reply.encode());
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.read().store.len()
    }

    fn update_last_applied(&self, last: LogId) {
        let mut state = self.write();
        if last.index > state.last_applied.index {
            state.last_applied = last;
        }
    }

    fn last_applied(&self) -> LogId {
        self.read().last_applied
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.write().snapshot = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.read().snapshot.clone()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        check_files(&*self.fs, meta, &path)?;
        let mut store = snapshot::read(&*self.fs, &path, meta.last_included)?;
        let mut state = self.write();
        std::mem::swap(&mut state.store, &mut store);
        state.last_applied = meta.last_included;
        // Drop the old records after releasing the lock: that may take long.
        drop(state);
        drop(store);
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        let view = self.freeze();
        if view.last_included > last_included {
            let error =
                SnapshotFileError::OtherLastIncluded { state: view.last_included, last_included };
            return Err(error.into());
        }
        Box::new(View { last_included, ..view }).write(&dir)
    }

    async fn reset(&self) -> Result<()> {
        // Drop after releasing the lock: that may take long.
        let before = std::mem::take(&mut *self.write());
        drop(before);
        Ok(())
    }

    fn name(&self) -> &str {
        MACHINE_NAME
    }

    fn check(&self, command: &[u8]) -> Result<()> {
        Ok(KvCommand::check(command)?)
    }

    fn snapshot_bytes(&self) -> Option<u64> {
        Some(file_bytes(self.read().store.content_bytes()))
    }

    /// Always returns a view: copying the map costs nothing, and later changes are made to new
    /// nodes of it.
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        Ok(Some(Box::new(self.freeze())))
    }

    /// Runs a [`KvQuery`] and returns a [`KvQueryReply`](d_engine_kv_language::KvQueryReply). The
    /// response is encoded after the lock is released.
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let query = KvQuery::decode(request)?;
        let answer = self.read().store.answer(&query)?;
        Ok(answer.encode())
    }

    fn next_expiry_ms(&self) -> Option<u64> {
        self.read().store.next_expiry_ms()
    }

    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        let mut state = self.write();
        if at.index > state.last_applied.index {
            state.store.advance_to(time_ms);
            state.last_applied = at;
        }
        Ok(())
    }
}
