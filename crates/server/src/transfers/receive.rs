//! Receiving a snapshot from the leader.

use std::cell::RefCell;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use d_engine_core::{NodeId, Term};
use d_engine_replica::{
    Event, InstallError, ReceivedSnapshot, ReceiverStep, Refusal, SnapshotMessage, SnapshotReceiver,
};

use super::{LOOK_EVERY, Receiving, ReceivingSnapshot, Transfers};
use crate::pace::Throttle;
use crate::transport::SnapshotLine;

/// How often the sender is told that work goes on.
const WORKING_EVERY: Duration = Duration::from_secs(1);
/// How long an earlier transfer may take to end when a newer one comes.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(5);

impl Transfers {
    /// One transfer. What goes wrong is told to the sender, who tries again.
    pub(super) fn receive_to_the_end(&self, id: u64, from: NodeId, mut line: SnapshotLine) {
        match self.keep_line(id, &line, |_| true) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%from, %error, "a snapshot was not received");
                return;
            }
        }
        match self.receive_all(id, from, &mut line) {
            Ok(()) => {}
            Err(error) if self.stops() => tracing::debug!(%from, %error, "a snapshot was not received"),
            Err(error) => tracing::warn!(%from, %error, "a snapshot was not received"),
        }
    }

    fn receive_all(&self, id: u64, from: NodeId, line: &mut SnapshotLine) -> std::io::Result<()> {
        let Some(offer) = self.next(line)? else { return Ok(()) };
        let Some((term, label)) = offer.offered() else {
            return refuse(line, Refusal::Protocol, "no offer came first");
        };
        let status =
            ReceivingSnapshot { from: from.get(), label: label.index.get(), ..ReceivingSnapshot::default() };
        if let Err(why) = self.take_place(id, term, status) {
            return refuse(line, Refusal::Busy, why);
        }
        tracing::info!(%from, %label, "the leader sends a snapshot");
        let committed = self.gate.committed();
        let mut receiver = SnapshotReceiver::new(self.store.clone(), from, self.settings.len_max, committed)
            .for_machine(self.machine.clone());
        let mut message = offer;
        let line = RefCell::new(line);
        let mut told = Instant::now();
        loop {
            let mut pace = Throttle::new(0, |_| self.keeps_working(&line, &mut told));
            match receiver.on_message(message, &mut pace) {
                ReceiverStep::Answer(answer) => line.borrow_mut().send(&answer)?,
                ReceiverStep::Refuse(answer) => {
                    tracing::warn!(%from, ?answer, "the snapshot is refused");
                    return line.borrow_mut().send(&answer);
                }
                ReceiverStep::Finish => break,
            }
            if let Some((received, len)) = receiver.progress() {
                self.note_received(id, |status| (status.received, status.len) = (received, len));
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
                tracing::warn!(%from, ?answer, "the snapshot is refused");
                line.send(&answer)
            }
        }
    }

    /// The replica puts the snapshot in the place of the log, and the state machine gets it.
    fn install(
        &self,
        id: u64,
        snapshot: Box<ReceivedSnapshot>,
        line: &mut SnapshotLine,
    ) -> std::io::Result<()> {
        line.send(&SnapshotMessage::Installing)?;
        self.note_received(id, |status| {
            (status.received, status.is_installing) = (status.len, true);
        });
        let (label, (answer, installed)) = (snapshot.label, sync_channel(1));
        let responder = Box::new(move |outcome| {
            // Whoever waits may have gone: the snapshot is installed all the same.
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
            Ok(()) => tracing::info!(%label, "the snapshot is installed"),
            Err(InstallError::Stale) => tracing::info!(%label, "the snapshot is not needed"),
            Err(error) => tracing::warn!(%label, %error, "the snapshot was not installed"),
        }
        line.send(&SnapshotReceiver::outcome(outcome))
    }

    /// Tells the sender now and then that long work goes on; `false` when the node stops or the sender is gone.
    fn keeps_working(&self, line: &RefCell<&mut SnapshotLine>, told: &mut Instant) -> bool {
        if self.stops() {
            return false;
        }
        if told.elapsed() < WORKING_EVERY {
            return true;
        }
        *told = Instant::now();
        line.borrow_mut().send(&SnapshotMessage::Working).is_ok()
    }

    /// The next message; `None` when the node stops. Whoever says nothing for too long is gone.
    fn next(&self, line: &mut SnapshotLine) -> std::io::Result<Option<SnapshotMessage>> {
        let silence = Duration::from_nanos(self.settings.limits.silence.as_nanos());
        let began = Instant::now();
        while !self.stops() {
            if let Some(message) = line.receive(LOOK_EVERY)? {
                return Ok(Some(message));
            }
            if began.elapsed() >= silence {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    format!("the sender has said nothing for {} ms", silence.as_millis()),
                ));
            }
        }
        Ok(None)
    }

    /// One snapshot is received at a time. A sender of the same or a later term takes the place of the one
    /// before: that one is deposed, or its connection is dead.
    fn take_place(&self, id: u64, term: Term, status: ReceivingSnapshot) -> Result<(), &'static str> {
        let state = self.lock();
        if state.receiving.as_ref().is_some_and(|before| before.term > term) {
            return Err("a leader of a later term sends a snapshot");
        }
        if let Some(before) = state.receiving.as_ref().map(|before| before.id)
            && let Some(line) = state.lines.get(&before)
        {
            line.break_line();
        }
        let waits = |state: &mut super::State| state.receiving.is_some() && !self.stops();
        let waited = self.changed.wait_timeout_while(state, GIVES_WAY_WITHIN, waits);
        let (mut state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.stops() {
            return Err("the node stops");
        }
        if state.receiving.is_some() {
            return Err("an earlier transfer to this node has not ended; its disk may be slow");
        }
        state.receiving = Some(Receiving { id, term, status });
        Ok(())
    }

    fn note_received(&self, id: u64, change: impl FnOnce(&mut ReceivingSnapshot)) {
        if let Some(receiving) = self.lock().receiving.as_mut().filter(|receiving| receiving.id == id) {
            change(&mut receiving.status);
        }
    }
}

