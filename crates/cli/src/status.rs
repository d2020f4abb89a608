//! `d-engine status`: every node of the cluster, as a table or as JSON.

mod commands;
mod contradictions;
mod losses;
mod snapshots;

use std::collections::BTreeMap;

use d_engine_client::{Client, NodeRole, NodeStatus};
use indicatif::DecimalBytes;
use serde::Serialize;
use tokio::task::JoinSet;

use self::contradictions::contradictions;
use self::losses::losses;
use self::snapshots::Snapshots;
use crate::args::StatusArgs;
use crate::exit::{Failure, say};

/// One row: a node that answered, or an address where none did.
#[derive(Clone, Serialize, Debug)]
struct Row {
    /// Unknown for an address that is not in any member list and does not answer.
    node: Option<u64>,
    address: Option<String>,
    reachable: bool,
    role: Option<&'static str>,
    term: Option<u64>,
    leader: Option<u64>,
    commit_index: Option<u64>,
    applied_index: Option<u64>,
    /// Entries that are committed, as far as the node knows, and not applied yet.
    apply_lag: Option<u64>,
    persisted_index: Option<u64>,
    records: Option<u64>,
    log_bytes_on_disk: Option<u64>,
    snapshots: Option<Snapshots>,
    ready: Option<bool>,
    version: Option<String>,
    /// Term and index of the entry that its state machine cannot apply, as `skip-entry` takes it.
    stands_at: Option<String>,
    /// The highest version of a command that its program decodes; left out where that is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    command_version_max: Option<u32>,
    /// On a leader, what it takes now; left out where that is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    command_version_allowed: Option<u32>,
    /// Why the node has stopped or its state machine stands, why it cannot be reached, or who refuses it.
    reason: Option<String>,
    /// Peers that refuse the node or are refused by it, and why.
    refusals: Vec<String>,
    /// What an operator must look at, a sentence each.
    alarms: Vec<String>,
}

/// The whole answer.
#[derive(Serialize, Debug)]
struct Report {
    /// The node that leads, with a majority that says so.
    leader: Option<u64>,
    /// What nodes say that cannot all be true of one cluster.
    contradictions: Vec<String>,
    /// Proof that some node has lost what it had acknowledged.
    losses: Vec<String>,
    nodes: Vec<Row>,
}

pub(crate) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let client = args.cluster.client()?;
    let asked = ask_everybody(&client, args.cluster.endpoints.addresses()).await;
    let report = Report {
        leader: leader_with_quorum(&asked),
        contradictions: contradictions(&asked),
        losses: losses(&client, &asked).await,
        nodes: rows(&asked),
    };
    if args.json {
        let json = serde_json::to_string_pretty(&report);
        say(json.map_err(|error| Failure::failed(format!("no JSON can be made: {error}")))?);
    } else {
        print_table(&report.nodes);
        for line in snapshots::lines(statuses_by_node(&asked).into_values()) {
            say(line);
        }
        let versions: Vec<_> =
            statuses_by_node(&asked).into_values().filter_map(commands::Versions::of).collect();
        if let Some(line) = commands::line(&versions) {
            say(line);
        }
        for line in &report.contradictions {
            say(format_args!("CONTRADICTION: {line}"));
        }
        for line in &report.losses {
            say(format_args!("LOST: {line}"));
        }
    }
    if let Some(first) = report.contradictions.first() {
        return Err(Failure::failed(format_args!("the nodes contradict each other: {first}")));
    }
    if let Some(first) = report.losses.first() {
        return Err(Failure::failed(format_args!("acknowledged entries are lost: {first}")));
    }
    match report.leader {
        Some(leader)
            if statuses_by_node(&asked).get(&leader).is_some_and(|it| it.apply_stopped.is_some()) =>
        {
            Err(Failure::failed(format_args!(
                "node {leader} leads, and its state machine stands: no caller is answered; the table says why"
            )))
        }
        Some(_) => Ok(()),
        None => Err(Failure::failed("no leader with a majority behind it")),
    }
}

/// What each address answered.
pub(crate) type Answers = BTreeMap<String, Result<NodeStatus, String>>;

/// Asks the nodes at these addresses, and the members that they name.
pub(crate) async fn ask_everybody(client: &Client, addresses: Vec<String>) -> Answers {
    let mut asked = ask_all(client, addresses).await;
    let mut found: Vec<String> =
        members(&asked).into_values().flatten().filter(|address| !asked.contains_key(address)).collect();
    found.dedup();
    asked.extend(ask_all(client, found).await);
    asked
}

/// Asks the nodes at these addresses, all at once.
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

/// The members that any node names, with their addresses.
fn members(answers: &Answers) -> BTreeMap<u64, Option<String>> {
    let named = answers.values().flatten().flat_map(|status| &status.members);
    named.map(|member| (member.node, member.client_addr.clone())).collect()
}

