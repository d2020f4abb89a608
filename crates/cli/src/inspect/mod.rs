//! `log dump` and `snapshot inspect`: what is in the files of a node that does not run.
//!
//! `report.rs` collects what is printed, as it is printed with `--json`; `text.rs` writes the same
//! for people. `dump.rs` and `archive.rs` are the two commands.

mod archive;
mod dump;
mod out;
mod report;
mod text;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use d_engine_offline::inspect::InspectError;
use indicatif::{DecimalBytes, ProgressBar};

use crate::args::{LogArgs, LogVerb, SnapshotInspectArgs};
use crate::exit::{Exit, Failure};
use crate::progress::waiting;
use crate::signals::StopSignals;

/// How long the thread that reads may take to end after Ctrl-C. It does not end while it is blocked
/// by a pipe without a reader.
const LAST_LINE: Duration = Duration::from_millis(300);
/// Bytes between two updates of the progress line.
const UPDATE_EVERY: u64 = 4 << 20;

pub(crate) async fn log(args: LogArgs) -> Result<(), Failure> {
    let LogVerb::Dump(args) = args.verb;
    interruptible(move |stop| dump::dump(&args, stop)).await
}

pub(crate) async fn snapshot(args: SnapshotInspectArgs) -> Result<(), Failure> {
    interruptible(move |stop| archive::inspect(&args, stop)).await
}

/// Set by Ctrl-C and SIGTERM.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn flow(&self) -> ControlFlow<()> {
        match self.0.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Runs work that blocks, on a thread of its own, until its end or a signal.
async fn interruptible(
    work: impl FnOnce(&Stop) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let stop = Stop::default();
    let watched = stop.clone();
    let mut running = tokio::task::spawn_blocking(move || work(&watched));
    let signal = tokio::select! {
        ended = &mut running => {
            return ended.map_err(|error| Failure::failed(format!("the reader failed: {error}")))?;
        }
        signal = signals.next() => signal,
    };
    stop.0.store(true, Ordering::Relaxed);
    tokio::time::timeout(LAST_LINE, running).await.ok();
    Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}")))
}

/// A progress line on stderr that counts bytes.
struct Reading {
    bar: ProgressBar,
    bytes: u64,
    shown: u64,
}

impl Reading {
    fn begin(what: &str) -> Self {
        Self { bar: waiting(what), bytes: 0, shown: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes - self.shown >= UPDATE_EVERY {
            self.shown = self.bytes;
            self.bar.set_message(format!("{} so far", DecimalBytes(self.bytes)));
        }
    }

    fn end(self) {
        self.bar.finish_and_clear();
    }
}

fn failure(error: InspectError) -> Failure {
    let exit = match &error {
        InspectError::NotADirectory { .. } => Exit::Refused,
        error if error.is_missing() => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
