//! Notices that the log's disk or the state machine no longer comes back, so that a leader gives way:
//! heartbeats need neither, and without this a leader that hangs would lead for ever.
//!
//! A worker *hangs* when something was given to it and nothing has come back for the longest election
//! timeout. One that is slow and comes back is left alone.

use d_engine_core::{Duration, Instant};

/// One worker: what it was given last came back at, or was given at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerWatch {
    /// Since when it has been silent with something to do; `None` while it has nothing to do.
    silent_since: Option<Instant>,
    /// Was found to hang, and has not come back since.
    hangs: bool,
    /// It does something that may take as long as it takes.
    is_exempt: bool,
}

impl WorkerWatch {
    /// It has been given something.
    pub(crate) fn given(&mut self, now: Instant) {
        if !self.is_exempt {
            self.silent_since.get_or_insert(now);
        }
    }

    /// From now on its silence means nothing, or means something again.
    pub(crate) fn exempt(&mut self, now: Instant, is_exempt: bool, is_idle: bool) {
        self.is_exempt = is_exempt;
        self.came_back(now, is_idle);
    }

    /// Something came back; `is_idle` says whether that was all.
    pub(crate) fn came_back(&mut self, now: Instant, is_idle: bool) {
        self.silent_since = (!is_idle && !self.is_exempt).then_some(now);
    }

    /// Looks whether it hangs. Returns what has changed, if anything has.
    pub(crate) fn look(&mut self, now: Instant, limit: Duration) -> Option<bool> {
        let hangs = self.silent_since.is_some_and(|since| now.since(since) >= limit)
            && !cfg!(mutant = "hang-unnoticed");
        (hangs != self.hangs).then(|| {
            self.hangs = hangs;
            hangs
        })
    }

    pub(crate) fn hangs(&self) -> bool {
        self.hangs
    }

    /// When to look again.
    pub(crate) fn deadline(&self, limit: Duration) -> Option<Instant> {
        self.silent_since.filter(|_| !self.hangs).map(|since| since.plus(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(1_000);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn silence_counts_from_the_first_thing_given_or_the_last_that_came_back() {
        let mut watch = WorkerWatch::default();
        assert_eq!(watch.look(at(9_000), LIMIT), None, "it has nothing to do");
        watch.given(at(1_000));
        watch.given(at(1_900));
        assert_eq!(watch.deadline(LIMIT), Some(at(2_000)));
        assert_eq!(watch.look(at(1_999), LIMIT), None);
        watch.came_back(at(1_999), false);
        assert_eq!(watch.look(at(2_998), LIMIT), None, "slow is not dead");
        assert_eq!(watch.look(at(2_999), LIMIT), Some(true));
        assert_eq!((watch.look(at(3_500), LIMIT), watch.hangs()), (None, true), "told once");
        watch.came_back(at(4_000), true);
        assert_eq!(watch.look(at(4_000), LIMIT), Some(false));
        assert_eq!(watch.look(at(9_000), LIMIT), None);
    }
}
