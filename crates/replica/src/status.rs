//! What a replica can tell about itself.

use d_engine_core::CoreStatus;
use d_engine_storage::Membership;

use crate::{ApplyStop, StopReason};

/// A picture of a replica.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// The algorithm's state.
    pub core: CoreStatus,
    /// The last entry applied to the state machine.
    pub applied: u64,
    /// The membership in force.
    pub membership: Membership,
    /// Whether the node has caught up and can serve.
    pub ready: bool,
    /// What an operator must look at, a sentence each; empty when nothing is wrong.
    pub alarms: Vec<String>,
    /// Proof that some node has lost what it had acknowledged, a sentence each; also among the alarms.
    pub losses: Vec<String>,
    /// Where the state machine stands, if it does: nothing is applied here.
    pub apply_stop: Option<ApplyStop>,
    /// The highest version of a command that this node's program decodes.
    pub command_version_max: u32,
    /// On a leader: the highest version that it takes now.
    pub command_version_allowed: Option<u32>,
    /// Why the node has stopped, if it has.
    pub stopped: Option<StopReason>,
}
