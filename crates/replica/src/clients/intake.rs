//! Admission of commands and reads: their limits, and the errors for those that are refused.

use d_engine_core::{Input, Instant, Now, ReadMode, Rejected, RoleKind};

use crate::clients::proposals;
use crate::event::{Event, Jobs, Proposal, ReadRequest};
use crate::membership_driver::ChangeMembersError;
use crate::replica::{Payload, Replica};
use crate::{InstallError, ProposeError, ReadError, SkipError, StopReason, TransferError};

impl Replica {
    pub(crate) fn on_propose(&mut self, now: Now, proposals: Vec<Proposal>, jobs: &mut Jobs) {
        let limit = self.config.command_bytes_max;
        let leads = self.core.role() == RoleKind::Leader;
        // If this node does not lead, or transfers its leadership, the core refuses the commands,
        // and the error names the leader.
        let may_accept = leads && !self.core.is_transferring_leadership();
        // The other nodes may commit while this node's disk hangs. The bytes that wait for it have
        // the same limit as the bytes that wait for commit.
        if may_accept && self.unsynced.bytes() as u64 > self.config.core.uncommitted_bytes_max {
            proposals::refuse(
                proposals,
                &ProposeError::Busy { what: "bytes waiting for this node's disk" },
            );
            return;
        }
        if may_accept && self.is_short_of_room() {
            proposals::refuse(
                proposals,
                &ProposeError::Busy { what: "too little space on the leader's disk" },
            );
            return;
        }
        if let (true, Some(stop)) = (may_accept, self.apply.stop()) {
            let reason = stop.reason.clone();
            proposals::refuse(proposals, &ProposeError::Stopped { reason });
            return;
        }
        let mut room = self.config.proposals_max.saturating_sub(self.proposals.len());
        let mut accepted = Vec::new();
        for proposal in proposals {
            let size = proposal.command.len();
            if size > limit {
                (proposal.responder)(Err(ProposeError::TooLarge { size, limit }));
            } else if is_over(proposal.deadline, now.monotonic) {
                (proposal.responder)(Err(ProposeError::Expired));
            } else if let Some(error) = self.too_new(proposal.version) {
                (proposal.responder)(Err(error));
            } else if let (true, Err(reason)) = (leads, &proposal.checked) {
                let reason = reason.clone();
                (proposal.responder)(Err(ProposeError::Refused { reason }));
            } else if room == 0 {
                (proposal.responder)(Err(ProposeError::Busy { what: "proposals in flight" }));
            } else if may_accept && !self.throttle.takes(now.monotonic, size as u64) {
                let what =
                    "commands are slowed while a follower catches up and the leader's disk fills";
                (proposal.responder)(Err(ProposeError::Busy { what }));
            } else {
                room -= 1;
                accepted.push(proposal);
            }
        }
        // A batch need not fit as a whole: as many commands as fit are accepted.
        let fitting =
            if leads { self.core.fitting(&sizes_of(&accepted)).max(1) } else { accepted.len() };
        let refused = accepted.split_off(fitting.min(accepted.len()));
        while !accepted.is_empty() {
            let rest = accepted.split_off(first_step(&accepted));
            let commands = std::mem::replace(&mut accepted, rest);
            let sizes = sizes_of(&commands);
            self.step(now, Input::Propose { sizes }, Payload::Commands(commands), jobs);
        }
        proposals::refuse(refused, &ProposeError::Busy { what: "bytes waiting for commit" });
    }

    pub(crate) fn on_read(&mut self, now: Now, requests: Vec<ReadRequest>, jobs: &mut Jobs) {
        let (by_lease, by_round) =
            requests.into_iter().partition(|request| request.mode == ReadMode::Lease);
        self.read(now, by_lease, ReadMode::Lease, jobs);
        self.read(now, by_round, ReadMode::Round, jobs);
    }

    fn read(&mut self, now: Now, requests: Vec<ReadRequest>, mode: ReadMode, jobs: &mut Jobs) {
        if requests.is_empty() {
            return;
        }
        if let Some(stop) = self.apply.stop() {
            let error = ReadError::Stopped { reason: stop.reason.clone() };
            for request in requests {
                (request.responder)(Err(error.clone()));
            }
            return;
        }
        let mut ids = Vec::with_capacity(requests.len());
        for request in requests {
            if is_over(request.deadline, now.monotonic) {
                (request.responder)(Err(ReadError::Expired));
            } else if self.reads.len() >= self.config.reads_max {
                (request.responder)(Err(ReadError::Busy { what: "reads in flight" }));
            } else {
                ids.push(self.reads.register(request.responder));
            }
        }
        let input = Input::Read { ids: ids.clone(), mode };
        if let Err(rejected) = self.try_step(now, input, Payload::None, jobs) {
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
                successor: self.core.transfer_target().map(|node| self.hint(node)),
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

/// Payload bytes after which the commands of one drain continue in another step. One step becomes
/// one write of the log, whose length is limited.
const STEP_BYTES_MAX: u64 = 4 << 20;

/// The sizes of the commands, as the core counts them.
fn sizes_of(commands: &[Proposal]) -> Vec<u32> {
    commands.iter().map(size_of).collect()
}

fn size_of(proposal: &Proposal) -> u32 {
    u32::try_from(proposal.command.len()).unwrap_or(u32::MAX)
}

/// The number of commands in the first step, at least one.
fn first_step(commands: &[Proposal]) -> usize {
    let mut bytes = 0;
    let fits = commands.iter().take_while(|proposal| {
        bytes += u64::from(size_of(proposal));
        bytes <= STEP_BYTES_MAX
    });
    fits.count().max(1)
}

fn is_over(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| now >= deadline)
}

/// Refuses the callers of an event at a node that has stopped.
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
        Event::ChangeMembers(request) => {
            let reason = reason.clone();
            (request.responder)(Err(ChangeMembersError::Stopped { reason }));
        }
        Event::SkipEntry { responder, .. } => {
            responder(Err(SkipError::Stopped { reason: reason.clone() }));
        }
        Event::SnapshotReceived { responder, .. } => {
            responder(Err(InstallError::Stopped { reason: reason.clone() }));
        }
        _ => {}
    }
}
