//! The order in which the log worker does its work.
//!
//! Work arrives in batches: everything queued. A batch is persisted first; then the log is purged.
//! Without work the worker waits: for space, to retry what does not fit; to use an idle log; to
//! look for free space while commands are refused; or for work alone. The driver passes a batch to
//! [`LogSteps::start`] and executes what [`LogSteps::next`] returns. If a wait ends without work,
//! it calls [`LogSteps::waited`] and continues. The server's log thread and the simulator are such
//! drivers.

use std::time::Duration;

use d_engine_core::LogId;

use crate::event::PersistJob;
use crate::log::worker::LogWorker;

/// The log is idle after this time without a write; then it records that its last write group is
/// durable.
const IDLE_AFTER: Duration = Duration::from_millis(100);
/// How often a log without free space retries.
pub const SPACE_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How often a node that refuses commands for lack of space checks the free space.
const FREE_SPACE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A batch of work for the log worker. Its length is bounded by what the replica hands out.
#[derive(Debug, Default)]
pub struct LogWork {
    /// What is to be persisted, in its order.
    pub writes: Vec<PersistJob>,
    /// Where the log is to begin.
    pub purge: Option<LogId>,
}

impl LogWork {
    /// Adds what the replica requests; a later purge includes an earlier one.
    pub fn add(&mut self, writes: &mut Vec<PersistJob>, purge: Option<LogId>) {
        self.writes.append(writes);
        self.purge = purge.or(self.purge);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.purge.is_none()
    }
}

/// What the driver does next.
#[derive(Debug)]
pub enum LogStep {
    /// Call [`LogWorker::persist`], and report what it and [`LogWorker::events`] return.
    Persist(Vec<PersistJob>),
    /// Call [`LogWorker::purge`], and report in the same way.
    Purge(LogId),
    /// Call [`LogWorker::idle`], and report in the same way.
    Idle,
    /// Wait for work.
    Wait(LogWait),
}

/// What the log worker waits for, beside work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogWait {
    /// Writes or a purge do not fit on the disk.
    ForSpace,
    /// The log was written a moment ago.
    ForIdle,
    /// Commands are refused, so no write would discover that there is space again.
    ForFreeSpace,
    /// Nothing.
    ForWork,
}

impl LogWait {
    /// How long to wait; `None` stands for no limit.
    #[must_use]
    pub fn timeout(self) -> Option<Duration> {
        match self {
            Self::ForSpace => Some(SPACE_RETRY_INTERVAL),
            Self::ForIdle => Some(IDLE_AFTER),
            Self::ForFreeSpace => Some(FREE_SPACE_CHECK_INTERVAL),
            Self::ForWork => None,
        }
    }
}

/// The order of the work, and what is left of the present batch.
#[derive(Debug)]
pub struct LogSteps {
    writes: Option<Vec<PersistJob>>,
    purge: Option<LogId>,
    is_idle_due: bool,
    idle_calls_left: u32,
    idle_calls_max: u32,
}

impl LogSteps {
    /// Creates the order for a log that was just opened. After each batch an idle log is used at
    /// most `idle_calls_max` times; each time it prepares a part of the next segment.
    #[must_use]
    pub fn new(idle_calls_max: u32) -> Self {
        Self {
            writes: None,
            purge: None,
            is_idle_due: false,
            idle_calls_left: idle_calls_max,
            idle_calls_max,
        }
    }

    /// Begins a batch. The one before it must be done.
    pub fn start(&mut self, work: LogWork) {
        if !work.writes.is_empty() {
            self.idle_calls_left = self.idle_calls_max;
        }
        self.writes = Some(work.writes);
        self.purge = work.purge;
    }

    /// A wait has ended without work.
    pub fn waited(&mut self, log: &LogWorker) {
        if log.waits() {
            self.start(LogWork::default());
        } else {
            self.is_idle_due = true;
        }
    }

    /// Returns what to do next.
    pub fn next(&mut self, log: &LogWorker) -> LogStep {
        if let Some(writes) = self.writes.take() {
            return LogStep::Persist(writes);
        }
        if let Some(through) = self.purge.take() {
            return LogStep::Purge(through);
        }
        if std::mem::take(&mut self.is_idle_due) {
            self.idle_calls_left = self.idle_calls_left.saturating_sub(1);
            return LogStep::Idle;
        }
        LogStep::Wait(match log.waits() {
            true => LogWait::ForSpace,
            false if self.idle_calls_left > 0 => LogWait::ForIdle,
            false if log.is_short_of_room() => LogWait::ForFreeSpace,
            false => LogWait::ForWork,
        })
    }
}
