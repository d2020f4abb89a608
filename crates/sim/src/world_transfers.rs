//! Transfers of snapshots: each is a connection of its own, ordered and reliable while it lives, with delay and
//! bandwidth. It breaks when a partition lies between, when either process dies, or at random; both ends are told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use d_engine_core::{Duration, LogId, LogIndex, Term};
use d_engine_proto::engine::{decode_snapshot_frame, encode_snapshot_frame};
use d_engine_replica::{
    Event, InstallError, ReceiverStep, Refusal, SendLimits, SnapshotMessage, SnapshotOrder, SnapshotProgress,
    SnapshotReceiver, SnapshotSender,
};
use d_engine_storage::snapshot::{FullSpeed, Health, SnapshotArchive, SnapshotError};

use crate::faults::{Fault, Sometimes};
use crate::node::{Running, node_id};
use crate::profile::{MS, SECOND};
use crate::world::{Happening, World};

/// The largest archive that a node takes.
const ARCHIVE_BYTES_MAX: u64 = 1 << 30;

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Way {
    ToFollower,
    ToLeader,
}

/// One way of a connection.
#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<Bytes>,
    /// When the last byte so far has left.
    free_at: u64,
    /// When the last frame so far arrives.
    latest: u64,
}

/// A connection between two processes. Each end's part of the transfer lives and dies with its process.
#[derive(Debug)]
struct Connection {
    from: u64,
    from_life: u64,
    to: u64,
    to_life: u64,
    term: Term,
    label: LogId,
    /// What was committed at the follower when it began: no more than what goes beyond is received.
    committed: LogIndex,
    lanes: BTreeMap<Way, Lane>,
}

/// Outcomes of installs by connection, filled by the replicas' responders.
type Outcomes = Arc<Mutex<Vec<(u64, Result<(), InstallError>)>>>;

/// The transfers of a run.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    last: u64,
    open: BTreeMap<u64, Connection>,
    outcomes: Outcomes,
    /// Who was the last to send a follower this snapshot.
    senders: BTreeMap<(u64, LogId), u64>,
}

impl Transfers {
    /// Connections with this node at an end.
    fn of(&self, node: u64) -> Vec<u64> {
        let ends = self.open.iter().filter(|(_, it)| it.from == node || it.to == node);
        ends.map(|(number, _)| *number).collect()
    }
}

impl World {
    /// A leader's transport connects to a follower that needs a snapshot.
    pub(crate) fn transfer_begin(&mut self, id: u64, order: SnapshotOrder) -> Result<(), String> {
        let (now, to) = (self.now, order.to.get());
        let node = self.node(id);
        let (from_life, clock) = (node.life, node.clock(now));
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let archive = match choose(running, order) {
            Ok(Some(archive)) => archive,
            Ok(None) => return self.tell(id, Event::SnapshotFailed { to: order.to, none_usable: true }),
            Err(error) => {
                self.lost_before_it_began(id, from_life, to);
                return self.not_read(id, 0, &error);
            }
        };
        let label = archive.label();
        running.chosen.insert(order.to, label);
        let (to_node, len) = (order.to, archive.len());
        let progress = SnapshotProgress { to: to_node, label: label.index, confirmed: 0, len };
        self.tell(id, Event::SnapshotProgress(progress))?;
        if self.node(to).running.is_none() || !self.connected(id, to) {
            self.lost_before_it_began(id, from_life, to);
            return Ok(());
        }
        self.trace.note(now, format_args!("node {id} offers {label} to node {to}"));
        let piece_bytes = self.profile.snapshots.piece_bytes;
        let limits = SendLimits {
            piece_bytes,
            window_bytes: 4 * piece_bytes as u64,
            silence: Duration::from_millis(8_000),
            apply: Duration::from_millis(20_000),
        };
        let number = self.transfers.last + 1;
        self.transfers.last = number;
        let to_life = self.node(to).life;
        let lanes = [Way::ToFollower, Way::ToLeader].map(|way| (way, Lane::default()));
        let lanes = BTreeMap::from(lanes);
        let (term, committed) = (order.term, LogIndex::ZERO);
        let connection = Connection { from: id, from_life, to, to_life, term, label, committed, lanes };
        self.transfers.open.insert(number, connection);
        if let Some(running) = self.node(id).running.as_mut() {
            let sender = SnapshotSender::new(archive, order.term, limits, clock);
            running.sends.insert(number, sender);
        }
        self.after(SECOND, Happening::TransferTimer { connection: number, node: id });
        self.pump(number)
    }

