//! `d-engine status`: shows every node of the cluster, as a table or as JSON.

mod answers;
mod commands;
mod contradictions;
mod losses;
mod rows;
mod snapshots;

use serde::Serialize;

use self::answers::statuses_by_node;
pub(crate) use self::answers::{Answers, ask_all, ask_everybody, leader_with_quorum};
use self::contradictions::contradictions;
use self::losses::losses;
use self::rows::{Row, print_table, rows};
use crate::args::StatusArgs;
use crate::exit::{Failure, say};

/// The whole report.
#[derive(Serialize, Debug)]
struct Report {
    /// The leader, if a majority follows it.
    leader: Option<u64>,
    /// Statements of nodes that cannot all be true of one cluster.
    contradictions: Vec<String>,
    /// Proof that a node has lost entries that it had acknowledged.
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
        say(json.map_err(|error| Failure::failed(format!("the JSON cannot be written: {error}")))?);
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
            if statuses_by_node(&asked)
                .get(&leader)
                .is_some_and(|it| it.apply_stopped.is_some()) =>
        {
            Err(Failure::failed(format_args!(
                "node {leader} leads, but its state machine has halted and it refuses all clients; \
                 the table shows the reason"
            )))
        }
        Some(_) => Ok(()),
        None => Err(Failure::failed(
            "no leader that a majority of the voters follows; start the nodes that do not answer, and \
             check the reason that the others show",
        )),
    }
}
