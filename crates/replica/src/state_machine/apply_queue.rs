//! The jobs that the apply worker has, and the next one that it may be given. Only a few jobs are
//! in flight; everything else stays in the log, so a slow state machine costs no memory.

use d_engine_core::LogIndex;

use crate::clients::proposals::Proposals;
use crate::event::{ApplyJob, ApplySource, ApplyStop, SkippedEntry};
use crate::log::cache::LogCache;
use crate::state_machine::skips::{Skip, Skips};
use crate::{LogId, StopReason};

#[derive(Debug)]
pub(crate) struct ApplyQueue {
    /// The core allows apply up to this index.
    allowed: LogIndex,
    /// The last entry of the last job that was given out.
    given: LogIndex,
    /// The last entry reported as applied.
    applied: LogIndex,
    jobs_out: usize,
    /// The last included entry of a snapshot that replaces everything up to there, once the core
    /// allows apply to that index.
    snapshot: Option<LogId>,
    jobs_max: usize,
    entries_max: u64,
    /// Where the state machine is halted. Only a job that takes it past that entry is given out.
    stop: Option<ApplyStop>,
}

impl ApplyQueue {
    /// Creates a queue for a state machine that has applied up to `applied`.
    pub(crate) fn new(applied: LogIndex, jobs_max: usize, entries_max: u64) -> Self {
        let (jobs_out, snapshot, stop) = (0, None, None);
        Self {
            allowed: applied,
            given: applied,
            applied,
            jobs_out,
            snapshot,
            jobs_max,
            entries_max,
            stop,
        }
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

    /// Whether the apply worker has no job.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs_out == 0
    }

    /// The next job installs a snapshot, instead of applying the entries up to `last_included`.
    pub(crate) fn install(&mut self, last_included: LogId) {
        self.snapshot = Some(last_included);
    }

    /// A job has ended; the state machine has applied up to `through`.
    pub(crate) fn done(&mut self, through: LogIndex) {
        self.jobs_out = self.jobs_out.saturating_sub(1);
        self.applied = self.applied.max(through);
        self.stop.take_if(|stop| stop.last.index <= through);
    }

    /// A job was not executed, because the state machine is halted. Returns whether it is halted
    /// at other entries than before.
    pub(crate) fn stopped(&mut self, through: LogIndex, stop: ApplyStop) -> bool {
        self.done(through);
        self.given = self.applied;
        let same = |known: &ApplyStop| (known.first, known.last) == (stop.first, stop.last);
        let news = !self.stop.as_ref().is_some_and(same);
        if news {
            self.stop = Some(stop);
        }
        news
    }

    /// Whether the entry at which the machine is halted has been skipped and only a restart gets
    /// the machine past it. Returns `true` once.
    pub(crate) fn waits_for_restart(&mut self, skips: &Skips) -> bool {
        let Some(stop) = self.stop.as_mut().filter(|stop| stop.needs_restart()) else {
            return false;
        };
        let skip = skips.next_from(stop.first.index);
        let inside = |skip: &&Skip| skip.at <= self.allowed && skip.target.index <= stop.last.index;
        let Some(skip) = skip.filter(inside) else { return false };
        let reason = StopReason::new(format_args!(
            "the entry at {} is skipped; start this node again, so that its state machine \
             continues after it",
            skip.target
        ));
        std::mem::replace(&mut stop.reason, reason.clone()) != reason
    }

    /// Where the state machine is halted, if it is.
    pub(crate) fn stop(&self) -> Option<&ApplyStop> {
        self.stop.as_ref()
    }

    /// The next job, if one may be given out.
    pub(crate) fn next_job(
        &mut self,
        cache: &LogCache,
        proposals: &mut Proposals,
        skips: &Skips,
    ) -> Option<ApplyJob> {
        // While it is halted, the next job begins at that entry: all later jobs have been returned.
        let jobs_max = if self.stop.is_some() { 1 } else { self.jobs_max };
        if self.jobs_out >= jobs_max || self.given >= self.allowed {
            return None;
        }
        if let Some(last_included) = self.snapshot {
            if self.allowed < last_included.index {
                return None;
            }
            self.snapshot = None;
            self.given = last_included.index;
            self.jobs_out += 1;
            let source = ApplySource::Snapshot(last_included);
            return Some(ApplyJob { source, responders: Vec::new(), skip: None });
        }
        let first = self.given.next();
        let mut last = self.allowed.min(self.given.plus(self.entries_max));
        let named = skips.next_from(first).filter(|skip| skip.target.index <= last);
        let decided = named.filter(|skip| skip.at <= self.allowed);
        if let Some(skip) = named {
            // The named entry is applied only after the decision, and then as the last one of a
            // job.
            last = if decided.is_some() { skip.target.index } else { skip.target.index.previous() };
        }
        // A halted machine is given only the job that takes it past its entry.
        let stays = |stop: &ApplyStop| {
            let past = decided.map(|skip| skip.target);
            stop.needs_restart() || past != stop.halted_at()
        };
        if last < first || self.stop.as_ref().is_some_and(stays) {
            return None;
        }
        let source = if first < cache.first() {
            if decided.is_none() {
                last = last.min(cache.first().previous());
            }
            ApplySource::Stored(first, last)
        } else {
            ApplySource::Entries(cache.copy(first, last)?)
        };
        self.given = last;
        self.jobs_out += 1;
        let skip = decided.filter(|skip| skip.target.index == last);
        let skip = skip.map(|skip| SkippedEntry { target: skip.target, decided_at: skip.at.get() });
        Some(ApplyJob { source, responders: proposals.take_to(last), skip })
    }
}
