//! A change of the members that a caller requests of this node, from the request to its goal.

use std::sync::Arc;
use std::time::Duration;

use d_engine_core::{NodeId, QuorumRisk};
use d_engine_replica::{
    ChangeMembers, ChangeMembersError, RefusedBecause, ReplicaStatus, StopReason,
};
use d_engine_storage::{ChangeError, ConfigId, MemberChange, MemberRole};
use d_engine_wire::{Answer, Question};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config;
use crate::node::status::replica_status;
use crate::threads::shared::{KnownMembers, Shared};
use crate::transport;

/// How often to look again at what a change waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long to wait before a request is repeated that came at a bad moment.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A caller's request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) change: MemberChange,
    pub(crate) expected: Option<ConfigId>,
    pub(crate) risk: QuorumRisk,
}

/// What a change waits for.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    /// In words.
    pub(crate) text: String,
    /// Whether the request is in a leader's log; `None` if that is not known.
    pub(crate) is_written: Option<bool>,
}

impl Waits {
    /// Whether the request is in a log, if an earlier leader has left it `before`.
    fn after(&self, before: Option<bool>) -> Option<bool> {
        match (before, self.is_written) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (_, None) => None,
            (before, Some(false)) => before,
        }
    }
}

/// Makes a change, through the leader if this node is not it, and waits until its goal is reached.
/// Calls `waits` with what it waits for. Dropping the future does not withdraw the request.
///
/// A caller that can ask another node gives up after `leader_within`, if no leader was known or
/// answered for so long: this node may be the one that is cut off.
pub(crate) async fn change(
    shared: &Shared,
    request: Request,
    leader_within: Option<Duration>,
    mut waits: impl FnMut(Waits),
) -> Result<Arc<KnownMembers>, ChangeMembersError> {
    let mut is_written = Some(false);
    let mut answered_at = Instant::now();
    let mut last = TAKES_REQUEST.to_owned();
    // Leadership may move while the change goes on; then the next leader is asked.
    loop {
        if let Some(reason) = ended(shared) {
            return Err(ChangeMembersError::Stopped { reason });
        }
        let leader = shared.leader.borrow().1;
        // An earlier leader may have written the request, which may be gone or not.
        let before = is_written;
        let text = match leader {
            Some(leader) if leader == shared.identity.node => {
                check_new_address(shared, &request.change).await?;
                let seen = |seen: Waits| {
                    is_written = seen.after(before);
                    last.clone_from(&seen.text);
                    waits(Waits { is_written, ..seen });
                };
                match change_here(shared, request.clone(), seen).await {
                    Err(ChangeMembersError::NotLeader { .. }) => {}
                    outcome => return outcome,
                }
                answered_at = Instant::now();
                NO_LEADER.to_owned()
            }
            Some(leader) => {
                // From here on it may be written, also if no answer comes.
                is_written = before.filter(|is_written| *is_written);
                waits(Waits { text: last.clone(), is_written });
                match ask_leader(shared, leader, request.clone()).await {
                    Ok(Answer::Changed) => return Ok(shown(shared, &request.change).await),
                    Ok(Answer::Refused { reason, because }) => {
                        return Err(ChangeMembersError::RefusedByLeader { reason, because });
                    }
                    Ok(Answer::Later(why)) => {
                        answered_at = Instant::now();
                        why
                    }
                    Ok(Answer::NotLeader { .. } | Answer::Joined { .. }) => NO_LEADER.to_owned(),
                    Err(why) => why,
                }
            }
            None => NO_LEADER.to_owned(),
        };
        if leader_within.is_some_and(|limit| answered_at.elapsed() >= limit) {
            return Err(match is_written {
                Some(false) => ChangeMembersError::NotLeader { leader: None },
                _ => ChangeMembersError::NotDone { waits_for: text, is_written },
            });
        }
        last.clone_from(&text);
        waits(Waits { text, is_written });
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// What a change waits for at first.
pub(crate) const TAKES_REQUEST: &str = "the leader to take the request";
/// What a change waits for while no leader is known.
const NO_LEADER: &str = "a leader; check which members answer";

/// Why this node takes no more requests, if it does not.
fn ended(shared: &Shared) -> Option<StopReason> {
    let removed = shared.members.borrow().removed;
    let removed = removed.map(|by| StopReason::removed(shared.identity.node, by));
    shared.inbox.closed().or(removed)
}

/// Asks another node, which leads. An error is the reason in words why there is no answer.
async fn ask_leader(shared: &Shared, leader: NodeId, request: Request) -> Result<Answer, String> {
    let own = &shared.identity;
    let address = {
        let members = shared.members.borrow();
        members.in_force.member(leader).map(|member| member.peer_addr.clone())
    };
    let address = address.ok_or_else(|| format!("the address of the leader, node {leader}"))?;
    let Request { change, expected, risk } = request;
    let question = Question::Change { change, expected, risk };
    let cluster = Some(own.cluster);
    let asked = transport::ask(&address, cluster, own.group, own.incarnation, &question);
    asked.await.map_err(|why| format!("the leader at {address} to answer: {why}"))
}

/// How long a node may take to learn of a change that the leader has made.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The members once this node knows that the goal is reached, or after two seconds.
async fn shown(shared: &Shared, change: &MemberChange) -> Arc<KnownMembers> {
    let mut members = shared.members.subscribe();
    let shown = members.wait_for(|known| change.is_reached_by(&known.committed));
    tokio::time::timeout(SHOWN_TIMEOUT, shown).await.map(|_| ()).unwrap_or_default();
    shared.members.borrow().clone()
}

/// Writes the request into this leader's log and waits until its goal is reached. Calls `waits`
/// with what it waits for. Dropping the future does not withdraw the request.
pub(crate) async fn change_here(
    shared: &Shared,
    request: Request,
    mut waits: impl FnMut(Waits),
) -> Result<Arc<KnownMembers>, ChangeMembersError> {
    let mut members = shared.members.subscribe();
    let mut leader = shared.leader.subscribe();
    write(shared, &request, &mut waits).await?;
    loop {
        let known = members.borrow_and_update().clone();
        if request.change.is_reached_by(&known.committed) {
            return Ok(known);
        }
        let leads = leader.borrow_and_update().1 == Some(shared.identity.node);
        if let Some(reason) = shared.inbox.closed() {
            return Err(ChangeMembersError::Stopped { reason });
        }
        if !leads {
            // The next leader may lack the request.
            return Err(not_leader(shared));
        }
        // Another caller may have asked for the opposite meanwhile.
        let is_settled = known.in_force.id() == known.committed.id() && !known.in_force.is_joint();
        if is_settled && !matches!(known.committed.edited(&request.change), Ok(None)) {
            write(shared, &Request { expected: None, ..request.clone() }, &mut waits).await?;
        }
        if let Some(replica) = replica_status(shared).await {
            let text = waits_for(&request.change, &known, &replica);
            waits(Waits { text, is_written: Some(true) });
        }
        tokio::select! {
            _ = members.changed() => {}
            _ = leader.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

fn refused(reason: String) -> ChangeMembersError {
    ChangeMembersError::RefusedByLeader { reason, because: RefusedBecause::Rule }
}

/// Refuses an address at which nobody can be reached. An empty one says that a node serves no
/// clients.
fn check_form(change: &MemberChange) -> Result<(), ChangeMembersError> {
    let (peer, client) = match change {
        MemberChange::Invite(invited) => (Some(&invited.peer_addr), None),
        MemberChange::UpdateAddress { peer_addr, client_addr, .. } => {
            (peer_addr.as_ref(), client_addr.as_ref().filter(|address| !address.is_empty()))
        }
        _ => (None, None),
    };
    match [peer, client].into_iter().flatten().find(|address| !config::can_be_dialled(address)) {
        None => Ok(()),
        Some(address) => Err(refused(format!(
            "nobody can be reached at {address:?}; write the address that the node advertises, as \
             host:port"
        ))),
    }
}

/// A wrong address in the log could cut a node off for good, so the node must answer there first.
/// Takes up to five seconds.
pub(crate) async fn check_new_address(
    shared: &Shared,
    change: &MemberChange,
) -> Result<(), ChangeMembersError> {
    check_form(change)?;
    let MemberChange::UpdateAddress { node, peer_addr: Some(address), .. } = change else {
        return Ok(());
    };
    let own = &shared.identity;
    let member = {
        let members = shared.members.borrow();
        members.in_force.members().iter().find(|member| member.node == *node).cloned()
    };
    // The replica says what is wrong with the request.
    let Some(member) = member else { return Ok(()) };
    if member.peer_addr.eq_ignore_ascii_case(address) {
        return Ok(());
    }
    let probed = transport::probe(address, own.cluster, own.group, own.incarnation).await;
    let why = match probed {
        Ok(found) if found.node.map(NodeId::get) != Some(*node) => "another node answers there",
        Ok(found) if member.incarnation.is_some() && member.incarnation != found.incarnation => {
            "the node there has another data directory"
        }
        Ok(_) => return Ok(()),
        Err(ref why) => why,
    };
    Err(refused(format!(
        "node {node} is not reached at {address} from node {}: {why}; start it there first, or \
         correct the address",
        own.node
    )))
}

/// Asks the replica to write the request into the log, again while another change is in progress.
async fn write(
    shared: &Shared,
    request: &Request,
    waits: &mut impl FnMut(Waits),
) -> Result<ConfigId, ChangeMembersError> {
    let mut text = TAKES_REQUEST.to_owned();
    loop {
        waits(Waits { text: text.clone(), is_written: None });
        match ask(shared, request.clone()).await {
            Err(
                ChangeMembersError::Busy(id) | ChangeMembersError::Refused(ChangeError::Busy(id)),
            ) => {
                text = format!("another membership change is in progress (configuration {id})");
                waits(Waits { text: text.clone(), is_written: Some(false) });
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Ok(id) => {
                let text = format!("configuration {id} to be committed");
                waits(Waits { text, is_written: Some(true) });
                return Ok(id);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks the replica for a change, and returns its answer.
pub(crate) async fn ask(shared: &Shared, request: Request) -> Result<ConfigId, ChangeMembersError> {
    let Request { change, expected, risk } = request;
    let (answer, answered) = oneshot::channel();
    shared.inbox.change_members(ChangeMembers {
        change,
        expected,
        risk,
        responder: Box::new(move |outcome| {
            // The caller may have given up.
            answer.send(outcome).ok();
        }),
    });
    answered.await.unwrap_or_else(|_| Err(not_leader(shared)))
}

fn not_leader(shared: &Shared) -> ChangeMembersError {
    let leader = shared.leader.borrow().1.filter(|leader| *leader != shared.identity.node);
    let members = shared.members.borrow();
    let hint = leader.map(|node| d_engine_replica::LeaderHint {
        node,
        client_addr: members
            .in_force
            .member(node)
            .map(|it| it.client_addr.clone())
            .unwrap_or_default(),
    });
    ChangeMembersError::NotLeader { leader: hint }
}

/// What a change waits for, in words.
fn waits_for(change: &MemberChange, known: &KnownMembers, replica: &ReplicaStatus) -> String {
    let in_force = &known.in_force;
    if in_force.is_joint() {
        return format!("the voters of joint configuration {} to store it", in_force.id());
    }
    if let Some(missing) = &replica.changes_lack {
        return format!("more voters: {missing}; or repeat the request and accept the risk");
    }
    let joins = match change {
        MemberChange::Promote(node) | MemberChange::Replace { new: node, .. } => *node,
        _ => return format!("configuration {} to be committed", in_force.id()),
    };
    let is_joining = in_force
        .members()
        .iter()
        .any(|member| member.node == joins && matches!(member.role, MemberRole::Joining { .. }));
    let follower = replica.core.followers.iter().find(|follower| follower.node.get() == joins);
    match follower {
        Some(follower) if is_joining => {
            let lag = replica.core.log.last.index.get().saturating_sub(follower.matched.get());
            format!("node {joins} to keep up with the log; it lags by {lag} entries")
        }
        _ => format!("configuration {} to be committed", in_force.id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An earlier leader, or one whose answer was lost, may have written the request.
    #[test]
    fn a_request_that_may_be_written_is_never_called_unwritten() {
        let after = |before, is_written| Waits { text: String::new(), is_written }.after(before);
        assert_eq!(after(Some(false), Some(false)), Some(false), "refused as busy");
        assert_eq!(after(Some(false), None), None, "asked");
        for before in [Some(false), None, Some(true)] {
            assert_eq!(after(before, Some(true)), Some(true));
        }
        assert_eq!(after(None, Some(false)), None);
        assert_eq!(
            (after(Some(true), None), after(Some(true), Some(false))),
            (Some(true), Some(true))
        );
    }
}
