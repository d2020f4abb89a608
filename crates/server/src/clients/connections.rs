//! Client connections, bounded in number. Further ones wait in the operating system's queue, which
//! is bounded too, and cost the node nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::node::descriptors;
use crate::threads::seldom::Seldom;

/// A connection and its permit.
pub(crate) struct ClientConnection {
    stream: TcpStream,
    /// The deadline for the client's HTTP/2 preface, and how many bytes of it are missing. A client
    /// that sends nothing must not hold a permit.
    silence: Option<(Pin<Box<Sleep>>, usize)>,
    _place: OwnedSemaphorePermit,
}

/// How long a client may take to send its HTTP/2 preface.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(5);
/// The length of the HTTP/2 connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// Accepts connections while there are permits. Ends when the receiver of `to` is closed.
pub(crate) async fn accept(
    node: u64,
    listener: TcpListener,
    places: usize,
    to: mpsc::Sender<io::Result<ClientConnection>>,
) {
    let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
    let mut told = Seldom::default();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = to.closed() => return,
        };
        // The semaphore is never closed.
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = to.closed() => return,
        };
        let connection = match accepted {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a client's connection was closed before it was served");
                    continue;
                }
                let silence = Box::pin(tokio::time::sleep(FIRST_BYTES_WITHIN));
                ClientConnection { stream, silence: Some((silence, PREFACE_BYTES)), _place: place }
            }
            Err(error) => {
                // Most likely the process is out of file descriptors; retry after a moment.
                if let Some(kept_back) = told.due(Instant::now()) {
                    let why = descriptors::explain(&error);
                    tracing::warn!(
                        node,
                        kept_back,
                        "a client's connection could not be accepted: {why}"
                    );
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if to.send(Ok(connection)).await.is_err() {
            return;
        }
    }
}

impl Connected for ClientConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some((over, missing)) = &mut self.silence else { return read };
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            self.silence = None;
            return read;
        }
        if read.is_pending() && over.as_mut().poll(context).is_ready() {
            let text = "the client did not send its HTTP/2 preface in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
        }
        read
    }
}

impl AsyncWrite for ClientConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
