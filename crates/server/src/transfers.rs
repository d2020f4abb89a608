//! Snapshots on their way to and from other nodes. Each has a thread and a connection of its own: it waits for
//! disks and for the other side, and neither heartbeats nor apply wait for it.

mod receive;
mod send;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use d_engine_core::{LogId, NodeId, Term};
use d_engine_replica::{Event, SendLimits, SnapshotOrder, StateMachine};
use d_engine_storage::snapshot::SnapshotStore;

use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::read_gate::ReadGate;
use crate::transport::{LineBreaker, SnapshotDialer, SnapshotLine};

/// Connections on which somebody wants to send a snapshot; more are closed at once.
const RECEIVING_MAX: usize = 4;
/// How often a waiting thread looks whether the node stops.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A follower that is to be tried again is ordered within this time; otherwise it needs no snapshot any more.
const ORDERED_WITHIN: Duration = Duration::from_secs(10);
/// Waits after a failed transfer, longer each time.
const BACKOFF_MS: [u64; 7] = [200, 500, 1_000, 2_000, 5_000, 10_000, 30_000];

/// How snapshots are sent and received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransferSettings {
    pub(crate) limits: SendLimits,
    /// 0: as fast as the network.
    pub(crate) bytes_per_second: u64,
    /// The largest archive that is received.
    pub(crate) len_max: u64,
}

/// A snapshot on its way to a follower.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SendingSnapshot {
    /// The follower.
    pub to: u64,
    /// Index of the last entry in it; 0 before one was chosen.
    pub label: u64,
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// Bytes of the archive.
    pub len: u64,
    /// Where this attempt began: more than 0 when an earlier one was cut.
    pub resumed_at: u64,
    /// Whether the follower has everything and its state machine gets it.
    pub is_installing: bool,
    /// Attempts that have failed so far.
    pub failures: u64,
    /// Why the last one did.
    pub last_failure: Option<String>,
}

/// A snapshot on its way to this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReceivingSnapshot {
    /// The leader that sends it.
    pub from: u64,
    /// Index of the last entry in it.
    pub label: u64,
    /// Bytes that are here.
    pub received: u64,
    /// Bytes of the archive.
    pub len: u64,
    /// Whether everything is here and the state machine gets it.
    pub is_installing: bool,
}

/// All transfers of a node.
pub(crate) struct Transfers {
    pub(crate) store: SnapshotStore,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) clock: Clock,
    pub(crate) settings: TransferSettings,
    stops: AtomicBool,
    state: Mutex<State>,
    /// A receiver has ended, or the node stops.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    last_id: u64,
    threads: Vec<JoinHandle<()>>,
    /// What breaks the connections that are open, by transfer.
    lines: BTreeMap<u64, LineBreaker>,
    sending: BTreeMap<NodeId, Sending>,
    receiving: Option<Receiving>,
    /// Connections for receiving that are open.
    receivers: usize,
}

struct Sending {
    id: u64,
    label: Option<LogId>,
    status: SendingSnapshot,
    /// When the last attempt was reported to have failed. The replica orders the next one soon, or none.
    reported: Option<Instant>,
}

impl Sending {
    fn is_over(&self) -> bool {
        self.reported.is_some_and(|at| at.elapsed() > ORDERED_WITHIN)
    }
}

struct Receiving {
    id: u64,
    term: Term,
    status: ReceivingSnapshot,
}

