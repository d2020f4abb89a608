//! The scrub thread: reads what the node has stored once a day, slowly, and tells the replica what no longer verifies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use d_engine_replica::{Event, Scrubber};
use d_engine_storage::LogStore;
use d_engine_storage::snapshot::SnapshotStore;

use crate::StartError;
use crate::config::Snapshots;
use crate::inbox::Inbox;
use crate::pace::Throttle;
use crate::raft_thread::Shared;
use crate::snapshot_thread::SnapshotWork;
use crate::worker_threads::{Found, WorkQueue, guarded, start_thread};

/// From the end of one round to the beginning of the next.
const ROUND_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// A start has just read most of it.
const FIRST_ROUND_AFTER: Duration = Duration::from_secs(3_600);

/// What the scrub thread needs.
pub(crate) struct ScrubThread {
    scrubber: Scrubber,
    store: SnapshotStore,
    bytes_per_second: u64,
    inbox: Arc<Inbox>,
    snapshots: Arc<WorkQueue<SnapshotWork>>,
    end: Arc<ScrubEnd>,
}

/// Ends the scrub thread, wherever it is.
pub(crate) struct ScrubEnd {
    stops: AtomicBool,
    queue: WorkQueue<()>,
}

impl Default for ScrubEnd {
    fn default() -> Self {
        Self { stops: AtomicBool::new(false), queue: WorkQueue::new() }
    }
}

impl ScrubEnd {
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
        self.queue.close();
    }
}

impl ScrubThread {
    /// Over what the node has stored; `None` if the settings say that nothing is looked through.
    pub(crate) fn over(
        shared: &Shared,
        log: &dyn LogStore,
        settings: &Snapshots,
        snapshots: &Arc<WorkQueue<SnapshotWork>>,
    ) -> Option<Self> {
        (settings.scrub_bytes_per_second > 0).then(|| Self {
            scrubber: Scrubber::new(log.reader(), shared.group, shared.snapshots.clone()),
            store: shared.snapshots.clone(),
            bytes_per_second: settings.scrub_bytes_per_second,
            inbox: shared.inbox.clone(),
            snapshots: snapshots.clone(),
            end: shared.scrub_end.clone(),
        })
    }

    pub(crate) fn start(self, name: String) -> Result<JoinHandle<()>, StartError> {
        let run = move || {
            guarded("scrub", &self.inbox, || {
                self.run();
                Ok(())
            });
        };
        start_thread(name, run).map_err(StartError::Thread)
    }

    fn run(&self) {
        let mut wait = FIRST_ROUND_AFTER;
        loop {
            if let Found::Closed(()) = self.end.queue.take(Some(wait)) {
                return;
            }
            if !self.round() {
                return;
            }
            wait = ROUND_EVERY;
        }
    }

    /// Returns whether the node goes on.
    fn round(&self) -> bool {
        let mut pace = Throttle::new(self.bytes_per_second, |_| !self.end.stops.load(Ordering::Acquire));
        self.scrubber.round(&mut pace, &mut |event| {
            if matches!(event, Event::SnapshotDamaged { .. }) && self.store.newest_whole().is_some() {
                // Another one takes its place.
                self.snapshots.put(|work| work.prune = true);
            }
            self.inbox.report(event);
        })
    }
}
