//! The engine inside the user's process: its handle, commands, start and end. Reads are in
//! `embedded/reads.rs`, the members in `embedded/members.rs`, what an operator requests in
//! `embedded/operate.rs`, backups in `embedded/backup.rs`.

mod backup;
mod members;
mod operate;
mod reads;

pub(crate) use backup::OpenBackup;
pub use backup::{Backup, BackupError, BackupOptions};
pub use members::ChangeOptions;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use d_engine_core::NodeId;
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    Proposal, ProposeError, ReadGateInputs as _, ReplicaStatus, StateMachine, StopReason,
    UnknownBecause,
};
use d_engine_storage::Identity;
use tokio::sync::{oneshot, watch};

use crate::node::shutdown::Shutdown;
use crate::node::status::{AskedMachine, node_status, replica_status};
use crate::threads::inbox::Ticket;
use crate::threads::shared::Shared;
use crate::threads::workers::panic_text;
use crate::{Config, IntoStateMachine, NodeBuilder, NodeStatus, StartError, WaitError};

/// A running node. Every clone is a handle of the same node. Dropping the last clone shuts the node
/// down in the background; [`EmbeddedEngine::stop`] waits for it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use d_engine_server::{EmbeddedEngine, ReadConsistency};
/// let engine = EmbeddedEngine::start("/var/lib/app").await?;
/// engine.wait_ready(std::time::Duration::from_secs(10)).await?;
/// let value = engine.get(b"key", ReadConsistency::Linearizable).await?;
/// # let _ = value;
/// engine.stop().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EmbeddedEngine {
    inner: Arc<Inner>,
}

/// How long a shutdown waits for clients to receive their last responses.
const CLIENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a state machine that is not running yet is checked.
const MACHINE_LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long to wait for the stop reason after a thread has ended.
const REASON_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a command whose responder was dropped: its thread has ended, and so has the node.
const LOST: ProposeError = ProposeError::OutcomeUnknown { why: UnknownBecause::NodeStopped };

/// The components of a node whose threads are running.
pub(crate) struct NodeComponents {
    pub(crate) identity: Identity,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ending: Shutdown,
    pub(crate) client_addr: Option<SocketAddr>,
}

struct Inner {
    identity: Identity,
    machine: Arc<dyn StateMachine>,
    asked: AskedMachine,
    shared: Arc<Shared>,
    client_addr: Option<SocketAddr>,
    /// Shared by all callers of `stop`.
    ending: Shutdown,
    clients: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// The sender of a shutdown channel made here; dropping it shuts the node down.
    keeps: Mutex<Option<watch::Sender<()>>>,
}

/// A handle that does not keep the node alive.
#[derive(Clone)]
pub(crate) struct WeakEngine(Weak<Inner>);

impl WeakEngine {
    pub(crate) fn upgrade(&self) -> Option<EmbeddedEngine> {
        self.0.upgrade().map(|inner| EmbeddedEngine { inner })
    }
}

impl EmbeddedEngine {
    /// Identity of the node, for tests of this crate.
    #[cfg(test)]
    pub(crate) fn identity(&self) -> &d_engine_storage::Identity {
        &self.inner.identity
    }

    /// Starts a cluster of one node with the key-value state machine and its files in `dir`. Call
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(dir: impl Into<PathBuf>) -> Result<Self, StartError> {
        let config = Config { data_dir: dir.into(), ..Config::default() };
        let (keep, shutdown) = watch::channel(());
        let engine = NodeBuilder::new(config, shutdown).build()?.start().await?;
        engine.keep(keep);
        Ok(engine)
    }

