//! The cluster in virtual time: one queue of events, executed one at a time.

pub(crate) mod apply;
pub(crate) mod connections;
pub(crate) mod disk;
pub(crate) mod event;
pub(crate) mod faults;
pub(crate) mod gate;
pub(crate) mod hangs;
pub(crate) mod intake;
pub(crate) mod joining;
pub(crate) mod link_model;
pub(crate) mod links;
pub(crate) mod members;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod programs;
pub(crate) mod reads;
mod receives;
pub(crate) mod refused;
mod repairs;
pub(crate) mod script;
pub(crate) mod scripted;
pub(crate) mod sends;
pub(crate) mod snapshots;
pub(crate) mod standing;
pub(crate) mod starts;
pub(crate) mod stops;
pub(crate) mod turns;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use d_engine_core::RoleKind;
use d_engine_replica::Event;

use crate::clients::Clients;
use crate::faults::{Counts, Fault, Sometimes};
use crate::monitors::Monitors;
use crate::monitors::violation::{Rule, Violation};
use crate::names::node_id;
use crate::prng::Prng;
use crate::profile::Profile;
use crate::time::{MS, SECOND};
use crate::trace::Trace;
use crate::world::connections::Exchange;
use crate::world::event::{Chain, Scheduled, SimEvent};
use crate::world::link_model::{Affected, Links};
use crate::world::network::{Network, Packet};
use crate::world::node::Node;
use crate::world::operator::Operator;
use crate::world::script::Script;

/// The highest number of events in a millisecond of a run.
const EVENTS_MAX: u64 = 100_000;

/// A running simulation.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    /// When the present millisecond began, and how many events it has had.
    busy: (u64, u64),
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
    /// Used only for snapshots, so that other draws do not shift.
    pub(crate) snapshot_prng: Prng,
    /// Used only for turns, bursts, shutdowns, hanging or full disks, and commands that halt state
    /// machines.
    pub(crate) turn_prng: Prng,
    /// Used only for programs of several versions.
    pub(crate) program_prng: Prng,
    /// Used only for changes of the members.
    pub(crate) member_prng: Prng,
    /// Used only for damaged logs.
    pub(crate) repair_prng: Prng,
    pub(crate) operator: Operator,
    pub(crate) exchange: Exchange,
    /// The node whose newest snapshot was damaged; at most one per run.
    pub(crate) damaged: Option<u64>,
    /// The node whose log was damaged and mended; at most one per run.
    pub(crate) log_damaged: Option<u64>,
    pub(crate) trace: Trace,
    pub(crate) events: u64,
    pub(crate) elections: u64,
    /// The number of commands so far that halt state machines.
    pub(crate) bad_commands: u64,
    /// Skip requests that were refused.
    pub(crate) refused_skips: Arc<AtomicU64>,
    /// Faults and new client operations have ended: the cluster must now recover.
    pub(crate) healed: bool,
    /// The state at which the run is to fail.
    pub(crate) fail_on: Option<Sometimes>,
    /// The faults and calls, if they are recorded or follow a record.
    pub(crate) script: Script,
}

impl World {
    pub(crate) fn new(seed: u64, mut profile: Profile, trace: Trace, script: Script) -> Self {
        let mut repair_prng = Prng::stream(seed, "repairs");
        if !repair_prng.chance(500_000) {
            profile.log_damage = 0;
        }
        let mut prng = Prng::stream(seed, "world");
        let mut counts = Counts::default();
        let mut node = |id| {
            let drift = prng.between(0, 2 * profile.clock_drift);
            if drift != profile.clock_drift {
                counts.fault(Fault::ClockDrift);
            }
            let rate = 1_000_000 - profile.clock_drift + drift;
            // The others have no data directory until one has joined under their id.
            Node { is_lost: id > profile.nodes, ..Node::new(id, rate) }
        };
        let nodes = (1..=profile.nodes.max(profile.members.ids_max())).map(&mut node).collect();
        let mut world = Self {
            now: SECOND,
            busy: (0, 0),
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
            member_prng: Prng::stream(seed, "changes of members"),
            repair_prng,
            operator: Operator::default(),
            exchange: Exchange::default(),
            damaged: None,
            log_damaged: None,
            trace,
            events: 0,
            elections: 0,
            bad_commands: 0,
            refused_skips: Arc::default(),
            healed: false,
            fail_on: None,
            script,
            profile,
        };
        let at_birth = world.profile.founded();
        world.monitors.memberships.born(at_birth);
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.draw_programs();
        for node in 1..=self.profile.nodes {
            let delay = self.prng.below(200 * MS);
            self.after(delay, SimEvent::Start(node));
        }
        for client in 0..usize::try_from(self.profile.clients).unwrap_or(0) {
            let delay = self.prng.below(SECOND);
            self.after(delay, SimEvent::Chain(Chain::Client(client)));
        }
        self.plan(self.profile.crash_every, Chain::Crash);
        self.plan(self.profile.pause_every, Chain::Pause);
        self.plan(self.profile.partition_every, Chain::Partition);
        self.plan(self.profile.transfer_every, Chain::LeadershipTransfer);
        self.plan(self.profile.reconnect_every, Chain::Reconnect);
        self.plan(self.profile.limits.burst_every, Chain::Burst);
        self.plan(self.profile.hang_every, Chain::Hang);
        self.plan(self.profile.stop_every, Chain::Shutdown);
        self.plan(self.profile.fill_every, Chain::DiskFull);
        if self.profile.standing.bad_every > 0 {
            self.plan(self.profile.standing.bad_every, Chain::BadCommand);
            self.after(SECOND, SimEvent::OperatorLooks);
            for node in 1..=self.profile.nodes {
                self.node(node).program =
                    u8::from(self.turn_prng.chance(self.profile.standing.newer));
            }
        }
        self.plan(self.profile.programs.change_every, Chain::ProgramChange);
        self.plan(self.profile.members.change_every, Chain::MembersChange);
        if self.profile.links.connections {
            self.plan(self.profile.links.slow_every, Chain::SlowLink);
        }
        if self.profile.clock_jump > 0 {
            self.after(SECOND, SimEvent::Chain(Chain::ClockJump));
        }
        if self.profile.snapshots.asked_every > 0 {
            self.after(SECOND, SimEvent::Chain(Chain::SnapshotRequest));
        }
    }

