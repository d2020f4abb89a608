//! What starting a node can fail with.

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
    /// The data directory cannot be used; the message says what to do.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory of snapshots cannot be used; the message says what to do.
    #[error(transparent)]
    Snapshots(#[from] d_engine_storage::snapshot::SnapshotError),
    /// The first members cannot be: two listening addresses of this node are the same, for example.
    #[error("the first members of the cluster are refused: {0}")]
    Members(#[from] d_engine_storage::MembershipError),
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
    /// The node stopped while it was starting.
    #[error("the node stopped while it was starting: {0}")]
    Stopped(StopReason),
    /// There is no tokio runtime here. Call from inside one.
    #[error(
        "no tokio runtime is running here; start the node from inside one, for example under #[tokio::main]"
    )]
    NoRuntime,
}
