//! Progress bars on stderr.

use std::fmt::{Display, Write};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::exit::say;

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

/// Prints a line above the bar.
pub(crate) fn tell(bar: &ProgressBar, line: impl Display) {
    bar.suspend(|| say(line));
}
