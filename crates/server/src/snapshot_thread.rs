//! The snapshot thread: writes frozen views, packs archives and removes old ones, beside apply and the log.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use d_engine_replica::{SnapshotTask, StopReason};
use d_engine_storage::snapshot::{Pace, SnapshotInfo, SnapshotStore};

use crate::StartError;
use crate::apply_thread::ApplyWork;
use crate::inbox::Inbox;
use crate::worker_threads::{Found, WorkQueue, guarded};

/// Work for the snapshot thread. One snapshot at a time is begun.
#[derive(Default)]
pub(crate) struct SnapshotWork {
    pub(crate) task: Option<SnapshotTask>,
    /// A new one is durable and the state machine knows of it: the oldest may go.
    pub(crate) prune: bool,
}

/// What the building of snapshots has come to, for the node's status.
#[derive(Default)]
pub(crate) struct BuildProgress {
    /// Bytes packed of the snapshot being built.
    pub(crate) packed: AtomicU64,
    pub(crate) is_building: AtomicBool,
    /// For how long apply has waited for the newest one, in microseconds.
    pub(crate) paused_us: AtomicU64,
    pub(crate) built: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Payload bytes applied since the newest snapshot.
    pub(crate) log_bytes: AtomicU64,
    stops: AtomicBool,
}

impl BuildProgress {
    /// The work under way is given up: the node shuts down.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
    }
}

/// Holds the work to a number of bytes a second, and ends it when the node stops.
struct Throttle<'a> {
    progress: &'a BuildProgress,
    bytes_per_second: u64,
    began: Instant,
    bytes: u64,
}

impl Pace for Throttle<'_> {
    fn step(&mut self, bytes: u64) -> ControlFlow<()> {
        self.bytes += bytes;
        self.progress.packed.store(self.bytes, Ordering::Relaxed);
        loop {
            if self.progress.stops.load(Ordering::Acquire) {
                return ControlFlow::Break(());
            }
            let due = (self.bytes.saturating_mul(1_000)).checked_div(self.bytes_per_second).unwrap_or(0);
            let early = Duration::from_millis(due).saturating_sub(self.began.elapsed());
            if early.is_zero() {
                return ControlFlow::Continue(());
            }
            std::thread::sleep(early.min(Duration::from_millis(50)));
        }
    }
}

/// What the snapshot thread needs.
pub(crate) struct SnapshotThread {
    pub(crate) store: SnapshotStore,
    pub(crate) bytes_per_second: u64,
    pub(crate) queue: Arc<WorkQueue<SnapshotWork>>,
    pub(crate) apply: Arc<WorkQueue<ApplyWork>>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) progress: Arc<BuildProgress>,
}

impl SnapshotThread {
    /// Starts the thread. It ends when its queue is closed; what it is at then is given up.
    pub(crate) fn start(self, name: String) -> Result<JoinHandle<()>, StartError> {
        let run = move || guarded("snapshot", &self.inbox, || self.run());
        Builder::new().name(name).spawn(run).map_err(StartError::Thread)
    }

    fn run(&self) -> Result<(), StopReason> {
        loop {
            let work = match self.queue.take(None) {
                Found::Work(work) => work,
                Found::Closed(_) => return Ok(()),
                Found::Idle => continue,
            };
            if work.prune
                && let Err(error) = self.store.prune(1, &[])
            {
                tracing::warn!(%error, "old snapshots could not be removed");
            }
            if let Some(task) = work.task {
                let built = self.build(task);
                self.apply.put(|work| work.built = Some(built));
            }
        }
    }

    fn build(&self, task: SnapshotTask) -> Result<SnapshotInfo, StopReason> {
        let progress = &self.progress;
        progress.is_building.store(true, Ordering::Relaxed);
        let (label, began) = (task.label(), Instant::now());
        let bytes_per_second = self.bytes_per_second;
        let mut pace = Throttle { progress, bytes_per_second, began, bytes: 0 };
        let built = task.build(&self.store, &mut pace);
        progress.is_building.store(false, Ordering::Relaxed);
        match &built {
            Ok(info) => {
                progress.built.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%label, bytes = info.len, ms = began.elapsed().as_millis(), "snapshot built");
            }
            Err(_) => {
                progress.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        built
    }
}
