//! Sending of snapshots: each has a connection of its own, ordered and reliable while it lasts,
//! with delay and bandwidth. It breaks at a partition between its nodes, at the crash of either
//! process, or at random. What is sent, what an outcome means and how long to wait is decided by
//! `SnapshotSends`; the receiving end is in `receives.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use d_engine_core::{LogIndex, nanos};
use d_engine_replica::{
    ArchiveChoice, ArchivePreference, SendAttempt, SendFailure, SendLimits, SendOutcome,
    SnapshotMessage, SnapshotSendRequest, SnapshotSender, choose_archive,
};
use d_engine_storage::snapshot::{FullSpeed, SnapshotArchive};
use d_engine_wire::{decode_snapshot_frame, encode_snapshot_frame};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::{Rule, Violation};
use crate::time::{MS, SECOND};
use crate::world::World;
use crate::world::connections::{Connection, Lane, Way};
use crate::world::event::SimEvent;

impl World {
    /// An attempt to send a snapshot begins: the leader chooses an archive, connects to the
    /// follower and offers it.
    pub(crate) fn send_begins(
        &mut self,
        id: u64,
        attempt: SendAttempt,
        order: SnapshotSendRequest,
    ) -> Result<(), Violation> {
        let (now, to) = (self.now, order.to.get());
        let node = self.node(id);
        let (from_life, clock) = (node.boot, node.clock(now));
        let Some(archive) = self.choose(id, attempt, order)? else { return Ok(()) };
        let last_included = archive.last_included();
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let chosen = running.attempts.chosen(clock, attempt, last_included, archive.len());
        let Some(event) = chosen else { return Ok(()) };
        self.tell(id, event)?;
        if self.node(to).running.is_none() || !self.connected(id, to) {
            let outcome = SendOutcome::NoConnection("the follower cannot be dialled".to_owned());
            return self.attempt_ended(id, attempt, outcome);
        }
        self.trace.note(now, format_args!("node {id} offers {last_included} to node {to}"));
        let piece_bytes = self.profile.snapshots.piece_bytes;
        let limits = SendLimits {
            piece_bytes,
            window_bytes: 4 * piece_bytes as u64,
            silence: Duration::from_millis(8_000),
            apply: Duration::from_millis(20_000),
        };
        let number = self.exchange.last + 1;
        self.exchange.last = number;
        let to_life = self.node(to).boot;
        let lanes = [Way::ToFollower, Way::ToLeader].map(|way| (way, Lane::default()));
        let connection = Connection {
            from: id,
            from_life,
            to,
            to_life,
            term: order.term,
            attempt,
            last_included,
            committed: LogIndex::ZERO,
            lanes: BTreeMap::from(lanes),
        };
        self.exchange.open.insert(number, connection);
        if let Some(running) = self.node(id).running.as_mut() {
            let sender = SnapshotSender::new(archive, order.term, limits, clock);
            running.sends.insert(number, sender);
        }
        self.after(SECOND, SimEvent::SendTimer { connection: number, node: id });
        self.pump(number)
    }

