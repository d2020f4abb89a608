//! A node of one group without its threads: the only driver of the core. The server calls
//! [`Replica::handle`] from its raft thread, the simulator from its event loop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use d_engine_core::{
    Effects, Initial, Input, Instant, LogId, LogIndex, NodeId, PersistId, RaftCore, Rejected,
};
use d_engine_storage::{Identity, Incarnation, LogEntry, Membership, RecoveredLog};

use crate::apply_queue::ApplyQueue;
use crate::brake::Brake;
use crate::convert;
use crate::event::{ApplySource, Event, Jobs, Outgoing, Proposal, SnapshotOrder};
use crate::health::Pauses;
use crate::intake::refuse_event;
use crate::loads::Loads;
use crate::log_cache::LogCache;
use crate::members::Members;
use crate::proposals::{self, Proposals};
use crate::reads::Reads;
use crate::skips::{self, Skips};
use crate::snapshots::Snapshots;
use crate::ticker::Ticker;
use crate::worker_watch::WorkerWatch;
use crate::{
    ApplyStop, Footing, LeaderHint, LogDisk, PeerMessage, ReadError, ReplicaConfig, ReplicaError,
    ReplicaStatus, StopReason,
};

/// A node of one group without its threads.
pub struct Replica {
    pub(crate) config: ReplicaConfig,
    node: NodeId,
    pub(crate) core: RaftCore,
    effects: Effects,
    pub(crate) cache: LogCache,
    pub(crate) members: Members,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    pub(crate) apply: ApplyQueue,
    ticker: Ticker,
    /// Appends waiting for entries from the log.
    pub(crate) loads: Loads,
    /// The data directories of this node and of connected peers.
    incarnations: BTreeMap<NodeId, Incarnation>,
    /// Payload bytes given to the log worker and not reported as stored, by order.
    pub(crate) unsynced: VecDeque<(PersistId, usize)>,
    pub(crate) unsynced_bytes: usize,
    pub(crate) snapshots: Snapshots,
    pub(crate) brake: Brake,
    /// The log's disk.
    pub(crate) disk: WorkerWatch,
    /// The state machine.
    pub(crate) machine: WorkerWatch,
    /// Counts what it has done, job or part of a job, and how much of it was noticed.
    pub(crate) machine_steps: (Arc<AtomicU64>, u64),
    /// What the state machine may take its time for.
    pub(crate) pauses: Pauses,
    /// When the last attempt was made to hand leadership to a node whose state machine is ahead.
    pub(crate) gave_way_at: Option<Instant>,
    pub(crate) was_short_of_room: bool,
    /// The highest version of a command that is applied here: this and lower ones are taken whatever the voters decode.
    pub(crate) command_version_floor: u32,
    /// What the leader has that contradicts what is committed here, once it has shown.
    contradiction: Option<String>,
    /// Entries in the log that say which others are skipped.
    pub(crate) skips: Skips,
    log_disk: LogDisk,
    stopped: Option<StopReason>,
}

/// What an input carried that the core does not see.
pub(crate) enum Payload {
    None,
    Received(Arc<[LogEntry]>),
    Commands(Vec<Proposal>),
    Membership(Membership),
    Skip(LogId),
    Snapshot(Membership),
}

