//! The faults and calls of a run: recorded, so that a reduced run of the same seed can leave some
//! out without changing the others.
//!
//! Faults of one kind, and the turns of one client, follow each other in a chain: each draws when
//! the next one comes. The draws come from streams that the rest of the run draws from too, so a
//! fault that is left out would change all later ones. A reduced run therefore takes the time of
//! each step, and the state of the streams from which its details are drawn, from the record of the
//! whole run.

use std::collections::BTreeMap;
use std::fmt;

use crate::faults::Fault;
use crate::prng::Prng;
use crate::reduction::{Numbers, Reduction};
use crate::time::MS;
use crate::world::event::Chain;

/// The streams of a run from which a fault or a call may draw.
pub(crate) const STREAMS: usize = 8;
/// The states of these streams.
pub(crate) type Streams = [Prng; STREAMS];

/// A fault or a call of a run.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number among the faults, or among the calls, of the whole run.
    pub number: u64,
    /// When it happens, in simulated nanoseconds.
    pub at: u64,
    /// The faults that it counts as; for a call, and where nothing could be disturbed, none.
    pub faults: Vec<Fault>,
    /// Whether it did anything.
    pub(crate) has_effect: bool,
    chain: Chain,
    before: Streams,
    after: Streams,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, millis) = (self.number, self.at.div_ceil(MS));
        write!(
            f,
            "fault {number} at {}.{:03} s: {:?}",
            millis / 1_000,
            millis % 1_000,
            self.chain
        )?;
        if self.faults.is_empty() { Ok(()) } else { write!(f, " {:?}", self.faults) }
    }
}

/// What a run does about its faults and calls.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Mode {
    #[default]
    Ignore,
    Record,
    Follow,
}

/// How to execute an event of a chain.
pub(crate) enum Turn {
    /// As in any run.
    Plain,
    /// As in any run, and with its effect recorded as that of this step.
    Recorded(usize),
    /// With the streams as they were in the whole run.
    Kept { before: Streams },
    /// Not at all; the streams that are where they were before the step move to where they were
    /// after it.
    LeftOut { before: Streams, after: Streams },
    /// Not at all, because the whole run had no such step.
    Unknown,
}

/// The faults and calls of a run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Script {
    mode: Mode,
    steps: Vec<Step>,
    by_chain: BTreeMap<Chain, Vec<usize>>,
    done: BTreeMap<Chain, usize>,
    faults: Option<Numbers>,
    calls: Option<Numbers>,
    /// The faults that have happened in a run that follows a record.
    happened: Vec<(usize, Vec<Fault>)>,
}

impl Script {
    /// Records the run.
    pub(crate) fn record() -> Self {
        Self { mode: Mode::Record, ..Self::default() }
    }

    /// Follows this record, without the faults and calls that the reduction leaves out.
    pub(crate) fn reduced(&self, reduction: &Reduction) -> Self {
        Self {
            mode: Mode::Follow,
            steps: self.steps.clone(),
            by_chain: self.by_chain.clone(),
            faults: reduction.faults.clone(),
            calls: reduction.calls.clone(),
            ..Self::default()
        }
    }

    /// Whether the events of chains need attention.
    pub(crate) fn is_on(&self) -> bool {
        self.mode != Mode::Ignore
    }

    /// The recorded faults.
    pub(crate) fn faults(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| !step.chain.is_of_client())
    }

    /// The recorded calls.
    pub(crate) fn calls(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.chain.is_of_client())
    }

    /// The faults that have happened in a run that follows a record.
    pub(crate) fn happened(&self) -> Vec<Step> {
        let step = |(place, faults): &(usize, Vec<Fault>)| {
            let step = self.steps.get(*place)?;
            Some(Step { faults: faults.clone(), ..step.clone() })
        };
        self.happened.iter().filter_map(step).collect()
    }

    fn next_step(&self, chain: Chain) -> Option<usize> {
        let done = self.done.get(&chain).copied().unwrap_or(0);
        self.by_chain.get(&chain)?.get(done).copied()
    }

    /// Returns when the next event of this chain comes, if the run follows a record.
    pub(crate) fn next_at(&self, chain: Chain) -> Option<u64> {
        if self.mode != Mode::Follow {
            return None;
        }
        self.steps.get(self.next_step(chain)?).map(|step| step.at)
    }

    /// An event of this chain is about to happen.
    pub(crate) fn begin(&mut self, chain: Chain, now: u64, streams: &Streams) -> Turn {
        let known = self.next_step(chain);
        *self.done.entry(chain).or_default() += 1;
        if self.mode == Mode::Record {
            return Turn::Recorded(self.push(chain, now, streams));
        }
        let only = if chain.is_of_client() { &self.calls } else { &self.faults };
        let Some((place, step)) = known.and_then(|place| Some((place, self.steps.get(place)?)))
        else {
            return if only.is_some() { Turn::Unknown } else { Turn::Plain };
        };
        let (before, after) = (step.before.clone(), step.after.clone());
        if only.as_ref().is_some_and(|only| !only.contains(step.number)) {
            return Turn::LeftOut { before, after };
        }
        if !chain.is_of_client() {
            self.happened.push((place, Vec::new()));
        }
        Turn::Kept { before }
    }

    fn push(&mut self, chain: Chain, at: u64, streams: &Streams) -> usize {
        let is_alike = |step: &&Step| step.chain.is_of_client() == chain.is_of_client();
        let number = self.steps.iter().rev().find(is_alike).map_or(0, |step| step.number) + 1;
        let place = self.steps.len();
        self.steps.push(Step {
            number,
            at,
            faults: Vec::new(),
            // Until the step has ended: a panic ends the run in it.
            has_effect: true,
            chain,
            before: streams.clone(),
            after: streams.clone(),
        });
        self.by_chain.entry(chain).or_default().push(place);
        place
    }

    /// Completes the record of a step.
    pub(crate) fn recorded(
        &mut self,
        place: usize,
        streams: Streams,
        faults: Vec<Fault>,
        has_effect: bool,
    ) {
        if let Some(step) = self.steps.get_mut(place) {
            (step.after, step.faults, step.has_effect) = (streams, faults, has_effect);
        }
    }

    /// A step of a run that follows a record has ended.
    pub(crate) fn followed(&mut self, chain: Chain, faults: Vec<Fault>) {
        if !chain.is_of_client()
            && let Some((_, happened)) = self.happened.last_mut()
        {
            *happened = faults;
        }
    }
}