fn refuse(line: &mut SnapshotLine, refusal: Refusal, text: &str) -> std::io::Result<()> {
    line.send(&SnapshotMessage::Refused { refusal, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::LineBreaker;

    /// The leader dials again when its connection has died, and this node may not have noticed yet: it breaks that one,
    /// and whoever reads there ends by that.
    #[test]
    fn a_sender_of_the_same_term_takes_the_place_of_its_own_dead_connection() {
        let transfers = &Transfers::for_tests();
        let take = |id, term| transfers.take_place(id, Term::new(term), ReceivingSnapshot::default());
        assert_eq!(take(1, 3), Ok(()));
        assert_eq!(take(2, 2), Err("a leader of a later term sends a snapshot"));
        let (mut before, listener) = (1, TcpListener::bind("127.0.0.1:0").unwrap());
        for (id, term) in [(3, 3), (4, 3), (5, 3), (6, 4)] {
            // The sender of the one before says nothing, and does not hang up.
            let _sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut reads, _) = listener.accept().unwrap();
            transfers.lock().lines.insert(before, LineBreaker::of(reads.try_clone().unwrap()));
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    // Ends once the line is broken, and only then.
                    assert_eq!(reads.read(&mut [0]).unwrap_or(0), 0);
                    transfers.lock().receiving = None;
                    transfers.changed.notify_all();
                });
                let taken = take(id, term);
                // A test that fails must not hang.
                transfers.lock().lines.remove(&before).into_iter().for_each(|line| line.break_line());
                assert_eq!(taken, Ok(()), "term {term}");
            });
            assert_eq!(transfers.lock().receiving.as_ref().map(|receiving| receiving.id), Some(id));
            before = id;
        }
    }
}
