//! Linearizable reads in flight: they wait first for confirmation by a quorum, then until the state
//! machine has applied their index.

use std::collections::BTreeMap;

use d_engine_core::{LogIndex, ReadId};

use crate::ReadError;
use crate::event::ReadResponder;

#[derive(Default)]
pub(crate) struct Reads {
    last_id: ReadId,
    unconfirmed: BTreeMap<ReadId, ReadResponder>,
    /// Confirmed reads that wait until their index has been applied.
    unapplied: BTreeMap<(LogIndex, ReadId), ReadResponder>,
}

impl Reads {
    pub(crate) fn len(&self) -> usize {
        self.unconfirmed.len() + self.unapplied.len()
    }

    /// Registers a read and returns its name for the core.
    pub(crate) fn register(&mut self, responder: ReadResponder) -> ReadId {
        self.last_id += 1;
        self.unconfirmed.insert(self.last_id, responder);
        self.last_id
    }

    /// The core has confirmed `id` at `index`; the state machine has applied up to `applied`.
    pub(crate) fn confirmed(&mut self, id: ReadId, index: LogIndex, applied: LogIndex) {
        let Some(responder) = self.unconfirmed.remove(&id) else { return };
        if index <= applied {
            responder(Ok(index.get()));
        } else {
            self.unapplied.insert((index, id), responder);
        }
    }

    /// The state machine has applied up to `applied`.
    pub(crate) fn applied_to(&mut self, applied: LogIndex) {
        while let Some(first) = self.unapplied.first_entry() {
            if first.key().0 > applied {
                return;
            }
            let ((index, _), responder) = first.remove_entry();
            responder(Ok(index.get()));
        }
    }

    /// The core can no longer confirm `id`.
    pub(crate) fn lost(&mut self, id: ReadId, error: &ReadError) {
        if let Some(responder) = self.unconfirmed.remove(&id) {
            responder(Err(error.clone()));
        }
    }

    /// No leader is known, so it is unknown how long the confirmed reads would wait for their
    /// index.
    pub(crate) fn lose_unapplied(&mut self, error: &ReadError) {
        for (_, responder) in std::mem::take(&mut self.unapplied) {
            responder(Err(error.clone()));
        }
    }

    /// The node has stopped.
    pub(crate) fn lose_all(&mut self, error: &ReadError) {
        for (_, responder) in std::mem::take(&mut self.unconfirmed) {
            responder(Err(error.clone()));
        }
        self.lose_unapplied(error);
    }
}
