//! The scrub thread: reads the node's log and snapshots once a day, slowly, and reports damage to
//! the replica.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use d_engine_replica::{Event, Scrubber};
use d_engine_storage::LogStore;
use d_engine_storage::snapshot::SnapshotStore;

use crate::StartError;
use crate::config::Snapshots;
use crate::threads::building::SnapshotWork;
use crate::threads::inbox::Inbox;
use crate::threads::pace::Throttle;
use crate::threads::scrub_end::ScrubEnd;
use crate::threads::shared::Shared;
use crate::threads::work_queue::{Found, WorkQueue};
use crate::threads::workers::{guarded, start_thread};

/// The time from the end of one round to the beginning of the next.
const ROUND_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// The first round comes later, because a start has just read most of the data.
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

impl ScrubThread {
    /// Creates the thread for the node's log and snapshots; `None` if the settings disable the
    /// scrub.
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

    /// Runs one round. Returns false if the node stops.
    fn round(&self) -> bool {
        let mut pace =
            Throttle::new(self.bytes_per_second, |_| !self.end.stops.load(Ordering::Acquire));
        self.scrubber.round(&mut pace, &mut |event| {
            if matches!(event, Event::SnapshotDamaged { .. }) && self.store.newest_whole().is_some()
            {
                // An intact snapshot replaces the damaged one, which may be removed.
                self.snapshots.put(|work| work.prune = true);
            }
            self.inbox.report(event);
        })
    }
}
