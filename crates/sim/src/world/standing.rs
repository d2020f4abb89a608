//! Commands that halt state machines, and an operator who checks the cluster's status and acts on
//! it: a newer program if one can apply the entry, a request to skip the entry if no program can,
//! and otherwise a restart.

use std::sync::atomic::Ordering;

use d_engine_core::LogId;
use d_engine_kv::KvCommand;
use d_engine_replica::{ApplyStop, Event, Proposal};

use crate::faults::{Fault, Sometimes};
use crate::machines::choking::{BY_NOBODY, bad_command, needed};
use crate::monitors::violation::Violation;
use crate::time::MS;
use crate::world::World;
use crate::world::event::{Chain, SimEvent};

/// How often the operator checks the cluster.
const LOOKS_EVERY: u64 = 400 * MS;

impl World {
    /// Proposes a command that some or all programs cannot apply.
    pub(crate) fn bad_command_comes(&mut self) -> Result<(), Violation> {
        self.plan(self.profile.standing.bad_every, Chain::BadCommand);
        let Some(leader) = (1..=self.profile.nodes).find(|node| self.leads(*node)) else {
            return Ok(());
        };
        let needs =
            if self.turn_prng.chance(self.profile.standing.mendable) { 1 } else { BY_NOBODY };
        self.bad_commands += 1;
        let key = format!("bad-{}", self.bad_commands % 4);
        let command =
            bad_command(needs, &KvCommand::put(key, self.bad_commands.to_string()).encode());
        self.counts.fault(Fault::BadCommand);
        self.tell(leader, Event::Propose(vec![Proposal::new(command, None, Box::new(|_| {}))]))
    }

    /// The state machine has halted before the end of a job.
    pub(crate) fn apply_stopped(
        &mut self,
        id: u64,
        through: LogId,
        stop: ApplyStop,
    ) -> Result<(), Violation> {
        self.counts.reached(Sometimes::MachineStands);
        if self.leads(id) {
            self.counts.reached(Sometimes::LeaderStands);
        }
        match stop.halted_at() {
            Some(entry) => self.monitors.skips.on_halt(id, entry),
            None => self.counts.reached(Sometimes::StandsInChunk),
        }
        let now = self.now;
        self.trace.note(now, format_args!("node {id} halts: {}", stop.reason));
        self.apply_is_free(id, Event::ApplyStopped { through, stop })
    }

    pub(crate) fn operator_looks(&mut self) -> Result<(), Violation> {
        self.after(LOOKS_EVERY, SimEvent::OperatorLooks);
        for id in 1..=self.profile.nodes {
            let stop = self.node(id).running.as_ref().filter(|it| it.stops_by.is_none());
            let Some(stop) = stop.and_then(|it| it.replica.apply_stop()).cloned() else { continue };
            let needs = needed(&stop.reason.to_string());
            match stop.halted_at() {
                Some(entry) if needs == Some(BY_NOBODY) => self.ask_to_skip(entry)?,
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

    fn ask_to_skip(&mut self, target: LogId) -> Result<(), Violation> {
        for id in 1..=self.profile.nodes {
            if self.leads(id) {
                let refused = self.refused_skips.clone();
                let responder = Box::new(move |answer: Result<u64, _>| {
                    refused.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
                });
                self.tell(id, Event::SkipEntry { target, responder })?;
                if self.refused_skips.swap(0, Ordering::Relaxed) > 0 {
                    self.counts.reached(Sometimes::SkipRefused);
                }
            }
        }
        Ok(())
    }
}
