//! Snapshots of a simulated node: requested, built while apply continues, pruned; the log is purged
//! up to them. Crashes and disk failures occur in each of these steps.

use std::time::Duration;

use d_engine_core::{Instant, LogId, Term};
use d_engine_locks::Unpoisoned;
use d_engine_replica::{Event, Install, Jobs, LogStep, SnapshotSendRequest, StopReason};
use d_engine_storage::fs::sim::Failure;
use d_engine_storage::snapshot::{FullSpeed, Health};
use d_engine_storage::{FsOp, LogSuffix};

use crate::faults::{Fault, Sometimes};
use crate::monitors::snapshots::{archive_path, is_whole, surviving_snapshots};
use crate::monitors::violation::{Rule, Violation};
use crate::profile::snapshots::HELD_BYTES;
use crate::time::MS;
use crate::world::World;
use crate::world::connections::RequestAnswered;
use crate::world::event::{Chain, SimEvent};
use crate::world::node::Running;

impl World {
    /// Sometimes chooses a moment within the next step at which the node crashes or its disk fails.
    /// Returns whether the disk may fail.
    pub(crate) fn arm(&mut self, id: u64, operations: u64) -> bool {
        if self.healed {
            return false;
        }
        let snapshots = &self.profile.snapshots;
        let (crashes, fails) = (
            self.snapshot_prng.chance(snapshots.crash_in_step),
            self.snapshot_prng.chance(snapshots.disk_error),
        );
        let (moment, which) =
            (self.snapshot_prng.between(1, operations), self.snapshot_prng.below(5));
        let node = self.node(id);
        if crashes {
            node.fs.halt_at(moment);
        } else if fails {
            node.disk_fails = true;
            match which {
                0 => node.fs.fail(FsOp::SyncAll, 1, Failure::Io),
                1 => node.fs.fail(FsOp::Write, moment.div_ceil(4), Failure::NoSpace),
                2 => node.fs.fail(FsOp::Rename, 1, Failure::Io),
                3 => node.fs.fail(FsOp::SyncDir, 1, Failure::Io),
                _ => node.fs.fail(FsOp::Write, moment.div_ceil(4), Failure::Short),
            }
        }
        fails && !crashes
    }

    /// Completes a step that `arm` prepared: executes the crash if it came, and returns whether
    /// it did.
    pub(crate) fn died_in(&mut self, id: u64, step: Sometimes) -> bool {
        if self.node(id).fs.is_halted() {
            self.counts.fault(Fault::CrashInSnapshot);
            self.counts.reached(step);
            self.crash(id);
            return true;
        }
        self.node(id).fs.keep_running();
        false
    }

    /// A caller requests a snapshot from some node.
    pub(crate) fn ask_for_snapshot(&mut self) {
        let id = self.snapshot_prng.between(1, self.profile.nodes);
        let answers = self.exchange.requested.clone();
        let node = self.node(id);
        let boot = node.boot;
        if let Some(running) = node.running.as_mut() {
            let applied = running.replica.applied();
            running.apply_work.request_snapshot(Box::new(move |answer| {
                let answer = RequestAnswered { node: id, boot, applied, answer };
                answers.lock().unpoisoned().push(answer);
            }));
        }
        self.wake_apply(id);
        let mean = self.profile.snapshots.asked_every;
        let delay = mean / 4 + self.snapshot_prng.tail(mean);
        self.after(delay, SimEvent::Chain(Chain::SnapshotRequest));
    }

