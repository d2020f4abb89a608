//! Work on files that blocks: it runs on a thread of its own, shows how many bytes it has handled,
//! and ends at Ctrl-C.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{DecimalBytes, ProgressBar};

use crate::exit::{Exit, Failure};
use crate::progress::waiting;
use crate::signals::StopSignals;

/// How long the thread that reads may take to end after Ctrl-C. It does not end while it is blocked
/// by a pipe without a reader.
const LAST_LINE: Duration = Duration::from_millis(300);
/// Bytes between two updates of the progress line.
const UPDATE_EVERY: u64 = 4 << 20;

/// Set by Ctrl-C and SIGTERM.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn flow(&self) -> ControlFlow<()> {
        match self.0.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Runs work that blocks, on a thread of its own, until its end or a signal.
pub(crate) async fn interruptible(
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
    stop.set();
    // It may have been done already.
    if let Ok(Ok(Ok(()))) = tokio::time::timeout(LAST_LINE, running).await {
        return Ok(());
    }
    Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}")))
}

/// A progress line on stderr that counts bytes.
pub(crate) struct Reading {
    bar: ProgressBar,
    bytes: u64,
    shown: u64,
}

impl Reading {
    pub(crate) fn begin(what: &str) -> Self {
        Self { bar: waiting(what), bytes: 0, shown: 0 }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes - self.shown >= UPDATE_EVERY {
            self.shown = self.bytes;
            self.bar.set_message(format!("{} so far", DecimalBytes(self.bytes)));
        }
    }

    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
    }
}
