//! Sending a snapshot to a follower: one thread and one connection for an attempt. What is sent,
//! what an outcome means and how long to wait is decided by
//! [`SnapshotSends`](d_engine_replica::SnapshotSends).

use std::ops::ControlFlow;
use std::time::Duration;

use d_engine_core::LogId;
use d_engine_replica::{
    ArchiveChoice, ArchivePreference, SendAttempt, SendFailure, SendOutcome, SnapshotMessage,
    SnapshotSendRequest, SnapshotSender, choose_archive,
};
use d_engine_storage::snapshot::{Pace as _, SnapshotArchive};

use super::{Exchange, LOOK_EVERY, Line, State};
use crate::threads::pace::Throttle;
use crate::transport::{SnapshotConnection, SnapshotDialer};

/// Why an attempt has ended without success.
enum Ended {
    /// The node stops, or another attempt has replaced this one.
    GivenUp,
    With(SendOutcome),
}

impl From<SendFailure> for Ended {
    fn from(failure: SendFailure) -> Self {
        Self::With(SendOutcome::Failed(failure))
    }
}

fn no_connection(why: impl std::fmt::Display) -> Ended {
    Ended::With(SendOutcome::NoConnection(why.to_string()))
}

impl Exchange {
    /// Makes one attempt and reports its outcome.
    pub(super) fn send_to_the_end(
        &self,
        attempt: SendAttempt,
        order: SnapshotSendRequest,
        dialer: Option<SnapshotDialer>,
    ) {
        let to = order.to;
        let ended = self.try_to_send(attempt, order, dialer);
        self.lock().lines.remove(&Line::Send(attempt));
        let outcome = match ended {
            Ok(last_included) => {
                tracing::info!(%to, %last_included, "the follower has applied the snapshot");
                SendOutcome::Applied
            }
            Err(Ended::GivenUp) => return,
            Err(Ended::With(_)) if self.stops() => return,
            Err(Ended::With(outcome)) => outcome,
        };
        let is_applied = outcome == SendOutcome::Applied;
        // Nothing is done for an attempt that was replaced.
        let Some(after) = self.lock().sends.on(attempt, outcome) else { return };
        match &after.failure {
            Some(why) => {
                tracing::warn!(%to, "the snapshot was not sent and will be retried: {why}");
            }
            None if !is_applied => tracing::info!(%to, "the follower needs no snapshot"),
            None => {}
        }
        if let Some(last_included) = after.verify {
            self.verify_again(last_included);
        }
        self.wait(attempt, after.wait);
        self.report_end(attempt);
    }

    /// Reports the end of an attempt to the replica, unless the attempt was replaced.
    pub(super) fn report_end(&self, attempt: SendAttempt) {
        let event = self.lock().sends.report(self.clock.now(), attempt);
        if let Some(event) = event {
            self.inbox.report(event);
        }
    }

    fn verify_again(&self, last_included: LogId) {
        let mut pace = Throttle::new(self.settings.bytes_per_second, |_| !self.stops());
        if let Err(error) = self.store.verify(last_included, &mut pace) {
            tracing::warn!(%error, "the snapshot that was being sent is damaged");
        }
    }

    /// Waits before the next attempt, unless the node stops or the attempt is replaced.
    fn wait(&self, attempt: SendAttempt, wait: Duration) {
        let goes_on = |state: &mut State| !self.stops() && state.sends.is_current(attempt);
        // The caller continues the same way after a timeout and when the node stops.
        drop(self.changed.wait_timeout_while(self.lock(), wait, goes_on));
    }

    fn try_to_send(
        &self,
        attempt: SendAttempt,
        order: SnapshotSendRequest,
        dialer: Option<SnapshotDialer>,
    ) -> Result<LogId, Ended> {
        let archive = self.choose(attempt, order)?;
        let last_included = archive.last_included();
        let dialer = dialer.ok_or_else(|| no_connection("this node does not dial the follower"))?;
        let mut line = dialer.dial().map_err(no_connection)?;
        line.set_timeout(self.settings.limits.silence).map_err(no_connection)?;
        let kept = self.keep_line(Line::Send(attempt), &line).map_err(|error| {
            no_connection(format_args!("cannot duplicate the connection's handle: {error}"))
        })?;
        if !kept {
            return Err(Ended::GivenUp);
        }
        let sender =
            SnapshotSender::new(archive, order.term, self.settings.limits, self.clock.now());
        self.drive(attempt, sender, &mut line).map(|()| last_included)
    }

