//! One node: its address, its connection, and whether it was of use lately.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use d_engine_proto::client::StatusRequest;
use d_engine_proto::client::engine_client::EngineClient;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::answer::innermost;
use crate::{ClientError, ClientOptions};

/// How long a node that failed is asked only when there is nobody else, whoever points at it: followers go
/// on naming a dead leader until they have a new one.
const DOUBT: Duration = Duration::from_secs(1);
/// Flow-control windows, so that long answers do not crawl.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The stub that calls go through.
pub(crate) type Calls = EngineClient<Channel>;

/// One node as this client sees it.
pub(crate) struct Node {
    pub(crate) address: Arc<str>,
    endpoint: Endpoint,
    max_reply_bytes: usize,
    connect_timeout: Duration,
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// Counts failed attempts to connect, and keeps the last error.
    attempts: Mutex<(u64, Option<ClientError>)>,
    failed_at: Mutex<Option<Failure>>,
}

/// When the node was of no use, and how.
#[derive(Clone, Copy)]
struct Failure {
    at: Instant,
    /// No connection came about.
    is_unreachable: bool,
}

/// A connection on which the node has answered at least once.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) calls: Calls,
    /// Tells it from its successors.
    token: Arc<()>,
}

impl Node {
    pub(crate) fn new(address: &str, options: &ClientOptions) -> Result<Self, ClientError> {
        let bare = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let bad = |reason: String| ClientError::BadEndpoint { endpoint: address.to_owned(), reason };
        let endpoint =
            Endpoint::from_shared(format!("http://{bare}")).map_err(|error| bad(innermost(&error)))?;
        if endpoint.uri().host().is_none_or(str::is_empty) || endpoint.uri().port_u16().is_none() {
            return Err(bad("it lacks a host or a port".to_owned()));
        }
        if endpoint.uri().path() != "/" {
            return Err(bad("there is something behind the port".to_owned()));
        }
        let endpoint = endpoint
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(options.ping_interval)
            .keep_alive_timeout(options.ping_timeout)
            // Nobody waits on an idle connection.
            .keep_alive_while_idle(false);
        Ok(Self {
            address: Arc::from(bare),
            endpoint,
            max_reply_bytes: options.max_reply_bytes,
            connect_timeout: options.connect_timeout,
            connection: tokio::sync::Mutex::new(None),
            attempts: Mutex::new((0, None)),
            failed_at: Mutex::new(None),
        })
    }

    /// The connection, made if there is none. Callers that wait for the same attempt share its failure.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or what the node itself answered. Nothing of the caller's was sent.
    pub(crate) async fn connection(&self) -> Result<Connection, ClientError> {
        let attempts_before = self.attempts().0;
        let mut connection = self.connection.lock().await;
        if let Some(open) = &*connection {
            return Ok(open.clone());
        }
        {
            let attempts = self.attempts();
            if let (count, Some(error)) = &*attempts
                && *count != attempts_before
            {
                return Err(error.clone());
            }
        }
        match self.connect().await {
            Ok(open) => Ok(connection.insert(open).clone()),
            Err(error) => {
                let mut attempts = self.attempts();
                attempts.0 += 1;
                attempts.1 = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Connects, and has the node answer once: a listening socket of a node that hangs takes connections,
    /// and a command sent there would have an unknown outcome.
    async fn connect(&self) -> Result<Connection, ClientError> {
        let endpoint = || self.address.to_string();
        let unreachable = |reason: String| ClientError::Unreachable { endpoint: endpoint(), reason };
        let attempt = async {
            let channel = self.endpoint.connect().await.map_err(|error| unreachable(innermost(&error)))?;
            let mut calls = EngineClient::new(channel)
                .max_decoding_message_size(self.max_reply_bytes)
                // Checked before, and the node's own bound decides.
                .max_encoding_message_size(usize::MAX);
            match calls.status(StatusRequest {}).await {
                Ok(_) => Ok(Connection { calls, token: Arc::new(()) }),
                Err(status) if status.code() == tonic::Code::Unimplemented => {
                    let operation = "the client service of d-engine; is it a node's client address?";
                    Err(ClientError::Unsupported { endpoint: endpoint(), operation: operation.to_owned() })
                }
                Err(status) => Err(unreachable(innermost(&status))),
            }
        };
        let silent = || unreachable(format!("no answer within {:?}", self.connect_timeout));
        tokio::time::timeout(self.connect_timeout, attempt).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Gives up a connection that is no good, unless it has been replaced already.
    pub(crate) async fn forget(&self, lost: &Connection) {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_some_and(|open| Arc::ptr_eq(&open.token, &lost.token)) {
            *connection = None;
        }
    }

    /// Notes that the node was of no use just now.
    pub(crate) fn failed(&self) {
        self.note_failure(false);
    }

    /// Notes that no connection came about just now.
    pub(crate) fn unreachable(&self) {
        self.note_failure(true);
    }

    fn note_failure(&self, is_unreachable: bool) {
        *self.failed_at() = Some(Failure { at: Instant::now(), is_unreachable });
    }

    /// Notes that the node answered.
    pub(crate) fn answered(&self) {
        *self.failed_at() = None;
    }

    /// Whether the node failed so lately that others are asked first.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.failed_at().is_some_and(|failure| failure.at.elapsed() < DOUBT)
    }

    /// Whether no connection came about so lately that it is not tried again.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.failed_at().is_some_and(|failure| failure.is_unreachable && failure.at.elapsed() < DOUBT)
    }

    // Nothing panics while it holds these locks.
    fn attempts(&self) -> std::sync::MutexGuard<'_, (u64, Option<ClientError>)> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_at(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.failed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_opened() {
        let refused = |address: &str| match Node::new(address, &ClientOptions::default()) {
            Err(ClientError::BadEndpoint { endpoint, .. }) => endpoint == address,
            _ => false,
        };
        for address in ["", "host", "host:", ":7001", "host:99999", "https://host:1", "host:1/path", "a b:1"]
        {
            assert!(refused(address), "{address:?}");
        }
        for address in ["127.0.0.1:7001", "[::1]:7001", "db-1.example:7001", "http://host:1/"] {
            assert!(!refused(address), "{address:?}");
        }
    }
}
