//! The writes that the log worker has not reported as persisted.

use std::collections::VecDeque;

use d_engine_core::PersistId;

/// The payload bytes of each write in progress, and of all together.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    writes: VecDeque<(PersistId, usize)>,
    bytes: usize,
}

impl Unsynced {
    /// The log worker was given a write with this many payload bytes.
    pub(crate) fn push(&mut self, id: PersistId, bytes: usize) {
        self.writes.push_back((id, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// All writes up to and including this id are persisted.
    pub(crate) fn persisted(&mut self, id: PersistId) {
        while let Some((_, bytes)) = self.writes.pop_front_if(|(write, _)| *write <= id) {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Payload bytes of all writes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
