//! One node: its address, its connection, and its recent failures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d_engine_api::Members;
use d_engine_api::message::StatusRequest;
use d_engine_api::message::engine_client::EngineClient;
use d_engine_locks::Unpoisoned;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::answer::innermost;
use crate::once::Once;
use crate::{ClientError, ClientOptions, NodeStatus};

/// How long after a failure a node is tried only if no other node is left, even if it is named as
/// the leader: followers keep naming a dead leader until they have a new one.
const DOUBT: Duration = Duration::from_secs(1);
/// Flow-control windows, large enough for long replies at full speed.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The gRPC stub of calls.
pub(crate) type Calls = EngineClient<Channel>;

/// One node, from the client's point of view.
pub(crate) struct Node {
    pub(crate) address: Arc<str>,
    endpoint: Endpoint,
    max_reply_bytes: usize,
    connect_timeout: Duration,
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// The number of failed attempts to connect, and the last error.
    attempts: Mutex<(u64, Option<ClientError>)>,
    failed_at: Mutex<Option<Failure>>,
    /// The id of the node that last answered at this address; 0 if none has.
    id: AtomicU64,
}

/// When and how the node failed.
#[derive(Clone, Copy)]
struct Failure {
    at: Instant,
    /// No connection could be opened.
    is_unreachable: bool,
}

/// A connection on which the node has answered at least once.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) calls: Calls,
    /// The members as the node named them in its first answer. Distinguishes the connection from
    /// later ones.
    pub(crate) members: Arc<Members>,
}

/// The members as a node names them in its status.
pub(crate) fn members_in(status: &NodeStatus) -> Members {
    // A status does not say whether they are committed.
    let mut members = Members::default();
    members.node = status.node;
    members.cluster_id.clone_from(&status.cluster_id);
    members.config = status.config;
    members.list.clone_from(&status.members);
    members.leader = status.leader;
    members.removed_by = status.removed_by;
    members
}

impl Node {
    pub(crate) fn new(address: &str, options: &ClientOptions) -> Result<Self, ClientError> {
        let bare = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let bad =
            |reason: String| ClientError::BadEndpoint { endpoint: address.to_owned(), reason };
        let endpoint = Endpoint::from_shared(format!("http://{bare}"))
            .map_err(|error| bad(innermost(&error)))?;
        if endpoint.uri().host().is_none_or(str::is_empty) || endpoint.uri().port_u16().is_none() {
            return Err(bad("the host or the port is missing".to_owned()));
        }
        if endpoint.uri().path() != "/" {
            return Err(bad("there is text after the port".to_owned()));
        }
        let endpoint = endpoint
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(options.ping_interval)
            .keep_alive_timeout(options.ping_timeout)
            // No call waits on an idle connection.
            .keep_alive_while_idle(false);
        Ok(Self {
            address: Arc::from(bare),
            endpoint,
            max_reply_bytes: options.max_reply_bytes,
            connect_timeout: options.connect_timeout,
            connection: tokio::sync::Mutex::new(None),
            attempts: Mutex::new((0, None)),
            failed_at: Mutex::new(None),
            id: AtomicU64::new(0),
        })
    }

    /// Returns the connection, opened if there is none. Callers that wait for the same attempt
    /// share its failure.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or the error that the node returned. Nothing of the caller's
    /// was sent.
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

    /// Connects and makes one status call: the socket of a hung node still accepts connections, and
    /// a command sent there would have an unknown outcome.
    async fn connect(&self) -> Result<Connection, ClientError> {
        let endpoint = || self.address.to_string();
        let unreachable =
            |reason: String| ClientError::Unreachable { endpoint: endpoint(), reason };
        let attempt = async {
            let channel =
                self.endpoint.connect_with_connector(Once::new(self.connect_timeout)).await;
            let channel = channel.map_err(|error| unreachable(innermost(&error)))?;
            let mut calls = EngineClient::new(channel)
                .max_decoding_message_size(self.max_reply_bytes)
                // The size was checked before, and the node has its own bound.
                .max_encoding_message_size(usize::MAX);
            match calls.status(StatusRequest {}).await {
                Ok(status) => {
                    let status = NodeStatus::from(status.into_inner());
                    // It guards nothing else.
                    self.id.store(status.node, Ordering::Relaxed);
                    Ok(Connection { calls, members: Arc::new(members_in(&status)) })
                }
                Err(status) if status.code() == tonic::Code::Unimplemented => {
                    let operation =
                        "the client service of d-engine; check that it is a node's client address";
                    Err(ClientError::Unsupported {
                        endpoint: endpoint(),
                        operation: operation.to_owned(),
                    })
                }
                Err(status) => Err(unreachable(innermost(&status))),
            }
        };
        let silent = || unreachable(format!("no response within {:?}", self.connect_timeout));
        tokio::time::timeout(self.connect_timeout, attempt).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Drops a broken connection, unless it has been replaced already.
    pub(crate) async fn forget(&self, lost: &Connection) {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_some_and(|open| Arc::ptr_eq(&open.members, &lost.members)) {
            *connection = None;
        }
    }

    /// Closes the connection. Calls that are in flight on it still end.
    pub(crate) fn close(&self) {
        // A call that connects right now has just learned who answers there.
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
    }

    /// The id of the node that last answered at this address.
    pub(crate) fn id(&self) -> Option<u64> {
        Some(self.id.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    /// Records that the node just failed.
    pub(crate) fn failed(&self) {
        *self.failed_at() = Some(Failure { at: Instant::now(), is_unreachable: false });
    }

    /// Records that no connection could be opened just now.
    pub(crate) fn unreachable(&self) {
        *self.failed_at() = Some(Failure { at: Instant::now(), is_unreachable: true });
    }

    /// Records that the node answered.
    pub(crate) fn answered(&self) {
        *self.failed_at() = None;
    }

    /// Whether the node failed so recently that others are tried first.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.failed_at().is_some_and(|failure| failure.at.elapsed() < DOUBT)
    }

    /// Whether opening a connection failed so recently that it is not tried again.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.failed_at()
            .is_some_and(|failure| failure.is_unreachable && failure.at.elapsed() < DOUBT)
    }

    // No code panics while holding these locks.
    fn attempts(&self) -> std::sync::MutexGuard<'_, (u64, Option<ClientError>)> {
        self.attempts.lock().unpoisoned()
    }

    fn failed_at(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.failed_at.lock().unpoisoned()
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
        for address in
            ["", "host", "host:", ":7001", "host:99999", "https://host:1", "host:1/path", "a b:1"]
        {
            assert!(refused(address), "{address:?}");
        }
        for address in ["127.0.0.1:7001", "[::1]:7001", "db-1.example:7001", "http://host:1/"] {
            assert!(!refused(address), "{address:?}");
        }
    }
}
