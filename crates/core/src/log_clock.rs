//! Log time: what a leader stamps its entries with, so that one wrong wall clock does no lasting harm.
//!
//! Within a term log time goes by the leader's *monotonic* clock. It is anchored to the wall clocks of
//! a quorum: the answers to pre-votes, votes and heartbeats carry their sender's wall clock, and the
//! anchor is the median of the clocks in the narrowest group that is a quorum, also if this leader's
//! own clock is not in it. Such a group exists only where its clocks agree within
//! [`crate::CoreConfig::max_clock_offset`]; without one, log time goes on monotonically and
//! [`ClockState`] says so.
//!
//! The first anchor of a term may move log time forward at once: the cluster may have had no leader for
//! long. Once a command of the term has its time, log time only runs up to 10 % faster or slower until
//! it shows what the quorum shows, because a key with a time to live must not expire by a leap. Log
//! time never goes back.
//!
//! Not done: an agreement of a quorum of equally wrong clocks is believed.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::raft_core::RaftCore;
use crate::role::Role;
use crate::{CoreConfig, Duration, Instant, MAX_ACCEPTED_TIME_MS, NodeId};

/// An answer is a clock sample for so many heartbeat intervals.
const SAMPLE_AGE_HEARTBEATS: u64 = 50;
/// A new sample of every clock is taken once in so many heartbeat intervals.
const SAMPLE_HEARTBEATS: u64 = 10;
/// Log time runs at most by one part in so many faster or slower than the monotonic clock.
const SLEW_PARTS: u64 = 10;
/// A node that is alone holds log time when its clock differs by more than this from its log at a start.
const LEAP_ALONE_MAX_US: u64 = 3_600_000_000;

/// What the leader's log time rests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ClockState {
    /// The wall clocks of a quorum agree, and log time follows them.
    #[default]
    Agreed,
    /// No quorum of wall clocks agrees within the bound: log time goes on by the monotonic clock alone.
    /// Correct the clocks.
    NoQuorum,
    /// The only voter's clock differs by more than an hour from its log. Log time goes on from the log
    /// until an operator accepts the clock or corrects it.
    Held,
}

/// A peer's wall clock, as a distance from this node's monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Sample {
    offset_us: i64,
    /// How wrong the distance may be: half of the time that the answer took.
    error_us: u64,
    at: Instant,
}

/// The wall clocks of the peers.
#[derive(Clone, Debug)]
pub(crate) struct PeerClocks {
    samples: BTreeMap<NodeId, Sample>,
    /// How far clocks that agree may lie apart.
    bound: Duration,
    /// Older answers say too little about a clock that may run at another rate.
    age_max: Duration,
}

fn micros(at: Instant) -> i64 {
    i64::try_from(at.as_nanos() / 1000).unwrap_or(i64::MAX)
}

fn offset_us(wall_ms: u64, at: Instant) -> i64 {
    let wall = i64::try_from(wall_ms.min(MAX_ACCEPTED_TIME_MS)).unwrap_or(i64::MAX) * 1000;
    wall.saturating_sub(micros(at))
}

impl PeerClocks {
    pub(crate) fn new(config: &CoreConfig) -> Self {
        let age_max = config.heartbeat_interval.times(SAMPLE_AGE_HEARTBEATS);
        Self { samples: BTreeMap::new(), bound: config.max_clock_offset, age_max }
    }

    /// `node` answered at `now`, with `wall_ms`, what it was asked at `asked`.
    pub(crate) fn heard(&mut self, node: NodeId, wall_ms: u64, asked: Instant, now: Instant) {
        let error_us = now.since(asked).as_nanos() / 2000;
        let half = i64::try_from(error_us).unwrap_or(i64::MAX);
        let offset_us = offset_us(wall_ms, now).saturating_add(half);
        self.samples.insert(node, Sample { offset_us, error_us, at: now });
    }

    /// The median clock of the narrowest group of `quorum` clocks that agree, as a distance from the
    /// monotonic clock. The own clock is one of them if this node is a voter.
    pub(crate) fn agreed(
        &self,
        now: Instant,
        own_wall_ms: Option<u64>,
        is_voter: impl Fn(NodeId) -> bool,
        quorum: usize,
    ) -> Option<i64> {
        let bound_us = self.bound.as_nanos() / 1000;
        let mut clocks: Vec<Sample> = self
            .samples
            .iter()
            .filter(|(node, sample)| is_voter(**node) && now.since(sample.at) <= self.age_max)
            .map(|(_, sample)| *sample)
            .filter(|sample| sample.error_us <= bound_us)
            .collect();
        if let Some(wall_ms) = own_wall_ms {
            clocks.push(Sample { offset_us: offset_us(wall_ms, now), error_us: 0, at: now });
        }
        clocks.sort_by_key(|sample| sample.offset_us);
        let groups = clocks.windows(quorum.max(1));
        let spread = |group: &[Sample]| match group {
            [first, .., last] => last.offset_us.abs_diff(first.offset_us),
            _ => 0,
        };
        let agrees = |group: &&[Sample]| match group {
            [first, .., last] => spread(group) <= bound_us + first.error_us.max(last.error_us),
            _ => !group.is_empty(),
        };
        let narrowest = groups.filter(agrees).min_by_key(|group| spread(group))?;
        narrowest.get((narrowest.len() - 1) / 2).map(|sample| sample.offset_us)
    }
}

/// The log time of one leader.
#[derive(Clone, Debug)]
pub(crate) struct LogClock {
    /// Log time at `at`, in microseconds.
    time_us: u64,
    at: Instant,
    /// The agreed wall clock, as a distance from the monotonic clock.
    target: Option<i64>,
    /// No command of this term has its time yet.
    may_leap: bool,
    state: ClockState,
}

