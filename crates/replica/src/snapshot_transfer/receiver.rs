//! The follower's side of a transfer.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{LogIndex, NodeId, Term};
use d_engine_storage::snapshot::{
    Health, Hold, Offer, Pace, Receiver, SnapshotError, SnapshotHeader, SnapshotInfo, SnapshotStore,
};

use super::{PIECE_BYTES_MAX, Refusal, SnapshotMessage};
use crate::restore::metadata_in;
use crate::{InstallError, ReceivedSnapshot, StateMachine};

/// What is to be done after a message.
#[derive(Debug)]
pub enum ReceiverStep {
    /// Answer this.
    Answer(SnapshotMessage),
    /// Answer this, and close the connection.
    Refuse(SnapshotMessage),
    /// Everything is there: call [`SnapshotReceiver::finish`].
    Finish,
}

#[derive(Debug)]
enum State {
    New,
    Receiving {
        receiver: Receiver,
        term: Term,
    },
    /// The very archive is here already.
    Here {
        info: Box<SnapshotInfo>,
        term: Term,
        hold: Hold,
    },
    /// Nothing of it is needed: the replica tells its leader so.
    Behind(Box<ReceivedSnapshot>),
    Over,
}

/// The follower's side of one transfer. Dropping it keeps what was received.
pub struct SnapshotReceiver {
    store: SnapshotStore,
    from: NodeId,
    len_max: u64,
    committed: LogIndex,
    /// Who will install it, and may need room for that.
    machine: Option<Arc<dyn StateMachine>>,
    state: State,
}

impl std::fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReceiver").field("state", &self.state).finish_non_exhaustive()
    }
}

impl SnapshotReceiver {
    /// Will receive into `store` what `from` sends, but nothing larger than `len_max` bytes, and nothing that ends
    /// at or before `committed`, which is committed here.
    #[must_use]
    pub fn new(store: SnapshotStore, from: NodeId, len_max: u64, committed: LogIndex) -> Self {
        Self { store, from, len_max, committed, machine: None, state: State::New }
    }

    /// The same, asking also for the room that `machine` needs to install it.
    #[must_use]
    pub fn for_machine(mut self, machine: Arc<dyn StateMachine>) -> Self {
        self.machine = Some(machine);
        self
    }

    /// The sender has said something. Files are read and written, which may take long: `pace` is asked between.
    pub fn on_message(&mut self, message: SnapshotMessage, pace: &mut dyn Pace) -> ReceiverStep {
        match (&mut self.state, message) {
            (State::New, SnapshotMessage::Offer { term, archive, header }) => {
                self.on_offer(term, archive, &header, pace)
            }
            (State::Receiving { receiver, .. }, SnapshotMessage::Piece { offset, bytes, crc }) => {
                if bytes.len() > PIECE_BYTES_MAX {
                    return self.refuse(Refusal::Protocol, "a piece is too long");
                }
                let written = receiver.write(offset, &bytes, crc);
                let (received, len) = (receiver.received(), receiver.offer().len);
                match written {
                    Ok(()) if received == len => ReceiverStep::Finish,
                    Ok(()) => ReceiverStep::Answer(SnapshotMessage::Received { offset: received }),
                    Err(SnapshotError::Gap { .. } | SnapshotError::Piece { .. }) => {
                        ReceiverStep::Answer(SnapshotMessage::Accept { offset: received })
                    }
                    Err(error) => self.refuse(kind_of(&error), error),
                }
            }
            _ => self.refuse(Refusal::Protocol, "a message that has no place here"),
        }
    }

