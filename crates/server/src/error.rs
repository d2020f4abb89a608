//! What starting a node, and the calls of its handle, can fail with.

use d_engine_replica::{ReplicaError, StopReason};
use d_engine_storage::StorageError;

use crate::ConfigError;

/// Why a node does not start. Nothing acknowledged is lost by any of these; nothing was changed on
/// disk unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is refused. Correct the field that is named.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used. The message names the file; [`StorageError`] says of each what to do about it.
    #[error("the data directory (`data_dir`) cannot be used: {0}")]
    Storage(StorageError),
    /// The directory of snapshots cannot be used; the message says what to do.
    #[error(transparent)]
    Snapshots(#[from] d_engine_storage::snapshot::SnapshotError),
    /// The first members cannot be: two listening addresses of this node are the same, for example.
    #[error("the first members of the cluster are refused: {0}")]
    Members(#[from] d_engine_storage::MembershipError),
    /// The configuration names other members than the data directory was made with. Put the list back: the members of a
    /// cluster cannot be changed yet.
    #[error(
        "`members` names the nodes {}, but the data directory {} was made for {}: put the list back, because the members \
         of a cluster cannot be changed yet (addresses can); a new cluster needs an empty directory and a cluster_id of \
         its own", list(configured), dir.display(), list(stored)
    )]
    OtherMembers {
        /// The data directory.
        dir: std::path::PathBuf,
        /// The ids in it.
        stored: Vec<u64>,
        /// The ids in the configuration.
        configured: Vec<u64>,
    },
    /// The state machine refused, or does not fit the log.
    #[error("{0}")]
    StateMachine(StopReason),
    /// The log holds something that this version cannot drive.
    #[error(transparent)]
    Log(#[from] ReplicaError),
    /// An address cannot be listened on: choose a free one of this machine.
    #[error("cannot listen for {whom} on {address}: {source}; choose a free address of this machine")]
    Bind {
        /// "peers" or "clients".
        whom: &'static str,
        /// The address.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The system gave no thread.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Entropy(String),
    /// The node has stopped with a failure: while it was starting, or while it ran (`run`, `stopped`).
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
    /// There is no tokio runtime here, or one without timers or sockets. Call from inside one with everything enabled.
    #[error(
        "no tokio runtime with timers and sockets is running here; start the node from inside one, for example under \
         #[tokio::main] or with Builder::enable_all"
    )]
    NoRuntime,
}

impl From<StorageError> for StartError {
    /// Nobody waits for room at a start: the message says what to do instead.
    fn from(error: StorageError) -> Self {
        Self::Storage(error.final_at_start())
    }
}

fn list(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// The node did not become ready.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// Not in this time. Are enough of the other nodes running and reachable?
    #[error(
        "the node is not ready after {waited_ms} ms: no leader was found, or the log is still being applied"
    )]
    TimedOut {
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// The node has caught up, but not its state machine: `StateMachine::is_running` says `false`, or has not answered.
    #[error(
        "the node is not ready after {waited_ms} ms: its state machine says that it does not run, or says nothing"
    )]
    StateMachineDown {
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// The node has stopped.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why there is no snapshot. The state and the snapshots that were there are as they were.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRequestError {
    /// It was given up; the reason says what to mend. Then ask again.
    #[error("the snapshot was given up: {reason}")]
    Failed {
        /// Why.
        reason: StopReason,
    },
    /// Too many callers wait for one already. Ask again after a pause.
    #[error("too many callers wait for a snapshot already; ask again after a pause")]
    Busy,
    /// The node has stopped. Ask another one.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}
