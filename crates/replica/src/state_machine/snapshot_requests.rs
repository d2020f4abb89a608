//! The callers that have requested a snapshot and wait for it.
//!
//! A caller is answered by a snapshot that includes everything applied when it made its request. So
//! a request that arrives while a snapshot is being built is answered by that one only if nothing
//! was applied in between; otherwise it waits for the next.

use d_engine_core::LogIndex;
use d_engine_storage::snapshot::SnapshotInfo;

use crate::{SnapshotRequestError, StopReason};

/// Called exactly once with the snapshot, or with the reason why there is none; dropped if the node
/// ends before. Must not block.
pub type SnapshotResponder = Box<dyn FnOnce(Result<SnapshotInfo, SnapshotRequestError>) + Send>;

/// The most callers that may wait for a snapshot; more are refused.
const WAITING_MAX: usize = 64;

/// A bounded list of callers that wait for a snapshot.
#[derive(Default)]
pub struct SnapshotRequests {
    waiting: Vec<Waiting>,
}

struct Waiting {
    /// The index applied when the request was made: the snapshot must include it.
    applied: LogIndex,
    responder: SnapshotResponder,
}

impl SnapshotRequests {
    /// Whether no caller waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a caller that needs everything up to index `applied`. It is refused if too many wait.
    pub fn add(&mut self, applied: LogIndex, responder: SnapshotResponder) {
        if self.waiting.len() >= WAITING_MAX {
            responder(Err(SnapshotRequestError::Busy));
            return;
        }
        self.waiting.push(Waiting { applied, responder });
    }

    /// Answers the callers whose request this durable snapshot includes.
    pub fn answer(&mut self, snapshot: &SnapshotInfo) {
        let through = snapshot.last_included().index;
        for caller in self.waiting.extract_if(.., |caller| caller.applied <= through) {
            (caller.responder)(Ok(snapshot.clone()));
        }
    }

    /// Refuses all callers: no snapshot can be taken now.
    pub fn refuse(&mut self, reason: &StopReason) {
        for caller in self.waiting.drain(..) {
            (caller.responder)(Err(SnapshotRequestError::Failed { reason: reason.clone() }));
        }
    }
}

impl std::fmt::Debug for SnapshotRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotRequests").field("waiting", &self.waiting.len()).finish()
    }
}
