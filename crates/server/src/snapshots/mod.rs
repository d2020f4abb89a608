//! Sends snapshots to other nodes and receives them. Each send and each receive has its own thread
//! and connection, because it waits for disks and for the other node; heartbeats and apply never
//! wait for it.

mod receive;
mod send;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use d_engine_api::ReceivingSnapshot;
use d_engine_core::{LogId, NodeId, Term};
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    SendAttempt, SendLimits, SendOutcome, SendingSnapshot, SnapshotSendRequest, SnapshotSends,
    StateMachine,
};
use d_engine_storage::snapshot::SnapshotStore;

use crate::node::clock::Clock;
use crate::threads::inbox::Inbox;
use crate::threads::read_gate::ReadGate;
use crate::transport::{LineBreaker, SnapshotConnection, SnapshotDialer};

/// Connections on which peers may send a snapshot to this node; further ones are closed at once.
const RECEIVING_MAX: usize = 4;
/// How often a waiting thread checks whether the node stops.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How snapshots are sent and received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeSettings {
    pub(crate) limits: SendLimits,
    /// 0: no limit.
    pub(crate) bytes_per_second: u64,
    /// The largest archive that this node receives, in bytes.
    pub(crate) len_max: u64,
}

/// All snapshots that this node sends and receives.
pub(crate) struct Exchange {
    pub(crate) store: SnapshotStore,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) clock: Clock,
    pub(crate) settings: ExchangeSettings,
    stops: AtomicBool,
    state: Mutex<State>,
    /// Signalled when a receiving thread has ended, when a send is replaced, and when the node
    /// stops.
    changed: Condvar,
}

/// The owner of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Line {
    Send(SendAttempt),
    /// The receive with this id.
    Receive(u64),
}

#[derive(Default)]
struct State {
    last_id: u64,
    threads: Vec<JoinHandle<()>>,
    /// Handles that break the open connections.
    lines: BTreeMap<Line, LineBreaker>,
    sends: SnapshotSends,
    receiving: Option<Receiving>,
    /// Open connections for receiving.
    receivers: usize,
}

struct Receiving {
    id: u64,
    term: Term,
    status: ReceivingSnapshot,
}