    /// Starts a node of the cluster in `config` with the user's state machine. Call inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_custom(
        machine: impl IntoStateMachine,
        config: Config,
    ) -> Result<Self, StartError> {
        let (keep, shutdown) = watch::channel(());
        let engine =
            NodeBuilder::new(config, shutdown).state_machine(machine).build()?.start().await?;
        engine.keep(keep);
        Ok(engine)
    }

    pub(crate) fn new(parts: NodeComponents) -> Self {
        Self {
            inner: Arc::new(Inner {
                identity: parts.identity,
                asked: AskedMachine::new(parts.machine.clone()),
                machine: parts.machine,
                shared: parts.shared,
                client_addr: parts.client_addr,
                ending: parts.ending,
                clients: tokio::sync::Mutex::new(None),
                keeps: Mutex::new(None),
            }),
        }
    }

    /// Becomes `Some` when the node has stopped.
    pub(crate) fn stop_signal(&self) -> watch::Receiver<Option<StopReason>> {
        self.inner.shared.stopped.subscribe()
    }

    fn keep(&self, shutdown: watch::Sender<()>) {
        *self.inner.keeps.lock().unpoisoned() = Some(shutdown);
    }

    pub(crate) fn weak(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.inner))
    }

    pub(crate) fn attach_client_service(&self, task: tokio::task::JoinHandle<()>) {
        // Called once, before the handle is returned, so the lock is free.
        if let Ok(mut clients) = self.inner.clients.try_lock() {
            *clients = Some(task);
        }
    }

    /// Shuts down when `shutdown` changes or its sender is dropped.
    pub(crate) fn stop_when(&self, mut shutdown: watch::Receiver<()>) {
        let (weak, mut stopped) = (self.weak(), self.inner.shared.stopped.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                _ = shutdown.changed() => {}
                _ = stopped.wait_for(Option::is_some) => {}
            }
            if let Some(engine) = weak.upgrade() {
                engine.stop().await;
            }
        });
    }

    /// Waits up to `timeout` until the node knows a leader, has received and applied everything
    /// that this leader had committed, and its state machine reports that it is running.
    ///
    /// # Errors
    /// See [`WaitError`].
    pub async fn wait_ready(&self, timeout: Duration) -> Result<(), WaitError> {
        let mut ready = self.inner.shared.ready.subscribe();
        let mut stopped = self.inner.shared.stopped.subscribe();
        let mut stands = self.inner.shared.stands.subscribe();
        let serves = async {
            // The sender lives as long as this engine, so neither wait fails.
            ready.wait_for(|ready| *ready).await.ok();
            stands.wait_for(Option::is_none).await.ok();
            let mut looks = tokio::time::interval(MACHINE_LOOK_EVERY);
            while self.inner.asked.is_running().await != Some(true) {
                looks.tick().await;
            }
        };
        let waited = tokio::select! {
            biased;
            _ = stopped.wait_for(Option::is_some) => {
                return Err(WaitError::Stopped { reason: self.reason_of_stop() });
            }
            waited = tokio::time::timeout(timeout, serves) => waited,
        };
        waited.map_err(|_| {
            let waited_ms = timeout.as_millis();
            if let Some(reason) = self.inner.shared.stands.borrow().clone() {
                WaitError::Stopped { reason }
            } else if *self.inner.shared.ready.borrow() {
                WaitError::StateMachineDown { waited_ms }
            } else {
                WaitError::TimedOut { waited_ms }
            }
        })
    }

    /// Replicates a command. Returns the state machine's reply once a majority has persisted the
    /// command and this node has applied it. Waits without a limit; see
    /// [`EmbeddedEngine::propose_within`].
    ///
    /// # Errors
    /// [`ProposeError`] says whether the command was proposed and where to retry. Dropping the
    /// future does not withdraw the command.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Bytes, ProposeError> {
        self.propose_by(command.into(), None).await
    }

    /// As [`EmbeddedEngine::propose`], for at most `timeout`. A command that the raft thread has
    /// not taken from its queue by then is never proposed: an overloaded node does no work for
    /// callers that no longer wait.
    ///
    /// # Errors
    /// [`ProposeError::Expired`] if the command certainly was not proposed in time;
    /// [`ProposeError::OutcomeUnknown`] if it was, and no reply came in time; otherwise as
    /// [`EmbeddedEngine::propose`].
    pub async fn propose_within(
        &self,
        command: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, ProposeError> {
        let deadline = self.inner.shared.gate.after(timeout);
        let (ticket, answered) = self.enqueue(command.into(), Some(deadline));
        match tokio::time::timeout(timeout, answered).await {
            Ok(answer) => answer.unwrap_or(Err(LOST)),
            // The raft thread has not taken it yet, so it will not be proposed.
            Err(_) if ticket.is_some_and(|ticket| self.inner.shared.inbox.withdraw(ticket)) => {
                Err(ProposeError::Expired)
            }
            Err(_) => Err(ProposeError::OutcomeUnknown { why: UnknownBecause::DeadlinePassed }),
        }
    }

    /// Proposes the command unless `deadline` passes before the raft thread takes it.
    pub(crate) async fn propose_by(
        &self,
        command: Bytes,
        deadline: Option<d_engine_core::Instant>,
    ) -> Result<Bytes, ProposeError> {
        self.enqueue(command, deadline).1.await.unwrap_or(Err(LOST))
    }

    /// Enqueues a command in the inbox. Returns its ticket, if it was accepted, and the receiver of
    /// the result.
    fn enqueue(
        &self,
        command: Bytes,
        deadline: Option<d_engine_core::Instant>,
    ) -> (Option<Ticket>, oneshot::Receiver<Result<Bytes, ProposeError>>) {
        let (answer, answered) = oneshot::channel();
        let (version, checked) = self.check_command(&command);
        let responder = Box::new(move |result| {
            // The caller may have dropped its future.
            answer.send(result).ok();
        });
        let ticket = self.inner.shared.inbox.propose(Proposal {
            command,
            deadline,
            checked,
            version,
            responder,
        });
        (ticket, answered)
    }

    /// Asks the state machine for a command's version and validity, on the caller's thread.
    fn check_command(&self, command: &[u8]) -> (u32, Result<(), Arc<str>>) {
        let machine = &self.inner.machine;
        let asked = catch_unwind(AssertUnwindSafe(|| {
            let version = machine.command_version(command);
            // This program cannot check what it does not decode; the version alone decides.
            let decodes = version == 0 || version <= machine.command_version_max();
            (version, if decodes { machine.check(command) } else { Ok(()) })
        }));
        let (version, said) = asked.unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            tracing::error!("the state machine panicked while checking a command: {text}");
            let what = "its command_version or check panicked";
            (0, Err(d_engine_replica::Error::msg(format_args!("{what}: {text}"))))
        });
        (version, said.map_err(|error| Arc::from(error.to_string())))
    }

    /// Returns the id of this node.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.inner.identity.node.get()
    }

    /// Returns the leader's id as far as this node knows; it may be out of date at any moment.
    /// `None` if no leader is known, or once the node has stopped.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.inner.shared.leader.borrow().1.map(NodeId::get)
    }

    /// Returns whether this node believes that it is leader and can serve; it may be out of date at
    /// any moment. `false` while its state machine is halted at an entry that it cannot apply.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.node_id()) && !self.inner.shared.gate.is_halted()
    }

    /// Returns the node's status, as an operator sees it over the network. Takes up to a second if
    /// the state machine does not answer.
    pub async fn status(&self) -> NodeStatus {
        node_status(&self.inner.shared, &self.inner.identity, &self.inner.asked).await
    }

    /// Returns the status of the replica, which has more than [`EmbeddedEngine::status`]: what the
    /// leader knows of each follower, the vote, the watermarks of the log. `None` once the node has
    /// stopped.
    pub async fn replica_status(&self) -> Option<ReplicaStatus> {
        replica_status(&self.inner.shared).await
    }

    /// Returns the state machine that the node was started with.
    #[must_use]
    pub fn state_machine(&self) -> &Arc<dyn StateMachine> {
        &self.inner.machine
    }

    /// Returns the address for clients, with the port actually bound; `None` if the node serves
    /// none.
    #[must_use]
    pub fn client_addr(&self) -> Option<SocketAddr> {
        self.inner.client_addr
    }

    /// Shuts the node down: accepts no more requests, answers those in flight (for at most two
    /// seconds), syncs the log, flushes and stops the state machine, and releases the lock of the
    /// directory. Returns when all of this is done. A state machine that does not return from a
    /// call delays it without limit; a warning every five seconds names the thread that is waited
    /// for. May be called more than once.
    pub async fn stop(&self) {
        self.inner.shared.inbox.shut_down();
        let mut stopped = self.inner.shared.stopped.subscribe();
        // The sender is in `shared`, which this handle keeps alive.
        stopped.wait_for(Option::is_some).await.ok();
        {
            // Stays here until it has ended: if this call is dropped, the next one waits too.
            let mut clients = self.inner.clients.lock().await;
            if let Some(task) = clients.as_mut()
                && tokio::time::timeout(CLIENTS_TIMEOUT, &mut *task).await.is_err()
            {
                task.abort();
            }
            *clients = None;
        }
        self.inner.ending.wait(self.inner.identity.node).await;
    }

    /// Waits until the node has stopped for any reason.
    ///
    /// # Errors
    /// [`StartError::Stopped`] if the node failed. A shutdown on request is not an error.
    pub async fn stopped(&self) -> Result<(), StartError> {
        let mut stopped = self.inner.shared.stopped.subscribe();
        stopped.wait_for(Option::is_some).await.ok();
        self.stop().await;
        let reason = self.reason_of_stop();
        if reason == StopReason::new(crate::SHUT_DOWN) {
            Ok(())
        } else {
            Err(StartError::Stopped(reason))
        }
    }

    /// Returns the stop reason. A thread's queue may close before it is known, so waits a little.
    async fn reason_of_the_end(&self) -> StopReason {
        if self.inner.shared.inbox.closed().is_none() {
            let mut stopped = self.inner.shared.stopped.subscribe();
            tokio::time::timeout(REASON_TIMEOUT, stopped.wait_for(Option::is_some)).await.ok();
        }
        self.reason_of_stop()
    }

    /// Returns why the node has stopped; `None` if it has not.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        let reason = self.inner.shared.stopped.borrow().clone();
        reason.or_else(|| self.inner.shared.inbox.closed())
    }

    /// Returns the stop reason for the error of a caller whose thread of the node has ended. The
    /// reason may not be known yet.
    pub(crate) fn reason_of_stop(&self) -> StopReason {
        self.stop_reason().unwrap_or_else(|| {
            StopReason::new("one of its threads has ended; the reason is not known yet")
        })
    }
}

impl std::fmt::Debug for EmbeddedEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedEngine")
            .field("identity", &self.inner.identity)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The threads notice it, finish their work and end by themselves.
        self.shared.inbox.shut_down();
        if let Some(clients) = self.clients.get_mut().take() {
            clients.abort();
        }
    }
}
