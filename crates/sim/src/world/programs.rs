//! Nodes that are started with older and newer programs while clients send commands of several
//! versions.

use d_engine_replica::{Event, StopReason};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::profile::programs::NEWEST;
use crate::world::World;
use crate::world::event::Chain;

impl World {
    /// Draws the nodes' first programs: one version, and on some nodes the next one.
    pub(crate) fn draw_programs(&mut self) {
        if !self.profile.programs.are_mixed() {
            return;
        }
        let oldest = self.program_prng.below(u64::from(NEWEST) + 1);
        for id in 1..=self.profile.nodes {
            let program = oldest + self.program_prng.below(2);
            self.node(id).decodes = u32::try_from(program).unwrap_or(NEWEST).min(NEWEST);
        }
    }

    /// Draws the program for a node's next start. A node whose program was too old gets a newer
    /// one, and after the end of all faults every node gets the newest.
    pub(crate) fn draw_program(&mut self, id: u64) {
        if !self.profile.programs.are_mixed() {
            return;
        }
        let programs = self.profile.programs.clone();
        let (up, down) = (
            self.program_prng.chance(programs.upgrade),
            self.program_prng.chance(programs.downgrade),
        );
        let (healed, was_too_old) = (self.healed, std::mem::take(&mut self.node(id).is_too_old));
        let before = self.node(id).decodes;
        let program = match (up || was_too_old, down) {
            _ if healed => NEWEST,
            (true, _) => NEWEST.min(before + 1),
            (false, true) => before.saturating_sub(1),
            _ => before,
        };
        self.node(id).decodes = program;
        self.monitors.programs.on_start(id, program);
        if program != before {
            self.counts.fault(Fault::ProgramChanged);
            self.trace
                .note(self.now, format_args!("node {id} decodes commands up to version {program}"));
        }
    }

    /// Crashes some node, so that it may be started with another program.
    pub(crate) fn change_program(&mut self) {
        let id = self.program_prng.between(1, self.profile.nodes);
        self.plan(self.profile.programs.change_every, Chain::ProgramChange);
        if self.node(id).running.is_some() {
            self.crash(id);
        }
    }

    /// At the end of all faults an operator starts the newest program everywhere. Otherwise a node
    /// that needs a snapshot which its older program cannot read would wait forever.
    pub(crate) fn retire_old_program(&mut self, id: u64) {
        if self.profile.programs.are_mixed()
            && self.node(id).decodes < NEWEST
            && self.node(id).running.is_some()
        {
            self.crash(id);
        }
    }

    /// Draws the version of the next command. A cluster in which some voter does not decode it
    /// refuses it.
    pub(crate) fn draw_version(&mut self) -> u32 {
        if !self.profile.programs.are_mixed() {
            return 0;
        }
        match self.program_prng.below(10) {
            0..=5 => 0,
            6..=7 => 1,
            _ => NEWEST,
        }
    }

    /// A node has reached an entry that its program does not decode: it stops.
    pub(crate) fn stopped_as_too_old(
        &mut self,
        id: u64,
        reason: StopReason,
    ) -> Result<(), Violation> {
        let (now, program) = (self.now, self.node(id).decodes);
        self.trace.note(now, format_args!("node {id} stops: {reason}"));
        self.counts.reached(Sometimes::OlderProgramStopped);
        self.monitors.programs.on_too_old(id, program)?;
        self.tell_now(id, Event::Failed(reason))?;
        self.node(id).is_too_old = true;
        self.crash(id);
        Ok(())
    }
}
