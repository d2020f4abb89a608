//! The errors of callers, and the reasons that refuse a start. Every variant says what to do next.

use std::fmt;
use std::sync::Arc;

use d_engine_core::NodeId;
use d_engine_storage::ConfigId;

/// Where the leader is, as far as this node knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaderHint {
    /// The leader.
    pub node: NodeId,
    /// The leader's address for clients; empty if it serves none.
    pub client_addr: String,
}

/// Why a node has stopped permanently. Cloned into every handle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StopReason {
    text: Arc<str>,
    needs_newer_program: bool,
    removed: bool,
    lacks_room: bool,
}

impl StopReason {
    /// A reason in words.
    #[must_use]
    pub fn new(reason: impl fmt::Display) -> Self {
        let text = Arc::from(reason.to_string());
        Self { text, needs_newer_program: false, removed: false, lacks_room: false }
    }

    /// As [`StopReason::new`], if the program is older than the content of the log or a snapshot.
    /// Nothing is damaged, and no entry may be skipped: start a newer program.
    pub(crate) fn of_older_program(reason: impl fmt::Display) -> Self {
        Self { needs_newer_program: true, ..Self::new(reason) }
    }

    /// As [`StopReason::new`], if the same call may succeed once there is space on the disk.
    pub(crate) fn of_full_disk(reason: impl fmt::Display) -> Self {
        Self { lacks_room: true, ..Self::new(reason) }
    }

    pub(crate) fn lacks_room(&self) -> bool {
        self.lacks_room
    }

    /// The node was removed from its cluster.
    #[must_use]
    pub fn removed(node: NodeId, by: ConfigId) -> Self {
        let text = format!(
            "node {node} was removed by configuration {by}; to join again, start it with an empty \
             data directory"
        );
        Self { removed: true, ..Self::new(text) }
    }

    /// Whether the node stopped because it was removed from its cluster: do not start it again on
    /// its data directory.
    #[must_use]
    pub fn was_removed(&self) -> bool {
        self.removed
    }

