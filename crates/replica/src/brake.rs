//! Slower commands for a while, so that a follower catches up before the room for its log is used up.

use d_engine_core::{Duration, Instant};

/// Over so long the rate of commands is measured.
const WINDOW: Duration = Duration::from_millis(5_000);
/// For so long commands are slowed at most, for one follower after the other.
pub(crate) const SLOW_FOR: Duration = Duration::from_millis(300_000);
/// The room is taken to run out when it lasts no longer than this at the rate of late.
const RUNS_OUT_WITHIN: Duration = Duration::from_millis(60_000);
/// What is taken of the rate before, in percent.
const TAKEN_PERCENT: u64 = 80;
/// So much may come at once, so that callers who come again after a pause lose nothing by it.
const BURST: Duration = Duration::from_millis(1_000);

/// Measures what callers write, and takes in less of it.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    /// Since when the bytes are counted, and how many there were.
    window: (Instant, u64),
    /// Bytes a second in the window before.
    rate: u64,
    slowed: Option<Slowed>,
    /// When it has begun. Once the time is over it is not done again before it is released.
    begun: Option<Instant>,
}

#[derive(Debug)]
struct Slowed {
    per_second: u64,
    /// Bytes that may be taken in; less than none after a large command.
    credit: i64,
    filled: Instant,
}

impl Brake {
    /// Whether a command of `bytes` is taken in.
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
            let rate = u128::from(self.window.1) * 1_000_000_000 / u128::from(length.as_nanos()).max(1);
            self.rate = u64::try_from(rate).unwrap_or(u64::MAX);
            self.window = (now, 0);
        }
    }

    /// Whether `room` bytes are used up soon at the rate of late.
    pub(crate) fn uses_up(&mut self, now: Instant, room: u64) -> bool {
        self.measure(now);
        bytes_in(RUNS_OUT_WITHIN, self.rate) > room
    }

    /// Commands are slowed from now on, unless they are or were.
    pub(crate) fn slow(&mut self, now: Instant) {
        if self.begun.is_none() && self.rate > 0 {
            self.begun = Some(now);
            let per_second = self.rate.saturating_mul(TAKEN_PERCENT) / 100;
            self.slowed = Some(Slowed { per_second, credit: 0, filled: now });
        }
    }

    /// It has not helped.
    pub(crate) fn give_up(&mut self) {
        self.slowed = None;
    }

    /// Nobody needs it any more.
    pub(crate) fn release(&mut self) {
        (self.slowed, self.begun) = (None, None);
    }

    /// Bytes a second that are taken in, if commands are slowed.
    pub(crate) fn slowed_to(&self) -> Option<u64> {
        self.slowed.as_ref().map(|slowed| slowed.per_second)
    }
}

impl Slowed {
    fn takes(&mut self, now: Instant, bytes: u64) -> bool {
        let earned = bytes_in(now.since(self.filled), self.per_second);
        if earned > 0 {
            // No further than was paid for: calls that come close together must not lose the rest.
            let paid = u128::from(earned) * 1_000_000_000 / u128::from(self.per_second.max(1));
            self.filled = self.filled.plus(Duration::from_nanos(u64::try_from(paid).unwrap_or(u64::MAX)));
        }
        let most = i64::try_from(bytes_in(BURST, self.per_second)).unwrap_or(i64::MAX).max(1);
        self.credit = self.credit.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX)).min(most);
        let takes = self.credit > 0;
        if takes {
            self.credit = self.credit.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        takes
    }
}

fn bytes_in(time: Duration, per_second: u64) -> u64 {
    let bytes = u128::from(per_second) * u128::from(time.as_nanos()) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Offers `count` commands of 100 bytes, one every `every_ms`, from `from_ms` on; returns how many are taken.
    fn offer(brake: &mut Brake, from_ms: u64, every_ms: u64, count: u64) -> u64 {
        (0..count).filter(|number| brake.takes(at(from_ms + number * every_ms), 100)).count() as u64
    }

    #[test]
    fn four_fifths_of_the_rate_before_are_taken_however_often_callers_come_again() {
        for every_ms in [1, 10, 100] {
            let mut brake = Brake::default();
            // 1,000 bytes a second.
            assert_eq!(offer(&mut brake, 0, 100, 101), 101);
            brake.slow(at(10_000));
            assert_eq!(brake.slowed_to(), Some(800));
            let taken = offer(&mut brake, 10_000, every_ms, 100_000 / every_ms);
            assert!((795..=815).contains(&taken), "{taken} of {} every {every_ms} ms", 100_000 / every_ms);
        }
    }

    #[test]
    fn a_command_larger_than_what_may_come_in_a_second_is_taken_and_paid_for_afterwards() {
        let mut brake = Brake::default();
        offer(&mut brake, 0, 100, 101);
        brake.slow(at(10_000));
        assert!(brake.takes(at(11_000), 8_000));
        assert!(!brake.takes(at(19_900), 1), "ten seconds' worth");
        assert!(brake.takes(at(21_000), 1));
    }

    #[test]
    fn commands_are_slowed_once_and_for_five_minutes_until_it_is_released() {
        let mut brake = Brake::default();
        offer(&mut brake, 0, 100, 101);
        brake.slow(at(10_000));
        let over = 10_000 + SLOW_FOR.as_millis();
        assert!(offer(&mut brake, over - 1_000, 1, 1_000) < 1_000);
        assert_eq!(offer(&mut brake, over, 1, 1_000), 1_000);
        brake.slow(at(over + 10_000));
        assert_eq!(brake.slowed_to(), None, "it has had its time");
        brake.release();
        offer(&mut brake, over + 10_000, 100, 101);
        brake.slow(at(over + 20_000));
        assert!(brake.slowed_to().is_some());
        brake.give_up();
        assert_eq!(brake.slowed_to(), None);
    }

    #[test]
    fn the_room_runs_out_when_it_lasts_no_longer_than_a_minute() {
        let mut brake = Brake::default();
        assert!(!brake.uses_up(at(0), 0), "nothing is written");
        offer(&mut brake, 0, 100, 101);
        assert!(brake.uses_up(at(10_000), 59_000));
        assert!(!brake.uses_up(at(10_000), 61_000));
    }
}
