//! One caller: sends one operation at a time, over the network or directly to an embedded node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d_engine_client::{
    Client, ClientError, ClientOptions, KvClient, KvCommand, KvError, KvOperation, KvQuery,
    KvQueryReply, KvReply, ReadConsistency, Scan,
};
use d_engine_server::{EmbeddedEngine, ProposeError, ReadError};

use super::plan::{Operation, Plan};
use super::tally::Class;
use crate::exit::Failure;

/// Why an operation failed: the class in which it is counted, and the message.
pub(super) type Failed = (Class, String);

/// Sends operations, one at a time.
pub(super) struct Caller {
    way: Way,
    plan: Arc<Plan>,
    /// The command of the propose workload.
    command: Bytes,
}

enum Way {
    Network {
        kv: KvClient,
        /// For eventual reads: a client of one node; callers are spread over the nodes.
        nearby: KvClient,
    },
    Embedded {
        nodes: Arc<EmbeddedNodes>,
        nearby: usize,
    },
}

/// Nodes in this process, and the last known leader.
pub(super) struct EmbeddedNodes {
    pub(super) engines: Vec<EmbeddedEngine>,
    leader: AtomicUsize,
}

impl EmbeddedNodes {
    pub(super) fn new(engines: Vec<EmbeddedEngine>) -> Self {
        let nodes = Self { engines, leader: AtomicUsize::new(0) };
        nodes.look_for_leader();
        nodes
    }

    fn look_for_leader(&self) {
        if let Some(leader) = self.engines.iter().position(EmbeddedEngine::is_leader) {
            self.leader.store(leader, Ordering::Relaxed);
        }
    }

    fn leader(&self) -> &EmbeddedEngine {
        &self.engines[self.leader.load(Ordering::Relaxed)]
    }
}

/// Clients with separate connections: `connections` of them to the cluster, and as many to each
/// single node.
pub(super) struct Connections {
    clients: Vec<KvClient>,
    nodes: Vec<Vec<KvClient>>,
}

impl Connections {
    pub(super) fn new(endpoints: &[String], plan: &Plan, callers: u16) -> Result<Self, Failure> {
        let options =
            ClientOptions::default().timeout(plan.timeout).max_in_flight(usize::from(callers));
        let one = |endpoints: &[String]| -> Result<KvClient, Failure> {
            Ok(KvClient::connect(endpoints, options.clone())?)
        };
        let mut all = Self { clients: Vec::new(), nodes: Vec::new() };
        for _ in 0..plan.connections(callers) {
            all.clients.push(one(endpoints)?);
            all.nodes.push(endpoints.chunks(1).map(one).collect::<Result<_, _>>()?);
        }
        Ok(all)
    }

    pub(super) fn caller(&self, number: usize, plan: &Arc<Plan>) -> Caller {
        let connection = number % self.clients.len();
        let nodes = &self.nodes[connection];
        let nearby = nodes[number % nodes.len()].clone();
        Caller::new(Way::Network { kv: self.clients[connection].clone(), nearby }, plan)
    }
}

impl Caller {
    pub(super) fn embedded(nodes: &Arc<EmbeddedNodes>, number: usize, plan: &Arc<Plan>) -> Self {
        let nearby = number % nodes.engines.len();
        Self::new(Way::Embedded { nodes: nodes.clone(), nearby }, plan)
    }

    fn new(way: Way, plan: &Arc<Plan>) -> Self {
        let command = KvCommand::put(plan.key(0), plan.value.clone()).encode();
        Self { way, plan: plan.clone(), command }
    }

    /// Puts records as one batch.
    pub(super) async fn put_all(&self, numbers: std::ops::Range<u32>) -> Result<(), Failed> {
        let puts =
            numbers.map(|number| KvOperation::put(self.plan.key(number), self.plan.value.clone()));
        self.command(&KvCommand::batch(puts)).await
    }

    /// Performs one operation and waits for its response.
    pub(super) async fn call(&self, operation: Operation, key: u32) -> Result<(), Failed> {
        match operation {
            Operation::Put => {
                self.command(&KvCommand::put(self.plan.key(key), self.plan.value.clone())).await
            }
            Operation::Propose => self.propose(self.command.clone()).await.map(|_| ()),
            Operation::Get => self.get(self.plan.key(key)).await,
            Operation::Scan => {
                self.scan(Scan::range(self.plan.key(key), None).limit(self.plan.page)).await
            }
        }
    }

    async fn command(&self, command: &KvCommand) -> Result<(), Failed> {
        let reply = self.propose(command.encode()).await?;
        match KvReply::decode(&reply) {
            Ok(KvReply::Rejected { reason }) => Err((Class::Other, reason)),
            Ok(_) => Ok(()),
            Err(error) => Err((Class::Other, error.to_string())),
        }
    }

