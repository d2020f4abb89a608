//! Being asked to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// Ctrl-C and SIGTERM. From its creation on, neither ends the process by itself.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// A write beyond the limit on the size of files (`ulimit -f`) then fails, with a reason, in the place of ending the
    /// process without a word. Nobody waits for it.
    _file_size: Signal,
}

/// The signal's number on Linux, macOS and the BSDs.
const SIGXFSZ: i32 = 25;

impl StopSignals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::failed(format!("signals cannot be received: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            _file_size: listen(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// Waits for either; returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
