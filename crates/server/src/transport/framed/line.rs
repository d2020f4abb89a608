//! A connection for one snapshot. Handshake and frames are those of messages, but a thread that may
//! block uses it, because it reads and writes files too.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use d_engine_replica::SnapshotMessage;
use d_engine_wire::{MAX_SNAPSHOT_FRAME_BYTES, decode_snapshot_frame, encode_snapshot_frame};

use super::wire::{self, FrameReader};

/// How long one write may wait for the other side to read, unless
/// [`SnapshotConnection::set_timeout`] sets another timeout.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection for one snapshot, after its handshake. Dropping it closes it.
#[derive(Debug)]
pub struct SnapshotConnection {
    stream: TcpStream,
    reader: FrameReader,
}

impl SnapshotConnection {
    /// Takes over a connection after its handshake; `reader` may hold bytes that arrived after it.
    pub(super) fn new(stream: tokio::net::TcpStream, mut reader: FrameReader) -> io::Result<Self> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        reader.allow(MAX_SNAPSHOT_FRAME_BYTES);
        Ok(Self { stream, reader })
    }

    /// Sets how long one write may wait for the other side to read.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection broke, or the other side does not read. Drop the connection.
    pub fn send(&mut self, message: &SnapshotMessage) -> io::Result<()> {
        let payload = encode_snapshot_frame(message);
        let header = wire::header(&[&payload]);
        let written = self.stream.write_all(&header).and_then(|()| self.stream.write_all(&payload));
        written.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "the other node has not read for too long")
            }
            _ => error,
        })
    }

    /// Waits for the next message; `None` if none arrives within `wait`.
    ///
    /// # Errors
    /// The connection broke or was closed, or the bytes are not a message. Drop the connection.
    pub fn receive(&mut self, wait: Duration) -> io::Result<Option<SnapshotMessage>> {
        self.stream.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        loop {
            if let Some(payload) = self.reader.next().map_err(|(_, text)| invalid(text))? {
                // An empty payload would be a ping; no side sends pings here.
                return decode_snapshot_frame(&payload)
                    .map(Some)
                    .map_err(|error| invalid(error.to_string()));
            }
            let mut bytes = [0; 64 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.reader.reserve();
                    self.reader.buffer().extend_from_slice(bytes.get(..read).unwrap_or_default());
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns a handle that breaks the connection from another thread.
    ///
    /// # Errors
    /// The process has no free file descriptor.
    pub fn breaker(&self) -> io::Result<LineBreaker> {
        self.stream.try_clone().map(LineBreaker)
    }
}

/// Breaks a [`SnapshotConnection`] that another thread uses.
#[derive(Debug)]
pub struct LineBreaker(TcpStream);

impl LineBreaker {
    #[cfg(test)]
    pub(crate) fn of(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// Breaks the connection: a pending read or write on it fails at once.
    pub fn break_line(&self) {
        // The connection may already be broken.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
