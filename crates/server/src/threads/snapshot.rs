//! The snapshot thread: writes frozen views, packs archives and removes old ones, concurrently with
//! apply and the log.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use d_engine_replica::{ApplyWork, SnapshotTask, StateMachine, StopReason};
use d_engine_storage::snapshot::{SnapshotInfo, SnapshotStore};

use crate::StartError;
use crate::config::Snapshots;
use crate::snapshots::Exchange;
use crate::threads::building::{BuildProgress, SnapshotWork};
use crate::threads::inbox::Inbox;
use crate::threads::pace::Throttle;
use crate::threads::shared::Shared;
use crate::threads::work_queue::{Found, WorkQueue};
use crate::threads::workers::{guarded, start_thread};

/// What the snapshot thread needs.
pub(crate) struct SnapshotThread {
    store: SnapshotStore,
    bytes_per_second: u64,
    queue: Arc<WorkQueue<SnapshotWork>>,
    apply: Arc<WorkQueue<ApplyWork>>,
    inbox: Arc<Inbox>,
    progress: Arc<BuildProgress>,
    exchange: Arc<Exchange>,
    machine: Arc<dyn StateMachine>,
    /// How often the machine is scrubbed.
    scrubs_every: Duration,
}

/// How often the state machine's scrub is called.
const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3_600);

/// How soon the scrub is retried if it could not read the disk.
const SCRUB_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// When the next scrub is due.
struct Scrubs {
    every: Duration,
    due: Instant,
}

impl Scrubs {
    fn every(every: Duration, now: Instant) -> Self {
        Self { every, due: now + every }
    }

    fn left(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Calls the machine's scrub if it is due. An error stops the node.
    fn run(&mut self, now: Instant, machine: &dyn StateMachine) -> Result<(), StopReason> {
        if now < self.due {
            return Ok(());
        }
        self.due = now + self.every;
        let Err(error) = machine.scrub() else { return Ok(()) };
        let text = error.to_string();
        if is_of_the_disk(&*error.into_boxed()) {
            tracing::warn!(
                error = text,
                "the state machine's scrub could not read the disk; it is retried in an hour"
            );
            self.due = now + SCRUB_AGAIN_AFTER;
            return Ok(());
        }
        Err(StopReason::new(format_args!(
            "the scrub of the state machine's stored data failed: {text}; check this disk, and start \
             the node again"
        )))
    }
}

/// Whether the disk could not be read, which is no evidence of damage.
fn is_of_the_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let failed = causes.find_map(|cause| cause.downcast_ref::<io::Error>());
    failed.is_some_and(|error| {
        !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
    })
}

impl SnapshotThread {
    /// A thread that takes its work from `queue`, not started yet.
    pub(crate) fn new(
        shared: &Shared,
        machine: Arc<dyn StateMachine>,
        settings: &Snapshots,
        queue: Arc<WorkQueue<SnapshotWork>>,
    ) -> Self {
        Self {
            store: shared.snapshots.clone(),
            bytes_per_second: settings.build_bytes_per_second,
            queue,
            apply: shared.apply.clone(),
            inbox: shared.inbox.clone(),
            progress: shared.building.clone(),
            exchange: shared.exchange.clone(),
            machine,
            scrubs_every: SCRUB_EVERY,
        }
    }

    /// Starts the thread. It ends when its queue is closed and cancels what it is doing then.
    pub(crate) fn start(self, name: String) -> Result<JoinHandle<()>, StartError> {
        let run = move || guarded("snapshot", &self.inbox, || self.run());
        start_thread(name, run).map_err(StartError::Thread)
    }

    fn run(&self) -> Result<(), StopReason> {
        let mut scrubs = Scrubs::every(self.scrubs_every, Instant::now());
        loop {
            let work = match self.queue.take(Some(scrubs.left(Instant::now()))) {
                Found::Work(work) => work,
                Found::Closed(_) => return Ok(()),
                Found::Idle => {
                    scrubs.run(Instant::now(), self.machine.as_ref())?;
                    continue;
                }
            };
            if work.prune {
                self.prune();
            }
            if let Some(task) = work.task {
                let built = self.build(task);
                self.apply.put(|work| work.built = Some(built));
            }
        }
    }

    /// Removes snapshots that newer ones replace, except those that are being sent.
    fn prune(&self) {
        if let Err(error) = self.store.prune(1, &self.exchange.archives_in_use()) {
            tracing::warn!(%error, "old snapshots could not be removed");
        }
    }

