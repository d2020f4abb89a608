//! What callers are told. Every variant says what to do next.

use std::time::Duration;

/// Why a call has no answer.
///
/// Only [`ClientError::OutcomeUnknown`] leaves open whether a command takes effect. After every other
/// error it certainly does not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// An address that cannot be used. Write it as `host:port`.
    #[error("{endpoint:?} is no address of a node: {reason}; write it as host:port")]
    BadEndpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nodes answer, but none of them led until the deadline. Not done. Retry later; if it stays so, a
    /// majority of the nodes is down or cut off: look at `status` of each.
    #[error(
        "no leader was found within {waited:?} (asked last: {endpoint}); retry, or check that a majority of the nodes runs"
    )]
    NoLeader {
        /// How long it was searched for.
        waited: Duration,
        /// The node asked last.
        endpoint: String,
    },
    /// The leader was too busy to take the call until the deadline, or this client has as many calls in
    /// flight as [`ClientOptions::max_in_flight`](crate::ClientOptions::max_in_flight) allows. Not done. Retry
    /// later, with fewer calls at once.
    #[error("{endpoint} takes no more for now ({what}); retry after a pause")]
    Busy {
        /// Who said so.
        endpoint: String,
        /// The bound that was reached.
        what: String,
    },
    /// Leadership is being handed over, and nobody led until the deadline. Not done. Retry after an election timeout.
    #[error(
        "the node at {endpoint} is handing leadership over{}; retry after an election timeout", to_node(*successor)
    )]
    TransferInProgress {
        /// Who said so.
        endpoint: String,
        /// Who is to lead.
        successor: Option<u64>,
    },
    /// Leadership was not handed over; the reason says who leads.
    #[error("leadership was not handed over: {reason} (asked {endpoint})")]
    TransferFailed {
        /// Who said so.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The command was sent and not answered: it may have taken effect, may still do so, or may never.
    /// Read the state before trying again, unless the command may safely take effect twice.
    #[error("the outcome is unknown: {reason} ({endpoint}); read the state before trying again")]
    OutcomeUnknown {
        /// Where it was sent.
        endpoint: String,
        /// What happened to the call.
        reason: String,
    },
    /// The node has stopped for good, and no other one took the call. Not done. Mend the reason, restart
    /// the node.
    #[error("the node at {endpoint} has stopped: {reason}; restart it after mending the reason")]
    Stopped {
        /// The node.
        endpoint: String,
        /// Why it has stopped.
        reason: String,
    },
    /// The command or question is too long. Not done, and never will be at this size: send less, or raise
    /// `limits.max_command_bytes` on every node and
    /// [`ClientOptions::max_command_bytes`](crate::ClientOptions::max_command_bytes) here.
    #[error("the command has {size} bytes{}; send less or raise limits.max_command_bytes", at_most(*limit))]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// The bytes that are taken, if it is known.
        limit: Option<u64>,
    },
    /// The cluster's state machine takes the bytes for no command. Not done. Correct the command, or send it to the
    /// cluster that runs its state machine.
    #[error(
        "the state machine at {endpoint} refused the command: {reason}; correct it, or check that this is the right \
             cluster"
    )]
    Refused {
        /// The node.
        endpoint: String,
        /// What its state machine said.
        reason: String,
    },
    /// Not every voter's program decodes commands of this version. Not done. Start a newer program on the node that is
    /// named, or start that node if it is down, and retry; until then send commands up to version `allowed`.
    #[error("the node at {endpoint} does not take the command yet: {reason}")]
    NewerCommand {
        /// The node.
        endpoint: String,
        /// The command's version.
        version: u32,
        /// The highest version that is taken for now.
        allowed: u32,
        /// The voter that allows no higher one.
        held_by: u64,
        /// The same in words, and what to do.
        reason: String,
    },
    /// The node or its state machine does not offer this. Not done; do not retry.
    #[error("the node at {endpoint} does not offer {operation}")]
    Unsupported {
        /// The node.
        endpoint: String,
        /// What was asked for.
        operation: String,
    },
    /// The request itself is wrong. Not done; correct it.
    #[error("the node at {endpoint} refused the request: {reason}")]
    Invalid {
        /// The node.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The node took no snapshot. It lost nothing; mend the reason (often a full disk) and ask again.
    #[error("the node at {endpoint} took no snapshot: {reason}")]
    SnapshotFailed {
        /// The node.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// The state machine could not answer a read. Look at the node's log.
    #[error("the state machine at {endpoint} could not answer: {reason}")]
    StateMachineFailed {
        /// The node.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// A node cannot be reached, and no other one took the call until the deadline. Not done. Check the
    /// address and that the node runs.
    #[error("{endpoint} cannot be reached: {reason}; check the address and that the node runs")]
    Unreachable {
        /// The node tried last.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// A read was not answered in time, or a command could not be sent in time. Not done. Retry, or allow
    /// more time.
    #[error("no answer from {endpoint} within {waited:?}; nothing was changed; retry or allow more time")]
    DeadlineElapsed {
        /// The time that the call had.
        waited: Duration,
        /// The node that was being asked.
        endpoint: String,
    },
}

fn to_node(successor: Option<u64>) -> String {
    successor.map(|node| format!(" to node {node}")).unwrap_or_default()
}

fn at_most(limit: Option<u64>) -> String {
    limit.map(|limit| format!(", at most {limit} are taken")).unwrap_or_default()
}
