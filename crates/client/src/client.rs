//! [`Client`] and its calls.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_api::ReadConsistency;
use d_engine_api::message::{
    EntryId, GetRequest, ProposeRequest, QueryRequest, SkipEntryRequest, StatusRequest,
    TakeSnapshotRequest, TransferLeadershipRequest,
};
use tonic::{Request, Status};

use crate::answer::{Effect, next_step};
use crate::node::{Calls, members_in};
use crate::nodes::Nodes;
use crate::route::Route;
use crate::{ClientError, ClientOptions, NodeStatus, TakenSnapshot};

/// A client of one cluster. Cheap to clone; clones share connections and the known leader. A
/// connection is opened when it is first needed.
///
/// The client follows the cluster: the members that nodes name are called first, and the addresses
/// that it was given last. It belongs to the cluster whose node answers first; a call that comes to
/// a node of another one is not sent and fails with [`ClientError::OtherCluster`].
///
/// Every call has the deadline of [`ClientOptions::timeout`] or [`Client::with_timeout`]. A call
/// may be dropped at any time, but dropping a [`Client::propose`] does not cancel the command.
#[derive(Clone)]
pub struct Client {
    pub(crate) nodes: Arc<Nodes>,
    timeout: Duration,
}

impl Client {
    /// Creates a client of the cluster that has nodes at `endpoints`, each as `host:port`. A few
    /// nodes are enough: they name the members and the leader.
    ///
    /// # Errors
    /// [`ClientError::BadEndpoint`] if an address is invalid or none is given. No connection is
    /// opened.
    pub fn new(
        endpoints: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let timeout = options.timeout;
        Ok(Self { nodes: Arc::new(Nodes::new(endpoints, options)?), timeout })
    }

