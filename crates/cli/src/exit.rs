//! Exit codes, failures, and printing to stdout and stderr.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use d_engine_client::{ClientError, KvError};

/// The exit codes; `--help` lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// The command failed.
    Failed = 1,
    /// The command line or the config is invalid (clap uses the same number).
    Refused = 2,
    /// `get`: the key has no value.
    Absent = 3,
    /// A change may or may not have taken effect.
    Unknown = 4,
    /// `cas`: the current value is not the expected one.
    Mismatch = 5,
    /// `serve`: the node was removed from its cluster.
    Removed = 6,
    /// Ctrl-C or SIGTERM ended the command early (128 + SIGINT, the convention of shells).
    Interrupted = 130,
}

/// Why the command exits with another code than 0.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    /// Printed on stderr; empty if the exit code alone is enough.
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The command line, or a file or directory it names, cannot be used.
    pub(crate) fn refused(message: impl Display) -> Self {
        Self::new(Exit::Refused, message)
    }

    pub(crate) fn is_interrupt(&self) -> bool {
        self.exit == Exit::Interrupted
    }

    /// Passes the message to `say`, so that `report` only returns the exit code.
    pub(crate) fn said_by(self, say: impl FnOnce(String)) -> Self {
        if !self.message.is_empty() {
            say(format!("{PREFIX}{self}"));
        }
        Self { message: String::new(), ..self }
    }

    /// Prints the message on stderr and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            note(self);
        }
        ExitCode::from(self.exit as u8)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::OutcomeUnknown { .. } => Exit::Unknown,
            ClientError::BadEndpoint { .. } => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Client(error) => error.into(),
            KvError::Limit(_) | KvError::BatchTooLong { .. } => Self::new(Exit::Refused, error),
            _ if error.is_unknown() => Self::new(Exit::Unknown, error),
            _ => Self::new(Exit::Failed, error),
        }
    }
}

/// Prefix of every message on stderr.
const PREFIX: &str = "d-engine: ";

/// Why a line could not be printed, if one could not; the command then fails at its end.
static NOT_PRINTED: OnceLock<String> = OnceLock::new();
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints a line on stdout. A closed pipe is ignored; any other write error makes the command fail
/// at its end, through [`unprinted`].
pub(crate) fn say(line: impl Display) {
    match try_say(line) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            IS_CLOSED.store(true, Ordering::Relaxed);
        }
        // Keep the first error.
        Err(error) => drop(NOT_PRINTED.get_or_init(|| error.to_string())),
    }
}

/// Whether a line was printed into a closed pipe: nobody reads the next one either.
pub(crate) fn stdout_is_closed() -> bool {
    IS_CLOSED.load(Ordering::Relaxed)
}

/// Prints a line on stdout and returns the write error, for lines whose loss is no failure.
pub(crate) fn try_say(line: impl Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// Returns the failure of a command that succeeded but could not print all of its output.
pub(crate) fn unprinted() -> Result<(), Failure> {
    match NOT_PRINTED.get() {
        None => Ok(()),
        Some(error) => Err(Failure::failed(format_args!("the output cannot be written: {error}"))),
    }
}

/// Prints a note on stderr that is no failure. Write errors are ignored: stderr may be closed.
pub(crate) fn note(line: impl Display) {
    writeln!(std::io::stderr(), "{PREFIX}{line}").ok();
}

#[cfg(test)]
mod tests {
    use d_engine_client::UndecodableError;

    use super::*;

    /// A read changes nothing, so its outcome is never unknown (docs/command-line.md, exit codes).
    #[test]
    fn an_undecodable_reply_leaves_the_outcome_of_a_command_unknown_and_not_of_a_read() {
        let of = |error: KvError| Failure::from(error).exit;
        assert_eq!(of(KvError::Unreadable(UndecodableError::Unknown)), Exit::Unknown);
        assert_eq!(of(KvError::UnreadableRead(UndecodableError::Unknown)), Exit::Failed);
    }
}
