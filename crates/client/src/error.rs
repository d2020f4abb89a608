//! The errors of calls. Every variant says what to do next.

use std::time::Duration;

use d_engine_api::message;

/// Why a call failed.
///
/// Only after [`ClientError::OutcomeUnknown`] may a command have taken effect. After every other
/// error it has not, and will not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// An address is invalid. Write it as `host:port`.
    #[error("{endpoint:?} is not a node's address: {reason}; write it as host:port")]
    BadEndpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nodes answer, but none of them led before the deadline. Not done. Retry later; if the error
    /// persists, a majority of the nodes is down or cut off: check the `status` of each.
    ///
    /// Also if the client knows several nodes and none of them answers: all are down, or they were
    /// removed from the cluster, and the client needs the address of a member.
    #[error(
        "no leader was found within {waited:?} (last tried: {endpoint}{}); retry, or check that a \
         majority of the nodes is running",
        silent_words(silent)
    )]
    NoLeader {
        /// How long the client searched.
        waited: Duration,
        /// The node that was tried last.
        endpoint: String,
        /// The addresses at which no member answered lately, each with the reason.
        silent: Vec<String>,
    },
    /// The node belongs to another cluster than the one that this client found first. Nothing was
    /// sent. Correct the addresses; for the other cluster, create a client of its own.
    #[error(
        "the node at {endpoint} belongs to cluster {found}, and this client to cluster {expected}; \
         correct the address"
    )]
    OtherCluster {
        /// The node.
        endpoint: String,
        /// The id of the client's cluster, in hexadecimal digits.
        expected: String,
        /// The id of the node's cluster.
        found: String,
    },
    /// The leader was too busy to accept the call before the deadline, or this client has as many
    /// calls in flight as [`ClientOptions::max_in_flight`](crate::ClientOptions::max_in_flight)
    /// allows. Not done. Retry later, with fewer concurrent calls.
    #[error("{endpoint} is busy ({what}); retry after a pause")]
    Busy {
        /// The node that refused, or "this client".
        endpoint: String,
        /// The bound that was reached.
        what: String,
    },
    /// Leadership was being transferred and no node led before the deadline. Not done. Retry after
    /// an election timeout.
    #[error(
        "the node at {endpoint} is transferring leadership{}; retry after an election timeout",
        to_node(*successor)
    )]
    TransferInProgress {
        /// The node that refused.
        endpoint: String,
        /// The node that is to lead.
        successor: Option<u64>,
    },
    /// The leader has not heard from the target lately and keeps its leadership, or the target did
    /// not take over in time; the reason says which. Check that the target runs and which node
    /// leads, then retry or choose another target.
    #[error("leadership was not transferred: {reason} (reported by {endpoint})")]
    TransferFailed {
        /// The node that reported it.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The command was sent and not answered: it may have taken effect, may still take effect, or
    /// may never. Read the state before you retry, unless the command may safely take effect twice.
    #[error("the outcome is unknown: {reason} ({endpoint}); read the state before you retry")]
    OutcomeUnknown {
        /// The node to which it was sent.
        endpoint: String,
        /// What happened to the call.
        reason: String,
    },
    /// The node has stopped, or its state machine has halted, and no other node accepted the call.
    /// Not done. Fix the cause and restart the node.
    #[error(
        "the node at {endpoint} does not serve callers: {reason}; fix the cause and restart the node"
    )]
    Stopped {
        /// The node.
        endpoint: String,
        /// Why it has stopped.
        reason: String,
    },
    /// The command or query is too long. Not done, and never will be at this size: send less, or
    /// raise `limits.max_command_bytes` on every node and
    /// [`ClientOptions::max_command_bytes`](crate::ClientOptions::max_command_bytes) here.
    #[error(
        "the command has {size} bytes{}; send less or raise limits.max_command_bytes",
        at_most(*limit)
    )]
    TooLarge {
        /// Its length in bytes.
        size: u64,
        /// The limit in bytes, if it is known.
        limit: Option<u64>,
    },
    /// The state machine does not accept the bytes as a command. Not done. Correct the command, or
    /// send it to the cluster that runs its state machine.
    #[error(
        "the state machine at {endpoint} refused the command: {reason}; correct it, or check that \
         this is the right cluster"
    )]
    Refused {
        /// The node.
        endpoint: String,
        /// The reason, from its state machine.
        reason: String,
    },
    /// Some voter's program does not decode commands of this version. Not done. Upgrade the named
    /// node, or start it if it is down, and retry; until then send commands up to version
    /// `allowed`.
    #[error("the node at {endpoint} does not accept the command yet: {reason}")]
    NewerCommand {
        /// The node.
        endpoint: String,
        /// The command's version.
        version: u32,
        /// The highest version that is accepted now.
        allowed: u32,
        /// The voter that allows no higher version.
        held_by: u64,
        /// The same as text, and what to do.
        reason: String,
    },
    /// The node or its state machine does not support the operation. Not done; do not retry.
    #[error("the node at {endpoint} does not support {operation}")]
    Unsupported {
        /// The node.
        endpoint: String,
        /// The operation.
        operation: String,
    },
    /// The request itself is invalid. Not done; correct it.
    #[error("the node at {endpoint} refused the request: {reason}")]
    Invalid {
        /// The node.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The node took no snapshot, and lost nothing. Fix the cause (often a full disk) and retry.
    #[error("the node at {endpoint} took no snapshot: {reason}")]
    SnapshotFailed {
        /// The node.
        endpoint: String,
        /// The reason, from the node.
        reason: String,
    },
    /// The members of the cluster are not changed. The reason says what to do first.
    #[error("the members are not changed: {reason} (reported by {endpoint})")]
    MembersNotChanged {
        /// The leader, which refused the change.
        endpoint: String,
        /// Why, for programs.
        refusal: ChangeRefusal,
        /// Why, and what to do.
        reason: String,
    },
    /// The state machine failed to serve a read. Check the node's log.
    #[error(
        "the state machine at {endpoint} could not serve the read: {reason}; check the node's log"
    )]
    StateMachineFailed {
        /// The node.
        endpoint: String,
        /// The reason, from the node.
        reason: String,
    },
    /// A node cannot be reached, and no other node accepted the call before the deadline. Not done.
    /// Check the address and that the node is running.
    #[error(
        "{endpoint} cannot be reached: {reason}; check the address and that the node is running"
    )]
    Unreachable {
        /// The node that was tried last.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// A read was not answered in time, or a command could not be sent in time. Not done. Retry, or
    /// allow more time.
    #[error(
        "no response from {endpoint} within {waited:?}; nothing was changed; retry or allow more time"
    )]
    DeadlineElapsed {
        /// How long the call waited.
        waited: Duration,
        /// The node that was called last.
        endpoint: String,
    },
}

fn silent_words(silent: &[String]) -> String {
    if silent.is_empty() { String::new() } else { format!("; silent: {}", silent.join(", ")) }
}

/// Why the members of a cluster are not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ChangeRefusal {
    /// The expected configuration is not the current one. List the members and decide again.
    Stale,
    /// Too few voters answer to commit the change. Bring them back or replace them first, or
    /// accept the risk.
    WouldLoseQuorum,
    /// The change breaks a rule, which the reason names.
    Rule,
}

impl From<message::ChangeRefusal> for ChangeRefusal {
    fn from(refusal: message::ChangeRefusal) -> Self {
        match refusal {
            message::ChangeRefusal::Stale => Self::Stale,
            message::ChangeRefusal::WouldLoseQuorum => Self::WouldLoseQuorum,
            message::ChangeRefusal::Unspecified => Self::Rule,
        }
    }
}

fn to_node(successor: Option<u64>) -> String {
    successor.map(|node| format!(" to node {node}")).unwrap_or_default()
}

fn at_most(limit: Option<u64>) -> String {
    limit.map(|limit| format!(", more than the limit of {limit}")).unwrap_or_default()
}