    /// Schedules a fault with a mean interval of `mean`; zero schedules none.
    pub(crate) fn plan(&mut self, mean: u64, chain: Chain) {
        if mean > 0 && !self.healed {
            let delay = mean / 4 + self.prng.tail(mean);
            self.after(delay, SimEvent::Chain(chain));
        }
    }

    pub(crate) fn after(&mut self, delay: u64, what: SimEvent) {
        self.order += 1;
        let mut at = self.now + delay;
        if let SimEvent::Chain(chain) = what
            && let Some(recorded) = self.script.next_at(chain)
        {
            at = recorded.max(self.now);
        }
        self.queue.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        let position = usize::try_from(id.saturating_sub(1)).unwrap_or(usize::MAX);
        self.nodes
            .get_mut(position)
            .unwrap_or_else(|| unreachable!("node {id} is not in the cluster"))
    }

    /// Runs all events up to the simulated time `until`.
    ///
    /// # Errors
    /// The rule that was broken.
    pub(crate) fn run_until(&mut self, until: u64) -> Result<(), Violation> {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > until {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = self.now.max(next.at);
            self.check_standstill()?;
            self.happen(next.what)?;
        }
        self.now = until;
        Ok(())
    }

    /// Work that causes itself again at once would keep a processor busy for ever.
    fn check_standstill(&mut self) -> Result<(), Violation> {
        let (began, events) = self.busy;
        self.busy = match self.now.saturating_sub(began) {
            MS.. => (self.now, 1),
            _ => (began, events + 1),
        };
        match events {
            EVENTS_MAX.. => Rule::Liveness
                .broken(format_args!("time stands still: {EVENTS_MAX} events in a millisecond")),
            _ => Ok(()),
        }
    }

    fn happen(&mut self, what: SimEvent) -> Result<(), Violation> {
        if let Some(until) = self.is_put_off(&what) {
            if matches!(what, SimEvent::Deadline { .. }) {
                self.counts.reached(Sometimes::DeadlineWhilePaused);
            }
            // Postpone in steps, so that the end of all faults also ends a pause that would have
            // lasted longer.
            self.after((until - self.now).min(SECOND / 2), what);
            return Ok(());
        }
        if let Some((node, boot)) = what.process() {
            let node = self.node(node);
            if node.boot != boot || node.running.is_none() {
                return Ok(());
            }
        }
        self.events += 1;
        let now = self.now;
        self.trace.event(now, &what);
        self.execute(what)?;
        self.take_outcomes();
        self.take_requested()?;
        self.take_answers()?;
        self.take_member_answers()?;
        match self.fail_on.filter(|state| self.counts.has_reached(*state)) {
            Some(state) => Rule::FailOn.broken(format_args!("{state:?} is reached")),
            None => Ok(()),
        }
    }

