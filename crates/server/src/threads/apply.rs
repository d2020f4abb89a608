//! The apply thread: applies committed entries to the state machine, and begins snapshots between
//! them. The order of its work is decided by [`ApplySteps`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use d_engine_core::LogIndex;
use d_engine_replica::{
    ApplyJob, ApplyRun, ApplySource, ApplyStep, ApplySteps, ApplyWork, ApplyWorker, Event,
    HaltCause, SnapshotCause, StopReason, UNPACK_RETRY_INTERVAL,
};
use tokio::runtime::Handle;

use crate::StartError;
use crate::node::clock::Clock;
use crate::threads::building::{BuildProgress, PauseWas, SnapshotWork};
use crate::threads::inbox::Inbox;
use crate::threads::read_gate::ReadGate;
use crate::threads::work_queue::{Found, WorkQueue};
use crate::threads::workers::{LogCounters, guarded, panic_text, start_thread};

/// What the apply thread needs.
pub(crate) struct ApplyThread {
    pub(crate) worker: ApplyWorker,
    pub(crate) queue: Arc<WorkQueue<ApplyWork>>,
    pub(crate) snapshots: Arc<WorkQueue<SnapshotWork>>,
    pub(crate) progress: Arc<BuildProgress>,
    /// How long apply may wait while the state machine writes the data of a snapshot.
    pub(crate) pause_max: Duration,
    pub(crate) log_counters: Arc<LogCounters>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) clock: Clock,
    /// Polls the futures of the user's state machine.
    pub(crate) runtime: Handle,
}

/// A longer pause for a snapshot is reported to the replica, so that it does not treat the state
/// machine as hanging.
const PAUSE_TOLD_AFTER: Duration = Duration::from_millis(50);

impl ApplyThread {
    /// Starts the thread. When its queue is closed, it flushes and stops the state machine.
    pub(crate) fn start(mut self, name: String) -> Result<JoinHandle<()>, StartError> {
        let inbox = self.inbox.clone();
        let queue = self.queue.clone();
        let run = move || {
            guarded("apply", &inbox, || self.run());
            // However the thread has ended, drop the remaining work so that no caller waits for it.
            queue.end();
        };
        start_thread(name, run).map_err(StartError::Thread)
    }

    fn run(&mut self) -> Result<(), StopReason> {
        let ended = self.work();
        if ended.is_err() {
            // The machine is flushed and stopped although it has failed. The first reason is
            // reported, whatever the machine does now.
            catch_unwind(AssertUnwindSafe(|| self.close().ok())).ok();
        }
        ended
    }

    fn work(&mut self) -> Result<(), StopReason> {
        let mut steps = ApplySteps::default();
        loop {
            self.worker.at(self.clock.now());
            match steps.next(&self.worker) {
                ApplyStep::SaveHardState => self.worker.handler().hard_state_saved(),
                ApplyStep::EndSnapshot(built) => {
                    if let Err(reason) = &built {
                        self.progress.record_failure(reason);
                    }
                    if let Some(event) = steps.end_snapshot(&mut self.worker, built)? {
                        self.inbox.report(event);
                    }
                }
                ApplyStep::Prune => self.snapshots.put(|work| work.prune = true),
                ApplyStep::BeginSnapshot(cause) => self.begin_snapshot(cause, &mut steps),
                ApplyStep::Apply(job) => match self.worker.unpack(&job)? {
                    Some(why) => {
                        let reason = format!("a received snapshot waits to be installed: {why}");
                        self.wait_for_space(job, &StopReason::new(reason), &mut steps);
                    }
                    None => self.apply(job, &mut steps)?,
                },
                ApplyStep::Wait => {
                    let log_bytes = self.worker.handler().bytes_since_snapshot();
                    self.progress.log_bytes.store(log_bytes, Ordering::Relaxed);
                    match self.queue.take(None) {
                        Found::Work(work) => steps.start(work),
                        Found::Closed(work) => steps.start_last(work),
                        Found::Idle => {}
                    }
                }
                ApplyStep::Close => return self.close(),
            }
        }
    }

