//! A connection for one snapshot: the same handshake and frames as for messages, but used by a thread that may
//! wait, because it reads and writes files too.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use d_engine_proto::engine::{MAX_SNAPSHOT_FRAME_BYTES, decode_snapshot_frame, encode_snapshot_frame};
use d_engine_replica::SnapshotMessage;

use super::wire::{self, FrameReader};

/// How long one write may wait for the other side to read, unless [`SnapshotLine::set_patience`] says otherwise.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection for one snapshot, after its handshake. Dropping it closes it.
#[derive(Debug)]
pub struct SnapshotLine {
    stream: TcpStream,
    reader: FrameReader,
}

impl SnapshotLine {
    /// Takes a connection over after its handshake; `reader` may hold bytes that came behind it.
    pub(super) fn new(stream: tokio::net::TcpStream, mut reader: FrameReader) -> io::Result<Self> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        reader.allow(MAX_SNAPSHOT_FRAME_BYTES);
        Ok(Self { stream, reader })
    }

    /// How long one write may wait for the other side to read.
    ///
    /// # Errors
    /// The system's answer.
    pub fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(patience.max(Duration::from_millis(1))))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection broke, or the other side does not read. Drop the line.
    pub fn send(&mut self, message: &SnapshotMessage) -> io::Result<()> {
        let payload = encode_snapshot_frame(message);
        let header = wire::header(&[&payload]);
        let written = self.stream.write_all(&header).and_then(|()| self.stream.write_all(&payload));
        written.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "the other side has read nothing for too long")
            }
            _ => error,
        })
    }

    /// Waits for the next message; `None` when none has come within `wait`.
    ///
    /// # Errors
    /// The connection broke or was closed, or what came is no message. Drop the line.
    pub fn receive(&mut self, wait: Duration) -> io::Result<Option<SnapshotMessage>> {
        self.stream.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        loop {
            if let Some(payload) = self.reader.next().map_err(|(_, text)| invalid(text))? {
                // A ping of the other side's transport has no payload; here nobody sends one.
                return decode_snapshot_frame(&payload).map(Some).map_err(|error| invalid(error.to_string()));
            }
            let mut bytes = [0; 64 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.reader.reserve();
                    self.reader.buffer().extend_from_slice(bytes.get(..read).unwrap_or_default());
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What breaks the connection from another thread.
    ///
    /// # Errors
    /// The system has no room for another handle.
    pub fn breaker(&self) -> io::Result<LineBreaker> {
        self.stream.try_clone().map(LineBreaker)
    }
}

/// Breaks a [`SnapshotLine`] that another thread uses.
#[derive(Debug)]
pub struct LineBreaker(TcpStream);

impl LineBreaker {
    #[cfg(test)]
    pub(crate) fn of(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// Whoever reads or writes there gets an error at once.
    pub fn break_line(&self) {
        // It may be broken already.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
