//! Runs callers, in a closed loop or at a fixed rate.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d_engine_locks::Unpoisoned;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::caller::{Caller, Failed};
use super::pace::{Pace, Timing};
use super::plan::{Operation, Plan, Random};
use super::tally::Tally;
use crate::exit::Failure;

/// Number of tallies that the callers share, so that they seldom contend for one.
const TALLIES: usize = 64;
/// Pause of a caller after a failure. Refusals may return at once, and a loop of refusals would
/// measure only itself.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);

/// The running callers. Dropping it ends them.
pub(super) struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<Result<(), Failure>>,
}

/// The result of a run.
pub(super) struct Done {
    pub(super) tally: Tally,
    /// From the start to the planned end, or to the last response if that came later.
    pub(super) elapsed: Duration,
    /// With a fixed rate: operations that should have begun and did not.
    pub(super) never_begun: u64,
}

struct Shared {
    plan: Arc<Plan>,
    length: Duration,
    began: Instant,
    tallies: Vec<Mutex<Tally>>,
    stopping: AtomicBool,
    /// How long the run had lasted when it was stopped; `None` if it was not.
    stopped_after: Mutex<Option<Duration>>,
    pace: Option<Pace>,
    /// With a fixed rate: one permit for each operation that may begin. Closed at the end.
    due: Semaphore,
    /// With a fixed rate: operations that have begun.
    begun: AtomicU64,
}

impl Load {
    /// Starts every caller, to run for `length`.
    pub(super) fn start(
        callers: &[Arc<Caller>],
        plan: &Arc<Plan>,
        length: Duration,
    ) -> Result<Self, Failure> {
        let tallies = callers.len().min(TALLIES);
        let shared = Arc::new(Shared {
            plan: plan.clone(),
            length,
            began: Instant::now(),
            tallies: (0..tallies).map(|_| Mutex::new(Tally::new(length))).collect(),
            stopping: AtomicBool::new(false),
            stopped_after: Mutex::new(None),
            pace: plan.rate.map(Pace::new),
            due: Semaphore::new(0),
            begun: AtomicU64::new(0),
        });
        if let Some(pace) = shared.pace {
            let shared = shared.clone();
            // A thread, because the runtime's timers have a resolution of one millisecond.
            std::thread::Builder::new()
                .name("pace".to_owned())
                .spawn(move || shared.keep_pace(pace))
                .map_err(|error| {
                    Failure::failed(format_args!("the pace thread cannot be started: {error}"))
                })?;
        }
        let mut tasks = JoinSet::new();
        for (number, caller) in (0..).zip(callers) {
            tasks.spawn(shared.clone().run(caller.clone(), number));
        }
        Ok(Self { shared, callers: tasks })
    }

    /// Returns the number of operations that have succeeded so far.
    pub(super) fn succeeded(&self) -> u64 {
        self.shared.tallies.iter().map(|tally| lock(tally).succeeded()).sum()
    }

    /// Begins no further operations; those in flight finish.
    pub(super) fn stop(&self) {
        let mut after = self.shared.stopped_after.lock().unpoisoned();
        after.get_or_insert(self.shared.began.elapsed());
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.due.close();
    }

    /// Waits until every caller has ended.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        while let Some(ended) = self.callers.join_next().await {
            ended.map_err(|panic| {
                Failure::failed(format_args!("a caller of the bench failed: {panic}"))
            })??;
        }
        Ok(())
    }

    /// Returns the results so far, whether the run is finished or not.
    pub(super) fn done(&self) -> Result<Done, Failure> {
        let shared = &self.shared;
        let mut tally = Tally::new(shared.length);
        for part in &shared.tallies {
            tally.add(&lock(part))?;
        }
        let stopped = *shared.stopped_after.lock().unpoisoned();
        let planned = stopped.unwrap_or(shared.length).min(shared.length);
        let due =
            shared.pace.map_or(0, |pace| pace.due(planned.saturating_sub(Duration::from_nanos(1))));
        let never_begun = due.saturating_sub(shared.begun.load(Ordering::Acquire));
        Ok(Done { elapsed: planned.max(tally.last_answer), tally, never_begun })
    }
}

impl Shared {
    async fn run(self: Arc<Self>, caller: Arc<Caller>, number: u16) -> Result<(), Failure> {
        let tally = &self.tallies[usize::from(number) % self.tallies.len()];
        let mut random = Random::of(number);
        while let Some(intended) = self.next_begin().await {
            let (operation, key) = self.plan.choose(&mut random);
            let began = self.began.elapsed();
            let outcome = caller.call(operation, key).await;
            let ended = self.began.elapsed();
            let timing = Timing::of(intended.unwrap_or(began), began, ended);
            let has_failed = outcome.is_err();
            self.write_down(tally, operation, timing, ended, outcome)?;
            if has_failed {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
        Ok(())
    }

    /// Waits until the next operation may begin. Returns the time at which it should begin;
    /// `Some(None)` means now, in a closed loop, and `None` the end of the run.
    async fn next_begin(&self) -> Option<Option<Duration>> {
        if self.stopping.load(Ordering::Acquire) {
            return None;
        }
        let Some(pace) = self.pace else {
            return (self.began.elapsed() < self.length).then_some(None);
        };
        // An error means that the semaphore is closed.
        self.due.acquire().await.ok()?.forget();
        Some(Some(pace.intended(self.begun.fetch_add(1, Ordering::AcqRel))))
    }

    fn write_down(
        &self,
        tally: &Mutex<Tally>,
        operation: Operation,
        timing: Timing,
        ended: Duration,
        outcome: Result<(), Failed>,
    ) -> Result<(), Failure> {
        lock(tally).record(operation, timing, ended, outcome)
    }

    /// Releases operations at their intended times, until the end.
    fn keep_pace(&self, pace: Pace) {
        let mut released = 0;
        while !self.stopping.load(Ordering::Acquire) {
            let elapsed = self.began.elapsed();
            if elapsed >= self.length {
                break;
            }
            let due = pace.due(elapsed);
            self.due.add_permits(usize::try_from(due - released).unwrap_or(0));
            released = due;
            let next = pace.intended(due).min(self.length);
            std::thread::sleep(next.saturating_sub(self.began.elapsed()));
        }
        self.due.close();
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unpoisoned()
}
