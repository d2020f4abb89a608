//! The nodes that a client knows: those it was told of, and leaders that others named.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::node::Node;
use crate::{ClientError, ClientOptions};

/// Addresses kept that were learned from answers; a cluster has far fewer members.
const LEARNED_MAX: usize = 64;

/// The nodes that a client knows.
pub(crate) struct Nodes {
    pub(crate) options: ClientOptions,
    /// In the order they were given.
    told: Vec<Arc<Node>>,
    learned: Mutex<BTreeMap<Arc<str>, Arc<Node>>>,
    /// Who last answered as the leader.
    leader: watch::Sender<Option<Arc<Node>>>,
    /// Places for calls in flight.
    in_flight: Semaphore,
}

impl Nodes {
    pub(crate) fn new(
        addresses: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let told = addresses.into_iter().map(|address| Node::new(address.as_ref(), &options).map(Arc::new));
        let told = told.collect::<Result<Vec<_>, _>>()?;
        if told.is_empty() {
            let reason = "no address was given".to_owned();
            return Err(ClientError::BadEndpoint { endpoint: String::new(), reason });
        }
        let in_flight = Semaphore::new(options.max_in_flight.min(Semaphore::MAX_PERMITS));
        Ok(Self { options, told, learned: Mutex::default(), leader: watch::Sender::new(None), in_flight })
    }

    /// A place for a call, if fewer than allowed are in flight.
    pub(crate) fn place_in_flight(&self) -> Result<SemaphorePermit<'_>, ClientError> {
        self.in_flight.try_acquire().map_err(|_| ClientError::Busy {
            endpoint: "this client".to_owned(),
            what: format!("{} calls in flight, ClientOptions::max_in_flight", self.options.max_in_flight),
        })
    }

    /// The nodes the client was told of; never empty.
    pub(crate) fn told(&self) -> &[Arc<Node>] {
        &self.told
    }

    /// Everybody this client knows of, those it was told of first; never empty.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        self.told.iter().chain(learned.values()).cloned().collect()
    }

    /// The node at an address, known before or not.
    pub(crate) fn at(&self, address: &str) -> Result<Arc<Node>, ClientError> {
        if let Some(node) = self.told.iter().find(|node| *node.address == *address) {
            return Ok(node.clone());
        }
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Who last answered as the leader, unless it failed since.
    pub(crate) fn leader(&self) -> Option<Arc<Node>> {
        self.leader.borrow().clone()
    }

    /// Sees every change of the leader.
    pub(crate) fn watch_leader(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.leader.subscribe()
    }

    /// Notes who answered as the leader, and wakes the calls that search for it.
    pub(crate) fn is_leader(&self, node: &Arc<Node>) {
        self.leader.send_if_modified(|leader| {
            let news = !leader.as_ref().is_some_and(|known| Arc::ptr_eq(known, node));
            if news {
                *leader = Some(node.clone());
            }
            news
        });
    }

    /// Notes that whoever led has handed over.
    pub(crate) fn handed_over(&self) {
        self.leader.send_if_modified(|leader| {
            *leader = None;
            false
        });
    }

    /// Notes that a node does not lead (any more).
    pub(crate) fn is_no_leader(&self, node: &Arc<Node>) {
        // Searching calls are woken by a leader, not by the loss of one.
        self.leader.send_if_modified(|leader| {
            if leader.as_ref().is_some_and(|known| Arc::ptr_eq(known, node)) {
                *leader = None;
            }
            false
        });
    }
}
