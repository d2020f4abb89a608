//! What the apply worker has been given, and what it may be given next. A few jobs are on their
//! way at most; everything else stays in the log, so a slow state machine costs no memory.

use d_engine_core::LogIndex;

use crate::event::{ApplyJob, ApplySource, ApplyStop, SkippedEntry};
use crate::log_cache::LogCache;
use crate::proposals::Proposals;
use crate::skips::{Skip, Skips};
use crate::{LogId, StopReason};

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
    snapshot: Option<d_engine_core::LogId>,
    jobs_max: usize,
    entries_max: u64,
    /// Where the state machine stands: nothing but what gets it past that is given out.
    stop: Option<ApplyStop>,
}

impl ApplyQueue {
    /// A queue behind a state machine that stands at `applied`.
    pub(crate) fn new(applied: LogIndex, jobs_max: usize, entries_max: u64) -> Self {
        let (jobs_out, snapshot, stop) = (0, None, None);
        Self { allowed: applied, given: applied, applied, jobs_out, snapshot, jobs_max, entries_max, stop }
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
    pub(crate) fn install(&mut self, label: d_engine_core::LogId) {
        self.snapshot = Some(label);
    }

    /// A job has come back.
    pub(crate) fn done(&mut self, through: LogIndex) {
        self.jobs_out = self.jobs_out.saturating_sub(1);
        self.applied = self.applied.max(through);
        self.stop.take_if(|stop| stop.last.index <= through.get());
    }

    /// A job has come back undone: the state machine stands. Returns whether that, or what it says, is news.
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

    /// Whether the entry at which the machine stands is skipped by now, and only a restart gets it past that. Told once.
    pub(crate) fn waits_for_restart(&mut self, skips: &Skips) -> bool {
        let Some(stop) = self.stop.as_mut().filter(|stop| stop.needs_restart()) else { return false };
        let skip = skips.next_from(LogIndex::new(stop.first.index));
        let inside = |skip: &&Skip| skip.at <= self.allowed && skip.target.index.get() <= stop.last.index;
        let Some(skip) = skip.filter(inside) else { return false };
        let reason = StopReason::new(format_args!(
            "the entry at {} is skipped; start this node again, so that its state machine goes on behind it",
            LogId::from(skip.target)
        ));
        std::mem::replace(&mut stop.reason, reason.clone()) != reason
    }

    /// Where the state machine stands, if it does.
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
        // Where it stands, the next job begins at that entry: all that were behind it have come back.
        let jobs_max = if self.stop.is_some() { 1 } else { self.jobs_max };
        if self.jobs_out >= jobs_max || self.given >= self.allowed {
            return None;
        }
        if let Some(label) = self.snapshot {
            if self.allowed < label.index {
                return None;
            }
            self.snapshot = None;
            self.given = label.index;
            self.jobs_out += 1;
            let source = ApplySource::Snapshot(label.into());
            return Some(ApplyJob { source, responders: Vec::new(), skip: None });
        }
        let first = self.given.next();
        let mut last = self.allowed.min(self.given.plus(self.entries_max));
        let named = skips.next_from(first).filter(|skip| skip.target.index <= last);
        let decided = named.filter(|skip| skip.at <= self.allowed);
        if let Some(skip) = named {
            // Not before it is decided whether it is skipped, and then as the last one of a job.
            last = if decided.is_some() { skip.target.index } else { skip.target.index.previous() };
        }
        // A machine that stands is given what gets it past its entry, and nothing else.
        let stays = |stop: &ApplyStop| {
            let past = decided.map(|skip| skip.target.into());
            stop.needs_restart() || past != stop.stands_at()
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
        let skip = skip.map(|skip| SkippedEntry { target: skip.target.into(), decided_at: skip.at.get() });
        Some(ApplyJob { source, responders: proposals.take_to(last), skip })
    }
}
