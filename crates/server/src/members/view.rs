//! The members as callers see them.

use d_engine_api::{Admission, ConfigId, Invitation, Member, MemberRole, Members};
use d_engine_core::NodeId;
use d_engine_replica::ReplicaStatus;
use d_engine_storage::{Identity, Membership, VoterIntent};

use crate::threads::shared::KnownMembers;

/// The name of a configuration, in the form for callers.
pub(crate) fn config_id(id: d_engine_storage::ConfigId) -> ConfigId {
    ConfigId { term: id.term, version: id.version }
}

/// The members as a node knows them.
pub(crate) fn members(
    identity: &Identity,
    known: &KnownMembers,
    leader: Option<NodeId>,
) -> Members {
    let in_force = &known.in_force;
    let mut members = Members::default();
    members.node = identity.node.get();
    members.cluster_id = identity.cluster.0.to_vec();
    members.config = config_id(in_force.id());
    members.is_committed = in_force.id() == known.committed.id();
    members.list = list(in_force);
    members.leader = leader.map(NodeId::get);
    members.removed_by = known.removed.map(config_id);
    members.admission = match in_force.admission() {
        d_engine_storage::Admission::Open => Admission::Open,
        d_engine_storage::Admission::Invited => Admission::Invited,
    };
    members.invitations = in_force.invitations().iter().map(invitation).collect();
    members
}

fn invitation(invited: &d_engine_storage::Invitation) -> Invitation {
    Invitation { peer_addr: invited.peer_addr.clone(), replaces: invited.replaces }
}

/// The members of one membership.
pub(crate) fn list(membership: &Membership) -> Vec<Member> {
    membership.members().iter().map(member).collect()
}

fn member(member: &d_engine_storage::Member) -> Member {
    let mut seen = Member::default();
    seen.node = member.node;
    seen.peer_addr.clone_from(&member.peer_addr);
    seen.client_addr = Some(member.client_addr.clone()).filter(|address| !address.is_empty());
    seen.role = role(member.role);
    seen.votes_next = votes_next(member.role);
    seen
}

/// Whether the member votes in the configuration after a joint one, or in this one if it is not.
fn votes_next(role: d_engine_storage::MemberRole) -> bool {
    use d_engine_storage::MemberRole as Stored;
    match role {
        Stored::Voter | Stored::Incoming { .. } | Stored::Leaving | Stored::Demoting => true,
        Stored::Learner
        | Stored::Joining { .. }
        | Stored::Outgoing { .. }
        | Stored::OutgoingToLearn => false,
    }
}

/// While a configuration is joint, a member has the role that it had before.
fn role(role: d_engine_storage::MemberRole) -> MemberRole {
    use d_engine_storage::MemberRole as Stored;
    match role {
        Stored::Voter => MemberRole::Voter,
        Stored::Learner => MemberRole::Learner,
        Stored::Joining { replaces } | Stored::Incoming { replaces } => {
            MemberRole::Joining { replaces }
        }
        Stored::Leaving | Stored::Outgoing { before: VoterIntent::Stay | VoterIntent::Leave } => {
            MemberRole::Leaving
        }
        Stored::Demoting
        | Stored::OutgoingToLearn
        | Stored::Outgoing { before: VoterIntent::Learn } => MemberRole::Demoting,
    }
}

/// Adds what a leader knows about the others.
pub(crate) fn add_progress(
    members: &mut [Member],
    replica: &ReplicaStatus,
    now: d_engine_core::Instant,
) {
    let last = replica.core.log.last.index.get();
    for follower in &replica.core.followers {
        let number = follower.node.get();
        let Some(member) = members.iter_mut().find(|member| member.node == number) else {
            continue;
        };
        let heard = now.since(follower.last_contact).as_millis();
        member.heard_ms_ago = Some(u64::try_from(heard).unwrap_or(u64::MAX));
        member.lag = Some(last.saturating_sub(follower.matched.get()));
    }
}