    async fn propose(&self, command: Bytes) -> Result<Bytes, Failed> {
        match &self.way {
            Way::Network { kv, .. } => kv.client().propose(command).await.map_err(client_error),
            Way::Embedded { nodes, .. } => {
                let proposed = nodes.leader().propose_within(command, self.plan.timeout).await;
                proposed.map_err(|error| propose_error(nodes, &error))
            }
        }
    }

    async fn get(&self, key: Bytes) -> Result<(), Failed> {
        let value = match &self.way {
            Way::Network { kv, nearby } => {
                let kv =
                    if self.plan.consistency == ReadConsistency::Eventual { nearby } else { kv };
                kv.get(key, self.plan.consistency).await.map_err(kv_error)?
            }
            Way::Embedded { nodes, nearby } => {
                let consistency = self.plan.consistency;
                let node = reader(nodes, *nearby, consistency);
                let reads = node.get(&key, consistency);
                within(nodes, self.plan.timeout, consistency, reads).await?
            }
        };
        match value {
            None if self.plan.consistency != ReadConsistency::Eventual => {
                Err((Class::Other, "a key that was put before has no value".to_owned()))
            }
            _ => Ok(()),
        }
    }

    async fn scan(&self, scan: Scan) -> Result<(), Failed> {
        match &self.way {
            Way::Network { kv, nearby } => {
                let kv =
                    if self.plan.consistency == ReadConsistency::Eventual { nearby } else { kv };
                kv.scan(scan, self.plan.consistency).await.map(|_| ()).map_err(kv_error)
            }
            Way::Embedded { nodes, nearby } => {
                let consistency = self.plan.consistency;
                let question = KvQuery::Scan(scan).encode();
                let reads = reader(nodes, *nearby, consistency).query(&question, consistency);
                let answer = within(nodes, self.plan.timeout, consistency, reads).await?;
                KvQueryReply::decode(&answer)
                    .map(|_| ())
                    .map_err(|error| (Class::Other, error.to_string()))
            }
        }
    }
}

/// Returns the node that serves a read: the leader, or for eventual reads the caller's own node.
fn reader(nodes: &EmbeddedNodes, nearby: usize, consistency: ReadConsistency) -> &EmbeddedEngine {
    if consistency == ReadConsistency::Eventual { &nodes.engines[nearby] } else { nodes.leader() }
}

/// Bounds the time of a read. Eventual reads need no bound: they do not wait.
async fn within<T>(
    nodes: &EmbeddedNodes,
    timeout: Duration,
    consistency: ReadConsistency,
    read: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, Failed> {
    let read = async { read.await.map_err(|error| read_error(nodes, &error)) };
    if consistency == ReadConsistency::Eventual {
        return read.await;
    }
    let late = || Err((Class::Deadline, format!("no response within {timeout:?}")));
    tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| late())
}

fn client_error(error: ClientError) -> Failed {
    let class = match &error {
        ClientError::Busy { .. } => Class::Busy,
        ClientError::NoLeader { .. } => Class::NotLeader,
        ClientError::OutcomeUnknown { .. } => Class::Unknown,
        ClientError::DeadlineElapsed { .. } => Class::Deadline,
        _ => Class::Other,
    };
    (class, error.to_string())
}

fn kv_error(error: KvError) -> Failed {
    match error {
        KvError::Client(error) => client_error(error),
        error => (Class::Other, error.to_string()),
    }
}

fn propose_error(nodes: &EmbeddedNodes, error: &ProposeError) -> Failed {
    let class = match error {
        ProposeError::Busy { .. } => Class::Busy,
        ProposeError::NotLeader { .. } => {
            nodes.look_for_leader();
            Class::NotLeader
        }
        ProposeError::OutcomeUnknown { .. } => Class::Unknown,
        ProposeError::Expired => Class::Deadline,
        _ => Class::Other,
    };
    (class, error.to_string())
}

fn read_error(nodes: &EmbeddedNodes, error: &ReadError) -> Failed {
    let class = match error {
        ReadError::Busy { .. } => Class::Busy,
        ReadError::NotLeader { .. } => {
            nodes.look_for_leader();
            Class::NotLeader
        }
        ReadError::Expired => Class::Deadline,
        _ => Class::Other,
    };
    (class, error.to_string())
}

/// Creates a client for status calls.
pub(super) fn status_client(endpoints: &[String], timeout: Duration) -> Result<Client, Failure> {
    Ok(Client::new(endpoints, ClientOptions::default().timeout(timeout))?)
}
