//! Operations at a fixed rate: when each should begin, and what its latency is.

use std::time::Duration;

/// When operations should begin: the n-th, counted from 0, at n / rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    per_second: u32,
}

/// What one operation took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timing {
    /// From when it should have begun to its answer.
    pub(super) latency: Duration,
    /// How much later than it should have it began.
    pub(super) behind: Duration,
}

impl Pace {
    /// So many operations a second; at least 1.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1) }
    }

    /// When operation `number` should begin, after the begin of everything.
    pub(super) fn intended(self, number: u64) -> Duration {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many should have begun by `elapsed`.
    pub(super) fn due(self, elapsed: Duration) -> u64 {
        let whole = elapsed.as_nanos() * u128::from(self.per_second) / 1_000_000_000;
        u64::try_from(whole).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Timing {
    /// Of an operation that should have begun at `intended`, began at `began` and was answered at `ended`. The
    /// latency is counted from the intention: an operation that could not begin because others were stuck has
    /// waited all the same.
    pub(super) fn of(intended: Duration, began: Duration, ended: Duration) -> Self {
        Self { latency: ended.saturating_sub(intended), behind: began.saturating_sub(intended) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One caller at 100/s for ten seconds; each answer takes 1 ms, but the one at second 2 takes a whole second.
    fn stalled(number_to_intended: impl Fn(u64, Duration) -> Duration) -> Vec<Timing> {
        let pace = Pace::new(100);
        let mut free_at = Duration::ZERO;
        let mut timings = Vec::new();
        for number in 0..1_000 {
            let began = pace.intended(number).max(free_at);
            free_at = began + if number == 200 { 1_000 * MS } else { MS };
            timings.push(Timing::of(number_to_intended(number, began), began, free_at));
        }
        timings
    }

    #[test]
    fn a_stall_counts_in_every_operation_that_it_delayed() {
        let slow = |timings: &[Timing]| timings.iter().filter(|timing| timing.latency > 100 * MS).count();
        // From the intention: the backlog is worked off in 1 ms each where one comes every 10 ms, so the wait gets
        // shorter by 9 ms from one operation to the next.
        let intended = stalled(|number, _| Pace::new(100).intended(number));
        assert_eq!(slow(&intended), 100);
        assert_eq!(intended.iter().map(|timing| timing.behind).max(), Some(990 * MS));
        assert_eq!(intended.last().map(|timing| timing.behind), Some(Duration::ZERO));
        // Counted from the real begin, it would be one.
        assert_eq!(slow(&stalled(|_, began| began)), 1);
    }

    #[test]
    fn the_number_due_and_the_times_intended_agree() {
        for per_second in [1, 3, 7, 1_000, 33_333, 10_000_000] {
            let pace = Pace::new(per_second);
            assert_eq!((pace.intended(0), pace.due(Duration::ZERO)), (Duration::ZERO, 1));
            for number in [1, 2, 10, 99_999] {
                let at = pace.intended(number);
                assert!(pace.due(at + Duration::from_nanos(1)) > number, "{per_second} {number}");
                assert!(pace.due(at - Duration::from_nanos(1)) <= number, "{per_second} {number}");
            }
        }
    }
}
