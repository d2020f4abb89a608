//! Lines on stdout, many of them.

use std::fmt::Display;
use std::io::{BufWriter, ErrorKind, StdoutLock, Write as _};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::exit::Failure;

/// Writes lines to stdout until the reader has closed the pipe.
pub(super) struct Out {
    stdout: BufWriter<StdoutLock<'static>>,
    error: Option<std::io::Error>,
}

impl Out {
    pub(super) fn begin() -> Self {
        Self { stdout: BufWriter::new(std::io::stdout().lock()), error: None }
    }

    /// Writes a line. `Break`: nobody reads any more, or nothing can be written.
    pub(super) fn line(&mut self, line: impl Display) -> ControlFlow<()> {
        if self.error.is_none() {
            self.error = writeln!(self.stdout, "{line}").err();
        }
        match self.error {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }

    /// Writes a line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> ControlFlow<()> {
        match serde_json::to_string(value) {
            Ok(line) => self.line(line),
            Err(error) => {
                self.error = Some(error.into());
                ControlFlow::Break(())
            }
        }
    }

    /// Writes what is buffered. That the reader has closed the pipe is no failure.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        let error = match self.error.take() {
            Some(error) => Some(error),
            None => self.stdout.flush().err(),
        };
        match error {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::failed(format!("the output cannot be written: {error}")))
            }
            _ => Ok(()),
        }
    }
}
