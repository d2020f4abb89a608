//! The engine inside the user's own process.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use d_engine_core::NodeId;
use d_engine_replica::{
    Proposal, ProposeError, ReadConsistency, ReadError, SkipError, StateMachine, StopReason, TransferError,
    UnknownBecause, Unsupported,
};
use d_engine_storage::Identity;
use d_engine_storage::snapshot::SnapshotInfo;
use tokio::sync::{oneshot, watch};

use crate::apply_thread::ASKED_MAX;
use crate::ending::Ending;
use crate::inbox::Ticket;
use crate::node_status::AskedMachine;
use crate::raft_thread::Shared;
use crate::read_gate::Passage;
use crate::worker_threads::panic_text;
use crate::{Config, IntoStateMachine, NodeBuilder, NodeStatus, SnapshotRequestError, StartError, WaitError};

/// A running node. Cheap to clone; every clone is the same node. When the last clone is dropped, the
/// node shuts down.
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

/// How long a shutdown waits for clients to take their last answers.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(1);

/// How often a state machine that does not run yet is asked again.
const MACHINE_LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the reason of an end may take to show.
const REASON_PATIENCE: Duration = Duration::from_secs(5);

/// The answer to a command whose responder was dropped: its thread is gone, and with it the node.
const LOST: ProposeError = ProposeError::OutcomeUnknown { why: UnknownBecause::NodeStopped };

/// What a node consists of once its threads run.
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ending: Ending,
    pub(crate) client_addr: Option<SocketAddr>,
}

struct Inner {
    identity: Identity,
    machine: Arc<dyn StateMachine>,
    asked: AskedMachine,
    shared: Arc<Shared>,
    client_addr: Option<SocketAddr>,
    /// One end for every caller of `stop`, however many come and go.
    ending: Ending,
    clients: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Keeps the shutdown channel of an engine that was started without one open.
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
    /// A cluster of one with the key-value state machine, its files in `dir`.
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

