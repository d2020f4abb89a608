//! An entry that stops every state machine that is given it: a command that no node's program can apply, so that
//! nothing behind it is applied either. An operator may have it left out. That takes an effect away: a node that is silent may
//! have applied it, and told its caller so. So nobody who is heard may have, and a majority must stand at it.

use crate::effects::Effects;
use crate::input::{Rejected, SkipRefusal};
use crate::raft_core::RaftCore;
use crate::role::Role;
use crate::{EntryKind, Instant, LogId, NodeId};

impl RaftCore {
    /// Proposes that no state machine applies `target`. A quorum must report to stand at exactly this entry: what they
    /// have not applied, no later leader among them has answered a caller for. A node that has applied it all the same,
    /// and is silent now, finds out when it is told of the skip, and stops.
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

    /// Goes by what has been reported to this leader in its term.
    fn may_skip(&self, target: LogId) -> Result<(), SkipRefusal> {
        let Role::Leader(leader) = &self.role else { return Ok(()) };
        let is_in_log = self.log.term_at(target.index).is_none_or(|term| term == target.term);
        if target.index > self.log.committed() || target.index == crate::LogIndex::ZERO || !is_in_log {
            return Err(SkipRefusal::NotCommitted);
        }
        if self.log.applied() >= target.index {
            return Err(SkipRefusal::AppliedBy(self.node));
        }
        let reports = || leader.followers.iter().filter(|(_, progress)| progress.round_answered > 0);
        if let Some((node, _)) = reports().find(|(_, progress)| progress.report.applied >= target.index) {
            return Err(SkipRefusal::AppliedBy(*node));
        }
        let stands = |node: NodeId| {
            let own = (node == self.node).then_some(self.stands_at);
            let told = || {
                reports()
                    .find(|(follower, _)| **follower == node)
                    .map(|(_, progress)| progress.report.stands_at)
            };
            own.or_else(told).flatten() == Some(target)
        };
        let configuration = self.log.configuration();
        if configuration.has_quorum(stands) || cfg!(mutant = "skip-by-minority") {
            return Ok(());
        }
        let voters = configuration.members().into_iter().filter(|node| configuration.is_voter(*node));
        let (standing, voters) = voters
            .fold((0, 0), |(standing, voters), node| (standing + usize::from(stands(node)), voters + 1));
        Err(SkipRefusal::TooFew { standing, voters })
    }
}
