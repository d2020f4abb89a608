//! Errors of starting a node, and of the calls of its handle that are neither proposals nor reads.

use d_engine_replica::{ReplicaError, StopReason};
use d_engine_storage::StorageError;

use crate::ConfigError;

/// Why a node does not start. No acknowledged entry is lost in any of these cases. Nothing was
/// changed on disk unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is refused. Correct the field that the message names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used. The message names the file; [`StorageError`] documents
    /// for each case what to do.
    #[error("the data directory (`data_dir`) cannot be used: {0}{step}", step = next_step(.0))]
    Storage(StorageError),
    /// The directory of the snapshots cannot be used; the message says what to do.
    #[error(transparent)]
    Snapshots(#[from] d_engine_storage::snapshot::SnapshotError),
    /// The initial members are not valid; for example, two addresses of this node are the same.
    /// Correct the configuration.
    #[error("the initial members of the cluster are not valid: {0}")]
    Members(#[from] d_engine_storage::MembershipError),
    /// The cluster that the node is to join refuses it. The reason says what to change; nothing was
    /// changed in the cluster.
    #[error("this node cannot join: {address} says: {reason}")]
    JoinRefused {
        /// The node that was asked.
        address: String,
        /// The reason.
        reason: String,
    },
    /// The data directory belongs to a node that was removed from its cluster. Empty the directory
    /// to join again under a new id.
    #[error(
        "the data directory {} belonged to node {node}, which configuration {by} removed; empty it \
         to join again", dir.display()
    )]
    DirectoryRemoved {
        /// The data directory.
        dir: std::path::PathBuf,
        /// The node.
        node: u64,
        /// The configuration.
        by: String,
    },
    /// The state machine returned an error at its start, or its state does not fit the log. The
    /// reason says what to do.
    #[error("{0}")]
    StateMachine(StopReason),
    /// The log contains something that this version cannot process. Start the version that wrote
    /// it, or a newer one.
    #[error(transparent)]
    Log(#[from] ReplicaError),
    /// The node cannot listen on an address. Choose a free one of this machine.
    #[error(
        "cannot listen for {whom} on {address}: {source}; choose a free address of this machine"
    )]
    Bind {
        /// "peers" or "clients".
        whom: &'static str,
        /// The address.
        address: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The operating system could not start a thread, or a runtime for it. Check the limits of this
    /// process.
    #[error("a thread cannot be started: {0}; check the limits of this process")]
    Thread(std::io::Error),
    /// The operating system returned no random numbers. Start the node again.
    #[error("the operating system returned no random numbers: {0}; start the node again")]
    Entropy(String),
    /// The node stopped because of a failure, during its start or later ([`crate::Node::run`],
    /// [`crate::EmbeddedEngine::stopped`]). The reason says what to do.
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
    /// The caller is not inside a tokio runtime, or inside one without timers or sockets. Call from
    /// inside one with everything enabled.
    #[error(
        "there is no tokio runtime with timers and sockets here; start the node inside one, for \
         example under #[tokio::main] or with Builder::enable_all"
    )]
    NoRuntime,
}

impl From<StorageError> for StartError {
    /// A start does not wait for free space: a full disk becomes an ordinary I/O error here.
    fn from(error: StorageError) -> Self {
        Self::Storage(error.final_at_start())
    }
}

/// What an operator does about an error whose own text does not say it, because it also occurs in a
/// node that runs.
fn next_step(error: &StorageError) -> &'static str {
    match error {
        StorageError::Damaged { .. } | StorageError::DamagedFile { .. } => {
            "; run `d-engine repair --data-dir DIR` with this node's directory: it mends \
             the directory, or says what to do instead (docs/recovery.md)"
        }
        _ => "",
    }
}

/// Why [`crate::EmbeddedEngine::wait_ready`] failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The node was not ready in time. Check that a majority of the nodes is running and reachable,
    /// then wait again.
    #[error(
        "the node is not ready after {waited_ms} ms: no leader was found, or the log is still \
         being applied; check that a majority of the nodes is running and reachable"
    )]
    TimedOut {
        /// How long the call waited, in milliseconds.
        waited_ms: u128,
    },
    /// The node has caught up, but its state machine does not run: `StateMachine::is_running`
    /// returned `false`, or has not returned. Wait again, or check the state machine.
    #[error(
        "the node is not ready after {waited_ms} ms: its state machine reports that it is not \
         running, or does not answer"
    )]
    StateMachineDown {
        /// How long the call waited, in milliseconds.
        waited_ms: u128,
    },
    /// The node does not vote yet. Look at the members' list: it says how far the node lags.
    #[error(
        "the node does not vote after {waited_ms} ms: it is a learner, or does not keep up with \
         the log yet; list the members to see how far it lags"
    )]
    NoVoter {
        /// How long the call waited, in milliseconds.
        waited_ms: u128,
    },
    /// The node has stopped, or its state machine is halted at an entry. The reason says what to
    /// do.
    #[error("the node does not serve callers: {reason}")]
    Stopped {
        /// The reason.
        reason: StopReason,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_on_a_damaged_log_says_what_to_do() {
        let (segment, what) = ("1.log".to_owned(), "its checksum does not match".to_owned());
        let error = StartError::from(StorageError::Damaged { segment, offset: 512, what });
        let text = error.to_string();
        assert!(text.contains("1.log") && text.contains("512"), "{text}");
        assert!(text.contains("d-engine repair --data-dir"), "{text}");
    }
}