    /// Whether the node stopped only because its program does not decode a committed command: start
    /// a newer program.
    #[must_use]
    pub fn needs_newer_program(&self) -> bool {
        self.needs_newer_program
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn leader_words(leader: Option<&LeaderHint>) -> String {
    match leader {
        Some(hint) if hint.client_addr.is_empty() => format!("the leader is node {}", hint.node),
        Some(hint) => format!("the leader is node {} at {}", hint.node, hint.client_addr),
        None => "no leader is known yet: retry after an election timeout".to_owned(),
    }
}

fn successor_words(successor: Option<&LeaderHint>) -> String {
    match successor {
        Some(hint) if hint.client_addr.is_empty() => format!("retry at node {}", hint.node),
        Some(hint) => format!("retry at node {} at {}", hint.node, hint.client_addr),
        None => "retry after an election timeout".to_owned(),
    }
}

fn holder_words(held_by: NodeId, announced: Option<u32>) -> String {
    match announced {
        Some(version) => format!(
            "the program of node {held_by} decodes no command above version {version}; start a newer program there, and retry"
        ),
        None => format!(
            "node {held_by} has not announced to this leader what its program decodes; start it if it is down, and retry \
             when it is connected"
        ),
    }
}

/// Why it is unknown whether a command takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownBecause {
    /// Another node leads now. The command takes effect if a later leader has its entry.
    #[error("leadership was lost while the command was in flight")]
    LeadershipLost,
    /// The command was proposed, and no reply came within the caller's deadline. It may still take
    /// effect.
    #[error("the deadline passed while the command was in flight")]
    DeadlinePassed,
    /// This node has stopped. The command takes effect if the other nodes commit it.
    #[error("the node stopped while the command was in flight")]
    NodeStopped,
    /// This node's state machine is halted at this command or an earlier one. The other nodes may
    /// have applied it.
    #[error("the state machine of the node halted while the command was in flight")]
    StateMachineStopped,
}

/// The outcome of a proposal that was not answered by the state machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The command was not proposed. Retry at the leader.
    #[error("this node is not the leader; {}", leader_words(leader.as_ref()))]
    NotLeader {
        /// Where to go.
        leader: Option<LeaderHint>,
    },
    /// The command was not proposed. Retry here after a pause.
    #[error("the node is busy ({what}); retry after a pause")]
    Busy {
        /// The bound that was reached.
        what: &'static str,
    },
    /// The command was not proposed and never will be at this size.
    #[error(
        "the command has {size} bytes; at most {limit} are allowed: send less, or raise \
         limits.max_command_bytes on every node"
    )]
    TooLarge {
        /// Bytes of the command.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The state machine's `check` refuses these bytes. The command was not proposed; correct it.
    #[error(
        "the state machine refused the command before it was proposed: {reason}; correct the command, or send it to \
         the cluster that runs its state machine"
    )]
    Refused {
        /// The text of its `check`.
        reason: Arc<str>,
    },
    /// Not every voter is known to decode commands of this version. The command was not proposed:
    /// upgrade or start the named node and retry; until then send commands up to version `allowed`.
    #[error(
        "the command has version {version}, but only commands up to version {allowed} are accepted for now: {}",
        holder_words(*held_by, *announced)
    )]
    NewerCommand {
        /// The command's version.
        version: u32,
        /// The highest version that is accepted.
        allowed: u32,
        /// The voter that allows no higher one.
        held_by: NodeId,
        /// What that voter decodes; `None` if it has announced nothing to this leader.
        announced: Option<u32>,
    },
    /// The caller's deadline passed before the command was proposed, so it will not be. Retry with
    /// a longer timeout, or send less at a time.
    #[error(
        "the deadline passed before the command was proposed, so it has no effect; allow more time, \
         or send less at a time"
    )]
    Expired,
    /// The command was not proposed: this leader is transferring its leadership. Retry at its
    /// successor.
    #[error("leadership is being transferred; {}", successor_words(successor.as_ref()))]
    TransferInProgress {
        /// The successor.
        successor: Option<LeaderHint>,
    },
    /// The command may or may not take effect. Read the state before you retry, unless the command
    /// may safely take effect twice.
    #[error("the outcome is unknown: {why}; read the state before retrying")]
    OutcomeUnknown {
        /// What has happened.
        why: UnknownBecause,
    },
    /// The node has stopped, or its state machine is halted, and the command was not proposed. Use
    /// another node; remove the cause and restart this one. (Commands in flight at that moment
    /// received `OutcomeUnknown`.)
    #[error("the node does not serve callers: {reason}; use another node")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why a read barrier was not confirmed. Reads change nothing: each may be retried.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Retry at the leader.
    #[error("this node is not the leader; {}", leader_words(leader.as_ref()))]
    NotLeader {
        /// Where to go.
        leader: Option<LeaderHint>,
    },
    /// Retry here after a pause.
    #[error("the node is busy ({what}); retry after a pause")]
    Busy {
        /// The bound that was reached.
        what: &'static str,
    },
    /// The deadline passed before the read was confirmed. Retry with a longer timeout; if it
    /// persists, a majority of the nodes is down or unreachable.
    #[error(
        "the deadline passed before the read was confirmed; retry with more time, or check that a \
         majority of the nodes is running"
    )]
    Expired,
    /// The node has stopped, or its state machine is halted. Use another node.
    #[error("the node does not serve callers: {reason}; use another node")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// The state machine does not offer this; do not retry.
    #[error("this state machine does not support `{operation}`")]
    Unsupported {
        /// What was asked.
        operation: &'static str,
    },
    /// The state machine returned an error.
    #[error("the state machine could not answer: {0}")]
    StateMachine(String),
}

fn target_words(target: Option<u64>) -> String {
    target.map_or_else(
        || "no other node has taken over".to_owned(),
        |target| format!("node {target} has not taken over"),
    )
}

