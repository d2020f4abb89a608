//! Progress bars on stderr.

use std::fmt::{Display, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::exit::say;

/// Interval at which the spinner moves.
const TICK: Duration = Duration::from_millis(100);

/// A progress bar on stderr; hidden if stderr is not a terminal.
pub(crate) fn progress(what: &str, records: usize) -> ProgressBar {
    let bar = ProgressBar::new(records as u64);
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        // Errors of drawing are ignored.
        write!(out, "{:.0}/s", state.per_sec()).ok();
    };
    if let Ok(style) = ProgressStyle::with_template("  {prefix:12} [{bar:40}] {pos}/{len} {rate}") {
        bar.set_style(style.progress_chars("=> ").with_key("rate", rate));
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// A progress bar that counts bytes, on stderr; hidden if stderr is not a terminal.
pub(crate) fn bytes(what: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let template = "  {prefix} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// A spinner on stderr with a changing message; hidden if stderr is not a terminal.
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