    /// Chooses the archive of an attempt; `None` if the attempt is over.
    fn choose(
        &mut self,
        id: u64,
        attempt: SendAttempt,
        order: SnapshotSendRequest,
    ) -> Result<Option<SnapshotArchive>, Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(None) };
        if !running.attempts.is_current(attempt) {
            return Ok(None);
        }
        let recorded = running.machine.shared().snapshot_metadata();
        let preference = ArchivePreference {
            resume: running.attempts.resumable(attempt),
            recorded: recorded.map(|meta| meta.last_included),
        };
        let mut unusable = Vec::new();
        let note = |error| unusable.push(error);
        let choice = choose_archive(&running.snapshots, order, preference, &mut FullSpeed, note);
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(None);
        }
        let is_explained = self.node(id).may_refuse_files() || self.damaged == Some(id);
        if let Some(error) = unusable.first().filter(|_| !is_explained) {
            return Rule::SnapshotSend
                .broken_by(id, format_args!("node {id} cannot read its own snapshot: {error}"));
        }
        let outcome = match choice {
            ArchiveChoice::Send(archive) => return Ok(Some(archive)),
            ArchiveChoice::NoneUsable => SendOutcome::NoneUsable,
            ArchiveChoice::TooLong(len) => SendOutcome::TooLong(len),
            ArchiveChoice::Aborted => return Ok(None),
        };
        self.attempt_ended(id, attempt, outcome).map(|()| None)
    }

    /// An attempt has ended: does what is decided, and reports it to the replica after the wait.
    fn attempt_ended(
        &mut self,
        id: u64,
        attempt: SendAttempt,
        outcome: SendOutcome,
    ) -> Result<(), Violation> {
        let now = self.now;
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let Some(after) = running.attempts.on(attempt, outcome) else { return Ok(()) };
        if let Some(last_included) = after.verify {
            // An archive that is damaged is known as damaged from now on.
            running.snapshots.verify(last_included, &mut FullSpeed).ok();
            if node.fs.is_halted() {
                self.crash(id);
                return Ok(());
            }
        }
        if let Some(why) = after.failure {
            self.trace.note(now, format_args!("node {id} fails to send {attempt:?}: {why}"));
        }
        match nanos(after.wait) / self.profile.snapshots.send_waits_divided_by.max(1) {
            0 => self.report_end(id, attempt),
            wait => {
                self.after(wait, SimEvent::SendEnded { node: id, boot, attempt });
                Ok(())
            }
        }
    }

    pub(crate) fn report_end(&mut self, id: u64, attempt: SendAttempt) -> Result<(), Violation> {
        let now = self.now;
        let node = self.node(id);
        let clock = node.clock(now);
        let event = node.running.as_mut().and_then(|it| it.attempts.report(clock, attempt));
        event.map_or(Ok(()), |event| self.tell(id, event))
    }

    /// The connection of an attempt that was replaced breaks. Its sender is gone at once; the
    /// follower notices a little later.
    pub(crate) fn break_replaced(&mut self, id: u64, boot: u64, attempt: SendAttempt) {
        let is_its = |it: &&Connection| (it.from, it.from_life, it.attempt) == (id, boot, attempt);
        let numbers = self.exchange.open.iter().filter(|(_, it)| is_its(it));
        for number in numbers.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Some(running) = self.node(id).running.as_mut() {
                running.sends.remove(&number);
            }
            let delay = self.snapshot_prng.tail(50 * MS);
            self.after(delay, SimEvent::SendBreaks { connection: number });
        }
    }

    fn connected(&self, one: u64, other: u64) -> bool {
        self.network.carries(one, other) && self.network.carries(other, one)
    }

    /// Sends all messages that the sender has ready now.
    fn pump(&mut self, number: u64) -> Result<(), Violation> {
        loop {
            let Some(from) = self.exchange.open.get(&number).map(|it| it.from) else {
                return Ok(());
            };
            let sender = self.node(from).running.as_mut().and_then(|it| it.sends.get_mut(&number));
            match sender.map(SnapshotSender::poll) {
                Some(Ok(Some(message))) => self.transmit(number, Way::ToFollower, &message),
                Some(Ok(None)) | None => return Ok(()),
                Some(Err(failure)) => return self.not_read(from, number, failure),
            }
        }
    }

    /// A sender cannot read its archive. If the disk is halted, the moment that was chosen for a
    /// crash in a log write fell into this read.
    fn not_read(&mut self, id: u64, number: u64, failure: SendFailure) -> Result<(), Violation> {
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(());
        }
        if !self.node(id).may_refuse_files() {
            return Rule::SnapshotSend
                .broken_by(id, format_args!("node {id} cannot read its own snapshot: {failure}"));
        }
        self.end_send(number, SendOutcome::Failed(failure))
    }

    pub(crate) fn transmit(&mut self, number: u64, way: Way, message: &SnapshotMessage) {
        let (calm, profile) = (self.healed, &self.profile);
        let speed = if calm { 1 << 20 } else { profile.snapshots.bytes_per_second };
        let delay = match calm {
            true => MS,
            false => profile.delay_base + self.snapshot_prng.tail(profile.delay_tail),
        };
        let (now, frame) = (self.now, encode_snapshot_frame(message));
        let Some(connection) = self.exchange.open.get_mut(&number) else { return };
        let node = if way == Way::ToFollower { connection.to } else { connection.from };
        let lane = connection.lanes.entry(way).or_default();
        lane.free_at = lane.free_at.max(now) + frame.len() as u64 * SECOND / speed.max(1);
        lane.latest = lane.latest.max(lane.free_at + delay);
        lane.frames.push_back(frame);
        let at = lane.latest;
        self.after(at - now, SimEvent::SendFrame { connection: number, way, node });
    }

    /// The next frame of a connection has arrived.
    pub(crate) fn send_frame(&mut self, number: u64, way: Way) -> Result<(), Violation> {
        let Some(connection) = self.exchange.open.get_mut(&number) else { return Ok(()) };
        let (from, to) = (connection.from, connection.to);
        let frame = connection.lanes.entry(way).or_default().frames.pop_front();
        let Some(frame) = frame else { return Ok(()) };
        let message = decode_snapshot_frame(&frame).map_err(|error| {
            Violation::by(
                from,
                Rule::Wire,
                format_args!("a snapshot frame from node {from} cannot be decoded: {error}"),
            )
        })?;
        let (now, arrow) = (self.now, if way == Way::ToFollower { "->" } else { "<-" });
        self.trace.note(now, format_args!("{from} {arrow} {to} {}", Shown(&message)));
        if !self.connected(from, to) || self.is_cut(number, &message) {
            self.counts.fault(Fault::SendCut);
            return self.break_off(number);
        }
        match way {
            Way::ToFollower => self.at_follower(number, to, message),
            Way::ToLeader => self.at_leader(number, from, message),
        }
    }

    fn is_cut(&mut self, number: u64, message: &SnapshotMessage) -> bool {
        let from = self.exchange.open.get(&number).map_or(0, |it| it.from);
        let sender = self.node(from).running.as_ref().and_then(|it| it.sends.get(&number));
        let len = sender.map_or(0, |sender| sender.archive().len());
        let is_last = matches!(message, SnapshotMessage::Piece { offset, bytes, .. }
            if offset + bytes.len() as u64 == len);
        let snapshots = &self.profile.snapshots;
        let (any, at_end) = (
            self.snapshot_prng.chance(snapshots.cut),
            self.snapshot_prng.chance(snapshots.cut_at_end),
        );
        if self.healed {
            return false;
        }
        if is_last && at_end {
            self.counts.reached(Sometimes::SendCutAtEnd);
            return true;
        }
        any
    }

    fn at_leader(
        &mut self,
        number: u64,
        id: u64,
        message: SnapshotMessage,
    ) -> Result<(), Violation> {
        let now = self.now;
        let is_accept = matches!(message, SnapshotMessage::Accept { .. });
        let node = self.node(id);
        let clock = node.clock(now);
        let sender = node.running.as_mut().and_then(|it| it.sends.get_mut(&number));
        let Some(sender) = sender else { return Ok(()) };
        let heard = sender.on_message(clock, message);
        let (applied, resumed) = (sender.is_applied(), is_accept && sender.resumed_at() > 0);
        let Some((to, last_included)) =
            self.exchange.open.get(&number).map(|it| (it.to, it.last_included))
        else {
            return Ok(());
        };
        if is_accept {
            let sender = self.exchange.senders.insert((to, last_included), id);
            if resumed {
                self.counts.reached(Sometimes::SendResumed);
                if sender.is_some_and(|sender| sender != id) {
                    self.counts.reached(Sometimes::SendResumedByAnother);
                }
            }
        }
        if let Err(failure) = heard {
            self.trace
                .note(now, format_args!("node {id} aborts the snapshot to node {to}: {failure}"));
            return self.end_send(number, SendOutcome::Failed(failure));
        }
        if applied {
            self.monitors.snapshots.on_sent(to, last_included)?;
            return self.end_send(number, SendOutcome::Applied);
        }
        self.send_moved(number, id)?;
        self.pump(number)
    }

    /// Checks whether a sender has waited too long.
    pub(crate) fn send_timer(&mut self, number: u64) -> Result<(), Violation> {
        let now = self.now;
        let Some(from) = self.exchange.open.get(&number).map(|it| it.from) else { return Ok(()) };
        let node = self.node(from);
        let clock = node.clock(now);
        let sender = node.running.as_ref().and_then(|it| it.sends.get(&number));
        if let Some(failure) = sender.and_then(|sender| sender.expired(clock)) {
            self.trace.note(now, format_args!("node {from} aborts a snapshot: {failure}"));
            return self.end_send(number, SendOutcome::Failed(failure));
        }
        self.send_moved(number, from)?;
        self.after(SECOND, SimEvent::SendTimer { connection: number, node: from });
        Ok(())
    }

    /// Passes the follower's progress on.
    fn send_moved(&mut self, number: u64, id: u64) -> Result<(), Violation> {
        let now = self.now;
        let Some(attempt) = self.exchange.open.get(&number).map(|it| it.attempt) else {
            return Ok(());
        };
        let node = self.node(id);
        let clock = node.clock(now);
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let Some(sender) = running.sends.get(&number) else { return Ok(()) };
        let event = running.attempts.moved(clock, attempt, sender.progress());
        event.map_or(Ok(()), |event| self.tell(id, event))
    }

    /// Ends a connection. Returns the sender, its boot, and the attempt.
    pub(crate) fn close(&mut self, number: u64) -> Option<(u64, u64, SendAttempt)> {
        let connection = self.exchange.open.remove(&number)?;
        let Connection { from, from_life, to, to_life, attempt, .. } = connection;
        for (id, boot) in [(from, from_life), (to, to_life)] {
            let node = self.node(id);
            if node.boot == boot
                && let Some(running) = node.running.as_mut()
            {
                running.sends.remove(&number);
                running.receives.remove(&number);
            }
        }
        Some((from, from_life, attempt))
    }

    /// Ends a connection, and with it the attempt.
    fn end_send(&mut self, number: u64, outcome: SendOutcome) -> Result<(), Violation> {
        match self.close(number) {
            Some((from, boot, attempt)) if self.node(from).boot == boot => {
                self.attempt_ended(from, attempt, outcome)
            }
            _ => Ok(()),
        }
    }

    /// Breaks a connection: the follower keeps what it has received; the sender receives the
    /// failure.
    pub(crate) fn break_off(&mut self, number: u64) -> Result<(), Violation> {
        self.end_send(number, SendOutcome::NoConnection("the connection broke".to_owned()))
    }

    /// Breaks all connections of a process that has ended.
    pub(crate) fn break_off_all(&mut self, node: u64) {
        for number in self.exchange.of(node) {
            self.break_off(number).ok();
        }
    }
}

/// Displays a message without its bytes.
struct Shown<'a>(&'a SnapshotMessage);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            SnapshotMessage::Offer { term, archive, .. } => {
                write!(f, "Offer t{term} {} of {} bytes", archive.last_included, archive.len)
            }
            SnapshotMessage::Piece { offset, bytes, .. } => {
                write!(f, "Piece at {offset} +{}", bytes.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}
