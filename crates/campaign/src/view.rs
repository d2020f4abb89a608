//! What the nodes report: their status, polled throughout the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d_engine_client::{Client, ClientOptions, NodeRole, NodeStatus};
use d_engine_locks::Unpoisoned;

use crate::net::founders;
use crate::record::Record;
use crate::shell::{Outcome, doing};

/// The pause between two rounds of status calls.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The timeout of a status call.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The reason that a node's status shows during an orderly stop.
const SHUT_DOWN: &str = "the node was shut down";

/// The last known status of the node on each machine; shared between tasks.
#[derive(Debug, Default)]
pub(crate) struct View(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By machine, as everything here.
    said: BTreeMap<u64, NodeStatus>,
    terms: BTreeSet<u64>,
    /// Nodes that have reported ready since their last start.
    ready: BTreeSet<u64>,
    /// How often each node was started.
    starts: BTreeMap<u64, u64>,
    /// The addresses for clients.
    addresses: BTreeMap<u64, String>,
    /// Nodes that have answered at their address.
    served: BTreeSet<u64>,
    /// Nodes that the operator removes, and which may so stop.
    leaving: BTreeSet<u64>,
}

impl View {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unpoisoned()
    }

    /// Returns the machine of the leader of the highest term, by the last status of each node.
    pub(crate) fn leader(&self) -> Option<u64> {
        let inner = self.lock();
        let leaders = inner.said.iter().filter(|(_, status)| status.role == NodeRole::Leader);
        leaders.max_by_key(|(_, status)| status.term).map(|(machine, _)| *machine)
    }

    /// Returns the last status of the node on a machine.
    pub(crate) fn said(&self, machine: u64) -> Option<NodeStatus> {
        self.lock().said.get(&machine).cloned()
    }

    /// Returns the last status of the leader.
    pub(crate) fn said_by_leader(&self) -> Option<NodeStatus> {
        self.leader().and_then(|machine| self.said(machine))
    }

    /// Returns how many terms with a leader were seen.
    pub(crate) fn terms(&self) -> usize {
        self.lock().terms.len()
    }

    /// Records a start or a kill of a node: until it reports ready again, not being ready is no
    /// finding. With an `address`, it is reached there from now on.
    pub(crate) fn started(&self, machine: u64, address: Option<String>) {
        let mut inner = self.lock();
        inner.ready.remove(&machine);
        inner.said.remove(&machine);
        *inner.starts.entry(machine).or_default() += 1;
        if let Some(address) = address
            && inner.addresses.insert(machine, address.clone()) != Some(address)
        {
            inner.served.remove(&machine);
        }
    }

    /// Records that the operator removes the node on a machine.
    pub(crate) fn leaves(&self, machine: u64) {
        self.lock().leaving.insert(machine);
    }

    /// Records that there is no node on a machine any more.
    pub(crate) fn vacated(&self, machine: u64) {
        self.started(machine, None);
        let mut inner = self.lock();
        inner.addresses.remove(&machine);
        inner.served.remove(&machine);
        inner.leaving.remove(&machine);
    }

    /// Returns the addresses for clients of all nodes that have ever answered there.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let inner = self.lock();
        let served = inner.addresses.iter().filter(|(machine, _)| inner.served.contains(machine));
        served.map(|(_, address)| address.clone()).collect()
    }

    /// Returns the address for clients of the node on a machine, and how often it was started.
    fn places(&self) -> Vec<(u64, String, u64)> {
        let inner = self.lock();
        let starts = |machine| inner.starts.get(&machine).copied().unwrap_or_default();
        let all = inner.addresses.iter();
        all.map(|(machine, address)| (*machine, address.clone(), starts(*machine))).collect()
    }

    /// Stores the status of a node that was started `starts` times when it was asked; returns a
    /// finding if the status must not occur.
    fn note(&self, machine: u64, starts: u64, status: NodeStatus) -> Option<String> {
        let mut inner = self.lock();
        // A response of the previous process says nothing about this one.
        if inner.starts.get(&machine).copied().unwrap_or_default() != starts {
            return None;
        }
        let node = status.node;
        let was_ready = inner.ready.contains(&machine);
        let is_leaving = inner.leaving.contains(&machine);
        let broken = match (&status.stopped, status.removed_by) {
            _ if is_leaving => None,
            (_, Some(by)) => Some(format!("node {node} says that configuration {by} removed it")),
            (Some(reason), _) if reason == SHUT_DOWN => None,
            (Some(reason), _) => Some(format!("node {node} has stopped: {reason}")),
            (None, _) if was_ready && !status.ready => {
                Some(format!("node {node} was ready and no longer is"))
            }
            _ => None,
        };
        if status.ready {
            inner.ready.insert(machine);
        } else {
            // Report this only once.
            inner.ready.remove(&machine);
        }
        if status.role == NodeRole::Leader {
            inner.terms.insert(status.term);
        }
        let before = inner.said.get(&machine);
        let again = before.is_some_and(|before| {
            (&before.stopped, before.removed_by) == (&status.stopped, status.removed_by)
        });
        let is_new = status.stopped.is_none() && status.removed_by.is_none() || !again;
        inner.said.insert(machine, status);
        inner.served.insert(machine);
        broken.filter(|_| is_new)
    }
}

/// Polls the nodes until the run ends.
pub(crate) async fn watch(record: Arc<Record>, view: Arc<View>) -> Outcome<()> {
    let client = Client::new(founders(), ClientOptions::default().timeout(TIMEOUT));
    let client = client.map_err(doing("a client"))?;
    while !record.is_over() {
        for (machine, address, starts) in view.places() {
            if let Ok(status) = client.status(&address).await
                && let Some(problem) = view.note(machine, starts, status)
            {
                record.finding(&problem);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