    /// Checks the answers to requests for snapshots: a snapshot is durable and includes what was
    /// applied before its request.
    pub(crate) fn take_requested(&mut self) -> Result<(), Violation> {
        let answered = std::mem::take(&mut *self.exchange.requested.lock().unpoisoned());
        for RequestAnswered { node: id, boot, applied, answer } in answered {
            let Ok(info) = answer else { continue };
            let last_included = info.last_included();
            if last_included.index < applied {
                return Rule::Snapshot.broken_by(
                    id,
                    format_args!(
                        "node {id} answers a request made after entry {applied} with {last_included}"
                    ),
                );
            }
            self.counts.reached(Sometimes::SnapshotRequestServed);
            let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
            if let Some(node) = node.filter(|node| node.boot == boot) {
                // A snapshot from the leader may have replaced it since: then that one is durable.
                let newest = node.running.as_ref().and_then(|it| it.snapshots.newest());
                let newer = newest.filter(|newest| newest.last_included() > last_included);
                let kept = newer.unwrap_or(info);
                // An earlier process built what is unchecked, and a fault may have damaged it
                // since.
                if kept.health == Health::Whole {
                    self.monitors.snapshots.on_snapshot(id, &node.fs, kept.last_included())?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn build_delay(&mut self) -> u64 {
        self.snapshot_prng.tail(self.profile.snapshots.build_mean)
    }

    pub(crate) fn given_up(&mut self, id: u64, reason: &StopReason) -> Result<(), Violation> {
        let now = self.now;
        self.trace.note(now, format_args!("node {id} abandons a snapshot: {reason}"));
        if !self.node(id).may_refuse_files() {
            return Rule::Snapshot.broken_by(
                id,
                format_args!("node {id} abandons one without an injected fault: {reason}"),
            );
        }
        self.counts.fault(Fault::SnapshotDiskError);
        Ok(())
    }

    /// The snapshot worker writes the frozen view and packs it.
    pub(crate) fn snapshot_build(&mut self, id: u64) -> Result<(), Violation> {
        self.arm(id, 40);
        let boot = self.node(id).boot;
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let Some(task) = running.building.take() else { return Ok(()) };
        let built = task.build(&running.snapshots, &mut FullSpeed);
        if self.died_in(id, Sometimes::CrashInBuild) {
            return Ok(());
        }
        match &built {
            Ok(info) => {
                let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
                if let Some(node) = node {
                    self.monitors.snapshots.on_snapshot(id, &node.fs, info.last_included())?;
                }
            }
            Err(reason) => self.given_up(id, reason)?,
        }
        if let Some(running) = self.node(id).running.as_mut() {
            running.built = Some(built);
        }
        let delay = self.build_delay();
        self.after(delay, SimEvent::SnapshotBuilt { node: id, boot });
        Ok(())
    }

    /// Passes the result of the build to the apply worker.
    pub(crate) fn snapshot_built(&mut self, id: u64) {
        let Some(running) = self.node(id).running.as_mut() else { return };
        running.apply_work.built = running.built.take();
        self.wake_apply(id);
    }

    /// Prunes the oldest snapshots, except those that are being sent to a follower.
    pub(crate) fn prune(&mut self, id: u64) -> Result<(), Violation> {
        self.arm(id, 4);
        let now = self.now;
        let clock = self.node(id).clock(now);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let pruned = running.snapshots.prune(1, &running.attempts.archives_in_use(clock));
        if self.died_in(id, Sometimes::CrashInPrune) {
            return Ok(());
        }
        match pruned {
            Err(error) if !self.node(id).may_refuse_files() => {
                Rule::Snapshot.broken_by(id, format_args!("node {id} cannot prune: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// The log worker purges the log after its writes and loads. Returns whether the node keeps
    /// running.
    pub(crate) fn purge(&mut self, id: u64) -> Result<bool, Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(false) };
        let LogStep::Purge(through) = running.log_steps.next(&running.log) else {
            return Ok(true);
        };
        let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
        if let Some(node) = node {
            let flushed = node.running.as_ref().and_then(|it| it.machine.flushed());
            self.monitors.snapshots.on_purge(id, &node.fs, through, flushed)?;
        }
        let injected = self.arm(id, 8);
        self.monitors.disks.on_purge_begun(id, through);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(false) };
        let purged = running.log.purge(through);
        if self.died_in(id, Sometimes::CrashInPurge) {
            return Ok(false);
        }
        match purged {
            Ok(None) => {
                self.counts.reached(Sometimes::PurgeWaited);
                Ok(true)
            }
            Ok(Some(event)) => {
                self.monitors.disks.on_purged(id, through);
                let last = self.monitors.disks.of(id).terms.is_empty();
                self.counts.reached(if last { Sometimes::PurgedToZero } else { Sometimes::Purged });
                if let Some(running) = self.node(id).running.as_mut() {
                    running.reports.push(event);
                }
                Ok(true)
            }
            Err(reason) => self.stopped_by_disk(id, reason, injected).map(|()| false),
        }
    }

    /// Checks that no purge removes entries which a follower needs after the snapshot that it is
    /// being sent, until the timeout `purge_timeout_ms`. A purge is allowed if the entries held
    /// for this purpose are bounded in bytes or the disk is short of space.
    pub(crate) fn check_purge_order(&mut self, id: u64, through: LogId) -> Result<(), Violation> {
        let now = self.now;
        let timeout = Duration::from_millis(self.profile.snapshots.purge_timeout_ms);
        let is_bounded = self.profile.snapshots.held_bytes < HELD_BYTES;
        let node = self.node(id);
        let clock = node.clock(now);
        let Some(running) = node.running.as_ref() else { return Ok(()) };
        let held = running.sends_watched.needs(through, running.replica.core(), clock, timeout);
        // On a disk that is nearly full hardly anything is held.
        let mark = running.replica.free_for_holds();
        let disk = running.replica.log_disk();
        let lacks_room = disk.full || disk.free_bytes.is_some_and(|free| free < mark);
        match held {
            Some(_) if is_bounded || lacks_room => {
                self.counts.reached(Sometimes::PurgedDuringSend);
                Ok(())
            }
            Some(to) => Rule::NoPurgeDuringSend.broken_by(
                id,
                format_args!(
                    "node {id} requests a purge up to {through} while it \
                 sends node {to} a snapshot"
                ),
            ),
            None => Ok(()),
        }
    }

    /// Records how a node is about to install a received snapshot over a log up to `last`, which
    /// had an entry of term `there` at the snapshot's last included index.
    pub(crate) fn note_install(
        &mut self,
        id: u64,
        install: Install,
        last: LogId,
        there: Option<Term>,
    ) {
        let now = self.now;
        self.trace
            .note(now, format_args!("node {id} installs {install:?} over a log up to {last}"));
        if install.suffix == LogSuffix::Keep {
            self.counts.reached(Sometimes::InstallKeepsSuffix);
        } else if there.is_some_and(|term| term != install.base.term) {
            self.counts.reached(Sometimes::InstallOverConflict);
        }
        if last.index > install.base.index {
            self.counts.reached(Sometimes::InstallOverLongerLog);
        }
    }

    /// Schedules the sends that the replica requests.
    pub(crate) fn order_snapshots(&mut self, id: u64, jobs: &mut Jobs) {
        let now = self.now;
        let orders: Vec<_> = jobs.snapshots.drain(..).collect();
        for order in orders {
            let node = self.node(id);
            let (boot, clock) = (node.boot, node.clock(now));
            let Some(running) = node.running.as_mut() else { return };
            let log = running.replica.core().log();
            let (attempt, replaced) = running.attempts.begin(clock, order);
            if log.base == log.last {
                self.counts.reached(Sometimes::SnapshotOnQuietCluster);
            }
            if let Some(before) = replaced {
                self.break_replaced(id, boot, before);
            }
            let delay = MS + self.snapshot_prng.tail(20 * MS);
            let begin = SimEvent::SendBegins { node: id, boot, attempt, order };
            self.after(delay, begin);
        }
    }

    /// Flips a bit of a node's newest snapshot while the node is down: only if the snapshot before
    /// it still reaches the log, and on one node at most.
    pub(crate) fn maybe_damage(&mut self, id: u64) {
        let (chosen, place, bit) = (
            self.snapshot_prng.chance(self.profile.snapshots.damage),
            self.snapshot_prng.next(),
            self.snapshot_prng.below(8),
        );
        if !chosen || self.healed || self.damaged.is_some_and(|node| node != id) {
            return;
        }
        let base = self.monitors.disks.base_max(id);
        let log_ids = surviving_snapshots(&self.node(id).fs);
        let [.., before, newest] = log_ids.as_slice() else { return };
        let (path, fs) = (archive_path(*newest), &self.node(id).fs);
        if before.index.get() < base || !is_whole(fs, *before) {
            return;
        }
        let length = fs.surviving(&path).remove(&path).map_or(0, |bytes| bytes.len() as u64);
        if length > 0 && fs.flip_bit(&path, place % length, u8::try_from(bit).unwrap_or(0)) {
            self.damaged = Some(id);
            self.counts.fault(Fault::SnapshotDamaged);
            let now = self.now;
            self.trace.note(now, format_args!("a bit of {} is flipped", path.display()));
        }
    }
}

impl Running {
    /// Returns whether writes, loads or a purge wait for the log worker.
    pub(crate) fn has_log_work(&self) -> bool {
        !self.log_work.is_empty() || !self.loads.is_empty()
    }

    /// Records an event that the replica is about to handle.
    pub(crate) fn note_event(&mut self, event: &Event, now: Instant) {
        self.sends_watched.on_event(event, self.replica.core(), now);
    }

    /// Records what the replica has requested.
    pub(crate) fn note_orders(
        &mut self,
        orders: &[SnapshotSendRequest],
        now: Instant,
        timeout: Duration,
    ) {
        self.sends_watched.on_requests(orders, self.replica.core(), now, timeout);
    }
}
