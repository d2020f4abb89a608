//! A state machine that fails on request.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_kv::{KvCommand, KvStateMachine};
use d_engine_replica::{Entry, Error, LogId, Result, SnapshotMetadata, StateMachine};

/// The key-value machine, which fails or panics on request.
pub(crate) struct Failing {
    machine: KvStateMachine,
    is_mended: bool,
}

impl Failing {
    pub(crate) fn new() -> Self {
        Self { machine: KvStateMachine::new(), is_mended: false }
    }

    /// A newer program, which applies the commands at which others fail, as records of its own.
    pub(crate) fn mended() -> Self {
        Self { is_mended: true, ..Self::new() }
    }

    /// Applies the entries before `end` in the same chunk, as a careless machine would.
    async fn apply_some(&self, chunk: Vec<Entry>, end: usize) -> Result<()> {
        let some: Vec<Entry> = chunk.into_iter().take(end).collect();
        if some.is_empty() { Ok(()) } else { self.machine.apply_chunk(some).await }
    }
}

#[async_trait]
impl StateMachine for Failing {
    fn start(&self) -> Result<()> {
        self.machine.start()
    }
    fn stop(&self) -> Result<()> {
        self.machine.stop()
    }
    fn is_running(&self) -> bool {
        self.machine.is_running()
    }
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        assert!(key != b"panic", "as asked");
        self.machine.get(key)
    }
    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        self.machine.entry_term(entry_id)
    }
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let fails =
            |entry: &Entry| entry.data == "panic" || (entry.data == "bad" && !self.is_mended);
        match chunk.iter().position(fails) {
            None => {
                let apply = |mut entry: Entry| {
                    if entry.data == "bad" {
                        entry.data = KvCommand::put("bad", "applied").encode();
                    }
                    entry
                };
                self.machine.apply_chunk(chunk.into_iter().map(apply).collect()).await
            }
            Some(at) => {
                let panics = chunk.get(at).is_some_and(|entry| entry.data == "panic");
                self.apply_some(chunk, at).await?;
                assert!(!panics, "as asked");
                Err(Error::msg("it is bad, as asked"))
            }
        }
    }
    fn len(&self) -> usize {
        self.machine.len()
    }
    fn update_last_applied(&self, last: LogId) {
        self.machine.update_last_applied(last);
    }
    fn last_applied(&self) -> LogId {
        self.machine.last_applied()
    }
    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.machine.update_last_snapshot_metadata(meta)
    }
    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.machine.snapshot_metadata()
    }
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.machine.apply_snapshot_from_file(meta, path).await
    }
    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        assert!(self.machine.get(b"cursed")?.is_none(), "as asked");
        self.machine.generate_snapshot_data(dir, last_included).await
    }
    async fn reset(&self) -> Result<()> {
        self.machine.reset().await
    }
}
