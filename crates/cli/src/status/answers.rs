//! What the nodes of a cluster answer when they are asked for their status.

use std::collections::BTreeMap;

use d_engine_client::{Client, Member, NodeRole, NodeStatus};
use tokio::task::JoinSet;

/// The response of each address.
pub(crate) type Answers = BTreeMap<String, Result<NodeStatus, String>>;

/// Requests the status of the nodes at these addresses and of the members that they name.
pub(crate) async fn ask_everybody(client: &Client, addresses: Vec<String>) -> Answers {
    let mut asked = ask_all(client, addresses).await;
    let mut found: Vec<String> = members(&asked)
        .into_values()
        .flatten()
        .filter(|address| !asked.contains_key(address))
        .collect();
    found.dedup();
    asked.extend(ask_all(client, found).await);
    asked
}

/// Requests the status of the nodes at these addresses, concurrently.
pub(crate) async fn ask_all(client: &Client, addresses: Vec<String>) -> Answers {
    let mut calls = JoinSet::new();
    for address in addresses {
        let client = client.clone();
        calls.spawn(async move {
            let answer = client.status(&address).await.map_err(|error| error.to_string());
            (address, answer)
        });
    }
    calls.join_all().await.into_iter().collect()
}

/// Returns the members that any node names, with their client addresses.
pub(super) fn members(answers: &Answers) -> BTreeMap<u64, Option<String>> {
    let named = answers.values().flatten().flat_map(|status| &status.members);
    named.map(|member| (member.node, member.client_addr.clone())).collect()
}

/// Returns the leader of the highest term, if a majority of its voters answers and follows it.
pub(crate) fn leader_with_quorum(answers: &Answers) -> Option<u64> {
    let statuses = || answers.values().flatten().filter(|status| status.stopped.is_none());
    let leader = statuses()
        .filter(|status| status.role == NodeRole::Leader)
        .max_by_key(|status| status.term)?;
    let nodes = |votes: fn(&Member) -> bool| -> Vec<u64> {
        let members = leader.members.iter().filter(|member| votes(member));
        members.map(|member| member.node).collect()
    };
    let (voters, next) = (nodes(|it| it.role.votes()), nodes(|it| it.votes_next));
    let mut behind: Vec<u64> = statuses()
        .filter(|status| status.term == leader.term && status.leader == Some(leader.node))
        .map(|status| status.node)
        .collect();
    behind.sort_unstable();
    // A node may have answered at two addresses.
    behind.dedup();
    let has_majority = |voters: &[u64]| {
        behind.iter().filter(|node| voters.contains(node)).count() > voters.len() / 2
    };
    // While a configuration is joint, both majorities count. An older node names no next voters.
    let has_quorum = has_majority(&voters) && (next.is_empty() || has_majority(&next));
    has_quorum.then_some(leader.node)
}

/// Returns one response per node; a node that answered at two addresses is counted once.
pub(super) fn statuses_by_node(answers: &Answers) -> BTreeMap<u64, &NodeStatus> {
    answers.values().flatten().map(|status| (status.node, status)).collect()
}
