//! Shrinks a failing run: fewer faults, a shorter run, fewer calls of clients, while the same rule
//! breaks. A part of a run is as deterministic as the run, so what is found here can be repeated.

use std::collections::BTreeSet;

use crate::monitors::violation::Rule;
use crate::reduction::{Disturbance, Numbers, Reduction};
use crate::run::{Report, RunOptions, follow, record};
use crate::time::{MS, SECOND};
use crate::world::script::Script;

/// The most runs that one shrinking makes.
pub const RUNS_MAX: u64 = 200;
/// The most times that everything is tried again after something else was left out.
const ROUNDS_MAX: u64 = 3;

/// A part of a failing run that breaks the same rule.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The part.
    pub reduction: Reduction,
    /// Its run.
    pub report: Report,
    /// Runs made so far.
    pub runs: u64,
    /// How many of the whole run's faults are left, and how many it has.
    pub faults: (usize, usize),
    /// How many of the whole run's calls are left, and how many it has.
    pub calls: (usize, usize),
}

/// Shrinks the run of a failing seed. `goes_on` is called before every run with the smallest part
/// so far, and ends the search when it returns false. Returns `None` if the run does not fail.
pub fn shrink(
    seed: u64,
    options: RunOptions,
    goes_on: &mut dyn FnMut(&Shrunk) -> bool,
) -> Option<Shrunk> {
    let options = RunOptions { trace: false, ..options };
    let (whole, script) = record(seed, options);
    let rule = whole.finding.as_ref()?.violation.rule;
    let (faults, calls) = (script.faults().count(), script.calls().count());
    let best = Shrunk {
        reduction: Reduction::default(),
        report: whole,
        runs: 1,
        faults: (faults, faults),
        calls: (calls, calls),
    };
    let mut search = Search { seed, options, script, rule, best, goes_on, is_over: false };
    for _ in 0..ROUNDS_MAX {
        let before = search.best.reduction.clone();
        search.round();
        if search.is_over || search.best.reduction == before {
            break;
        }
    }
    Some(search.best)
}

/// What is numbered.
#[derive(Clone, Copy)]
enum Sequence {
    Faults,
    Calls,
}

struct Search<'a> {
    seed: u64,
    options: RunOptions,
    script: Script,
    rule: Rule,
    best: Shrunk,
    goes_on: &'a mut dyn FnMut(&Shrunk) -> bool,
    is_over: bool,
}

impl Search<'_> {
    fn round(&mut self) {
        self.end_sooner();
        self.leave_out_disturbances();
        self.thin_out(Sequence::Faults);
        self.thin_out(Sequence::Calls);
        self.end_sooner();
    }

    /// Runs a part of the run; if it breaks the same rule, it is the best one. Returns whether it
    /// does.
    fn attempt(&mut self, reduction: Reduction) -> bool {
        if reduction == self.best.reduction {
            return false;
        }
        self.is_over |= self.best.runs >= RUNS_MAX || !(self.goes_on)(&self.best);
        if self.is_over {
            return false;
        }
        self.best.runs += 1;
        let report = follow(self.seed, self.options, &self.script, &reduction);
        if report.finding.as_ref().map(|finding| finding.violation.rule) != Some(self.rule) {
            return false;
        }
        let left = |numbers: &Option<Numbers>, total| {
            numbers.as_ref().map_or(total, |numbers| numbers.iter().count())
        };
        self.best.faults.0 = left(&reduction.faults, self.best.faults.1);
        self.best.calls.0 = left(&reduction.calls, self.best.calls.1);
        (self.best.reduction, self.best.report) = (reduction, report);
        true
    }

    /// When the faults end, at the latest.
    fn end(&self) -> u64 {
        let end = SECOND + self.options.seconds * SECOND;
        self.best.reduction.until.map_or(end, |until| until.min(end))
    }

    fn attempt_until(&mut self, until: u64) -> bool {
        let until = Some(until.div_ceil(MS) * MS);
        self.attempt(Reduction { until, ..self.best.reduction.clone() })
    }

    /// Lets the faults end just after the rule is broken, or, if it is broken only after their end,
    /// as soon as it still is.
    fn end_sooner(&mut self) {
        let (at, end) = (self.best.report.finding.as_ref().map_or(0, |it| it.at), self.end());
        if at < end {
            self.attempt_until(at + 1);
            return;
        }
        let (mut fails_at, mut holds_at) = (end, SECOND);
        while fails_at > holds_at + SECOND && !self.is_over {
            let middle = holds_at + (fails_at - holds_at) / 2;
            if self.attempt_until(middle) {
                fails_at = middle;
            } else {
                holds_at = middle;
            }
        }
    }

    fn leave_out_disturbances(&mut self) {
        let none = Some(BTreeSet::new());
        if self.attempt(Reduction { kinds: none, ..self.best.reduction.clone() }) {
            return;
        }
        for disturbance in Disturbance::ALL {
            let all = || BTreeSet::from(Disturbance::ALL);
            let mut kinds = self.best.reduction.kinds.clone().unwrap_or_else(all);
            if kinds.remove(&disturbance) {
                self.attempt(Reduction { kinds: Some(kinds), ..self.best.reduction.clone() });
            }
        }
    }

    fn only(&self, sequence: Sequence, numbers: &[u64]) -> Reduction {
        let numbers = Some(numbers.iter().copied().collect());
        let best = self.best.reduction.clone();
        match sequence {
            Sequence::Faults => Reduction { faults: numbers, ..best },
            Sequence::Calls => Reduction { calls: numbers, ..best },
        }
    }

    /// The numbers of the steps that are left.
    fn left(&self, sequence: Sequence) -> Vec<u64> {
        let end = self.end();
        let (steps, numbers): (Vec<_>, _) = match sequence {
            Sequence::Faults => (self.script.faults().collect(), &self.best.reduction.faults),
            Sequence::Calls => (self.script.calls().collect(), &self.best.reduction.calls),
        };
        let is_left = |number| numbers.as_ref().is_none_or(|numbers| numbers.contains(number));
        let can_matter = steps.into_iter().filter(|step| step.has_effect && step.at <= end);
        can_matter.map(|step| step.number).filter(|number| is_left(*number)).collect()
    }

    /// Leaves out as many steps as possible: all, then halves, quarters and so on to single ones.
    fn thin_out(&mut self, sequence: Sequence) {
        let mut left = self.left(sequence);
        // Steps without an effect, and those after the end.
        self.attempt(self.only(sequence, &left));
        let mut size = left.len();
        while size > 0 && !self.is_over {
            let mut from = 0;
            while from < left.len() && !self.is_over {
                let to = (from + size).min(left.len());
                let (before, after) = left.split_at(from);
                let fewer = [before, after.get(to - from..).unwrap_or_default()].concat();
                if self.attempt(self.only(sequence, &fewer)) {
                    left = fewer;
                } else {
                    from = to;
                }
            }
            size = if size == 1 { 0 } else { size.min(left.len()).div_ceil(2) };
        }
    }
}
