//! What this node answers to nodes that want to join, and to members whose callers want a change.

use std::sync::Arc;
use std::time::Duration;

use d_engine_core::{NodeId, QuorumRisk};
use d_engine_replica::{ChangeMembersError, RefusedBecause};
use d_engine_storage::{
    Admission, ChangeError, JoinAs, MemberChange, Membership, MembershipError, NewMember,
};
use d_engine_wire::{Answer, JoinNumber, Question};

use crate::config;
use crate::members::change::{self, Request};
use crate::threads::shared::Shared;
use crate::transport;

/// How long the entry of a new member may take to be committed before the node is asked to ask
/// again.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a change may take before the member is asked to ask again: its caller learns what the
/// change waits for. The check of a new address comes before.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

fn refused(reason: impl Into<String>) -> Answer {
    Answer::Refused { reason: reason.into(), because: RefusedBecause::Rule }
}

/// Answers a question. Only the leader answers with more than where the leader is.
pub(crate) async fn answer(shared: Arc<Shared>, question: Question, knows_cluster: bool) -> Answer {
    match question {
        Question::Join { member, state_machine, number } => {
            join(shared, Asks { member, number, knows_cluster }, &state_machine).await
        }
        Question::Change { change, expected, risk } => {
            changed(&shared, Request { change, expected, risk }).await
        }
    }
}

/// Makes a change that a caller of another member has requested.
async fn changed(shared: &Shared, request: Request) -> Answer {
    let mut waits_for = change::TAKES_REQUEST.to_owned();
    let changed = async {
        change::check_new_address(shared, &request.change).await?;
        let changed = change::change_here(shared, request, |waits| waits_for = waits.text);
        match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
            Ok(outcome) => outcome.map(Some),
            Err(_) => Ok(None),
        }
    };
    match changed.await {
        Ok(None) => Answer::Later(waits_for),
        Ok(Some(_)) => Answer::Changed,
        Err(ChangeMembersError::NotLeader { .. }) => not_leader(shared),
        // The request may be written; the next leader knows.
        Err(ChangeMembersError::Stopped { .. }) => Answer::NotLeader { leader: None },
        Err(error @ (ChangeMembersError::Busy(_) | ChangeMembersError::TooMany)) => {
            Answer::Later(error.to_string())
        }
        Err(error) => {
            Answer::Refused { reason: error.to_string(), because: error.refused_because() }
        }
    }
}

/// A node that asks to join.
struct Asks {
    member: NewMember,
    number: JoinNumber,
    knows_cluster: bool,
}

async fn join(shared: Arc<Shared>, asks: Asks, state_machine: &str) -> Answer {
    let Asks { member, number, knows_cluster } = asks;
    let (theirs, ours) = (state_machine, shared.state_machine.as_str());
    if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
        return refused(format!(
            "it runs the state machine {theirs:?}, and the cluster runs {ours:?}: all nodes of a \
             cluster must run the same one"
        ));
    }
    if !leads(&shared) {
        return not_leader(&shared);
    }
    // Before anything is dialled: a stranger must not choose what this node dials.
    let possible = {
        let members = shared.members.borrow();
        members.in_force.edited(&MemberChange::Add(member.clone()))
    };
    if let Err(error) = possible {
        return refusal(&shared, &member, ChangeMembersError::Refused(error));
    }
    // Before anything is answered: the node that names a directory need not be the one that has it.
    if let Err(refusal) = check_address(&shared, &member, number).await {
        return refusal;
    }
    match joined(&shared, &member) {
        // A stranger that has learned the name of a member's directory could pretend to be it.
        Some(_) if !knows_cluster && !is_at_its_address(&shared, &member) => refused(format!(
            "its data directory is a member's that is reached at another address than {}; set \
             `cluster_id`",
            member.peer_addr
        )),
        Some(joined) => joined,
        None => add(&shared, member).await,
    }
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
        Some(wanted) if wanted != node.get() => refused(is_another(node.get(), wanted)),
        _ => Answer::Joined { cluster: shared.identity.cluster, node, born: committed.id() },
    })
}

/// Whether the member with this directory is reached where the node that asks is.
fn is_at_its_address(shared: &Shared, member: &NewMember) -> bool {
    let members = shared.members.borrow();
    let mut known = members.committed.members().iter();
    known.any(|known| {
        known.incarnation == Some(member.incarnation)
            && known.peer_addr.eq_ignore_ascii_case(&member.peer_addr)
    })
}