    /// Returns this client with another timeout for its calls; connections are shared.
    ///
    /// ```no_run
    /// # use d_engine_client::{Client, ClientError};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let hurried = client.with_timeout(std::time::Duration::from_millis(50));
    /// let value = hurried.get("key", d_engine_client::ReadConsistency::Eventual).await?;
    /// # let _ = value;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { nodes: self.nodes.clone(), timeout }
    }

    /// Replicates a command and returns the state machine's reply, once a majority has the command
    /// on stable storage and the leader has applied it.
    ///
    /// # Errors
    /// After [`ClientError::OutcomeUnknown`] the command may or may not take effect; after any
    /// other error it does not.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        let command = command.into();
        let effect = Effect::Command { size: command.len() as u64 };
        self.replicate(command, effect).await
    }

    /// As [`Client::propose`], for a command that may safely take effect more than once: if its
    /// outcome is unknown, it is resent until the deadline.
    ///
    /// Be sure that it is idempotent. A put of a fixed value may run twice in a row, but not if
    /// another client puts a different value in between: the second put would overwrite that value.
    ///
    /// # Errors
    /// After [`ClientError::OutcomeUnknown`] the command may have taken effect once or more, or may
    /// not.
    pub async fn propose_idempotent(
        &self,
        command: impl Into<Bytes>,
    ) -> Result<Bytes, ClientError> {
        let command = command.into();
        let effect = Effect::Idempotent { size: command.len() as u64 };
        self.replicate(command, effect).await
    }

    async fn replicate(&self, command: Bytes, effect: Effect) -> Result<Bytes, ClientError> {
        self.check_size(&command)?;
        let call = |mut calls: Calls, left| {
            let request = timed(ProposeRequest { command: command.clone() }, left);
            async move { Ok(calls.propose(request).await?.into_inner().reply) }
        };
        self.route(effect).run(call).await
    }

    pub(crate) fn check_size(&self, sent: &Bytes) -> Result<(), ClientError> {
        let (size, limit) = (sent.len() as u64, self.nodes.options.max_command_bytes as u64);
        if size > limit { Err(ClientError::TooLarge { size, limit: Some(limit) }) } else { Ok(()) }
    }

    pub(crate) fn route(&self, effect: Effect) -> Route<'_> {
        Route::new(&self.nodes, effect, self.timeout)
    }

    /// Returns the value of `key` from the key-value machine. Any node can serve it; the leader is
    /// tried first if it is known.
    ///
    /// # Errors
    /// See [`ClientError`]. A read changes nothing and may always be retried.
    pub async fn get(
        &self,
        key: impl Into<Bytes>,
        consistency: ReadConsistency,
    ) -> Result<Option<Bytes>, ClientError> {
        let key = key.into();
        let call = |mut calls: Calls, left| {
            let request = GetRequest { key: key.clone(), consistency: consistency.into() };
            let request = timed(request, left);
            async move {
                let reply = calls.get(request).await?.into_inner();
                Ok(reply.found.then_some(reply.value))
            }
        };
        self.route(Effect::Read).run(call).await
    }

    /// Sends a query to the state machine and returns its reply; both are bytes in the state
    /// machine's own encoding.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn query(
        &self,
        request: impl Into<Bytes>,
        consistency: ReadConsistency,
    ) -> Result<Bytes, ClientError> {
        let request = request.into();
        self.check_size(&request)?;
        let call = |mut calls: Calls, left| {
            let request =
                QueryRequest { request: request.clone(), consistency: consistency.into() };
            let request = timed(request, left);
            async move { Ok(calls.query(request).await?.into_inner().reply) }
        };
        self.route(Effect::Read).run(call).await
    }

    /// Returns the status of the node at `endpoint`. Only this node is called, and only once. It
    /// may belong to another cluster than the one that this client found first.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::DeadlineElapsed`] if the node does not
    /// answer.
    pub async fn status(&self, endpoint: &str) -> Result<NodeStatus, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let call = |mut calls: Calls, left| async move {
            let reply = calls.status(timed(StatusRequest {}, left)).await?;
            Ok(NodeStatus::from(reply.into_inner()))
        };
        let status = self.route(Effect::Read).of_any_cluster().run_at(&node, call).await?;
        // The caller sees which cluster it is.
        self.nodes.heard(endpoint, &members_in(&status)).ok();
        Ok(status)
    }

    /// Makes the node at `endpoint` take a snapshot of everything that it has applied, and waits
    /// until the snapshot is durable. Only this node is called. A snapshot of a large state may
    /// take minutes: set a timeout for it with [`Client::with_timeout`]; [`Client::status`] shows
    /// the progress.
    ///
    /// # Errors
    /// [`ClientError::SnapshotFailed`] says why there is no snapshot. After
    /// [`ClientError::DeadlineElapsed`] the node continues the snapshot.
    pub async fn take_snapshot(&self, endpoint: &str) -> Result<TakenSnapshot, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let call = |mut calls: Calls, left| async move {
            let reply = calls.take_snapshot(timed(TakeSnapshotRequest {}, left)).await?;
            Ok(TakenSnapshot::from(reply.into_inner()))
        };
        self.route(Effect::Read).run_at(&node, call).await
    }

    /// Transfers leadership to node `to`, or without it to the voter that the leader chooses.
    /// Returns the new leader's id once it leads. Commands of other clients are delayed meanwhile,
    /// by no more than an election.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if `to` cannot lead or already leads;
    /// [`ClientError::TransferFailed`] if the leader has not heard from `to` lately or `to` did not
    /// take over in time; [`ClientError::TransferInProgress`] if leadership is already being
    /// transferred. After [`ClientError::OutcomeUnknown`], check which node leads.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64, ClientError> {
        let request = TransferLeadershipRequest { to: to.unwrap_or(0) };
        let call = |mut calls: Calls, left| {
            let request = timed(request, left);
            async move { Ok(calls.transfer_leadership(request).await?.into_inner().leader) }
        };
        let moved = self.route(Effect::Handover).run(call).await;
        self.nodes.handed_over();
        moved
    }

    /// Skips the entry at `term` and `index`, at which every state machine has halted: the effect
    /// of its command is lost, and all nodes continue with the entries after it. Returns the index
    /// of the entry that records the decision; a repeated request returns the same index.
    /// [`NodeStatus::halted_at`] shows where a node has halted.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if the entry must not be skipped: fewer than a majority of the
    /// voters are halted at exactly this entry, or a node has applied it.
    pub async fn skip_entry(&self, term: u64, index: u64) -> Result<u64, ClientError> {
        let call = |mut calls: Calls, left| {
            let entry = Some(EntryId { term, index });
            let request = timed(SkipEntryRequest { entry }, left);
            async move { Ok(calls.skip_entry(request).await?.into_inner().decided_at) }
        };
        self.route(Effect::Idempotent { size: 0 }).run(call).await
    }

    /// What a node's status means, for a stream from one node.
    pub(crate) fn error_at(&self, endpoint: &str, status: &Status) -> ClientError {
        let max_reply_bytes = self.nodes.options.max_reply_bytes;
        let (next, _) = next_step(endpoint, Effect::Read, status, max_reply_bytes);
        next.into_error().unwrap_or_else(|_| ClientError::Unreachable {
            endpoint: endpoint.to_owned(),
            reason: status.message().to_owned(),
        })
    }

    /// Returns the address of the node that last answered as the leader, unless it has failed
    /// since.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.nodes.leader().map(|node| node.address.to_string())
    }
}

/// Adds the caller's remaining time (`grpc-timeout`) to a request, so that a node need not process
/// it after the caller has stopped waiting.
pub(crate) fn timed<T>(message: T, left: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints: Vec<&str> = self.nodes.told().iter().map(|node| &*node.address).collect();
        f.debug_struct("Client")
            .field("endpoints", &endpoints)
            .field("leader", &self.leader())
            .finish()
    }
}
