//! What this node answers to nodes that want to join, and to members whose callers want a change.

use std::sync::Arc;
use std::time::Duration;

use d_engine_core::{NodeId, QuorumRisk};
use d_engine_replica::ChangeMembersError;
use d_engine_storage::{ChangeError, JoinAs, MemberChange, Membership, MembershipError, NewMember};
use d_engine_wire::{Answer, Question};

use crate::members::change::{self, Request};
use crate::threads::shared::Shared;
use crate::transport;

/// How long the entry of a new member may take to be committed before the node is asked to ask
/// again.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a change may take before the member is asked to ask again: its caller learns what the
/// change waits for.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers a question. Only the leader answers with more than where the leader is.
pub(crate) async fn answer(shared: Arc<Shared>, question: Question) -> Answer {
    match question {
        Question::Join { member, state_machine } => join(shared, member, &state_machine).await,
        Question::Change { change, expected, risk } => {
            changed(&shared, Request { change, expected, risk }).await
        }
    }
}

/// Makes a change that a caller of another member has requested.
async fn changed(shared: &Shared, request: Request) -> Answer {
    let mut waits_for = String::new();
    let changed = change::change_here(shared, request, |text| waits_for = text);
    match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
        Err(_) => Answer::Later(waits_for),
        Ok(Ok(_)) => Answer::Changed,
        Ok(Err(ChangeMembersError::NotLeader { .. })) => not_leader(shared),
        Ok(Err(error @ (ChangeMembersError::Busy(_) | ChangeMembersError::TooMany))) => {
            Answer::Later(error.to_string())
        }
        Ok(Err(error)) => Answer::Refused(error.to_string()),
    }
}

async fn join(shared: Arc<Shared>, member: NewMember, state_machine: &str) -> Answer {
    let (theirs, ours) = (state_machine, shared.state_machine.as_str());
    if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
        return Answer::Refused(format!(
            "it runs the state machine {theirs:?}, and the cluster runs {ours:?}: all nodes of a \
             cluster must run the same one"
        ));
    }
    if !leads(&shared) {
        return not_leader(&shared);
    }
    if let Some(joined) = joined(&shared, &member) {
        return joined;
    }
    if let Err(refusal) = check_address(&shared, &member).await {
        return refusal;
    }
    add(&shared, member).await
}

fn leads(shared: &Shared) -> bool {
    shared.leader.borrow().1 == Some(shared.identity.node)
}

fn not_leader(shared: &Shared) -> Answer {
    let leader = shared.leader.borrow().1;
    let members = shared.members.borrow();
    let hint = leader
        .filter(|leader| *leader != shared.identity.node)
        .and_then(|leader| Some((leader, members.in_force.member(leader)?.peer_addr.clone())));
    Answer::NotLeader { leader: hint }
}

/// The answer to a node whose directory is a member's already: it asked before, and the answer was
/// lost.
fn joined(shared: &Shared, member: &NewMember) -> Option<Answer> {
    let members = shared.members.borrow();
    let committed = &members.committed;
    let mut known = committed.members().iter();
    let known = known.find(|known| known.incarnation == Some(member.incarnation))?;
    let node = NodeId::new(known.node)?;
    Some(match member.node {
        Some(wanted) if wanted != node.get() => Answer::Refused(format!(
            "its data directory belongs to node {node} already, and it is configured as node \
             {wanted}: leave `node_id` out"
        )),
        _ => Answer::Joined { cluster: shared.identity.cluster, node, born: committed.id() },
    })
}

