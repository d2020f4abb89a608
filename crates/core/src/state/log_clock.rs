//! Log time: the time that a leader gives to its entries. One wrong wall clock does no lasting
//! harm.
//!
//! Within a term, log time follows the leader's *monotonic* clock. It is anchored to the wall
//! clocks of a quorum: the replies to pre-votes, votes and heartbeats carry their sender's wall
//! clock, and the anchor is the median of the narrowest group of clocks that is a quorum, even if
//! the leader's own clock is not in it. Such a group exists only if its clocks agree within
//! [`crate::CoreConfig::max_clock_offset`]; without one, log time continues monotonically and
//! [`ClockState`] reports it.
//!
//! The first anchor of a term may move log time forward at once, because the cluster may have had
//! no leader for a long time. Once a command of the term has its log time, log time only runs up to
//! 10 % faster or slower until it agrees with the quorum, because a key with a time to live must
//! not expire by a jump. Log time never goes back.
//!
//! Not done: if a quorum of clocks is wrong by the same amount, log time follows them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::interface::config::CoreConfig;
use crate::interface::message::MAX_ACCEPTED_TIME_MS;
use crate::time::{Instant, nanos};
use crate::types::NodeId;

/// A reply is a clock sample for this many heartbeat intervals.
const SAMPLE_AGE_HEARTBEATS: u32 = 50;
/// A new sample of every clock is taken once in this many heartbeat intervals.
pub(crate) const SAMPLE_HEARTBEATS: u32 = 10;
/// Log time runs at most by one part in this many faster or slower than the monotonic clock.
const SLEW_PARTS: u64 = 10;
/// A single voter holds log time if its clock differs by more than this from its log at a start.
const LEAP_ALONE_MAX_US: u64 = 3_600_000_000;

/// The basis of the leader's log time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ClockState {
    /// The wall clocks of a quorum agree, and log time follows them.
    #[default]
    Agreed,
    /// No quorum of wall clocks agrees within the bound: log time follows the monotonic clock
    /// alone. Correct the clocks.
    NoQuorum,
    /// The single voter's clock differs by more than an hour from its log. Log time continues from
    /// the log until an operator accepts the clock or corrects it.
    Held,
}

/// A peer's wall clock, as an offset from this node's monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Sample {
    offset_us: i64,
    /// The error bound of the offset: half of the round-trip time.
    error_us: u64,
    at: Instant,
}

/// The wall clocks of the peers.
#[derive(Clone, Debug)]
pub(crate) struct PeerClocks {
    samples: BTreeMap<NodeId, Sample>,
    /// How far apart clocks may be and still agree.
    bound: Duration,
    /// Older replies are ignored: the clock may run at another rate.
    age_max: Duration,
}

fn micros(at: Instant) -> i64 {
    i64::try_from(at.as_nanos() / 1000).unwrap_or(i64::MAX)
}

pub(crate) fn offset_us(wall_ms: u64, at: Instant) -> i64 {
    let wall = i64::try_from(wall_ms.min(MAX_ACCEPTED_TIME_MS)).unwrap_or(i64::MAX) * 1000;
    wall.saturating_sub(micros(at))
}

impl PeerClocks {
    pub(crate) fn new(config: &CoreConfig) -> Self {
        let age_max = config.heartbeat_interval.saturating_mul(SAMPLE_AGE_HEARTBEATS);
        Self { samples: BTreeMap::new(), bound: config.max_clock_offset, age_max }
    }

    /// `node` replied at `now`, with its clock at `wall_ms`, to what was sent at `asked`.
    pub(crate) fn heard(&mut self, node: NodeId, wall_ms: u64, asked: Instant, now: Instant) {
        let error_us = nanos(now.since(asked)) / 2000;
        let half = i64::try_from(error_us).unwrap_or(i64::MAX);
        let offset_us = offset_us(wall_ms, now).saturating_add(half);
        self.samples.insert(node, Sample { offset_us, error_us, at: now });
    }

    /// The median clock of the narrowest group of `quorum` clocks that agree, as an offset from the
    /// monotonic clock. This node's clock is one of them if it is a voter.
    pub(crate) fn agreed(
        &self,
        now: Instant,
        own_wall_ms: Option<u64>,
        is_voter: impl Fn(NodeId) -> bool,
        quorum: usize,
    ) -> Option<i64> {
        let bound_us = nanos(self.bound) / 1000;
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
    /// The agreed wall clock, as an offset from the monotonic clock.
    target: Option<i64>,
    /// No command of this term has its log time yet.
    may_leap: bool,
    state: ClockState,
}

impl LogClock {
    /// Log time continues from the last entry's time.
    pub(crate) fn new(log_time_ms: u64, now: Instant) -> Self {
        let time_us = log_time_ms.saturating_mul(1000);
        Self { time_us, at: now, target: None, may_leap: true, state: ClockState::NoQuorum }
    }

    pub(crate) fn state(&self) -> ClockState {
        self.state
    }

    /// The time that a quorum's clocks show now; `None` if they do not agree.
    pub(crate) fn anchor(&mut self, agreed: Option<i64>, now: Instant) {
        self.advance(now);
        let is_near =
            |offset: i64| shown_us(offset, now).abs_diff(self.time_us) <= LEAP_ALONE_MAX_US;
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

    /// A single voter can compare its clock only with its log: an offset of more than an hour, in
    /// either direction, is not accepted.
    pub(crate) fn hold_if_far(&mut self, own_offset: i64, now: Instant) {
        if self.time_us > 0 && shown_us(own_offset, now).abs_diff(self.time_us) > LEAP_ALONE_MAX_US
        {
            self.state = ClockState::Held;
        }
    }

    /// A command has its log time: from now on log time does not jump.
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
        // Whole microseconds only: the remainder stays in `at`.
        let elapsed = nanos(now.since(self.at)) / 1000;
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

#[cfg(test)]
mod tests;
