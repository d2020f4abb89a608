//! What callers are told, and what refuses a start. Every variant says what to do next.

use std::fmt;
use std::sync::Arc;

use d_engine_core::NodeId;

/// Where the leader is, as far as this node knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaderHint {
    /// The leader.
    pub node: NodeId,
    /// The leader's address for clients; empty when it serves none.
    pub client_addr: String,
}

/// Why a node has stopped for good. Cloned into every handle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StopReason {
    text: Arc<str>,
    needs_newer_program: bool,
}

impl StopReason {
    /// A reason in words.
    #[must_use]
    pub fn new(reason: impl fmt::Display) -> Self {
        Self { text: Arc::from(reason.to_string()), needs_newer_program: false }
    }

    /// The same, where the program is older than what the log or a snapshot holds. Nothing is damaged, and nothing may
    /// be skipped: a newer program goes on.
    pub(crate) fn of_older_program(reason: impl fmt::Display) -> Self {
        Self { needs_newer_program: true, ..Self::new(reason) }
    }

    /// Whether the node stopped only because its program does not decode a committed command: a newer one goes on.
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
            "node {held_by} has not told this leader what its program decodes; start it if it is down, and retry when it is \
             connected"
        ),
    }
}

/// Why nobody knows whether a command takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownBecause {
    /// Another node leads now. The next leaders decide.
    #[error("leadership was lost while the command was in flight")]
    LeadershipLost,
    /// The command was proposed, and no answer came within the caller's deadline. It may still take effect.
    #[error("the deadline passed while the command was in flight")]
    DeadlinePassed,
    /// This node has stopped. The others decide.
    #[error("the node stopped while the command was in flight")]
    NodeStopped,
    /// The state machine of this node has stopped at this command or one before it. The other nodes may have applied it.
    #[error("the state machine of the node stopped while the command was in flight")]
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
    #[error("the node takes no more for now ({what}); retry after a pause")]
    Busy {
        /// The bound that was reached.
        what: &'static str,
    },
    /// The command was not proposed and never will be at this size.
    #[error("the command has {size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Bytes of the command.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The state machine takes these bytes for no command. It was not proposed; correct it.
    #[error(
        "the state machine refused the command before it was proposed: {reason}; correct the command, or send it to \
             the cluster that runs its state machine"
    )]
    Refused {
        /// What its `check` said.
        reason: Arc<str>,
    },
    /// Not every voter is known to decode commands of this version. The command was not proposed: upgrade or start the
    /// node that is named, and retry; until then send commands up to version `allowed`.
    #[error(
        "the command has version {version}, but only commands up to version {allowed} are taken for now: {}",
        holder_words(*held_by, *announced)
    )]
    NewerCommand {
        /// The command's version.
        version: u32,
        /// The highest version that is taken.
        allowed: u32,
        /// The voter that allows no higher one.
        held_by: NodeId,
        /// What that voter decodes; `None` if it has not told this leader.
        announced: Option<u32>,
    },
    /// The caller's deadline had passed before the command was proposed: it was not, and will not be.
    /// Retry with more patience, or send less at a time.
    #[error("the deadline had passed before the command was proposed; it has no effect")]
    Expired,
    /// The command was not proposed: this leader is handing leadership over. Retry at its successor.
    #[error("leadership is being handed over; {}", successor_words(successor.as_ref()))]
    TransferInProgress {
        /// Who is to lead.
        successor: Option<LeaderHint>,
    },
    /// The command may or may not take effect. Read the state before trying again, unless the command may safely
    /// take effect twice.
    #[error("the outcome is unknown: {why}; read the state before retrying")]
    OutcomeUnknown {
        /// What has happened.
        why: UnknownBecause,
    },
    /// The node has stopped and the command was not proposed. Use another node; restart this one after
    /// mending the reason. (Commands that were in flight when it stopped got `OutcomeUnknown`.)
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why a read barrier was not confirmed. Reads change nothing: every one may be retried.
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
    #[error("the node takes no more for now ({what}); retry after a pause")]
    Busy {
        /// The bound that was reached.
        what: &'static str,
    },
    /// The deadline passed before the read was confirmed. Retry with more patience; if it stays so, a majority of
    /// the nodes is down or cut off.
    #[error("the deadline passed before the read was confirmed")]
    Expired,
    /// The node has stopped. Use another node.
    #[error("the node has stopped: {reason}")]
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
    /// The state machine could not answer.
    #[error("the state machine could not answer: {0}")]
    StateMachine(String),
}

fn target_words(target: Option<u64>) -> String {
    target.map_or_else(|| "no other node".to_owned(), |target| format!("node {target}"))
}

fn leads_words(leader: Option<u64>) -> String {
    leader.map_or_else(|| "nobody leads now".to_owned(), |leader| format!("node {leader} leads now"))
}

/// Why leadership was not handed over. Nothing has changed, unless the error says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Ask the leader.
    #[error("this node is not the leader; {}", leader_words(leader.as_ref()))]
    NotLeader {
        /// Where to go.
        leader: Option<LeaderHint>,
    },
    /// Another transfer is on its way. Wait an election timeout and look who leads.
    #[error("leadership is being handed over already")]
    InProgress,
    /// Choose a voter other than the leader.
    #[error("leadership can be handed over only to another voter of this cluster")]
    NoTarget,
    /// The leader has not heard from the target lately, so it was not even tried. Start the target, or choose
    /// another one.
    #[error(
        "node {target} has not been heard from for {silent_ms} ms, so leadership stays; start that node or choose another"
    )]
    TargetSilent {
        /// The target.
        target: u64,
        /// For how long it has been silent.
        silent_ms: u64,
    },
    /// The target has not taken over in time. Is it running and reachable?
    #[error("{} has not taken over within {waited_ms} ms; {}", target_words(*target), leads_words(*leader))]
    TimedOut {
        /// The target, if one was named.
        target: Option<u64>,
        /// Who leads now, as far as this node knows.
        leader: Option<u64>,
        /// How long it was waited for.
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
    /// The entry must not be skipped, or not yet: the reason says why. Look at the status of the nodes: at which entry they
    /// stand, and what their state machines say of it.
    #[error("the entry is not skipped: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The node takes no more such requests for now. Retry after a pause.
    #[error("the node takes no more requests to skip an entry for now; retry after a pause")]
    Busy,
    /// It may or may not be skipped: this node no longer leads. Look at the status, and ask again.
    #[error("it is not known whether the entry is skipped; look at the nodes' status, and ask again")]
    OutcomeUnknown,
    /// The node has stopped. Ask another one.
    #[error("the node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why a received snapshot was not installed. The state is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// What is committed here reaches as far, or the sender no longer leads. Nothing is to be done.
    #[error("it is not newer than what is committed here, or its sender no longer leads")]
    Stale,
    /// Another one is being installed. Try again later.
    #[error("another snapshot is being installed; try again later")]
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
    #[error("the membership entry at index {index} cannot be read: {source}")]
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
