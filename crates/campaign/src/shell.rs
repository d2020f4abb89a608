//! Runs the system's programs that cause the faults.

use std::fmt::Display;
use std::process::Command;

/// The result of a step; the error is a sentence for a reader.
pub(crate) type Outcome<T> = Result<T, String>;

/// Runs a command line, its words separated by spaces, and waits for its end.
pub(crate) fn run(line: &str) -> Outcome<String> {
    let mut words = line.split_whitespace();
    let program = words.next().ok_or("an empty command line")?;
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| format!("`{line}` cannot be run: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("`{line}` failed ({}): {said}", output.status))
    }
}

/// Turns an error into a sentence that names the failed step.
pub(crate) fn doing<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}