/// Finds out whether the node that asks is reached at the address that it names: a member that
/// nobody reaches would count towards the quorum later.
async fn check_address(shared: &Shared, member: &NewMember) -> Result<(), Answer> {
    let address = &member.peer_addr;
    let own = &shared.identity;
    let probed = transport::probe(address, None, own.group, own.incarnation).await;
    match probed {
        Ok(found) if found.incarnation == member.incarnation => Ok(()),
        Ok(found) => Err(Answer::Refused(format!(
            "the new node advertises {address}, but the node there has the data directory {}, not \
             {}; check `advertise_peer`",
            found.incarnation, member.incarnation
        ))),
        Err(why) => Err(Answer::Later(format!(
            "the new node advertises {address}, but node {} could not connect there: {why}; check \
             `advertise_peer`",
            own.node
        ))),
    }
}

/// Adds the node and waits until that is committed.
async fn add(shared: &Arc<Shared>, member: NewMember) -> Answer {
    let mut members = shared.members.subscribe();
    let change = MemberChange::Add(member.clone());
    let request = Request { change, expected: None, risk: QuorumRisk::Refuse };
    if let Err(error) = change::ask(shared, request).await {
        return refusal(shared, &member, error);
    }
    let incarnation = Some(member.incarnation);
    let is_member = |membership: &Membership| {
        membership.members().iter().any(|known| known.incarnation == incarnation)
    };
    let committed = members.wait_for(|known| is_member(&known.committed));
    // The sender lives as long as `shared`.
    tokio::time::timeout(COMMIT_TIMEOUT, committed).await.map(|_| ()).unwrap_or_default();
    joined(shared, &member).unwrap_or_else(|| {
        Answer::Later("the entry that adds it was not committed in time".to_owned())
    })
}

fn refusal(shared: &Shared, member: &NewMember, error: ChangeMembersError) -> Answer {
    match error {
        ChangeMembersError::NotLeader { .. } => not_leader(shared),
        ChangeMembersError::Refused(ChangeError::Invalid(MembershipError::DuplicateAddress(
            address,
        ))) => Answer::Refused(address_taken(shared, &address)),
        ChangeMembersError::Refused(
            error @ (ChangeError::MemberRemoved(old)
            | ChangeError::UnknownMember(old)
            | ChangeError::NotReplaceable(old)),
        ) if member.joins_as == (JoinAs::Voter { replaces: Some(old) }) => {
            Answer::Refused(format!(
                "its configuration has `replaces = {old}`: {error}; name the voter that is lost \
                 now, or leave `replaces` out{}",
                owner_of(shared, &member.peer_addr)
                    .map(|node| format!("; {} belongs to node {node} now", member.peer_addr))
                    .unwrap_or_default()
            ))
        }
        ChangeMembersError::Refused(ChangeError::IdTaken(node)) => {
            let directory = member.incarnation;
            let owner = format!("node {node} is bound to another directory than {directory}");
            Answer::Refused(format!("{owner}; leave `node_id` out; {}", if_lost(shared, node)))
        }
        ChangeMembersError::Refused(error)
            if !matches!(error, ChangeError::Busy(_) | ChangeError::NotInvited(_)) =>
        {
            Answer::Refused(error.to_string())
        }
        error => Answer::Later(error.to_string()),
    }
}

fn owner_of(shared: &Shared, address: &str) -> Option<u64> {
    let members = shared.members.borrow();
    let mut known = members.in_force.members().iter();
    let owner = known.find(|it| it.peer_addr == address || it.client_addr == address);
    owner.map(|owner| owner.node)
}

fn address_taken(shared: &Shared, address: &str) -> String {
    let Some(node) = owner_of(shared, address) else {
        return format!("{address} belongs to another member");
    };
    let owner = format!("{address} belongs to node {node}, which has another directory");
    format!("{owner}; {}", if_lost(shared, node))
}

/// What to do if the directory of this member was lost.
fn if_lost(shared: &Shared, node: u64) -> String {
    let members = shared.members.borrow();
    let votes =
        NodeId::new(node).is_some_and(|node| members.in_force.configuration().is_voter(node));
    match votes {
        true => format!("if its disk was lost, start this node with `replaces = {node}`"),
        false => format!("if its disk was lost, remove it first: d-engine member remove {node}"),
    }
}
