//! Throttling of commands for a limited time, so that a follower catches up before the space for
//! its log is used up.

use std::time::Duration;

use d_engine_core::Instant;

/// The window over which the rate of commands is measured.
const WINDOW: Duration = Duration::from_millis(5_000);
/// The longest time for which commands are throttled, over all followers that catch up one after
/// the other.
pub(crate) const SLOW_FOR: Duration = Duration::from_millis(300_000);
/// Commands are throttled if the space would last no longer than this at the recent rate.
const RUNS_OUT_WITHIN: Duration = Duration::from_millis(60_000);
/// The accepted share of the earlier rate, in percent.
const TAKEN_PERCENT: u64 = 80;
/// The largest burst, as time at the throttled rate. With it, callers that retry after a pause lose
/// nothing by pausing.
const BURST: Duration = Duration::from_millis(1_000);

/// Measures the rate at which callers write, and accepts less while throttling.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// The start of the current window, and the bytes counted in it.
    window: (Instant, u64),
    /// Bytes per second in the previous window.
    rate: u64,
    slowed: Option<Slowed>,
    /// When throttling began. After [`SLOW_FOR`] it does not begin again before
    /// [`Throttle::release`].
    begun: Option<Instant>,
}

#[derive(Debug)]
struct Slowed {
    per_second: u64,
    /// Bytes that may be accepted; negative after a large command.
    credit: i64,
    filled: Instant,
}

impl Throttle {
    /// Whether a command of `bytes` is accepted; counts it if it is.
    pub(crate) fn takes(&mut self, now: Instant, bytes: u64) -> bool {
        self.measure(now);
        if self.begun.is_some_and(|begun| now.since(begun) >= SLOW_FOR) {
            self.slowed = None;
        }
        if let Some(slowed) = &mut self.slowed
            && !slowed.takes(now, bytes)
        {
            return false;
        }
        self.window.1 = self.window.1.saturating_add(bytes);
        true
    }

    fn measure(&mut self, now: Instant) {
        let length = now.since(self.window.0);
        if length >= WINDOW {
            let rate = u128::from(self.window.1) * 1_000_000_000 / length.as_nanos().max(1);
            self.rate = u64::try_from(rate).unwrap_or(u64::MAX);
            self.window = (now, 0);
        }
    }

    /// Whether `room` bytes will be used up soon at the recent rate.
    pub(crate) fn uses_up(&mut self, now: Instant, room: u64) -> bool {
        self.measure(now);
        bytes_in(RUNS_OUT_WITHIN, self.rate) > room
    }

    /// Begins to throttle commands, unless that has begun before.
    pub(crate) fn slow(&mut self, now: Instant) {
        if self.begun.is_none() && self.rate > 0 {
            self.begun = Some(now);
            let per_second = self.rate.saturating_mul(TAKEN_PERCENT) / 100;
            self.slowed = Some(Slowed { per_second, credit: 0, filled: now });
        }
    }

    /// Ends throttling because it has not helped.
    pub(crate) fn give_up(&mut self) {
        self.slowed = None;
    }

    /// Ends throttling because no follower needs it any more; it may begin again.
    pub(crate) fn release(&mut self) {
        (self.slowed, self.begun) = (None, None);
    }

    /// Bytes per second that are accepted, if commands are throttled.
    pub(crate) fn slowed_to(&self) -> Option<u64> {
        self.slowed.as_ref().map(|slowed| slowed.per_second)
    }
}

impl Slowed {
    fn takes(&mut self, now: Instant, bytes: u64) -> bool {
        let earned = bytes_in(now.since(self.filled), self.per_second);
        if earned > 0 {
            // Advance only by the time that the whole bytes account for: calls in quick succession
            // must not lose the remainder.
            let paid = u128::from(earned) * 1_000_000_000 / u128::from(self.per_second.max(1));
            self.filled =
                self.filled.plus(Duration::from_nanos(u64::try_from(paid).unwrap_or(u64::MAX)));
        }
        let most = i64::try_from(bytes_in(BURST, self.per_second)).unwrap_or(i64::MAX).max(1);
        self.credit =
            self.credit.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX)).min(most);
        let takes = self.credit > 0;
        if takes {
            self.credit = self.credit.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        takes
    }
}

fn bytes_in(time: Duration, per_second: u64) -> u64 {
    let bytes = u128::from(per_second) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Offers `count` commands of 100 bytes, one every `every_ms`, from `from_ms` on; returns how
    /// many are accepted.
    fn offer(throttle: &mut Throttle, from_ms: u64, every_ms: u64, count: u64) -> u64 {
        (0..count).filter(|number| throttle.takes(at(from_ms + number * every_ms), 100)).count()
            as u64
    }

    #[test]
    fn four_fifths_of_the_rate_before_are_taken_however_often_callers_come_again() {
        for every_ms in [1, 10, 100] {
            let mut throttle = Throttle::default();
            // 1,000 bytes a second.
            assert_eq!(offer(&mut throttle, 0, 100, 101), 101);
            throttle.slow(at(10_000));
            assert_eq!(throttle.slowed_to(), Some(800));
            let taken = offer(&mut throttle, 10_000, every_ms, 100_000 / every_ms);
            assert!(
                (795..=815).contains(&taken),
                "{taken} of {} every {every_ms} ms",
                100_000 / every_ms
            );
        }
    }

    #[test]
    fn a_command_larger_than_what_may_come_in_a_second_is_taken_and_paid_for_afterwards() {
        let mut throttle = Throttle::default();
        offer(&mut throttle, 0, 100, 101);
        throttle.slow(at(10_000));
        assert!(throttle.takes(at(11_000), 8_000));
        assert!(!throttle.takes(at(19_900), 1), "ten seconds' worth");
        assert!(throttle.takes(at(21_000), 1));
    }

    #[test]
    fn commands_are_slowed_once_and_for_five_minutes_until_it_is_released() {
        let mut throttle = Throttle::default();
        offer(&mut throttle, 0, 100, 101);
        throttle.slow(at(10_000));
        let over = 10_000 + SLOW_FOR.as_secs() * 1_000;
        assert!(offer(&mut throttle, over - 1_000, 1, 1_000) < 1_000);
        assert_eq!(offer(&mut throttle, over, 1, 1_000), 1_000);
        throttle.slow(at(over + 10_000));
        assert_eq!(throttle.slowed_to(), None, "its time is over");
        throttle.release();
        offer(&mut throttle, over + 10_000, 100, 101);
        throttle.slow(at(over + 20_000));
        assert!(throttle.slowed_to().is_some());
        throttle.give_up();
        assert_eq!(throttle.slowed_to(), None);
    }

    #[test]
    fn the_room_runs_out_when_it_lasts_no_longer_than_a_minute() {
        let mut throttle = Throttle::default();
        assert!(!throttle.uses_up(at(0), 0), "nothing is written");
        offer(&mut throttle, 0, 100, 101);
        assert!(throttle.uses_up(at(10_000), 59_000));
        assert!(!throttle.uses_up(at(10_000), 61_000));
    }
}
