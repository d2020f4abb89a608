//! The workers of a simulated node: log writes that take time and fail, apply jobs, crashes in the
//! middle of either.

use d_engine_core::PersistId;
use d_engine_replica::{ApplyJob, ApplySource, Event};
use d_engine_storage::FsOp;
use d_engine_storage::fs_sim::Failure;

use crate::choking_machine::is_of_bad_command;
use crate::faults::{Fault, Sometimes};
use crate::node::Applied;
use crate::profile::{MS, SECOND};
use crate::snapshot_monitors::surviving_labels;
use crate::world::{Happening, World};

/// How often a log without room tries again, as in `crates/server/src/worker_threads.rs`.
const LOOKS_FOR_ROOM_EVERY: u64 = 250 * MS;

impl World {
    /// The log worker takes everything queued and writes it. The bytes go to the simulated disk now;
    /// the replica hears of it after the sync's latency, so a crash in between finds the write stored
    /// but never reported.
    pub(crate) fn log_begin(&mut self, id: u64) -> Result<(), String> {
        let crash_in_write =
            !self.healed && self.profile.crash_every > 0 && self.prng.chance(self.profile.crash_in_write / 8);
        let fails = !self.healed && self.prng.chance(self.profile.disk_error);
        let (halt_at, failing) = (self.prng.between(1, 6), self.prng.below(3));
        let installs = self.node(id).running.as_ref().is_some_and(|it| it.writes.iter().any(is_install));
        let step_fails = installs && self.arm(id, 10);
        let node = self.node(id);
        let life = node.life;
        if crash_in_write {
            node.fs.halt_at(halt_at);
        } else if fails {
            // If no operation of this kind comes now, the failure waits for a later write.
            node.disk_fails = true;
            match failing {
                0 => node.fs.fail(FsOp::SyncData, 1, Failure::Io),
                1 => node.fs.fail(FsOp::Write, 1, Failure::NoSpace),
                _ => node.fs.fail(FsOp::Write, 1, Failure::Io),
            }
        }
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let writes = std::mem::take(&mut running.writes);
        let loads = std::mem::take(&mut running.loads);
        self.monitors.on_write_begun(id, &writes);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let stored = running.log.persist(&writes);
        let loaded: Vec<_> = loads.iter().map(|job| running.log.loader().load(job)).collect();
        if installs && !crash_in_write && self.died_in(id, Sometimes::CrashInInstall) {
            return Ok(());
        }
        if self.node(id).fs.is_halted() {
            self.counts.fault(Fault::CrashInWrite);
            self.crash(id);
            return Ok(());
        }
        let fails = fails || step_fails;
        let stored = match stored {
            Ok(stored) => stored,
            Err(reason) => return self.stopped_by_disk(id, reason, fails),
        };
        self.log_has_stored(id, stored);
        for event in loaded {
            self.counts.reached(Sometimes::EntriesLoadedFromLog);
            match event {
                Ok(event) => self.tell(id, event)?,
                Err(reason) => return self.stopped_by_disk(id, reason, fails),
            }
        }
        if !self.purge(id)? {
            return Ok(());
        }
        let latency = self.sync_latency();
        self.after(latency, Happening::LogDone { node: id, life, stored });
        Ok(())
    }

    /// The monitors hear at once what the log reports; the replica when the sync has taken its time.
    pub(crate) fn log_has_stored(&mut self, id: u64, stored: Option<PersistId>) {
        if let Some(through) = stored {
            self.monitors.on_stored(id, through);
        }
        let Some(running) = self.node(id).running.as_mut() else { return };
        let (events, waits) = (running.log.events(), running.log.waits());
        if waits {
            self.counts.reached(Sometimes::LogWaitedForRoom);
        }
        for event in &events {
            match event {
                Event::HardStateStored(through) => {
                    self.counts.reached(Sometimes::HardStateFromReserve);
                    self.monitors.on_hard_state_stored(id, *through);
                }
                Event::Purged(through) => self.monitors.on_purged(id, *through),
                Event::LogDisk(disk)
                    if disk.free_bytes.is_some_and(|free| free < self.profile.min_free_bytes) =>
                {
                    self.counts.reached(Sometimes::ShortOfRoom);
                }
                _ => {}
            }
        }
        if let Some(running) = self.node(id).running.as_mut() {
            running.reports.extend(events);
        }
    }

    fn sync_latency(&mut self) -> u64 {
        if self.healed {
            return self.prng.between(MS / 20, MS);
        }
        if self.prng.chance(self.profile.sync_stall) {
            self.counts.fault(Fault::SyncStall);
            return self.prng.between(SECOND / 2, 10 * SECOND);
        }
        self.prng.tail(self.profile.sync_mean)
    }

