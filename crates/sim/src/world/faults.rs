//! Faults of nodes, network and clocks, and the calls of clients.

use d_engine_core::ReadMode;
use d_engine_replica::Event;

use crate::clients::messages::ToNode;
use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::names::node_id;
use crate::time::RIGHT_TIME_MS;
use crate::time::{MS, SECOND};
use crate::world::World;
use crate::world::event::{Chain, SimEvent};
use crate::world::link_model::Affected;

impl World {
    /// Executes the next fault, or the next turn, of a chain, unless all faults have ended.
    pub(crate) fn disturb(&mut self, chain: Chain) -> Result<(), Violation> {
        if self.healed {
            return Ok(());
        }
        match chain {
            Chain::Crash => self.crash_some(),
            Chain::Pause => self.pause_some(),
            Chain::Partition => self.partition_begin(),
            Chain::LeadershipTransfer => self.transfer_some()?,
            Chain::Reconnect => self.reconnect()?,
            Chain::Burst => self.burst()?,
            Chain::Hang => self.hang_some(),
            Chain::Shutdown => self.stop_some()?,
            Chain::DiskFull => self.fill_some(),
            Chain::BadCommand => self.bad_command_comes()?,
            Chain::ProgramChange => self.change_program(),
            Chain::SlowLink => self.slow_some(),
            Chain::ClockJump => self.clock_jump(),
            Chain::MembersChange => self.change_members()?,
            Chain::SnapshotRequest => self.ask_for_snapshot(),
            Chain::Client(client) => self.client_turn(client),
        }
        Ok(())
    }

    pub(crate) fn crash_some(&mut self) {
        if self.prng.chance(self.profile.crash_all) {
            self.counts.fault(Fault::CrashOfAll);
            for node in 1..=self.profile.nodes {
                if self.node(node).running.is_some() {
                    self.crash(node);
                }
            }
        } else {
            let node = self.prng.between(1, self.profile.nodes);
            if self.node(node).running.is_some() {
                self.counts.fault(Fault::Crash);
                self.crash(node);
            }
        }
        let mean = self.profile.crash_every;
        let delay = mean / 4 + self.prng.tail(mean);
        self.after(delay, SimEvent::Chain(Chain::Crash));
    }

    pub(crate) fn pause_some(&mut self) {
        let (node, now) = (self.prng.between(1, self.profile.nodes), self.now);
        let length = 10 * MS + self.prng.tail(self.profile.pause_length);
        self.counts.fault(Fault::Pause);
        self.trace.note(now, format_args!("node {node} pauses for {} ms", length / MS));
        self.node(node).paused_until = now + length;
        let mean = self.profile.pause_every;
        let delay = mean / 4 + self.prng.tail(mean);
        self.after(delay, SimEvent::Chain(Chain::Pause));
    }

    /// Asks every leader to transfer leadership, to a drawn node or to one of its choice.
    pub(crate) fn transfer_some(&mut self) -> Result<(), Violation> {
        let (to, any) = (self.prng.between(1, self.profile.nodes), self.prng.chance(500_000));
        let target = if any { None } else { Some(node_id(to)) };
        for node in 1..=self.profile.nodes {
            let leads = self
                .node(node)
                .running
                .as_ref()
                .is_some_and(|it| it.replica.core().role() == d_engine_core::RoleKind::Leader);
            if leads {
                self.counts.fault(Fault::LeadershipTransfer);
                let now = self.now;
                self.trace
                    .note(now, format_args!("node {node}: leadership transfer to {target:?}"));
                self.tell(
                    node,
                    Event::TransferLeadership { to: target, responder: Box::new(|_| {}) },
                )?;
            }
        }
        self.plan(self.profile.transfer_every, Chain::LeadershipTransfer);
        Ok(())
    }

    pub(crate) fn partition_begin(&mut self) {
        let now = self.now;
        let fault = self.network.partition(self.profile.nodes, &mut self.counts);
        self.trace.note(now, format_args!("{fault:?}: {}", self.network.cuts()));
        let length = 10 * MS + self.prng.tail(self.profile.partition_length);
        self.after(length, SimEvent::PartitionEnd);
    }

    /// Connections break from time to time and are restored at once or later, as with TCP. When a
    /// partition ends, many are restored together.
    pub(crate) fn reconnect_some(&mut self, which: Affected) -> Result<(), Violation> {
        if self.profile.links.connections {
            return self.break_links(which);
        }
        for node in 1..=self.profile.nodes {
            for peer in 1..=self.profile.nodes {
                if node == peer || !(which == Affected::All || self.prng.chance(100_000)) {
                    continue;
                }
                self.counts.fault(Fault::Reconnect);
                self.tell(node, Event::PeerDown { node: node_id(peer) })?;
                let (delay, boot) = (self.prng.tail(200 * MS), self.node(node).boot);
                self.after(delay, SimEvent::PeerUp { node, boot, peer });
            }
        }
        Ok(())
    }

    pub(crate) fn reconnect(&mut self) -> Result<(), Violation> {
        self.reconnect_some(Affected::Few)?;
        self.plan(self.profile.reconnect_every, Chain::Reconnect);
        Ok(())
    }

