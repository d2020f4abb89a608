//! `d-engine repair`: mends a log that is damaged in the middle, and fetches a snapshot that is
//! missing.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use d_engine_client::NodeStatus;
use d_engine_offline::repair::{
    Cause, Fetch, MissingSnapshot, Plan, Progress, RepairError, RepairRequest, RepairedDirectory,
    RepairedLog, repair as repair_offline,
};
use d_engine_offline::{Fs, RealFs};

use crate::args::RepairArgs;
use crate::backup::receive_from;
use crate::blocking::{Reading, Stop, interruptible};
use crate::exit::{Exit, Failure, note, say};
use crate::json::hex;
use crate::recover::followed;

pub(crate) async fn repair(args: RepairArgs) -> Result<(), Failure> {
    interruptible(move |stop| run(args, stop)).await
}

fn run(args: RepairArgs, stop: &Stop) -> Result<(), Failure> {
    let RepairArgs { data_dir, from, wait } = args;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(since.as_millis()).unwrap_or_default();
    let request = RepairRequest { data_dir: followed(data_dir), at_ms };
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let mut reading = Reading::begin("repairing");
    let (mut refused, mut sender) = (None, None);
    let address = from.as_deref();
    let mut fetch = |missing: &MissingSnapshot| match fetch(address, wait, missing, stop) {
        Ok(node) => {
            sender = Some(node);
            ControlFlow::Continue(())
        }
        Err(failure) => {
            refused = Some(failure);
            ControlFlow::Break(())
        }
    };
    let fetch: Option<Fetch<'_>> = address.is_some().then_some(&mut fetch);
    let repaired = repair_offline(&fs, &request, fetch, &mut |progress| {
        let (Progress::Read(bytes) | Progress::Written(bytes)) = progress;
        reading.add(bytes);
        stop.flow()
    });
    reading.end();
    if let Some(refused) = refused {
        return Err(refused);
    }
    let repaired = repaired.map_err(failure)?;
    report(&repaired, sender);
    if address.is_some() && repaired.fetched.is_none() {
        note("no snapshot is missing: --from was not needed");
    }
    Ok(())
}

/// Fetches the missing snapshot from the member at this address. Returns the member's id.
fn fetch(
    address: Option<&str>,
    wait: Duration,
    missing: &MissingSnapshot,
    stop: &Stop,
) -> Result<u64, Failure> {
    let address = address.unwrap_or_default();
    let expected = missing.owner.cluster;
    let check = |status: &NodeStatus| match status.cluster_id == expected.0 {
        true => Ok(()),
        false => Err(Failure::refused(format_args!(
            "{address} is node {} of cluster {}, and the directory is of cluster {expected}; name \
             another member of its own cluster",
            status.node,
            hex(&status.cluster_id)
        ))),
    };
    let received = receive_from(address, wait, &missing.file, stop, check);
    tokio::runtime::Handle::current().block_on(received)
}

fn report(repaired: &RepairedDirectory, sender: Option<u64>) {
    let node = repaired.owner.node;
    if let Some(fetched) = repaired.fetched {
        let from = sender.map_or_else(String::new, |sender| format!(" of node {sender}"));
        say(format_args!("node {node}: the snapshot{from} up to entry {} is there", fetched.index));
    }
    let RepairedLog::Mended { plan, old_dir } = &repaired.log else {
        say("start the node");
        return;
    };
    match plan {
        Some(plan) => say(format_args!("node {node}: {}", text(plan))),
        None => say(format_args!("node {node}: finished what an earlier run had built")),
    }
    say(format_args!("the damaged directory is {}", old_dir.display()));
    say(match plan {
        Some(plan) if plan.kept < plan.promised => format!(
            "start the node: it does not lead before it holds entry {} of term {} again",
            plan.promised.index, plan.promised.term
        ),
        _ => "start the node".to_owned(),
    });
}

fn text(plan: &Plan) -> String {
    let kept = match plan.snapshot {
        Some(snapshot) if snapshot == plan.kept => {
            format!("the log begins after the snapshot of entry {}", snapshot.index)
        }
        _ => format!("everything up to entry {} is kept", plan.kept.index),
    };
    let (first, last) = (plan.kept.index.next(), plan.promised.index);
    match first > last {
        true => kept,
        false => format!("{kept}; the leader sends entries {first} to {last} again"),
    }
}

fn failure(error: RepairError) -> Failure {
    let exit = match error {
        RepairError::Inspect(error) => return crate::inspect::failure(error),
        RepairError::Cannot { cause: Cause::Intact | Cause::Covered, .. }
        | RepairError::Occupied { .. } => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
