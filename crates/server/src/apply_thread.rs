//! The apply thread: gives committed entries to the state machine, and begins snapshots between them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use d_engine_core::LogIndex;
use d_engine_replica::{ApplyJob, ApplySource, ApplyWorker, Event, LogId, StopReason};
use d_engine_storage::snapshot::{SnapshotInfo, SnapshotStore};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::read_gate::ReadGate;
use crate::snapshot_thread::{BuildProgress, SnapshotWork};
use crate::worker_threads::{Found, LogCounters, WorkQueue, guarded, panic_text, start_thread};
use crate::{SnapshotRequestError, StartError};

/// Callers that wait for one snapshot; more are refused.
pub(crate) const ASKED_MAX: usize = 64;

/// Who waits for a snapshot; told why there is none.
pub(crate) type SnapshotAnswer = oneshot::Sender<Result<SnapshotInfo, SnapshotRequestError>>;

/// A caller who wants a snapshot, and what was applied when it asked: an older one will not do.
struct Asked {
    applied: u64,
    answer: SnapshotAnswer,
}

/// Work for the apply thread.
#[derive(Default)]
pub(crate) struct ApplyWork {
    pub(crate) jobs: Vec<ApplyJob>,
    pub(crate) hard_state_saved: bool,
    /// A snapshot is due, whatever the policy says.
    pub(crate) snapshot_due: bool,
    /// Callers who want a snapshot.
    pub(crate) asked: Vec<SnapshotAnswer>,
    /// What has become of the snapshot that was begun.
    pub(crate) built: Option<Result<SnapshotInfo, StopReason>>,
}

/// What the apply thread needs.
pub(crate) struct ApplyThread {
    pub(crate) worker: ApplyWorker,
    pub(crate) queue: Arc<WorkQueue<ApplyWork>>,
    pub(crate) snapshots: Arc<WorkQueue<SnapshotWork>>,
    pub(crate) store: SnapshotStore,
    pub(crate) progress: Arc<BuildProgress>,
    /// How long the state machine may hold apply up to write a snapshot's data.
    pub(crate) pause_max: Duration,
    pub(crate) log_counters: Arc<LogCounters>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) clock: Clock,
    /// The user's futures are polled inside it.
    pub(crate) runtime: Handle,
}

/// How often it is tried again to unpack a snapshot for which there was no room.
const UNPACKED_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A pause for a snapshot that lasts longer is told to the replica: the state machine does not hang.
const PAUSE_TOLD_AFTER: Duration = Duration::from_millis(50);

impl ApplyThread {
    /// Starts the thread. When its queue is closed, the state machine is flushed and stopped.
    pub(crate) fn start(mut self, name: String) -> Result<JoinHandle<()>, StartError> {
        let inbox = self.inbox.clone();
        let queue = self.queue.clone();
        let run = move || {
            guarded("apply", &inbox, || self.run());
            // However it has ended, nobody waits for what it has not done.
            queue.end();
        };
        start_thread(name, run).map_err(StartError::Thread)
    }

    fn run(&mut self) -> Result<(), StopReason> {
        let ended = self.work();
        if ended.is_err() {
            // The machine has failed; what it holds is flushed and stopped all the same.
            // The first reason counts, whatever the machine does now.
            catch_unwind(AssertUnwindSafe(|| self.close().ok())).ok();
        }
        ended
    }

    fn work(&mut self) -> Result<(), StopReason> {
        let mut asked = Vec::new();
        loop {
            let (mut work, closed) = match self.queue.take(None) {
                Found::Work(work) => (work, false),
                Found::Closed(work) => (work, true),
                Found::Idle => continue,
            };
            self.worker.at(self.clock.now());
            if work.hard_state_saved && self.worker.stop().is_none() {
                self.worker.handler().hard_state_saved();
            }
            if let Some(built) = work.built.take() {
                self.end_snapshot(built, &mut asked)?;
                // So much may have been applied meanwhile that the next one is due, and nothing more may come.
                if !closed {
                    self.begin_snapshot(!asked.is_empty(), &mut asked);
                }
            }
            for job in work.jobs {
                self.worker.at(self.clock.now());
                let installs = matches!(job.source, ApplySource::Snapshot(_));
                if !self.unpack(&job)? {
                    return self.close();
                }
                let what = named(&job.source);
                let run = AssertUnwindSafe(|| self.runtime.block_on(self.worker.run(job)));
                let event = catch_unwind(run).unwrap_or_else(|panic| {
                    let text = panic_text(panic.as_ref());
                    let reason =
                        StopReason::new(format_args!("the state machine panicked in {what}: {text}"));
                    self.worker.stops(&reason, true)
                })?;
                if installs {
                    self.snapshots.put(|work| work.prune = true);
                }
                self.gate.applied(self.worker.handler().applied().index);
                // Before anybody is told: its state may be half of a chunk.
                self.gate.set_stands(self.worker.stop().is_some());
                self.inbox.report(event);
                if !closed {
                    self.begin_snapshot(false, &mut asked);
                }
            }
            if closed {
                return self.close();
            }
            let applied = self.worker.handler().applied().index;
            for answer in work.asked.drain(..) {
                if asked.len() < ASKED_MAX {
                    asked.push(Asked { applied, answer });
                } else {
                    answer.send(Err(SnapshotRequestError::Busy)).ok();
                }
            }
            if !asked.is_empty() || work.snapshot_due {
                self.begin_snapshot(true, &mut asked);
            }
            let log_bytes = self.worker.handler().bytes_since_snapshot();
            self.progress.log_bytes.store(log_bytes, Ordering::Relaxed);
        }
    }