    fn choose(
        &self,
        attempt: SendAttempt,
        order: SnapshotSendRequest,
    ) -> Result<SnapshotArchive, Ended> {
        // A statement of its own: the lock must not be held while the machine is called, because
        // the raft thread takes it too.
        let resume = self.lock().sends.resumable(attempt);
        let preference = ArchivePreference {
            resume,
            recorded: self.machine.snapshot_metadata().map(|meta| meta.last_included),
        };
        let mut pace = Throttle::new(self.settings.bytes_per_second, |_| !self.stops());
        let choice = choose_archive(&self.store, order, preference, &mut pace, |error| {
            tracing::warn!(%error, "cannot send this snapshot; trying another");
        });
        let archive = match choice {
            ArchiveChoice::Send(archive) => archive,
            ArchiveChoice::NoneUsable => return Err(Ended::With(SendOutcome::NoneUsable)),
            ArchiveChoice::TooLong(len) => return Err(Ended::With(SendOutcome::TooLong(len))),
            ArchiveChoice::Aborted => return Err(Ended::GivenUp),
        };
        let (now, last_included) = (self.clock.now(), archive.last_included());
        let chosen = self.lock().sends.chosen(now, attempt, last_included, archive.len());
        self.inbox.report(chosen.ok_or(Ended::GivenUp)?);
        Ok(archive)
    }

    fn drive(
        &self,
        attempt: SendAttempt,
        mut sender: SnapshotSender,
        line: &mut SnapshotConnection,
    ) -> Result<(), Ended> {
        let mut pace = Throttle::new(self.settings.bytes_per_second, |_| !self.stops());
        let broke =
            |error: std::io::Error| no_connection(format_args!("the connection failed: {error}"));
        while !sender.is_applied() {
            while let Some(message) = sender.poll()? {
                let bytes = match &message {
                    SnapshotMessage::Piece { bytes, .. } => bytes.len() as u64,
                    _ => 0,
                };
                line.send(&message).map_err(broke)?;
                if pace.step(bytes) == ControlFlow::Break(()) {
                    return Err(Ended::GivenUp);
                }
            }
            if let Some(message) = line.receive(LOOK_EVERY).map_err(broke)? {
                sender.on_message(self.clock.now(), message)?;
            }
            if self.stops() {
                return Err(Ended::GivenUp);
            }
            if let Some(failure) = sender.expired(self.clock.now()) {
                return Err(failure.into());
            }
            let moved = self.lock().sends.moved(self.clock.now(), attempt, sender.progress());
            if let Some(event) = moved {
                self.inbox.report(event);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use d_engine_core::{LogIndex, NodeId, Term};
    use d_engine_replica::{Entry, Result, SnapshotMetadata, StateMachine};

    use super::*;

    /// A machine that is busy: `snapshot_metadata` returns once the test lets it.
    struct Busy {
        called: Sender<()>,
        let_go: Mutex<Receiver<()>>,
    }

    #[async_trait]
    impl StateMachine for Busy {
        async fn apply_chunk(&self, _: Vec<Entry>) -> Result<()> {
            Ok(())
        }

        fn len(&self) -> usize {
            0
        }

        async fn generate_snapshot_data(&self, _: PathBuf, _: LogId) -> Result<[u8; 32]> {
            Ok([0; 32])
        }

        async fn apply_snapshot_from_file(&self, _: &SnapshotMetadata, _: PathBuf) -> Result<()> {
            Ok(())
        }

        async fn reset(&self) -> Result<()> {
            Ok(())
        }

        fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
            self.called.send(()).unwrap();
            self.let_go.lock().unwrap().recv().ok();
            None
        }
    }

    /// The raft thread takes the lock for every send, receive and status: a machine that hangs must
    /// not make it wait.
    #[test]
    fn the_lock_of_the_exchange_is_free_while_the_state_machine_is_asked() {
        let (called, was_called) = channel();
        let (let_go, wait) = channel();
        let mut exchange = Exchange::for_tests();
        exchange.machine = Arc::new(Busy { called, let_go: Mutex::new(wait) });
        let to = NodeId::new(2).unwrap();
        let order = SnapshotSendRequest { to, term: Term::new(1), at_least: LogIndex::ZERO };
        let (attempt, _) = exchange.lock().sends.begin(exchange.clock.now(), order);
        let is_free = std::thread::scope(|scope| {
            scope.spawn(|| exchange.choose(attempt, order).is_ok());
            was_called.recv().unwrap();
            let is_free = exchange.state.try_lock().is_ok();
            drop(let_go);
            is_free
        });
        assert!(is_free, "the lock is held while the state machine is asked");
    }
}
