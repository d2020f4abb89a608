//! Limits log lines about repeated trouble: the first one at once, then one per interval.

use std::time::{Duration, Instant};

/// The interval between two log lines about the same trouble.
const EVERY: Duration = Duration::from_secs(10);

/// Decides when a line may be logged again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
    kept_back: u64,
}

impl Seldom {
    /// Returns `Some` if the line may be logged now, with the number of lines suppressed since the
    /// last one.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            self.kept_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_then_one_an_interval_with_the_number_of_the_others() {
        let (mut seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.due(now), Some(0));
        for _ in 0..7 {
            assert_eq!(seldom.due(now + EVERY / 2), None);
        }
        assert_eq!(seldom.due(now + EVERY), Some(7));
        assert_eq!(seldom.due(now + EVERY), None);
    }
}
