//! A node of one Raft group without its threads: the only driver of the core. The server calls
//! [`Replica::handle`] from its raft thread, the simulator from its event loop.

mod observe;
mod peers;
mod start;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use d_engine_core::{
    Effects, Input, Instant, LogId, LogIndex, NodeId, Now, PersistId, RaftCore, Rejected,
};
use d_engine_storage::{ConfigId, Incarnation, LogEntry, Membership};

use crate::clients::intake::refuse_event;
use crate::clients::proposals::{self, Proposals};
use crate::clients::reads::Reads;
use crate::clients::throttle::Throttle;
use crate::event::{
    ApplySource, Event, Jobs, Outgoing, Proposal, SnapshotSendRequest, TransferResponder,
};
use crate::health::worker_watch::WorkerWatch;
use crate::health::{ABSTAINS, Pauses};
use crate::log::cache::LogCache;
use crate::log::loads::Loads;
use crate::log::unsynced::Unsynced;
use crate::members::Members;
use crate::membership_driver::MembershipDriver;
use crate::moved::Moved;
use crate::snapshots::Snapshots;
use crate::state_machine::apply_queue::ApplyQueue;
use crate::state_machine::skips::Skips;
use crate::ticker::Ticker;
use crate::{LogDisk, ReadError, ReplicaConfig, StopReason};

/// A node of one Raft group without its threads.
pub struct Replica {
    pub(crate) config: ReplicaConfig,
    pub(crate) node: NodeId,
    pub(crate) core: RaftCore,
    effects: Effects,
    pub(crate) cache: LogCache,
    pub(crate) members: Members,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    pub(crate) apply: ApplyQueue,
    ticker: Ticker,
    /// Appends that wait for entries from the log.
    pub(crate) loads: Loads,
    /// The incarnations of this node and of connected peers.
    pub(crate) incarnations: BTreeMap<NodeId, Incarnation>,
    /// The persist jobs that the log worker has not reported as persisted.
    pub(crate) unsynced: Unsynced,
    pub(crate) snapshots: Snapshots,
    pub(crate) throttle: Throttle,
    /// Detects a log worker that hangs.
    pub(crate) disk: WorkerWatch,
    /// Detects an apply worker that hangs.
    pub(crate) machine: WorkerWatch,
    /// The progress counter of the state machine's worker, and its value at the last check.
    pub(crate) machine_steps: (Arc<AtomicU64>, u64),
    /// Long work of the state machine that does not count as a hang.
    pub(crate) pauses: Pauses,
    /// When this leader last tried to transfer leadership to a node whose state machine has applied
    /// more.
    pub(crate) gave_way_at: Option<Instant>,
    pub(crate) was_short_of_room: bool,
    /// The highest command version applied here. This version and lower ones are accepted, whatever
    /// the voters decode.
    pub(crate) command_version_floor: u32,
    /// The text of the alarm once the leader's log has contradicted entries committed here.
    contradiction: Option<String>,
    /// Entries in the log that skip other entries.
    pub(crate) skips: Skips,
    pub(crate) membership_driver: MembershipDriver,
    /// Members that are reached at other addresses than those in the log.
    pub(crate) moved: Moved,
    /// The configuration that added this node.
    pub(crate) born: ConfigId,
    /// The last committed configuration, as last reported in the status.
    pub(crate) committed_members: ConfigId,
    /// The committed configuration that has removed this node.
    pub(crate) removed: Option<ConfigId>,
    log_disk: LogDisk,
    stopped: Option<StopReason>,
}

/// The part of an input that the core does not see.
pub(crate) enum Payload {
    None,
    Received(Arc<[LogEntry]>),
    Commands(Vec<Proposal>),
    Membership(Membership),
    Skip(LogId),
    Snapshot(Membership),
}

