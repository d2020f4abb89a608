//! The snapshot thread: writes frozen views, packs archives and removes old ones, beside apply and the log.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use d_engine_replica::{SnapshotTask, StateMachine, StopReason};
use d_engine_storage::snapshot::{SnapshotInfo, SnapshotStore};

use crate::StartError;
use crate::apply_thread::ApplyWork;
use crate::inbox::Inbox;
use crate::pace::Throttle;
use crate::transfers::Transfers;
use crate::worker_threads::{Found, WorkQueue, guarded, start_thread};

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
    pause: Mutex<Pause>,
    pub(crate) built: AtomicU64,
    failures: Mutex<Failures>,
    /// Payload bytes applied since the newest snapshot.
    pub(crate) log_bytes: AtomicU64,
    stops: AtomicBool,
}

/// How long the state machine holds apply up while its state is frozen.
#[derive(Clone, Copy, Default)]
struct Pause {
    /// For the snapshot that was begun last.
    last: Duration,
    /// Since when it does so now.
    since: Option<Instant>,
}

/// How many snapshots were given up since the node started, and why the last one was; none has been built since.
#[derive(Clone, Default)]
pub(crate) struct Failures {
    pub(crate) count: u64,
    pub(crate) last: Option<String>,
}

impl BuildProgress {
    /// One was given up.
    pub(crate) fn has_failed(&self, reason: &StopReason) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.count += 1;
        failures.last = Some(reason.to_string());
    }

    /// What was wrong before is over.
    fn has_come_through(&self) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).last = None;
    }

    pub(crate) fn failures(&self) -> Failures {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on apply may be held up.
    pub(crate) fn may_pause(&self) {
        self.pause().since = Some(Instant::now());
    }

    /// It is not any more; it was, if a snapshot was `begun`.
    pub(crate) fn goes_on(&self, begun: bool) {
        let mut pause = self.pause();
        if let Some(since) = pause.since.take().filter(|_| begun) {
            pause.last = since.elapsed();
        }
    }

    /// For how long apply is held up now, and for how long it was the last time.
    pub(crate) fn pauses(&self) -> (Option<Duration>, Duration) {
        let pause = *self.pause();
        // Less is the time of a look at the policy.
        let now = pause.since.map(|since| since.elapsed()).filter(|now| *now >= Duration::from_millis(10));
        (now, pause.last)
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work under way is given up: the node shuts down.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
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
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) machine: Arc<dyn StateMachine>,
    /// How often the machine is asked for a scrub.
    pub(crate) scrubs_every: Duration,
}

/// How often the state machine is asked to compare its checksums.
pub(crate) const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3_600);

/// How soon it is asked again when it could not read the disk.
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

    /// Asks the machine if it is time. An error stops the node.
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
                "the state machine could not read what it has stored; it is asked again"
            );
            self.due = now + SCRUB_AGAIN_AFTER;
            return Ok(());
        }
        Err(StopReason::new(format_args!("the state machine's scrub of what it has stored failed: {text}")))
    }
}

/// Whether the disk could not be read, which says nothing about what is on it.
fn is_of_the_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let failed = causes.find_map(|cause| cause.downcast_ref::<io::Error>());
    failed.is_some_and(|error| {
        !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
    })
}

impl SnapshotThread {
    /// Starts the thread. It ends when its queue is closed; what it is at then is given up.
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

    /// Removes what is older than what is to be kept; archives that are on their way to a follower stay.
    fn prune(&self) {
        if let Err(error) = self.store.prune(1, &self.transfers.labels()) {
            tracing::warn!(%error, "old snapshots could not be removed");
        }
    }

    fn build(&self, task: SnapshotTask) -> Result<SnapshotInfo, StopReason> {
        let progress = &self.progress;
        progress.packed.store(0, Ordering::Relaxed);
        progress.is_building.store(true, Ordering::Relaxed);
        let (label, began) = (task.label(), Instant::now());
        let mut pace = Throttle::new(self.bytes_per_second, |bytes| {
            progress.packed.store(bytes, Ordering::Relaxed);
            !progress.stops.load(Ordering::Acquire)
        });
        let built = task.build(&self.store, &mut pace);
        progress.is_building.store(false, Ordering::Relaxed);
        if let Ok(info) = &built {
            progress.built.fetch_add(1, Ordering::Relaxed);
            progress.has_come_through();
            if !self.store.may_travel(info) {
                tracing::error!(
                    %label, bytes = info.len,
                    "the snapshot is longer than snapshots.max_bytes: no node takes it, and the log is not purged behind it"
                );
            }
            tracing::info!(%label, bytes = info.len, ms = began.elapsed().as_millis(), "snapshot built");
        }
        built
    }
}

#[cfg(test)]
#[path = "../../replica/tests/recording/machine.rs"]
mod recording;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use d_engine_core::GroupId;
    use d_engine_replica::SendLimits;
    use d_engine_storage::ClusterId;
    use d_engine_storage::fs_sim::SimFs;
    use d_engine_storage::snapshot::SnapshotOptions;

    use super::recording::{Manner, Recording};
    use super::*;
    use crate::clock::Clock;
    use crate::inbox::InboxLimits;
    use crate::read_gate::ReadGate;
    use crate::transfers::TransferSettings;

    /// A snapshot thread that scrubs so often, and what it is given.
    fn scrubbing(machine: &Recording, every: Duration) -> SnapshotThread {
        let options = SnapshotOptions::new(ClusterId([1; 16]), GroupId::FIRST);
        let (store, _) =
            SnapshotStore::open(Arc::new(SimFs::new()), Path::new("/snapshots"), options).unwrap();
        let clock = Clock::start();
        let gate = Arc::new(ReadGate::new(clock));
        let inbox = Arc::new(Inbox::new(InboxLimits { proposals: 1, bytes: 1, reads: 1 }, gate.clone()));
        let settings =
            TransferSettings { limits: SendLimits::default(), bytes_per_second: 0, len_max: u64::MAX };
        let machine: Arc<dyn StateMachine> = Arc::new(machine.clone());
        let transfers = Transfers::new(store.clone(), machine.clone(), inbox.clone(), gate, clock, settings);
        SnapshotThread {
            store,
            bytes_per_second: 0,
            queue: Arc::new(WorkQueue::new()),
            apply: Arc::new(WorkQueue::new()),
            inbox,
            progress: Arc::default(),
            transfers: Arc::new(transfers),
            machine,
            scrubs_every: every,
        }
    }

    /// Damage in a record that nobody reads stops the node within a day: the thread asks by itself.
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
        let damaged = machine.again_as(Manner { scrub_finds: Some("a record"), ..Manner::default() });
        let thread = scrubbing(&damaged, Duration::from_millis(1));
        let queue = thread.queue.clone();
        // A thread that does not ask ends without a reason when its queue is closed.
        let closer = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_secs(20));
            queue.close();
        });
        let found = thread.run();
        closer.thread().unpark();
        closer.join().unwrap();
        let found = found.unwrap_err().to_string();
        assert!(found.contains("scrub") && found.contains("a record has another checksum"), "{found}");
    }

    /// A disk that could not be read for a moment is no damage.
    #[test]
    fn a_scrub_that_could_not_read_the_disk_stops_nothing_and_comes_again() {
        let machine = Recording::with(Manner { scrub_finds: Some("EIO"), ..Manner::default() });
        let began = Instant::now();
        let mut scrubs = Scrubs::every(SCRUB_EVERY, began);
        scrubs.run(began + SCRUB_EVERY, &machine).unwrap();
        assert_eq!(scrubs.left(began + SCRUB_EVERY), SCRUB_AGAIN_AFTER);
    }
}
