//! The wall clocks of the voters, and the log time of a leader (`state/log_clock.rs`).

use crate::raft_core::RaftCore;
use crate::state::log_clock::{ClockState, SAMPLE_HEARTBEATS, offset_us};
use crate::{Instant, NodeId};

impl RaftCore {
    /// The time that the wall clocks of a quorum of voters show; with joint voters the incoming set
    /// counts.
    pub(crate) fn agreed_clock(&self, now: Instant) -> Option<i64> {
        let voters = self.log.configuration().voters();
        let own = voters.contains(&self.node).then_some(self.wall_ms);
        let quorum = voters.len() / 2 + 1;
        self.clocks.agreed(now, own, |node| node != self.node && voters.contains(&node), quorum)
    }

    /// This node has just won its election: log time gets its anchor before the first entry.
    pub(crate) fn start_clock(&mut self, now: Instant) {
        let agreed = self.agreed_clock(now);
        let is_alone = self.log.configuration().is_sole_voter(self.node);
        let Some(leader) = self.role.leader_mut() else { return };
        if is_alone && !self.accepts_clock {
            leader.clock.hold_if_far(offset_us(self.wall_ms, now), now);
        }
        leader.clock.anchor(agreed, now);
        // A clock that was accepted at the start of this process stays accepted in its later terms.
        self.accepts_clock |= leader.clock.state() != ClockState::Held;
    }

    /// The replies to the round that was just sent become clock samples, unless replies to an
    /// earlier sampling round are still awaited.
    pub(crate) fn sample_clocks(&mut self, now: Instant) {
        let agreed = self.agreed_clock(now);
        let wait = self.config.heartbeat_interval.saturating_mul(SAMPLE_HEARTBEATS);
        let Some(leader) = self.role.leader_mut() else { return };
        leader.clock.anchor(agreed, now);
        if now.since(leader.clock_round.1) >= wait {
            leader.clock_round = (leader.reads.last_round(), now);
        }
    }

    /// `from` has replied to `round`.
    pub(crate) fn clock_answer(&mut self, now: Instant, from: NodeId, round: u64, wall_ms: u64) {
        let Some(leader) = self.role.leader() else { return };
        let (asked, at) = leader.clock_round;
        if round != asked {
            return;
        }
        self.clocks.heard(from, wall_ms, at, now);
        let agreed = self.agreed_clock(now);
        if let Some(leader) = self.role.leader_mut() {
            leader.clock.anchor(agreed, now);
        }
    }

    /// What log time follows; `None` unless this node leads.
    #[must_use]
    pub fn clock_state(&self) -> Option<ClockState> {
        self.role.leader().map(|leader| leader.clock.state())
    }

    /// The log time that an entry created at `now` would get, in UNIX milliseconds; `None` unless
    /// this node leads.
    #[must_use]
    pub fn log_time_ms(&self, now: Instant) -> Option<u64> {
        self.role.leader().map(|leader| leader.clock.peek_ms(now).max(self.log.time_ms()))
    }
}
