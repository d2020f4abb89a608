//! How the command ends, and what it says on its way.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;

use d_engine_client::{ClientError, KvError};

/// The exit codes, as `--help` tells them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// Something failed.
    Failed = 1,
    /// The command line or the config cannot be used (clap uses the same number).
    Refused = 2,
    /// `get`: the key has no value.
    Absent = 3,
    /// A change may or may not have taken effect.
    Unknown = 4,
    /// `cas`: another value was there.
    Mismatch = 5,
    /// Ctrl-C or SIGTERM ended a command that was not done (128 + SIGINT, as shells count).
    Interrupted = 130,
}

/// Why the command does not end with 0.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    /// For people, on stderr; empty: the exit code says it all.
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The command line or what it names cannot be used.
    pub(crate) fn refused(message: impl Display) -> Self {
        Self::new(Exit::Refused, message)
    }

    pub(crate) fn is_interrupt(&self) -> bool {
        self.exit == Exit::Interrupted
    }

    /// Has `say` say why; only the exit code is left to be reported.
    pub(crate) fn said_by(self, say: impl FnOnce(String)) -> Self {
        if !self.message.is_empty() {
            say(format!("{PREFIX}{self}"));
        }
        Self { message: String::new(), ..self }
    }

    /// Says why, and gives the exit code.
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

/// Before what people are told on stderr.
const PREFIX: &str = "d-engine: ";

/// Why a line was not printed, if one was not: the command fails in the end.
static NOT_PRINTED: OnceLock<String> = OnceLock::new();

/// Prints a line. A reader that has gone away is no reason to fail; a line that cannot be written is, and `unprinted`
/// says so at the end.
pub(crate) fn say(line: impl Display) {
    if let Err(error) = try_say(line)
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first one counts.
        NOT_PRINTED.get_or_init(|| error.to_string());
    }
}

/// Prints a line that is not what the command is for.
pub(crate) fn try_say(line: impl Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// The failure of a command that has done everything but printed not all of it.
pub(crate) fn unprinted() -> Result<(), Failure> {
    match NOT_PRINTED.get() {
        None => Ok(()),
        Some(error) => Err(Failure::failed(format_args!("the output cannot be written: {error}"))),
    }
}

/// Tells people something on stderr that is no failure. Nobody may be listening any more.
pub(crate) fn note(line: impl Display) {
    writeln!(std::io::stderr(), "{PREFIX}{line}").ok();
}
