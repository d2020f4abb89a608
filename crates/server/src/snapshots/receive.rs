//! Receiving a snapshot from the leader.

use std::cell::RefCell;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use d_engine_api::ReceivingSnapshot;
use d_engine_core::{NodeId, Term};
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    Event, InstallError, OfferDecision, ReadGateInputs as _, ReceivedSnapshot, ReceiverStep,
    Refusal, SnapshotMessage, SnapshotReceiver, decide_offer,
};

use super::{Exchange, LOOK_EVERY, Line, Receiving};
use crate::threads::pace::Throttle;
use crate::transport::SnapshotConnection;

/// How often the sender is informed that this node is still working.
const WORKING_EVERY: Duration = Duration::from_secs(1);
/// How long an earlier receive may take to end when a newer one begins.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(5);

impl Exchange {
    /// Receives one snapshot. Failures are reported to the sender, which retries.
    pub(super) fn receive_to_the_end(&self, id: u64, from: NodeId, mut line: SnapshotConnection) {
        match self.keep_line(Line::Receive(id), &line) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%from, %error, "a snapshot was not received");
                return;
            }
        }
        match self.receive_all(id, from, &mut line) {
            Ok(()) => {}
            Err(error) if self.stops() => {
                tracing::debug!(%from, %error, "a snapshot was not received")
            }
            Err(error) => tracing::warn!(%from, %error, "a snapshot was not received"),
        }
    }

    fn receive_all(
        &self,
        id: u64,
        from: NodeId,
        line: &mut SnapshotConnection,
    ) -> std::io::Result<()> {
        let Some(offer) = self.next(line)? else { return Ok(()) };
        let Some((term, last_included)) = offer.offered() else {
            return refuse(line, Refusal::Protocol, "the first message is not an offer");
        };
        let mut status = ReceivingSnapshot::default();
        status.from = from.get();
        status.index = last_included.index.get();
        if let Err(why) = self.take_place(id, term, status) {
            return refuse(line, Refusal::Busy, why);
        }
        tracing::info!(%from, %last_included, "receiving a snapshot from the leader");
        let committed = self.gate.committed();
        let mut receiver =
            SnapshotReceiver::new(self.store.clone(), from, self.settings.len_max, committed)
                .for_machine(self.machine.clone());
        let mut message = offer;
        let line = RefCell::new(line);
        let mut told = Instant::now();
        loop {
            let mut pace = Throttle::new(0, |_| self.keeps_working(&line, &mut told));
            match receiver.on_message(message, &mut pace) {
                ReceiverStep::Answer(answer) => line.borrow_mut().send(&answer)?,
                ReceiverStep::Refuse(answer) => {
                    tracing::warn!(%from, ?answer, "refused the snapshot");
                    return line.borrow_mut().send(&answer);
                }
                ReceiverStep::Finish => break,
            }
            if let Some((received, len)) = receiver.progress() {
                self.note_received(id, |status| (status.received, status.bytes) = (received, len));
            }
            let Some(next) = self.next(&mut line.borrow_mut())? else { return Ok(()) };
            message = next;
        }
        let finished = {
            let mut pace = Throttle::new(0, |_| self.keeps_working(&line, &mut told));
            receiver.finish(&mut pace)
        };
        let line = line.into_inner();
        match finished {
            Ok(snapshot) => self.install(id, snapshot, line),
            Err(answer) => {
                tracing::warn!(%from, ?answer, "refused the snapshot");
                line.send(&answer)
            }
        }
    }

    /// Requests the replica to install the snapshot, and waits for the outcome.
    fn install(
        &self,
        id: u64,
        snapshot: Box<ReceivedSnapshot>,
        line: &mut SnapshotConnection,
    ) -> std::io::Result<()> {
        line.send(&SnapshotMessage::Installing)?;
        self.note_received(id, |status| {
            (status.received, status.is_installing) = (status.bytes, true);
        });
        let (last_included, (answer, installed)) = (snapshot.last_included, sync_channel(1));
        let responder = Box::new(move |outcome| {
            // The waiting thread may have ended. The snapshot is installed all the same.
            answer.send(outcome).ok();
        });
        self.inbox.report(Event::SnapshotReceived { snapshot, responder });
        let mut told = Instant::now();
        let outcome = loop {
            match installed.recv_timeout(LOOK_EVERY) {
                Ok(outcome) => break outcome,
                Err(RecvTimeoutError::Timeout) if !self.stops() => {
                    if told.elapsed() >= WORKING_EVERY {
                        told = Instant::now();
                        line.send(&SnapshotMessage::Working)?;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
            }
        };
        match &outcome {
            Ok(()) => tracing::info!(%last_included, "installed the snapshot"),
            Err(InstallError::Stale) => {
                tracing::info!(%last_included, "the snapshot is not needed, or its sender no longer leads")
            }
            Err(error) => tracing::warn!(%last_included, %error, "the snapshot was not installed"),
        }
        line.send(&SnapshotReceiver::outcome(outcome))
    }

    /// Sends `Working` once per interval while long work continues. Returns `false` if the node
    /// stops or the connection is broken.
    fn keeps_working(&self, line: &RefCell<&mut SnapshotConnection>, told: &mut Instant) -> bool {
        if self.stops() {
            return false;
        }
        if told.elapsed() < WORKING_EVERY {
            return true;
        }
        *told = Instant::now();
        line.borrow_mut().send(&SnapshotMessage::Working).is_ok()
    }

    /// Returns the next message; `None` if the node stops. An error if the sender is silent for too
    /// long.
    fn next(&self, line: &mut SnapshotConnection) -> std::io::Result<Option<SnapshotMessage>> {
        let silence = self.settings.limits.silence;
        let began = Instant::now();
        while !self.stops() {
            if let Some(message) = line.receive(LOOK_EVERY)? {
                return Ok(Some(message));
            }
            if began.elapsed() >= silence {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    format!("the sender was silent for {} ms", silence.as_millis()),
                ));
            }
        }
        Ok(None)
    }

    /// Claims the single slot for receiving a snapshot, as [`decide_offer`] decides. Waits for the
    /// thread of a receive that is replaced.
    fn take_place(
        &self,
        id: u64,
        term: Term,
        status: ReceivingSnapshot,
    ) -> Result<(), &'static str> {
        let state = self.lock();
        let before = state.receiving.as_ref().map(|before| before.term);
        if let OfferDecision::Refuse(why) = decide_offer(before, term) {
            return Err(why);
        }
        if let Some(before) = state.receiving.as_ref().map(|before| before.id)
            && let Some(line) = state.lines.get(&Line::Receive(before))
        {
            line.break_line();
        }
        let waits = |state: &mut super::State| state.receiving.is_some() && !self.stops();
        let waited = self.changed.wait_timeout_while(state, GIVES_WAY_WITHIN, waits);
        let (mut state, _) = waited.unpoisoned();
        if self.stops() {
            return Err("the node is stopping");
        }
        if state.receiving.is_some() {
            return Err("this node is still receiving an earlier snapshot; its disk may be slow");
        }
        state.receiving = Some(Receiving { id, term, status });
        Ok(())
    }

    fn note_received(&self, id: u64, change: impl FnOnce(&mut ReceivingSnapshot)) {
        if let Some(receiving) =
            self.lock().receiving.as_mut().filter(|receiving| receiving.id == id)
        {
            change(&mut receiving.status);
        }
    }
}

