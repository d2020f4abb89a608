//! The connections over which snapshots are sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::{LogId, LogIndex, Term};
use d_engine_replica::{InstallError, SendAttempt, SnapshotRequestError};
use d_engine_storage::snapshot::SnapshotInfo;

/// The direction of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Way {
    ToFollower,
    ToLeader,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) frames: VecDeque<Bytes>,
    /// When the last byte sent so far has left.
    pub(crate) free_at: u64,
    /// When the last frame sent so far arrives.
    pub(crate) latest: u64,
}

/// A connection between two processes. The state of each end is lost when its process ends.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) from: u64,
    pub(crate) from_life: u64,
    pub(crate) to: u64,
    pub(crate) to_life: u64,
    pub(crate) term: Term,
    pub(crate) attempt: SendAttempt,
    pub(crate) last_included: LogId,
    /// The follower's commit index when the offer came; a snapshot that does not go beyond it is
    /// not stored.
    pub(crate) committed: LogIndex,
    pub(crate) lanes: BTreeMap<Way, Lane>,
}

/// Outcomes of installs by connection; the replicas' responders fill it.
pub(crate) type Outcomes = Arc<Mutex<Vec<(u64, Result<(), InstallError>)>>>;

/// The answer to a request for a snapshot.
#[derive(Debug)]
pub(crate) struct RequestAnswered {
    pub(crate) node: u64,
    pub(crate) boot: u64,
    /// The last index that the node had reported as applied when the request was made.
    pub(crate) applied: LogIndex,
    pub(crate) answer: Result<SnapshotInfo, SnapshotRequestError>,
}

/// Answers to requests for snapshots; the apply workers' responders fill it.
pub(crate) type Requested = Arc<Mutex<Vec<RequestAnswered>>>;

/// All snapshot connections of a run.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) last: u64,
    pub(crate) open: BTreeMap<u64, Connection>,
    pub(crate) outcomes: Outcomes,
    pub(crate) requested: Requested,
    /// The node that last sent a snapshot, by follower and last included log id.
    pub(crate) senders: BTreeMap<(u64, LogId), u64>,
}

impl Exchange {
    /// The connections with this node at either end.
    pub(crate) fn of(&self, node: u64) -> Vec<u64> {
        let ends = self.open.iter().filter(|(_, it)| it.from == node || it.to == node);
        ends.map(|(number, _)| *number).collect()
    }
}
