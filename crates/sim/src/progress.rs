//! Reports to standard error how far a long series is.

use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The time between two reports.
const EVERY: Duration = Duration::from_secs(10);

/// How far a series is.
pub(crate) struct Progress {
    /// Seeds that were run.
    pub(crate) runs: u64,
    /// The failing seeds among them.
    pub(crate) failed: Vec<u64>,
    /// Simulated seconds per second and core.
    pub(crate) speed: f64,
}

/// Whether to report: if asked to, or if somebody may be watching.
pub(crate) fn is_wanted(is_asked: bool) -> bool {
    is_asked || std::io::stderr().is_terminal()
}

/// Reports every ten seconds until the other end of `ended` is dropped. `look` is given the seconds
/// since the beginning.
pub(crate) fn report(of: usize, ended: &Receiver<()>, look: impl Fn(f64) -> Progress) {
    let started = Instant::now();
    while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        let Progress { runs, failed, speed } = look(started.elapsed().as_secs_f64());
        eprintln!(
            "{} s: {runs} of {of} seeds, {} findings {failed:?}, {speed:.0} simulated seconds per \
             second and core",
            started.elapsed().as_secs(),
            failed.len(),
        );
    }
}