fn refuse(line: &mut SnapshotConnection, refusal: Refusal, text: &str) -> std::io::Result<()> {
    line.send(&SnapshotMessage::Refused { refusal, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::LineBreaker;

    /// The leader dials again when its connection has broken, which this node may not have noticed
    /// yet. This node then breaks the old connection, and the thread that reads from it ends.
    #[test]
    fn a_sender_of_the_same_term_takes_the_place_of_its_own_dead_connection() {
        let exchange = &Exchange::for_tests();
        let take =
            |id, term| exchange.take_place(id, Term::new(term), ReceivingSnapshot::default());
        assert_eq!(take(1, 3), Ok(()));
        assert_eq!(take(2, 2), Err("a leader of a later term sends a snapshot"));
        let (mut before, listener) = (1, TcpListener::bind("127.0.0.1:0").unwrap());
        for (id, term) in [(3, 3), (4, 3), (5, 3), (6, 4)] {
            // The earlier sender is silent and does not close its connection.
            let _sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut reads, _) = listener.accept().unwrap();
            exchange
                .lock()
                .lines
                .insert(Line::Receive(before), LineBreaker::of(reads.try_clone().unwrap()));
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    // Returns only once the connection is broken.
                    assert_eq!(reads.read(&mut [0]).unwrap_or(0), 0);
                    exchange.lock().receiving = None;
                    exchange.changed.notify_all();
                });
                let taken = take(id, term);
                // A test that fails must not hang.
                exchange
                    .lock()
                    .lines
                    .remove(&Line::Receive(before))
                    .into_iter()
                    .for_each(|line| line.break_line());
                assert_eq!(taken, Ok(()), "term {term}");
            });
            assert_eq!(exchange.lock().receiving.as_ref().map(|receiving| receiving.id), Some(id));
            before = id;
        }
    }
}
