//! Connections between the nodes of a run: dialled, written to, read from, broken, as by the
//! server's transport.

use bytes::Bytes;
use d_engine_replica::{Admitted, Event, Outgoing, PeerMessage};
use d_engine_wire::{decode_frame, encode_frame};

use crate::faults::{Fault, Sometimes};
use crate::monitors::traffic::weight;
use crate::monitors::violation::{Rule, Violation};
use crate::names::{GROUP, node_id};
use crate::time::{MS, SECOND};
use crate::world::World;
use crate::world::event::{Chain, SimEvent};
use crate::world::link_model::{Affected, Lane, Next, Sent};
use crate::world::network::Packet;

/// How long TCP waits before it retransmits over a path that carries nothing.
const RETRANSMIT: u64 = 40 * MS;

impl World {
    /// Passes a message to the network; returns whether it was enqueued.
    pub(crate) fn transmit_message(&mut self, id: u64, outgoing: &Outgoing) -> Sent {
        let frame: Bytes = encode_frame(GROUP, &outgoing.message).to_bytes();
        let to = outgoing.to.get();
        if !self.profile.links.connections {
            let packet = Packet { from: id, to, frame };
            for (at, packet) in self.network.send(packet, self.now, &self.profile, &mut self.counts)
            {
                self.after(at.saturating_sub(self.now), SimEvent::Arrive(packet));
            }
            return Sent::Queued;
        }
        let (lane, entries) = match &outgoing.message {
            PeerMessage::Append { entries, .. } => (Lane::Bulk, weight(entries)),
            _ => (Lane::Urgent, 0),
        };
        let sent = self.links.push((id, to), lane, frame, &self.profile.links);
        match sent {
            Sent::Queued => {
                self.monitors.traffic.sent(to, entries);
                if let Some(connection) = self.links.connection(id, to) {
                    self.link_write(connection);
                }
            }
            Sent::NoConnection => self.counts.reached(Sometimes::SentWithoutConnection),
            Sent::LaneFull => {
                self.monitors.traffic.overflowed(to);
                self.counts.reached(Sometimes::LaneOverflowed);
            }
        }
        sent
    }

    fn link_delay(&self) -> impl FnMut(&mut crate::prng::Prng) -> u64 + use<> {
        let (calm, base, tail) = (self.healed, self.profile.delay_base, self.profile.delay_tail);
        move |prng| if calm { prng.between(MS / 10, MS) } else { base + prng.tail(tail) }
    }

    /// Writes the messages that wait for a connection, as far as the kernel's buffer takes them.
    fn link_write(&mut self, number: u64) {
        let now = self.now;
        let Some(connection) = self.links.open.get(&number).filter(|it| !it.writes) else { return };
        let (from, to) = (connection.from, connection.to);
        if !self.network.carries(from, to) {
            self.plan_write(number, from, now + RETRANSMIT);
            return;
        }
        let speed = self.links.speed((from, to), self.healed, &self.profile.links);
        let mut delays = self.link_delay();
        let (_, next) = self.links.write(number, now, speed, &mut delays, &self.profile.links);
        if let Next::At(at) = next {
            self.counts.reached(Sometimes::KernelFull);
            self.plan_write(number, from, at);
        }
        for lane in [Lane::Urgent, Lane::Bulk] {
            self.plan_arrival(number, lane, to);
        }
    }

    fn plan_write(&mut self, number: u64, node: u64, at: u64) {
        if let Some(connection) = self.links.open.get_mut(&number) {
            connection.writes = true;
            self.after(
                at.saturating_sub(self.now).max(1),
                SimEvent::LinkWrite { connection: number, node },
            );
        }
    }

    fn plan_arrival(&mut self, number: u64, lane: Lane, node: u64) {
        if let Some(at) = self.links.next_arrival(number, lane) {
            let delay = at.saturating_sub(self.now);
            self.after(delay, SimEvent::LinkArrive { connection: number, lane, node });
        }
    }

    /// Continues writing once the kernel's buffer has space again.
    pub(crate) fn link_writes_on(&mut self, number: u64) {
        if let Some(connection) = self.links.open.get_mut(&number) {
            connection.writes = false;
            self.link_write(number);
        }
    }