impl Replica {
    /// A replica over a recovered log. `footing` is where the state machine stands (from
    /// [`crate::StateMachineHandler::open`]); `seed` must differ between nodes and starts.
    ///
    /// Call [`Replica::handle`] with [`Event::Deadline`] right after, to get the first jobs.
    ///
    /// # Errors
    /// See [`ReplicaError`].
    pub fn new(
        config: ReplicaConfig,
        identity: &Identity,
        recovered: &RecoveredLog,
        footing: &Footing,
        seed: u64,
        now: Instant,
    ) -> Result<Self, ReplicaError> {
        config.core.validate()?;
        let mut members =
            Members::new(footing.membership.as_ref().unwrap_or(&identity.initial), &identity.initial);
        for (index, payload) in &recovered.memberships {
            let membership = Membership::decode(payload)
                .map_err(|source| ReplicaError::Membership { index: index.get(), source })?;
            members.push(*index, membership);
        }
        let mut skips = Skips::default();
        for (index, payload) in &recovered.skips {
            if let Some(target) = skips::decode(payload)
                && !cfg!(mutant = "skip-forgotten-at-start")
            {
                skips.push(*index, target);
            }
        }
        let mut core = RaftCore::new(Initial {
            node: identity.node,
            config: config.core,
            hard_state: recovered.hard_state,
            log: convert::initial_log(identity, recovered, footing)?,
            seed,
            now,
            accepts_clock: config.accept_clock,
            command_version_max: footing.command_version_max,
        });
        let applied = footing.applied;
        let mut snapshots = Snapshots::default();
        snapshots.newest_has(footing.covered_bytes);
        snapshots.covers(footing.covered, footing.oldest);
        let mut apply = ApplyQueue::new(applied, config.apply_jobs_max, config.apply_entries_max);
        // What the state machine holds already is applied: it may be purged. The answer says how far it may go on.
        let mut effects = Effects::default();
        core.step(now, 0, Input::Applied(applied), &mut effects).ok();
        if let Some(index) = effects.apply_to {
            apply.allow(index);
        }
        Ok(Self {
            node: identity.node,
            cache: LogCache::new(core.log().last.index, config.cache_bytes_max),
            apply,
            core,
            effects,
            ticker: Ticker::default(),
            members,
            proposals: Proposals::default(),
            reads: Reads::default(),
            loads: Loads::default(),
            incarnations: BTreeMap::from([(identity.node, identity.incarnation)]),
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            snapshots,
            brake: Brake::default(),
            disk: WorkerWatch::default(),
            machine: WorkerWatch::default(),
            machine_steps: (Arc::default(), 0),
            pauses: Pauses::default(),
            gave_way_at: None,
            was_short_of_room: false,
            command_version_floor: footing.command_version_floor,
            contradiction: None,
            skips,
            log_disk: LogDisk::default(),
            stopped: None,
            config,
        })
    }

    /// Takes in one event and adds what is to be done to `jobs`. `now` is monotonic; `wall_ms` is
    /// the wall clock in UNIX milliseconds, used only for the log time of new entries.
    pub fn handle(&mut self, now: Instant, wall_ms: u64, event: Event, jobs: &mut Jobs) {
        if let Some(reason) = &self.stopped {
            refuse_event(event, reason);
            return;
        }
        self.take_in(now, wall_ms, event, jobs);
        if self.stopped.is_none() {
            self.watch_workers(now, wall_ms, jobs);
        }
        if self.stopped.is_some() {
            return;
        }
        self.bind_incarnations(now, wall_ms, jobs);
        self.maybe_install(now, wall_ms, jobs);
        self.maybe_purge(now, jobs);
        if self.apply.waits_for_restart(&self.skips) {
            if let Some(stop) = self.apply.stop() {
                tracing::error!(node = %self.node, "{}", stop.reason);
            }
            jobs.status_changed = true;
        }
        if self.snapshots.waits_for_apply() {
            // What is on its way to the apply worker is read from the log; nothing new until that has ended.
            return;
        }
        while let Some(job) = self.apply.next_job(&self.cache, &mut self.proposals, &self.skips) {
            if let ApplySource::Snapshot(label) = &job.source {
                self.pauses.installs_to = Some(label.index);
                self.machine.exempt(now, true, false);
            }
            self.machine.given(now);
            jobs.apply.push(job);
        }
    }