/// Finds out whether the node that asks is reached at the address that it names: a member that
/// nobody reaches would count towards the quorum later.
async fn check_address(
    shared: &Shared,
    member: &NewMember,
    number: JoinNumber,
) -> Result<(), Answer> {
    let address = &member.peer_addr;
    let own = &shared.identity;
    if !config::can_be_dialled(address) {
        return Err(refused(format!(
            "the new node advertises {address:?}, where no node can be reached; set \
             `advertise_peer` to host:port"
        )));
    }
    let probed = transport::probe_joiner(address, number, own.group, own.incarnation).await;
    match probed {
        Ok(found) if found.node.is_none() && found.incarnation == Some(member.incarnation) => {
            Ok(())
        }
        Ok(found) => Err(refused(format!(
            "the new node advertises {address}, but {} answers there; check `advertise_peer`",
            match found.node {
                Some(node) => format!("node {node} of a cluster"),
                None => "another new node".to_owned(),
            }
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
    let mut leader = shared.leader.subscribe();
    let own = shared.identity.node;
    // The senders live as long as `shared`.
    tokio::select! {
        _ = tokio::time::timeout(COMMIT_TIMEOUT, committed) => {}
        // The next leader may lack the entry, and knows when it is committed.
        _ = leader.wait_for(|(_, leader)| *leader != Some(own)) => {
            return joined(shared, &member).unwrap_or_else(|| not_leader(shared));
        }
    }
    joined(shared, &member).unwrap_or_else(|| {
        Answer::Later("the entry that adds it was not committed in time".to_owned())
    })
}

fn refusal(shared: &Shared, member: &NewMember, error: ChangeMembersError) -> Answer {
    match error {
        ChangeMembersError::NotLeader { .. } => not_leader(shared),
        ChangeMembersError::Refused(ChangeError::Invalid(MembershipError::DuplicateAddress(
            address,
        ))) => refused(address_taken(shared, &address)),
        ChangeMembersError::Refused(
            error @ (ChangeError::MemberRemoved(old)
            | ChangeError::UnknownMember(old)
            | ChangeError::NotReplaceable(old)),
        ) if member.joins_as == (JoinAs::Voter { replaces: Some(old) }) => {
            refused(format!(
                "its configuration has `replaces = {old}`: {error}; name the voter that is lost \
                 now, or leave `replaces` out{}",
                owner_of(shared, &member.peer_addr)
                    .map(|node| format!("; {} belongs to node {node} now", member.peer_addr))
                    .unwrap_or_default()
            ))
        }
        ChangeMembersError::Refused(ChangeError::Invalid(
            MembershipError::DuplicateDirectory(node),
        )) if member.node.is_some_and(|wanted| wanted != node) => {
            refused(is_another(node, member.node.unwrap_or_default()))
        }
        ChangeMembersError::Refused(ChangeError::IdTaken(node)) => {
            let directory = member.incarnation;
            let owner = format!("node {node} is bound to another directory than {directory}");
            let if_lost = if_lost(shared, node, &member.peer_addr);
            refused(format!("{owner}; leave `node_id` out; {if_lost}"))
        }
        ChangeMembersError::Refused(error)
            // The operator can mend these while the node waits.
            if !matches!(
                error,
                ChangeError::Busy(_)
                    | ChangeError::NotInvited { .. }
                    | ChangeError::InvitedOtherwise { .. }
                    | ChangeError::BeingReplaced { .. }
            ) =>
        {
            refused(error.to_string())
        }
        error => Answer::Later(error.to_string()),
    }
}

fn is_another(node: u64, wanted: u64) -> String {
    format!(
        "its data directory belongs to node {node} already, and it is configured as node {wanted}: \
         leave `node_id` out"
    )
}

fn owner_of(shared: &Shared, address: &str) -> Option<u64> {
    let members = shared.members.borrow();
    let mut known = members.in_force.members().iter();
    let same = |known: &str| known.eq_ignore_ascii_case(address);
    let owner = known.find(|it| same(&it.peer_addr) || same(&it.client_addr));
    owner.map(|owner| owner.node)
}

fn address_taken(shared: &Shared, address: &str) -> String {
    let Some(node) = owner_of(shared, address) else {
        return format!("{address} belongs to another member");
    };
    let owner = format!("{address} belongs to node {node}, which has another directory");
    format!("{owner}; {}", if_lost(shared, node, address))
}

/// What to do if the directory of this member was lost. The new node is reached at `address`.
fn if_lost(shared: &Shared, node: u64, address: &str) -> String {
    let members = shared.members.borrow();
    let votes =
        NodeId::new(node).is_some_and(|node| members.in_force.configuration().is_voter(node));
    match (votes, members.in_force.admission()) {
        (true, Admission::Open) => {
            format!("if its disk was lost, start this node with `replaces = {node}`")
        }
        (true, Admission::Invited) => format!(
            "if its disk was lost, run `d-engine member replace {node} --peer {address}` and start \
             this node again"
        ),
        (false, _) => {
            format!("if its disk was lost, remove it first: d-engine member remove {node}")
        }
    }
}