impl Transfers {
    pub(crate) fn new(
        store: SnapshotStore,
        machine: Arc<dyn StateMachine>,
        inbox: Arc<Inbox>,
        gate: Arc<ReadGate>,
        clock: Clock,
        settings: TransferSettings,
    ) -> Self {
        let (stops, state, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Self { store, machine, inbox, gate, clock, settings, stops, state, changed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stops(&self) -> bool {
        self.stops.load(Ordering::Acquire)
    }

    /// Sends a snapshot to a follower. How it ends is reported to the inbox. A transfer to the same follower
    /// that is still running is given up: its leadership is over.
    pub(crate) fn send(self: &Arc<Self>, order: SnapshotOrder, dialer: Option<SnapshotDialer>) {
        let mut state = self.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.sending.retain(|_, sending| !sending.is_over());
        let before = state.sending.remove(&order.to);
        if let Some(line) = before.as_ref().and_then(|before| state.lines.remove(&before.id)) {
            line.break_line();
        }
        let (label, failures, last_failure) = match before {
            Some(before) => (before.label, before.status.failures, before.status.last_failure),
            None => (None, 0, None),
        };
        let status =
            SendingSnapshot { to: order.to.get(), failures, last_failure, ..SendingSnapshot::default() };
        state.sending.insert(order.to, Sending { id, label, status, reported: None });
        drop(state);
        let transfers = self.clone();
        let name = format!("send-{}", order.to);
        self.spawn(
            name,
            move || transfers.send_to_the_end(id, order, dialer),
            || {
                self.inbox.report(Event::SnapshotFailed { to: order.to, none_usable: false });
            },
        );
    }

    /// A peer wants to send a snapshot.
    pub(crate) fn receive(self: &Arc<Self>, from: NodeId, line: SnapshotLine) {
        let mut state = self.lock();
        if state.receivers >= RECEIVING_MAX {
            return;
        }
        state.receivers += 1;
        state.last_id += 1;
        let id = state.last_id;
        drop(state);
        let transfers = self.clone();
        let run = move || {
            transfers.receive_to_the_end(id, from, line);
            let mut state = transfers.lock();
            state.lines.remove(&id);
            state.receivers = state.receivers.saturating_sub(1);
            state.receiving.take_if(|receiving| receiving.id == id);
            drop(state);
            transfers.changed.notify_all();
        };
        self.spawn(format!("receive-{from}"), run, || {
            let mut state = self.lock();
            state.receivers = state.receivers.saturating_sub(1);
        });
    }

    /// Runs `run` on a thread of its own; `failed` when there is none to be had.
    pub(crate) fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static, failed: impl FnOnce()) {
        let inbox = self.inbox.clone();
        let guarded = move || {
            crate::worker_threads::guarded("transfer", &inbox, || {
                run();
                Ok(())
            });
        };
        match crate::worker_threads::start_thread(name, guarded) {
            Ok(thread) => {
                let mut state = self.lock();
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
            }
            Err(error) => {
                tracing::warn!(%error, "no thread for a snapshot's transfer");
                failed();
            }
        }
    }

    /// Keeps what breaks a connection; `false` when the node stops, or the transfer was given up.
    fn keep_line(
        &self,
        id: u64,
        line: &SnapshotLine,
        is_wanted: impl FnOnce(&State) -> bool,
    ) -> std::io::Result<bool> {
        let breaker = line.breaker()?;
        let mut state = self.lock();
        let wanted = !self.stops() && is_wanted(&state);
        if wanted {
            state.lines.insert(id, breaker);
        }
        Ok(wanted)
    }

    /// Labels of the archives that are being sent: they must stay, so that a transfer that was cut can go on.
    pub(crate) fn labels(&self) -> Vec<LogId> {
        let state = self.lock();
        state
            .sending
            .values()
            .filter(|sending| !sending.is_over())
            .filter_map(|sending| sending.label)
            .collect()
    }

    /// What is on its way, for the node's status.
    pub(crate) fn status(&self) -> (Vec<SendingSnapshot>, Option<ReceivingSnapshot>) {
        let state = self.lock();
        let sending = state.sending.values().filter(|sending| !sending.is_over());
        let sending = sending.map(|sending| sending.status.clone()).collect();
        (sending, state.receiving.as_ref().map(|receiving| receiving.status.clone()))
    }

    /// Ends all transfers, without waiting for their threads. What was received is kept.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
        let mut state = self.lock();
        for line in std::mem::take(&mut state.lines).into_values() {
            line.break_line();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The threads that may not have ended: nothing is written to the data directory once they have.
    pub(crate) fn threads(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.lock().threads)
    }

    /// Without a node around them, on a disk in memory.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        use d_engine_storage::fs_sim::SimFs;
        use d_engine_storage::snapshot::SnapshotOptions;

        use crate::inbox::InboxLimits;
        let options =
            SnapshotOptions::new(d_engine_storage::ClusterId([1; 16]), d_engine_core::GroupId::FIRST);
        let dir = std::path::Path::new("/snapshots");
        let (store, _) = SnapshotStore::open(Arc::new(SimFs::new()), dir, options)
            .unwrap_or_else(|error| unreachable!("{error}"));
        let clock = Clock::start();
        let gate = Arc::new(ReadGate::new(clock));
        let inbox = Arc::new(Inbox::new(InboxLimits { proposals: 1, bytes: 1, reads: 1 }, gate.clone()));
        let settings =
            TransferSettings { limits: SendLimits::default(), bytes_per_second: 0, len_max: u64::MAX };
        Self::new(store, Arc::new(d_engine_kv::KvStateMachine::new()), inbox, gate, clock, settings)
    }
}
