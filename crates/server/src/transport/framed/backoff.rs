//! The waits before dialling again.

use std::time::Duration;

use d_engine_core::SplitMix64;

/// Doubling waits with jitter, so that nodes that lost one peer at the same moment do not all dial
/// again at the same moment.
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: SplitMix64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, entropy: u64) -> Self {
        Self { min, max, next: min, random: SplitMix64::new(entropy) }
    }

    /// Starts again from the shortest wait, after a connection was open.
    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    /// Continues with the longest wait, after a refusal that is likely to be repeated.
    pub(super) fn raise(&mut self) {
        self.next = self.max;
    }

    /// Returns the next wait: between half of the current step and all of it.
    pub(super) fn wait(&mut self) -> Duration {
        let step = self.next.min(self.max);
        self.next = step.saturating_mul(2).min(self.max);
        let half = step / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.random.below(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_millis(100);

    #[test]
    fn waits_double_up_to_the_longest_and_start_again_after_a_connection() {
        let mut backoff = Backoff::new(MIN, MAX, 7);
        for step in [20, 40, 80, 100, 100] {
            let wait = backoff.wait();
            let step = Duration::from_millis(step);
            assert!(step / 2 <= wait && wait <= step, "{wait:?} in a step of {step:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= MIN);
        backoff.raise();
        assert!(backoff.wait() >= MAX / 2);
    }

    #[test]
    fn nodes_with_different_entropy_wait_differently() {
        let waits = |entropy| {
            let mut backoff = Backoff::new(MIN, MAX, entropy);
            [backoff.wait(), backoff.wait(), backoff.wait()]
        };
        assert_ne!(waits(1), waits(2));
        assert_eq!(waits(1), waits(1));
    }
}
