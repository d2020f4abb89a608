//! The cluster in virtual time: one queue of events, one step after the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use d_engine_core::{Duration, RoleKind};
use d_engine_proto::engine::{decode_frame, encode_frame};
use d_engine_replica::Event;

use crate::clients::Clients;
use crate::faults::{Counts, Fault, Sometimes};
use crate::monitors::Monitors;
use crate::network::{Network, Packet};
use crate::node::{GROUP, Node, node_id};
use crate::prng::Prng;
use crate::profile::{MS, Profile, SECOND};
use crate::trace::Trace;
use crate::world_transfers::{Transfers, Way};

/// What is scheduled.
#[derive(Debug)]
pub(crate) enum Happening {
    Arrive(Packet),
    PeerUp { node: u64, life: u64, peer: u64 },
    Deadline { node: u64, life: u64 },
    LogBegin { node: u64, life: u64 },
    LogDone { node: u64, life: u64, stored: Option<d_engine_core::PersistId> },
    LogIdle { node: u64, life: u64 },
    ApplyBegin { node: u64, life: u64 },
    ApplyDone { node: u64, life: u64, through: d_engine_replica::LogId, next_expiry_ms: Option<u64> },
    ClientTurn(usize),
    ClientCall { operation: usize, node: u64 },
    ClientGivesUp(usize),
    Rush { times_left: u64 },
    SnapshotBuild { node: u64, life: u64 },
    SnapshotBuilt { node: u64, life: u64 },
    AskForSnapshot,
    TransferBegin { node: u64, life: u64, order: d_engine_replica::SnapshotOrder },
    TransferFrame { connection: u64, way: Way, node: u64 },
    TransferTimer { connection: u64, node: u64 },
    TransferLost { node: u64, life: u64, to: u64 },
    Start(u64),
    CrashSome,
    PauseSome,
    Reconnect,
    TransferSome,
    PartitionBegin,
    PartitionEnd,
    ClockJump,
}

impl Happening {
    /// The node and life that an event belongs to, if it dies with the process.
    fn process(&self) -> Option<(u64, u64)> {
        match self {
            Self::PeerUp { node, life, .. }
            | Self::Deadline { node, life }
            | Self::LogBegin { node, life }
            | Self::LogDone { node, life, .. }
            | Self::LogIdle { node, life }
            | Self::ApplyBegin { node, life }
            | Self::SnapshotBuild { node, life }
            | Self::SnapshotBuilt { node, life }
            | Self::TransferLost { node, life, .. }
            | Self::TransferBegin { node, life, .. }
            | Self::ApplyDone { node, life, .. } => Some((*node, *life)),
            _ => None,
        }
    }

    /// The node on which it happens, for pauses.
    fn place(&self) -> Option<u64> {
        match self {
            Self::Arrive(packet) => Some(packet.to),
            Self::ClientCall { node, .. }
            | Self::TransferFrame { node, .. }
            | Self::TransferTimer { node, .. } => Some(*node),
            other => other.process().map(|(node, _)| node),
        }
    }
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A running simulation.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub(crate) profile: Profile,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) clients: Clients,
    pub(crate) monitors: Monitors,
    pub(crate) counts: Counts,
    pub(crate) prng: Prng,
    /// For snapshots alone.
    pub(crate) snapshot_prng: Prng,
    pub(crate) transfers: Transfers,
    /// The node whose newest snapshot was damaged.
    pub(crate) damaged: Option<u64>,
    pub(crate) trace: Trace,
    pub(crate) events: u64,
    pub(crate) elections: u64,
    /// Faults and new client operations are over: the cluster must now recover.
    pub(crate) healed: bool,
}

