//! Progress bars on stderr.

use std::fmt::{Display, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::exit::say;

/// How often a sign of life moves.
const TICK: Duration = Duration::from_millis(100);

/// A progress bar on stderr; nothing when that is no terminal.
pub(crate) fn progress(what: &str, records: usize) -> ProgressBar {
    let bar = ProgressBar::new(records as u64);
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        // Drawing is best effort.
        write!(out, "{:.0}/s", state.per_sec()).ok();
    };
    if let Ok(style) = ProgressStyle::with_template("  {prefix:12} [{bar:40}] {pos}/{len} {rate}") {
        bar.set_style(style.progress_chars("=> ").with_key("rate", rate));
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// A sign on stderr that something goes on, with a message that changes; nothing when that is no terminal.
pub(crate) fn waiting(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// Prints a line above the bar.
pub(crate) fn tell(bar: &ProgressBar, line: impl Display) {
    bar.suspend(|| say(line));
}
