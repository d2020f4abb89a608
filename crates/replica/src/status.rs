//! The status of a replica.

use d_engine_core::CoreStatus;
use d_engine_storage::{ConfigId, Membership};

use crate::{ApplyStop, MissingVoters, StopReason};

/// The status of a replica at one moment.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// The state of the Raft core.
    pub core: CoreStatus,
    /// The last entry applied to the state machine.
    pub applied: u64,
    /// The membership in force.
    pub membership: Membership,
    /// The name of the last committed membership.
    pub committed_members: ConfigId,
    /// On a leader: the voters of which too few answer, so that intended changes of the members
    /// wait.
    pub changes_lack: Option<MissingVoters>,
    /// The committed configuration that has removed this node, if one has.
    pub removed: Option<ConfigId>,
    /// Whether the node has caught up with its leader and can serve.
    pub ready: bool,
    /// Problems that an operator must look into, one sentence each; empty if there are none.
    pub alarms: Vec<String>,
    /// Evidence that a node has lost entries that it had acknowledged, one sentence each. Each is
    /// also among the alarms.
    pub losses: Vec<String>,
    /// Where the state machine is halted, if it is; nothing is applied on this node then.
    pub apply_stop: Option<ApplyStop>,
    /// The highest command version that this node's program decodes.
    pub command_version_max: u32,
    /// On a leader: the highest command version that it accepts now. `None` on other nodes.
    pub command_version_allowed: Option<u32>,
    /// Why the node has stopped, if it has.
    pub stopped: Option<StopReason>,
}