    /// A node of the cluster in `config` with the user's own state machine.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_custom(machine: impl IntoStateMachine, config: Config) -> Result<Self, StartError> {
        let (keep, shutdown) = watch::channel(());
        let engine = NodeBuilder::new(config, shutdown).state_machine(machine).build()?.start().await?;
        engine.keep(keep);
        Ok(engine)
    }

    pub(crate) fn new(parts: Parts) -> Self {
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
        *self.inner.keeps.lock().unwrap_or_else(PoisonError::into_inner) = Some(shutdown);
    }

    pub(crate) fn weak(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.inner))
    }

    pub(crate) fn serves_clients(&self, task: tokio::task::JoinHandle<()>) {
        // Called once, before anybody has the handle.
        if let Ok(mut clients) = self.inner.clients.try_lock() {
            *clients = Some(task);
        }
    }

    /// Shuts down when `shutdown` changes or its sender is dropped.
    pub(crate) fn stops_on(&self, mut shutdown: watch::Receiver<()>) {
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

    /// Waits until the node knows a leader, has everything that leader had committed, has applied it, and its state
    /// machine says that it runs.
    ///
    /// # Errors
    /// See [`WaitError`].
    pub async fn wait_ready(&self, patience: Duration) -> Result<(), WaitError> {
        let mut ready = self.inner.shared.ready.subscribe();
        let mut stopped = self.inner.shared.stopped.subscribe();
        let mut stands = self.inner.shared.stands.subscribe();
        let serves = async {
            // Its sender lives as long as this engine.
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
                return Err(WaitError::Stopped { reason: self.stop_reason() });
            }
            waited = tokio::time::timeout(patience, serves) => waited,
        };
        waited.map_err(|_| {
            let waited_ms = patience.as_millis();
            if let Some(reason) = self.inner.shared.stands.borrow().clone() {
                WaitError::Stopped { reason }
            } else if *self.inner.shared.ready.borrow() {
                WaitError::StateMachineDown { waited_ms }
            } else {
                WaitError::TimedOut { waited_ms }
            }
        })
    }

    /// Replicates a command; returns the state machine's reply once a majority has the command on
    /// stable storage and this node has applied it.
    ///
    /// # Errors
    /// [`ProposeError`] says whether the command was proposed and where to go next. Dropping the future
    /// does not take the command back.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Bytes, ProposeError> {
        self.propose_by(command.into(), None).await
    }

    /// The same with a limit of time. A command that has not been taken up by then is not proposed at all:
    /// under overload the node spends nothing on answers that nobody waits for.
    ///
    /// # Errors
    /// [`ProposeError::Expired`] when it certainly was not proposed in time;
    /// [`ProposeError::OutcomeUnknown`] when it was, and no answer came in time; otherwise as
    /// [`EmbeddedEngine::propose`].
    pub async fn propose_within(
        &self,
        command: impl Into<Bytes>,
        patience: Duration,
    ) -> Result<Bytes, ProposeError> {
        let deadline = self.inner.shared.gate.after(patience);
        let (ticket, answered) = self.hand_in(command.into(), Some(deadline));
        match tokio::time::timeout(patience, answered).await {
            Ok(answer) => answer.unwrap_or(Err(LOST)),
            // Nobody has looked at it yet, so nobody will propose it.
            Err(_) if ticket.is_some_and(|ticket| self.inner.shared.inbox.withdraw(ticket)) => {
                Err(ProposeError::Expired)
            }
            Err(_) => Err(ProposeError::OutcomeUnknown { why: UnknownBecause::DeadlinePassed }),
        }
    }

    /// Proposes unless `deadline` has passed before the command is taken up.
    pub(crate) async fn propose_by(
        &self,
        command: Bytes,
        deadline: Option<d_engine_core::Instant>,
    ) -> Result<Bytes, ProposeError> {
        self.hand_in(command, deadline).1.await.unwrap_or(Err(LOST))
    }

    /// Puts a command into the inbox; returns its place there, and where its answer will come.
    fn hand_in(
        &self,
        command: Bytes,
        deadline: Option<d_engine_core::Instant>,
    ) -> (Option<Ticket>, oneshot::Receiver<Result<Bytes, ProposeError>>) {
        let (answer, answered) = oneshot::channel();
        let (version, checked) = self.judge(&command);
        let responder = Box::new(move |result| {
            // Whoever asked may have gone away.
            answer.send(result).ok();
        });
        let ticket =
            self.inner.shared.inbox.propose(Proposal { command, deadline, checked, version, responder });
        (ticket, answered)
    }

    /// What the state machine says of a command, on the caller's thread: its version, and whether it is one.
    fn judge(&self, command: &[u8]) -> (u32, Result<(), Arc<str>>) {
        let machine = &self.inner.machine;
        let asked = catch_unwind(AssertUnwindSafe(|| {
            let version = machine.command_version(command);
            // What this program does not decode it cannot judge: the version alone decides.
            let decodes = version == 0 || version <= machine.command_version_max();
            (version, if decodes { machine.check(command) } else { Ok(()) })
        }));
        let (version, said) = asked.unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            tracing::error!("the state machine panicked over a command: {text}");
            let what = "its command_version or check panicked";
            (0, Err(d_engine_replica::Error::msg(format_args!("{what}: {text}"))))
        });
        (version, said.map_err(|error| Arc::from(error.to_string())))
    }

    /// The value under `key`. Waits for a leader for no longer than ten of the longest election timeouts; see
    /// [`EmbeddedEngine::get_within`].
    ///
    /// # Errors
    /// [`ReadError`]; every read may be retried.
    pub async fn get(&self, key: &[u8], consistency: ReadConsistency) -> Result<Option<Bytes>, ReadError> {
        self.get_within(key, consistency, self.inner.shared.patience.read).await
    }

    /// The same with a limit of time.
    ///
    /// # Errors
    /// [`ReadError::Expired`] when it was not confirmed and answered in time; otherwise as [`EmbeddedEngine::get`].
    pub async fn get_within(
        &self,
        key: &[u8],
        consistency: ReadConsistency,
        patience: Duration,
    ) -> Result<Option<Bytes>, ReadError> {
        self.within(patience, async {
            self.read_barrier_within(consistency, patience).await?;
            self.get_applied(key).await
        })
        .await
    }

    /// A read whose own part may block ends with its deadline too; whatever it still does goes on without its caller.
    async fn within<T>(
        &self,
        patience: Duration,
        read: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        match self.inner.machine.reads_block() {
            true => tokio::time::timeout(patience, read).await.unwrap_or(Err(ReadError::Expired)),
            false => read.await,
        }
    }

    /// The state machine's answer to a question of its own form. Waits as [`EmbeddedEngine::get`] does.
    ///
    /// # Errors
    /// [`ReadError`]; every read may be retried.
    pub async fn query(&self, request: &[u8], consistency: ReadConsistency) -> Result<Bytes, ReadError> {
        self.query_within(request, consistency, self.inner.shared.patience.read).await
    }

    /// The same with a limit of time.
    ///
    /// # Errors
    /// [`ReadError::Expired`] when it was not confirmed and answered in time; otherwise as
    /// [`EmbeddedEngine::query`].
    pub async fn query_within(
        &self,
        request: &[u8],
        consistency: ReadConsistency,
        patience: Duration,
    ) -> Result<Bytes, ReadError> {
        self.within(patience, async {
            self.read_barrier_within(consistency, patience).await?;
            self.query_applied(request).await
        })
        .await
    }

    /// When a caller's patience of `patience` will be over.
    pub(crate) fn deadline_after(&self, patience: Option<Duration>) -> Option<d_engine_core::Instant> {
        patience.map(|patience| self.inner.shared.gate.after(patience))
    }

    /// The value under `key` in the state that the state machine has.
    pub(crate) async fn get_applied(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let read = |machine: &dyn StateMachine, key: &[u8]| machine.get(key);
        let read = self.read_machine("get", key, read).await?;
        read.map_err(|error| ReadError::StateMachine(error.to_string()))
    }

    /// Reads the state machine here, or on a thread for blocking work if it may wait for a disk: here it would hold up
    /// whatever else runs on this thread of the runtime.
    async fn read_machine<T: Send + 'static>(
        &self,
        method: &'static str,
        request: &[u8],
        read: impl FnOnce(&dyn StateMachine, &[u8]) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        if !self.inner.machine.reads_block() {
            return unpanicked(self.node_id(), method, || read(self.inner.machine.as_ref(), request));
        }
        let (machine, request) = (self.inner.machine.clone(), Bytes::copy_from_slice(request));
        let node = self.node_id();
        let blocking = move || unpanicked(node, method, || read(machine.as_ref(), &request));
        let done = tokio::task::spawn_blocking(blocking).await;
        // Only a runtime that ends takes such a thread away.
        done.unwrap_or_else(|_| Err(ReadError::Stopped { reason: self.stop_reason() }))
    }

    /// The state machine's answer from the state it has.
    pub(crate) async fn query_applied(&self, request: &[u8]) -> Result<Bytes, ReadError> {
        let read = |machine: &dyn StateMachine, request: &[u8]| machine.query(request);
        self.read_machine("query", request, read).await?.map_err(|error| {
            match error.downcast_ref::<Unsupported>() {
                Some(unsupported) => ReadError::Unsupported { operation: unsupported.operation },
                None => ReadError::StateMachine(error.to_string()),
            }
        })
    }

    /// Waits until a read of the state machine is as fresh as `consistency` asks for; returns the log
    /// index that the state has reached at least (for an eventual read 0: nothing is promised).
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_barrier(&self, consistency: ReadConsistency) -> Result<u64, ReadError> {
        self.read_barrier_within(consistency, self.inner.shared.patience.read).await
    }

    /// The same with a limit of time.
    ///
    /// # Errors
    /// [`ReadError::Expired`] when the read was not confirmed in time; otherwise as [`EmbeddedEngine::read_barrier`].
    pub async fn read_barrier_within(
        &self,
        consistency: ReadConsistency,
        patience: Duration,
    ) -> Result<u64, ReadError> {
        let deadline = Some(self.inner.shared.gate.after(patience));
        let confirmed = self.read_barrier_by(consistency, deadline);
        tokio::time::timeout(patience, confirmed).await.unwrap_or(Err(ReadError::Expired))
    }

    async fn read_barrier_by(
        &self,
        consistency: ReadConsistency,
        deadline: Option<d_engine_core::Instant>,
    ) -> Result<u64, ReadError> {
        let stopped = || ReadError::Stopped { reason: self.stop_reason() };
        let passage = match consistency {
            ReadConsistency::Eventual => self.inner.shared.gate.eventual(),
            ReadConsistency::Lease => self.inner.shared.gate.by_lease(),
            // A consistency that this version does not know gets the strongest.
            _ => Passage::AskRaft,
        };
        match passage {
            Passage::Now(index) => {
                // A loop of such reads never waits: other tasks of the caller's runtime get their turn here.
                tokio::task::coop::consume_budget().await;
                Ok(index)
            }
            Passage::Closed => Err(stopped()),
            Passage::AskRaft => {
                let (answer, answered) = oneshot::channel();
                let lease = consistency == ReadConsistency::Lease;
                self.inner.shared.inbox.read(
                    lease,
                    deadline,
                    Box::new(move |result| {
                        answer.send(result).ok();
                    }),
                );
                answered.await.unwrap_or_else(|_| Err(stopped()))
            }
        }
    }

    /// Hands leadership over to node `to`, or to the voter that is furthest; asked of the leader. Returns
    /// the node that leads once it does. Commands are answered [`ProposeError::TransferInProgress`] meanwhile.
    ///
    /// # Errors
    /// [`TransferError`]: leadership stays where it was, but after [`TransferError::TimedOut`], which says who leads.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let own = self.inner.identity.node;
        let target = match to {
            Some(number) => Some(NodeId::new(number).ok_or(TransferError::NoTarget)?),
            None => None,
        };
        let mut leader = self.inner.shared.leader.subscribe();
        let (answer, answered) = oneshot::channel();
        self.inner.shared.inbox.transfer(
            target,
            Box::new(move |begun| {
                answer.send(begun).ok();
            }),
        );
        let stopped = || TransferError::Stopped { reason: self.stop_reason() };
        answered.await.unwrap_or_else(|_| Err(stopped()))?;
        let patience = self.inner.shared.patience.transfer;
        let moved = leader.wait_for(|(_, leader)| leader.is_some_and(|leader| leader != own));
        match tokio::time::timeout(patience, moved).await {
            Ok(Ok(seen)) => Ok(seen.1.map_or(0, NodeId::get)),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(TransferError::TimedOut {
                target: to,
                leader: self.leader(),
                waited_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Leaves out the entry at `term` and `index`, which stops the state machine of every node: no node applies it, and all
    /// go on behind it. Asked of the leader. Returns the index of the entry that says so, once that is committed; asked again
    /// for the same entry, it answers the same for as long as the log holds it.
    ///
    /// The effect of that command is lost. Refused unless a majority of the voters reports that its state machine stands at
    /// exactly this entry ([`NodeStatus`] tells), and nobody to have applied it. A node that is silent
    /// may have: then its caller was told so, and it stops when it hears of the decision. A node whose state machine panicked at it,
    /// or whose state may be half of a chunk, says that it must be started again.
    ///
    /// # Errors
    /// [`SkipError`].
    pub async fn skip_entry(&self, term: u64, index: u64) -> Result<u64, SkipError> {
        let target = d_engine_replica::LogId { term, index };
        let (answer, answered) = oneshot::channel();
        self.inner.shared.inbox.skip(
            target.into(),
            Box::new(move |outcome| {
                answer.send(outcome).ok();
            }),
        );
        let stopped = || SkipError::Stopped { reason: self.stop_reason() };
        match tokio::time::timeout(self.inner.shared.patience.read, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(SkipError::OutcomeUnknown),
        }
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.inner.identity.node.get()
    }

    /// The node that leads, as far as this node knows; may be out of date at any moment. `None` once the node has
    /// stopped.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.inner.shared.leader.borrow().1.map(NodeId::get)
    }

    /// Whether this node believes that it leads and serves; may be out of date at any moment. `false` while its state
    /// machine stands at an entry that it cannot apply.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.node_id()) && !self.inner.shared.gate.stands()
    }

    /// Takes a snapshot of everything acknowledged so far, whatever the policy says, and waits until it is durable: like a
    /// linearizable read, it waits until this node has applied what any client was told before. One that is being built
    /// already is waited for first; the newest one is the answer if nothing was applied since.
    ///
    /// # Errors
    /// See [`SnapshotRequestError`]; no state is lost by any of them.
    pub async fn take_snapshot(&self) -> Result<SnapshotInfo, SnapshotRequestError> {
        let shared = &self.inner.shared;
        if let Some(reason) = shared.inbox.closed() {
            return Err(SnapshotRequestError::Stopped { reason });
        }
        self.read_barrier(ReadConsistency::Linearizable).await.map_err(|error| match error {
            ReadError::Stopped { reason } => SnapshotRequestError::Stopped { reason },
            ReadError::Busy { .. } => SnapshotRequestError::Busy,
            error => SnapshotRequestError::Failed {
                reason: StopReason::new(format_args!(
                    "this node does not know what has been acknowledged, so the snapshot might lack some of it: {error}"
                )),
            },
        })?;
        let (answer, asked) = oneshot::channel();
        shared.apply.put(move |work| {
            if work.asked.len() < ASKED_MAX {
                work.asked.push(answer);
            } else {
                answer.send(Err(SnapshotRequestError::Busy)).ok();
            }
        });
        match asked.await {
            Ok(taken) => taken,
            Err(_) => Err(SnapshotRequestError::Stopped { reason: self.reason_of_the_end().await }),
        }
    }

    /// What the node knows about itself and its cluster.
    pub async fn status(&self) -> NodeStatus {
        NodeStatus::of(&self.inner.shared, self.inner.identity.clone(), &self.inner.asked).await
    }

    /// The state machine, as it was given.
    #[must_use]
    pub fn state_machine(&self) -> &Arc<dyn StateMachine> {
        &self.inner.machine
    }

    /// Where clients reach this node, with the port that was really taken; `None` when it serves none.
    #[must_use]
    pub fn client_addr(&self) -> Option<SocketAddr> {
        self.inner.client_addr
    }

    /// Shuts the node down: takes nothing in any more, answers what is on its way (for at most two
    /// seconds), syncs the log, flushes and stops the state machine, frees the directory lock. Returns
    /// when all that is done: a state machine that does not return from a call holds it up for as long, and a
    /// warning every few seconds says so. May be called more than once.
    pub async fn stop(&self) {
        self.inner.shared.inbox.shut_down();
        let mut stopped = self.inner.shared.stopped.subscribe();
        // The sender lives in `shared`, which this handle keeps.
        stopped.wait_for(Option::is_some).await.ok();
        {
            // Left in its place until it has ended: whoever calls after a call that was dropped waits too.
            let mut clients = self.inner.clients.lock().await;
            if let Some(task) = clients.as_mut()
                && tokio::time::timeout(CLIENTS_PATIENCE, &mut *task).await.is_err()
            {
                task.abort();
            }
            *clients = None;
        }
        self.inner.ending.wait(self.inner.identity.node).await;
    }

    /// Waits until the node has stopped, for whatever reason.
    ///
    /// # Errors
    /// [`StartError::Stopped`] when it failed; an orderly shutdown is no error.
    pub async fn stopped(&self) -> Result<(), StartError> {
        let mut stopped = self.inner.shared.stopped.subscribe();
        stopped.wait_for(Option::is_some).await.ok();
        self.stop().await;
        let reason = self.stop_reason();
        if reason == StopReason::new(crate::SHUT_DOWN) { Ok(()) } else { Err(StartError::Stopped(reason)) }
    }

    /// Why the node has ended, or is about to: a thread's queue may end before the reason is there.
    async fn reason_of_the_end(&self) -> StopReason {
        if self.inner.shared.inbox.closed().is_none() {
            let mut stopped = self.inner.shared.stopped.subscribe();
            tokio::time::timeout(REASON_PATIENCE, stopped.wait_for(Option::is_some)).await.ok();
        }
        self.stop_reason()
    }

    /// Why the node has stopped, or that it has not.
    #[must_use]
    pub fn stop_reason(&self) -> StopReason {
        let reason = self.inner.shared.stopped.borrow().clone();
        reason
            .or_else(|| self.inner.shared.inbox.closed())
            .unwrap_or_else(|| StopReason::new("it has not stopped"))
    }
}

/// A read that panics is that read's error: it runs on its caller's thread, and the node has no part in it.
fn unpanicked<T>(node: u64, method: &str, read: impl FnOnce() -> T) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|panic| {
        let text = panic_text(panic.as_ref());
        tracing::error!(node, method, "the state machine panicked in a read: {text}");
        ReadError::StateMachine(format!("its {method} panicked: {text}"))
    })
}

impl std::fmt::Debug for EmbeddedEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedEngine").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The threads see it, finish, and end by themselves.
        self.shared.inbox.shut_down();
        if let Some(clients) = self.clients.get_mut().take() {
            clients.abort();
        }
    }
}