impl World {
    pub(crate) fn new(seed: u64, profile: Profile, trace: Trace) -> Self {
        let mut prng = Prng::stream(seed, "world");
        let mut counts = Counts::default();
        let nodes = (1..=profile.nodes)
            .map(|id| {
                let drift = prng.between(0, 2 * profile.clock_drift);
                if drift != profile.clock_drift {
                    counts.fault(Fault::ClockDrift);
                }
                Node::new(id, 1_000_000 - profile.clock_drift + drift)
            })
            .collect();
        let mut world = Self {
            now: SECOND,
            order: 0,
            queue: BinaryHeap::new(),
            nodes,
            network: Network::new(seed),
            clients: Clients::new(seed, &profile),
            monitors: Monitors::default(),
            counts,
            prng,
            snapshot_prng: Prng::stream(seed, "snapshots"),
            transfers: Transfers::default(),
            damaged: None,
            trace,
            events: 0,
            elections: 0,
            healed: false,
            profile,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 1..=self.profile.nodes {
            let delay = self.prng.below(200 * MS);
            self.after(delay, Happening::Start(node));
        }
        for client in 0..usize::try_from(self.profile.clients).unwrap_or(0) {
            let delay = self.prng.below(SECOND);
            self.after(delay, Happening::ClientTurn(client));
        }
        self.plan(self.profile.crash_every, Happening::CrashSome);
        self.plan(self.profile.pause_every, Happening::PauseSome);
        self.plan(self.profile.partition_every, Happening::PartitionBegin);
        self.plan(self.profile.transfer_every, Happening::TransferSome);
        self.plan(self.profile.reconnect_every, Happening::Reconnect);
        if self.profile.clock_jump > 0 {
            self.after(SECOND, Happening::ClockJump);
        }
        if self.profile.snapshots.asked_every > 0 {
            self.after(SECOND, Happening::AskForSnapshot);
        }
    }

    /// Schedules a fault that comes every `mean`, if it comes at all.
    pub(crate) fn plan(&mut self, mean: u64, what: Happening) {
        if mean > 0 && !self.healed {
            let delay = mean / 4 + self.prng.tail(mean);
            self.after(delay, what);
        }
    }

    pub(crate) fn after(&mut self, delay: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + delay, order: self.order, what }));
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        let position = usize::try_from(id.saturating_sub(1)).unwrap_or(usize::MAX);
        self.nodes.get_mut(position).unwrap_or_else(|| unreachable!("node {id} is not in the cluster"))
    }

    /// Runs until `until`.
    ///
    /// # Errors
    /// The rule that was broken.
    pub(crate) fn run_until(&mut self, until: u64) -> Result<(), String> {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > until {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = self.now.max(next.at);
            self.happen(next.what)?;
        }
        self.now = until;
        Ok(())
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        if let Some(place) = what.place() {
            let paused_until = self.node(place).paused_until;
            if self.now < paused_until {
                if matches!(what, Happening::Deadline { .. }) {
                    self.counts.reached(Sometimes::DeadlineWhilePaused);
                }
                // In steps, so that the calm ends a pause that was meant to last longer.
                self.after((paused_until - self.now).min(SECOND / 2), what);
                return Ok(());
            }
        }
        if let Some((node, life)) = what.process() {
            let node = self.node(node);
            if node.life != life || node.running.is_none() {
                return Ok(());
            }
        }
        self.events += 1;
        let now = self.now;
        self.trace.event(now, &what);
        match what {
            Happening::Arrive(packet) => self.arrive(&packet)?,
            Happening::PeerUp { node, peer, .. } => {
                if let Some(incarnation) = self.node(peer).running.as_ref().map(|it| it.incarnation) {
                    self.tell(node, Event::PeerUp { node: node_id(peer), incarnation })?;
                }
            }
            Happening::Deadline { node, .. } => self.deadline(node)?,
            Happening::LogBegin { node, .. } => self.log_begin(node)?,
            Happening::LogDone { node, stored, .. } => self.log_done(node, stored)?,
            Happening::LogIdle { node, .. } => self.log_idle(node)?,
            Happening::ApplyBegin { node, .. } => self.apply_begin(node)?,
            Happening::ApplyDone { node, through, next_expiry_ms, .. } => {
                self.apply_done(node, through, next_expiry_ms)?;
            }
            Happening::SnapshotBuild { node, .. } => self.snapshot_build(node)?,
            Happening::SnapshotBuilt { node, .. } => self.snapshot_built(node)?,
            Happening::TransferBegin { node, order, .. } => self.transfer_begin(node, order)?,
            Happening::TransferFrame { connection, way, .. } => self.transfer_frame(connection, way)?,
            Happening::TransferTimer { connection, .. } => self.transfer_timer(connection)?,
            Happening::TransferLost { node, to, .. } => self.transfer_lost(node, to)?,
            Happening::AskForSnapshot => self.ask_for_snapshot()?,
            Happening::ClientTurn(client) => self.client_turn(client),
            Happening::ClientCall { operation, node } => self.client_call(operation, node)?,
            Happening::ClientGivesUp(operation) => {
                if self.clients.is_waiting_for(operation) {
                    self.clients.give_up(operation, self.profile.nodes);
                }
            }
            Happening::Rush { times_left } => self.rush(times_left),
            Happening::Start(node) => self.start(node)?,
            Happening::CrashSome => self.crash_some(),
            Happening::PauseSome => self.pause_some(),
            Happening::TransferSome => self.transfer_some()?,
            Happening::Reconnect => self.reconnect()?,
            Happening::PartitionBegin => self.partition_begin(),
            Happening::PartitionEnd => {
                self.network.heal();
                if self.prng.chance(500_000) {
                    self.reconnect_some(true)?;
                }
                self.plan(self.profile.partition_every, Happening::PartitionBegin);
            }
            Happening::ClockJump => self.clock_jump(),
        }
        self.take_outcomes();
        self.take_answers()
    }

    fn arrive(&mut self, packet: &Packet) -> Result<(), String> {
        if !self.network.carries(packet.from, packet.to) {
            self.counts.fault(Fault::MessageDropped);
            return Ok(());
        }
        let (group, message) = decode_frame(&packet.frame)
            .map_err(|error| format!("wire: a frame from node {} cannot be read: {error}", packet.from))?;
        if group != GROUP {
            return Err(format!("wire: a frame arrived with group {group}"));
        }
        self.trace.message(self.now, packet.from, packet.to, &message);
        self.tell(packet.to, Event::Peer { from: node_id(packet.from), message })
    }

    fn deadline(&mut self, node: u64) -> Result<(), String> {
        let now = self.now;
        let state = self.node(node);
        let clock = state.clock(now);
        let Some(running) = state.running.as_mut() else { return Ok(()) };
        running.deadline = None;
        if running.replica.next_deadline().is_some_and(|due| due <= clock) {
            return self.tell(node, Event::Deadline);
        }
        self.schedule_deadline(node);
        Ok(())
    }

    fn schedule_deadline(&mut self, id: u64) {
        let now = self.now;
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return };
        let Some(due) = running.replica.next_deadline() else { return };
        if running.deadline.is_some_and(|scheduled| scheduled <= due) {
            return;
        }
        running.deadline = Some(due);
        let delay = node.true_time(due).saturating_sub(now);
        self.after(delay, Happening::Deadline { node: id, life });
    }

    /// Gives an event to a node's replica and does what it asks for.
    pub(crate) fn tell(&mut self, id: u64, event: Event) -> Result<(), String> {
        let now = self.now;
        let patience = Duration::from_millis(self.profile.snapshots.purge_patience_ms);
        let node = self.node(id);
        let (clock, wall_ms) = (node.clock(now), node.wall_ms(now));
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let before = (running.replica.core().role(), running.replica.core().term());
        let mut jobs = std::mem::take(&mut running.jobs);
        let (bindings, log) = (running.replica.bound_incarnations(), running.replica.core().log());
        let received = running.installing;
        let there = received.and_then(|label| running.replica.core().term_at(label.index));
        running.note_event(&event);
        running.replica.handle(clock, wall_ms, event, &mut jobs);
        running.note_orders(&jobs, clock, patience);
        let now_there = running.replica.core().term_at(log.last.index);
        let superseded = now_there.is_some_and(|term| term != log.last.term);
        let bound = running.replica.bound_incarnations() > bindings;
        if superseded {
            self.counts.reached(Sometimes::SuffixSuperseded);
        }
        if bound {
            self.counts.reached(Sometimes::IncarnationsBound);
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let after = (running.replica.core().role(), running.replica.core().term());
        self.observe(id, before, after)?;
        for job in &jobs.persist {
            if let Some(install) = job.install {
                let conflicts = there.is_some_and(|term| term != install.base.term);
                self.note_install(id, install, log.last, conflicts);
            }
        }
        let result = self.carry_out(id, &mut jobs);
        jobs.clear();
        if let Some(running) = self.node(id).running.as_mut() {
            running.jobs = jobs;
        }
        result?;
        self.schedule_deadline(id);
        Ok(())
    }

    fn observe(
        &mut self,
        id: u64,
        before: (RoleKind, d_engine_core::Term),
        after: (RoleKind, d_engine_core::Term),
    ) -> Result<(), String> {
        let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return Ok(());
        };
        let core = running.replica.core();
        self.monitors.after_step(id, core)?;
        self.check_leases()?;
        if self.monitors.old_term_on_majority(core) {
            self.counts.reached(Sometimes::OldTermEntryOnMajority);
        }
        if before == after {
            return Ok(());
        }
        self.trace.role(self.now, id, after.0, after.1);
        if after.0 == RoleKind::Leader && before.0 != RoleKind::Leader {
            self.elections += 1;
            let leaders = self.nodes.iter().filter_map(|node| node.running.as_ref());
            if leaders.filter(|it| it.replica.core().role() == RoleKind::Leader).count() > 1 {
                self.counts.reached(Sometimes::TwoLeadersAtOnce);
                self.after(MS, Happening::Rush { times_left: 20 });
            }
            let earlier = (1..after.1.get()).rev().map(d_engine_core::Term::new);
            if earlier.take(4).any(|term| self.monitors.leader_of(term) == Some(id)) {
                self.counts.reached(Sometimes::LeaderReelectedInLaterTerm);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, id: u64, jobs: &mut d_engine_replica::Jobs) -> Result<(), String> {
        for job in &jobs.persist {
            if job.entries.iter().any(|entry| entry.kind == d_engine_core::EntryKind::Tick) {
                self.counts.reached(Sometimes::TickWritten);
            }
            let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
            if let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) {
                self.monitors.on_write(id, running.replica.core(), job)?;
            }
        }
        for outgoing in jobs.send.drain(..) {
            let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
            if let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) {
                self.monitors.on_send(id, running.replica.core(), outgoing.to, &outgoing.message)?;
            }
            let frame: Bytes = encode_frame(GROUP, &outgoing.message).to_bytes();
            let packet = Packet { from: id, to: outgoing.to.get(), frame };
            for (at, packet) in self.network.send(packet, self.now, &self.profile, &mut self.counts) {
                self.after(at.saturating_sub(self.now), Happening::Arrive(packet));
            }
        }
        self.order_snapshots(id, jobs)?;
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        running.writes.append(&mut jobs.persist);
        running.loads.append(&mut jobs.load);
        running.purge = jobs.purge.take().or(running.purge);
        running.applies.extend(jobs.apply.drain(..));
        let has_log_work = running.has_log_work();
        let log_begins = has_log_work && !running.log_busy;
        let apply_begins = !running.apply_busy && !running.applies.is_empty();
        running.log_busy |= log_begins;
        running.apply_busy |= apply_begins;
        if log_begins {
            let delay = self.prng.below(200_000);
            self.after(delay, Happening::LogBegin { node: id, life });
        }
        if apply_begins {
            let delay = self.prng.tail(self.profile.apply_mean);
            self.after(delay, Happening::ApplyBegin { node: id, life });
        }
        Ok(())
    }

    /// While clocks keep their bound, nobody leads a later term beside a valid lease (Raft thesis, section
    /// 6.4.1), whether a client notices or not.
    fn check_leases(&self) -> Result<(), String> {
        if self.profile.clock_drift > u64::from(self.profile.clock_drift_percent_max) * 10_000 {
            return Ok(());
        }
        for holder in &self.nodes {
            let Some(core) = holder.running.as_ref().map(|it| it.replica.core()) else { continue };
            let until = core.lease_until().filter(|until| holder.clock(self.now) < *until);
            let later =
                self.nodes.iter().filter_map(|node| node.running.as_ref()).find(|it| {
                    it.replica.core().leads_with_commit() && it.replica.core().term() > core.term()
                });
            if let (Some(until), Some(_)) = (until, later) {
                return Err(format!(
                    "lease: node {} holds one of term {} until {until:?} beside a later leader",
                    holder.id,
                    core.term()
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn leads(&mut self, node: u64) -> bool {
        let running = self.node(node).running.as_ref();
        running.is_some_and(|it| it.replica.core().role() == RoleKind::Leader)
    }

    fn take_answers(&mut self) -> Result<(), String> {
        for (operation, node, answer) in self.clients.take_answers() {
            if !self.clients.is_waiting_for(operation) {
                continue;
            }
            use crate::clients::Answer;
            use d_engine_replica::{ProposeError, ReadError};
            match &answer {
                Answer::Command(Err(ProposeError::OutcomeUnknown { .. })) => {
                    self.counts.reached(Sometimes::OutcomeUnknown);
                }
                Answer::Barrier(Ok(_)) if !self.leads(node) => self.counts.reached(Sometimes::FollowerRead),
                Answer::Barrier(Err(ReadError::NotLeader { .. })) => self.counts.reached(Sometimes::ReadLost),
                _ => {}
            }
            let key = self.clients.key_of(operation).unwrap_or_default();
            let running = self.node(node).running.as_ref();
            let value = running.and_then(|it| it.machine.get(&key));
            self.trace.answer(self.now, operation, node, &answer);
            self.clients.answered(operation, &answer, value, self.now, self.profile.nodes)?;
        }
        Ok(())
    }
}
