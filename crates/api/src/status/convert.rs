//! The status as a message, and back. Every conversion takes its input apart field by field, so
//! that a field that is added later cannot be forgotten here.

use std::time::Duration;

use super::{NodeRole, NodeStatus, ReceivingSnapshot, SendingSnapshot, SnapshotStatus};
use crate::message::{
    self, EntryId, Role, SnapshotReceiving, SnapshotSending, SnapshotState, StatusReply,
};
use crate::{ConfigId, Member};

impl From<NodeStatus> for StatusReply {
    #[allow(clippy::too_many_lines, reason = "two lines for each field")]
    fn from(status: NodeStatus) -> Self {
        let NodeStatus {
            node,
            cluster_id,
            group,
            incarnation,
            role,
            term,
            leader,
            commit_index,
            applied_index,
            persisted_index,
            last_index,
            members,
            config,
            removed_by,
            stopped,
            apply_stopped,
            halted_at,
            refusals,
            alarms,
            losses,
            lease_revoked,
            command_version_max,
            command_version_allowed,
            late_replies,
            ready,
            state_machine_running,
            records,
            version,
            log_syncs,
            log_bytes_written,
            log_bytes_on_disk,
            snapshots,
        } = status;
        Self {
            node,
            cluster_id: cluster_id.into(),
            group,
            incarnation: incarnation.into(),
            role: Role::from(role).into(),
            term,
            leader: leader.unwrap_or(0),
            commit_index,
            applied_index,
            persisted_index,
            last_index,
            members: members.into_iter().map(message::Member::from).collect(),
            config: Some(config.into()),
            removed_by: removed_by.map(message::ConfigId::from),
            stopped: stopped.unwrap_or_default(),
            apply_stopped: apply_stopped.unwrap_or_default(),
            halted_at,
            refusals,
            alarms,
            losses,
            lease_revoked,
            command_version_max,
            command_version_allowed,
            late_replies,
            ready,
            state_machine_running,
            records,
            version,
            log_syncs,
            log_bytes_written,
            log_bytes_on_disk,
            snapshots: Some(snapshots.into()),
        }
    }
}

impl From<StatusReply> for NodeStatus {
    #[allow(clippy::too_many_lines, reason = "two lines for each field")]
    fn from(reply: StatusReply) -> Self {
        let StatusReply {
            node,
            cluster_id,
            group,
            incarnation,
            role,
            term,
            leader,
            commit_index,
            applied_index,
            persisted_index,
            last_index,
            members,
            config,
            removed_by,
            stopped,
            apply_stopped,
            halted_at,
            refusals,
            alarms,
            losses,
            lease_revoked,
            command_version_max,
            command_version_allowed,
            late_replies,
            ready,
            state_machine_running,
            records,
            version,
            log_syncs,
            log_bytes_written,
            log_bytes_on_disk,
            snapshots,
        } = reply;
        Self {
            node,
            cluster_id: cluster_id.to_vec(),
            group,
            incarnation: incarnation.to_vec(),
            role: Role::try_from(role).unwrap_or_default().into(),
            term,
            leader: some_number(leader),
            commit_index,
            applied_index,
            persisted_index,
            last_index,
            members: members.into_iter().map(Member::from).collect(),
            config: config.unwrap_or_default().into(),
            removed_by: removed_by.map(ConfigId::from),
            stopped: some_text(stopped),
            apply_stopped: some_text(apply_stopped),
            halted_at,
            refusals,
            alarms,
            losses,
            lease_revoked,
            command_version_max,
            command_version_allowed,
            late_replies,
            ready,
            state_machine_running,
            records,
            version,
            log_syncs,
            log_bytes_written,
            log_bytes_on_disk,
            snapshots: snapshots.unwrap_or_default().into(),
        }
    }
}

