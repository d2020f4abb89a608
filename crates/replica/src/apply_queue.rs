//! What the apply worker has been given, and what it may be given next. A few jobs are on their
//! way at most; everything else stays in the log, so a slow state machine costs no memory.

use d_engine_core::{LogId, LogIndex};

use crate::event::{ApplyJob, ApplySource};
use crate::log_cache::LogCache;
use crate::proposals::Proposals;

#[derive(Debug)]
pub(crate) struct ApplyQueue {
    /// How far the core lets the state machine go.
    allowed: LogIndex,
    /// The last entry of the last job given out.
    given: LogIndex,
    /// The last entry reported as applied.
    applied: LogIndex,
    jobs_out: usize,
    /// A snapshot that takes the place of everything up to its label, once that may be applied.
    snapshot: Option<LogId>,
    jobs_max: usize,
    entries_max: u64,
}

impl ApplyQueue {
    /// A queue behind a state machine that stands at `applied`.
    pub(crate) fn new(applied: LogIndex, jobs_max: usize, entries_max: u64) -> Self {
        Self { allowed: applied, given: applied, applied, jobs_out: 0, snapshot: None, jobs_max, entries_max }
    }

    pub(crate) fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(crate) fn jobs_out(&self) -> usize {
        self.jobs_out
    }

    pub(crate) fn allow(&mut self, index: LogIndex) {
        self.allowed = self.allowed.max(index);
    }

    /// Whether nothing is on its way to the apply worker.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs_out == 0
    }

    /// A snapshot comes next, in the place of all entries up to `label`.
    pub(crate) fn install(&mut self, label: LogId) {
        self.snapshot = Some(label);
    }

    /// A job has come back.
    pub(crate) fn done(&mut self, through: LogIndex) {
        self.jobs_out = self.jobs_out.saturating_sub(1);
        self.applied = self.applied.max(through);
    }

    /// The next job, if one may be given out.
    pub(crate) fn next_job(&mut self, cache: &LogCache, proposals: &mut Proposals) -> Option<ApplyJob> {
        if self.jobs_out >= self.jobs_max || self.given >= self.allowed {
            return None;
        }
        if let Some(label) = self.snapshot {
            if self.allowed < label.index {
                return None;
            }
            self.snapshot = None;
            self.given = label.index;
            self.jobs_out += 1;
            return Some(ApplyJob { source: ApplySource::Snapshot(label.into()), responders: Vec::new() });
        }
        let first = self.given.next();
        let mut last = self.allowed.min(self.given.plus(self.entries_max));
        let source = if first < cache.first() {
            last = last.min(cache.first().previous());
            ApplySource::Stored(first, last)
        } else {
            ApplySource::Entries(cache.copy(first, last)?)
        };
        self.given = last;
        self.jobs_out += 1;
        Some(ApplyJob { source, responders: proposals.take_to(last) })
    }
}