    /// A wall clock jumps to an error of up to a day in either direction; the monotonic clock does
    /// not.
    pub(crate) fn clock_jump(&mut self) {
        let jumps = self.prng.chance(self.profile.clock_jump.saturating_mul(self.profile.nodes));
        let (any, offset) =
            (self.prng.between(1, self.profile.nodes), self.prng.below(2 * RIGHT_TIME_MS));
        let minority = (self.profile.nodes.max(3) - 1) / 2;
        let node = if self.profile.clock_minority { 1 + any % minority } else { any };
        if jumps {
            self.counts.fault(Fault::ClockJump);
            self.node(node).wall_offset_ms = offset;
        }
        self.after(SECOND, SimEvent::Chain(Chain::ClockJump));
    }

    /// Ends all faults: the network is whole, no node is paused, and nodes that are down start
    /// again.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.network.calm_down();
        self.links_heal();
        self.connect_members();
        let now = self.now;
        for node in 1..=self.profile.nodes {
            self.node(node).paused_until = now;
            self.node(node).disk_hangs_until = now;
            self.node(node).apply_hangs_until = now;
            self.node(node).fs.fail_no_more();
            self.room_again(node);
            self.retire_old_program(node);
            self.after(100 * MS, SimEvent::Start(node));
        }
    }

    pub(crate) fn client_turn(&mut self, client: usize) {
        let nodes = self.profile.nodes;
        if !self.clients.is_busy(client) {
            self.clients.wander(client, nodes);
            self.call(client);
        }
        let pause = self.profile.client_pause;
        let mut delay = pause / 4 + self.prng.tail(pause);
        if self.prng.chance(self.profile.quiet) {
            self.counts.fault(Fault::QuietClient);
            delay += self.prng.between(SECOND, 10 * SECOND);
        }
        self.after(delay, SimEvent::Chain(Chain::Client(client)));
    }

    /// A client begins an operation.
    fn call(&mut self, client: usize) {
        let now = self.now;
        let operation = self.clients.begin(client, now, &self.profile);
        let node = self.clients.target(client);
        let delay = self.profile.delay_base + self.prng.tail(self.profile.delay_tail);
        self.after(delay, SimEvent::ClientCall { operation, node });
        let timeout = self.profile.client_timeout + self.prng.tail(self.profile.client_timeout);
        self.after(timeout, SimEvent::ClientGivesUp(operation));
    }

    /// While two nodes consider themselves leader, all clients call one of the two: what one
    /// acknowledges the other must not deny. Without this, the short time in which both respond
    /// would often pass without a call.
    pub(crate) fn rush(&mut self, times_left: u64) {
        let nodes = self.profile.nodes;
        let leaders: Vec<u64> = (1..=nodes).filter(|node| self.leads(*node)).collect();
        if self.healed || leaders.len() < 2 {
            return;
        }
        for client in 0..usize::try_from(self.profile.clients).unwrap_or(0) {
            if let Some(operation) = self.clients.waits_for(client)
                && self.prng.chance(300_000)
            {
                self.clients.give_up(operation, nodes);
            }
            if let Some(leader) = self.prng.pick(&leaders) {
                self.clients.send_to(client, *leader);
            }
            if !self.clients.is_busy(client) {
                self.call(client);
            }
        }
        if times_left > 0 {
            self.after(20 * MS, SimEvent::Rush { times_left: times_left - 1 });
        }
    }

    /// Many callers propose commands at the same moment.
    pub(crate) fn burst(&mut self) -> Result<(), Violation> {
        let nodes = self.profile.nodes;
        let leader = (1..=nodes).find(|node| self.leads(*node));
        let anyone = self.turn_prng.between(1, nodes);
        let node = leader.filter(|_| self.turn_prng.chance(900_000)).unwrap_or(anyone);
        let count = self.turn_prng.between(1, self.profile.limits.burst_commands);
        let proposals = self.clients.burst(node, count, &self.profile);
        self.counts.fault(Fault::Burst);
        self.plan(self.profile.limits.burst_every, Chain::Burst);
        self.tell(node, Event::Propose(proposals))
    }

    /// A client's call arrives at a node. A node that is down does not respond.
    pub(crate) fn client_call(&mut self, operation: usize, node: u64) -> Result<(), Violation> {
        let useful = self.profile.limits.deadline_ms;
        let useful = std::time::Duration::from_millis(useful);
        let now = self.now;
        let deadline =
            (useful > std::time::Duration::ZERO).then(|| self.node(node).clock(now).plus(useful));
        match self.clients.message(operation, node, &self.profile, deadline) {
            Some(ToNode::Propose(proposal)) => {
                let version = self.draw_version();
                self.tell(node, Event::Propose(vec![proposal.with_version(version)]))
            }
            Some(ToNode::Read(request)) => {
                let now = self.now;
                let state = self.node(node);
                let clock = state.clock(now);
                let term =
                    state.running.as_ref().map(|it| it.replica.core().term()).unwrap_or_default();
                let lease = state.running.as_ref().and_then(|it| it.replica.core().lease_until());
                if request.mode == ReadMode::Lease && lease.is_some_and(|until| clock < until) {
                    self.counts.reached(Sometimes::LeaseRead);
                    if self.nodes.iter().filter_map(|it| it.running.as_ref()).any(|it| {
                        it.replica.core().leads_with_commit() && it.replica.core().term() > term
                    }) {
                        self.counts.reached(Sometimes::LeaseBesideNewLeader);
                    }
                }
                self.read(node, request)
            }
            None => Ok(()),
        }
    }
}
