//! Skipping an entry that halts every state machine: no program can apply the command, so no entry
//! after it is applied either, and an operator may decide that every node skips it.
//!
//! Skipping discards an effect that an unreachable node may have applied and acknowledged. So it
//! requires that no reachable node has applied the entry, and that a quorum is halted at it.

use crate::interface::effects::Effects;
use crate::interface::input::{Rejected, SkipRefusal};
use crate::raft_core::RaftCore;
use crate::{EntryKind, Instant, LogId, NodeId};

impl RaftCore {
    /// Appends the decision that no state machine applies `target`. A quorum must report that it is
    /// halted at exactly this entry: it has not applied the entry, so no later leader from this
    /// quorum has acknowledged it. A node that has applied the entry and is unreachable now stops
    /// when it learns of the decision.
    pub(crate) fn on_propose_skip(
        &mut self,
        now: Instant,
        target: LogId,
        bytes: u32,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        self.may_create()?;
        self.may_skip(target).map_err(Rejected::SkipRefused)?;
        self.create(EntryKind::Skip, now, &[bytes], None);
        self.replicate(now, out);
        Ok(())
    }

    /// Decides from what followers have reported to this leader in its term.
    fn may_skip(&self, target: LogId) -> Result<(), SkipRefusal> {
        let Some(leader) = self.role.leader() else { return Ok(()) };
        let is_in_log = self.log.term_at(target.index).is_none_or(|term| term == target.term);
        if target.index > self.log.committed()
            || target.index == crate::LogIndex::ZERO
            || !is_in_log
        {
            return Err(SkipRefusal::NotCommitted);
        }
        if self.log.applied() >= target.index {
            return Err(SkipRefusal::AppliedBy(self.node));
        }
        let reports =
            || leader.followers.iter().filter(|(_, progress)| progress.round_answered > 0);
        if let Some((node, _)) =
            reports().find(|(_, progress)| progress.report.applied >= target.index)
        {
            return Err(SkipRefusal::AppliedBy(*node));
        }
        let stands = |node: NodeId| {
            let own = (node == self.node).then_some(self.halted_at);
            let told = || {
                reports()
                    .find(|(follower, _)| **follower == node)
                    .map(|(_, progress)| progress.report.halted_at)
            };
            own.or_else(told).flatten() == Some(target)
        };
        let configuration = self.log.configuration();
        if configuration.has_quorum(stands) {
            return Ok(());
        }
        let voters =
            configuration.members().into_iter().filter(|node| configuration.is_voter(*node));
        let (standing, voters) = voters.fold((0, 0), |(standing, voters), node| {
            (standing + usize::from(stands(node)), voters + 1)
        });
        Err(SkipRefusal::TooFew { standing, voters })
    }
}
