//! What the nodes say about themselves all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use d_engine_client::{Client, ClientOptions, NodeRole, NodeStatus};

use crate::net::{NODES, client_addr};
use crate::record::Record;
use crate::shell::{Outcome, doing};

/// Between two looks at a node.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a node says while it stops in order, as it was told to.
const SHUT_DOWN: &str = "the node was shut down";

/// What is known of the nodes; shared.
#[derive(Debug, Default)]
pub(crate) struct View(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    said: BTreeMap<u64, NodeStatus>,
    terms: BTreeSet<u64>,
    /// Nodes that said that they are ready since they were started.
    ready: BTreeSet<u64>,
    /// Starts of each node.
    starts: BTreeMap<u64, u64>,
}

impl View {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that leads in the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let inner = self.lock();
        let leaders = inner.said.values().filter(|status| status.role == NodeRole::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node)
    }

    /// What a node has said last.
    pub(crate) fn said(&self, node: u64) -> Option<NodeStatus> {
        self.lock().said.get(&node).cloned()
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> usize {
        self.lock().terms.len()
    }

    /// The node was started: it need not be ready.
    pub(crate) fn started(&self, node: u64) {
        let mut inner = self.lock();
        inner.ready.remove(&node);
        inner.said.remove(&node);
        *inner.starts.entry(node).or_default() += 1;
    }

    fn starts(&self, node: u64) -> u64 {
        self.lock().starts.get(&node).copied().unwrap_or_default()
    }

    /// Keeps what a node said; a sentence if it cannot be.
    fn note(&self, status: NodeStatus) -> Option<String> {
        let mut inner = self.lock();
        let node = status.node;
        let was_ready = inner.ready.contains(&node);
        let broken = match &status.stopped {
            Some(reason) if reason == SHUT_DOWN => None,
            Some(reason) => Some(format!("node {node} has stopped: {reason}")),
            None if was_ready && !status.ready => Some(format!("node {node} was ready and is not any more")),
            None => None,
        };
        if status.ready {
            inner.ready.insert(node);
        } else {
            // Told once.
            inner.ready.remove(&node);
        }
        if status.role == NodeRole::Leader {
            inner.terms.insert(status.term);
        }
        let again = inner.said.get(&node).is_some_and(|before| before.stopped == status.stopped);
        let is_new = status.stopped.is_none() || !again;
        inner.said.insert(node, status);
        broken.filter(|_| is_new)
    }
}

/// Asks the nodes until the run is over.
pub(crate) async fn watch(record: Arc<Record>, view: Arc<View>) -> Outcome<()> {
    let client = Client::new((1..=NODES).map(client_addr), ClientOptions::default().timeout(PATIENCE));
    let client = client.map_err(doing("a client"))?;
    while !record.is_over() {
        for node in 1..=NODES {
            let starts = view.starts(node);
            if let Ok(status) = client.status(&client_addr(node)).await
                // An answer of the process before says nothing about this one.
                && starts == view.starts(node)
                && let Some(problem) = view.note(status)
            {
                record.finding(&problem);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