    fn on_offer(&mut self, term: Term, archive: Offer, header: &Bytes, pace: &mut dyn Pace) -> ReceiverStep {
        let mut unpacked = 0;
        if !header.is_empty() {
            let header = match self.store.check_header(header) {
                Ok(header) => header,
                Err(error) => return self.refuse(kind_of(&error), error),
            };
            let files = header.content_bytes();
            let install = self.machine.as_ref();
            let install = install.map_or(0, |machine| machine.install_bytes(&metadata_in(&header), files));
            unpacked = files.saturating_add(install);
            if archive.label.index <= self.committed && header.facts.label == archive.label {
                let hold = self.store.hold(archive.label);
                self.state = State::Behind(Box::new(received(self.from, term, &header, hold)));
                return ReceiverStep::Finish;
            }
        }
        let hold = self.store.hold(archive.label);
        if let Some(info) = self.holds(&archive) {
            self.state = State::Here { info: Box::new(info), term, hold };
            return ReceiverStep::Finish;
        }
        let received = self.store.receive(archive, self.len_max, pace).and_then(|receiver| {
            // It will be unpacked beside itself, and the machine may need room of its own. Without that the log would
            // be given up for nothing.
            self.store.has_room(archive.len.saturating_sub(receiver.received()).saturating_add(unpacked))?;
            Ok(receiver)
        });
        match received {
            Ok(receiver) => {
                let offset = receiver.received();
                let whole = offset == archive.len;
                self.state = State::Receiving { receiver, term };
                if whole {
                    ReceiverStep::Finish
                } else {
                    ReceiverStep::Answer(SnapshotMessage::Accept { offset })
                }
            }
            Err(error) => self.refuse(kind_of(&error), error),
        }
    }

    /// The finished archive that is offered, if it is here: received before, and not installed because the
    /// sender was deposed or the node fell over.
    fn holds(&self, offer: &Offer) -> Option<SnapshotInfo> {
        let same = |info: &SnapshotInfo| {
            info.label() == offer.label && info.sha256 == offer.sha256 && info.len == offer.len
        };
        self.store.list().into_iter().find(|info| same(info) && info.health == Health::Whole)
    }

    /// Makes what was received durable and verifies it as a whole. Answer [`SnapshotMessage::Installing`], give
    /// the snapshot to the replica, and answer [`Self::outcome`].
    ///
    /// # Errors
    /// What to answer: it cannot be used.
    pub fn finish(&mut self, pace: &mut dyn Pace) -> Result<Box<ReceivedSnapshot>, SnapshotMessage> {
        let (info, term, hold) = match std::mem::replace(&mut self.state, State::Over) {
            State::Receiving { receiver, term } => {
                let hold = self.store.hold(receiver.offer().label);
                match receiver.finish(pace) {
                    Ok(info) => (info, term, hold),
                    Err(error) => return Err(SnapshotMessage::refused(kind_of(&error), error)),
                }
            }
            State::Here { info, term, hold } => (*info, term, hold),
            State::Behind(snapshot) => return Ok(snapshot),
            State::New | State::Over => {
                return Err(SnapshotMessage::refused(Refusal::Protocol, "nothing was received"));
            }
        };
        Ok(Box::new(received(self.from, term, &info.header, hold)))
    }

    /// What to answer when the replica has said what has become of the snapshot.
    #[must_use]
    pub fn outcome(installed: Result<(), InstallError>) -> SnapshotMessage {
        match installed {
            Ok(()) => SnapshotMessage::Applied,
            Err(error @ InstallError::Stale) => SnapshotMessage::refused(Refusal::NotNeeded, error),
            Err(error) => SnapshotMessage::refused(Refusal::Busy, error),
        }
    }

    /// Bytes received and bytes announced, while something is on its way.
    #[must_use]
    pub fn progress(&self) -> Option<(u64, u64)> {
        match &self.state {
            State::Receiving { receiver, .. } => Some((receiver.received(), receiver.offer().len)),
            _ => None,
        }
    }

    fn refuse(&mut self, refusal: Refusal, why: impl std::fmt::Display) -> ReceiverStep {
        // What was received stays for the next attempt.
        self.state = State::Over;
        ReceiverStep::Refuse(SnapshotMessage::refused(refusal, why))
    }
}

/// What a header says, for the replica.
fn received(from: NodeId, term: Term, header: &SnapshotHeader, hold: Hold) -> ReceivedSnapshot {
    let facts = &header.facts;
    let (label, time_ms, membership) = (facts.label, facts.time_ms, facts.membership.clone());
    ReceivedSnapshot { from, term, label, time_ms, membership, hold }
}

/// What the sender is to do about an error here.
fn kind_of(error: &SnapshotError) -> Refusal {
    match error {
        // Nothing of it is the archive's fault.
        SnapshotError::Busy { .. }
        | SnapshotError::Aborted
        | SnapshotError::NoSpace { .. }
        | SnapshotError::Io { .. } => Refusal::Busy,
        SnapshotError::PastEnd { .. } | SnapshotError::Overlap { .. } => Refusal::Protocol,
        _ => Refusal::Unusable,
    }
}
