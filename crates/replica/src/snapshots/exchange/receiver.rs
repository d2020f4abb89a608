//! The receiving side, on the follower.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{LogIndex, NodeId, Term};
use d_engine_storage::snapshot::{
    Health, Hold, Offer, Pace, Receiver, SnapshotError, SnapshotHeader, SnapshotInfo, SnapshotStore,
};

use super::{PIECE_BYTES_MAX, Refusal, SnapshotMessage};
use crate::state_machine::position::metadata_in;
use crate::{InstallError, ReceivedSnapshot, StateMachine};

/// What to do after a message.
#[derive(Debug)]
pub enum ReceiverStep {
    /// Reply with this message.
    Answer(SnapshotMessage),
    /// Reply with this message and close the connection.
    Refuse(SnapshotMessage),
    /// The whole archive is there: call [`SnapshotReceiver::finish`].
    Finish,
}

#[derive(Debug)]
enum State {
    New,
    Receiving {
        receiver: Receiver,
        term: Term,
    },
    /// The store already has the same archive.
    Here {
        info: Box<SnapshotInfo>,
        term: Term,
        hold: Hold,
    },
    /// The snapshot is not needed; the replica reports to its leader how far its log matches.
    Behind(Box<ReceivedSnapshot>),
    Over,
}

/// Receives one snapshot. Dropping it keeps what was received.
pub struct SnapshotReceiver {
    store: SnapshotStore,
    from: NodeId,
    len_max: u64,
    committed: LogIndex,
    /// The state machine that will install it and may need space for that.
    machine: Option<Arc<dyn StateMachine>>,
    state: State,
}

impl std::fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReceiver").field("state", &self.state).finish_non_exhaustive()
    }
}

impl SnapshotReceiver {
    /// Creates a receiver for a snapshot from `from` into `store`. It refuses archives longer than
    /// `len_max` bytes, and requests no bytes of a snapshot up to `committed`, this node's commit
    /// index.
    #[must_use]
    pub fn new(store: SnapshotStore, from: NodeId, len_max: u64, committed: LogIndex) -> Self {
        Self { store, from, len_max, committed, machine: None, state: State::New }
    }

    /// Also checks for the space that `machine` needs to install the snapshot.
    #[must_use]
    pub fn for_machine(mut self, machine: Arc<dyn StateMachine>) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Handles a message of the sender. It reads and writes files, which may take long; `pace` is
    /// called in between.
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
            _ => self.refuse(Refusal::Protocol, "a message that is not expected in this state"),
        }
    }

    fn on_offer(
        &mut self,
        term: Term,
        archive: Offer,
        header: &Bytes,
        pace: &mut dyn Pace,
    ) -> ReceiverStep {
        let mut unpacked = 0;
        if !header.is_empty() {
            let header = match self.store.check_header(header) {
                Ok(header) => header,
                Err(error) => return self.refuse(kind_of(&error), error),
            };
            let files = header.content_bytes();
            let install = self.machine.as_ref();
            let install =
                install.map_or(0, |machine| machine.install_bytes(&metadata_in(&header), files));
            unpacked = files.saturating_add(install);
            if archive.last_included.index <= self.committed
                && header.facts.last_included == archive.last_included
            {
                let hold = self.store.hold(archive.last_included);
                self.state = State::Behind(Box::new(received(self.from, term, &header, hold)));
                return ReceiverStep::Finish;
            }
        }
        let hold = self.store.hold(archive.last_included);
        if let Some(info) = self.holds(&archive) {
            self.state = State::Here { info: Box::new(info), term, hold };
            return ReceiverStep::Finish;
        }
        let received = self.store.receive(archive, self.len_max, pace).and_then(|receiver| {
            // The archive will be unpacked next to itself, and the machine may need its own space.
            // Without that check, the snapshot could replace the log and then not be installable.
            self.store.has_room(
                archive.len.saturating_sub(receiver.received()).saturating_add(unpacked),
            )?;
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

    /// The offered archive, if the store already has it complete: it was received before, and not
    /// installed because the sender was deposed or the node crashed.
    fn holds(&self, offer: &Offer) -> Option<SnapshotInfo> {
        let same = |info: &SnapshotInfo| {
            info.last_included() == offer.last_included
                && info.sha256 == offer.sha256
                && info.len == offer.len
        };
        self.store.list().into_iter().find(|info| same(info) && info.health == Health::Whole)
    }

    /// Makes the received archive durable and verifies it completely. Then reply
    /// [`SnapshotMessage::Installing`], give the snapshot to the replica, and reply with
    /// [`Self::outcome`].
    ///
    /// # Errors
    /// The archive cannot be used; reply with the returned message.
    pub fn finish(
        &mut self,
        pace: &mut dyn Pace,
    ) -> Result<Box<ReceivedSnapshot>, SnapshotMessage> {
        let (info, term, hold) = match std::mem::replace(&mut self.state, State::Over) {
            State::Receiving { receiver, term } => {
                let hold = self.store.hold(receiver.offer().last_included);
                match receiver.finish(pace) {
                    Ok(info) => (info, term, hold),
                    Err(error) => return Err(SnapshotMessage::refused(kind_of(&error), error)),
                }
            }
            State::Here { info, term, hold } => (*info, term, hold),
            State::Behind(snapshot) => return Ok(snapshot),
            State::New | State::Over => {
                return Err(SnapshotMessage::refused(Refusal::Protocol, "no archive was received"));
            }
        };
        Ok(Box::new(received(self.from, term, &info.header, hold)))
    }

    /// The reply for the outcome of the installation.
    #[must_use]
    pub fn outcome(installed: Result<(), InstallError>) -> SnapshotMessage {
        match installed {
            Ok(()) => SnapshotMessage::Applied,
            Err(error @ InstallError::Stale) => SnapshotMessage::refused(Refusal::NotNeeded, error),
            Err(error) => SnapshotMessage::refused(Refusal::Busy, error),
        }
    }

    /// Bytes received and the archive's length, while an archive is being received.
    #[must_use]
    pub fn progress(&self) -> Option<(u64, u64)> {
        match &self.state {
            State::Receiving { receiver, .. } => Some((receiver.received(), receiver.offer().len)),
            _ => None,
        }
    }

    fn refuse(&mut self, refusal: Refusal, why: impl std::fmt::Display) -> ReceiverStep {
        // The received bytes stay for the next attempt.
        self.state = State::Over;
        ReceiverStep::Refuse(SnapshotMessage::refused(refusal, why))
    }
}

/// The facts of a header, for the replica.
fn received(from: NodeId, term: Term, header: &SnapshotHeader, hold: Hold) -> ReceivedSnapshot {
    let facts = &header.facts;
    let (last_included, time_ms, membership) =
        (facts.last_included, facts.time_ms, facts.membership.clone());
    ReceivedSnapshot { from, term, last_included, time_ms, membership, hold }
}

/// The kind of refusal for an error on this side.
fn kind_of(error: &SnapshotError) -> Refusal {
    match error {
        // None of these means that the archive is unusable.
        SnapshotError::Busy { .. }
        | SnapshotError::Aborted
        | SnapshotError::NoSpace { .. }
        | SnapshotError::Io { .. } => Refusal::Busy,
        SnapshotError::PastEnd { .. } | SnapshotError::Overlap { .. } => Refusal::Protocol,
        _ => Refusal::Unusable,
    }
}
