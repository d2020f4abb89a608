//! Snapshots of a simulated node: frozen between two jobs, built beside apply, kept, pruned; the log purged
//! behind them; crashes and failing disks in each of these steps.

use d_engine_core::{Duration, Instant, LogId, LogIndex, RoleKind};
use d_engine_replica::{Event, Install, Jobs, LogId as Place, SnapshotOrder, StopReason};
use d_engine_storage::fs_sim::Failure;
use d_engine_storage::snapshot::{FullSpeed, Health};
use d_engine_storage::{FsOp, LogSuffix};

use crate::faults::{Fault, Sometimes};
use crate::node::{Running, now_or_never};
use crate::profile::MS;
use crate::snapshot_monitors::{archive_path, is_whole, surviving_labels};
use crate::snapshot_profile::HELD_BYTES;
use crate::world::{Happening, World};

impl World {
    /// Chooses, now and then, a moment within the step that follows at which the node dies or its disk fails.
    /// Returns whether it may fail.
    pub(crate) fn arm(&mut self, id: u64, operations: u64) -> bool {
        if self.healed {
            return false;
        }
        let snapshots = &self.profile.snapshots;
        let (crashes, fails) = (
            self.snapshot_prng.chance(snapshots.crash_in_step),
            self.snapshot_prng.chance(snapshots.disk_error),
        );
        let (moment, which) = (self.snapshot_prng.between(1, operations), self.snapshot_prng.below(5));
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

    /// Whether the node has died in the step that is over.
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

    /// Somebody asks a node for a snapshot.
    pub(crate) fn ask_for_snapshot(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        let node = self.snapshot_prng.between(1, self.profile.nodes);
        self.maybe_snapshot(node, true)?;
        let mean = self.profile.snapshots.asked_every;
        let delay = mean / 4 + self.snapshot_prng.tail(mean);
        self.after(delay, Happening::AskForSnapshot);
        Ok(())
    }

    /// Between two apply jobs: begins a snapshot if the policy says so or somebody has asked.
    pub(crate) fn maybe_snapshot(&mut self, id: u64, asked: bool) -> Result<(), String> {
        if self.node(id).running.as_ref().is_none_or(|it| it.apply.is_building()) {
            return Ok(());
        }
        if asked {
            self.arm(id, 20);
        }
        let now = self.now;
        let (life, clock) = (self.node(id).life, self.node(id).clock(now));
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        running.apply.at(clock);
        let begun = now_or_never(running.apply.begin_snapshot(asked));
        if self.died_in(id, Sometimes::CrashInBuild) {
            return Ok(());
        }
        match begun {
            Ok(Some(task)) => {
                let now = self.now;
                self.trace.note(now, format_args!("node {id} takes a snapshot of {}", task.label()));
                if let Some(running) = self.node(id).running.as_mut() {
                    running.building = Some(task);
                }
                let delay = self.build_delay();
                self.after(delay, Happening::SnapshotBuild { node: id, life });
                Ok(())
            }
            Ok(None) => Ok(()),
            // The state may be half of a chunk, or would not tell that an entry was skipped.
            Err(_) if running_apply(self.node(id)).is_some_and(|apply| apply.no_snapshot().is_some()) => {
                Ok(())
            }
            Err(reason) => self.given_up(id, &reason),
        }
    }

    fn build_delay(&mut self) -> u64 {
        self.snapshot_prng.tail(self.profile.snapshots.build_mean)
    }

    fn given_up(&mut self, id: u64, reason: &StopReason) -> Result<(), String> {
        let now = self.now;
        self.trace.note(now, format_args!("node {id} gives a snapshot up: {reason}"));
        if !self.node(id).may_refuse_files() {
            return Err(format!("snapshot: node {id} gives one up although its disk is well: {reason}"));
        }
        self.counts.fault(Fault::SnapshotDiskError);
        Ok(())
    }

    /// The snapshot worker writes the frozen view and packs it.
    pub(crate) fn snapshot_build(&mut self, id: u64) -> Result<(), String> {
        self.arm(id, 40);
        let life = self.node(id).life;
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
                    self.monitors.snapshots.on_snapshot(id, &node.fs, info.label())?;
                }
            }
            Err(reason) => self.given_up(id, reason)?,
        }
        if let Some(running) = self.node(id).running.as_mut() {
            running.built = Some(built);
        }
        let delay = self.build_delay();
        self.after(delay, Happening::SnapshotBuilt { node: id, life });
        Ok(())
    }

    /// The apply worker is told what has become of its snapshot; the oldest ones go.
    pub(crate) fn snapshot_built(&mut self, id: u64) -> Result<(), String> {
        let injected = self.arm(id, 12);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let Some(built) = running.built.take() else { return Ok(()) };
        let ended = running.apply.end_snapshot(built);
        if self.died_in(id, Sometimes::CrashInMetadata) {
            return Ok(());
        }
        let event = match ended {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            Err(reason) => {
                let injected = injected || self.node(id).machine_lacks_room();
                return self.stopped_by_disk(id, reason, injected);
            }
        };
        self.counts.reached(Sometimes::SnapshotBuilt);
        self.tell(id, event)?;
        self.prune(id)
    }

    /// The oldest snapshots go, but those that are on their way to a follower.
    fn prune(&mut self, id: u64) -> Result<(), String> {
        self.arm(id, 4);
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let on_their_way: Vec<LogId> = running.chosen.values().copied().collect();
        let pruned = running.snapshots.prune(1, &on_their_way);
        if self.died_in(id, Sometimes::CrashInPrune) {
            return Ok(());
        }
        match pruned {
            Err(error) if !self.node(id).may_refuse_files() => {
                Err(format!("snapshot: node {id} prunes: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// The log worker purges the log, after its writes and loads. Returns whether the node goes on.
    pub(crate) fn purge(&mut self, id: u64) -> Result<bool, String> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(false) };
        let Some(through) = running.purge.take() else { return Ok(true) };
        let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
        if let Some(node) = node {
            let flushed = node.running.as_ref().and_then(|it| it.machine.flushed());
            self.monitors.snapshots.on_purge(id, &node.fs, through, flushed)?;
        }
        let injected = self.arm(id, 8);
        self.monitors.on_purge_begun(id, through);
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
                self.monitors.on_purged(id, through);
                let last = self.monitors.disk(id).terms.is_empty();
                self.counts.reached(if last { Sometimes::PurgedToZero } else { Sometimes::Purged });
                if let Some(running) = self.node(id).running.as_mut() {
                    running.reports.push(event);
                }
                Ok(true)
            }
            Err(reason) => self.stopped_by_disk(id, reason, injected).map(|()| false),
        }
    }

    /// A follower that is being sent a snapshot goes on from its label: nothing is purged meanwhile, for as long
    /// as that is bearable.
    pub(crate) fn check_purge_order(&mut self, id: u64, through: LogId) -> Result<(), String> {
        let now = self.now;
        let patience = Duration::from_millis(self.profile.snapshots.purge_patience_ms);
        let is_bounded = self.profile.snapshots.held_bytes < HELD_BYTES;
        let node = self.node(id);
        let clock = node.clock(now);
        let Some(running) = node.running.as_ref() else { return Ok(()) };
        // One that was cut and whose follower goes on with entries is over.
        let core = running.replica.core();
        let is_over =
            |to: &d_engine_core::NodeId| running.cut.contains(to) && !core.lacks_purged_entries(*to);
        let held = running.sending.iter().find(|(to, sent)| {
            let goes_on_from = sent.label.max(core.matched(**to)).unwrap_or_default();
            clock.since(sent.since) < patience && !is_over(to) && through.index > goes_on_from
        });
        // On a disk that is nearly full next to nothing is kept.
        let mark = running.replica.free_for_holds();
        let disk = running.replica.log_disk();
        let lacks_room = disk.full || disk.free_bytes.is_some_and(|free| free < mark);
        match held {
            Some(_) if is_bounded || lacks_room => {
                self.counts.reached(Sometimes::PurgedDuringTransfer);
                Ok(())
            }
            Some((to, _)) => Err(format!(
                "no purge under a transfer: node {id} orders a purge up to {through} while node {to} is being sent a \
                 snapshot"
            )),
            None => Ok(()),
        }
    }

    /// What a node does with a snapshot that it has received, seen before it does it.
    pub(crate) fn note_install(&mut self, id: u64, install: Install, last: LogId, conflicts: bool) {
        let now = self.now;
        self.trace.note(now, format_args!("node {id} installs {install:?} over a log up to {last}"));
        if install.suffix == LogSuffix::Keep {
            self.counts.reached(Sometimes::InstallKeepsSuffix);
        } else if conflicts {
            self.counts.reached(Sometimes::InstallOverConflict);
        }
        if last.index > install.base.index {
            self.counts.reached(Sometimes::InstallOverLongerLog);
        }
    }

    /// What the replica wants to be done about snapshots.
    pub(crate) fn order_snapshots(&mut self, id: u64, jobs: &mut Jobs) -> Result<(), String> {
        let node = self.node(id);
        let life = node.life;
        let log = node.running.as_ref().map(|it| it.replica.core().log());
        for order in jobs.snapshots.drain(..) {
            if log.is_some_and(|log| log.base == log.last) {
                self.counts.reached(Sometimes::SnapshotOnQuietCluster);
            }
            let delay = MS + self.snapshot_prng.tail(20 * MS);
            self.after(delay, Happening::TransferBegin { node: id, life, order });
        }
        if jobs.snapshot_due { self.maybe_snapshot(id, true) } else { Ok(()) }
    }

    /// A machine has done a job: what it holds is compared, and a snapshot may be due.
    pub(crate) fn after_apply(&mut self, id: u64, through: Place, installed: bool) -> Result<(), String> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let state = running.machine.state_hash();
        if installed {
            running.installing = None;
            self.counts.reached(Sometimes::SnapshotInstalled);
        }
        self.monitors.snapshots.on_state(id, through.index, state)?;
        if installed {
            self.prune(id)?;
        }
        self.maybe_snapshot(id, false)
    }

    /// A bit of a node's newest snapshot turns while the node is down: only where the one before still reaches
    /// the log, and on one node at most.
    pub(crate) fn maybe_damage(&mut self, id: u64) {
        let (chosen, place, bit) = (
            self.snapshot_prng.chance(self.profile.snapshots.damage),
            self.snapshot_prng.next(),
            self.snapshot_prng.below(8),
        );
        if !chosen || self.healed || self.damaged.is_some_and(|node| node != id) {
            return;
        }
        let base = self.monitors.base_max(id);
        let labels = surviving_labels(&self.node(id).fs);
        let [.., before, newest] = labels.as_slice() else { return };
        let (path, fs) = (archive_path(*newest), &self.node(id).fs);
        if before.index.get() < base || !is_whole(fs, *before) {
            return;
        }
        let length = fs.surviving(&path).remove(&path).map_or(0, |bytes| bytes.len() as u64);
        if length > 0 && fs.flip_bit(&path, place % length, u8::try_from(bit).unwrap_or(0)) {
            self.damaged = Some(id);
            self.counts.fault(Fault::SnapshotDamaged);
            let now = self.now;
            self.trace.note(now, format_args!("a bit of {} turns", path.display()));
        }
    }

    /// What a start has made of the node's snapshots, log and machine.
    pub(crate) fn check_start(&mut self, id: u64, started: &crate::node::Started) -> Result<(), String> {
        if self.monitors.on_restored(id, &started.restored)? {
            self.counts.reached(Sometimes::InstallFinishedAtStart);
        }
        let node = self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX));
        let Some((node, running)) = node.and_then(|node| Some((node, node.running.as_ref()?))) else {
            return Ok(());
        };
        if matches!(running.machine, crate::machine::Machine::Disk(_)) {
            self.counts.reached(Sometimes::DiskMachine);
            if running.replica.applied().get() > 0 {
                self.counts.reached(Sometimes::DiskMachineRestarted);
            }
        }
        let (list, applied) = (running.snapshots.list(), running.replica.applied());
        let newest = list.first().map(|info| info.label().index);
        let is_damaged = list.first().is_some_and(|info| info.health == Health::Damaged)
            || !started.snapshots.unusable.is_empty();
        let is_at_snapshot = list.iter().any(|info| info.label().index == applied);
        let is_ahead = newest.is_some_and(|label| label < applied);
        match running.machine.flushed() {
            None if is_damaged && is_at_snapshot => self.counts.reached(Sometimes::OlderSnapshotRestored),
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
}