impl Replica {
    /// Handles one event and adds the resulting work to `jobs`.
    pub fn handle(&mut self, now: Now, event: Event, jobs: &mut Jobs) {
        if let Some(reason) = &self.stopped {
            refuse_event(event, reason);
            return;
        }
        self.take_in(now, event, jobs);
        if self.stopped.is_none() {
            self.watch_workers(now, jobs);
        }
        if self.stopped.is_some() {
            return;
        }
        self.drive_membership(now, jobs);
        self.check_members();
        self.note_committed_members(jobs);
        self.maybe_install(now, jobs);
        self.maybe_purge(now.monotonic, jobs);
        if self.apply.waits_for_restart(&self.skips) {
            if let Some(stop) = self.apply.stop() {
                tracing::error!(node = %self.node, "{}", stop.reason);
            }
            jobs.status_changed = true;
        }
        if self.snapshots.waits_for_apply() {
            // Jobs in flight at the apply worker read entries from the log that the install
            // removes. Give out no new ones until those have ended.
            return;
        }
        while let Some(job) = self.apply.next_job(&self.cache, &mut self.proposals, &self.skips) {
            if let ApplySource::Snapshot(last_included) = &job.source {
                self.pauses.installs_to = Some(last_included.index);
                self.machine.set_exempt(true);
            }
            self.machine.given(now.monotonic);
            jobs.apply.push(job);
        }
    }

    fn take_in(&mut self, now: Now, event: Event, jobs: &mut Jobs) {
        match event {
            Event::Peer { from, message } => self.on_peer(now, from, message, jobs),
            Event::PeerUp { node, incarnation } => self.on_peer_up(now, node, incarnation, jobs),
            Event::PeerDown { node } => {
                self.step(now, Input::PeerLost(node), Payload::None, jobs);
            }
            Event::Propose(proposals) => self.on_propose(now, proposals, jobs),
            Event::Read(requests) => self.on_read(now, requests, jobs),
            Event::TransferLeadership { to, responder } => {
                self.on_transfer_leadership(now, to, responder, jobs);
            }
            Event::Persisted(id) => self.on_persisted(now, id, jobs),
            Event::HardStatePersisted(id) => {
                self.step(now, Input::HardStatePersisted(id), Payload::None, jobs);
            }
            Event::LogDisk(disk) => {
                self.log_disk = disk;
                self.disk_came_back(now);
                jobs.status_changed = true;
            }
            Event::Applied { through, next_expiry_ms, command_version } => {
                self.command_version_floor = self.command_version_floor.max(command_version);
                self.ticker.set_expiry(next_expiry_ms);
                self.on_applied(now, through.index, jobs);
            }
            Event::ApplyStopped { through, stop } => {
                self.on_apply_stopped(now, through.index, stop, jobs);
            }
            Event::Advertised { node, peer_addr, client_addr } => {
                self.on_advertised(node, &peer_addr, &client_addr, jobs);
            }
            Event::FoundAt { node, peer_addr } => self.on_found_at(node, &peer_addr, jobs),
            Event::Reached { node, peer_addr } => self.moved.reached(node, &peer_addr),
            Event::RemovedBy(by) => self.on_removed_by(by, jobs),
            Event::Superseded => self.on_superseded(now, jobs),
            Event::ChangeMembers(request) => self.on_change_members(now, *request, jobs),
            Event::SkipEntry { target, responder } => self.on_skip(now, target, responder, jobs),
            Event::Loaded { to, token, entries } => {
                self.on_loaded(now, (to, token), &entries, jobs)
            }
            Event::LoadFailed { to, token, at, reason } => {
                if self.bears_damage(at, reason) {
                    let none: Arc<[LogEntry]> = Arc::new([]);
                    self.on_loaded(now, (to, token), &none, jobs);
                }
            }
            Event::LogDamaged { through, reason } => self.on_log_damaged(through, reason, jobs),
            Event::SnapshotDamaged { reason } => self.on_snapshot_damaged(&reason, jobs),
            Event::AppendNotSent { to, term, prev } => {
                let input = Input::AppendNotSent { to, term, prev };
                self.step(now, input, Payload::None, jobs);
            }
            Event::SnapshotReceived { snapshot, responder } => {
                self.on_snapshot(snapshot, responder)
            }
            Event::SnapshotProgress(progress) => {
                self.snapshots.holds.moved(&progress, now.monotonic)
            }
            Event::SnapshotSent(to) => {
                self.snapshots.holds.applied(to, self.core.log().committed, now.monotonic)
            }
            Event::SnapshotFailed { to, none_usable } => {
                // The log is still kept for the follower: the next attempt resumes where this one
                // was cut off.
                self.snapshots.holds.cut(to);
                jobs.snapshot_due |= none_usable;
                self.step(now, Input::SnapshotFailed(to), Payload::None, jobs);
            }
            Event::SnapshotKept(kept) => self.snapshots.set_coverage(&kept),
            Event::ApplyPaused(paused) => self.on_apply_paused(now, paused, jobs),
            Event::Purged(through) => self.on_purged(now, through, jobs),
            Event::Deadline => {
                self.step(now, Input::Deadline, Payload::None, jobs);
                self.maybe_tick(now, jobs);
            }
            Event::Failed(reason) => self.stop(reason),
        }
    }

