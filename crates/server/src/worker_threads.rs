//! Queues for the node's workers, and the log thread: a worker takes jobs from its queue, does them, and
//! reports to the inbox. A panic on any, the user's state machine included, ends at its boundary: the node stops
//! with the reason, the host process lives.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use d_engine_core::{LogId, NodeId};
use d_engine_replica::{Event, LoadJob, LogLoader, LogWorker, PersistJob, StopReason};
use d_engine_storage::LogStats;

use crate::StartError;
use crate::inbox::Inbox;

/// How long the log must be quiet before its last group's durability is written down.
const IDLE_AFTER: Duration = Duration::from_millis(100);
/// How often a log without room tries again.
pub(crate) const ROOM_LOOKED_FOR_EVERY: Duration = Duration::from_millis(250);
/// How often a node that refuses commands for want of room looks at the free space.
const FREE_SPACE_LOOKED_AT_EVERY: Duration = Duration::from_secs(1);
/// Calls of `idle` after a burst of writes: each prepares a piece of the next segment.
const IDLE_CALLS_MAX: u32 = 16;

/// Work for one thread. Bounded by what the replica gives out: writes by the leader's window and the
/// uncommitted bytes, apply jobs by their number.
pub(crate) struct WorkQueue<T> {
    state: Mutex<QueueState<T>>,
    wake: Condvar,
}

struct QueueState<T> {
    work: T,
    filled: bool,
    closed: bool,
}

/// What a worker finds when it looks.
pub(crate) enum Found<T> {
    Work(T),
    Idle,
    Closed(T),
}

impl<T: Default> WorkQueue<T> {
    pub(crate) fn new() -> Self {
        let state = QueueState { work: T::default(), filled: false, closed: false };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds work; what comes after the queue was closed is dropped, and whoever waits for it with it.
    pub(crate) fn put(&self, put: impl FnOnce(&mut T)) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        put(&mut state.work);
        state.filled = true;
        drop(state);
        self.wake.notify_one();
    }

    /// No more work will come; what is queued is still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Nobody takes from it any more: what is queued, and what would come, is dropped, and whoever waits for it is told by
    /// that.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.work);
        drop(state);
        drop(left);
    }

    /// Waits for so long, or until the queue is closed. Returns whether it is.
    pub(crate) fn closes_within(&self, timeout: Duration) -> bool {
        let is_open = |state: &mut QueueState<T>| !state.closed;
        let waited = self.wake.wait_timeout_while(self.lock(), timeout, is_open);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    pub(crate) fn take(&self, idle_after: Option<Duration>) -> Found<T> {
        let mut state = self.lock();
        loop {
            if state.closed {
                state.filled = false;
                return Found::Closed(std::mem::take(&mut state.work));
            }
            if state.filled {
                state.filled = false;
                return Found::Work(std::mem::take(&mut state.work));
            }
            let Some(timeout) = idle_after else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (after, waited) =
                self.wake.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner);
            state = after;
            if waited.timed_out() && !state.filled && !state.closed {
                return Found::Idle;
            }
        }
    }
}

/// Work for the log thread.
#[derive(Default)]
pub(crate) struct LogWork {
    pub(crate) writes: Vec<PersistJob>,
    pub(crate) purge: Option<LogId>,
}

/// What the log thread has done since the node started, for whoever asks for the node's status.
#[derive(Default)]
pub(crate) struct LogCounters(Mutex<LogStats>);

