//! Sending a snapshot to a follower.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use d_engine_core::LogId;
use d_engine_replica::{Event, Refusal, SendFailure, SnapshotOrder, SnapshotProgress, SnapshotSender};
use d_engine_storage::snapshot::{Health, Pace as _, SnapshotArchive, SnapshotInfo};

use super::{BACKOFF_MS, LOOK_EVERY, SendingSnapshot, Transfers};
use crate::pace::Throttle;
use crate::transport::{SnapshotDialer, SnapshotLine};

/// How often the replica is told how much the follower has confirmed.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Why a snapshot did not arrive.
enum Failed {
    /// There is none here that would help the follower.
    NoneUsable,
    /// The follower needs none.
    NotNeeded,
    /// The node stops, or another transfer took the place of this one.
    GivenUp,
    /// In words: with this archive it will not do.
    Archive(String),
    /// In words.
    Because(String),
}

impl From<SendFailure> for Failed {
    fn from(failure: SendFailure) -> Self {
        match failure {
            SendFailure::Refused { refusal: Refusal::NotNeeded, .. } => Self::NotNeeded,
            SendFailure::Refused { refusal: Refusal::Unusable, .. } | SendFailure::Archive(_) => {
                Self::Archive(failure.to_string())
            }
            other => Self::Because(other.to_string()),
        }
    }
}

impl Transfers {
    /// One attempt, and the report of how it ended.
    pub(super) fn send_to_the_end(&self, id: u64, order: SnapshotOrder, dialer: Option<SnapshotDialer>) {
        let sent = self.try_to_send(id, order, dialer);
        self.lock().lines.remove(&id);
        let to = order.to;
        let is_over = matches!(sent, Ok(_) | Err(Failed::NotNeeded));
        let event = match sent {
            Ok(label) => {
                tracing::info!(%to, %label, "the follower has applied the snapshot");
                Event::SnapshotSent(to)
            }
            Err(Failed::GivenUp) => return,
            Err(Failed::NotNeeded) => {
                tracing::info!(%to, "the follower needs no snapshot");
                self.wait(id, to, Duration::from_millis(BACKOFF_MS[0]));
                Event::SnapshotFailed { to, none_usable: false }
            }
            Err(Failed::NoneUsable) => {
                self.note_failure(
                    id,
                    to,
                    "no snapshot here reaches the beginning of the log; a new one is due",
                );
                self.wait(id, to, Duration::from_millis(BACKOFF_MS[2]));
                Event::SnapshotFailed { to, none_usable: true }
            }
            Err(failed @ (Failed::Because(_) | Failed::Archive(_))) => {
                let why = self.look_again(id, to, failed);
                tracing::warn!(%to, "a snapshot was not sent: {why}");
                let failures = self.note_failure(id, to, &why);
                let backoff = usize::try_from(failures).ok().and_then(|at| BACKOFF_MS.get(at));
                let backoff = backoff.or(BACKOFF_MS.last()).copied().unwrap_or_default();
                self.wait(id, to, Duration::from_millis(backoff));
                Event::SnapshotFailed { to, none_usable: false }
            }
        };
        let mut state = self.lock();
        if state.sending.get(&to).is_none_or(|sending| sending.id != id) {
            return;
        }
        if is_over {
            state.sending.remove(&to);
        } else if let Some(sending) = state.sending.get_mut(&to) {
            sending.reported = Some(Instant::now());
        }
        drop(state);
        self.inbox.report(event);
    }

    /// An archive that would not do is read again before anybody gets it, and is not the first choice any more.
    fn look_again(&self, id: u64, to: d_engine_core::NodeId, failed: Failed) -> String {
        let why = match failed {
            Failed::Archive(why) => why,
            Failed::Because(why) => return why,
            Failed::NoneUsable | Failed::NotNeeded | Failed::GivenUp => return String::new(),
        };
        let mut state = self.lock();
        let sending = state.sending.get_mut(&to).filter(|sending| sending.id == id);
        let label = sending.and_then(|sending| sending.label.take());
        drop(state);
        if let Some(label) = label {
            let mut pace = Throttle::new(self.settings.bytes_per_second, |_| !self.stops());
            if let Err(error) = self.store.verify(label, &mut pace) {
                tracing::warn!(%error, "a snapshot that was sent is damaged");
            }
        }
        why
    }

    /// Notes why an attempt has failed; returns how many had failed before.
    fn note_failure(&self, id: u64, to: d_engine_core::NodeId, why: &str) -> u64 {
        let mut before = 0;
        self.note(id, to, |status| {
            before = status.failures;
            status.failures += 1;
            status.last_failure = Some(why.to_owned());
        });
        before
    }

    /// Changes the status of a transfer, if it is still this one.
    fn note(&self, id: u64, to: d_engine_core::NodeId, change: impl FnOnce(&mut SendingSnapshot)) {
        if let Some(sending) = self.lock().sending.get_mut(&to).filter(|sending| sending.id == id) {
            change(&mut sending.status);
        }
    }

    /// Tells the replica how far a transfer has come, if it is still this one: the log is kept for it.
    fn tell_progress(&self, id: u64, to: d_engine_core::NodeId, label: LogId, confirmed: u64, len: u64) {
        if self.lock().sending.get(&to).is_some_and(|sending| sending.id == id) {
            let progress = SnapshotProgress { to, label: label.index, confirmed, len };
            self.inbox.report(Event::SnapshotProgress(progress));
        }
    }

