//! A node loses power and starts again, or crashes while it starts.

use d_engine_core::LogId;
use d_engine_replica::Event;
use d_engine_storage::snapshot::Health;

use crate::faults::{Fault, Sometimes};
use crate::machines::choice::Machine;
use crate::monitors::snapshots::surviving_snapshots;
use crate::monitors::violation::{Rule, Violation};
use crate::time::MS;
use crate::world::World;
use crate::world::event::SimEvent;
use crate::world::node::Started;
use crate::world::refused::RefusedStarts;

impl World {
    /// The node loses power; it is started again later.
    pub(crate) fn crash(&mut self, id: u64) {
        let now = self.now;
        self.trace.note(now, format_args!("node {id} crashes"));
        let mut prng = self.prng.clone();
        if self.node(id).running.as_ref().is_some_and(|it| it.installing.is_some()) {
            self.counts.reached(Sometimes::CrashBeforeInstall);
        }
        self.break_off_all(id);
        self.drop_links(id);
        self.node(id).disk_fails = false;
        self.node(id).stopped_orderly = false;
        self.node(id).crash(&mut |bound| prng.below(bound));
        self.prng = prng;
        let delay =
            if self.healed { 100 * MS } else { 5 * MS + self.prng.tail(self.profile.crash_length) };
        self.after(delay, SimEvent::Start(id));
    }

    /// Starts a node, or crashes it in the middle of its recovery.
    pub(crate) fn start(&mut self, id: u64) -> Result<(), Violation> {
        let node = self.node(id);
        if node.running.is_some() || node.held_back || node.is_lost {
            return Ok(());
        }
        let crashes = !self.healed && self.prng.chance(self.profile.crash_in_recovery);
        let (halt_at, seed, now) = (self.prng.between(1, 40), self.prng.next(), self.now);
        // A node with a snapshot performs more disk operations at its start.
        let halt_at = halt_at + self.snapshot_prng.below(2) * self.snapshot_prng.below(80);
        let profile = self.profile.clone();
        self.maybe_damage(id);
        self.maybe_damage_log(id)?;
        self.draw_program(id);
        let snapshots = surviving_snapshots(&self.node(id).fs);
        let node = self.node(id);
        if crashes {
            node.fs.halt_at(halt_at);
        }
        let used = node.fs.used_bytes();
        let started = node.start(seed, now, &profile);
        if node.fs.is_halted() {
            self.counts.fault(Fault::CrashInRecovery);
            self.crash(id);
            return Ok(());
        }
        // A crash that was planned for the recovery and not reached must not happen later.
        node.fs.keep_running();
        let started = match started {
            Ok(started) => started,
            Err(reason) => return self.not_started(id, used, &reason),
        };
        if crashes {
            self.counts.fault(Fault::CrashInRecovery);
            self.crash(id);
            return Ok(());
        }
        self.node(id).refused = RefusedStarts::default();
        self.check_recovery(id, &started, &snapshots)?;
        self.check_start(id, &started)?;
        self.tell_now(id, Event::Deadline)?;
        if self.profile.links.connections {
            self.dial_all(id);
        } else {
            self.meet_all(id);
        }
        Ok(())
    }

    /// A node does not start: because its program is too old, because its disk, of which `used`
    /// bytes were used before, is full, or by mistake.
    fn not_started(&mut self, id: u64, used: u64, reason: &str) -> Result<(), Violation> {
        let now = self.now;
        let node = self.node(id);
        if node.is_too_old {
            let program = node.decodes;
            self.trace.note(now, format_args!("node {id} does not start: {reason}"));
            self.counts.reached(Sometimes::OlderProgramStopped);
            self.monitors.programs.on_too_old(id, program)?;
        } else if node.is_full {
            let grows = node.refused.grow(used, node.fs.used_bytes());
            self.counts.reached(Sometimes::StartRefusedForRoom);
            if grows {
                return Rule::FullDisk.broken_by(
                    id,
                    format_args!("each refused start of node {id} uses more disk space: {reason}"),
                );
            }
        } else {
            return Rule::Recovery
                .broken_by(id, format_args!("node {id} does not start: {reason}"));
        }
        self.crash(id);
        Ok(())
    }

    /// Checks what a node that has just started has recovered.
    fn check_recovery(
        &mut self,
        id: u64,
        started: &Started,
        snapshots: &[LogId],
    ) -> Result<(), Violation> {
        let is_torn = started.report.torn_bytes > 0;
        if std::mem::take(&mut self.node(id).stopped_orderly) && is_torn {
            return Rule::Shutdown.broken_by(
                id,
                format_args!("node {id} finds a torn tail after an orderly shutdown"),
            );
        }
        if is_torn {
            self.counts.reached(Sometimes::TornTailCut);
        }
        let entries = started.recovered.entries.len();
        self.trace.note(self.now, format_args!("node {id} starts with {entries} entries"));
        if self.monitors.on_recovered(id, &started.recovered, snapshots)? {
            self.counts.fault(Fault::UnsyncedBytesLost);
        }
        Ok(())
    }

    /// Checks the snapshots, log and state machine of a node that has just started.
    fn check_start(&mut self, id: u64, started: &Started) -> Result<(), Violation> {
        if self.monitors.on_restored(id, &started.restored)? {
            self.counts.reached(Sometimes::InstallFinishedAtStart);
        }
        let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
        let Some((node, running)) = node.and_then(|node| Some((node, node.running.as_ref()?)))
        else {
            return Ok(());
        };
        if matches!(running.machine, Machine::Disk(_)) {
            self.counts.reached(Sometimes::DiskMachine);
            if running.replica.applied().get() > 0 {
                self.counts.reached(Sometimes::DiskMachineRestarted);
            }
        }
        let (list, applied) = (running.snapshots.list(), running.replica.applied());
        let newest = list.first().map(|info| info.last_included().index);
        let is_damaged = list.first().is_some_and(|info| info.health == Health::Damaged)
            || !started.snapshots.unusable.is_empty();
        let is_at_snapshot = list.iter().any(|info| info.last_included().index == applied);
        let is_ahead = newest.is_some_and(|last_included| last_included < applied);
        match running.machine.flushed() {
            None if is_damaged && is_at_snapshot => {
                self.counts.reached(Sometimes::OlderSnapshotRestored)
            }
            Some(_) if is_ahead => self.counts.reached(Sometimes::DurableAheadOfSnapshot),
            Some(_) if running.machine.has_installed() => {
                self.counts.reached(Sometimes::DurableRestored);
            }
            _ => {}
        }
        let (applied, state) = (applied.get(), running.machine.state_hash());
        self.monitors.snapshots.on_state(id, applied, state)?;
        if let Some(meta) = running.machine.shared().snapshot_metadata() {
            self.monitors.snapshots.on_metadata(id, &node.fs, &meta)?;
        }
        Ok(())
    }

    /// Without simulated connections: this node and every other one report each other as up.
    fn meet_all(&mut self, id: u64) {
        for peer in 1..=self.profile.nodes {
            if peer != id {
                let (there, here) =
                    (self.prng.between(MS, 50 * MS), self.prng.between(MS, 50 * MS));
                let (peer_life, boot) = (self.node(peer).boot, self.node(id).boot);
                self.after(there, SimEvent::PeerUp { node: peer, boot: peer_life, peer: id });
                self.after(here, SimEvent::PeerUp { node: id, boot, peer });
            }
        }
    }
}
