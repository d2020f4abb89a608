//! Everything on its way to the raft thread, in one place with one wake-up.
//!
//! Callers are bounded here, by number and bytes, and told `Busy`. Messages of peers are bounded by
//! the transport (each holds its [`Room`]). What the node's own workers report is bounded by what
//! the replica has asked of them, so it is never refused: a worker that had to wait for the raft
//! thread while that waits for the worker would be a deadlock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use d_engine_core::{Instant, LogId, NodeId};
use d_engine_replica::{
    Event, PeerMessage, Proposal, ProposeError, ReadError, ReadRequest, ReadResponder, ReplicaStatus,
    SkipError, SkipResponder, StopReason, TransferError, TransferResponder,
};
use tokio::sync::{Notify, oneshot};

use crate::read_gate::ReadGate;
use crate::transport::Room;

/// Transfers of leadership waiting to be taken up; more of them make no sense.
const TRANSFERS_MAX: usize = 16;
/// Requests to skip an entry waiting to be taken up.
const SKIPS_MAX: usize = 16;

/// Bounds of the intake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboxLimits {
    pub(crate) proposals: usize,
    pub(crate) bytes: usize,
    pub(crate) reads: usize,
}

/// What has come in since the raft thread looked last.
#[derive(Default)]
pub(crate) struct Incoming {
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) reads: Vec<ReadRequest>,
    pub(crate) messages: Vec<(NodeId, PeerMessage, Room)>,
    pub(crate) reports: Vec<Event>,
    pub(crate) status: Vec<oneshot::Sender<ReplicaStatus>>,
    pub(crate) transfers: Vec<(Option<NodeId>, TransferResponder)>,
    pub(crate) skips: Vec<(LogId, SkipResponder)>,
    pub(crate) shutdown: bool,
    proposal_bytes: usize,
}

struct State {
    incoming: Incoming,
    /// Commands that the raft thread has taken up since the start.
    taken_up: u64,
    /// Set once nothing is taken in any more.
    closed: Option<StopReason>,
}

impl State {
    fn take(&mut self) -> Incoming {
        self.taken_up += self.incoming.proposals.len() as u64;
        std::mem::take(&mut self.incoming)
    }
}