    /// Waits before the follower is tried again, unless the node stops.
    fn wait(&self, id: u64, to: d_engine_core::NodeId, wait: Duration) {
        let state = self.lock();
        let goes_on = |state: &mut super::State| {
            !self.stops() && state.sending.get(&to).is_some_and(|sending| sending.id == id)
        };
        // Whether the time is over or the node stops: the caller goes on.
        drop(self.changed.wait_timeout_while(state, wait, goes_on));
    }

    fn try_to_send(
        &self,
        id: u64,
        order: SnapshotOrder,
        dialer: Option<SnapshotDialer>,
    ) -> Result<LogId, Failed> {
        let archive = self.choose(id, order)?;
        let label = archive.label();
        let dialer = dialer.ok_or_else(|| Failed::Because("it is no member that is dialled".to_owned()))?;
        let mut line = dialer.dial().map_err(Failed::Because)?;
        let silence = Duration::from_nanos(self.settings.limits.silence.as_nanos());
        line.set_patience(silence).map_err(|error| Failed::Because(error.to_string()))?;
        let is_current =
            |state: &super::State| state.sending.get(&order.to).is_some_and(|sending| sending.id == id);
        let kept = self.keep_line(id, &line, is_current);
        if !kept.map_err(|error| Failed::Because(format!("the connection cannot be kept: {error}")))? {
            return Err(Failed::GivenUp);
        }
        let sender = SnapshotSender::new(archive, order.term, self.settings.limits, self.clock.now());
        match self.drive(id, order, sender, &mut line) {
            Err(Failed::Because(_) | Failed::Archive(_)) if self.stops() || !is_current(&self.lock()) => {
                Err(Failed::GivenUp)
            }
            ended => ended.map(|()| label),
        }
    }

    /// The archive to send: that of the attempt before, so that it can go on where it was cut; else the one that
    /// the state machine was told of last; else the newest that is whole.
    fn choose(&self, id: u64, order: SnapshotOrder) -> Result<SnapshotArchive, Failed> {
        let before = self.lock().sending.get(&order.to).and_then(|sending| sending.label);
        let told = self.machine.snapshot_metadata().map(|meta| LogId::from(meta.last_included));
        let list = self.store.list();
        let listed = |label: LogId| list.iter().find(move |info| info.label() == label);
        let first = before.and_then(listed);
        let candidates = first.into_iter().chain(told.and_then(listed)).chain(&list);
        let mut too_long = None;
        for info in candidates.filter(|info| info.label().index >= order.at_least) {
            if !self.store.may_travel(info) {
                too_long = Some(info.len);
                continue;
            }
            match self.open_verified(info) {
                Ok(archive) => {
                    let len = archive.len();
                    let mut state = self.lock();
                    if let Some(sending) = state.sending.get_mut(&order.to).filter(|it| it.id == id) {
                        sending.label = Some(archive.label());
                        sending.status.label = archive.label().index.get();
                        sending.status.len = len;
                    }
                    drop(state);
                    self.tell_progress(id, order.to, archive.label(), 0, len);
                    return Ok(archive);
                }
                Err(error) => tracing::warn!(%error, "a snapshot is not sent"),
            }
            if self.stops() {
                return Err(Failed::GivenUp);
            }
        }
        match too_long {
            // Another one would be as long.
            Some(len) => Err(Failed::Because(format!(
                "the snapshot has {len} bytes, more than snapshots.max_bytes; raise that on every node"
            ))),
            None => Err(Failed::NoneUsable),
        }
    }

    /// A damaged archive is never sent: it is read once, unless this process has written or read it whole.
    fn open_verified(
        &self,
        info: &SnapshotInfo,
    ) -> Result<SnapshotArchive, d_engine_storage::snapshot::SnapshotError> {
        if info.health != Health::Whole {
            let mut pace = Throttle::new(self.settings.bytes_per_second, |_| !self.stops());
            self.store.verify(info.label(), &mut pace)?;
        }
        self.store.open_archive(info.label())
    }

    fn drive(
        &self,
        id: u64,
        order: SnapshotOrder,
        mut sender: SnapshotSender,
        line: &mut SnapshotLine,
    ) -> Result<(), Failed> {
        let mut pace = Throttle::new(self.settings.bytes_per_second, |_| !self.stops());
        let broke = |error: std::io::Error| Failed::Because(format!("the connection broke: {error}"));
        let (label, len) = (sender.archive().label(), sender.archive().len());
        let (mut told, mut told_at) = (0, Instant::now());
        while !sender.is_applied() {
            while let Some(message) = sender.poll()? {
                let bytes = match &message {
                    d_engine_replica::SnapshotMessage::Piece { bytes, .. } => bytes.len() as u64,
                    _ => 0,
                };
                line.send(&message).map_err(broke)?;
                if pace.step(bytes) == ControlFlow::Break(()) {
                    return Err(Failed::GivenUp);
                }
            }
            if let Some(message) = line.receive(LOOK_EVERY).map_err(broke)? {
                sender.on_message(self.clock.now(), message)?;
            }
            if self.stops() {
                return Err(Failed::GivenUp);
            }
            if let Some(failure) = sender.expired(self.clock.now()) {
                return Err(failure.into());
            }
            self.note(id, order.to, |status| {
                status.confirmed = sender.confirmed();
                status.resumed_at = sender.resumed_at();
                status.is_installing = sender.is_installing();
            });
            let confirmed = sender.confirmed();
            if confirmed > told && (told_at.elapsed() >= TELL_EVERY || confirmed == len) {
                (told, told_at) = (confirmed, Instant::now());
                self.tell_progress(id, order.to, label, confirmed, len);
            }
        }
        Ok(())
    }
}
