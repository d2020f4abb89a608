//! `d-engine backup verify`.

use std::path::PathBuf;

use d_engine_offline::RealFs;
use d_engine_offline::backup::{SnapshotError, Verified, verify as verify_offline};
use d_engine_offline::inspect::rfc3339;
use serde::Serialize;

use super::transfer::failure;
use crate::args::BackupVerifyArgs;
use crate::blocking::{Reading, Stop, interruptible};
use crate::exit::{Exit, Failure, say};
use crate::json::hex;

/// An intact backup.
#[derive(Serialize, Debug)]
struct Report {
    file: PathBuf,
    cluster_id: String,
    index: u64,
    term: u64,
    log_time: String,
    members: Vec<u64>,
    configuration: String,
    /// The name of the state machine; empty if unknown.
    machine: String,
    bytes: u64,
    sha256: String,
}

pub(super) async fn verify(args: BackupVerifyArgs) -> Result<(), Failure> {
    interruptible(move |stop| run(args, stop)).await
}

fn run(args: BackupVerifyArgs, stop: &Stop) -> Result<(), Failure> {
    let mut reading = Reading::begin("verifying");
    let verified = verify_offline(&RealFs::new(), &args.file, &mut |bytes| {
        reading.add(bytes);
        stop.flow()
    });
    reading.end();
    let verified = verified.map_err(|error| match error {
        SnapshotError::Aborted => Failure::new(Exit::Interrupted, ""),
        SnapshotError::Damaged { .. } => Failure::failed(format!(
            "{error}; `d-engine snapshot inspect` names everything that is damaged"
        )),
        error => failure(error),
    })?;
    let is_json = args.json;
    let report = report(args.file, &verified);
    if is_json {
        let json = serde_json::to_string_pretty(&report);
        say(json.map_err(|error| Failure::failed(format!("the JSON cannot be written: {error}")))?);
        return Ok(());
    }
    let members: Vec<String> = report.members.iter().map(u64::to_string).collect();
    say(format_args!(
        "entry {} of term {} of cluster {}, log time {}, members {} (configuration {}), {} bytes, \
         SHA-256 {}: intact",
        report.index,
        report.term,
        report.cluster_id,
        report.log_time,
        members.join(" "),
        report.configuration,
        report.bytes,
        report.sha256
    ));
    Ok(())
}

fn report(file: PathBuf, verified: &Verified) -> Report {
    let facts = &verified.header.facts;
    Report {
        file,
        cluster_id: verified.header.cluster.to_string(),
        index: facts.last_included.index.get(),
        term: facts.last_included.term.get(),
        log_time: rfc3339(facts.time_ms),
        members: facts.membership.members().iter().map(|member| member.node).collect(),
        configuration: facts.membership.id().to_string(),
        machine: facts.machine.clone(),
        bytes: verified.bytes,
        sha256: hex(&verified.sha256),
    }
}
