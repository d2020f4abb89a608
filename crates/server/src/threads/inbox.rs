//! The input of the raft thread: one queue of each kind, and one wake-up for all.
//!
//! Requests of callers are bounded here, by number and bytes; beyond that they fail with `Busy`.
//! Messages of peers are bounded by the transport (each holds its [`ReceivePermit`]). Reports of
//! the node's own workers are bounded by what the replica has requested of them, so they are never
//! refused: if a worker had to wait for the raft thread while that waits for the worker, both would
//! deadlock. `tests/models.rs` checks the queue under every order of its threads' steps.

use std::sync::Arc;

use d_engine_core::{Instant, LogId, NodeId, ReadMode};
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    ChangeMembers, ChangeMembersError, Event, PeerMessage, Proposal, ProposeError, ReadError,
    ReadRequest, ReadResponder, ReplicaStatus, SkipError, SkipResponder, StopReason, TransferError,
    TransferResponder,
};
use tokio::sync::oneshot;

use crate::sync::{Mutex, MutexGuard, Notify};
use crate::threads::read_gate::ReadGate;
use crate::transport::ReceivePermit;

/// The most leadership transfers that may be queued; more would be of no use.
const TRANSFERS_MAX: usize = 16;
/// The most requests to skip an entry that may be queued.
const SKIPS_MAX: usize = 16;

/// The most requests to change the members that may be queued.
const CHANGES_MAX: usize = 16;
/// The most peers with later configurations that may be queued.
const PROVISIONAL_MAX: usize = 16;

/// Limits of the queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboxLimits {
    pub(crate) proposals: usize,
    pub(crate) bytes: usize,
    pub(crate) reads: usize,
}

/// The input that arrived since the raft thread last took it.
#[derive(Default)]
pub(crate) struct Incoming {
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) reads: Vec<ReadRequest>,
    pub(crate) messages: Vec<(NodeId, PeerMessage, ReceivePermit)>,
    pub(crate) reports: Vec<Event>,
    pub(crate) status: Vec<oneshot::Sender<ReplicaStatus>>,
    pub(crate) transfers: Vec<(Option<NodeId>, TransferResponder)>,
    pub(crate) skips: Vec<(LogId, SkipResponder)>,
    pub(crate) changes: Vec<ChangeMembers>,
    /// Peers that are no members here and know a later configuration, with their addresses.
    pub(crate) provisional: Vec<(NodeId, String)>,
    pub(crate) shutdown: bool,
    proposal_bytes: usize,
}

struct State {
    incoming: Incoming,
    /// The number of commands that the raft thread has taken since the start.
    taken_up: u64,
    /// The stop reason, once the inbox accepts no more requests.
    closed: Option<StopReason>,
}

impl State {
    fn take(&mut self) -> Incoming {
        self.taken_up += self.incoming.proposals.len() as u64;
        std::mem::take(&mut self.incoming)
    }
}

/// The position of a command among all that were enqueued since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

pub(crate) struct Inbox {
    state: Mutex<State>,
    wake: Notify,
    limits: InboxLimits,
    gate: Arc<ReadGate>,
}

impl Inbox {
    pub(crate) fn new(limits: InboxLimits, gate: Arc<ReadGate>) -> Self {
        let state = State { incoming: Incoming::default(), taken_up: 0, closed: None };
        Self { state: Mutex::new(state), wake: Notify::new(), limits, gate }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }

    /// Enqueues a caller's command. Returns `None` if it is refused; its responder is then called
    /// here.
    pub(crate) fn propose(&self, proposal: Proposal) -> Option<Ticket> {
        let mut state = self.lock();
        let refusal = if let Some(reason) = &state.closed {
            Some(ProposeError::Stopped { reason: reason.clone() })
        } else if state.incoming.proposals.len() >= self.limits.proposals {
            Some(ProposeError::Busy { what: "proposals waiting to be taken up" })
        } else if state.incoming.proposal_bytes.saturating_add(proposal.command.len())
            > self.limits.bytes
            && !state.incoming.proposals.is_empty()
        {
            Some(ProposeError::Busy { what: "bytes of proposals waiting to be taken up" })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            drop(state);
            (proposal.responder)(Err(refusal));
            return None;
        }
        let ticket = Ticket(state.taken_up + state.incoming.proposals.len() as u64);
        state.incoming.proposal_bytes += proposal.command.len();
        state.incoming.proposals.push(proposal);
        drop(state);
        self.wake.notify_one();
        Some(ticket)
    }

    /// Withdraws a command whose deadline has passed, if the raft thread has not taken it yet.
    /// Returns `false` if it has been taken. A withdrawn command stays in the queue with a deadline
    /// in the past, so that it is never proposed.
    pub(crate) fn withdraw(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        let place =
            ticket.0.checked_sub(state.taken_up).and_then(|place| usize::try_from(place).ok());
        let waiting = place.and_then(|place| state.incoming.proposals.get_mut(place));
        waiting.map(|proposal| proposal.deadline = Some(Instant::from_nanos(0))).is_some()
    }

