//! Fills in the status of a node, and asks its state machine for its part.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use d_engine_api::{NodeRole, NodeStatus};
use d_engine_core::{CoreStatus, NodeId, RoleKind};
use d_engine_replica::{ReadGateInputs as _, ReplicaStatus, StateMachine};
use d_engine_storage::Identity;
use tokio::sync::Semaphore;

use crate::members::view;
use crate::snapshots::status::{entry_id, snapshot_alarms, snapshot_status};
use crate::threads::shared::Shared;

/// How long a status call waits for the state machine.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the status of a node.
pub(crate) async fn node_status(
    shared: &Shared,
    identity: &Identity,
    machine: &AskedMachine,
) -> NodeStatus {
    let replica = replica_status(shared).await;
    // Concurrently: a machine that takes long to count its records is running nevertheless.
    let (runs, records) = tokio::join!(machine.is_running(), machine.len());
    let state_machine_running = runs == Some(true);
    let stopped = shared.inbox.closed();
    let serves = stopped.is_none() && !shared.gate.is_halted();
    let log = shared.log_counters.read();
    let mut status = NodeStatus::default();
    status.node = identity.node.get();
    status.cluster_id = identity.cluster.0.to_vec();
    status.group = identity.group.get();
    status.incarnation = identity.incarnation.0.to_vec();
    status.stopped = stopped.map(|reason| reason.to_string());
    status.refusals = shared.refusals.texts();
    status.alarms = snapshot_alarms(shared);
    status.alarms.extend(shared.refusals.alarms());
    status.late_replies = shared.late_replies.load(Ordering::Relaxed);
    status.ready = *shared.ready.borrow() && serves && state_machine_running;
    status.state_machine_running = state_machine_running;
    status.records = records.map(|records| records as u64);
    status.version = env!("CARGO_PKG_VERSION").to_owned();
    status.log_syncs = log.syncs;
    status.log_bytes_written = log.bytes_written;
    status.log_bytes_on_disk = log.log_bytes;
    status.snapshots = snapshot_status(shared, &log);
    if let Some(replica) = replica {
        let now = shared.gate.now();
        add_replica(&mut status, replica, now);
    }
    status
}

/// Returns the status of the replica; `None` once the node has stopped.
pub(crate) async fn replica_status(shared: &Shared) -> Option<ReplicaStatus> {
    shared.inbox.status()?.await.ok()
}

fn add_replica(status: &mut NodeStatus, replica: ReplicaStatus, now: d_engine_core::Instant) {
    let core = &replica.core;
    status.role = role(core);
    status.term = core.term.get();
    status.leader = core.leader.map(NodeId::get);
    status.commit_index = core.log.committed.get();
    status.applied_index = replica.applied;
    status.persisted_index = core.log.persisted.get();
    status.last_index = core.log.last.index.get();
    status.lease_revoked = core.lease_revoked;
    status.members = view::list(&replica.membership);
    view::add_progress(&mut status.members, &replica, now);
    status.config = view::config_id(replica.membership.id());
    status.removed_by = replica.removed.map(view::config_id);
    if let Some(stop) = &replica.apply_stop {
        status.halted_at = stop.halted_at().map(entry_id);
        status.apply_stopped = Some(stop.reason.to_string());
    }
    status.alarms.extend(replica.alarms);
    status.losses = replica.losses;
    status.command_version_max = replica.command_version_max;
    status.command_version_allowed = replica.command_version_allowed;
}

fn role(core: &CoreStatus) -> NodeRole {
    match core.role {
        RoleKind::Follower if !core.configuration.is_voter(core.node) => NodeRole::Learner,
        RoleKind::Follower => NodeRole::Follower,
        RoleKind::PreCandidate => NodeRole::PreCandidate,
        RoleKind::Candidate => NodeRole::Candidate,
        RoleKind::Leader => NodeRole::Leader,
    }
}

/// Calls the state machine's methods for the status on threads for blocking work, because they may
/// take long or wait for a lock that the machine holds. At most one thread waits for each method.
pub(crate) struct AskedMachine {
    machine: Arc<dyn StateMachine>,
    runs: Arc<Semaphore>,
    counts: Arc<Semaphore>,
}

impl AskedMachine {
    pub(crate) fn new(machine: Arc<dyn StateMachine>) -> Self {
        Self { machine, runs: Arc::new(Semaphore::new(1)), counts: Arc::new(Semaphore::new(1)) }
    }

    /// Whether it reports that it is running; `None` if it does not answer within a second, or
    /// panics.
    pub(crate) async fn is_running(&self) -> Option<bool> {
        self.ask(&self.runs, |machine| machine.is_running()).await
    }

    /// The number of records that it reports; `None` if it does not answer within a second, or
    /// panics.
    async fn len(&self) -> Option<usize> {
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
            // The permit is released when the machine has answered, even if no caller waits any
            // more.
            let asked = tokio::task::spawn_blocking(move || {
                let answer = question(&*machine);
                drop(permit);
                answer
            });
            asked.await.ok()
        };
        tokio::time::timeout(MACHINE_TIMEOUT, answer).await.ok().flatten()
    }
}
