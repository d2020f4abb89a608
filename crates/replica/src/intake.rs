//! What callers want: commands and reads on their way in, bounded, and what those are told who are not let in.

use d_engine_core::{Input, Instant, Rejected, RoleKind};

use crate::event::{Event, Jobs, Proposal, ReadRequest};
use crate::proposals;
use crate::replica::{Payload, Replica};
use crate::{InstallError, ProposeError, ReadError, StopReason, TransferError};

impl Replica {
    pub(crate) fn on_propose(
        &mut self,
        now: Instant,
        wall_ms: u64,
        proposals: Vec<Proposal>,
        jobs: &mut Jobs,
    ) {
        let limit = self.config.command_bytes_max;
        // The others may commit while this node's own disk stands still: what waits for it is bounded
        // like what waits for commit.
        if self.unsynced_bytes as u64 > self.config.core.uncommitted_bytes_max {
            proposals::refuse(proposals, &ProposeError::Busy { what: "bytes waiting for this node's disk" });
            return;
        }
        let mut room = self.config.proposals_max.saturating_sub(self.proposals.len());
        let mut accepted = Vec::with_capacity(proposals.len());
        let mut sizes = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            let size = proposal.command.len();
            if size > limit {
                (proposal.responder)(Err(ProposeError::TooLarge { size, limit }));
            } else if is_over(proposal.deadline, now) {
                (proposal.responder)(Err(ProposeError::Expired));
            } else if room == 0 {
                (proposal.responder)(Err(ProposeError::Busy { what: "proposals on their way" }));
            } else {
                room -= 1;
                sizes.push(u32::try_from(size).unwrap_or(u32::MAX));
                accepted.push(proposal);
            }
        }
        // What came in together need not fit together: as much as fits is taken.
        let leads = self.core.role() == RoleKind::Leader;
        let fitting = if leads { self.core.fitting(&sizes).max(1) } else { sizes.len() };
        let refused = accepted.split_off(fitting.min(accepted.len()));
        sizes.truncate(fitting);
        if !accepted.is_empty() {
            self.step(now, wall_ms, Input::Propose { sizes }, Payload::Commands(accepted), jobs);
        }
        proposals::refuse(refused, &ProposeError::Busy { what: "bytes waiting for commit" });
    }

    pub(crate) fn on_read(
        &mut self,
        now: Instant,
        wall_ms: u64,
        requests: Vec<ReadRequest>,
        jobs: &mut Jobs,
    ) {
        let (by_lease, by_round) = requests.into_iter().partition(|request| request.lease);
        self.read(now, wall_ms, by_lease, true, jobs);
        self.read(now, wall_ms, by_round, false, jobs);
    }

    fn read(&mut self, now: Instant, wall_ms: u64, requests: Vec<ReadRequest>, lease: bool, jobs: &mut Jobs) {
        if requests.is_empty() {
            return;
        }
        let mut ids = Vec::with_capacity(requests.len());
        for request in requests {
            if is_over(request.deadline, now) {
                (request.responder)(Err(ReadError::Expired));
            } else if self.reads.len() >= self.config.reads_max {
                (request.responder)(Err(ReadError::Busy { what: "reads on their way" }));
            } else {
                ids.push(self.reads.register(request.responder));
            }
        }
        let input = Input::Read { ids: ids.clone(), lease };
        if let Err(rejected) = self.try_step(now, wall_ms, input, Payload::None, jobs) {
            let error = match rejected {
                Rejected::NotLeader { .. } => ReadError::NotLeader { leader: self.leader_hint() },
                _ => ReadError::Busy { what: "reads waiting for confirmation" },
            };
            for id in ids {
                self.reads.lost(id, &error);
            }
        }
    }

    pub(crate) fn propose_error(&self, rejected: Rejected) -> ProposeError {
        match rejected {
            Rejected::NotLeader { .. } => ProposeError::NotLeader { leader: self.leader_hint() },
            Rejected::TransferInProgress => ProposeError::TransferInProgress {
                successor: self.core.handing_over_to().map(|node| self.hint(node)),
            },
            _ => ProposeError::Busy { what: "bytes waiting for commit" },
        }
    }

    pub(crate) fn transfer_error(&self, rejected: Rejected) -> TransferError {
        match rejected {
            Rejected::NotLeader { .. } => TransferError::NotLeader { leader: self.leader_hint() },
            Rejected::NoTransferTarget => TransferError::NoTarget,
            _ => TransferError::InProgress,
        }
    }
}

fn is_over(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| now >= deadline)
}

/// Answers callers of a node that has stopped.
pub(crate) fn refuse_event(event: Event, reason: &StopReason) {
    match event {
        Event::Propose(proposals) => proposals::refuse(proposals, &proposals::stopped(reason)),
        Event::Read(requests) => {
            for request in requests {
                (request.responder)(Err(ReadError::Stopped { reason: reason.clone() }));
            }
        }
        Event::TransferLeadership { responder, .. } => {
            responder(Err(TransferError::Stopped { reason: reason.clone() }));
        }
        Event::SnapshotReceived { responder, .. } => {
            responder(Err(InstallError::Stopped { reason: reason.clone() }));
        }
        _ => {}
    }
}
