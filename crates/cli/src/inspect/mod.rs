//! `log dump` and `snapshot inspect`: what is in the files of a node that does not run.
//!
//! `report.rs` collects what is printed, as it is printed with `--json`; `text.rs` writes the same
//! for people. `dump.rs` and `archive.rs` are the two commands.

mod archive;
mod dump;
mod out;
mod report;
mod text;

use std::borrow::Borrow;

use d_engine_offline::inspect::InspectError;

use crate::args::{LogArgs, LogVerb, SnapshotInspectArgs};
use crate::blocking::interruptible;
use crate::exit::{Exit, Failure};

pub(crate) async fn log(args: LogArgs) -> Result<(), Failure> {
    let LogVerb::Dump(args) = args.verb;
    interruptible(move |stop| dump::dump(&args, stop)).await
}

pub(crate) async fn snapshot(args: SnapshotInspectArgs) -> Result<(), Failure> {
    interruptible(move |stop| archive::inspect(&args, stop)).await
}

/// The failure of a command that could not read a directory or file.
pub(crate) fn failure(error: impl Borrow<InspectError>) -> Failure {
    let error = error.borrow();
    let exit = match error {
        InspectError::NotADirectory { .. } => Exit::Refused,
        error if error.is_missing() => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