    fn take_in(&mut self, now: Instant, wall_ms: u64, event: Event, jobs: &mut Jobs) {
        match event {
            Event::Peer { from, message } => self.on_peer(now, wall_ms, from, message, jobs),
            Event::PeerUp { node, incarnation } => {
                self.incarnations.insert(node, incarnation);
                self.step(now, wall_ms, Input::PeerLost(node), Payload::None, jobs);
            }
            Event::PeerDown { node } => {
                self.step(now, wall_ms, Input::PeerLost(node), Payload::None, jobs);
            }
            Event::Propose(proposals) => self.on_propose(now, wall_ms, proposals, jobs),
            Event::Read(requests) => self.on_read(now, wall_ms, requests, jobs),
            Event::TransferLeadership { to, responder } => {
                let input = Input::TransferLeadership { to };
                let begun = self.try_step(now, wall_ms, input, Payload::None, jobs);
                responder(begun.map_err(|rejected| self.transfer_error(rejected)));
            }
            Event::Persisted(id) => self.on_persisted(now, wall_ms, id, jobs),
            Event::HardStateStored(id) => {
                self.step(now, wall_ms, Input::HardStateStored(id), Payload::None, jobs);
            }
            Event::LogDisk(disk) => {
                self.log_disk = disk;
                // Entries that wait for room say nothing of the disk's health.
                self.disk.came_back(now, disk.full || self.unsynced.is_empty());
                jobs.status_changed = true;
            }
            Event::Applied { through, next_expiry_ms, command_version } => {
                self.command_version_floor = self.command_version_floor.max(command_version);
                self.ticker.set_expiry(next_expiry_ms);
                self.apply_goes_on(now, wall_ms, LogIndex::new(through.index), jobs);
                self.pauses.installs_to = self.pauses.installs_to.filter(|label| through.index < *label);
                self.machine.exempt(now, self.pauses.are_under_way(), self.apply.is_idle());
                let applied = self.apply.applied();
                self.step(now, wall_ms, Input::Applied(applied), Payload::None, jobs);
                self.reads.applied_to(applied);
                self.snapshots.applied_to(applied);
            }
            Event::ApplyStopped { through, stop } => {
                self.on_apply_stopped(now, wall_ms, LogIndex::new(through.index), stop, jobs);
            }
            Event::SkipEntry { target, responder } => self.on_skip(now, wall_ms, target, responder, jobs),
            Event::Loaded { to, token, entries } => self.on_loaded(now, wall_ms, (to, token), &entries, jobs),
            Event::LoadFailed { to, token, at, reason } => {
                if self.bears_damage(at, reason) {
                    let none: Arc<[LogEntry]> = Arc::new([]);
                    self.on_loaded(now, wall_ms, (to, token), &none, jobs);
                }
            }
            Event::LogDamaged { through, reason } => self.on_log_damaged(through, reason, jobs),
            Event::SnapshotDamaged { reason } => {
                tracing::error!(node = %self.node, %reason, "a snapshot is damaged; a new one is taken; look at this disk");
                jobs.snapshot_due = true;
            }
            Event::AppendNotSent { to, term, prev } => {
                self.step(now, wall_ms, Input::AppendNotSent { to, term, prev }, Payload::None, jobs);
            }
            Event::SnapshotReceived { snapshot, responder } => self.on_snapshot(snapshot, responder),
            Event::SnapshotProgress(progress) => self.snapshots.holds.moved(&progress, now),
            Event::SnapshotSent(to) => self.snapshots.holds.applied(to, self.core.log().committed, now),
            Event::SnapshotFailed { to, none_usable } => {
                // The log is still held for it: it goes on where it was cut.
                self.snapshots.holds.cut(to);
                jobs.snapshot_due |= none_usable;
                self.step(now, wall_ms, Input::SnapshotFailed(to), Payload::None, jobs);
            }
            Event::SnapshotKept(kept) => {
                self.snapshots.newest_has(kept.newest_bytes);
                self.snapshots.covers(kept.newest.index, kept.oldest.index);
            }
            Event::ApplyPaused(paused) => self.on_apply_paused(now, wall_ms, paused, jobs),
            Event::Purged(through) => {
                self.snapshots.purged();
                self.step(now, wall_ms, Input::Purged(through), Payload::None, jobs);
                self.members.purge_to(through.index);
                self.skips.purge_to(through.index);
            }
            Event::Deadline => {
                self.step(now, wall_ms, Input::Deadline, Payload::None, jobs);
                self.maybe_tick(now, wall_ms, jobs);
            }
            Event::Failed(reason) => self.stop(reason),
        }
    }

    fn on_persisted(&mut self, now: Instant, wall_ms: u64, id: PersistId, jobs: &mut Jobs) {
        self.step(now, wall_ms, Input::Persisted(id), Payload::None, jobs);
        while let Some((_, bytes)) = self.unsynced.pop_front_if(|(order, _)| *order <= id) {
            self.unsynced_bytes = self.unsynced_bytes.saturating_sub(bytes);
        }
        self.disk.came_back(now, self.log_disk.full || self.unsynced.is_empty());
        self.cache.evict(self.core.log().persisted);
    }