    /// Enqueues a caller's read. If it is refused, `responder` is called here.
    pub(crate) fn read(&self, mode: ReadMode, deadline: Option<Instant>, responder: ReadResponder) {
        let mut state = self.lock();
        let refusal = if let Some(reason) = &state.closed {
            Some(ReadError::Stopped { reason: reason.clone() })
        } else if state.incoming.reads.len() >= self.limits.reads {
            Some(ReadError::Busy { what: "reads waiting to be taken up" })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            drop(state);
            responder(Err(refusal));
            return;
        }
        state.incoming.reads.push(ReadRequest { mode, deadline, responder });
        drop(state);
        self.wake.notify_one();
    }

    /// Enqueues a peer's message; `room` is held until the message has been handled.
    pub(crate) fn message(&self, from: NodeId, message: PeerMessage, room: ReceivePermit) {
        self.put(|incoming| incoming.messages.push((from, message, room)));
    }

    /// Enqueues a report of a worker or the transport.
    pub(crate) fn report(&self, event: Event) {
        self.put(|incoming| incoming.reports.push(event));
    }

    /// Requests the status from the raft thread; `None` if the inbox is closed.
    pub(crate) fn status(&self) -> Option<oneshot::Receiver<ReplicaStatus>> {
        let (answer, asked) = oneshot::channel();
        let mut state = self.lock();
        if state.closed.is_some() {
            return None;
        }
        state.incoming.status.push(answer);
        drop(state);
        self.wake.notify_one();
        Some(asked)
    }

    /// Enqueues a request for a leadership transfer. If it is refused, `responder` is called here.
    pub(crate) fn transfer(&self, to: Option<NodeId>, responder: TransferResponder) {
        let mut state = self.lock();
        if let Some(reason) = state.closed.clone() {
            drop(state);
            responder(Err(TransferError::Stopped { reason }));
            return;
        }
        if state.incoming.transfers.len() >= TRANSFERS_MAX {
            drop(state);
            responder(Err(TransferError::InProgress));
            return;
        }
        state.incoming.transfers.push((to, responder));
        drop(state);
        self.wake.notify_one();
    }

    /// Enqueues an operator's request to skip an entry. If it is refused, `responder` is called
    /// here.
    pub(crate) fn skip(&self, target: LogId, responder: SkipResponder) {
        let mut state = self.lock();
        let refusal = match &state.closed {
            Some(reason) => Some(SkipError::Stopped { reason: reason.clone() }),
            None if state.incoming.skips.len() >= SKIPS_MAX => Some(SkipError::Busy),
            None => None,
        };
        if let Some(refusal) = refusal {
            drop(state);
            responder(Err(refusal));
            return;
        }
        state.incoming.skips.push((target, responder));
        drop(state);
        self.wake.notify_one();
    }

    /// Enqueues a request to change the members. If it is refused, its responder is called here.
    pub(crate) fn change_members(&self, request: ChangeMembers) {
        let mut state = self.lock();
        let refusal = match &state.closed {
            Some(reason) => Some(ChangeMembersError::Stopped { reason: reason.clone() }),
            None if state.incoming.changes.len() >= CHANGES_MAX => {
                Some(ChangeMembersError::TooMany)
            }
            None => None,
        };
        if let Some(refusal) = refusal {
            drop(state);
            (request.responder)(Err(refusal));
            return;
        }
        state.incoming.changes.push(request);
        drop(state);
        self.wake.notify_one();
    }

    /// Enqueues a peer that is no member here and knows a later configuration. One too many is
    /// left out; it dials again.
    pub(crate) fn provisional(&self, node: NodeId, peer_addr: String) {
        self.put(|incoming| {
            if incoming.provisional.len() < PROVISIONAL_MAX {
                incoming.provisional.push((node, peer_addr));
            }
        });
    }

    /// Requests the shutdown of the raft thread.
    pub(crate) fn shut_down(&self) {
        self.put(|incoming| incoming.shutdown = true);
    }

    fn put(&self, put: impl FnOnce(&mut Incoming)) {
        let mut state = self.lock();
        put(&mut state.incoming);
        drop(state);
        self.wake.notify_one();
    }

    /// Accepts no more requests; those that are queued and all later ones fail with `reason`. Only
    /// the first call sets the reason.
    pub(crate) fn close(&self, reason: &StopReason) {
        let mut state = self.lock();
        self.gate.close();
        let reason = state.closed.get_or_insert_with(|| reason.clone()).clone();
        let left = state.take();
        // Reports and requests for shutdown are still accepted after this.
        state.incoming.shutdown = left.shutdown;
        state.incoming.reports = left.reports;
        drop(state);
        for proposal in left.proposals {
            (proposal.responder)(Err(ProposeError::Stopped { reason: reason.clone() }));
        }
        for (_, responder) in left.skips {
            responder(Err(SkipError::Stopped { reason: reason.clone() }));
        }
        for request in left.changes {
            let reason = reason.clone();
            (request.responder)(Err(ChangeMembersError::Stopped { reason }));
        }
        for (_, responder) in left.transfers {
            responder(Err(TransferError::Stopped { reason: reason.clone() }));
        }
        for read in left.reads {
            (read.responder)(Err(ReadError::Stopped { reason: reason.clone() }));
        }
    }

    /// Returns the stop reason if the inbox is closed.
    pub(crate) fn closed(&self) -> Option<StopReason> {
        self.lock().closed.clone()
    }

    /// Takes all input.
    pub(crate) fn take(&self) -> Incoming {
        self.lock().take()
    }

    /// Waits until there is input.
    pub(crate) async fn filled(&self) {
        self.wake.notified().await;
    }
}
