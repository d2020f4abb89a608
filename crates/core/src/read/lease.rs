//! The leader's lease: reads without a round (Raft thesis, section 6.4.1).
//!
//! A node that has replied to a round of heartbeats has heard this leader after the round was
//! *sent*. It grants no vote within the vote stickiness that its reply announces (`sticky_until`;
//! the stickiness is on stable storage before it is announced, so it also binds after a restart).
//! So once a quorum has replied, no other leader can commit anything before the shortest of these
//! times has passed since the sending, measured with the fastest of their clocks. Nodes may be
//! configured with different election timeouts.

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::interface::config::CoreConfig;
use crate::time::Instant;

/// Rounds whose send times are kept. A reply to an older round renews nothing.
const ROUNDS_MAX: usize = 256;

#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    /// When each round without replies from a quorum was sent.
    sent: VecDeque<(u64, Instant)>,
    /// When the last round with replies from a quorum was sent, and the shortest vote stickiness of
    /// the members that replied.
    confirmed: Option<(Instant, Duration)>,
    /// Another node was asked to campaign at once. Vote stickiness no longer protects this leader,
    /// so there is no lease for the rest of the term, even if the transfer fails.
    revoked: bool,
}

impl Lease {
    pub(crate) fn sent(&mut self, round: u64, now: Instant) {
        if self.sent.len() == ROUNDS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((round, now));
    }

    /// A quorum has replied to `round` or a later one; its members grant no vote for at least
    /// `stickiness`.
    pub(crate) fn answered(&mut self, round: u64, stickiness: Duration) {
        while let Some((_, at)) = self.sent.pop_front_if(|(number, _)| *number <= round) {
            self.confirmed = Some((at, stickiness));
        }
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked
    }

    pub(crate) fn revoke(&mut self) {
        self.revoked = true;
    }

    /// Until when, by this node's clock, no other node can lead; exclusive.
    pub(crate) fn until(&self, config: &CoreConfig) -> Option<Instant> {
        let confirmed = self.confirmed.filter(|_| !self.revoked);
        confirmed.map(|(sent, stickiness)| sent.plus(config.lease_duration(stickiness)))
    }
}