    fn on_snapshot_damaged(&self, reason: &StopReason, jobs: &mut Jobs) {
        tracing::error!(
            node = %self.node, %reason,
            "a snapshot is damaged; a new one is being taken; check this disk"
        );
        jobs.snapshot_due = true;
    }

    /// A node of a cluster that continues this one by force answers at a member's address.
    fn on_superseded(&mut self, now: Now, jobs: &mut Jobs) {
        let before = self.core.abstains();
        self.step(now, Input::Superseded, Payload::None, jobs);
        if self.core.abstains() && !before {
            tracing::error!(node = %self.node, "{}", ABSTAINS);
            jobs.status_changed = true;
        }
    }

    fn on_transfer_leadership(
        &mut self,
        now: Now,
        to: Option<NodeId>,
        responder: TransferResponder,
        jobs: &mut Jobs,
    ) {
        let input = Input::TransferLeadership { to };
        let begun = self.try_step(now, input, Payload::None, jobs);
        responder(begun.map_err(|rejected| self.transfer_error(rejected)));
    }

    fn on_applied(&mut self, now: Now, through: LogIndex, jobs: &mut Jobs) {
        self.apply_goes_on(now, through, jobs);
        self.pauses.installs_to = self.pauses.installs_to.filter(|index| through < *index);
        self.machine.set_exempt(self.pauses.are_under_way());
        self.machine_came_back(now);
        let applied = self.apply.applied();
        self.step(now, Input::Applied(applied), Payload::None, jobs);
        self.reads.applied_to(applied);
        self.snapshots.applied_to(applied);
    }

    fn on_purged(&mut self, now: Now, through: LogId, jobs: &mut Jobs) {
        self.snapshots.purged();
        self.step(now, Input::Purged(through), Payload::None, jobs);
        self.members.purge_to(through.index);
        self.skips.purge_to(through.index);
    }

    fn on_persisted(&mut self, now: Now, id: PersistId, jobs: &mut Jobs) {
        self.step(now, Input::Persisted(id), Payload::None, jobs);
        self.unsynced.persisted(id);
        self.disk_came_back(now);
        self.cache.evict(self.core.log().persisted);
    }