/// A command's place among all that have come in.
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller's command. Its responder is called with a refusal right here.
    pub(crate) fn propose(&self, proposal: Proposal) -> Option<Ticket> {
        let mut state = self.lock();
        let refusal = if let Some(reason) = &state.closed {
            Some(ProposeError::Stopped { reason: reason.clone() })
        } else if state.incoming.proposals.len() >= self.limits.proposals {
            Some(ProposeError::Busy { what: "proposals waiting to be taken up" })
        } else if state.incoming.proposal_bytes.saturating_add(proposal.command.len()) > self.limits.bytes
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

    /// Takes a command back if the raft thread has not taken it up yet: its deadline is over for everybody. `false`: it
    /// has been taken up.
    pub(crate) fn withdraw(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        let place = ticket.0.checked_sub(state.taken_up).and_then(|place| usize::try_from(place).ok());
        let waiting = place.and_then(|place| state.incoming.proposals.get_mut(place));
        waiting.map(|proposal| proposal.deadline = Some(Instant::from_nanos(0))).is_some()
    }

    /// A caller's read. `responder` is called with a refusal right here.
    pub(crate) fn read(&self, lease: bool, deadline: Option<Instant>, responder: ReadResponder) {
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
        state.incoming.reads.push(ReadRequest { lease, deadline, responder });
        drop(state);
        self.wake.notify_one();
    }

    /// A peer's message; `room` is held until it has been handled.
    pub(crate) fn message(&self, from: NodeId, message: PeerMessage, room: Room) {
        self.put(|incoming| incoming.messages.push((from, message, room)));
    }

    /// What a worker or the transport reports.
    pub(crate) fn report(&self, event: Event) {
        self.put(|incoming| incoming.reports.push(event));
    }

    /// Asks the raft thread for its status; `None` when there is no raft thread any more.
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

    /// Somebody wants another node to lead. `responder` is called with a refusal right here.
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

    /// An operator wants an entry left out. `responder` is called with a refusal right here.
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

    /// Asks the raft thread to end.
    pub(crate) fn shut_down(&self) {
        self.put(|incoming| incoming.shutdown = true);
    }

    fn put(&self, put: impl FnOnce(&mut Incoming)) {
        let mut state = self.lock();
        put(&mut state.incoming);
        drop(state);
        self.wake.notify_one();
    }

    /// Takes nothing in any more: every caller is told `reason`. The first reason stays.
    pub(crate) fn close(&self, reason: &StopReason) {
        let mut state = self.lock();
        self.gate.close();
        let reason = state.closed.get_or_insert_with(|| reason.clone()).clone();
        let left = state.take();
        // Whoever asks for shutdown after this is heard all the same.
        state.incoming.shutdown = left.shutdown;
        state.incoming.reports = left.reports;
        drop(state);
        for proposal in left.proposals {
            (proposal.responder)(Err(ProposeError::Stopped { reason: reason.clone() }));
        }
        for (_, responder) in left.skips {
            responder(Err(SkipError::Stopped { reason: reason.clone() }));
        }
        for (_, responder) in left.transfers {
            responder(Err(TransferError::Stopped { reason: reason.clone() }));
        }
        for read in left.reads {
            (read.responder)(Err(ReadError::Stopped { reason: reason.clone() }));
        }
    }

    /// Why nothing is taken in any more, if so.
    pub(crate) fn closed(&self) -> Option<StopReason> {
        self.lock().closed.clone()
    }

    /// Takes everything that has come in.
    pub(crate) fn take(&self) -> Incoming {
        self.lock().take()
    }

    /// Waits until something comes in.
    pub(crate) async fn filled(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;

    fn inbox() -> Inbox {
        let limits = InboxLimits { proposals: 3, bytes: 10, reads: 2 };
        Inbox::new(limits, Arc::new(ReadGate::new(Clock::start())))
    }

    /// What a command of so many bytes is told at once, if anything; its place.
    fn propose(inbox: &Inbox, bytes: usize) -> (Option<Ticket>, Receiver<Result<Bytes, ProposeError>>) {
        let (tell, told) = channel();
        let responder = Box::new(move |result| tell.send(result).unwrap());
        (inbox.propose(Proposal::new(Bytes::from(vec![0; bytes]), None, responder)), told)
    }

    fn busy_with(told: &Receiver<Result<Bytes, ProposeError>>) -> Option<&'static str> {
        match told.try_recv() {
            Ok(Err(ProposeError::Busy { what })) => Some(what),
            _ => None,
        }
    }

    #[test]
    fn commands_that_wait_are_bounded_by_bytes_and_by_number() {
        let bytes = Some("bytes of proposals waiting to be taken up");
        let inbox = inbox();
        assert_eq!(busy_with(&propose(&inbox, 6).1), None);
        assert_eq!(busy_with(&propose(&inbox, 5).1), bytes);
        assert_eq!(busy_with(&propose(&inbox, 4).1), None);
        assert_eq!(busy_with(&propose(&inbox, 1).1), bytes);
        assert_eq!(inbox.take().proposals.len(), 2);
        // One that is longer than the bound goes alone.
        assert_eq!(busy_with(&propose(&inbox, 11).1), None);
        assert_eq!(busy_with(&propose(&inbox, 0).1), bytes);
        inbox.take();
        for _ in 0..3 {
            assert_eq!(busy_with(&propose(&inbox, 1).1), None);
        }
        assert_eq!(busy_with(&propose(&inbox, 1).1), Some("proposals waiting to be taken up"));
    }

    #[test]
    fn reads_that_wait_are_bounded_by_number() {
        let inbox = inbox();
        let read = || {
            let (tell, told) = channel();
            inbox.read(false, None, Box::new(move |result| tell.send(result).unwrap()));
            told.try_recv().ok()
        };
        assert_eq!((read(), read()), (None, None));
        assert!(matches!(read(), Some(Err(ReadError::Busy { .. }))));
        assert_eq!(inbox.take().reads.len(), 2);
        assert_eq!(read(), None);
    }

    /// Nobody has looked at it, so nobody will propose it.
    #[test]
    fn a_command_can_be_withdrawn_until_it_is_taken_up() {
        let inbox = inbox();
        let first = propose(&inbox, 1).0.unwrap();
        assert_eq!(inbox.take().proposals.len(), 1);
        let (second, third) = (propose(&inbox, 1).0.unwrap(), propose(&inbox, 1).0.unwrap());
        assert!(!inbox.withdraw(first), "it has been taken up");
        assert!(inbox.withdraw(third));
        let deadlines: Vec<_> = inbox.take().proposals.into_iter().map(|one| one.deadline).collect();
        assert_eq!(deadlines, [None, Some(Instant::from_nanos(0))]);
        assert!(!inbox.withdraw(second) && !inbox.withdraw(third));
    }
}
