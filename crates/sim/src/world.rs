//! The cluster in virtual time: one queue of events, one step after the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use d_engine_core::RoleKind;
use d_engine_replica::Event;

use crate::clients::Clients;
use crate::faults::{Counts, Fault, Sometimes};
use crate::links::{Lane, Links};
use crate::monitors::Monitors;
use crate::network::{Network, Packet};
use crate::node::{Node, node_id};
use crate::prng::Prng;
use crate::profile::{MS, Profile, SECOND};
use crate::trace::Trace;
use crate::world_standing::Standing;
use crate::world_transfers::{Transfers, Way};

/// What is scheduled.
#[derive(Debug)]
pub(crate) enum Happening {
    Arrive(Packet),
    PeerUp { node: u64, life: u64, peer: u64 },
    LinkDial { node: u64, life: u64, to: u64 },
    LinkWrite { connection: u64, node: u64 },
    LinkArrive { connection: u64, lane: Lane, node: u64 },
    LinkPing { connection: u64, node: u64 },
    LinkBroken { connection: u64 },
    SlowLink,
    SlowLinkEnds { one: u64, other: u64 },
    Turn { node: u64, life: u64 },
    Burst,
    HangSome,
    StopSome,
    ChangeProgram,
    StopsYet { node: u64, life: u64 },
    Deadline { node: u64, life: u64 },
    LogBegin { node: u64, life: u64 },
    LogDone { node: u64, life: u64, stored: Option<d_engine_core::PersistId> },
    LogIdle { node: u64, life: u64 },
    LogRetry { node: u64, life: u64 },
    FillSome,
    RoomAgain { node: u64 },
    ApplyBegin { node: u64, life: u64 },
    ApplyDone { node: u64, life: u64, applied: crate::node::Applied },
    ApplyStopped { node: u64, life: u64, through: d_engine_replica::LogId, stop: d_engine_replica::ApplyStop },
    BadCommand,
    OperatorLooks,
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
            | Self::LinkDial { node, life, .. }
            | Self::Turn { node, life }
            | Self::StopsYet { node, life }
            | Self::Deadline { node, life }
            | Self::LogBegin { node, life }
            | Self::LogDone { node, life, .. }
            | Self::LogIdle { node, life }
            | Self::LogRetry { node, life }
            | Self::ApplyBegin { node, life }
            | Self::SnapshotBuild { node, life }
            | Self::SnapshotBuilt { node, life }
            | Self::TransferLost { node, life, .. }
            | Self::TransferBegin { node, life, .. }
            | Self::ApplyStopped { node, life, .. }
            | Self::ApplyDone { node, life, .. } => Some((*node, *life)),
            _ => None,
        }
    }

    /// Whether it needs the disk, or the state machine.
    fn hangs(&self) -> (bool, bool) {
        match self {
            Self::LogBegin { .. }
            | Self::LogDone { .. }
            | Self::LogIdle { .. }
            | Self::LogRetry { .. }
            | Self::SnapshotBuild { .. }
            | Self::SnapshotBuilt { .. } => (true, false),
            Self::ApplyBegin { .. } | Self::ApplyDone { .. } | Self::ApplyStopped { .. } => (false, true),
            _ => (false, false),
        }
    }

    /// The node on which it happens, for pauses.
    fn place(&self) -> Option<u64> {
        match self {
            Self::Arrive(packet) => Some(packet.to),
            Self::ClientCall { node, .. }
            | Self::LinkWrite { node, .. }
            | Self::LinkArrive { node, .. }
            | Self::LinkPing { node, .. }
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
    pub(crate) links: Links,
    pub(crate) clients: Clients,
    pub(crate) monitors: Monitors,
    pub(crate) counts: Counts,
    pub(crate) prng: Prng,
    /// For snapshots alone.
    pub(crate) snapshot_prng: Prng,
    /// For turns and bursts alone.
    pub(crate) turn_prng: Prng,
    /// For programs of several versions alone.
    pub(crate) program_prng: Prng,
    pub(crate) transfers: Transfers,
    /// The node whose newest snapshot was damaged.
    pub(crate) damaged: Option<u64>,
    pub(crate) trace: Trace,
    pub(crate) events: u64,
    pub(crate) elections: u64,
    pub(crate) standing: Standing,
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
            links: Links::new(seed),
            clients: Clients::new(seed, &profile),
            monitors: Monitors::default(),
            counts,
            prng,
            snapshot_prng: Prng::stream(seed, "snapshots"),
            turn_prng: Prng::stream(seed, "turns"),
            program_prng: Prng::stream(seed, "programs of nodes"),
            transfers: Transfers::default(),
            damaged: None,
            trace,
            events: 0,
            elections: 0,
            standing: Standing::default(),
            healed: false,
            profile,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.draw_programs();
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
        self.plan(self.profile.limits.burst_every, Happening::Burst);
        self.plan(self.profile.hang_every, Happening::HangSome);
        self.plan(self.profile.stop_every, Happening::StopSome);
        self.plan(self.profile.fill_every, Happening::FillSome);
        if self.profile.standing.bad_every > 0 {
            self.plan(self.profile.standing.bad_every, Happening::BadCommand);
            self.after(SECOND, Happening::OperatorLooks);
            for node in 1..=self.profile.nodes {
                self.node(node).program = u8::from(self.turn_prng.chance(self.profile.standing.newer));
            }
        }
        self.plan(self.profile.programs.change_every, Happening::ChangeProgram);
        if self.profile.links.connections {
            self.plan(self.profile.links.slow_every, Happening::SlowLink);
        }
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
        if let Some(until) = self.is_put_off(&what) {
            if matches!(what, Happening::Deadline { .. }) {
                self.counts.reached(Sometimes::DeadlineWhilePaused);
            }
            // In steps, so that the calm ends a pause that was meant to last longer.
            self.after((until - self.now).min(SECOND / 2), what);
            return Ok(());
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
        self.do_it(what)?;
        self.take_outcomes();
        self.take_answers()
    }

    /// Until when nothing like this happens, if its node pauses or what it needs hangs.
    fn is_put_off(&mut self, what: &Happening) -> Option<u64> {
        let place = what.place()?;
        let (needs_disk, needs_machine) = what.hangs();
        let node = self.node(place);
        let mut until = node.paused_until;
        if needs_disk {
            until = until.max(node.disk_hangs_until);
        }
        if needs_machine {
            until = until.max(node.apply_hangs_until);
        }
        (self.now < until).then_some(until)
    }

    fn do_it(&mut self, what: Happening) -> Result<(), String> {
        match what {
            Happening::Arrive(packet) => self.arrive(&packet)?,
            Happening::PeerUp { node, peer, .. } => {
                if let Some(incarnation) = self.node(peer).running.as_ref().map(|it| it.incarnation) {
                    self.tell(node, Event::PeerUp { node: node_id(peer), incarnation })?;
                }
            }
            Happening::LinkDial { node, to, .. } => self.link_dial(node, to)?,
            Happening::LinkWrite { connection, .. } => self.link_writes_on(connection),
            Happening::LinkArrive { connection, lane, .. } => self.link_arrive(connection, lane)?,
            Happening::LinkPing { connection, .. } => self.link_ping(connection)?,
            Happening::LinkBroken { connection } => self.link_broken(connection)?,
            Happening::SlowLink => self.slow_some(),
            Happening::SlowLinkEnds { one, other } => self.slow_ends(one, other),
            Happening::Turn { node, .. } => self.turn(node)?,
            Happening::Burst => self.burst()?,
            Happening::HangSome => self.hang_some(),
            Happening::StopSome => self.stop_some()?,
            Happening::ChangeProgram => self.change_program(),
            Happening::StopsYet { node, .. } => self.stops_yet(node)?,
            Happening::Deadline { node, .. } => self.deadline(node)?,
            Happening::LogBegin { node, .. } => self.log_begin(node)?,
            Happening::LogDone { node, stored, .. } => self.log_done(node, stored)?,
            Happening::LogIdle { node, .. } => self.log_idle(node)?,
            Happening::LogRetry { node, .. } => self.log_retry(node)?,
            Happening::FillSome => self.fill_some(),
            Happening::RoomAgain { node } => self.room_again(node),
            Happening::ApplyBegin { node, .. } => self.apply_begin(node)?,
            Happening::ApplyDone { node, applied, .. } => self.apply_done(node, applied)?,
            Happening::ApplyStopped { node, through, stop, .. } => self.apply_stopped(node, through, stop)?,
            Happening::BadCommand => self.bad_command_comes()?,
            Happening::OperatorLooks => self.operator_looks()?,
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
        Ok(())
    }

    fn arrive(&mut self, packet: &Packet) -> Result<(), String> {
        if !self.network.carries(packet.from, packet.to) {
            self.counts.fault(Fault::MessageDropped);
            return Ok(());
        }
        self.receive(packet.from, packet.to, &packet.frame)
    }

    pub(crate) fn leads(&mut self, node: u64) -> bool {
        let running = self.node(node).running.as_ref();
        running.is_some_and(|it| it.replica.core().role() == RoleKind::Leader)
    }

    fn take_answers(&mut self) -> Result<(), String> {
        for (operation, node, answer) in self.clients.take_answers() {
            use crate::clients::Answer;
            use d_engine_replica::{ProposeError, ReadError};
            match &answer {
                Answer::Command(Err(ProposeError::Busy { .. }))
                | Answer::Barrier(Err(ReadError::Busy { .. })) => {
                    self.counts.reached(Sometimes::Busy);
                }
                Answer::Command(Err(ProposeError::Expired)) | Answer::Barrier(Err(ReadError::Expired)) => {
                    self.counts.reached(Sometimes::Expired);
                }
                Answer::Command(Err(ProposeError::NewerCommand { .. })) => {
                    self.counts.reached(Sometimes::NewerCommandRefused);
                }
                Answer::Command(Err(ProposeError::TooLarge { .. })) => {
                    self.counts.reached(Sometimes::TooLarge);
                }
                _ => {}
            }
            if !self.clients.is_waiting_for(operation) {
                continue;
            }
            match &answer {
                Answer::Command(Err(ProposeError::OutcomeUnknown { .. })) => {
                    self.counts.reached(Sometimes::OutcomeUnknown);
                }
                Answer::Barrier(Ok(_)) if !self.leads(node) => self.counts.reached(Sometimes::FollowerRead),
                Answer::Barrier(Err(ReadError::NotLeader { .. })) => self.counts.reached(Sometimes::ReadLost),
                _ => {}
            }
            let keys = self.clients.keys_of(operation);
            let running = self.node(node).running.as_ref();
            let get = |key: &bytes::Bytes| running.and_then(|it| it.machine.get(key));
            let values: Vec<_> = keys.iter().map(get).collect();
            self.trace.answer(self.now, operation, node, &answer);
            self.clients.answered(operation, &answer, &values, self.now, self.profile.nodes)?;
        }
        Ok(())
    }
}
