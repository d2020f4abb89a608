//! Commands that stop state machines, and an operator who looks at the cluster's status and does something about it: a newer
//! program where there is one, a restart where nobody knows the entry, and otherwise a request to skip it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d_engine_core::{EntryKind, LogId, RoleKind};
use d_engine_kv::KvCommand;
use d_engine_replica::{ApplyStop, Event, PersistJob, Proposal};

use crate::choking_machine::{BY_NOBODY, bad_command, needed};
use crate::faults::{Fault, Sometimes};
use crate::prng::Prng;
use crate::profile::{MS, SECOND};
use crate::world::{Happening, World};

/// How often the operator looks.
const LOOKS_EVERY: u64 = 400 * MS;

/// The part of a seed's profile that is about commands which stop state machines.
#[derive(Clone, Copy, Debug)]
pub struct StandingProfile {
    /// Mean time between such commands; zero for none.
    pub bad_every: u64,
    /// Chance that a newer program can apply one.
    pub mendable: u64,
    /// Chance that a node begins with the newer program.
    pub newer: u64,
}

impl StandingProfile {
    /// There are none.
    #[must_use]
    pub fn none() -> Self {
        Self { bad_every: 0, mendable: 0, newer: 0 }
    }

    /// The part of a seed's profile.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "standing");
        let is_on = prng.chance(200_000);
        let bad_every = if is_on { prng.between(4, 20) * SECOND } else { 0 };
        Self { bad_every, mendable: prng.between(0, 600_000), newer: prng.between(0, 1_000_000) }
    }
}

/// What has been seen of it.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    number: u64,
    /// Who has stood where, by a report that its replica has got.
    stood: BTreeSet<(u64, LogId)>,
    /// Requests that were refused.
    refused: Arc<AtomicU64>,
}

impl World {
    /// A command comes that some, or all, cannot apply.
    pub(crate) fn bad_command_comes(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        self.plan(self.profile.standing.bad_every, Happening::BadCommand);
        let Some(leader) = (1..=self.profile.nodes).find(|node| self.leads(*node)) else { return Ok(()) };
        let needs = if self.turn_prng.chance(self.profile.standing.mendable) { 1 } else { BY_NOBODY };
        self.standing.number += 1;
        let key = format!("bad-{}", self.standing.number % 4);
        let command = bad_command(needs, &KvCommand::put(key, self.standing.number.to_string()).encode());
        self.counts.fault(Fault::BadCommand);
        self.tell(leader, Event::Propose(vec![Proposal::new(command, None, Box::new(|_| {}))]))
    }

    /// The state machine has come back undone.
    pub(crate) fn apply_stopped(
        &mut self,
        id: u64,
        through: d_engine_replica::LogId,
        stop: ApplyStop,
    ) -> Result<(), String> {
        self.counts.reached(Sometimes::MachineStands);
        if self.leads(id) {
            self.counts.reached(Sometimes::LeaderStands);
        }
        match stop.stands_at() {
            Some(entry) => drop(self.standing.stood.insert((id, entry.into()))),
            None => self.counts.reached(Sometimes::StandsInChunk),
        }
        let now = self.now;
        self.trace.note(now, format_args!("node {id} stands: {}", stop.reason));
        self.apply_is_free(id, Event::ApplyStopped { through, stop })
    }

    pub(crate) fn operator_looks(&mut self) -> Result<(), String> {
        self.after(LOOKS_EVERY, Happening::OperatorLooks);
        for id in 1..=self.profile.nodes {
            let stop = self.node(id).running.as_ref().filter(|it| it.stops_by.is_none());
            let Some(stop) = stop.and_then(|it| it.replica.apply_stop()).cloned() else { continue };
            let needs = needed(&stop.reason.to_string());
            match stop.stands_at() {
                Some(entry) if needs == Some(BY_NOBODY) => self.ask_to_skip(entry.into())?,
                at => {
                    if let (Some(_), Some(needs)) = (at, needs) {
                        self.node(id).program = needs;
                        self.counts.reached(Sometimes::ProgramMended);
                    }
                    self.stop(id)?;
                }
            }
        }
        Ok(())
    }

    fn ask_to_skip(&mut self, target: LogId) -> Result<(), String> {
        for id in 1..=self.profile.nodes {
            if self.leads(id) {
                let refused = self.standing.refused.clone();
                let responder = Box::new(move |answer: Result<u64, _>| {
                    refused.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
                });
                self.tell(id, Event::SkipEntry { target, responder })?;
                if self.standing.refused.swap(0, Ordering::Relaxed) > 0 {
                    self.counts.reached(Sometimes::SkipRefused);
                }
            }
        }
        Ok(())
    }

    /// A leader writes that an entry is skipped: a majority must have stood at it.
    pub(crate) fn judge_skips(&mut self, id: u64, job: &PersistJob) -> Result<(), String> {
        let nodes = self.profile.nodes;
        for entry in job.entries.iter().filter(|entry| entry.kind == EntryKind::Skip) {
            let leads = self.node(id).running.as_ref().is_some_and(|it| {
                let core = it.replica.core();
                core.role() == RoleKind::Leader && core.term() == entry.id.term
            });
            if !leads {
                continue;
            }
            self.counts.reached(Sometimes::EntrySkipped);
            let number = |bytes: Option<&[u8]>| {
                bytes.and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).unwrap_or_default()
            };
            let target = (number(entry.data.get(..8)), number(entry.data.get(8..)));
            let stands = |node: &u64| {
                self.standing
                    .stood
                    .iter()
                    .any(|(stood, at)| (*stood, at.term.get(), at.index.get()) == (*node, target.0, target.1))
            };
            let standing = (1..=nodes).filter(stands).count() as u64;
            if standing <= nodes / 2 {
                return Err(format!(
                    "skip: node {id} skips entry {} of term {}, at which {standing} of {nodes} nodes have stood",
                    target.1, target.0
                ));
            }
        }
        Ok(())
    }
}