    /// Returns the time until which the event must wait, if its node is paused or the disk or state
    /// machine that it needs hangs.
    fn is_put_off(&mut self, what: &SimEvent) -> Option<u64> {
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

    pub(crate) fn do_it(&mut self, what: SimEvent) -> Result<(), Violation> {
        match what {
            SimEvent::Arrive(packet) => self.arrive(&packet)?,
            SimEvent::PeerUp { node, peer, .. } => {
                if let Some(incarnation) = self.node(peer).running.as_ref().map(|it| it.incarnation)
                {
                    self.tell(node, Event::PeerUp { node: node_id(peer), incarnation })?;
                }
            }
            SimEvent::LinkDial { node, to, .. } => self.link_dial(node, to)?,
            SimEvent::LinkWrite { connection, .. } => self.link_writes_on(connection),
            SimEvent::LinkArrive { connection, lane, .. } => self.link_arrive(connection, lane)?,
            SimEvent::LinkPing { connection, .. } => self.link_ping(connection)?,
            SimEvent::LinkBroken { connection } => self.link_broken(connection)?,
            SimEvent::SlowLinkEnds { one, other } => self.slow_ends(one, other),
            SimEvent::Turn { node, .. } => self.turn(node)?,
            SimEvent::StopsYet { node, .. } => self.stops_yet(node)?,
            SimEvent::Deadline { node, .. } => self.deadline(node)?,
            SimEvent::LogBegin { node, .. } => self.log_begin(node)?,
            SimEvent::LogDone { node, stored, .. } => self.log_done(node, stored)?,
            SimEvent::LogIdle { node, .. } => self.log_idle(node)?,
            SimEvent::LogRetry { node, .. } => self.log_retry(node)?,
            SimEvent::RoomAgain { node } => self.room_again(node),
            SimEvent::ApplyBegin { node, .. } => self.apply_begin(node)?,
            SimEvent::ApplyDone { node, applied, .. } => self.apply_done(node, applied)?,
            SimEvent::ApplyStopped { node, through, stop, .. } => {
                self.apply_stopped(node, through, stop)?
            }
            SimEvent::OperatorLooks => self.operator_looks()?,
            SimEvent::JoinerAsks(number) => self.joiner_asks(number)?,
            SimEvent::JoinerIsInvited(number) => self.joiner_is_invited(number)?,
            SimEvent::LostNodeCare => self.care_for_lost_node()?,
            SimEvent::InJoint { leader, what } => self.in_joint(leader, what)?,
            SimEvent::SnapshotBuild { node, .. } => self.snapshot_build(node)?,
            SimEvent::SnapshotBuilt { node, .. } => self.snapshot_built(node),
            SimEvent::SendBegins { node, attempt, order, .. } => {
                self.send_begins(node, attempt, order)?
            }
            SimEvent::SendFrame { connection, way, .. } => self.send_frame(connection, way)?,
            SimEvent::SendTimer { connection, .. } => self.send_timer(connection)?,
            SimEvent::SendBreaks { connection } => drop(self.close(connection)),
            SimEvent::SendEnded { node, attempt, .. } => self.report_end(node, attempt)?,
            SimEvent::Chain(chain) => self.disturb(chain)?,
            SimEvent::ClientCall { operation, node } => self.client_call(operation, node)?,
            SimEvent::ClientGivesUp(operation) => {
                if self.clients.is_waiting_for(operation) {
                    self.clients.give_up(operation, self.profile.nodes);
                }
            }
            SimEvent::Rush { times_left } => self.rush(times_left),
            SimEvent::Start(node) => self.start(node)?,
            // All partitions have ended with the other faults.
            SimEvent::PartitionEnd if self.healed => {}
            SimEvent::PartitionEnd => {
                self.network.heal();
                if self.prng.chance(500_000) {
                    self.reconnect_some(Affected::All)?;
                }
                self.plan(self.profile.partition_every, Chain::Partition);
            }
        }
        Ok(())
    }

    fn arrive(&mut self, packet: &Packet) -> Result<(), Violation> {
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

    fn take_answers(&mut self) -> Result<(), Violation> {
        for (operation, node, answer) in self.clients.take_answers() {
            use crate::clients::Answer;
            use d_engine_replica::{ProposeError, ReadError};
            match &answer {
                Answer::Command(Err(ProposeError::Busy { .. }))
                | Answer::Barrier(Err(ReadError::Busy { .. })) => {
                    self.counts.reached(Sometimes::Busy);
                }
                Answer::Command(Err(ProposeError::Expired))
                | Answer::Barrier(Err(ReadError::Expired)) => {
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
            if self.node(node).running.is_none() && matches!(answer, Answer::Barrier(Ok(_))) {
                // The process crashed before it read from its state machine: no answer is sent.
                continue;
            }
            match &answer {
                Answer::Command(Err(ProposeError::OutcomeUnknown { .. })) => {
                    self.counts.reached(Sometimes::OutcomeUnknown);
                }
                Answer::Barrier(Ok(_)) if !self.leads(node) => {
                    self.counts.reached(Sometimes::FollowerRead)
                }
                Answer::Barrier(Err(ReadError::NotLeader { .. })) => {
                    self.counts.reached(Sometimes::ReadLost)
                }
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