/// The leader of the highest term, if a majority of its voters answers and follows it.
pub(crate) fn leader_with_quorum(answers: &Answers) -> Option<u64> {
    let statuses = || answers.values().flatten().filter(|status| status.stopped.is_none());
    let leader =
        statuses().filter(|status| status.role == NodeRole::Leader).max_by_key(|status| status.term)?;
    let voters: Vec<u64> =
        leader.members.iter().filter(|member| member.voter).map(|member| member.node).collect();
    let mut behind: Vec<u64> = statuses()
        .filter(|status| status.term == leader.term && status.leader == Some(leader.node))
        .map(|status| status.node)
        .filter(|node| voters.contains(node))
        .collect();
    behind.sort_unstable();
    // A node may have been asked at two addresses.
    behind.dedup();
    (behind.len() > voters.len() / 2).then_some(leader.node)
}

/// What each node answered; one that was asked at two addresses answers once.
fn statuses_by_node(answers: &Answers) -> BTreeMap<u64, &NodeStatus> {
    answers.values().flatten().map(|status| (status.node, status)).collect()
}

fn rows(answers: &Answers) -> Vec<Row> {
    let members = members(answers);
    let mut rows: Vec<Row> = Vec::new();
    for (address, answer) in answers {
        let known = members.iter().find(|(_, of)| of.as_deref() == Some(address)).map(|(node, _)| *node);
        rows.push(match answer {
            Ok(status) => answered(address, status),
            Err(reason) => unreachable(known, Some(address.clone()), reason),
        });
    }
    for node in members.iter().filter(|(_, address)| address.is_none()).map(|(node, _)| *node) {
        if !rows.iter().any(|row| row.node == Some(node)) {
            rows.push(unreachable(Some(node), None, "it serves no clients"));
        }
    }
    rows.sort_by_key(|row| (row.node.unwrap_or(u64::MAX), row.address.clone()));
    rows
}

fn answered(address: &str, status: &NodeStatus) -> Row {
    let stopped = status.stopped.is_some();
    let unless_stopped = |number: u64| (!stopped).then_some(number);
    Row {
        node: Some(status.node),
        address: Some(address.to_owned()),
        reachable: true,
        role: Some(if stopped { "stopped" } else { status.role.as_str() }),
        term: unless_stopped(status.term),
        leader: status.leader,
        commit_index: unless_stopped(status.commit_index),
        applied_index: unless_stopped(status.applied_index),
        apply_lag: unless_stopped(status.commit_index.saturating_sub(status.applied_index)),
        persisted_index: unless_stopped(status.persisted_index),
        records: status.records.filter(|_| !stopped),
        log_bytes_on_disk: unless_stopped(status.log_bytes_on_disk),
        snapshots: Some(Snapshots::from(status)),
        ready: Some(status.ready),
        version: Some(status.version.clone()),
        stands_at: status.stands_at.map(|(term, index)| format!("{term}:{index}")),
        command_version_max: Some(status.command_version_max).filter(|version| *version > 0),
        command_version_allowed: status.command_version_allowed.filter(|version| *version > 0),
        reason: status
            .stopped
            .clone()
            .or_else(|| status.apply_stopped.clone())
            .or_else(|| Some(status.refusals.join("; ")).filter(|refusals| !refusals.is_empty())),
        refusals: status.refusals.clone(),
        alarms: status.alarms.clone(),
    }
}

fn unreachable(node: Option<u64>, address: Option<String>, reason: &str) -> Row {
    Row {
        node,
        address,
        reachable: false,
        role: None,
        term: None,
        leader: None,
        commit_index: None,
        applied_index: None,
        apply_lag: None,
        persisted_index: None,
        records: None,
        log_bytes_on_disk: None,
        snapshots: None,
        ready: None,
        version: None,
        stands_at: None,
        command_version_max: None,
        command_version_allowed: None,
        reason: Some(reason.to_owned()),
        refusals: Vec::new(),
        alarms: Vec::new(),
    }
}

fn print_table(rows: &[Row]) {
    const HEAD: [&str; 11] = [
        "NODE", "ADDRESS", "ROLE", "TERM", "LEADER", "COMMIT", "APPLIED", "SNAPSHOT", "LOG", "READY",
        "REASON",
    ];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let number = |value: Option<u64>| or_dash(value.map(|number| number.to_string()));
    let mut table = vec![HEAD.map(str::to_owned)];
    for row in rows {
        table.push([
            number(row.node),
            or_dash(row.address.clone()),
            row.role.unwrap_or("unreachable").to_owned(),
            number(row.term),
            number(row.leader),
            number(row.commit_index),
            number(row.applied_index),
            number(row.snapshots.as_ref().and_then(Snapshots::newest_index)),
            or_dash(row.log_bytes_on_disk.map(|bytes| DecimalBytes(bytes).to_string())),
            or_dash(row.ready.map(|ready| if ready { "yes" } else { "no" }.to_owned())),
            row.reason.clone().unwrap_or_default(),
        ]);
    }
    let width = |column: usize| table.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &table {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    // Answers of real clusters are shown in `tests/`.
    use super::*;

    #[test]
    fn an_address_without_an_answer_is_a_row_of_its_own() {
        let answers = Answers::from([("127.0.0.1:1".to_owned(), Err("refused".to_owned()))]);
        let rows = rows(&answers);
        assert_eq!(rows.len(), 1);
        assert!(!rows[0].reachable);
        assert_eq!(rows[0].reason.as_deref(), Some("refused"));
        assert_eq!(leader_with_quorum(&answers), None);
    }
}
