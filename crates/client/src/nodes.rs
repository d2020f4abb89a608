//! The nodes that a client knows: the configured ones, and those that other nodes named.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use d_engine_locks::Unpoisoned;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::node::Node;
use crate::{ClientError, ClientOptions};

/// Bound of the addresses learned from responses; a cluster has far fewer members.
const LEARNED_MAX: usize = 64;

/// The nodes that a client knows.
pub(crate) struct Nodes {
    pub(crate) options: ClientOptions,
    /// The configured nodes, in their order.
    told: Vec<Arc<Node>>,
    learned: Mutex<BTreeMap<Arc<str>, Arc<Node>>>,
    /// The node that last answered as the leader.
    leader: watch::Sender<Option<Arc<Node>>>,
    /// Bounds the calls in flight.
    in_flight: Semaphore,
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

    /// Returns all known nodes, the configured ones first; never empty.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        let learned = self.learned.lock().unpoisoned();
        self.told.iter().chain(learned.values()).cloned().collect()
    }

    /// Returns the node at an address, and adds it if it is not known yet.
    pub(crate) fn at(&self, address: &str) -> Result<Arc<Node>, ClientError> {
        if let Some(node) = self.told.iter().find(|node| *node.address == *address) {
            return Ok(node.clone());
        }
        let mut learned = self.learned.lock().unpoisoned();
        if let Some(node) = learned.get(address) {
            return Ok(node.clone());
        }
        let node = Arc::new(Node::new(address, &self.options)?);
        if learned.len() >= LEARNED_MAX {
            learned.clear();
        }
        learned.insert(node.address.clone(), node.clone());
        Ok(node)
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