    /// An offer has come. One snapshot is received at a time: whoever sends in an earlier term is deposed, and an
    /// older connection of the same sender is dead. Returns whether this one has the place.
    fn take_place(&mut self, number: u64, id: u64) -> Result<bool, String> {
        let Some(from) = self.transfers.open.get(&number).map(|it| it.from) else { return Ok(false) };
        let term = self.transfers.open.get(&number).map(|it| it.term);
        let receiving: Vec<u64> = match self.node(id).running.as_ref() {
            Some(running) => running.receives.keys().copied().collect(),
            None => return Ok(false),
        };
        for before in receiving {
            self.counts.reached(Sometimes::TransfersAtOnce);
            if self.transfers.open.get(&before).map(|it| it.term) > term {
                let text = "a leader of a later term sends a snapshot".to_owned();
                self.refuse(number, id, &SnapshotMessage::Refused { refusal: Refusal::Busy, text });
                return Ok(false);
            }
            self.break_off(before)?;
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(false) };
        let (store, committed) = (running.snapshots.clone(), running.replica.core().log().committed);
        let receiver = SnapshotReceiver::new(store, node_id(from), ARCHIVE_BYTES_MAX, committed);
        running.receives.insert(number, receiver);
        if let Some(connection) = self.transfers.open.get_mut(&number) {
            connection.committed = committed;
        }
        Ok(true)
    }

    /// The sender tries again a little later.
    fn lost_before_it_began(&mut self, node: u64, life: u64, to: u64) {
        let delay = 10 * MS + self.snapshot_prng.tail(SECOND);
        self.after(delay, Happening::TransferLost { node, life, to });
    }

    fn connected(&self, one: u64, other: u64) -> bool {
        self.network.carries(one, other) && self.network.carries(other, one)
    }

    /// Sends what the sender has to say now.
    fn pump(&mut self, number: u64) -> Result<(), String> {
        loop {
            let Some(from) = self.transfers.open.get(&number).map(|it| it.from) else { return Ok(()) };
            let sender = self.node(from).running.as_mut().and_then(|it| it.sends.get_mut(&number));
            match sender.map(SnapshotSender::poll) {
                Some(Ok(Some(message))) => self.transmit(number, Way::ToFollower, &message),
                Some(Ok(None)) | None => return Ok(()),
                Some(Err(error)) => return self.not_read(from, number, &error),
            }
        }
    }

