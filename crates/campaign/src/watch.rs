//! Polls the nodes' status throughout the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d_engine_client::{Client, ClientOptions, NodeRole, NodeStatus};
use d_engine_locks::Unpoisoned;

use crate::net::{NODES, client_addr};
use crate::record::Record;
use crate::shell::{Outcome, doing};

/// The pause between two rounds of status calls.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The timeout of a status call.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The reason that a node's status shows during an orderly stop.
const SHUT_DOWN: &str = "the node was shut down";

/// The last known status of the nodes; shared between tasks.
#[derive(Debug, Default)]
pub(crate) struct View(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    said: BTreeMap<u64, NodeStatus>,
    terms: BTreeSet<u64>,
    /// Nodes that have reported ready since their last start.
    ready: BTreeSet<u64>,
    /// How often each node was started.
    starts: BTreeMap<u64, u64>,
}

impl View {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unpoisoned()
    }

    /// Returns the leader of the highest term, by the last status of each node.
    pub(crate) fn leader(&self) -> Option<u64> {
        let inner = self.lock();
        let leaders = inner.said.values().filter(|status| status.role == NodeRole::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node)
    }

    /// Returns the last status of a node.
    pub(crate) fn said(&self, node: u64) -> Option<NodeStatus> {
        self.lock().said.get(&node).cloned()
    }

    /// Returns how many terms with a leader were seen.
    pub(crate) fn terms(&self) -> usize {
        self.lock().terms.len()
    }

    /// Records a start of a node: until it reports ready again, not being ready is no finding.
    pub(crate) fn started(&self, node: u64) {
        let mut inner = self.lock();
        inner.ready.remove(&node);
        inner.said.remove(&node);
        *inner.starts.entry(node).or_default() += 1;
    }

    fn starts(&self, node: u64) -> u64 {
        self.lock().starts.get(&node).copied().unwrap_or_default()
    }

    /// Stores a node's status; returns a finding if the status must not occur.
    fn note(&self, status: NodeStatus) -> Option<String> {
        let mut inner = self.lock();
        let node = status.node;
        let was_ready = inner.ready.contains(&node);
        let broken = match &status.stopped {
            Some(reason) if reason == SHUT_DOWN => None,
            Some(reason) => Some(format!("node {node} has stopped: {reason}")),
            None if was_ready && !status.ready => {
                Some(format!("node {node} was ready and no longer is"))
            }
            None => None,
        };
        if status.ready {
            inner.ready.insert(node);
        } else {
            // Report this only once.
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

/// Polls the nodes until the run ends.
pub(crate) async fn watch(record: Arc<Record>, view: Arc<View>) -> Outcome<()> {
    let client =
        Client::new((1..=NODES).map(client_addr), ClientOptions::default().timeout(TIMEOUT));
    let client = client.map_err(doing("a client"))?;
    while !record.is_over() {
        for node in 1..=NODES {
            let starts = view.starts(node);
            if let Ok(status) = client.status(&client_addr(node)).await
                // A response of the previous process says nothing about this one.
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
