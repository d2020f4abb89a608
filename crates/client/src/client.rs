//! The calls.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_proto::client::{
    Consistency as WireConsistency, EntryId, GetRequest, ProposeRequest, QueryRequest, SkipEntryRequest,
    StatusRequest, TakeSnapshotRequest, TransferLeadershipRequest,
};
use tonic::Request;

use crate::answer::Effect;
use crate::node::Calls;
use crate::nodes::Nodes;
use crate::route::Route;
use crate::{ClientError, ClientOptions, NodeStatus, TakenSnapshot};

/// A client of one cluster. Cheap to clone; clones share connections and what is known about the
/// leader. Connections are made when they are first needed.
///
/// Every call has the deadline of [`ClientOptions::timeout`] or [`Client::with_timeout`], and may be dropped at
/// any time; dropping a [`Client::propose`] does not take the command back.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
    timeout: Duration,
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read was sent. Confirmed by a round of the leader's
    /// heartbeats, answered by whichever node is asked; the leader is asked first if it is known.
    #[default]
    Linearizable,
    /// As linearizable while the nodes' clocks drift apart less than is configured: a leader that has a lease
    /// answers at once. Any other node confirms the read as a linearizable one.
    Lease,
    /// Whatever the answering node has applied; may be old. Any node answers.
    Eventual,
}

impl Consistency {
    fn wire(self) -> WireConsistency {
        match self {
            Self::Linearizable => WireConsistency::Linearizable,
            Self::Lease => WireConsistency::Lease,
            Self::Eventual => WireConsistency::Eventual,
        }
    }
}

impl Client {
    /// A client of the cluster that has nodes at `endpoints`, each as `host:port`. A few nodes are enough:
    /// they name the leader.
    ///
    /// # Errors
    /// [`ClientError::BadEndpoint`] for an address that cannot be one. Nothing is opened.
    pub fn new(
        endpoints: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let timeout = options.timeout;
        Ok(Self { nodes: Arc::new(Nodes::new(endpoints, options)?), timeout })
    }

    /// The same client with another deadline for its calls.
    ///
    /// ```no_run
    /// # async fn example(client: d_engine_client::Client) -> Result<(), d_engine_client::ClientError> {
    /// let hurried = client.with_timeout(std::time::Duration::from_millis(50));
    /// let value = hurried.get("key", d_engine_client::Consistency::Eventual).await?;
    /// # let _ = value;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { nodes: self.nodes.clone(), timeout }
    }

    /// Replicates a command; returns the state machine's reply, once a majority has the command on
    /// stable storage and the leader has applied it.
    ///
    /// # Errors
    /// After [`ClientError::OutcomeUnknown`] the command may or may not take effect; after any other
    /// error it does not.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        let command = command.into();
        let effect = Effect::Command { size: command.len() as u64 };
        self.replicate(command, effect).await
    }

    /// As [`Client::propose`], for a command of which the caller says that it may take effect more than
    /// once: when its outcome is unknown, it is sent again until the deadline.
    ///
    /// Be sure of it. A put of a fixed value is harmless twice in a row, but not if somebody else puts
    /// another value in between: the second time would undo that.
    ///
    /// # Errors
    /// After [`ClientError::OutcomeUnknown`] the command may have taken effect once or more, or may not.
    pub async fn propose_idempotent(&self, command: impl Into<Bytes>) -> Result<Bytes, ClientError> {
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

    fn route(&self, effect: Effect) -> Route<'_> {
        Route::new(&self.nodes, effect, self.timeout)
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// See [`ClientError`]; a read changes nothing and may always be asked again.
    pub async fn get(
        &self,
        key: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Option<Bytes>, ClientError> {
        let key = key.into();
        let call = |mut calls: Calls, left| {
            let request = GetRequest { key: key.clone(), consistency: consistency.wire().into() };
            let request = timed(request, left);
            async move {
                let reply = calls.get(request).await?.into_inner();
                Ok(reply.found.then_some(reply.value))
            }
        };
        self.route(Effect::Read).run(call).await
    }

    /// The state machine's answer to a question of its own form.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn query(
        &self,
        request: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Bytes, ClientError> {
        let request = request.into();
        self.check_size(&request)?;
        let call = |mut calls: Calls, left| {
            let request = QueryRequest { request: request.clone(), consistency: consistency.wire().into() };
            let request = timed(request, left);
            async move { Ok(calls.query(request).await?.into_inner().reply) }
        };
        self.route(Effect::Read).run(call).await
    }

    /// What the node at `endpoint` says about itself. Only this node is asked, and only once.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::DeadlineElapsed`] when it does not answer.
    pub async fn status(&self, endpoint: &str) -> Result<NodeStatus, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let call = |mut calls: Calls, left| async move {
            let reply = calls.status(timed(StatusRequest {}, left)).await?;
            Ok(NodeStatus::from(reply.into_inner()))
        };
        self.route(Effect::Read).run_at(&node, call).await
    }

    /// Makes the node at `endpoint` take a snapshot of everything that it has applied, and waits until that is
    /// durable. Only this node is asked. One of a large state may take minutes: give the client a deadline for it with
    /// [`Client::with_timeout`]; [`Client::status`] tells how far it is.
    ///
    /// # Errors
    /// [`ClientError::SnapshotFailed`] says why there is none. After [`ClientError::DeadlineElapsed`] the node goes
    /// on with it.
    pub async fn take_snapshot(&self, endpoint: &str) -> Result<TakenSnapshot, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let call = |mut calls: Calls, left| async move {
            let reply = calls.take_snapshot(timed(TakeSnapshotRequest {}, left)).await?;
            Ok(TakenSnapshot::from(reply.into_inner()))
        };
        self.route(Effect::Read).run_at(&node, call).await
    }

    /// Hands leadership over to node `to`, or to whichever voter the leader finds best; returns the node that
    /// leads once it does. Commands of others are delayed meanwhile, by no more than an election.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when `to` cannot lead or already does; [`ClientError::TransferFailed`] when the leader
    /// has not heard from it lately, or it did not take over in time; [`ClientError::TransferInProgress`] when leadership
    /// is being handed over already; after [`ClientError::OutcomeUnknown`] look who leads.
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

    /// Leaves out the entry at `term` and `index`, which stops the state machine of every node: the effect of its command
    /// is lost, and all nodes go on behind it. Returns the index of the entry that says so; asked again, it is the same.
    /// [`NodeStatus::stands_at`] tells where a node stands.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it must not be skipped: fewer than a majority of the voters stand at exactly this
    /// entry, or a node has applied it.
    pub async fn skip_entry(&self, term: u64, index: u64) -> Result<u64, ClientError> {
        let call = |mut calls: Calls, left| {
            let entry = Some(EntryId { term, index });
            let request = timed(SkipEntryRequest { entry }, left);
            async move { Ok(calls.skip_entry(request).await?.into_inner().decided_at) }
        };
        self.route(Effect::Idempotent { size: 0 }).run(call).await
    }

    /// The address of the node that last answered as the leader, unless it failed since.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.nodes.leader().map(|node| node.address.to_string())
    }
}

/// A request that carries the time that its caller has left (`grpc-timeout`), so that a node need not do what
/// nobody waits for any more.
fn timed<T>(message: T, left: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints: Vec<&str> = self.nodes.told().iter().map(|node| &*node.address).collect();
        f.debug_struct("Client").field("endpoints", &endpoints).field("leader", &self.leader()).finish()
    }
}
