//! A `d-engine member` command, as an operator types it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::shell::{Outcome, doing};

/// The `--timeout` of a change.
const TIMEOUT: &str = "15s";
/// A command that runs longer than this hangs. Removing a leader may take the timeout twice, and
/// then 10 s until the next leader is known.
const HANGS_AFTER: Duration = Duration::from_secs(50);
/// The timeout of a list, after all faults have ended.
const LIST_TIMEOUT: &str = "10s";

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The goal is reached.
    Done,
    /// Not done for a reason that an operator expects, who then tries again.
    Again(&'static str),
    /// The command must not end like this.
    Strange(String),
}

/// The reasons to try again, each with the text by which the command reports it.
const REASONS: &[(&str, &str)] = &[
    ("too few ", "refused: too few voters answer"),
    ("another membership change or a leadership transfer", "refused: another change"),
    ("is not reached at", "refused: not reached at its new address"),
    ("no leader was found", "no leader"),
    ("is transferring leadership", "leadership transfer"),
    ("cannot be reached", "no node reached"),
    ("no response from", "no response in time"),
    (" is busy (", "busy"),
    ("does not serve callers", "node stopped"),
];

/// A command that runs.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) words: String,
    child: Child,
    began: Duration,
}

impl Call {
    /// Starts `d-engine member` with these words at `now`.
    pub(super) fn start(
        binary: &Path,
        words: &[String],
        endpoints: &[String],
        now: Duration,
    ) -> Outcome<Self> {
        let mut command = Command::new(binary);
        command.arg("member").args(words).args(["--timeout", TIMEOUT, "--endpoints"]);
        command.arg(endpoints.join(","));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(doing("d-engine member"))?;
        Ok(Self { words: words.join(" "), child, began: now })
    }

    /// Whether the command has ended, or hangs; a command that hangs is killed.
    pub(super) fn is_over(&mut self, now: Duration) -> Outcome<bool> {
        if self.child.try_wait().map_err(doing("d-engine member"))?.is_some() {
            return Ok(true);
        }
        let hangs = now.saturating_sub(self.began) > HANGS_AFTER;
        if hangs {
            self.child.kill().map_err(doing("d-engine member"))?;
        }
        Ok(hangs)
    }

    /// Returns how the command ended, once it is over, with its last line.
    pub(super) fn end(self) -> Outcome<(Answer, String)> {
        let output = self.child.wait_with_output().map_err(doing("d-engine member"))?;
        Ok(answer(&output))
    }
}

fn answer(output: &Output) -> (Answer, String) {
    let text = String::from_utf8_lossy(&output.stderr);
    let done = String::from_utf8_lossy(&output.stdout);
    let last = |text: &str| text.lines().last().unwrap_or_default().to_owned();
    let said = last(&text);
    let again = REASONS.iter().find(|(part, _)| said.contains(part)).map(|(_, reason)| *reason);
    let answer = match (output.status.code(), again) {
        (Some(0), _) => return (Answer::Done, last(&done)),
        (Some(4), _) => Answer::Again("outcome unknown"),
        (Some(1), Some(reason)) => Answer::Again(reason),
        (None, _) => Answer::Strange(format!("it hung and was killed after {HANGS_AFTER:?}")),
        _ => Answer::Strange(format!("{}: {said}", output.status)),
    };
    (answer, said)
}

/// Returns the configuration that the cluster has according to `d-engine member list --json` at one
/// node. The error says why there is no committed one.
pub(super) fn listed(binary: &Path, endpoint: &str) -> Outcome<String> {
    let mut command = Command::new(binary);
    command.args(["member", "list", "--json", "--timeout", LIST_TIMEOUT, "--endpoints", endpoint]);
    let output = command.output().map_err(doing("d-engine member list"))?;
    let (text, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() || !text.contains("\"committed\":true") {
        return Err(format!("{}: {text}{said}", output.status));
    }
    let (_, rest) = text.split_once("\"configuration\":\"").unwrap_or_default();
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn ended(code: i32, stderr: &str) -> Answer {
        let status = ExitStatus::from_raw(code << 8);
        let (stdout, stderr) = (Vec::new(), stderr.as_bytes().to_vec());
        answer(&Output { status, stdout, stderr }).0
    }

    #[test]
    fn an_operator_tries_again_what_is_refused_for_now_and_reports_all_else() {
        assert_eq!(ended(0, ""), Answer::Done);
        assert_eq!(ended(4, "d-engine: anything"), Answer::Again("outcome unknown"));
        let refused = "d-engine: too few of the present voters answer and keep up";
        assert_eq!(ended(1, refused), Answer::Again("refused: too few voters answer"));
        let waits = "d-engine: waiting for a leader\nd-engine: no leader was found within 15s";
        assert_eq!(ended(1, waits), Answer::Again("no leader"));
        assert!(matches!(ended(1, "d-engine: a panic"), Answer::Strange(_)));
        assert!(matches!(ended(101, refused), Answer::Strange(_)));
        let killed =
            Output { status: ExitStatus::from_raw(9), stdout: Vec::new(), stderr: Vec::new() };
        assert!(matches!(answer(&killed).0, Answer::Strange(_)));
    }
}
