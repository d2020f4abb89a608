//! The log thread, and what all workers of a node share. A worker takes jobs from its queue,
//! executes them, and reports to the inbox. A panic that leaves a worker's body is caught here: the
//! node stops with the reason, and the host process continues. The apply thread catches the panics
//! of applying itself, because they only halt the state machine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    Event, LoadQueue, LogLoader, LogStep, LogSteps, LogWork, LogWorker, StopReason,
};
use d_engine_storage::LogStats;

use crate::StartError;
use crate::threads::inbox::Inbox;
use crate::threads::work_queue::{Found, WorkQueue};

/// The number of calls of `idle` after a burst of writes; each prepares a part of the next segment.
const IDLE_CALLS_MAX: u32 = 16;

/// The log's counters since the node's start, for its status.
#[derive(Default)]
pub(crate) struct LogCounters(Mutex<LogStats>);

impl LogCounters {
    fn publish(&self, stats: LogStats) {
        *self.0.lock().unpoisoned() = stats;
    }

    /// Returns the counters as of the last sync.
    pub(crate) fn read(&self) -> LogStats {
        *self.0.lock().unpoisoned()
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
    let mut steps = LogSteps::new(IDLE_CALLS_MAX);
    let mut is_closed = false;
    counters.publish(worker.stats());
    loop {
        match steps.next(&worker) {
            LogStep::Persist(writes) => {
                if let Some(id) = worker.persist(&writes)? {
                    counters.publish(worker.stats());
                    inbox.report(Event::Persisted(id));
                }
                report_all(inbox, worker.events());
            }
            LogStep::Purge(through) => {
                report_all(inbox, worker.purge(through)?);
                report_all(inbox, worker.events());
                counters.publish(worker.stats());
            }
            LogStep::Idle => {
                worker.idle()?;
                report_all(inbox, worker.events());
                counters.publish(worker.stats());
            }
            LogStep::Wait(_) if is_closed => return worker.idle(),
            LogStep::Wait(wait) => match queue.take(wait.timeout()) {
                Found::Work(work) => steps.start(work),
                Found::Closed(work) => {
                    is_closed = true;
                    steps.start(work);
                }
                Found::Idle => steps.waited(&worker),
            },
        }
    }
}

/// Starts the thread that reads the log for followers that lag. It is separate from the thread that
/// writes: on a slow disk, a read between two commits would delay every caller.
pub(crate) fn load_thread(
    name: String,
    loader: LogLoader,
    queue: Arc<WorkQueue<LoadQueue>>,
    inbox: Arc<Inbox>,
) -> Result<JoinHandle<()>, StartError> {
    let body = move || {
        let run = || loop {
            let (mut loads, closed) = match queue.take(None) {
                Found::Work(loads) => (loads, false),
                Found::Closed(loads) => (loads, true),
                Found::Idle => continue,
            };
            if closed {
                return Ok(());
            }
            for job in loads.take() {
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

/// Starts a thread in the tracing span of its starter, so that its log lines name the same node.
pub(crate) fn start_thread(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let span = tracing::Span::current();
    Builder::new().name(name).spawn(move || span.in_scope(run))
}

/// Returns the message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Runs the body of a thread. An error or a panic stops the node with the reason.
pub(crate) fn guarded(thread: &str, inbox: &Inbox, body: impl FnOnce() -> Result<(), StopReason>) {
    let reason = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return,
        Ok(Err(reason)) => reason,
        Err(panic) => StopReason::new(format_args!(
            "the {thread} thread panicked: {}; start the node again, and report the panic",
            panic_text(panic.as_ref())
        )),
    };
    tracing::error!(%reason, "the node stops");
    inbox.report(Event::Failed(reason));
}