    fn build(&self, task: SnapshotTask) -> Result<SnapshotInfo, StopReason> {
        let progress = &self.progress;
        progress.packed.store(0, Ordering::Relaxed);
        progress.is_building.store(true, Ordering::Relaxed);
        let (last_included, began) = (task.last_included(), Instant::now());
        let mut pace = Throttle::new(self.bytes_per_second, |bytes| {
            progress.packed.store(bytes, Ordering::Relaxed);
            !progress.stops.load(Ordering::Acquire)
        });
        let built = task.build(&self.store, &mut pace);
        progress.is_building.store(false, Ordering::Relaxed);
        if let Ok(info) = &built {
            progress.built.fetch_add(1, Ordering::Relaxed);
            progress.clear_failure();
            if !self.store.may_travel(info) {
                tracing::error!(
                    %last_included, bytes = info.len,
                    "the snapshot is longer than snapshots.max_bytes, so no node accepts it and \
                     the log is not purged up to it; raise snapshots.max_bytes on all nodes"
                );
            }
            tracing::info!(%last_included, bytes = info.len, ms = began.elapsed().as_millis(), "snapshot built");
        }
        built
    }
}

#[cfg(test)]
#[path = "../../../replica/tests/recording/machine.rs"]
mod recording;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use d_engine_core::GroupId;
    use d_engine_replica::SendLimits;
    use d_engine_storage::ClusterId;
    use d_engine_storage::fs::sim::SimFs;
    use d_engine_storage::snapshot::SnapshotOptions;

    use super::recording::{Manner, Recording};
    use super::*;
    use crate::node::clock::Clock;
    use crate::snapshots::ExchangeSettings;
    use crate::threads::inbox::InboxLimits;
    use crate::threads::read_gate::ReadGate;

    /// Returns a snapshot thread with this scrub interval.
    fn scrubbing(machine: &Recording, every: Duration) -> SnapshotThread {
        let options = SnapshotOptions::new(ClusterId([1; 16]), GroupId::FIRST);
        let (store, _) =
            SnapshotStore::open(Arc::new(SimFs::new()), Path::new("/snapshots"), options).unwrap();
        let clock = Clock::start();
        let gate = Arc::new(ReadGate::new(clock));
        let inbox =
            Arc::new(Inbox::new(InboxLimits { proposals: 1, bytes: 1, reads: 1 }, gate.clone()));
        let settings = ExchangeSettings {
            limits: SendLimits::default(),
            bytes_per_second: 0,
            len_max: u64::MAX,
        };
        let machine: Arc<dyn StateMachine> = Arc::new(machine.clone());
        let exchange =
            Exchange::new(store.clone(), machine.clone(), inbox.clone(), gate, clock, settings);
        SnapshotThread {
            store,
            bytes_per_second: 0,
            queue: Arc::new(WorkQueue::new()),
            apply: Arc::new(WorkQueue::new()),
            inbox,
            progress: Arc::default(),
            exchange: Arc::new(exchange),
            machine,
            scrubs_every: every,
        }
    }

    /// Damage in a record that no caller reads stops the node within a day: the thread calls the
    /// scrub by itself.
    #[test]
    fn the_machine_is_asked_for_a_scrub_once_a_day_and_what_it_finds_stops_the_node() {
        let machine = Recording::default();
        let began = Instant::now();
        let mut scrubs = Scrubs::every(SCRUB_EVERY, began);
        scrubs.run(began + SCRUB_EVERY / 2, &machine).unwrap();
        assert_eq!(machine.calls.count("scrub"), 0);
        scrubs.run(began + SCRUB_EVERY, &machine).unwrap();
        scrubs.run(began + SCRUB_EVERY, &machine).unwrap();
        assert_eq!(machine.calls.count("scrub"), 1);
        assert_eq!(scrubs.left(began + SCRUB_EVERY * 2), Duration::ZERO);
        let damaged =
            machine.again_as(Manner { scrub_finds: Some("a record"), ..Manner::default() });
        let thread = scrubbing(&damaged, Duration::from_millis(1));
        let queue = thread.queue.clone();
        // A thread that does not call the scrub ends without an error when its queue is closed.
        let closer = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_secs(20));
            queue.close();
        });
        let found = thread.run();
        closer.thread().unpark();
        closer.join().unwrap();
        let found = found.unwrap_err().to_string();
        assert!(
            found.contains("scrub") && found.contains("a record has another checksum"),
            "{found}"
        );
    }

    /// A disk that could not be read for a moment is not damage.
    #[test]
    fn a_scrub_that_could_not_read_the_disk_stops_nothing_and_comes_again() {
        let machine = Recording::with(Manner { scrub_finds: Some("EIO"), ..Manner::default() });
        let began = Instant::now();
        let mut scrubs = Scrubs::every(SCRUB_EVERY, began);
        scrubs.run(began + SCRUB_EVERY, &machine).unwrap();
        assert_eq!(scrubs.left(began + SCRUB_EVERY), SCRUB_AGAIN_AFTER);
    }
}