    /// Frames have arrived at the receiver of a connection.
    pub(crate) fn link_arrive(&mut self, number: u64, lane: Lane) -> Result<(), Violation> {
        let now = self.now;
        let Some(connection) = self.links.open.get(&number) else { return Ok(()) };
        let (from, to, to_life) = (connection.from, connection.to, connection.to_life);
        if !self.network.carries(from, to) {
            self.counts.reached(Sometimes::ConnectionStalled);
            self.after(RETRANSMIT, SimEvent::LinkArrive { connection: number, lane, node: to });
            return Ok(());
        }
        let arrived = self.links.take_arrived(number, lane, now);
        let receiver = self.node(to);
        if receiver.boot != to_life || receiver.running.is_none() {
            // The process that accepted this connection has ended. If another one runs on that
            // machine, its kernel resets the connection.
            if receiver.running.is_some() {
                self.link_broken(number)?;
            }
            self.plan_arrival(number, lane, to);
            self.links.forget_drained(number);
            return Ok(());
        }
        for frame in arrived {
            if frame.is_empty() {
                if self.network.carries(to, from)
                    && let Some(connection) = self.links.open.get_mut(&number)
                {
                    connection.answered_at = now;
                }
                continue;
            }
            self.receive(from, to, &frame)?;
        }
        self.plan_arrival(number, lane, to);
        self.links.forget_drained(number);
        Ok(())
    }

    /// Decodes a frame from a peer and passes the message to the node.
    pub(crate) fn receive(&mut self, from: u64, to: u64, frame: &[u8]) -> Result<(), Violation> {
        let (group, message) = decode_frame(&Bytes::copy_from_slice(frame)).map_err(|error| {
            Violation::by(
                from,
                Rule::Wire,
                format_args!("a frame from node {from} cannot be read: {error}"),
            )
        })?;
        if group != GROUP {
            return Rule::Wire.broken_by(from, format_args!("a frame arrived with group {group}"));
        }
        self.trace.message(self.now, from, to, &message);
        self.tell(to, Event::Peer { from: node_id(from), message })
    }

    /// Every second: sends a ping, or closes a connection whose pings have stayed unanswered too
    /// long.
    pub(crate) fn link_ping(&mut self, number: u64) -> Result<(), Violation> {
        let (now, silence) = (self.now, self.profile.links.silence);
        let Some(connection) = self.links.open.get_mut(&number) else { return Ok(()) };
        let (from, to, from_life) = (connection.from, connection.to, connection.from_life);
        connection.ping_due = true;
        let is_silent = now.saturating_sub(connection.answered_at) >= silence;
        if self.links.connection(from, to) != Some(number) || self.node(from).boot != from_life {
            return Ok(());
        }
        if is_silent {
            self.counts.reached(Sometimes::ConnectionSilent);
            return self.link_broken(number);
        }
        self.link_write(number);
        self.after(SECOND, SimEvent::LinkPing { connection: number, node: from });
        Ok(())
    }

    /// Breaks a connection: its sender loses the waiting messages, receives `PeerDown`, and dials
    /// again.
    pub(crate) fn link_broken(&mut self, number: u64) -> Result<(), Violation> {
        let Some(connection) = self.links.open.get(&number) else { return Ok(()) };
        let (from, to, from_life) = (connection.from, connection.to, connection.from_life);
        if self.links.connection(from, to) != Some(number) {
            return Ok(());
        }
        if self.links.prng.chance(700_000) {
            self.links.cut((from, to));
        } else {
            self.links.close((from, to));
        }
        self.monitors.traffic.excuse(to);
        if self.node(from).boot == from_life && self.node(from).running.is_some() {
            self.counts.fault(Fault::ConnectionLost);
            let now = self.now;
            self.trace.note(now, format_args!("connection from node {from} to node {to} lost"));
            self.tell(from, Event::PeerDown { node: node_id(to) })?;
            self.plan_dial(from, to);
        }
        Ok(())
    }

    fn plan_dial(&mut self, from: u64, to: u64) {
        let (delay, boot) = (self.links.backoff((from, to)), self.node(from).boot);
        self.after(delay, SimEvent::LinkDial { node: from, boot, to });
    }

    /// A node dials another one, and dials again later if that fails.
    pub(crate) fn link_dial(&mut self, from: u64, to: u64) -> Result<(), Violation> {
        if self.links.connection(from, to).is_some() {
            return Ok(());
        }
        if !self.try_connect(from, to)? {
            self.plan_dial(from, to);
        }
        Ok(())
    }

    fn try_connect(&mut self, from: u64, to: u64) -> Result<bool, Violation> {
        let now = self.now;
        let reachable = self.network.carries(from, to)
            && self.network.carries(to, from)
            && self.node(to).running.is_some()
            && self.node(to).paused_until <= now
            && self.node(from).running.is_some();
        if !reachable || !self.admits(from, to) || !self.admits(to, from) {
            return Ok(false);
        }
        let (from_life, to_life) = (self.node(from).boot, self.node(to).boot);
        let number = self.links.connect((from, to), (from_life, to_life), now);
        self.monitors.traffic.excuse(to);
        self.trace.note(now, format_args!("node {from} is connected to node {to}"));
        self.after(0, SimEvent::LinkPing { connection: number, node: from });
        if let Some(incarnation) = self.node(to).running.as_ref().map(|it| it.incarnation) {
            self.tell(from, Event::PeerUp { node: node_id(to), incarnation })?;
        }
        // A node that was just dialled and waits for its own next attempt dials back at once.
        let is_waited =
            self.links.connection(to, from).is_none() && self.node(from).paused_until <= now;
        if is_waited {
            self.try_connect(to, from)?;
        }
        Ok(true)
    }