    /// A sender cannot read its archive. The moment chosen for a crash in a log write may have come here instead.
    fn not_read(&mut self, id: u64, number: u64, error: &dyn std::fmt::Display) -> Result<(), String> {
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(());
        }
        if !self.node(id).may_refuse_files() {
            return Err(format!("transfer: node {id} cannot read its own snapshot: {error}"));
        }
        self.break_off(number)
    }

    fn transmit(&mut self, number: u64, way: Way, message: &SnapshotMessage) {
        let (calm, profile) = (self.healed, &self.profile);
        let speed = if calm { 1 << 20 } else { profile.snapshots.bytes_per_second };
        let delay = match calm {
            true => MS,
            false => profile.delay_base + self.snapshot_prng.tail(profile.delay_tail),
        };
        let (now, frame) = (self.now, encode_snapshot_frame(message));
        let Some(connection) = self.transfers.open.get_mut(&number) else { return };
        let node = if way == Way::ToFollower { connection.to } else { connection.from };
        let lane = connection.lanes.entry(way).or_default();
        lane.free_at = lane.free_at.max(now) + frame.len() as u64 * SECOND / speed.max(1);
        lane.latest = lane.latest.max(lane.free_at + delay);
        lane.frames.push_back(frame);
        let at = lane.latest;
        self.after(at - now, Happening::TransferFrame { connection: number, way, node });
    }

    /// The next frame of a connection has come to its end.
    pub(crate) fn transfer_frame(&mut self, number: u64, way: Way) -> Result<(), String> {
        let Some(connection) = self.transfers.open.get_mut(&number) else { return Ok(()) };
        let (from, to) = (connection.from, connection.to);
        let frame = connection.lanes.entry(way).or_default().frames.pop_front();
        let Some(frame) = frame else { return Ok(()) };
        let message = decode_snapshot_frame(&frame)
            .map_err(|error| format!("wire: a transfer's frame from node {from} cannot be read: {error}"))?;
        let (now, arrow) = (self.now, if way == Way::ToFollower { "->" } else { "<-" });
        self.trace.note(now, format_args!("{from} {arrow} {to} {}", Shown(&message)));
        if !self.connected(from, to) || self.is_cut(number, &message) {
            self.counts.fault(Fault::TransferCut);
            return self.break_off(number);
        }
        match way {
            Way::ToFollower => self.at_follower(number, to, message),
            Way::ToLeader => self.at_leader(number, from, message),
        }
    }

    fn is_cut(&mut self, number: u64, message: &SnapshotMessage) -> bool {
        let from = self.transfers.open.get(&number).map_or(0, |it| it.from);
        let sender = self.node(from).running.as_ref().and_then(|it| it.sends.get(&number));
        let len = sender.map_or(0, |sender| sender.archive().len());
        let is_last = matches!(message, SnapshotMessage::Piece { offset, bytes, .. }
            if offset + bytes.len() as u64 == len);
        let snapshots = &self.profile.snapshots;
        let (any, at_end) =
            (self.snapshot_prng.chance(snapshots.cut), self.snapshot_prng.chance(snapshots.cut_at_end));
        if self.healed {
            return false;
        }
        if is_last && at_end {
            self.counts.reached(Sometimes::TransferCutAtEnd);
            return true;
        }
        any
    }

    fn at_follower(&mut self, number: u64, id: u64, message: SnapshotMessage) -> Result<(), String> {
        if message.offered().is_some() && !self.take_place(number, id)? {
            return Ok(());
        }
        self.arm(id, 10);
        let receiver = self.node(id).running.as_mut().and_then(|it| it.receives.get_mut(&number));
        let Some(receiver) = receiver else { return Ok(()) };
        let step = receiver.on_message(message, &mut FullSpeed);
        if self.died_in(id, Sometimes::CrashInReceive) {
            return Ok(());
        }
        match step {
            ReceiverStep::Answer(answer) => {
                self.transmit(number, Way::ToLeader, &answer);
                Ok(())
            }
            ReceiverStep::Refuse(answer) => {
                self.refuse(number, id, &answer);
                Ok(())
            }
            ReceiverStep::Finish => self.received(number, id),
        }
    }

    fn refuse(&mut self, number: u64, id: u64, answer: &SnapshotMessage) {
        self.transmit(number, Way::ToLeader, answer);
        if let Some(running) = self.node(id).running.as_mut() {
            running.receives.remove(&number);
        }
    }

    /// Everything is there: the archive is verified, gets its name, and goes to the replica.
    fn received(&mut self, number: u64, id: u64) -> Result<(), String> {
        self.arm(id, 20);
        let receiver = self.node(id).running.as_mut().and_then(|it| it.receives.get_mut(&number));
        let Some(receiver) = receiver else { return Ok(()) };
        let finished = receiver.finish(&mut FullSpeed);
        if self.died_in(id, Sometimes::CrashInReceive) {
            return Ok(());
        }
        let snapshot = match finished {
            Ok(snapshot) => snapshot,
            Err(answer) => {
                if !self.node(id).may_refuse_files() {
                    return Err(format!("transfer: node {id} cannot use what it received: {answer:?}"));
                }
                self.refuse(number, id, &answer);
                return Ok(());
            }
        };
        let label = snapshot.label;
        let committed = self.transfers.open.get(&number).map_or(LogIndex::ZERO, |it| it.committed);
        let is_stored = label.index > committed;
        if let Some(node) =
            self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX)).filter(|_| is_stored)
        {
            self.monitors.snapshots.on_snapshot(id, &node.fs, label)?;
        }
        if let Some(running) = self.node(id).running.as_mut() {
            running.installing = Some(label);
            running.sent_in = snapshot.term;
        }
        self.transmit(number, Way::ToLeader, &SnapshotMessage::Installing);
        let outcomes = self.transfers.outcomes.clone();
        let responder = Box::new(move |outcome| {
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
        });
        self.tell(id, Event::SnapshotReceived { snapshot, responder })
    }

    /// Tells senders what the replicas have said since the last call.
    pub(crate) fn take_outcomes(&mut self) {
        let outcomes =
            std::mem::take(&mut *self.transfers.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        for (number, outcome) in outcomes {
            let Some(to) = self.transfers.open.get(&number).map(|it| it.to) else { continue };
            if let Some(running) = self.node(to).running.as_mut() {
                running.installing = None;
                running.receives.remove(&number);
            }
            self.transmit(number, Way::ToLeader, &SnapshotReceiver::outcome(outcome));
        }
    }

    fn at_leader(&mut self, number: u64, id: u64, message: SnapshotMessage) -> Result<(), String> {
        let now = self.now;
        let is_accept = matches!(message, SnapshotMessage::Accept { .. });
        let node = self.node(id);
        let clock = node.clock(now);
        let sender = node.running.as_mut().and_then(|it| it.sends.get_mut(&number));
        let Some(sender) = sender else { return Ok(()) };
        let before = sender.confirmed();
        let heard = sender.on_message(clock, message);
        let (confirmed, len) = (sender.confirmed(), sender.archive().len());
        let (applied, resumed) = (sender.is_applied(), is_accept && sender.resumed_at() > 0);
        let Some((to, label)) = self.transfers.open.get(&number).map(|it| (it.to, it.label)) else {
            return Ok(());
        };
        if is_accept {
            let sender = self.transfers.senders.insert((to, label), id);
            if resumed {
                self.counts.reached(Sometimes::TransferResumed);
                if sender.is_some_and(|sender| sender != id) {
                    self.counts.reached(Sometimes::TransferResumedByAnother);
                }
            }
        }
        if let Err(failure) = heard {
            self.trace.note(now, format_args!("node {id} gives up the transfer to node {to}: {failure}"));
            return self.break_off(number);
        }
        if applied {
            self.monitors.snapshots.on_sent(to, label)?;
            self.close(number);
            return self.tell(id, Event::SnapshotSent(node_id(to)));
        }
        if confirmed > before {
            let progress = SnapshotProgress { to: node_id(to), label: label.index, confirmed, len };
            self.tell(id, Event::SnapshotProgress(progress))?;
        }
        self.pump(number)
    }

    /// Looks whether a sender has waited too long.
    pub(crate) fn transfer_timer(&mut self, number: u64) -> Result<(), String> {
        let now = self.now;
        let Some(from) = self.transfers.open.get(&number).map(|it| it.from) else { return Ok(()) };
        let node = self.node(from);
        let clock = node.clock(now);
        let sender = node.running.as_ref().and_then(|it| it.sends.get(&number));
        if let Some(failure) = sender.and_then(|sender| sender.expired(clock)) {
            self.trace.note(now, format_args!("node {from} ends a transfer: {failure}"));
            return self.break_off(number);
        }
        self.after(SECOND, Happening::TransferTimer { connection: number, node: from });
        Ok(())
    }

    fn close(&mut self, number: u64) -> Option<(u64, u64, u64)> {
        let connection = self.transfers.open.remove(&number)?;
        let Connection { from, from_life, to, to_life, .. } = connection;
        let (sender, receiver) = (self.node(from), (to, to_life));
        if sender.life == from_life
            && let Some(running) = sender.running.as_mut()
        {
            running.sends.remove(&number);
        }
        let node = self.node(receiver.0);
        if node.life == receiver.1
            && let Some(running) = node.running.as_mut()
        {
            running.receives.remove(&number);
        }
        Some((from, from_life, to))
    }

    /// A connection is lost: what the follower has received stays; the sender hears of it.
    fn break_off(&mut self, number: u64) -> Result<(), String> {
        if let Some((node, life, to)) = self.close(number) {
            let delay = self.snapshot_prng.tail(50 * MS);
            self.after(delay, Happening::TransferLost { node, life, to });
        }
        Ok(())
    }

    pub(crate) fn transfer_lost(&mut self, node: u64, to: u64) -> Result<(), String> {
        self.tell(node, Event::SnapshotFailed { to: node_id(to), none_usable: false })
    }

    /// A process has died, and with it its connections.
    pub(crate) fn break_off_all(&mut self, node: u64) {
        for number in self.transfers.of(node) {
            self.break_off(number).ok();
        }
    }
}