impl From<NodeRole> for Role {
    fn from(role: NodeRole) -> Self {
        match role {
            NodeRole::Follower => Self::Follower,
            NodeRole::PreCandidate => Self::PreCandidate,
            NodeRole::Candidate => Self::Candidate,
            NodeRole::Leader => Self::Leader,
            NodeRole::Learner => Self::Learner,
            NodeRole::Unknown => Self::Unspecified,
        }
    }
}

impl From<Role> for NodeRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Follower => Self::Follower,
            Role::PreCandidate => Self::PreCandidate,
            Role::Candidate => Self::Candidate,
            Role::Leader => Self::Leader,
            Role::Learner => Self::Learner,
            Role::Unspecified => Self::Unknown,
        }
    }
}

impl From<SnapshotStatus> for SnapshotState {
    fn from(status: SnapshotStatus) -> Self {
        let SnapshotStatus {
            newest,
            newest_bytes,
            count,
            disk_bytes,
            building,
            built,
            failed,
            last_failure,
            pause,
            bytes_since,
            overdue,
            sending,
            receiving,
        } = status;
        Self {
            newest_index: newest.map_or(0, |newest| newest.index),
            newest_term: newest.map_or(0, |newest| newest.term),
            newest_bytes,
            count,
            disk_bytes,
            is_building: building.is_some(),
            building_bytes: building.unwrap_or(0),
            built,
            failed,
            last_failure: last_failure.unwrap_or_default(),
            pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
            bytes_since,
            overdue,
            sending: sending.into_iter().map(SnapshotSending::from).collect(),
            receiving: receiving.map(SnapshotReceiving::from),
        }
    }
}

impl From<SnapshotState> for SnapshotStatus {
    fn from(state: SnapshotState) -> Self {
        let SnapshotState {
            newest_index,
            newest_term,
            newest_bytes,
            count,
            disk_bytes,
            is_building,
            building_bytes,
            built,
            failed,
            last_failure,
            pause_us,
            bytes_since,
            overdue,
            sending,
            receiving,
        } = state;
        Self {
            newest: some_number(newest_index).map(|index| EntryId { term: newest_term, index }),
            newest_bytes,
            count,
            disk_bytes,
            building: is_building.then_some(building_bytes),
            built,
            failed,
            last_failure: some_text(last_failure),
            pause: Duration::from_micros(pause_us),
            bytes_since,
            overdue,
            sending: sending.into_iter().map(SendingSnapshot::from).collect(),
            receiving: receiving.map(ReceivingSnapshot::from),
        }
    }
}

impl From<SendingSnapshot> for SnapshotSending {
    fn from(sending: SendingSnapshot) -> Self {
        let SendingSnapshot {
            to,
            index,
            confirmed,
            bytes,
            resumed_at,
            is_installing,
            failures,
            last_failure,
        } = sending;
        let (index, last_failure) = (index.unwrap_or(0), last_failure.unwrap_or_default());
        Self { to, index, confirmed, bytes, resumed_at, is_installing, failures, last_failure }
    }
}

impl From<SnapshotSending> for SendingSnapshot {
    fn from(sending: SnapshotSending) -> Self {
        let SnapshotSending {
            to,
            index,
            confirmed,
            bytes,
            resumed_at,
            is_installing,
            failures,
            last_failure,
        } = sending;
        let (index, last_failure) = (some_number(index), some_text(last_failure));
        Self { to, index, confirmed, bytes, resumed_at, is_installing, failures, last_failure }
    }
}

impl From<ReceivingSnapshot> for SnapshotReceiving {
    fn from(receiving: ReceivingSnapshot) -> Self {
        let ReceivingSnapshot { from, index, received, bytes, is_installing } = receiving;
        Self { from, index, received, bytes, is_installing }
    }
}

impl From<SnapshotReceiving> for ReceivingSnapshot {
    fn from(receiving: SnapshotReceiving) -> Self {
        let SnapshotReceiving { from, index, received, bytes, is_installing } = receiving;
        Self { from, index, received, bytes, is_installing }
    }
}