    /// Returns whether `node` accepts `peer`; mirrors the handshakes of the server's transport.
    fn admits(&self, node: u64, peer: u64) -> bool {
        let (Some(here), Some(there)) = (self.running(node), self.running(peer)) else {
            return false;
        };
        let theirs = there.replica.membership().id();
        let judged = here.replica.admission().judge(node_id(peer), there.incarnation, theirs);
        matches!(judged, Admitted::Member | Admitted::Provisional)
    }

    /// A node that starts dials all others.
    pub(crate) fn dial_all(&mut self, id: u64) {
        for peer in (1..=self.profile.nodes).filter(|peer| *peer != id) {
            self.monitors.traffic.excuse(id);
            let (delay, boot) = (self.links.prng.between(MS, 20 * MS), self.node(id).boot);
            self.after(delay, SimEvent::LinkDial { node: id, boot, to: peer });
        }
    }

    /// Drops the connections of a process that has ended. Its peers notice soon, or when their
    /// pings stay unanswered.
    pub(crate) fn drop_links(&mut self, id: u64) {
        for (from, to) in self.links.of(id) {
            if from == id {
                if self.links.prng.chance(500_000) {
                    self.links.cut((from, to));
                } else {
                    self.links.close((from, to));
                }
            } else if self.links.prng.chance(500_000) {
                let delay = self.links.prng.tail(50 * MS);
                if let Some(connection) = self.links.connection(from, to) {
                    self.after(delay, SimEvent::LinkBroken { connection });
                }
            }
        }
    }

    /// Makes a link slow for a while, in both directions.
    pub(crate) fn slow_some(&mut self) {
        let nodes = self.profile.nodes;
        let (one, other) = (self.links.prng.between(1, nodes), self.links.prng.between(1, nodes));
        let speed = 1 << self.links.prng.between(9, 15);
        if one != other {
            self.counts.fault(Fault::SlowLink);
            for ends in [(one, other), (other, one)] {
                self.links.slowed.insert(ends, speed);
            }
            let length = MS + self.links.prng.tail(self.profile.links.slow_length);
            self.after(length, SimEvent::SlowLinkEnds { one, other });
        }
        self.plan(self.profile.links.slow_every, Chain::SlowLink);
    }

    pub(crate) fn slow_ends(&mut self, one: u64, other: u64) {
        for ends in [(one, other), (other, one)] {
            self.links.slowed.remove(&ends);
            self.speed_up(ends);
        }
    }

    /// No link is slow any more.
    pub(crate) fn links_heal(&mut self) {
        self.links.slowed.clear();
        let nodes = 1..=self.profile.nodes;
        for ends in nodes.clone().flat_map(|from| nodes.clone().map(move |to| (from, to))) {
            self.speed_up(ends);
        }
    }

    fn speed_up(&mut self, ends: (u64, u64)) {
        let speed = self.links.speed(ends, self.healed, &self.profile.links);
        for connection in self.links.speed_up(ends, self.now, speed) {
            self.link_write(connection);
            for lane in [Lane::Urgent, Lane::Bulk] {
                self.plan_arrival(connection, lane, ends.1);
            }
        }
    }

    /// Breaks all connections, or a few chosen at random.
    pub(crate) fn break_links(&mut self, which: Affected) -> Result<(), Violation> {
        for node in 1..=self.profile.nodes {
            for peer in 1..=self.profile.nodes {
                if node == peer || !(which == Affected::All || self.links.prng.chance(100_000)) {
                    continue;
                }
                if let Some(connection) = self.links.connection(node, peer) {
                    self.counts.fault(Fault::Reconnect);
                    self.link_broken(connection)?;
                }
            }
        }
        Ok(())
    }

    /// A leader was elected: it must find every follower's log position again.
    pub(crate) fn excuse_all(&mut self) {
        for node in 1..=self.profile.nodes {
            self.monitors.traffic.excuse(node);
        }
    }
}

/// Returns whether an event is a message with entries for the log.
pub(crate) fn is_append(event: &Event) -> bool {
    matches!(event, Event::Peer { message: PeerMessage::Append { .. }, .. })
}