/// The archive to send: that of the attempt before, so that it can go on where it was cut; else the one that the
/// state machine was told of; else the newest that is whole. An older one than ordered would not help.
fn choose(running: &Running, order: SnapshotOrder) -> Result<Option<SnapshotArchive>, SnapshotError> {
    let (list, before) = (running.snapshots.list(), running.chosen.get(&order.to).copied());
    let told = running.machine.shared().snapshot_metadata().map(|meta| LogId::from(meta.last_included));
    let first = list.iter().find(|info| Some(info.label()) == before);
    let second = list.iter().find(|info| Some(info.label()) == told);
    let candidates = first.into_iter().chain(second).chain(&list);
    for info in candidates.filter(|info| info.label().index >= order.at_least) {
        let is_whole =
            info.health == Health::Whole || running.snapshots.verify(info.label(), &mut FullSpeed).is_ok();
        if is_whole {
            return running.snapshots.open_archive(info.label()).map(Some);
        }
    }
    Ok(None)
}

/// A message without the bytes.
struct Shown<'a>(&'a SnapshotMessage);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            SnapshotMessage::Offer { term, archive, .. } => {
                write!(f, "Offer t{term} {} of {} bytes", archive.label, archive.len)
            }
            SnapshotMessage::Piece { offset, bytes, .. } => write!(f, "Piece at {offset} +{}", bytes.len()),
            other => write!(f, "{other:?}"),
        }
    }
}