    /// What the state machine's worker counts ([`crate::StateMachineHandler::steps`]): a job in which the count rises is
    /// slow, and not taken for one that hangs.
    #[must_use]
    pub fn with_machine_steps(mut self, steps: Arc<AtomicU64>) -> Self {
        self.machine_steps = (steps, 0);
        self
    }

    /// Free bytes on the log's disk below which commands are refused.
    #[must_use]
    pub fn min_free_bytes(&self) -> u64 {
        self.config.min_free_bytes
    }

    /// When [`Event::Deadline`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.stopped.is_some() {
            return None;
        }
        let limit = self.hang_limit();
        let workers = [self.disk.deadline(limit), self.machine.deadline(limit)];
        workers.into_iter().flatten().chain(self.core.next_deadline()).min()
    }

    /// Whether this node has caught up with its leader and applied what it knows to be committed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stopped.is_none()
            && self.apply.stop().is_none()
            && self.core.is_caught_up()
            && self.core.log().committed <= self.apply.applied()
    }

    /// Whether callers wait for an answer.
    #[must_use]
    pub fn has_callers(&self) -> bool {
        self.callers() != (0, 0)
    }

    /// How many callers wait for commands, and how many for reads.
    #[must_use]
    pub fn callers(&self) -> (usize, usize) {
        (self.proposals.len(), self.reads.len())
    }

    /// The algorithm, to look at.
    #[must_use]
    pub fn core(&self) -> &RaftCore {
        &self.core
    }

    /// The last entry applied to the state machine, as far as this replica was told.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.apply.applied()
    }

    /// How many members have their data directory bound to them.
    #[must_use]
    pub fn bound_incarnations(&self) -> usize {
        self.members.current().members().iter().filter(|member| member.incarnation.is_some()).count()
    }

    /// How the log stands with its disk, as far as this replica was told.
    #[must_use]
    pub fn log_disk(&self) -> LogDisk {
        self.log_disk
    }

    /// The membership in force.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.members.current()
    }

    /// Where the leader is, if known.
    #[must_use]
    pub fn leader_hint(&self) -> Option<LeaderHint> {
        self.core.leader().map(|node| self.hint(node))
    }

    pub(crate) fn hint(&self, node: NodeId) -> LeaderHint {
        let client_addr =
            self.members.current().member(node).map(|m| m.client_addr.clone()).unwrap_or_default();
        LeaderHint { node, client_addr }
    }

    /// Where the state machine stands, if it does: nothing is applied or answered here.
    #[must_use]
    pub fn apply_stop(&self) -> Option<&ApplyStop> {
        self.apply.stop()
    }

    /// Why this replica has stopped, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<&StopReason> {
        self.stopped.as_ref()
    }

    /// A picture of the replica.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            core: self.core.status(),
            applied: self.apply.applied().get(),
            membership: self.members.current().clone(),
            ready: self.is_ready(),
            alarms: self.alarms(),
            losses: self.losses(),
            apply_stop: self.apply.stop().cloned(),
            command_version_max: self.core.command_version_max(),
            command_version_allowed: self.command_version_allowed(),
            stopped: self.stopped.clone(),
        }
    }

    /// Stops for good: whoever waits is answered, nothing is done any more.
    pub(crate) fn stop(&mut self, reason: StopReason) {
        self.proposals.lose_all();
        self.reads.lose_all(&ReadError::Stopped { reason: reason.clone() });
        self.loads.clear();
        self.snapshots.stop(&reason);
        self.skips.lost_leadership();
        self.stopped = Some(reason);
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn contradiction(&self) -> Option<&str> {
        self.contradiction.as_deref()
    }

    /// The leader's log contradicts what is committed here: some node has lost committed entries. Told
    /// once; an operator must look.
    fn note_contradiction(&mut self) {
        if self.contradiction.is_some() {
            return;
        }
        let text = format!(
            "the log of the leader of term {} contradicts entries that are committed here (up to {}): a node has lost a \
             part of its log; stop writing and compare the nodes' data directories",
            self.core.term(),
            self.core.log().committed
        );
        tracing::error!(node = %self.node, "{text}");
        self.contradiction = Some(text);
    }

    fn on_peer(&mut self, now: Instant, wall_ms: u64, from: NodeId, message: PeerMessage, jobs: &mut Jobs) {
        let (message, payload) = match convert::to_core(message) {
            Ok((message, Some(entries))) => (message, Payload::Received(entries)),
            Ok((message, None)) => (message, Payload::None),
            Err(error) => {
                tracing::warn!(node = %self.node, %from, %error, "a peer sent a membership that cannot be read");
                return;
            }
        };
        self.step(now, wall_ms, Input::Message { from, message }, payload, jobs);
    }

    /// A leader's deadline comes at least once per heartbeat interval: as late as that, at most, the log
    /// is told a time that the state machine waits for.
    fn maybe_tick(&mut self, now: Instant, wall_ms: u64, jobs: &mut Jobs) {
        let term = self.core.term();
        let Some(log_time_ms) = self.core.log_time_ms(now) else { return };
        if !self.ticker.is_due(log_time_ms, term, self.apply.applied()) {
            return;
        }
        // Refused while leadership is being handed over: the next leader does it.
        if self.try_step(now, wall_ms, Input::Tick, Payload::None, jobs).is_ok() {
            self.ticker.proposed(term, self.core.log().last.index, log_time_ms);
        }
    }

    /// A leader binds every data directory it has seen to its node, so that a node whose directory
    /// was wiped can no longer pass for the one it was.
    fn bind_incarnations(&mut self, now: Instant, wall_ms: u64, jobs: &mut Jobs) {
        if !self.core.leads_with_commit() {
            return;
        }
        let Some(bound) = self.members.with_bound(self.incarnations.iter()) else { return };
        let configuration = Box::new(bound.configuration());
        let bytes = u32::try_from(bound.encode().len()).unwrap_or(u32::MAX);
        let input = Input::ProposeMembership { configuration, bytes };
        // Refused while another membership entry is on its way: the next event tries again.
        self.try_step(now, wall_ms, input, Payload::Membership(bound), jobs).ok();
    }

    pub(crate) fn step(
        &mut self,
        now: Instant,
        wall_ms: u64,
        input: Input,
        payload: Payload,
        jobs: &mut Jobs,
    ) {
        if let Err(rejected) = self.try_step(now, wall_ms, input, payload, jobs) {
            tracing::debug!(node = %self.node, %rejected, "an input was rejected");
            if rejected == Rejected::ContradictsCommitted {
                self.note_contradiction();
            }
        }
    }

    pub(crate) fn try_step(
        &mut self,
        now: Instant,
        wall_ms: u64,
        input: Input,
        payload: Payload,
        jobs: &mut Jobs,
    ) -> Result<(), Rejected> {
        let mut effects = std::mem::take(&mut self.effects);
        let result = self.core.step(now, wall_ms, input, &mut effects);
        let payload = match (&result, payload) {
            (Err(rejected), Payload::Commands(commands)) => {
                proposals::refuse(commands, &self.propose_error(*rejected));
                Payload::None
            }
            (_, payload) => payload,
        };
        self.carry_out(now, &mut effects, payload, jobs);
        self.effects = effects;
        result
    }

    /// Does all that the core asks for; the order of the fields does not matter.
    fn carry_out(&mut self, now: Instant, effects: &mut Effects, payload: Payload, jobs: &mut Jobs) {
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
            if let Some(message) = convert::from_core(send.message) {
                jobs.send.push(Outgoing { to: send.to, message });
            }
        }
        for plan in effects.appends.drain(..) {
            self.fill(plan, jobs);
        }
        for to in effects.snapshots.drain(..) {
            self.snapshots.holds.begun(to, self.core.matched(to), now, self.config.purge_patience);
            let at_least = self.core.log().base.index;
            jobs.snapshots.push(SnapshotOrder { to, term: self.core.term(), at_least });
        }
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
                "this node acknowledged entries up to {acknowledged} in term {}, but its log ends at {}: its data \
                 directory was rolled back or damaged; do not start it again on this directory: as a voter it could \
                 make committed entries disappear",
                self.core.term(),
                self.core.log().last.index,
            )));
        }
        jobs.status_changed |= effects.status_changed;
        jobs.hard_state_saved |= effects.hard_state_saved;
    }
}