    pub(crate) fn log_done(&mut self, id: u64, stored: Option<PersistId>) -> Result<(), String> {
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        running.log_busy = false;
        let reports = std::mem::take(&mut running.reports);
        if let Some(order) = stored {
            self.tell(id, Event::Persisted(order))?;
        }
        for report in reports {
            self.tell(id, report)?;
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        if running.log_busy {
            return Ok(());
        }
        if running.has_log_work() {
            running.log_busy = true;
            self.after(1_000, Happening::LogBegin { node: id, life });
        } else if running.log.waits() {
            self.after(LOOKS_FOR_ROOM_EVERY, Happening::LogRetry { node: id, life });
        } else {
            let delay = self.prng.between(5 * MS, 50 * MS);
            self.after(delay, Happening::LogIdle { node: id, life });
        }
        Ok(())
    }

    /// A log without room tries again.
    pub(crate) fn log_retry(&mut self, id: u64) -> Result<(), String> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        if running.log_busy || !running.log.waits() {
            return Ok(());
        }
        running.log_busy = true;
        self.log_begin(id)
    }

    pub(crate) fn log_idle(&mut self, id: u64) -> Result<(), String> {
        let crash = !self.healed && self.profile.crash_every > 0 && self.prng.chance(2_000);
        let halt_at = self.prng.between(1, 6);
        let node = self.node(id);
        let node_life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        if running.log_busy || running.has_log_work() || running.log.waits() {
            return Ok(());
        }
        if crash {
            node.fs.halt_at(halt_at);
        }
        let idle = running.log.idle();
        if self.node(id).fs.is_halted() {
            self.counts.fault(Fault::CrashInWrite);
            self.crash(id);
            return Ok(());
        }
        if let Err(reason) = idle {
            return self.stopped_by_disk(id, reason, false);
        }
        self.log_has_stored(id, None);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let (life, is_short) = (node_life, running.log.is_short_of_room());
        for report in std::mem::take(&mut running.reports) {
            self.tell(id, report)?;
        }
        if is_short {
            self.after(SECOND, Happening::LogIdle { node: id, life });
        }
        Ok(())
    }

    /// The first I/O error is final: the node stops, and is started again after the repair. An error
    /// that nobody has injected is a finding.
    pub(crate) fn stopped_by_disk(
        &mut self,
        id: u64,
        reason: d_engine_replica::StopReason,
        injected: bool,
    ) -> Result<(), String> {
        if !injected && !self.node(id).disk_fails {
            return Err(format!("log: node {id} stops although its disk is well: {reason}"));
        }
        self.counts.fault(Fault::DiskError);
        self.counts.reached(Sometimes::NodeStoppedByDisk);
        let now = self.now;
        self.trace.note(now, format_args!("node {id} stops: {reason}"));
        self.tell_now(id, Event::Failed(reason))?;
        self.crash(id);
        Ok(())
    }

    pub(crate) fn apply_begin(&mut self, id: u64) -> Result<(), String> {
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let Some(job) = running.applies.pop_front() else {
            running.apply_busy = false;
            return Ok(());
        };
        let Some(job) = self.unpacked(id, job)? else { return Ok(()) };
        if matches!(job.source, ApplySource::Stored(..)) {
            self.counts.reached(Sometimes::AppliedFromLog);
        }
        if job.responders.len() > 1 {
            self.counts.reached(Sometimes::ChunkOfMany);
        }
        let snapshot = match &job.source {
            ApplySource::Snapshot(label) => Some(d_engine_core::LogId::from(*label)),
            _ => None,
        };
        let now = self.now;
        self.trace.note(now, format_args!("node {id} applies {:?}", job.source));
        self.monitors.on_apply(id, &job)?;
        if let Some(label) = snapshot {
            let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
            if let Some(node) = node {
                self.monitors.snapshots.on_snapshot(id, &node.fs, label)?;
            }
        }
        let injected = snapshot.is_some() && self.arm(id, 40);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let applied = running.run_apply(job);
        if snapshot.is_some() && self.died_in(id, Sometimes::CrashInInstall) {
            return Ok(());
        }
        if self.node(id).fs.is_halted() {
            // The moment chosen for a crash in a log write came in a read instead.
            self.crash(id);
            return Ok(());
        }
        let applied = match applied {
            Ok(Event::Applied { through, next_expiry_ms, command_version }) => {
                Applied { through, next_expiry_ms, command_version }
            }
            Ok(Event::ApplyStopped { stop, .. }) if !is_of_bad_command(&stop) => {
                let injected = injected || self.node(id).machine_lacks_room();
                return self.stopped_by_disk(id, stop.reason, injected);
            }
            Ok(Event::ApplyStopped { through, stop }) => {
                let latency = self.prng.tail(self.profile.apply_mean);
                self.after(latency, Happening::ApplyStopped { node: id, life, through, stop });
                return Ok(());
            }
            Ok(_) => return Err("apply: the worker answered with another event".to_owned()),
            Err(reason) if reason.needs_newer_program() => return self.stopped_as_too_old(id, reason),
            Err(reason) => {
                let injected = injected || self.node(id).machine_lacks_room();
                return self.stopped_by_disk(id, reason, injected);
            }
        };
        let latency = self.prng.tail(self.profile.apply_mean);
        self.after(latency, Happening::ApplyDone { node: id, life, applied });
        self.after_apply(id, applied.through, snapshot.is_some())
    }

