//! The apply worker of a simulated node. The order of its work is the server's, `ApplySteps`; jobs
//! take time and hang, and crashes and disk failures occur in each step.

use d_engine_core::LogId;
use d_engine_replica::{
    ApplyJob, ApplyRun, ApplySource, ApplyStep, Event, SnapshotCause, StopReason,
    UNPACK_RETRY_INTERVAL,
};
use d_engine_storage::snapshot::SnapshotInfo;

use crate::faults::Sometimes;
use crate::machines::choking::is_of_bad_command;
use crate::monitors::violation::{Rule, Violation};
use crate::now_or_never::now_or_never;
use crate::world::World;
use crate::world::event::SimEvent;
use crate::world::node::Applied;

impl World {
    /// Wakes the apply worker if it is idle and has work.
    pub(crate) fn wake_apply(&mut self, id: u64) {
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut() else { return };
        if running.apply_busy || running.apply_work.is_empty() {
            return;
        }
        running.apply_busy = true;
        let delay = self.prng.tail(self.profile.apply_mean);
        self.after(delay, SimEvent::ApplyBegin { node: id, boot });
    }

    /// The apply worker executes steps until a job takes time or nothing is left to do.
    pub(crate) fn apply_begin(&mut self, id: u64) -> Result<(), Violation> {
        loop {
            let now = self.now;
            let node = self.node(id);
            let clock = node.clock(now);
            // A crash in a step ends the process.
            let Some(running) = node.running.as_mut() else { return Ok(()) };
            running.apply.at(clock);
            match running.steps.next(&running.apply) {
                ApplyStep::SaveHardState => running.apply.handler().hard_state_saved(),
                ApplyStep::EndSnapshot(built) => self.end_snapshot(id, built)?,
                ApplyStep::Prune => self.prune(id)?,
                ApplyStep::BeginSnapshot(cause) => self.begin_snapshot(id, cause)?,
                ApplyStep::Apply(job) => return self.apply(id, job),
                ApplyStep::Wait if running.apply_work.is_empty() => {
                    running.apply_busy = false;
                    return Ok(());
                }
                ApplyStep::Wait => {
                    let work = std::mem::take(&mut running.apply_work);
                    running.steps.start(work);
                }
                // The last batch is executed in `finish_work`.
                ApplyStep::Close => return Ok(()),
            }
        }
    }

    fn apply(&mut self, id: u64, job: ApplyJob) -> Result<(), Violation> {
        let Some(job) = self.unpacked(id, job)? else { return Ok(()) };
        if matches!(job.source, ApplySource::Stored(..)) {
            self.counts.reached(Sometimes::AppliedFromLog);
        }
        if job.responders.len() > 1 {
            self.counts.reached(Sometimes::ChunkOfMany);
        }
        let snapshot = match &job.source {
            ApplySource::Snapshot(last_included) => Some(*last_included),
            _ => None,
        };
        let now = self.now;
        self.trace.note(now, format_args!("node {id} applies {:?}", job.source));
        self.monitors.on_apply(id, &job)?;
        if let Some(last_included) = snapshot {
            let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
            if let Some(node) = node {
                self.monitors.snapshots.on_snapshot(id, &node.fs, last_included)?;
            }
        }
        let injected = snapshot.is_some() && self.arm(id, 40);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let applied = running.run_apply(job);
        if snapshot.is_some() && self.died_in(id, Sometimes::CrashInInstall) {
            return Ok(());
        }
        if self.node(id).fs.is_halted() {
            // The moment that was chosen for a crash in a log write fell into a read of the log.
            self.crash(id);
            return Ok(());
        }
        match applied {
            Ok(ApplyRun::Waits { job, why }) => self.apply_waits(id, job, why),
            Ok(ApplyRun::Done(event)) => self.has_applied(id, Ok(event), snapshot, injected),
            Err(reason) => self.has_applied(id, Err(reason), snapshot, injected),
        }
    }

    /// The state machine has no space for the entries or the snapshot of a job, which is run again
    /// later.
    fn apply_waits(&mut self, id: u64, job: ApplyJob, why: StopReason) -> Result<(), Violation> {
        if !self.node(id).may_refuse_files() {
            return self.stopped_by_disk(id, why, false);
        }
        self.counts.reached(match job.source {
            ApplySource::Snapshot(_) => Sometimes::MachineWaitedToInstall,
            _ => Sometimes::ApplyWaitedForRoom,
        });
        self.postpone(id, job);
        Ok(())
    }

    fn postpone(&mut self, id: u64, job: ApplyJob) {
        let boot = self.node(id).boot;
        if let Some(running) = self.node(id).running.as_mut() {
            running.steps.postpone(job);
        }
        let wait = d_engine_core::nanos(UNPACK_RETRY_INTERVAL);
        self.after(wait, SimEvent::ApplyBegin { node: id, boot });
    }

