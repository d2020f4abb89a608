//! Watches an import: its progress, and which leader acknowledges after the first leader was
//! killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use d_engine_client::Client;
use d_engine_locks::Unpoisoned;
use tokio::sync::Notify;

use crate::exit::Failure;
use crate::import::{Import, Record};

/// Watches an import through a failover.
pub(super) struct Failover {
    client: Client,
    /// Number of acknowledged records at which `threshold_reached` is notified.
    threshold: usize,
    threshold_reached: Notify,
    /// The address of the leader that was killed, and whether it was.
    killed: OnceLock<String>,
    is_killed: AtomicBool,
    /// When another leader acknowledged the first record, and its address.
    succeeded: Mutex<Option<(Instant, String)>>,
    has_succeeded: Notify,
}

impl Failover {
    pub(super) fn new(client: Client, threshold: usize) -> Arc<Self> {
        Arc::new(Self {
            client,
            threshold,
            threshold_reached: Notify::new(),
            killed: OnceLock::new(),
            is_killed: AtomicBool::new(false),
            succeeded: Mutex::new(None),
            has_succeeded: Notify::new(),
        })
    }

    /// Records an acknowledgement, the `acknowledged`th.
    ///
    /// A late response of the killed leader does not count: the client then still names it as the
    /// leader.
    pub(super) fn on_acknowledged(&self, acknowledged: usize) {
        if acknowledged == self.threshold {
            self.threshold_reached.notify_one();
        }
        if !self.is_killed.load(Ordering::Acquire) {
            return;
        }
        let mut succeeded = self.succeeded.lock().unpoisoned();
        if succeeded.is_some() {
            return;
        }
        if let Some(leader) = self.client.leader()
            && self.killed.get() != Some(&leader)
        {
            *succeeded = Some((Instant::now(), leader));
            self.has_succeeded.notify_one();
        }
    }

    /// Waits until the threshold is reached.
    pub(super) async fn threshold_reached(&self, import: &mut Import) -> Result<(), Failure> {
        import.until(&self.threshold_reached).await
    }

    /// Records that the leader at this address is about to be killed.
    pub(super) fn leader_dies(&self, address: &str) {
        self.killed.set(address.to_owned()).ok();
        self.is_killed.store(true, Ordering::Release);
    }

    /// Waits until another leader has acknowledged a record; returns the time and the leader's
    /// address.
    pub(super) async fn succeeded(
        &self,
        import: &mut Import,
        records: &[Record],
    ) -> Result<(Instant, String), Failure> {
        import.until(&self.has_succeeded).await?;
        if self.successor().is_none()
            && let Some(record) = records.first()
        {
            // Everything was imported before the kill took effect: put one record again, with the
            // same value.
            import.put(record).await?;
            self.on_acknowledged(import.acknowledged());
        }
        self.successor().ok_or_else(|| Failure::failed("no new leader acknowledged a record"))
    }

    fn successor(&self) -> Option<(Instant, String)> {
        self.succeeded.lock().unpoisoned().clone()
    }
}
