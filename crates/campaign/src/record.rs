//! The record of a run: findings, counts, pauses. All threads and tasks share it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d_engine_locks::Unpoisoned;

use crate::shell::{Outcome, doing};

/// The record of a run.
#[derive(Debug)]
pub(crate) struct Record {
    begin: Instant,
    stop: AtomicBool,
    /// Operations that succeeded.
    pub(crate) ok: AtomicU64,
    /// Operations that failed and certainly did not take effect, and failed reads.
    pub(crate) failed: AtomicU64,
    /// Commands of unknown outcome.
    pub(crate) unknown: AtomicU64,
    inner: Mutex<Inner>,
    events: Mutex<File>,
}

/// How often each thing occurred.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

#[derive(Debug, Default)]
struct Inner {
    findings: Vec<String>,
    faults: Counts,
    changes: Counts,
    answers: Counts,
    pauses: Pauses,
}

/// The times in which no write was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pauses {
    last: Duration,
    /// When so many nodes were last under a fault that no majority was without one.
    many_until: Duration,
    /// The longest pause.
    pub(crate) longest: Duration,
    /// The longest pause in which a majority was without a fault, and when it ended.
    pub(crate) with_majority: (Duration, Duration),
}

impl Record {
    /// Creates a record whose events are also written to `dir`/events.log.
    pub(crate) fn new(dir: &Path) -> Outcome<Self> {
        let events = File::create(dir.join("events.log")).map_err(doing("events.log"))?;
        Ok(Self {
            begin: Instant::now(),
            stop: AtomicBool::new(false),
            ok: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            inner: Mutex::default(),
            events: Mutex::new(events),
        })
    }

    /// Returns the time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Returns whether the run shall end.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends the run.
    pub(crate) fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unpoisoned()
    }

    /// Prints an event, and writes it to the log of events.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("[{:7.1} s] {text}", self.now().as_secs_f64());
        println!("{line}");
        let mut events = self.events.lock().unpoisoned();
        if let Err(error) = writeln!(events, "{line}") {
            eprintln!("campaign: events.log: {error}");
        }
    }

    /// Records a finding, that is a broken promise.
    pub(crate) fn finding(&self, text: &str) {
        self.say(&format!("FINDING: {text}"));
        self.inner().findings.push(text.to_owned());
    }

    /// Returns all findings.
    pub(crate) fn findings(&self) -> Vec<String> {
        self.inner().findings.clone()
    }

    /// Counts a fault.
    pub(crate) fn fault(&self, name: &'static str) {
        *self.inner().faults.entry(name).or_default() += 1;
    }

    /// Returns how often each fault occurred.
    pub(crate) fn faults(&self) -> Counts {
        self.inner().faults.clone()
    }

    /// Counts a change of the members that is done.
    pub(crate) fn change(&self, name: &'static str) {
        *self.inner().changes.entry(name).or_default() += 1;
    }

    /// Returns how often each change of the members was done.
    pub(crate) fn changes(&self) -> Counts {
        self.inner().changes.clone()
    }

    /// Counts how a `member` command ended.
    pub(crate) fn answer(&self, name: &'static str) {
        *self.inner().answers.entry(name).or_default() += 1;
    }

    /// Returns how the `member` commands ended.
    pub(crate) fn answers(&self) -> Counts {
        self.inner().answers.clone()
    }

    /// Records that a write was acknowledged.
    pub(crate) fn acknowledged(&self) {
        let now = self.now();
        self.inner().pauses.acknowledged(now);
    }

    /// Records that no majority is without a fault now.
    pub(crate) fn many_faults(&self) {
        let now = self.now();
        self.inner().pauses.many_until = now;
    }

    /// Returns the pauses so far.
    pub(crate) fn pauses(&self) -> Pauses {
        self.inner().pauses
    }
}

impl Pauses {
    /// Returns when the last write was acknowledged.
    pub(crate) fn last(self) -> Duration {
        self.last
    }

    fn acknowledged(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.last);
        self.longest = self.longest.max(pause);
        if self.many_until < self.last && pause > self.with_majority.0 {
            self.with_majority = (pause, now);
        }
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_with_many_faults_in_it_is_told_apart() {
        let at = Duration::from_secs;
        let mut pauses = Pauses::default();
        pauses.acknowledged(at(1));
        pauses.acknowledged(at(3));
        assert_eq!(pauses.with_majority, (at(2), at(3)));
        pauses.many_until = at(5);
        pauses.acknowledged(at(13));
        assert_eq!((pauses.longest, pauses.with_majority), (at(10), (at(2), at(3))));
        pauses.acknowledged(at(17));
        assert_eq!(pauses.with_majority, (at(4), at(17)));
    }
}
