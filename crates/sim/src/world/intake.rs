//! Events that wait for a node's raft thread: the server's inbox, with its bounds.

use d_engine_core::NodeId;
use d_engine_replica::{
    Event, PeerMessage, Proposal, ProposeError, ReadError, ReadRequest, StopReason,
    TransferResponder,
};

use crate::profile::limits::LimitProfile;

#[derive(Default)]
pub(crate) struct Intake {
    reports: Vec<Event>,
    messages: Vec<(NodeId, PeerMessage)>,
    proposals: Vec<Proposal>,
    proposal_bytes: usize,
    reads: Vec<ReadRequest>,
    transfers: Vec<(Option<NodeId>, TransferResponder)>,
    /// Whether a turn of the thread is scheduled.
    pub(crate) planned: bool,
    /// Set once the node shuts down; callers then receive `Stopped` with this reason.
    closed: Option<StopReason>,
}

impl Intake {
    /// Enqueues an event, or refuses it through its responder.
    pub(crate) fn put(&mut self, event: Event, limits: &LimitProfile) {
        match event {
            Event::Peer { from, message } => self.messages.push((from, message)),
            Event::Propose(proposals) => {
                for proposal in proposals {
                    self.propose(proposal, limits);
                }
            }
            Event::Read(requests) => {
                for request in requests {
                    self.read(request, limits);
                }
            }
            Event::TransferLeadership { to, responder } => match &self.closed {
                Some(reason) => {
                    responder(Err(d_engine_replica::TransferError::Stopped {
                        reason: reason.clone(),
                    }));
                }
                None => self.transfers.push((to, responder)),
            },
            // The thread checks its deadline in every turn.
            Event::Deadline => {}
            other => self.reports.push(other),
        }
    }

    fn propose(&mut self, proposal: Proposal, limits: &LimitProfile) {
        let bytes = self.proposal_bytes.saturating_add(proposal.command.len());
        let refusal = if let Some(reason) = &self.closed {
            ProposeError::Stopped { reason: reason.clone() }
        } else if self.proposals.len() >= limits.inbox_proposals {
            ProposeError::Busy { what: "proposals waiting to be taken up" }
        } else if bytes > limits.inbox_bytes && !self.proposals.is_empty() {
            ProposeError::Busy { what: "bytes of proposals waiting to be taken up" }
        } else {
            self.proposal_bytes = bytes;
            self.proposals.push(proposal);
            return;
        };
        (proposal.responder)(Err(refusal));
    }

    fn read(&mut self, request: ReadRequest, limits: &LimitProfile) {
        let refusal = if let Some(reason) = &self.closed {
            ReadError::Stopped { reason: reason.clone() }
        } else if self.reads.len() >= limits.inbox_reads {
            ReadError::Busy { what: "reads waiting to be taken up" }
        } else {
            self.reads.push(request);
            return;
        };
        (request.responder)(Err(refusal));
    }

    /// Refuses all later calls of callers, and ends those that wait in the queue.
    pub(crate) fn close(&mut self, reason: &StopReason) {
        self.closed = Some(reason.clone());
        for proposal in self.proposals.drain(..) {
            (proposal.responder)(Err(ProposeError::Stopped { reason: reason.clone() }));
        }
        for request in self.reads.drain(..) {
            (request.responder)(Err(ReadError::Stopped { reason: reason.clone() }));
        }
    }

    /// Takes all events, in the order in which the raft thread handles them.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        self.planned = false;
        self.proposal_bytes = 0;
        let mut events = std::mem::take(&mut self.reports);
        let messages = self.messages.drain(..);
        events.extend(messages.map(|(from, message)| Event::Peer { from, message }));
        if !self.proposals.is_empty() {
            events.push(Event::Propose(std::mem::take(&mut self.proposals)));
        }
        if !self.reads.is_empty() {
            events.push(Event::Read(std::mem::take(&mut self.reads)));
        }
        let transfers = self.transfers.drain(..);
        events.extend(transfers.map(|(to, responder)| Event::TransferLeadership { to, responder }));
        events
    }
}
