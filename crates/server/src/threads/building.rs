//! The snapshot thread's work, and the progress of the snapshot that it builds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d_engine_locks::Unpoisoned;
use d_engine_replica::{SnapshotTask, StopReason};

/// Work for the snapshot thread. At most one snapshot is in progress.
#[derive(Default)]
pub(crate) struct SnapshotWork {
    pub(crate) task: Option<SnapshotTask>,
    /// A new snapshot is durable and the state machine has recorded it: older ones may be removed.
    pub(crate) prune: bool,
}

/// Progress and failures of building snapshots, for the node's status.
#[derive(Default)]
pub(crate) struct BuildProgress {
    /// Bytes packed of the snapshot that is being built.
    pub(crate) packed: AtomicU64,
    pub(crate) is_building: AtomicBool,
    pause: Mutex<Pause>,
    pub(crate) built: AtomicU64,
    failures: Mutex<Failures>,
    /// Payload bytes applied since the newest snapshot.
    pub(crate) log_bytes: AtomicU64,
    pub(crate) stops: AtomicBool,
}

/// How long apply is paused while the state machine freezes its state.
#[derive(Clone, Copy, Default)]
struct Pause {
    /// The pause of the snapshot that was begun last.
    last: Duration,
    /// When the present pause began.
    since: Option<Instant>,
}

/// For what apply was paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PauseWas {
    /// For a snapshot, which was begun or failed to begin: this pause counts.
    ForSnapshot,
    /// To ask the policy, which wanted none.
    ForPolicy,
}

/// The number of failed snapshots since the node's start, and the reason of the last failure; the
/// reason is cleared once a snapshot succeeds.
#[derive(Clone, Default)]
pub(crate) struct Failures {
    pub(crate) count: u64,
    pub(crate) last: Option<String>,
}

impl BuildProgress {
    /// Records a failed snapshot.
    pub(crate) fn record_failure(&self, reason: &StopReason) {
        let mut failures = self.failures.lock().unpoisoned();
        failures.count += 1;
        failures.last = Some(reason.to_string());
    }

    /// Clears the last failure after a success.
    pub(crate) fn clear_failure(&self) {
        self.failures.lock().unpoisoned().last = None;
    }

    pub(crate) fn failures(&self) -> Failures {
        self.failures.lock().unpoisoned().clone()
    }

    /// Records that a pause of apply may begin now.
    pub(crate) fn pause_started(&self) {
        self.pause().since = Some(Instant::now());
    }

    /// Records the end of the pause.
    pub(crate) fn pause_ended(&self, pause_was: PauseWas) {
        let mut pause = self.pause();
        if let (Some(since), PauseWas::ForSnapshot) = (pause.since.take(), pause_was) {
            pause.last = since.elapsed();
        }
    }

    /// Returns how long apply has been paused now, and how long it was the last time.
    pub(crate) fn pauses(&self) -> (Option<Duration>, Duration) {
        let pause = *self.pause();
        // Shorter times are those of a policy check without a snapshot.
        let now = pause
            .since
            .map(|since| since.elapsed())
            .filter(|now| *now >= Duration::from_millis(10));
        (now, pause.last)
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unpoisoned()
    }

    /// Cancels the work in progress, because the node shuts down.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
    }
}
