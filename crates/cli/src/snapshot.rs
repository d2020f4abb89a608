//! `d-engine snapshot`: makes nodes take a snapshot.

use std::time::Duration;

use d_engine_client::{Client, ClientError, TakenSnapshot};
use indicatif::{DecimalBytes, ProgressBar};
use serde::Serialize;

use crate::args::{SnapshotArgs, SnapshotVerb};
use crate::exit::{Exit, Failure, note, say};
use crate::inspect;
use crate::json::hex;
use crate::progress::waiting;
use crate::signals::StopSignals;
use crate::status::ask_everybody;

/// Interval between progress polls.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A node's snapshot, or why it has none.
#[derive(Serialize, Debug)]
struct Row {
    node: Option<u64>,
    address: String,
    index: Option<u64>,
    term: Option<u64>,
    bytes: Option<u64>,
    sha256: Option<String>,
    reason: Option<String>,
}

pub(crate) async fn snapshot(mut args: SnapshotArgs) -> Result<(), Failure> {
    if let Some(SnapshotVerb::Inspect(args)) = args.verb.take() {
        return inspect::snapshot(args).await;
    }
    let mut signals = StopSignals::listen()?;
    tokio::select! {
        result = take(args) => result,
        signal = signals.next() => {
            let message =
                format!("interrupted by {signal}; a node that has begun a snapshot continues it");
            Err(Failure::new(Exit::Interrupted, message))
        }
    }
}

async fn take(args: SnapshotArgs) -> Result<(), Failure> {
    let client = args.cluster.client()?;
    let mut rows: Vec<Row> = Vec::new();
    for (address, answer) in ask_everybody(&client, args.cluster.endpoints.addresses()).await {
        let node = answer.as_ref().ok().map(|status| status.node);
        let is_again = node.is_some() && rows.iter().any(|row| row.node == node);
        if is_again || args.node.is_some_and(|wanted| node.is_some_and(|node| node != wanted)) {
            continue;
        }
        let taken = match answer {
            // One node at a time, so that the others serve clients undisturbed.
            Ok(_) => take_at(&client, &address, args.wait).await,
            // With `--node`, an address that does not answer cannot be shown to be that node.
            Err(_) if args.node.is_some() => continue,
            Err(reason) => Err(reason),
        };
        let row = row(node, address, taken);
        if !args.json {
            print(&row);
        }
        rows.push(row);
    }
    if args.json {
        let json = serde_json::to_string_pretty(&rows);
        say(json.map_err(|error| Failure::failed(format!("the JSON cannot be written: {error}")))?);
    }
    match (rows.iter().filter(|row| row.reason.is_some()).count(), args.node) {
        (_, Some(node)) if rows.is_empty() => Err(Failure::failed(format!(
            "node {node} was not found; `d-engine status` shows which nodes answer"
        ))),
        (0, _) => Ok(()),
        (failed, _) => {
            Err(Failure::failed(format!("{failed} of {} nodes took no snapshot", rows.len())))
        }
    }
}

/// Makes one node take a snapshot and shows the progress.
async fn take_at(
    client: &Client,
    address: &str,
    timeout: Duration,
) -> Result<TakenSnapshot, String> {
    let bar = waiting(&format!("{address} takes a snapshot"));
    let patient = client.with_timeout(timeout);
    let taken = patient.take_snapshot(address);
    tokio::pin!(taken);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let taken = loop {
        tokio::select! {
            taken = &mut taken => break taken,
            _ = looks.tick() => show_building(client, address, &bar).await,
        }
    };
    bar.finish_and_clear();
    taken.map_err(|error| match error {
        ClientError::DeadlineElapsed { .. } => {
            format!(
                "no snapshot within {timeout:?}; one that has begun continues on the node; allow \
                 more time with --wait"
            )
        }
        error => error.to_string(),
    })
}

/// Shows how much of a snapshot a node has built.
pub(crate) async fn show_building(client: &Client, address: &str, bar: &ProgressBar) {
    if bar.is_hidden() {
        return;
    }
    if let Ok(status) = client.status(address).await
        && let Some(bytes) = status.snapshots.building
    {
        bar.set_message(format!("{} so far", DecimalBytes(bytes)));
    }
}

fn row(node: Option<u64>, address: String, taken: Result<TakenSnapshot, String>) -> Row {
    let (taken, reason) = match taken {
        Ok(taken) => (Some(taken), None),
        Err(reason) => (None, Some(reason)),
    };
    Row {
        node,
        address,
        index: taken.as_ref().map(|taken| taken.index),
        term: taken.as_ref().map(|taken| taken.term),
        bytes: taken.as_ref().map(|taken| taken.bytes),
        sha256: taken.map(|taken| hex(&taken.sha256)),
        reason,
    }
}

fn print(row: &Row) {
    let who = row.node.map_or_else(|| row.address.clone(), |node| format!("node {node}"));
    match (row.index, row.term, row.bytes) {
        (Some(index), Some(term), Some(bytes)) => {
            say(format_args!(
                "{who}: a snapshot up to entry {index} of term {term}, {}",
                DecimalBytes(bytes)
            ));
        }
        _ => note(format_args!("{who}: {}", row.reason.as_deref().unwrap_or("no snapshot"))),
    }
}
