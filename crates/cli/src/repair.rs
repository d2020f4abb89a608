//! `d-engine repair`: mends a log that is damaged in the middle.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use d_engine_offline::repair::{
    Cause, Plan, Progress, RepairError, RepairRequest, RepairedDirectory, repair as repair_offline,
};
use d_engine_offline::{Fs, RealFs};

use crate::args::RepairArgs;
use crate::blocking::{Reading, Stop, interruptible};
use crate::exit::{Exit, Failure, say};

pub(crate) async fn repair(args: RepairArgs) -> Result<(), Failure> {
    interruptible(move |stop| run(args, stop)).await
}

fn run(args: RepairArgs, stop: &Stop) -> Result<(), Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(since.as_millis()).unwrap_or_default();
    let request = RepairRequest { data_dir: args.data_dir, at_ms };
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let mut reading = Reading::begin("repairing");
    let repaired = repair_offline(&fs, &request, &mut |progress| {
        let (Progress::Read(bytes) | Progress::Written(bytes)) = progress;
        reading.add(bytes);
        stop.flow()
    });
    reading.end();
    report(&repaired.map_err(failure)?);
    Ok(())
}

fn report(repaired: &RepairedDirectory) {
    let node = repaired.owner.node;
    match &repaired.plan {
        Some(plan) => say(format_args!("node {node}: {}", text(plan))),
        None => say(format_args!("node {node}: finished what an earlier run had built")),
    }
    say(format_args!("the damaged directory is {}", repaired.old_dir.display()));
    say(match repaired.plan {
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
