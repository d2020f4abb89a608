//! What a driver may ask a replica.

use d_engine_core::{LogIndex, NodeId, RaftCore};
use d_engine_storage::Membership;

use super::Replica;
use crate::{ApplyStop, LeaderHint, LogDisk, ReplicaStatus, StopReason};

impl Replica {
    /// Free bytes on the log's disk below which commands are refused.
    #[must_use]
    pub fn min_free_bytes(&self) -> u64 {
        self.config.min_free_bytes
    }

    /// Whether this node has caught up with its leader and has applied everything that it knows to
    /// be committed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stopped.is_none()
            && self.apply.stop().is_none()
            && self.core.is_caught_up()
            && self.core.log().committed <= self.apply.applied()
    }

    /// Whether any caller waits for a reply.
    #[must_use]
    pub fn has_callers(&self) -> bool {
        self.callers() != (0, 0)
    }

    /// The number of callers that wait for commands, and of those that wait for reads.
    #[must_use]
    pub fn callers(&self) -> (usize, usize) {
        (self.proposals.len(), self.reads.len())
    }

    /// The Raft core, read-only.
    #[must_use]
    pub fn core(&self) -> &RaftCore {
        &self.core
    }

    /// The last entry that the apply worker has reported as applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.apply.applied()
    }

    /// The number of members whose incarnation is bound in the membership.
    #[must_use]
    pub fn bound_incarnations(&self) -> usize {
        self.members
            .current()
            .members()
            .iter()
            .filter(|member| member.incarnation.is_some())
            .count()
    }

    /// The state of the log's disk, as last reported by the log worker.
    #[must_use]
    pub fn log_disk(&self) -> LogDisk {
        self.log_disk
    }

    /// The membership in force.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.members.current()
    }

    /// The leader and its client address, if known.
    #[must_use]
    pub fn leader_hint(&self) -> Option<LeaderHint> {
        self.core.leader().map(|node| self.hint(node))
    }

    pub(crate) fn hint(&self, node: NodeId) -> LeaderHint {
        let client_addr =
            self.members.current().member(node).map(|m| m.client_addr.clone()).unwrap_or_default();
        LeaderHint { node, client_addr }
    }

    /// Where the state machine is halted, if it is. This node then applies nothing and serves no
    /// reads or commands.
    #[must_use]
    pub fn apply_stop(&self) -> Option<&ApplyStop> {
        self.apply.stop()
    }

    /// Why this replica has stopped, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<&StopReason> {
        self.stopped.as_ref()
    }

    /// The status of the replica now.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            core: self.core.status(),
            applied: self.apply.applied().get(),
            membership: self.members.current().clone(),
            committed_members: self.committed_members,
            changes_lack: self.membership_driver.lacks.clone(),
            removed: self.removed,
            ready: self.is_ready(),
            alarms: self.alarms(),
            losses: self.losses(),
            apply_stop: self.apply.stop().cloned(),
            command_version_max: self.core.command_version_max(),
            command_version_allowed: self.command_version_allowed(),
            stopped: self.stopped.clone(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn contradiction(&self) -> Option<&str> {
        self.contradiction.as_deref()
    }
}