    /// A snapshot is unpacked before it is installed; where there is no room for its files, that is tried again.
    fn unpacked(&mut self, id: u64, job: ApplyJob) -> Result<Option<ApplyJob>, String> {
        if !matches!(job.source, ApplySource::Snapshot(_)) {
            return Ok(Some(job));
        }
        let injected = self.arm(id, 40);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(None) };
        let unpacked = running.apply.unpack(&job);
        if self.died_in(id, Sometimes::CrashInInstall) {
            return Ok(None);
        }
        match unpacked {
            Ok(None) => Ok(Some(job)),
            Ok(Some(_)) => {
                self.counts.reached(Sometimes::InstallWaitedForRoom);
                let life = self.node(id).life;
                if let Some(running) = self.node(id).running.as_mut() {
                    running.applies.push_front(job);
                }
                self.after(SECOND, Happening::ApplyBegin { node: id, life });
                Ok(None)
            }
            Err(reason) => self.stopped_by_disk(id, reason, injected).map(|()| None),
        }
    }

    pub(crate) fn apply_done(&mut self, id: u64, applied: Applied) -> Result<(), String> {
        let Applied { through, next_expiry_ms, command_version } = applied;
        self.apply_is_free(id, Event::Applied { through, next_expiry_ms, command_version })
    }

    /// The apply worker has ended a job, and takes the next one.
    pub(crate) fn apply_is_free(&mut self, id: u64, event: Event) -> Result<(), String> {
        let life = self.node(id).life;
        if let Some(running) = self.node(id).running.as_mut() {
            running.apply_busy = false;
        }
        self.tell(id, event)?;
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        if !running.apply_busy && !running.applies.is_empty() {
            running.apply_busy = true;
            self.after(1_000, Happening::ApplyBegin { node: id, life });
        }
        Ok(())
    }

    /// The node loses power, and is started again later.
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
        let delay = if self.healed { 100 * MS } else { 5 * MS + self.prng.tail(self.profile.crash_length) };
        self.after(delay, Happening::Start(id));
    }

    /// Starts a node, or lets it crash in the middle of its recovery.
    pub(crate) fn start(&mut self, id: u64) -> Result<(), String> {
        if self.node(id).running.is_some() || self.node(id).held_back {
            return Ok(());
        }
        let crashes = !self.healed && self.prng.chance(self.profile.crash_in_recovery);
        let (halt_at, seed, now) = (self.prng.between(1, 40), self.prng.next(), self.now);
        // A node with a snapshot has more to do.
        let halt_at = halt_at + self.snapshot_prng.below(2) * self.snapshot_prng.below(80);
        let profile = self.profile.clone();
        self.maybe_damage(id);
        self.draw_program(id);
        let snapshots = surviving_labels(&self.node(id).fs);
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
        let fs = node.fs.clone();
        // What was not reached in recovery must not hit later.
        fs.keep_running();
        let started = match started {
            Ok(started) => started,
            Err(reason) if self.node(id).is_too_old => {
                let program = self.node(id).decodes;
                self.trace.note(now, format_args!("node {id} does not start: {reason}"));
                self.counts.reached(Sometimes::OlderProgramStopped);
                self.monitors.programs.on_too_old(id, program)?;
                self.crash(id);
                return Ok(());
            }
            Err(error) if self.node(id).is_full => {
                self.counts.reached(Sometimes::StartRefusedForRoom);
                let left = fs.used_bytes();
                let before = self.node(id).refused_with.replace(left);
                if before.is_some_and(|before| left > before.max(used)) {
                    return Err(format!(
                        "full disk: each refused start of node {id} leaves more behind: {error}"
                    ));
                }
                self.crash(id);
                return Ok(());
            }
            Err(error) => return Err(format!("recovery: node {id} does not start: {error}")),
        };
        if crashes {
            self.counts.fault(Fault::CrashInRecovery);
            self.crash(id);
            return Ok(());
        }
        self.node(id).refused_with = None;
        if std::mem::take(&mut self.node(id).stopped_orderly) && started.report.torn_bytes > 0 {
            return Err(format!("shutdown: node {id} finds a torn tail after an orderly end"));
        }
        if started.report.torn_bytes > 0 {
            self.counts.reached(Sometimes::TornTailCut);
        }
        self.trace
            .note(now, format_args!("node {id} starts with {} entries", started.recovered.entries.len()));
        if self.monitors.on_recovered(id, &started.recovered, &snapshots)? {
            self.counts.fault(Fault::UnsyncedBytesLost);
        }
        self.check_start(id, &started)?;
        self.tell_now(id, Event::Deadline)?;
        if profile.links.connections {
            self.dial_all(id);
            return Ok(());
        }
        for peer in 1..=profile.nodes {
            if peer != id {
                let (there, here) = (self.prng.between(MS, 50 * MS), self.prng.between(MS, 50 * MS));
                let (peer_life, life) = (self.node(peer).life, self.node(id).life);
                self.after(there, Happening::PeerUp { node: peer, life: peer_life, peer: id });
                self.after(here, Happening::PeerUp { node: id, life, peer });
            }
        }
        Ok(())
    }
}

fn is_install(job: &d_engine_replica::PersistJob) -> bool {
    job.install.is_some()
}
