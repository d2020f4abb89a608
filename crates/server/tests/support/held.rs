//! A key-value machine whose calls a test can block.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_replica::{Entry, LogId, Result, SnapshotMetadata, StateMachine};

/// Lets calls pass, or blocks them.
#[derive(Default)]
pub(crate) struct Gate {
    is_closed: Mutex<bool>,
    /// The number of calls so far.
    calls: AtomicUsize,
    opened: Condvar,
}

impl Gate {
    /// Blocks calls until the returned value is dropped, so that a failed test does not hang.
    #[must_use]
    pub(crate) fn close(&self) -> Closed<'_> {
        *self.is_closed.lock().unwrap() = true;
        Closed { gate: self, calls: self.calls.load(Ordering::Acquire) }
    }

    fn pass(&self) {
        self.calls.fetch_add(1, Ordering::Release);
        let is_closed = self.is_closed.lock().unwrap();
        drop(self.opened.wait_while(is_closed, |is_closed| *is_closed).unwrap());
    }
}

/// A closed gate.
pub(crate) struct Closed<'a> {
    gate: &'a Gate,
    /// The number of calls before it was closed.
    calls: usize,
}

impl Closed<'_> {
    /// Returns once a call is blocked. Panics if none comes within 20 seconds.
    #[allow(dead_code, reason = "not every test waits for a call")]
    pub(crate) async fn blocks_a_call(&self) {
        let comes = async {
            while self.gate.calls.load(Ordering::Acquire) == self.calls {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), comes).await.expect("no call came");
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        *self.gate.is_closed.lock().unwrap() = false;
        self.gate.opened.notify_all();
    }
}

/// The wrapped machine.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) kv: KvStateMachine,
    pub(crate) apply: Gate,
    pub(crate) len: Gate,
    pub(crate) get: Gate,
}

#[async_trait]
impl StateMachine for Held {
    fn start(&self) -> Result<()> {
        self.kv.start()
    }
    fn stop(&self) -> Result<()> {
        self.kv.stop()
    }
    fn is_running(&self) -> bool {
        self.kv.is_running()
    }
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.get.pass();
        self.kv.get(key)
    }
    fn reads_block(&self) -> bool {
        true
    }
    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        self.kv.entry_term(entry_id)
    }
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        self.apply.pass();
        self.kv.apply_chunk(chunk).await
    }
    fn len(&self) -> usize {
        self.len.pass();
        self.kv.len()
    }
    fn update_last_applied(&self, last: LogId) {
        self.kv.update_last_applied(last);
    }
    fn last_applied(&self) -> LogId {
        self.kv.last_applied()
    }
    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.kv.update_last_snapshot_metadata(meta)
    }
    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.kv.snapshot_metadata()
    }
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.kv.apply_snapshot_from_file(meta, path).await
    }
    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        self.kv.generate_snapshot_data(dir, last_included).await
    }
    async fn reset(&self) -> Result<()> {
        self.kv.reset().await
    }
}