    fn apply(&mut self, job: ApplyJob, steps: &mut ApplySteps) -> Result<(), StopReason> {
        let what = named(&job.source);
        let run = AssertUnwindSafe(|| self.runtime.block_on(self.worker.run_or_wait(job)));
        let done = catch_unwind(run).unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            let reason =
                StopReason::new(format_args!("the state machine panicked in {what}: {text}"));
            self.worker.stops(&reason, HaltCause::Panic).map(ApplyRun::Done)
        })?;
        self.gate.set_applied(self.worker.handler().applied().index.get());
        // Before the event is reported: the state of a halted machine may contain half of a chunk.
        self.gate.set_halted(self.worker.stop().is_some());
        match done {
            ApplyRun::Done(event) => self.inbox.report(event),
            ApplyRun::Waits { job, why } => self.wait_for_space(job, &why, steps),
        }
        Ok(())
    }

    /// Flushes and stops the machine. A machine that panicked is only stopped, and may panic again
    /// at that.
    fn close(&mut self) -> Result<(), StopReason> {
        if self.worker.stop().is_none_or(|stop| !stop.panicked) {
            return self.worker.handler().close();
        }
        let machine = self.worker.handler().machine().clone();
        if !matches!(catch_unwind(AssertUnwindSafe(|| machine.stop())), Ok(Ok(()))) {
            tracing::warn!("failed to stop the state machine that panicked");
        }
        Ok(())
    }

    /// Waits until a job for which there was no space may be tried again.
    fn wait_for_space(&mut self, job: ApplyJob, reason: &StopReason, steps: &mut ApplySteps) {
        let installs = matches!(job.source, ApplySource::Snapshot(_));
        if steps.postpone(job) {
            tracing::warn!(%reason, "apply continues once there is space on the disk");
            if installs {
                self.progress.record_failure(reason);
            }
        }
        if self.queue.closes_within(UNPACK_RETRY_INTERVAL) {
            steps.drop_jobs();
        }
    }

    /// Begins a snapshot if one is due. The state machine may freeze its state for a limited time.
    fn begin_snapshot(&mut self, cause: SnapshotCause, steps: &mut ApplySteps) {
        self.worker.handler().log_written(self.log_counters.read().bytes_written);
        self.progress.pause_started();
        let limit = self.pause_max;
        let inbox = self.inbox.clone();
        let worker = &mut self.worker;
        let begun = self.runtime.block_on(async move {
            let mut beginning = std::pin::pin!(worker.begin_snapshot(cause));
            // Usually nothing is due, or a view is frozen at once.
            if let Ok(begun) =
                tokio::time::timeout(PAUSE_TOLD_AFTER.min(limit), &mut beginning).await
            {
                return Ok(begun);
            }
            inbox.report(Event::ApplyPaused(true));
            let begun =
                tokio::time::timeout(limit.saturating_sub(PAUSE_TOLD_AFTER), beginning).await;
            inbox.report(Event::ApplyPaused(false));
            begun
        });
        let begun = begun.unwrap_or_else(|_| {
            self.worker.give_up_snapshot();
            Err(StopReason::new(format_args!(
                "the state machine's generate_snapshot_data was cancelled after {} ms, because \
                 nothing is applied meanwhile: raise snapshots.pause_max_ms, or implement \
                 snapshot_view, which lets apply continue",
                limit.as_millis()
            )))
        });
        self.progress.pause_ended(match begun {
            Ok(None) => PauseWas::ForPolicy,
            Ok(Some(_)) | Err(_) => PauseWas::ForSnapshot,
        });
        steps.snapshot_begun(&self.worker, cause, &begun);
        match begun {
            Ok(Some(task)) => {
                self.snapshots.put(|work| work.task = Some(task));
            }
            Ok(None) => {}
            Err(reason) => {
                tracing::warn!(%reason, "a snapshot failed");
                self.progress.record_failure(&reason);
            }
        }
    }
}

/// Describes the call of the state machine, for log lines and errors.
fn named(source: &ApplySource) -> String {
    let entries =
        |first: LogIndex, last: LogIndex| format!("apply_chunk, entries {first} to {last}");
    match source {
        ApplySource::Entries(entries_here) => match (entries_here.first(), entries_here.last()) {
            (Some(first), Some(last)) => entries(first.id.index, last.id.index),
            _ => "apply_chunk without entries".to_owned(),
        },
        ApplySource::Stored(first, last) => entries(*first, *last),
        ApplySource::Snapshot(last_included) => {
            format!("apply_snapshot_from_file, the snapshot {last_included}")
        }
    }
}
