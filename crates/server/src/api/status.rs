//! A node's status in its wire form.

use d_engine_core::RoleKind;
use d_engine_proto::client::{
    EntryId, Member, MemberRole as WireMemberRole, Role, SnapshotReceiving, SnapshotSending, SnapshotState,
    StatusReply,
};
use d_engine_storage::MemberRole;

use crate::{NodeStatus, SnapshotStatus};

/// A node's status in its wire form.
pub(super) fn reply(status: NodeStatus) -> StatusReply {
    let mut reply = StatusReply {
        node: status.identity.node.get(),
        cluster_id: status.identity.cluster.0.to_vec().into(),
        stopped_reason: status.stopped.map(|reason| reason.to_string()).unwrap_or_default(),
        ready: status.ready,
        state_machine_running: status.state_machine_running,
        state_machine_len: status.state_machine_len.map(|len| len as u64),
        late_replies: status.late_replies,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        log_syncs: status.log.syncs,
        log_bytes_written: status.log.bytes_written,
        log_bytes_on_disk: status.log.log_bytes,
        alarms: status.snapshots.alarms.clone(),
        snapshots: Some(snapshots(status.snapshots)),
        refusals: status.refusals,
        ..StatusReply::default()
    };
    let Some(replica) = status.replica else { return reply };
    let core = replica.core;
    let is_voter = core.configuration.is_voter(core.node);
    let role = match core.role {
        RoleKind::Follower if !is_voter => Role::Learner,
        RoleKind::Follower => Role::Follower,
        RoleKind::PreCandidate => Role::PreCandidate,
        RoleKind::Candidate => Role::Candidate,
        RoleKind::Leader => Role::Leader,
    };
    reply.set_role(role);
    reply.term = core.term.get();
    reply.leader = core.leader.map_or(0, d_engine_core::NodeId::get);
    reply.commit_index = core.log.committed.get();
    reply.applied_index = replica.applied;
    reply.persisted_index = core.log.persisted.get();
    reply.last_index = core.log.last.index.get();
    reply.alarms.extend(replica.alarms);
    if let Some(stop) = replica.apply_stop {
        reply.stands_at = stop.stands_at().map(|at| EntryId { term: at.term, index: at.index });
        reply.apply_stopped = stop.reason.to_string();
    }
    reply.losses = replica.losses;
    reply.lease_revoked = core.lease_revoked;
    reply.command_version_max = replica.command_version_max;
    reply.command_version_allowed = replica.command_version_allowed;
    reply.members = replica.membership.members().iter().map(member).collect();
    reply
}

fn member(member: &d_engine_storage::Member) -> Member {
    let role = match member.role {
        MemberRole::Voter => WireMemberRole::Voter,
        MemberRole::Learner => WireMemberRole::Learner,
    };
    Member {
        node: member.node,
        peer_addr: member.peer_addr.clone(),
        client_addr: member.client_addr.clone(),
        role: role.into(),
    }
}

fn snapshots(status: SnapshotStatus) -> SnapshotState {
    SnapshotState {
        newest_index: status.newest.map_or(0, |label| label.index),
        newest_term: status.newest.map_or(0, |label| label.term),
        newest_bytes: status.newest_bytes,
        count: status.count as u64,
        disk_bytes: status.disk_bytes,
        is_building: status.building.is_some(),
        building_bytes: status.building.unwrap_or(0),
        built: status.built,
        failed: status.failed,
        last_failure: status.last_failure.unwrap_or_default(),
        pause_us: u64::try_from(status.pause.as_micros()).unwrap_or(u64::MAX),
        bytes_since: status.bytes_since,
        overdue: status.overdue,
        sending: status.sending.into_iter().map(sending).collect(),
        receiving: status.receiving.map(receiving),
    }
}

fn sending(sending: crate::SendingSnapshot) -> SnapshotSending {
    SnapshotSending {
        to: sending.to,
        index: sending.label,
        confirmed: sending.confirmed,
        bytes: sending.len,
        resumed_at: sending.resumed_at,
        is_installing: sending.is_installing,
        failures: sending.failures,
        last_failure: sending.last_failure.unwrap_or_default(),
    }
}

fn receiving(receiving: crate::ReceivingSnapshot) -> SnapshotReceiving {
    SnapshotReceiving {
        from: receiving.from,
        index: receiving.label,
        received: receiving.received,
        bytes: receiving.len,
        is_installing: receiving.is_installing,
    }
}
