//! Counts and latencies of operations while they run.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::pace::Timing;
use super::plan::Operation;
use crate::exit::Failure;

/// Significant digits of recorded latencies.
const DIGITS: u8 = 3;
/// Slots of a run for throughput over time.
const SLOTS: u32 = 40;

/// Why operations failed, as in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Busy,
    NotLeader,
    Unknown,
    Deadline,
    Other,
}

/// Operations that failed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Debug)]
pub(super) struct Errors {
    /// Not done: the node's queues were full until the deadline.
    pub(super) busy: u64,
    /// Not done: there was no leader until the deadline.
    pub(super) not_leader: u64,
    /// May have taken effect.
    pub(super) unknown: u64,
    /// Not done: the deadline passed.
    pub(super) deadline: u64,
    pub(super) other: u64,
}

impl Errors {
    fn count(&mut self, class: Class) {
        *match class {
            Class::Busy => &mut self.busy,
            Class::NotLeader => &mut self.not_leader,
            Class::Unknown => &mut self.unknown,
            Class::Deadline => &mut self.deadline,
            Class::Other => &mut self.other,
        } += 1;
    }

    pub(super) fn sum(&self) -> u64 {
        self.busy + self.not_leader + self.unknown + self.deadline + self.other
    }

    fn add(&mut self, other: &Self) {
        self.busy += other.busy;
        self.not_leader += other.not_leader;
        self.unknown += other.unknown;
        self.deadline += other.deadline;
        self.other += other.other;
    }
}

/// Operations of one kind.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) operation: Operation,
    /// Of the successful operations, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    pub(super) errors: Errors,
}

/// The results of a run, or of a part of it.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// One element for each kind of operation that ended.
    pub(super) kinds: Vec<Kind>,
    /// Successful operations, by the time of their responses.
    pub(super) slots: Vec<u64>,
    pub(super) slot: Duration,
    /// The longest delay after an intended time; 0 without a fixed rate.
    pub(super) behind_max: Duration,
    /// Time of the last response, relative to the start.
    pub(super) last_answer: Duration,
    /// The message of the first failure.
    pub(super) first_error: Option<String>,
}

impl Tally {
    /// An empty tally of a run of this length.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            kinds: Vec::new(),
            slots: Vec::new(),
            slot: (length / SLOTS).max(Duration::from_millis(25)),
            behind_max: Duration::ZERO,
            last_answer: Duration::ZERO,
            first_error: None,
        }
    }

    pub(super) fn record(
        &mut self,
        operation: Operation,
        timing: Timing,
        ended: Duration,
        outcome: Result<(), (Class, String)>,
    ) -> Result<(), Failure> {
        self.behind_max = self.behind_max.max(timing.behind);
        self.last_answer = self.last_answer.max(ended);
        let kind = self.kind(operation)?;
        match outcome {
            Ok(()) => {
                let nanos = u64::try_from(timing.latency.as_nanos()).unwrap_or(u64::MAX);
                kind.latency.record(nanos).map_err(unusable)?;
                let slot =
                    usize::try_from(ended.as_nanos() / self.slot.as_nanos()).unwrap_or(usize::MAX);
                // Responses long after the end are in no slot: the slots cover only the run itself.
                if slot < SLOTS as usize {
                    self.slots.resize(self.slots.len().max(slot + 1), 0);
                    self.slots[slot] += 1;
                }
            }
            Err((class, text)) => {
                kind.errors.count(class);
                self.first_error.get_or_insert(text);
            }
        }
        Ok(())
    }

    fn kind(&mut self, operation: Operation) -> Result<&mut Kind, Failure> {
        let at = match self.kinds.iter().position(|kind| kind.operation == operation) {
            Some(at) => at,
            None => {
                let latency = Histogram::new(DIGITS).map_err(unusable)?;
                self.kinds.push(Kind { operation, latency, errors: Errors::default() });
                self.kinds.len() - 1
            }
        };
        Ok(&mut self.kinds[at])
    }

    /// Adds another tally of the same run.
    pub(super) fn add(&mut self, other: &Self) -> Result<(), Failure> {
        for theirs in &other.kinds {
            let ours = self.kind(theirs.operation)?;
            ours.latency.add(&theirs.latency).map_err(unusable)?;
            ours.errors.add(&theirs.errors);
        }
        self.slots.resize(self.slots.len().max(other.slots.len()), 0);
        self.slots.iter_mut().zip(&other.slots).for_each(|(ours, theirs)| *ours += theirs);
        self.behind_max = self.behind_max.max(other.behind_max);
        self.last_answer = self.last_answer.max(other.last_answer);
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        Ok(())
    }

    pub(super) fn succeeded(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.latency.len()).sum()
    }

    pub(super) fn errors(&self) -> Errors {
        let mut all = Errors::default();
        self.kinds.iter().for_each(|kind| all.add(&kind.errors));
        all
    }

    /// Returns the latencies of all kinds together.
    pub(super) fn latency(&self) -> Result<Histogram<u64>, Failure> {
        let mut all = Histogram::new(DIGITS).map_err(unusable)?;
        for kind in &self.kinds {
            all.add(&kind.latency).map_err(unusable)?;
        }
        Ok(all)
    }
}

fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::failed(format_args!("latencies cannot be recorded: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole() {
        let at = Duration::from_millis;
        let timing = |ms| Timing { latency: at(ms), behind: at(ms / 2) };
        let mut whole = Tally::new(at(1_000));
        let mut part = whole.clone();
        part.record(Operation::Put, timing(4), at(10), Ok(())).unwrap();
        part.record(Operation::Get, timing(8), at(30), Ok(())).unwrap();
        for class in [Class::Busy, Class::NotLeader, Class::Unknown, Class::Deadline, Class::Other]
        {
            part.record(Operation::Put, timing(1), at(990), Err((class, format!("{class:?}"))))
                .unwrap();
        }
        whole.add(&part).unwrap();
        whole.add(&part).unwrap();
        assert_eq!((whole.succeeded(), whole.errors().sum()), (4, 10));
        assert_eq!(
            whole.errors(),
            Errors { busy: 2, not_leader: 2, unknown: 2, deadline: 2, other: 2 }
        );
        assert_eq!(whole.slots, [2, 2]);
        assert_eq!((whole.behind_max, whole.last_answer), (at(4), at(990)));
        assert_eq!(whole.first_error.as_deref(), Some("Busy"));
        let latency = whole.latency().unwrap();
        assert!((7_990_000..8_010_000).contains(&latency.max()) && latency.len() == 4);
    }
}
