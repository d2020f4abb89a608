//! The operator: changes the members while the faults go on, as a person would, with the `member`
//! commands and by starting processes. `plan.rs` decides what to do next and never destroys the
//! data of a majority, `steps.rs` executes the steps of a change (`job.rs`) without waiting, so
//! that the faults go on, `call.rs` runs the commands, and `book.rs` has the members as they are
//! to be.

mod book;
mod call;
mod job;
mod plan;
mod steps;

use std::collections::BTreeSet;
use std::time::Duration;

use d_engine_sim::Prng;

use self::book::{Book, Entry};
use self::job::{Job, Step, Victim};
use self::plan::Planner;
use crate::net::FOUNDERS;
use crate::shell::Outcome;
use crate::site::Site;

/// The longest pause between two changes, in milliseconds.
const PAUSE_MAX_MS: u64 = 3_000;

/// The operator. It makes one change at a time.
pub(crate) struct Operator {
    prng: Prng,
    book: Book,
    /// The highest id that was given.
    last_id: u64,
    job: Option<Job>,
    /// Changes that are done but for nodes that were removed and have not ended yet.
    tails: Vec<Job>,
    next_at: Duration,
}

impl Operator {
    /// Creates the operator of a cluster that consists of the founders.
    pub(crate) fn new(seed: u64) -> Self {
        let founder = |machine| (machine, Entry { id: machine, is_voter: true });
        Self {
            prng: Prng::stream(seed, "operator"),
            book: Book((1..=FOUNDERS).map(founder).collect()),
            last_id: FOUNDERS,
            job: None,
            tails: Vec::new(),
            next_at: Duration::ZERO,
        }
    }

    /// Goes on with the change in progress, or begins one unless it is calm. `faulty` are the
    /// machines under a fault. Returns the machine on which a node is to be killed now.
    pub(crate) fn turn(
        &mut self,
        site: &mut Site,
        faulty: &BTreeSet<u64>,
        is_calm: bool,
    ) -> Outcome<Option<u64>> {
        let now = site.record.now();
        for mut tail in std::mem::take(&mut self.tails) {
            self.go_on(&mut tail, site, faulty)?;
            if !tail.steps.is_empty() {
                self.tails.push(tail);
            }
        }
        let Some(mut job) = self.job.take() else {
            if !is_calm && now >= self.next_at {
                let planner = Planner { prng: &mut self.prng, book: &self.book, site };
                self.job = planner.plan();
                if let Some(job) = &self.job {
                    site.record.say(&format!("operator: {}: {}", job.change.name(), job.words));
                }
            }
            return Ok(None);
        };
        self.go_on(&mut job, site, faulty)?;
        if job.steps.front().is_none_or(|step| matches!(step, Step::Left(_))) {
            let (name, took) = (job.change.name(), now.saturating_sub(job.began));
            let took = took.as_secs_f64();
            site.record.say(&format!("operator: done: {name}: {}, {took:.1} s", job.words));
            site.record.change(name);
            self.next_at = now + Duration::from_millis(self.prng.between(100, PAUSE_MAX_MS));
            if !job.steps.is_empty() {
                self.tails.push(job);
            }
            return Ok(None);
        }
        let kills = job.kill_at.filter(|at| *at <= now && !is_calm).and(job.victim);
        if kills.is_some() {
            (job.victim, job.kill_at) = (None, None);
        }
        self.job = Some(job);
        Ok(match kills {
            Some(Victim::Leader) => site.view.leader(),
            Some(Victim::Machine(machine)) => Some(machine),
            None => None,
        })
    }

    /// Whether a majority of the voters is left without these machines, both of the voters before
    /// the change in progress and of those after it.
    pub(crate) fn has_majority_without(&self, concerned: &BTreeSet<u64>) -> bool {
        let Some(job) = &self.job else { return self.book.has_majority_without(concerned) };
        let down = concerned | &job.down;
        self.book.has_majority_without(&down) && job.after.has_majority_without(&down)
    }

    /// Describes what is not yet as the operator wants it.
    pub(crate) fn unsettled(&self, site: &Site) -> Option<String> {
        match self.job.iter().chain(&self.tails).next() {
            Some(job) => Some(format!(
                "{}: {}: waits at {:?}{}",
                job.change.name(),
                job.words,
                job.steps.front(),
                job.call
                    .as_ref()
                    .map(|call| format!(" (member {})", call.words))
                    .unwrap_or_default()
            )),
            None => self.book.differs(site),
        }
    }

    /// Checks that `member list` names the same committed configuration at every node.
    pub(crate) fn check_lists(&mut self, site: &Site) -> Outcome<()> {
        let mut first: Option<(String, String)> = None;
        for address in site.nodes.iter().filter(|node| !node.is_vacant()).map(|it| it.client_addr())
        {
            let listed = match call::listed(&site.binary, &address) {
                Ok(listed) => listed,
                Err(problem) => {
                    site.record.finding(&format!("`member list` at {address} failed: {problem}"));
                    continue;
                }
            };
            match &first {
                None => first = Some((address, listed)),
                Some((_, same)) if *same == listed => {}
                Some((other, there)) => site.record.finding(&format!(
                    "`member list` shows configuration {there} at {other} and {listed} at {address}"
                )),
            }
        }
        Ok(())
    }
}