    /// When [`Event::Deadline`] is due next; `None` once the replica has stopped.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.stopped.is_some() {
            return None;
        }
        let limit = self.hang_limit();
        let workers = [self.disk.deadline(limit), self.machine.deadline(limit)];
        workers.into_iter().flatten().chain(self.core.next_deadline()).min()
    }

    /// Stops permanently: every waiting caller receives an error, and all later events are refused.
    pub(crate) fn stop(&mut self, reason: StopReason) {
        self.proposals.lose_all();
        self.reads.lose_all(&ReadError::Stopped { reason: reason.clone() });
        self.loads.clear();
        self.snapshots.stop(&reason);
        self.skips.lost_leadership();
        self.stopped = Some(reason);
    }

    /// Proposes a tick once an expiry of the state machine is due. A leader's deadline comes at
    /// least once per heartbeat interval, so the tick is late by at most that.
    fn maybe_tick(&mut self, now: Now, jobs: &mut Jobs) {
        let term = self.core.term();
        let Some(log_time_ms) = self.core.log_time_ms(now.monotonic) else { return };
        if !self.ticker.is_due(log_time_ms, term, self.apply.applied()) {
            return;
        }
        // Rejected during a leadership transfer: the next leader proposes it.
        if self.try_step(now, Input::Tick, Payload::None, jobs).is_ok() {
            self.ticker.proposed(term, self.core.log().last.index, log_time_ms);
        }
    }

    pub(crate) fn step(&mut self, now: Now, input: Input, payload: Payload, jobs: &mut Jobs) {
        if let Err(rejected) = self.try_step(now, input, payload, jobs) {
            tracing::debug!(node = %self.node, %rejected, "the core rejected an input");
            if rejected == Rejected::ContradictsCommitted {
                self.note_contradiction();
            }
        }
    }

    pub(crate) fn try_step(
        &mut self,
        now: Now,
        input: Input,
        payload: Payload,
        jobs: &mut Jobs,
    ) -> Result<(), Rejected> {
        let mut effects = std::mem::take(&mut self.effects);
        let result = self.core.step(now, input, &mut effects);
        let payload = match (&result, payload) {
            (Err(rejected), Payload::Commands(commands)) => {
                proposals::refuse(commands, &self.propose_error(*rejected));
                Payload::None
            }
            (_, payload) => payload,
        };
        self.carry_out(now.monotonic, &mut effects, payload, jobs);
        self.effects = effects;
        result
    }

    /// Executes all effects of one step of the core; the order of the fields does not matter.
    fn carry_out(
        &mut self,
        now: Instant,
        effects: &mut Effects,
        payload: Payload,
        jobs: &mut Jobs,
    ) {
        if let Some(from) = effects.superseded_from {
            self.cache.truncate_from(from);
            self.members.truncate_from(from);
            self.skips.truncate_from(from);
        }
        if effects.lost_leadership {
            self.skips.lost_leadership();
            let core = &self.core;
            self.proposals.lose_unless(|entry| {
                entry.index <= core.log().committed && core.term_at(entry.index) == Some(entry.term)
            });
            self.loads.clear();
            self.snapshots.lost_leadership();
        }
        if let Some(order) = effects.persist.take() {
            self.persist(now, order, payload, jobs);
        }
        for send in effects.messages.drain(..) {
            jobs.send.push(Outgoing { to: send.to, message: send.message.received() });
        }
        for plan in effects.appends.drain(..) {
            self.fill(plan, jobs);
        }
        for to in effects.snapshots.drain(..) {
            self.snapshots.holds.begun(to, self.core.matched(to), now, self.config.purge_timeout);
            let at_least = self.core.log().base.index;
            jobs.snapshots.push(SnapshotSendRequest { to, term: self.core.term(), at_least });
        }
        // After the orders: one of them may be for such a node.
        self.forget(&std::mem::take(&mut effects.dropped), jobs);
        if let Some(index) = effects.apply_to {
            self.apply.allow(index);
            self.skips.committed(index);
        }
        for (id, index) in effects.reads_confirmed.drain(..) {
            self.reads.confirmed(id, index, self.apply.applied());
        }
        if !effects.reads_lost.is_empty() {
            let error = ReadError::NotLeader { leader: self.leader_hint() };
            for id in effects.reads_lost.drain(..) {
                self.reads.lost(id, &error);
            }
        }
        if effects.status_changed && self.core.leader().is_none() {
            self.reads.lose_unapplied(&ReadError::NotLeader { leader: None });
        }
        if let Some(acknowledged) = effects.log_lost {
            self.stop(StopReason::new(format_args!(
                "this node acknowledged entries up to {acknowledged} in term {}, but its log ends \
                 at {}: its data directory was rolled back or damaged; do not start it again on \
                 this directory: as a voter it could make committed entries disappear",
                self.core.term(),
                self.core.log().last.index,
            )));
        }
        jobs.status_changed |= effects.status_changed;
        jobs.hard_state_saved |= effects.hard_state_saved;
    }
}
