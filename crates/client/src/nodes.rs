//! The nodes that a client knows: the members of the cluster, as far as nodes have named them, and
//! those at the addresses that it was given.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d_engine_api::Members;
use d_engine_locks::Unpoisoned;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::node::Node;
use crate::{ClientError, ClientOptions};

/// Bound of the addresses learned from responses; a cluster has far fewer members.
const LEARNED_MAX: usize = 128;
/// How often the members are requested at most while no leader is found.
const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// The nodes that a client knows.
pub(crate) struct Nodes {
    pub(crate) options: ClientOptions,
    /// The nodes at the given addresses, in their order.
    told: Vec<Arc<Node>>,
    learned: Mutex<Learned>,
    /// The node that last answered as the leader.
    leader: watch::Sender<Option<Arc<Node>>>,
    /// Bounds the calls in flight.
    in_flight: Semaphore,
}

/// What nodes have said.
#[derive(Default)]
struct Learned {
    /// The nodes at addresses that were not given.
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// The cluster's id, from the first answer.
    cluster: Option<Vec<u8>>,
    /// The newest members.
    members: Option<Members>,
    refreshed_at: Option<Instant>,
}

impl Nodes {
    pub(crate) fn new(
        addresses: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let told = addresses
            .into_iter()
            .map(|address| Node::new(address.as_ref(), &options).map(Arc::new));
        let told = told.collect::<Result<Vec<_>, _>>()?;
        if told.is_empty() {
            let reason = "no address was given".to_owned();
            return Err(ClientError::BadEndpoint { endpoint: String::new(), reason });
        }
        let in_flight = Semaphore::new(options.max_in_flight.min(Semaphore::MAX_PERMITS));
        Ok(Self {
            options,
            told,
            learned: Mutex::default(),
            leader: watch::Sender::new(None),
            in_flight,
        })
    }

