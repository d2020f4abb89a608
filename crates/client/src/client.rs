//! The calls.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_proto::client::{
    Consistency as WireConsistency, GetRequest, ProposeRequest, QueryRequest, StatusRequest,
};

use crate::answer::Effect;
use crate::node::Calls;
use crate::nodes::Nodes;
use crate::route::{Route, Whom};
use crate::{ClientError, ClientOptions, NodeStatus};

/// A client of one cluster. Cheap to clone; clones share connections and what is known about the
/// leader. Connections are made when they are first needed.
///
/// Every call has the deadline of [`ClientOptions::timeout`], and may be dropped at any time; dropping a
/// [`Client::propose`] does not take the command back.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read was sent. Only the leader answers.
    #[default]
    Linearizable,
    /// Whatever the answering node has applied; may be old. Any node answers.
    Eventual,
}

impl Consistency {
    fn wire(self) -> WireConsistency {
        match self {
            Self::Linearizable => WireConsistency::Linearizable,
            Self::Eventual => WireConsistency::Eventual,
        }
    }

    fn whom(self) -> Whom {
        match self {
            Self::Linearizable => Whom::Leader,
            Self::Eventual => Whom::Anyone,
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
        Ok(Self { nodes: Arc::new(Nodes::new(endpoints, options)?) })
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
        let call = |mut calls: Calls| {
            let request = ProposeRequest { command: command.clone() };
            async move { Ok(calls.propose(request).await?.into_inner().reply) }
        };
        Route::new(&self.nodes, effect, Whom::Leader).run(call).await
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
        let call = |mut calls: Calls| {
            let request = GetRequest { key: key.clone(), consistency: consistency.wire().into() };
            async move {
                let reply = calls.get(request).await?.into_inner();
                Ok(reply.found.then_some(reply.value))
            }
        };
        Route::new(&self.nodes, Effect::Read, consistency.whom()).run(call).await
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
        let call = |mut calls: Calls| {
            let request = QueryRequest { request: request.clone(), consistency: consistency.wire().into() };
            async move { Ok(calls.query(request).await?.into_inner().reply) }
        };
        Route::new(&self.nodes, Effect::Read, consistency.whom()).run(call).await
    }

    /// What the node at `endpoint` says about itself. Only this node is asked, and only once.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::DeadlineElapsed`] when it does not answer.
    pub async fn status(&self, endpoint: &str) -> Result<NodeStatus, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let call =
            async |mut calls: Calls| Ok(NodeStatus::from(calls.status(StatusRequest {}).await?.into_inner()));
        Route::new(&self.nodes, Effect::Read, Whom::Anyone).run_at(&node, call).await
    }

    /// The address of the node that last answered as the leader, unless it failed since.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.nodes.leader().map(|node| node.address.to_string())
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints: Vec<&str> = self.nodes.told().iter().map(|node| &*node.address).collect();
        f.debug_struct("Client").field("endpoints", &endpoints).field("leader", &self.leader()).finish()
    }
}
