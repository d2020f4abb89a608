//! What a node tells about itself, and what its state machine tells about itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use d_engine_replica::{ReplicaStatus, StateMachine, StopReason};
use d_engine_storage::{Identity, LogStats};
use tokio::sync::Semaphore;

use crate::SnapshotStatus;
use crate::raft_thread::Shared;

/// How long the state machine may take to answer.
const MACHINE_PATIENCE: Duration = Duration::from_secs(1);

/// What a node tells about itself.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Whose status this is.
    pub identity: Identity,
    /// The replica's own account; `None` when the node has stopped.
    pub replica: Option<ReplicaStatus>,
    /// What the log has done since the node started, as of its last sync.
    pub log: LogStats,
    /// The node's snapshots.
    pub snapshots: SnapshotStatus,
    /// Whether the node has caught up with its leader once since it started, and its state machine runs. How far it is
    /// behind now is told by numbers: `replica` has commit index and applied index.
    pub ready: bool,
    /// Whether the state machine says that it runs. `false` as well when it says nothing within a second.
    pub state_machine_running: bool,
    /// How many records the state machine says that it holds; `None` when it says nothing within a second.
    pub state_machine_len: Option<usize>,
    /// Replies of the state machine since the start that came after `apply_chunk` had returned, or second to a command:
    /// nobody got them. More than 0 is a fault of the state machine.
    pub late_replies: u64,
    /// Peers that refuse this node or are refused by it just now, and why; for people.
    pub refusals: Vec<String>,
    /// Why the node has stopped, if it has.
    pub stopped: Option<StopReason>,
}

impl NodeStatus {
    pub(crate) async fn of(shared: &Shared, identity: Identity, machine: &AskedMachine) -> Self {
        let replica = match shared.inbox.status() {
            Some(asked) => asked.await.ok(),
            None => None,
        };
        // Beside each other: one that takes its time over counting runs all the same.
        let (runs, state_machine_len) = tokio::join!(machine.is_running(), machine.len());
        let state_machine_running = runs == Some(true);
        let stopped = shared.inbox.closed();
        let serves = stopped.is_none() && !shared.gate.stands();
        let ready = *shared.ready.borrow() && serves && state_machine_running;
        let log = shared.log_counters.read();
        Self {
            identity,
            replica,
            snapshots: SnapshotStatus::of(shared, &log),
            log,
            ready,
            state_machine_running,
            state_machine_len,
            late_replies: shared.late_replies.load(Ordering::Relaxed),
            refusals: shared.refusals.texts(),
            stopped,
        }
    }
}

/// The state machine, asked about itself where nobody else waits for it: it may take its time, or hold a lock that the
/// answer needs. At most one thread waits for each answer.
pub(crate) struct AskedMachine {
    machine: Arc<dyn StateMachine>,
    runs: Arc<Semaphore>,
    counts: Arc<Semaphore>,
}

impl AskedMachine {
    pub(crate) fn new(machine: Arc<dyn StateMachine>) -> Self {
        Self { machine, runs: Arc::new(Semaphore::new(1)), counts: Arc::new(Semaphore::new(1)) }
    }

    /// Whether it says that it runs; `None`: no answer within a second, or a panic.
    pub(crate) async fn is_running(&self) -> Option<bool> {
        self.ask(&self.runs, |machine| machine.is_running()).await
    }

    /// How many records it says that it holds; `None`: no answer within a second, or a panic.
    pub(crate) async fn len(&self) -> Option<usize> {
        self.ask(&self.counts, |machine| machine.len()).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        one: &Arc<Semaphore>,
        question: impl FnOnce(&dyn StateMachine) -> T + Send + 'static,
    ) -> Option<T> {
        let answer = async {
            let permit = one.clone().acquire_owned().await.ok()?;
            let machine = self.machine.clone();
            // The permit is given back when the machine has answered, whether anybody waits for it any more or not.
            let asked = tokio::task::spawn_blocking(move || {
                let answer = question(&*machine);
                drop(permit);
                answer
            });
            asked.await.ok()
        };
        tokio::time::timeout(MACHINE_PATIENCE, answer).await.ok().flatten()
    }
}
