//! Detects that the log's disk or the state machine hangs, so that a leader transfers its
//! leadership. Heartbeats need neither of them; without this check a leader that hangs would lead
//! forever.
//!
//! A worker *hangs* if it has a job and has reported nothing for the longest election timeout. A
//! worker that is slow and still reports does not hang.

use std::time::Duration;

use d_engine_core::Instant;

/// Whether a worker that has reported something has a further job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkLeft {
    Some,
    None,
}

/// The watch over one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerWatch {
    /// Since when the worker has had a job and has reported nothing; `None` while it has no job.
    silent_since: Option<Instant>,
    /// Whether it was found to hang and has reported nothing since.
    hangs: bool,
    /// Whether its present job may take any time.
    is_exempt: bool,
}

impl WorkerWatch {
    /// The worker was given a job.
    pub(crate) fn given(&mut self, now: Instant) {
        if !self.is_exempt {
            self.silent_since.get_or_insert(now);
        }
    }

    /// Begins an exemption, during which silence does not count as a hang, or ends it: then the
    /// next job, or the next report, starts the watch again.
    pub(crate) fn set_exempt(&mut self, is_exempt: bool) {
        self.is_exempt = is_exempt;
        self.silent_since = self.silent_since.filter(|_| !is_exempt);
    }

    /// The worker has reported something.
    pub(crate) fn came_back(&mut self, now: Instant, left: WorkLeft) {
        self.silent_since = (left == WorkLeft::Some && !self.is_exempt).then_some(now);
    }

    /// Checks whether it hangs. Returns the new state if it has changed.
    pub(crate) fn look(&mut self, now: Instant, limit: Duration) -> Option<bool> {
        let hangs = self.silent_since.is_some_and(|since| now.since(since) >= limit);
        (hangs != self.hangs).then(|| {
            self.hangs = hangs;
            hangs
        })
    }

    pub(crate) fn hangs(&self) -> bool {
        self.hangs
    }

    /// When to check next.
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
        assert_eq!(watch.look(at(9_000), LIMIT), None, "it has no job");
        watch.given(at(1_000));
        watch.given(at(1_900));
        assert_eq!(watch.deadline(LIMIT), Some(at(2_000)));
        assert_eq!(watch.look(at(1_999), LIMIT), None);
        watch.came_back(at(1_999), WorkLeft::Some);
        assert_eq!(watch.look(at(2_998), LIMIT), None, "slow, but it reports");
        assert_eq!(watch.look(at(2_999), LIMIT), Some(true));
        assert_eq!((watch.look(at(3_500), LIMIT), watch.hangs()), (None, true), "reported once");
        watch.came_back(at(4_000), WorkLeft::None);
        assert_eq!(watch.look(at(4_000), LIMIT), Some(false));
        assert_eq!(watch.look(at(9_000), LIMIT), None);
    }
}