impl LogClock {
    /// Log time goes on from the log's last time.
    pub(crate) fn new(log_time_ms: u64, now: Instant) -> Self {
        let time_us = log_time_ms.saturating_mul(1000);
        Self { time_us, at: now, target: None, may_leap: true, state: ClockState::NoQuorum }
    }

    pub(crate) fn state(&self) -> ClockState {
        self.state
    }

    /// What a quorum's clocks show now; `None` when they do not agree.
    pub(crate) fn anchor(&mut self, agreed: Option<i64>, now: Instant) {
        self.advance(now);
        let is_near = |offset: i64| shown_us(offset, now).abs_diff(self.time_us) <= LEAP_ALONE_MAX_US;
        if self.state == ClockState::Held && !agreed.is_some_and(is_near) {
            return;
        }
        self.target = agreed;
        self.state = if agreed.is_some() { ClockState::Agreed } else { ClockState::NoQuorum };
        if self.may_leap
            && let Some(offset) = agreed
        {
            self.time_us = self.time_us.max(shown_us(offset, now));
        }
    }

    /// A node that is alone has nobody to compare its clock with but its log: a distance of more than
    /// an hour, in either direction, is not believed.
    pub(crate) fn hold_if_far(&mut self, own_offset: i64, now: Instant) {
        if self.time_us > 0 && shown_us(own_offset, now).abs_diff(self.time_us) > LEAP_ALONE_MAX_US {
            self.state = ClockState::Held;
        }
    }

    /// A command has its time: from now on nothing leaps.
    pub(crate) fn command_stamped(&mut self) {
        self.may_leap = false;
    }

    /// Log time now, in milliseconds, without moving the clock.
    pub(crate) fn peek_ms(&self, now: Instant) -> u64 {
        let mut clock = self.clone();
        clock.advance(now);
        (clock.time_us / 1000).min(MAX_ACCEPTED_TIME_MS)
    }

    /// Log time now, in milliseconds.
    pub(crate) fn now_ms(&mut self, now: Instant) -> u64 {
        self.advance(now);
        (self.time_us / 1000).min(MAX_ACCEPTED_TIME_MS)
    }

    fn advance(&mut self, now: Instant) {
        // Whole microseconds only: what is left over stays in `at`.
        let elapsed = now.since(self.at).as_nanos() / 1000;
        self.at = self.at.plus(Duration::from_nanos(elapsed * 1000));
        let plain = self.time_us.saturating_add(elapsed);
        let slew = elapsed / SLEW_PARTS;
        self.time_us = match self.target.map(|offset| shown_us(offset, now)) {
            Some(shown) if shown > plain => plain.saturating_add(slew.min(shown - plain)),
            Some(shown) => plain - slew.min(plain - shown),
            None => plain,
        };
    }
}

fn shown_us(offset: i64, now: Instant) -> u64 {
    u64::try_from(micros(now).saturating_add(offset)).unwrap_or(0)
}

impl RaftCore {
    /// What the wall clocks of a quorum of voters show; with joint voters the incoming set counts.
    pub(crate) fn agreed_clock(&self, now: Instant) -> Option<i64> {
        let voters = self.log.configuration().voters();
        let own = voters.contains(&self.node).then_some(self.wall_ms);
        let quorum = if cfg!(mutant = "own-clock-believed") { 1 } else { voters.len() / 2 + 1 };
        self.clocks.agreed(now, own, |node| node != self.node && voters.contains(&node), quorum)
    }

    /// This node has just won its election: log time gets its anchor before the first entry.
    pub(crate) fn start_clock(&mut self, now: Instant) {
        let agreed = self.agreed_clock(now);
        let is_alone = self.log.configuration().voters() == [self.node];
        let Role::Leader(leader) = &mut self.role else { return };
        if is_alone && !self.accepts_clock {
            leader.clock.hold_if_far(offset_us(self.wall_ms, now), now);
        }
        leader.clock.anchor(agreed, now);
        // What was believed at the start of this run is not doubted in a later term of it.
        self.accepts_clock |= leader.clock.state() != ClockState::Held;
    }

    /// The answers to the round that was just sent are clock samples, unless those to an earlier one
    /// are still awaited.
    pub(crate) fn sample_clocks(&mut self, now: Instant) {
        let agreed = self.agreed_clock(now);
        let wait = self.config.heartbeat_interval.times(SAMPLE_HEARTBEATS);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.clock.anchor(agreed, now);
        if now.since(leader.clock_round.1) >= wait {
            leader.clock_round = (leader.reads.last_round(), now);
        }
    }

    /// `from` has answered `round`.
    pub(crate) fn clock_answer(&mut self, now: Instant, from: NodeId, round: u64, wall_ms: u64) {
        let Role::Leader(leader) = &self.role else { return };
        let (asked, at) = leader.clock_round;
        if round != asked {
            return;
        }
        self.clocks.heard(from, wall_ms, at, now);
        let agreed = self.agreed_clock(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.clock.anchor(agreed, now);
        }
    }

    pub(crate) fn clock_state(&self) -> Option<ClockState> {
        match &self.role {
            Role::Leader(leader) => Some(leader.clock.state()),
            _ => None,
        }
    }

    /// What an entry created at `now` would be stamped with, in UNIX milliseconds; `None` unless this
    /// node leads.
    #[must_use]
    pub fn log_time_ms(&self, now: Instant) -> Option<u64> {
        match &self.role {
            Role::Leader(leader) => Some(leader.clock.peek_ms(now).max(self.log.time_ms())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
