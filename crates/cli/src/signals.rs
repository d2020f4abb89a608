//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// Receives Ctrl-C and SIGTERM. Once it is created, neither ends the process by default.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// Keeps SIGXFSZ from killing the process: a write beyond the file size limit (`ulimit -f`)
    /// then fails with an error instead. No code waits for this signal.
    _file_size: Signal,
}

/// The signal's number on Linux, macOS and the BSDs.
const SIGXFSZ: i32 = 25;

impl StopSignals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::failed(format!("signals cannot be received: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            _file_size: listen(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// Waits for one of the two signals; returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