/// A snapshot on its way, as the simulator sees it.
#[derive(Debug)]
pub(crate) struct Sent {
    /// When it was begun, or more of it was confirmed.
    since: Instant,
    /// The archive of this attempt, once it is chosen.
    label: Option<LogIndex>,
    /// That of the last attempt.
    last_label: LogIndex,
    confirmed: u64,
}

impl Sent {
    fn since(now: Instant) -> Self {
        Self { since: now, label: None, last_label: LogIndex::ZERO, confirmed: 0 }
    }
}

impl Running {
    /// Whether anything waits for the log worker.
    pub(crate) fn has_log_work(&self) -> bool {
        !self.writes.is_empty() || !self.loads.is_empty() || self.purge.is_some()
    }

    /// Mirrors the replica's own account of the snapshots that it has ordered to be sent.
    pub(crate) fn note_event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::SnapshotProgress(progress) => {
                if let Some(sent) = self.sending.get_mut(&progress.to) {
                    if sent.last_label != progress.label {
                        sent.confirmed = 0;
                    }
                    (sent.label, sent.last_label) = (Some(progress.label), progress.label);
                    if progress.confirmed > sent.confirmed {
                        (sent.since, sent.confirmed) = (now, progress.confirmed);
                    }
                }
            }
            Event::SnapshotSent(to) => {
                self.sending.remove(to);
                self.chosen.remove(to);
            }
            Event::SnapshotFailed { to, .. } => {
                self.cut.insert(*to);
            }
            _ => {}
        }
        // Begun anew, it is held for anew.
        let core = self.replica.core();
        self.sending.retain(|to, _| !self.cut.contains(to) || core.lacks_purged_entries(*to));
    }

    pub(crate) fn note_orders(&mut self, orders: &[SnapshotOrder], now: Instant, patience: Duration) {
        if self.replica.core().role() != RoleKind::Leader {
            self.sending.clear();
            self.chosen.clear();
        }
        for order in orders {
            self.cut.remove(&order.to);
            let sent = self.sending.entry(order.to).or_insert(Sent::since(now));
            if now.since(sent.since) >= patience.times(2) {
                sent.since = now;
            }
            sent.label = None;
        }
    }
}

fn running_apply(node: &crate::node::Node) -> Option<&d_engine_replica::ApplyWorker> {
    node.running.as_ref().map(|it| &it.apply)
}
