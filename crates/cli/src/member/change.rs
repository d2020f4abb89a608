//! One change of the members, from the request to its goal.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use d_engine_client::{
    Admission, ChangeRefusal, Client, ClientError, Invitation, Member, MemberChange, Members,
    MembersWatch,
};
use d_engine_locks::Unpoisoned as _;

use crate::args::ChangeArgs;
use crate::exit::{Failure, note, say};

/// How long a change is waited for before its progress is printed.
const FIRST_PROGRESS_AFTER: Duration = Duration::from_millis(300);
/// How often progress is printed at most.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait for the successor of a leader that was removed.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn change(change: MemberChange, args: &ChangeArgs) -> Result<(), Failure> {
    let client = args.client()?;
    // Only a leader that removes itself needs this.
    let before = match change {
        MemberChange::Remove(_) => client.members().await?.leader,
        _ => None,
    };
    let began = Instant::now();
    let news: Mutex<Option<String>> = Mutex::default();
    let changed = client.change_members_with(change.clone(), args.options(), |waits| {
        *news.lock().unpoisoned() = Some(waits.to_owned());
    });
    let mut changed = std::pin::pin!(changed);
    let mut pause = FIRST_PROGRESS_AFTER;
    let members = loop {
        tokio::select! {
            changed = &mut changed => break changed.map_err(failure)?,
            // The newest text: it is the one that lasts.
            () = tokio::time::sleep(pause) => {
                if let Some(waits) = news.lock().unpoisoned().take() {
                    note(format_args!("waiting for {waits}"));
                    pause = PROGRESS_INTERVAL;
                }
            }
        }
    };
    let done = words(&change, &members);
    let config = members.config;
    match change {
        MemberChange::Remove(node) if before == Some(node) => {
            say(format_args!(
                "{done} (configuration {config}); {}",
                successor(&client, node).await
            ));
        }
        MemberChange::Replace { .. } | MemberChange::Promote(_) => say(format_args!(
            "{done} (configuration {config}); {:.1} s",
            began.elapsed().as_secs_f64()
        )),
        _ => say(format_args!("{done} (configuration {config})")),
    }
    Ok(())
}

/// What is so now.
fn words(change: &MemberChange, members: &Members) -> String {
    match change {
        MemberChange::Remove(node) => format!("node {node} is removed"),
        MemberChange::Replace { old, new } => format!("node {new} votes; node {old} is removed"),
        MemberChange::Promote(node) => format!("node {node} votes"),
        MemberChange::Demote(node) => format!("node {node} is a learner"),
        MemberChange::UpdateAddress { node, .. } => match members.get(*node) {
            Some(Member { peer_addr, client_addr: Some(client), .. }) => {
                format!("node {node} is at {peer_addr}, for clients at {client}")
            }
            Some(member) => {
                format!("node {node} is at {} and serves no clients", member.peer_addr)
            }
            None => format!("the address of node {node} is changed"),
        },
        MemberChange::Invite(Invitation { peer_addr, replaces }) => {
            let at_address = |it: &&Member| {
                it.peer_addr.eq_ignore_ascii_case(peer_addr) && Some(it.node) != *replaces
            };
            match (members.list.iter().find(at_address), replaces) {
                (Some(joined), _) => format!("node {} has joined from {peer_addr}", joined.node),
                (None, None) => format!("the node at {peer_addr} may join"),
                (None, Some(old)) => {
                    format!("the node at {peer_addr} may join, to vote in place of node {old}")
                }
            }
        }
        MemberChange::Withdraw(peer_addr) => format!("no node at {peer_addr} is to join"),
        MemberChange::Admit(_) => admission(members).to_owned(),
    }
}

/// Which nodes may join.
fn admission(members: &Members) -> &'static str {
    match members.admission {
        Admission::Open => "open: every node that reaches a member may join",
        Admission::Invited => "invited: nodes that `d-engine member add` has announced may join",
        _ => "unknown: a newer version has a rule for nodes that join",
    }
}

pub(super) async fn show_admission(args: &ChangeArgs) -> Result<(), Failure> {
    let members = args.client()?.members().await?;
    say(admission(&members));
    Ok(())
}

/// Waits until another node leads, and says which one.
async fn successor(client: &Client, removed: u64) -> String {
    let watch = next_leader(client.watch_members(), removed);
    match tokio::time::timeout(SUCCESSOR_TIMEOUT, watch).await {
        Ok(Ok(leader)) => format!("node {leader} leads"),
        Ok(Err(error)) => format!("it led, and the next leader is not known: {error}"),
        Err(_) => "it led, and no other node leads yet; check with `d-engine status`".to_owned(),
    }
}

async fn next_leader(mut watch: MembersWatch, removed: u64) -> Result<u64, ClientError> {
    loop {
        let members = watch.next().await?;
        if let Some(leader) = members.leader.filter(|leader| *leader != removed) {
            return Ok(leader);
        }
    }
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::MembersNotChanged {
            reason, refusal: ChangeRefusal::WouldLoseQuorum, ..
        } => Failure::failed(format_args!("{reason}; `--accept-risk` overrides this check")),
        ClientError::MembersNotChanged { reason, .. } => Failure::failed(reason),
        error => error.into(),
    }
}
