//! Operations at a fixed rate: their intended times and their latency.

use std::time::Duration;

/// The intended times: operation n, counted from 0, begins at n / rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    per_second: u32,
}

/// The timing of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timing {
    /// From the intended time to the response.
    pub(super) latency: Duration,
    /// How much later than intended it began.
    pub(super) behind: Duration,
}

impl Pace {
    /// `per_second` operations a second; at least 1.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1) }
    }

    /// Returns when operation `number` should begin, relative to the start of the run.
    pub(super) fn intended(self, number: u64) -> Duration {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Returns how many operations should have begun by `elapsed`.
    pub(super) fn due(self, elapsed: Duration) -> u64 {
        let whole = elapsed.as_nanos() * u128::from(self.per_second) / 1_000_000_000;
        u64::try_from(whole).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Timing {
    /// The timing of an operation that should have begun at `intended`, began at `began` and was
    /// answered at `ended`. Latency counts from the intended time, because an operation that could
    /// not begin while others were stuck has waited too (no coordinated omission).
    pub(super) fn of(intended: Duration, began: Duration, ended: Duration) -> Self {
        Self { latency: ended.saturating_sub(intended), behind: began.saturating_sub(intended) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One caller at 100/s for ten seconds. Each response takes 1 ms, except the one at second 2,
    /// which takes a whole second.
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
        let slow =
            |timings: &[Timing]| timings.iter().filter(|timing| timing.latency > 100 * MS).count();
        // From the intended time: one operation is due every 10 ms and takes 1 ms, so the delay
        // shrinks by 9 ms from one operation to the next.
        let intended = stalled(|number, _| Pace::new(100).intended(number));
        assert_eq!(slow(&intended), 100);
        assert_eq!(intended.iter().map(|timing| timing.behind).max(), Some(990 * MS));
        assert_eq!(intended.last().map(|timing| timing.behind), Some(Duration::ZERO));
        // Measured from the actual start, only one operation would be slow.
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