    /// Ends the machine's life. One that panicked is only told to stop, and may panic at that too.
    fn close(&mut self) -> Result<(), StopReason> {
        if self.worker.stop().is_none_or(|stop| !stop.panicked) {
            return self.worker.handler().close();
        }
        let machine = self.worker.handler().machine().clone();
        if !matches!(catch_unwind(AssertUnwindSafe(|| machine.stop())), Ok(Ok(()))) {
            tracing::warn!("the state machine that panicked did not stop in order");
        }
        Ok(())
    }

    /// Unpacks the snapshot that `job` installs, if it does; waits until there is room for it. Returns whether it is there;
    /// otherwise the node shuts down.
    fn unpack(&mut self, job: &ApplyJob) -> Result<bool, StopReason> {
        let mut is_told = false;
        while let Some(why) = self.worker.unpack(job)? {
            if !std::mem::replace(&mut is_told, true) {
                let reason =
                    StopReason::new(format_args!("a received snapshot waits to be installed: {why}"));
                tracing::warn!(%reason, "the node goes on as soon as there is room");
                self.progress.has_failed(&reason);
            }
            if self.queue.closes_within(UNPACKED_AGAIN_AFTER) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins a snapshot if one is due, or if somebody wants one. Whoever asks while one is being built gets
    /// that one.
    fn begin_snapshot(&mut self, wanted: bool, asked: &mut Vec<Asked>) {
        if wanted && !self.worker.is_building() {
            let applied = self.worker.handler().applied();
            let newest = self.store.newest_whole().filter(|info| LogId::from(info.label()) == applied);
            // It may have been removed by hand.
            if let Some(info) = newest.filter(|info| self.store.open_archive(info.label()).is_ok()) {
                answer(asked, u64::MAX, &Ok(info));
                return;
            }
        }
        self.worker.handler().log_written(self.log_counters.read().bytes_written);
        self.progress.may_pause();
        let limit = self.pause_max;
        let inbox = self.inbox.clone();
        let worker = &mut self.worker;
        let begun = self.runtime.block_on(async move {
            let mut beginning = std::pin::pin!(worker.begin_snapshot(wanted));
            // Most often nothing is due, or a view is frozen at once.
            if let Ok(begun) = tokio::time::timeout(PAUSE_TOLD_AFTER.min(limit), &mut beginning).await {
                return Ok(begun);
            }
            inbox.report(Event::ApplyPaused(true));
            let begun = tokio::time::timeout(limit.saturating_sub(PAUSE_TOLD_AFTER), beginning).await;
            inbox.report(Event::ApplyPaused(false));
            begun
        });
        let begun = begun.unwrap_or_else(|_| {
            self.worker.give_up_snapshot();
            Err(StopReason::new(format_args!(
                "the state machine's generate_snapshot_data had not come to its end after {} ms, while nothing was applied: \
                 raise snapshots.pause_max_ms, or implement snapshot_view, which lets apply go on",
                limit.as_millis()
            )))
        });
        self.progress.goes_on(!matches!(begun, Ok(None)));
        match begun {
            Ok(Some(task)) => {
                self.snapshots.put(|work| work.task = Some(task));
            }
            Ok(None) if wanted && !self.worker.is_building() => {
                answer(
                    asked,
                    u64::MAX,
                    &Err(StopReason::new("nothing was applied yet: there is nothing to take a snapshot of")),
                );
            }
            Ok(None) => {}
            Err(reason) => {
                tracing::warn!(%reason, "a snapshot was given up");
                self.progress.has_failed(&reason);
                answer(asked, u64::MAX, &Err(reason));
            }
        }
    }

    fn end_snapshot(
        &mut self,
        built: Result<SnapshotInfo, StopReason>,
        asked: &mut Vec<Asked>,
    ) -> Result<(), StopReason> {
        let result = built.clone();
        if let Err(reason) = &built {
            self.progress.has_failed(reason);
        }
        if let Some(event) = self.worker.end_snapshot(built)? {
            self.inbox.report(event);
            self.snapshots.put(|work| work.prune = true);
        }
        let label = result.as_ref().map_or(u64::MAX, |info| info.label().index.get());
        answer(asked, label, &result);
        Ok(())
    }
}

/// What the state machine is given, for people.
fn named(source: &ApplySource) -> String {
    let entries = |first: LogIndex, last: LogIndex| format!("apply_chunk, entries {first} to {last}");
    match source {
        ApplySource::Entries(entries_here) => match (entries_here.first(), entries_here.last()) {
            (Some(first), Some(last)) => entries(first.id.index, last.id.index),
            _ => "apply_chunk without entries".to_owned(),
        },
        ApplySource::Stored(first, last) => entries(*first, *last),
        ApplySource::Snapshot(label) => format!("apply_snapshot_from_file, the snapshot {label}"),
    }
}

/// Tells those who asked when no more than `through` was applied.
fn answer(asked: &mut Vec<Asked>, through: u64, result: &Result<SnapshotInfo, StopReason>) {
    for caller in asked.extract_if(.., |caller| caller.applied <= through) {
        let result = result.clone().map_err(|reason| SnapshotRequestError::Failed { reason });
        // Whoever asked may have gone away.
        caller.answer.send(result).ok();
    }
}