impl LogCounters {
    fn publish(&self, stats: LogStats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// As of the last sync.
    pub(crate) fn read(&self) -> LogStats {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the log thread. It drops the log when its queue is closed.
pub(crate) fn log_thread(
    name: String,
    worker: LogWorker,
    queue: Arc<WorkQueue<LogWork>>,
    inbox: Arc<Inbox>,
    counters: Arc<LogCounters>,
) -> Result<JoinHandle<()>, StartError> {
    let run = move || guarded("log", &inbox, || log_loop(worker, &queue, &inbox, &counters));
    start_thread(name, run).map_err(StartError::Thread)
}

fn log_loop(
    mut worker: LogWorker,
    queue: &WorkQueue<LogWork>,
    inbox: &Inbox,
    counters: &LogCounters,
) -> Result<(), StopReason> {
    let mut idle_calls = IDLE_CALLS_MAX;
    counters.publish(worker.stats());
    loop {
        let idle_after = match worker.waits() {
            true => Some(ROOM_LOOKED_FOR_EVERY),
            false if idle_calls > 0 => Some(IDLE_AFTER),
            // Commands are refused, so nothing else would find out that there is room again.
            false => worker.is_short_of_room().then_some(FREE_SPACE_LOOKED_AT_EVERY),
        };
        let (work, closed) = match queue.take(idle_after) {
            Found::Work(work) => (work, false),
            Found::Closed(work) => (work, true),
            Found::Idle if worker.waits() => (LogWork::default(), false),
            Found::Idle => {
                worker.idle()?;
                report_all(inbox, worker.events());
                counters.publish(worker.stats());
                idle_calls = idle_calls.saturating_sub(1);
                continue;
            }
        };
        if !work.writes.is_empty() {
            idle_calls = IDLE_CALLS_MAX;
        }
        if let Some(order) = worker.persist(&work.writes)? {
            counters.publish(worker.stats());
            inbox.report(Event::Persisted(order));
        }
        report_all(inbox, worker.events());
        if let Some(through) = work.purge {
            report_all(inbox, worker.purge(through)?);
            report_all(inbox, worker.events());
            counters.publish(worker.stats());
        }
        if closed {
            return worker.idle();
        }
    }
}

/// Reads of the log for followers that are behind: at most one for each follower is queued.
#[derive(Default)]
pub(crate) struct LoadWork(BTreeMap<NodeId, LoadJob>);

impl LoadWork {
    /// Queues a read; it replaces one for the same follower that has not begun.
    pub(crate) fn put(&mut self, job: LoadJob) {
        self.0.insert(job.to, job);
    }
}

/// Starts the thread that reads the log for followers that are behind. They must not hold up the
/// thread that writes: on a slow disk a read between two commits costs every caller its time.
pub(crate) fn load_thread(
    name: String,
    loader: LogLoader,
    queue: Arc<WorkQueue<LoadWork>>,
    inbox: Arc<Inbox>,
) -> Result<JoinHandle<()>, StartError> {
    let body = move || {
        let run = || loop {
            let (LoadWork(work), closed) = match queue.take(None) {
                Found::Work(work) => (work, false),
                Found::Closed(work) => (work, true),
                Found::Idle => continue,
            };
            if closed {
                return Ok(());
            }
            for job in work.into_values() {
                inbox.report(loader.load(&job)?);
            }
        };
        guarded("load", &inbox, run);
    };
    start_thread(name, body).map_err(StartError::Thread)
}

fn report_all(inbox: &Inbox, events: impl IntoIterator<Item = Event>) {
    for event in events {
        inbox.report(event);
    }
}

/// Starts a thread whose log lines say what those of its starter say: which node it belongs to.
pub(crate) fn start_thread(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let span = tracing::Span::current();
    Builder::new().name(name).spawn(move || span.in_scope(run))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Runs a thread's body; an error or a panic stops the node with the reason.
pub(crate) fn guarded(thread: &str, inbox: &Inbox, body: impl FnOnce() -> Result<(), StopReason>) {
    let reason = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return,
        Ok(Err(reason)) => reason,
        Err(panic) => {
            StopReason::new(format_args!("the {thread} thread panicked: {}", panic_text(panic.as_ref())))
        }
    };
    tracing::error!(%reason, "the node stops");
    inbox.report(Event::Failed(reason));
}

#[cfg(test)]
mod tests {
    use d_engine_core::{LogIndex, NodeId};
    use d_engine_replica::LoadJob;

    use super::LoadWork;

    /// FINDINGS S4: on a disk that hangs, what a follower needs is planned again and again.
    #[test]
    fn one_read_for_each_follower_is_queued_the_last_that_was_planned() {
        let mut work = LoadWork::default();
        for (to, first) in [(2, 1), (3, 1), (2, 5), (2, 9)] {
            let (to, first) = (NodeId::new(to).unwrap_or_else(|| unreachable!()), LogIndex::new(first));
            work.put(LoadJob { to, token: first.get(), first, last: first, max_bytes: 1 });
        }
        let queued: Vec<_> = work.0.values().map(|job| (job.to.get(), job.first.get())).collect();
        assert_eq!(queued, [(2, 9), (3, 1)]);
    }
}