    /// Takes a permit for a call, or returns `Busy` if the maximum is in flight.
    pub(crate) fn place_in_flight(&self) -> Result<SemaphorePermit<'_>, ClientError> {
        self.in_flight.try_acquire().map_err(|_| ClientError::Busy {
            endpoint: "this client".to_owned(),
            what: format!(
                "{} calls in flight, ClientOptions::max_in_flight",
                self.options.max_in_flight
            ),
        })
    }

    /// Returns the configured nodes; never empty.
    pub(crate) fn told(&self) -> &[Arc<Node>] {
        &self.told
    }

    /// Returns all known nodes, the members first and the other given addresses last; never empty.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        let learned = self.learned.lock().unpoisoned();
        let mut all: Vec<Arc<Node>> = Vec::with_capacity(self.told.len() + learned.nodes.len());
        let mut aliased = Vec::new();
        for member in learned.members.iter().flat_map(|members| &members.list) {
            let address = member.client_addr.as_deref();
            // A given address may be the only one of this member that the client reaches.
            if let Some(told) = self.told.iter().find(|node| node.id() == Some(member.node)) {
                all.push(told.clone());
                aliased.extend(address);
            } else {
                all.extend(address.and_then(|address| self.find(&learned, address)));
            }
        }
        let named = learned.nodes.values().filter(|node| !aliased.contains(&&*node.address));
        for node in named.chain(&self.told) {
            if !all.iter().any(|known| Arc::ptr_eq(known, node)) {
                all.push(node.clone());
            }
        }
        all
    }

    fn find(&self, learned: &Learned, address: &str) -> Option<Arc<Node>> {
        let told = self.told.iter().find(|node| *node.address == *address);
        told.or_else(|| learned.nodes.get(address)).cloned()
    }

    /// Returns the node at an address, and adds it if it is not known yet.
    pub(crate) fn at(&self, address: &str) -> Result<Arc<Node>, ClientError> {
        self.add(&mut self.learned.lock().unpoisoned(), address)
    }

    fn add(&self, learned: &mut Learned, address: &str) -> Result<Arc<Node>, ClientError> {
        if let Some(node) = self.find(learned, address) {
            return Ok(node);
        }
        let node = Arc::new(Node::new(address, &self.options)?);
        if learned.nodes.len() >= LEARNED_MAX {
            learned.keep_members();
        }
        learned.nodes.insert(node.address.clone(), node.clone());
        Ok(node)
    }

    /// Learns from the members that the node at `endpoint` named.
    ///
    /// # Errors
    /// [`ClientError::OtherCluster`] if it belongs to another cluster than the first node that
    /// answered.
    pub(crate) fn heard(&self, endpoint: &str, members: &Members) -> Result<(), ClientError> {
        let mut learned = self.learned.lock().unpoisoned();
        match &learned.cluster {
            // A node says it once it has a cluster.
            _ if members.cluster_id.is_empty() => return Ok(()),
            Some(ours) if *ours != members.cluster_id => {
                return Err(ClientError::OtherCluster {
                    endpoint: endpoint.to_owned(),
                    expected: hex(ours),
                    found: hex(&members.cluster_id),
                });
            }
            Some(_) => {}
            None => learned.cluster = Some(members.cluster_id.clone()),
        }
        let is_news = learned.members.as_ref().is_none_or(|known| known.config < members.config);
        if is_news && !members.list.is_empty() {
            self.follow(&mut learned, members.clone());
        }
        Ok(())
    }

    /// Connects to the new members from now on, and closes the connections to dropped ones.
    fn follow(&self, learned: &mut Learned, members: Members) {
        let is_member = |id: u64| members.get(id).is_some();
        for node in self.told.iter().filter(|node| node.id().is_some_and(|id| !is_member(id))) {
            node.close();
        }
        let addresses: Vec<String> =
            members.list.iter().filter_map(|member| member.client_addr.clone()).collect();
        learned.members = Some(members);
        learned.keep_members();
        for address in addresses {
            // An address that cannot be used is left out; the node itself is asked for no other.
            self.add(learned, &address).ok();
        }
    }

    /// Whether to ask for the members now; the caller then does.
    pub(crate) fn is_time_to_refresh(&self) -> bool {
        let mut learned = self.learned.lock().unpoisoned();
        let is_time = learned.refreshed_at.is_none_or(|at| at.elapsed() >= REFRESH_INTERVAL);
        if is_time {
            learned.refreshed_at = Some(Instant::now());
        }
        is_time
    }

    /// Why a node is no member any more, if the client knows that.
    pub(crate) fn removed(&self, node: &Node) -> Option<String> {
        let learned = self.learned.lock().unpoisoned();
        let (id, members) = (node.id()?, learned.members.as_ref()?);
        let is_gone = members.get(id).is_none();
        is_gone.then(|| format!("node {id} is no member of configuration {}", members.config))
    }

    /// Returns the node that last answered as the leader, unless it has failed since.
    pub(crate) fn leader(&self) -> Option<Arc<Node>> {
        self.leader.borrow().clone()
    }

    /// Returns a receiver of changes of the leader.
    pub(crate) fn watch_leader(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.leader.subscribe()
    }

    /// Records the node that answered as the leader, and wakes the calls that search for it.
    pub(crate) fn is_leader(&self, node: &Arc<Node>) {
        self.leader.send_if_modified(|leader| {
            let news = !leader.as_ref().is_some_and(|known| Arc::ptr_eq(known, node));
            if news {
                *leader = Some(node.clone());
            }
            news
        });
    }

    /// Records that the leader has transferred its leadership.
    pub(crate) fn handed_over(&self) {
        self.leader.send_if_modified(|leader| {
            *leader = None;
            false
        });
    }

    /// Records that a node does not lead (any more).
    pub(crate) fn clear_leader(&self, node: &Arc<Node>) {
        // Searching calls wait for a leader; the loss of one is no reason to wake them.
        self.leader.send_if_modified(|leader| {
            if leader.as_ref().is_some_and(|known| Arc::ptr_eq(known, node)) {
                *leader = None;
            }
            false
        });
    }
}

impl Learned {
    /// Drops the nodes that are no members; their connections close.
    fn keep_members(&mut self) {
        let members = self.members.iter().flat_map(|members| &members.list);
        let addresses: Vec<&str> =
            members.filter_map(|member| member.client_addr.as_deref()).collect();
        self.nodes.retain(|address, _| addresses.contains(&&**address));
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