/// Ids and log indexes begin at 1; in a message, 0 means none.
fn some_number(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}

/// In a message, an empty text means none.
fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::MemberRole;

    fn through_a_message(status: &NodeStatus) -> NodeStatus {
        let encoded = StatusReply::from(status.clone()).encode_to_vec();
        StatusReply::decode(encoded.as_slice()).unwrap_or_default().into()
    }

    /// Every field has a value of its own, so that no two are confused.
    fn status() -> NodeStatus {
        let text = |text: &str| text.to_owned();
        let members = vec![
            Member {
                node: 1,
                peer_addr: text("n1:1"),
                client_addr: Some(text("n1:2")),
                role: MemberRole::Voter,
                heard_ms_ago: None,
                lag: None,
                votes_next: true,
            },
            Member {
                node: 2,
                peer_addr: text("n2:1"),
                client_addr: None,
                role: MemberRole::Learner,
                heard_ms_ago: Some(70),
                lag: Some(71),
                votes_next: false,
            },
        ];
        NodeStatus {
            node: 1,
            cluster_id: vec![7; 16],
            group: 73,
            incarnation: vec![74; 16],
            role: NodeRole::Leader,
            term: 2,
            leader: Some(3),
            commit_index: 4,
            applied_index: 5,
            persisted_index: 6,
            last_index: 8,
            members,
            config: ConfigId { term: 72, version: 73 },
            removed_by: Some(ConfigId { term: 74, version: 75 }),
            stopped: Some(text("stopped")),
            apply_stopped: Some(text("halted")),
            halted_at: Some(EntryId { term: 9, index: 10 }),
            refusals: vec![text("refusal")],
            alarms: vec![text("alarm"), text("another")],
            losses: vec![text("loss")],
            lease_revoked: true,
            command_version_max: 11,
            command_version_allowed: Some(12),
            late_replies: 13,
            ready: true,
            state_machine_running: true,
            records: Some(0),
            version: text("0.1.0"),
            log_syncs: 14,
            log_bytes_written: 15,
            log_bytes_on_disk: 16,
            snapshots: snapshots(),
        }
    }

    fn snapshots() -> SnapshotStatus {
        SnapshotStatus {
            newest: Some(EntryId { term: 17, index: 18 }),
            newest_bytes: 19,
            count: 20,
            disk_bytes: 21,
            building: Some(0),
            built: 22,
            failed: 23,
            last_failure: Some("no space".to_owned()),
            pause: Duration::from_micros(24),
            bytes_since: 25,
            overdue: true,
            sending: vec![
                SendingSnapshot {
                    to: 26,
                    index: Some(27),
                    confirmed: 28,
                    bytes: 29,
                    resumed_at: 30,
                    is_installing: true,
                    failures: 31,
                    last_failure: Some("lost".to_owned()),
                },
                SendingSnapshot { to: 32, ..SendingSnapshot::default() },
            ],
            receiving: Some(ReceivingSnapshot {
                from: 33,
                index: 34,
                received: 35,
                bytes: 36,
                is_installing: true,
            }),
        }
    }

    #[test]
    fn a_status_survives_the_way_through_a_message() {
        assert_eq!(through_a_message(&status()), status());
        assert_eq!(through_a_message(&NodeStatus::default()), NodeStatus::default());
    }

    #[test]
    fn every_role_survives_the_way_through_a_message() {
        for role in [
            NodeRole::Follower,
            NodeRole::PreCandidate,
            NodeRole::Candidate,
            NodeRole::Leader,
            NodeRole::Learner,
            NodeRole::Unknown,
        ] {
            let status = NodeStatus { role, ..NodeStatus::default() };
            assert_eq!(through_a_message(&status).role, role);
        }
        let newer = StatusReply { role: 99, ..StatusReply::default() };
        assert_eq!(NodeStatus::from(newer).role, NodeRole::Unknown);
    }
}