impl Exchange {
    pub(crate) fn new(
        store: SnapshotStore,
        machine: Arc<dyn StateMachine>,
        inbox: Arc<Inbox>,
        gate: Arc<ReadGate>,
        clock: Clock,
        settings: ExchangeSettings,
    ) -> Self {
        let (stops, state, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Self { store, machine, inbox, gate, clock, settings, stops, state, changed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }

    fn stops(&self) -> bool {
        self.stops.load(Ordering::Acquire)
    }

    /// Sends a snapshot to a follower, and reports the outcome to the inbox. Aborts an earlier send
    /// to the same follower.
    pub(crate) fn send(
        self: &Arc<Self>,
        order: SnapshotSendRequest,
        dialer: Option<SnapshotDialer>,
    ) {
        let mut state = self.lock();
        let (attempt, replaced) = state.sends.begin(self.clock.now(), order);
        if let Some(line) = replaced.and_then(|before| state.lines.remove(&Line::Send(before))) {
            line.break_line();
        }
        drop(state);
        self.changed.notify_all();
        let exchange = self.clone();
        let name = format!("send-{}", order.to);
        self.spawn(
            name,
            move || exchange.send_to_the_end(attempt, order, dialer),
            || {
                let outcome = SendOutcome::NoConnection("no thread can be started".to_owned());
                self.lock().sends.on(attempt, outcome);
                self.report_end(attempt);
            },
        );
    }

    /// Receives a snapshot from a peer.
    pub(crate) fn receive(self: &Arc<Self>, from: NodeId, line: SnapshotConnection) {
        let mut state = self.lock();
        if state.receivers >= RECEIVING_MAX {
            return;
        }
        state.receivers += 1;
        state.last_id += 1;
        let id = state.last_id;
        drop(state);
        let exchange = self.clone();
        let run = move || {
            exchange.receive_to_the_end(id, from, line);
            let mut state = exchange.lock();
            state.lines.remove(&Line::Receive(id));
            state.receivers = state.receivers.saturating_sub(1);
            state.receiving.take_if(|receiving| receiving.id == id);
            drop(state);
            exchange.changed.notify_all();
        };
        self.spawn(format!("receive-{from}"), run, || {
            let mut state = self.lock();
            state.receivers = state.receivers.saturating_sub(1);
        });
    }

    /// Runs `run` on its own thread; calls `failed` if no thread can be started.
    pub(crate) fn spawn(
        &self,
        name: String,
        run: impl FnOnce() + Send + 'static,
        failed: impl FnOnce(),
    ) {
        let inbox = self.inbox.clone();
        let guarded = move || {
            crate::threads::workers::guarded("snapshot exchange", &inbox, || {
                run();
                Ok(())
            });
        };
        match crate::threads::workers::start_thread(name, guarded) {
            Ok(thread) => {
                let mut state = self.lock();
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread to send or receive a snapshot");
                failed();
            }
        }
    }

    /// Registers the connection so that it can be broken from another thread. Returns `false` if
    /// the node stops or the send was replaced.
    fn keep_line(&self, line: Line, connection: &SnapshotConnection) -> std::io::Result<bool> {
        let breaker = connection.breaker()?;
        let mut state = self.lock();
        let is_replaced = matches!(line, Line::Send(attempt) if !state.sends.is_current(attempt));
        let wanted = !self.stops() && !is_replaced;
        if wanted {
            state.lines.insert(line, breaker);
        }
        Ok(wanted)
    }

    /// Returns the last included entries of the archives that are being sent. They must be kept.
    pub(crate) fn archives_in_use(&self) -> Vec<LogId> {
        self.lock().sends.archives_in_use(self.clock.now())
    }

    /// Returns the snapshots that are being sent and received, for the node's status.
    pub(crate) fn status(&self) -> (Vec<SendingSnapshot>, Option<ReceivingSnapshot>) {
        let state = self.lock();
        (
            state.sends.status(self.clock.now()),
            state.receiving.as_ref().map(|receiving| receiving.status.clone()),
        )
    }

    /// Ends the send to a node that has left.
    pub(crate) fn end_sends_to(&self, node: NodeId) {
        let mut state = self.lock();
        let attempt = state.sends.end(node);
        if let Some(line) = attempt.and_then(|attempt| state.lines.remove(&Line::Send(attempt))) {
            line.break_line();
        }
    }

    /// Ends all sends and receives, without waiting for their threads. What was received is kept.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
        let mut state = self.lock();
        for line in std::mem::take(&mut state.lines).into_values() {
            line.break_line();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns the threads that may still run. Nothing is written to the data directory after they
    /// have ended.
    pub(crate) fn threads(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.lock().threads)
    }

    /// For tests: without a node, on a disk in memory.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        use d_engine_storage::fs::sim::SimFs;
        use d_engine_storage::snapshot::SnapshotOptions;

        use crate::threads::inbox::InboxLimits;
        let options = SnapshotOptions::new(
            d_engine_storage::ClusterId([1; 16]),
            d_engine_core::GroupId::FIRST,
        );
        let dir = std::path::Path::new("/snapshots");
        let (store, _) = SnapshotStore::open(Arc::new(SimFs::new()), dir, options)
            .unwrap_or_else(|error| unreachable!("an empty disk in memory was refused: {error}"));
        let clock = Clock::start();
        let gate = Arc::new(ReadGate::new(clock));
        let inbox =
            Arc::new(Inbox::new(InboxLimits { proposals: 1, bytes: 1, reads: 1 }, gate.clone()));
        let settings = ExchangeSettings {
            limits: SendLimits::default(),
            bytes_per_second: 0,
            len_max: u64::MAX,
        };
        Self::new(store, Arc::new(d_engine_kv::KvStateMachine::new()), inbox, gate, clock, settings)
    }
}
