//! The log worker of a simulated node: writes that take time and fail, and crashes in the middle of
//! them.

use d_engine_core::PersistId;
use d_engine_replica::{Event, LogStep, LogWait, SPACE_RETRY_INTERVAL, StopReason};
use d_engine_storage::FsOp;
use d_engine_storage::fs::sim::Failure;

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::{Rule, Violation};
use crate::time::{MS, SECOND};
use crate::world::World;
use crate::world::event::SimEvent;

impl World {
    /// The log worker takes everything queued and writes it. The bytes go to the simulated disk
    /// now; the replica receives the report after the sync's latency, so that a crash in between
    /// leaves a write that is stored but was never reported.
    pub(crate) fn log_begin(&mut self, id: u64) -> Result<(), Violation> {
        let crash_in_write = !self.healed
            && self.profile.crash_every > 0
            && self.prng.chance(self.profile.crash_in_write / 8);
        let fails = !self.healed && self.prng.chance(self.profile.disk_error);
        let (halt_at, failing) = (self.prng.between(1, 6), self.prng.below(3));
        let installs = self
            .node(id)
            .running
            .as_ref()
            .is_some_and(|it| it.log_work.writes.iter().any(is_install));
        let step_fails = installs && self.arm(id, 10);
        let node = self.node(id);
        let boot = node.boot;
        if crash_in_write {
            node.fs.halt_at(halt_at);
        } else if fails {
            // If this write performs no such operation, the failure waits for a later write.
            node.disk_fails = true;
            match failing {
                0 => node.fs.fail(FsOp::SyncData, 1, Failure::Io),
                1 => node.fs.fail(FsOp::Write, 1, Failure::NoSpace),
                _ => node.fs.fail(FsOp::Write, 1, Failure::Io),
            }
        }
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        running.log_steps.start(std::mem::take(&mut running.log_work));
        let LogStep::Persist(writes) = running.log_steps.next(&running.log) else { return Ok(()) };
        let loads = running.loads.take();
        self.monitors.disks.on_write_begun(id, &writes);
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
        self.after(latency, SimEvent::LogDone { node: id, boot, stored });
        Ok(())
    }

    /// Passes the log's reports to the monitors at once; the replica receives them after the sync's
    /// latency.
    pub(crate) fn log_has_stored(&mut self, id: u64, stored: Option<PersistId>) {
        if let Some(through) = stored {
            self.monitors.disks.on_stored(id, through);
        }
        let Some(running) = self.node(id).running.as_mut() else { return };
        let (events, waits) = (running.log.events(), running.log.waits());
        if waits {
            self.counts.reached(Sometimes::LogWaitedForRoom);
        }
        for event in &events {
            match event {
                Event::HardStatePersisted(through) => {
                    self.counts.reached(Sometimes::HardStateFromReserve);
                    self.monitors.disks.on_hard_state_stored(id, *through);
                }
                Event::Purged(through) => self.monitors.disks.on_purged(id, *through),
                Event::LogDisk(disk)
                    if disk.free_bytes.is_some_and(|free| free < self.profile.min_free_bytes) =>
                {
                    self.counts.reached(Sometimes::ShortOfSpace);
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

    pub(crate) fn log_done(&mut self, id: u64, stored: Option<PersistId>) -> Result<(), Violation> {
        let node = self.node(id);
        let boot = node.boot;
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
            self.after(1_000, SimEvent::LogBegin { node: id, boot });
        } else if matches!(running.log_steps.next(&running.log), LogStep::Wait(LogWait::ForSpace)) {
            let wait = d_engine_core::nanos(SPACE_RETRY_INTERVAL);
            self.after(wait, SimEvent::LogRetry { node: id, boot });
        } else {
            // How long the log was not used differs from node to node.
            let delay = self.prng.between(5 * MS, 50 * MS);
            self.after(delay, SimEvent::LogIdle { node: id, boot });
        }
        Ok(())
    }

    /// A log that waits for disk space tries its writes again.
    pub(crate) fn log_retry(&mut self, id: u64) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        if running.log_busy || !running.log.waits() {
            return Ok(());
        }
        running.log_busy = true;
        self.log_begin(id)
    }

    pub(crate) fn log_idle(&mut self, id: u64) -> Result<(), Violation> {
        let crash = !self.healed
            && self.profile.crash_every > 0
            && self.prng.chance(self.profile.crash_in_idle);
        let halt_at = self.prng.between(1, 6);
        let node = self.node(id);
        let node_life = node.boot;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        if running.log_busy || running.has_log_work() || running.log.waits() {
            return Ok(());
        }
        if crash {
            node.fs.halt_at(halt_at);
        }
        running.log_steps.waited(&running.log);
        let LogStep::Idle = running.log_steps.next(&running.log) else { return Ok(()) };
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
        let wait = running.log_steps.next(&running.log);
        for report in std::mem::take(&mut running.reports) {
            self.tell(id, report)?;
        }
        if let LogStep::Wait(wait @ LogWait::ForFreeSpace) = wait
            && let Some(timeout) = wait.timeout()
        {
            let timeout = d_engine_core::nanos(timeout);
            self.after(timeout, SimEvent::LogIdle { node: id, boot: node_life });
        }
        Ok(())
    }

    /// The first I/O error is final: the node stops, and is started again after the repair. An
    /// error that was not injected is a finding.
    pub(crate) fn stopped_by_disk(
        &mut self,
        id: u64,
        reason: StopReason,
        injected: bool,
    ) -> Result<(), Violation> {
        if !injected && !self.node(id).disk_fails {
            return Rule::Log.broken_by(
                id,
                format_args!("node {id} stops without an injected fault: {reason}"),
            );
        }
        self.counts.fault(Fault::DiskError);
        self.counts.reached(Sometimes::NodeStoppedByDisk);
        let now = self.now;
        self.trace.note(now, format_args!("node {id} stops: {reason}"));
        self.tell_now(id, Event::Failed(reason))?;
        self.crash(id);
        Ok(())
    }
}

fn is_install(job: &d_engine_replica::PersistJob) -> bool {
    job.install.is_some()
}
