//! A halted state machine: it cannot apply an entry, so it applies nothing after it either. The
//! node continues to persist, to vote and, if no other node can, to lead; its callers receive
//! `Stopped`.
//!
//! If the entry halts every node and its effect may be lost, an operator can decide to skip it
//! (`skips.rs`; the rule is [`d_engine_core::SkipRefusal`]'s).

use d_engine_core::{Input, LogId, LogIndex, Now, RoleKind};

use crate::event::{ApplyStop, Jobs, SkipResponder};
use crate::replica::{Payload, Replica};
use crate::state_machine::skips::{self, SKIP_BYTES};
use crate::{ReadError, SkipError, UnknownBecause};

impl Replica {
    /// The apply worker has returned a job without carrying it out, because the state machine is
    /// halted.
    pub(crate) fn on_apply_stopped(
        &mut self,
        now: Now,
        through: LogIndex,
        stop: ApplyStop,
        jobs: &mut Jobs,
    ) {
        let reason = stop.reason.clone();
        let halted_at = stop.halted_at();
        let is_news = self.apply.stopped(through, stop);
        let applied = self.apply.applied();
        self.machine_came_back(now);
        self.step(now, Input::Applied(applied), Payload::None, jobs);
        self.step(now, Input::HaltedAt(halted_at), Payload::None, jobs);
        self.proposals.lose_all_because(UnknownBecause::StateMachineStopped);
        self.reads.lose_all(&ReadError::Stopped { reason: reason.clone() });
        if is_news {
            tracing::error!(node = %self.node(), "{reason}");
            jobs.status_changed = true;
        }
    }

    /// The apply worker has executed a job.
    pub(crate) fn apply_goes_on(&mut self, now: Now, through: LogIndex, jobs: &mut Jobs) {
        let stood = self.apply.stop().is_some();
        self.apply.done(through);
        if stood && self.apply.stop().is_none() {
            tracing::info!(node = %self.node(), %through, "the state machine applies entries again");
            self.step(now, Input::HaltedAt(None), Payload::None, jobs);
            jobs.status_changed = true;
        }
    }

    /// Handles an operator's request to skip an entry.
    pub(crate) fn on_skip(
        &mut self,
        now: Now,
        target: LogId,
        responder: SkipResponder,
        jobs: &mut Jobs,
    ) {
        let committed = self.core.log().committed;
        // Do not append a second decision for the same entry: a snapshot between the two could not
        // tell them apart.
        if self.core.role() == RoleKind::Leader
            && let Some(skip) = self.skips.of(target)
        {
            skip.wait(committed, responder);
            return;
        }
        if self.log_disk().full {
            responder(Err(SkipError::Busy));
            return;
        }
        self.skips.ask(responder);
        let input = Input::ProposeSkip { target, bytes: SKIP_BYTES };
        if let Err(rejected) = self.try_step(now, input, Payload::Skip(target), jobs) {
            let leader = self.leader_hint();
            self.skips.refused(skips::error(rejected, leader));
        }
    }
}