fn leads_words(leader: Option<u64>) -> String {
    leader
        .map_or_else(|| "no node leads now".to_owned(), |leader| format!("node {leader} leads now"))
}

/// Why leadership was not transferred. Nothing has changed, unless the error says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Ask the leader.
    #[error("this node is not the leader; {}", leader_words(leader.as_ref()))]
    NotLeader {
        /// Where to go.
        leader: Option<LeaderHint>,
    },
    /// Another transfer is in progress. Wait an election timeout and check which node leads.
    #[error(
        "another leadership transfer is in progress; check after an election timeout which node leads"
    )]
    InProgress,
    /// Choose a voter other than the leader.
    #[error(
        "leadership can be transferred only to another voter of this cluster; choose one that does \
         not lead"
    )]
    NoTarget,
    /// The leader has not heard from the target recently, so the transfer was not begun. Start the
    /// target, or choose another one.
    #[error(
        "the leader has not heard from node {target} for {silent_ms} ms and keeps its leadership; start that node or \
         choose another"
    )]
    TargetSilent {
        /// The target.
        target: u64,
        /// How long it has been silent.
        silent_ms: u64,
    },
    /// The target did not take over in time. Check whether it is running and reachable.
    #[error(
        "{} within {waited_ms} ms; {}; check that the target is running and reachable, and retry",
        target_words(*target), leads_words(*leader)
    )]
    TimedOut {
        /// The target, if one was named.
        target: Option<u64>,
        /// The present leader, as far as this node knows.
        leader: Option<u64>,
        /// How long the node waited.
        waited_ms: u64,
    },
    /// The node has stopped. Ask another one.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why an entry is not skipped. Nothing has changed, unless the error says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipError {
    /// Ask the leader.
    #[error("this node is not the leader; {}", leader_words(leader.as_ref()))]
    NotLeader {
        /// Where to go.
        leader: Option<LeaderHint>,
    },
    /// The entry may not be skipped, or not yet; the reason says why. Check in the status of the
    /// nodes at which entry each is halted, and the error of its state machine.
    #[error("the entry is not skipped: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The node accepts no more such requests for now. Retry after a pause.
    #[error(
        "the node accepts no request to skip an entry for now: too many wait, or its disk is full; \
         retry after a pause"
    )]
    Busy,
    /// The entry may or may not be skipped: this node no longer leads. Check the status, and retry.
    #[error(
        "it is not known whether the entry is skipped; check the status of the nodes, and repeat the \
         request"
    )]
    OutcomeUnknown,
    /// The node has stopped. Ask another one.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why a received snapshot was not installed. The state is unchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The commit index of this node is at least as high, or the sender no longer leads. Nothing
    /// needs to be done.
    #[error("the snapshot is not newer than what is committed here, or its sender no longer leads")]
    Stale,
    /// Another one is being installed. Retry later.
    #[error("another snapshot is being installed; retry later")]
    Busy,
    /// The node has stopped.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why a recovered log cannot be driven. Restore the directory or use a newer program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// A membership entry in the log cannot be read.
    #[error(
        "the membership entry at index {index} cannot be read: {source}; start the program that \
         wrote it, or a newer one"
    )]
    Membership {
        /// The entry.
        index: u64,
        /// What is wrong with it.
        source: d_engine_storage::MembershipError,
    },
    /// The settings contradict each other.
    #[error("{0}")]
    Config(#[from] d_engine_core::CoreConfigError),
}

/// Why no snapshot was taken. The state and the existing snapshots are unchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRequestError {
    /// The snapshot failed. Correct the cause that the reason names, then request it again.
    #[error("the snapshot failed: {reason}")]
    Failed {
        /// The reason.
        reason: StopReason,
    },
    /// Too many callers are waiting already. Retry after a pause.
    #[error("too many callers are waiting for a snapshot already; retry after a pause")]
    Busy,
    /// The node has stopped. Call another one.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// The reason.
        reason: StopReason,
    },
}