    /// The apply worker has run a job; the replica receives the report after the worker's latency.
    fn has_applied(
        &mut self,
        id: u64,
        applied: Result<Event, StopReason>,
        snapshot: Option<LogId>,
        injected: bool,
    ) -> Result<(), Violation> {
        let boot = self.node(id).boot;
        let applied = match applied {
            Ok(Event::Applied { through, next_expiry_ms, command_version }) => {
                Applied { through, next_expiry_ms, command_version }
            }
            Ok(Event::ApplyStopped { stop, .. }) if !is_of_bad_command(&stop) => {
                return self.stopped_by_disk(id, stop.reason, injected);
            }
            Ok(Event::ApplyStopped { through, stop }) => {
                let latency = self.prng.tail(self.profile.apply_mean);
                self.after(latency, SimEvent::ApplyStopped { node: id, boot, through, stop });
                return Ok(());
            }
            Ok(_) => {
                return Rule::Apply
                    .broken_by(id, format_args!("the worker returned an unexpected event"));
            }
            Err(reason) if reason.needs_newer_program() => {
                return self.stopped_as_too_old(id, reason);
            }
            Err(reason) => {
                return self.stopped_by_disk(id, reason, injected);
            }
        };
        let latency = self.prng.tail(self.profile.apply_mean);
        self.after(latency, SimEvent::ApplyDone { node: id, boot, applied });
        self.after_apply(id, applied.through, snapshot)
    }

    /// Unpacks a snapshot before it is installed; if there is no disk space for its files, the job
    /// is tried again later.
    fn unpacked(&mut self, id: u64, job: ApplyJob) -> Result<Option<ApplyJob>, Violation> {
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
                self.postpone(id, job);
                Ok(None)
            }
            Err(reason) => self.stopped_by_disk(id, reason, injected).map(|()| None),
        }
    }

    /// A state machine has finished a job, which may have been to install `snapshot`: compares its
    /// state with those of other nodes.
    fn after_apply(
        &mut self,
        id: u64,
        through: LogId,
        snapshot: Option<LogId>,
    ) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let state = running.machine.state_hash();
        if snapshot.is_some() {
            running.installing = None;
            self.counts.reached(Sometimes::SnapshotInstalled);
        }
        self.monitors.snapshots.on_state(id, through.index.get(), state)
    }

    pub(crate) fn apply_done(&mut self, id: u64, applied: Applied) -> Result<(), Violation> {
        let Applied { through, next_expiry_ms, command_version } = applied;
        self.apply_is_free(id, Event::Applied { through, next_expiry_ms, command_version })
    }

    /// The apply worker has finished a job, and continues.
    pub(crate) fn apply_is_free(&mut self, id: u64, event: Event) -> Result<(), Violation> {
        self.tell(id, event)?;
        self.apply_begin(id)
    }

    /// Between two jobs: begins a snapshot if one is due.
    fn begin_snapshot(&mut self, id: u64, cause: SnapshotCause) -> Result<(), Violation> {
        if cause == SnapshotCause::Requested {
            self.arm(id, 20);
        }
        let boot = self.node(id).boot;
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let begun = now_or_never(running.apply.begin_snapshot(cause));
        running.steps.snapshot_begun(&running.apply, cause, &begun);
        // The state may contain half of a chunk, or the snapshot would not record that an entry was
        // skipped.
        let is_impossible = running.apply.no_snapshot().is_some();
        if self.died_in(id, Sometimes::CrashInBuild) {
            return Ok(());
        }
        match begun {
            Ok(Some(task)) => {
                let now = self.now;
                self.trace.note(
                    now,
                    format_args!("node {id} takes a snapshot of {}", task.last_included()),
                );
                if let Some(running) = self.node(id).running.as_mut() {
                    running.building = Some(task);
                }
                let delay = self.build_delay();
                self.after(delay, SimEvent::SnapshotBuild { node: id, boot });
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(_) if is_impossible => Ok(()),
            Err(reason) => self.given_up(id, &reason),
        }
    }

    /// Takes up the result of a build.
    fn end_snapshot(
        &mut self,
        id: u64,
        built: Result<SnapshotInfo, StopReason>,
    ) -> Result<(), Violation> {
        let injected = self.arm(id, 12);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let ended = running.steps.end_snapshot(&mut running.apply, built);
        if self.died_in(id, Sometimes::CrashInMetadata) {
            return Ok(());
        }
        match ended {
            Ok(Some(event)) => {
                self.counts.reached(Sometimes::SnapshotBuilt);
                self.tell(id, event)
            }
            Ok(None) => Ok(()),
            Err(reason) => self.stopped_by_disk(id, reason, injected),
        }
    }
}
