//! Linearizable reads on their way: first to confirmation by a quorum, then to the applied state.

use std::collections::BTreeMap;

use d_engine_core::{LogIndex, ReadId};

use crate::ReadError;
use crate::event::ReadResponder;

/// How fresh a read must be. On the wire 1 = linearizable, 2 = lease, 3 = eventual, 0 = linearizable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ReadConsistency {
    /// Sees every write that was acknowledged before the read began (Raft thesis, section 6.4). Costs
    /// one round of heartbeats, shared by all reads that arrive together.
    #[default]
    Linearizable,
    /// As linearizable, while the clocks of all nodes run at rates that differ by no more than
    /// `clock_drift_percent_max` (Raft thesis, section 6.4.1): the leader answers without asking
    /// anybody. Without a valid lease, and on a follower, it is confirmed as a linearizable read is.
    Lease,
    /// Sees whatever this node has applied: possibly old, never half of a command. Costs nothing.
    Eventual,
}

#[derive(Default)]
pub(crate) struct Reads {
    last_id: ReadId,
    unconfirmed: BTreeMap<ReadId, ReadResponder>,
    /// Confirmed, waiting until their index has been applied.
    unapplied: BTreeMap<(LogIndex, ReadId), ReadResponder>,
}

impl Reads {
    pub(crate) fn len(&self) -> usize {
        self.unconfirmed.len() + self.unapplied.len()
    }

    /// Takes a read in and gives it a name for the core.
    pub(crate) fn register(&mut self, responder: ReadResponder) -> ReadId {
        self.last_id += 1;
        self.unconfirmed.insert(self.last_id, responder);
        self.last_id
    }

    /// The core has confirmed `id` at `index`; `applied` is how far the state machine is.
    pub(crate) fn confirmed(&mut self, id: ReadId, index: LogIndex, applied: LogIndex) {
        let Some(responder) = self.unconfirmed.remove(&id) else { return };
        if index <= applied {
            responder(Ok(index.get()));
        } else {
            self.unapplied.insert((index, id), responder);
        }
    }

    /// The state machine has come to `applied`.
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

    /// No leader is known: nobody can say how long the confirmed reads would wait for their index.
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
