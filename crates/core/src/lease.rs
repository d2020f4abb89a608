//! The leader's lease: reads without a round (Raft thesis, section 6.4.1).
//!
//! Whoever has answered a round of heartbeats has heard this leader after the round was *sent*, and
//! votes for nobody within the vote stickiness that the answer announces (`loyal_until`; it is on stable
//! storage before it is announced, so a restart keeps to it). So once a quorum has answered, no other
//! leader can commit anything before the shortest of these times has passed since the sending, measured
//! with the fastest of their clocks. Nodes may be configured with different election timeouts.

use alloc::collections::VecDeque;

use crate::effects::Effects;
use crate::input::{ReadId, Rejected};
use crate::raft_core::RaftCore;
use crate::role::Role;
use crate::{CoreConfig, Duration, Instant, LogIndex};

/// Rounds whose send times are kept; of older ones a late answer renews nothing.
const ROUNDS_MAX: usize = 256;

#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    /// When each round that no quorum has answered yet was sent.
    sent: VecDeque<(u64, Instant)>,
    /// When the last round that a quorum has answered was sent, and the shortest vote stickiness of the
    /// members that answered it.
    confirmed: Option<(Instant, Duration)>,
    /// Another node was told to campaign at once: votes are no longer bound by loyalty, so there is no
    /// lease any more in this term, whatever becomes of the transfer.
    forsworn: bool,
}

impl Lease {
    pub(crate) fn sent(&mut self, round: u64, now: Instant) {
        if self.sent.len() == ROUNDS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((round, now));
    }

    /// A quorum has answered `round` or a later one; its members grant no vote for at least `stickiness`.
    pub(crate) fn answered(&mut self, round: u64, stickiness: Duration) {
        while let Some((_, at)) = self.sent.pop_front_if(|(number, _)| *number <= round) {
            self.confirmed = Some((at, stickiness));
        }
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.forsworn
    }

    pub(crate) fn forswear(&mut self) {
        self.forsworn = true;
    }

    /// Until when, by the own clock, nobody else can lead. Not included itself.
    fn until(&self, config: &CoreConfig) -> Option<Instant> {
        let confirmed = self.confirmed.filter(|_| !self.forsworn || cfg!(mutant = "lease-over-transfer"));
        confirmed.map(|(sent, stickiness)| sent.plus(config.lease_duration(stickiness)))
    }
}

impl RaftCore {
    /// Until when this node may serve reads from its committed state without asking anybody; `None`
    /// when it may not. The point itself is not included.
    ///
    /// A driver that answers lease reads by itself must take the clock *after* the read has arrived,
    /// compare it with this, and only then look up the commit index: [`crate::LogSummary::committed`].
    #[must_use]
    pub fn lease_until(&self) -> Option<Instant> {
        let Role::Leader(leader) = &self.role else { return None };
        if !self.leads_with_commit() {
            return None;
        }
        leader.lease.until(&self.config)
    }

    /// Confirms reads by the lease; `false` when there is none at `now`.
    pub(crate) fn confirm_by_lease(&self, now: Instant, ids: &[ReadId], out: &mut Effects) -> bool {
        let valid = self.lease_until().is_some_and(|until| now < until);
        if valid {
            let index: LogIndex = self.log.committed();
            out.reads_confirmed.extend(ids.iter().map(|id| (*id, index)));
        }
        valid
    }

    pub(crate) fn on_lease_read(
        &mut self,
        now: Instant,
        ids: alloc::vec::Vec<ReadId>,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        if self.confirm_by_lease(now, &ids, out) { Ok(()) } else { self.on_read(now, ids, out) }
    }
}
