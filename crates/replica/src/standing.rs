//! A state machine that stands: it cannot apply an entry, so it applies nothing behind it either. The node goes on storing,
//! voting and, if nobody else can, leading; it answers no caller.
//!
//! If the entry stops every node, its effect may be lost and the cluster go on without it: an operator says so
//! (`skips.rs`; the rule is [`d_engine_core::SkipRefusal`]'s).

use d_engine_core::{Input, Instant, LogId, LogIndex, RoleKind};

use crate::event::{ApplyStop, Jobs, SkipResponder};
use crate::replica::{Payload, Replica};
use crate::skips::{self, SKIP_BYTES};
use crate::{ReadError, SkipError, UnknownBecause};

impl Replica {
    /// A job has come back undone.
    pub(crate) fn on_apply_stopped(
        &mut self,
        now: Instant,
        wall_ms: u64,
        through: LogIndex,
        stop: ApplyStop,
        jobs: &mut Jobs,
    ) {
        let reason = stop.reason.clone();
        let stands_at = stop.stands_at().map(LogId::from);
        let is_news = self.apply.stopped(through, stop);
        let applied = self.apply.applied();
        self.machine.came_back(now, self.apply.is_idle());
        self.step(now, wall_ms, Input::Applied(applied), Payload::None, jobs);
        self.step(now, wall_ms, Input::StandsAt(stands_at), Payload::None, jobs);
        self.proposals.lose_all_because(UnknownBecause::StateMachineStopped);
        self.reads.lose_all(&ReadError::Stopped { reason: reason.clone() });
        if is_news {
            tracing::error!(node = %self.node(), "{reason}");
            jobs.status_changed = true;
        }
    }

    /// A job was done.
    pub(crate) fn apply_goes_on(&mut self, now: Instant, wall_ms: u64, through: LogIndex, jobs: &mut Jobs) {
        let stood = self.apply.stop().is_some();
        self.apply.done(through);
        if stood && self.apply.stop().is_none() {
            tracing::info!(node = %self.node(), %through, "the state machine applies entries again");
            self.step(now, wall_ms, Input::StandsAt(None), Payload::None, jobs);
            jobs.status_changed = true;
        }
    }

    /// An operator wants an entry skipped.
    pub(crate) fn on_skip(
        &mut self,
        now: Instant,
        wall_ms: u64,
        target: LogId,
        responder: SkipResponder,
        jobs: &mut Jobs,
    ) {
        let committed = self.core.log().committed;
        // Two decisions in one log would not be told apart by a snapshot between them.
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
        if let Err(rejected) = self.try_step(now, wall_ms, input, Payload::Skip(target), jobs) {
            let leader = self.leader_hint();
            self.skips.refused(skips::error(rejected, leader));
        }
    }
}
