//! Throttles long work on snapshots, and ends it when the node stops.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use d_engine_storage::snapshot::Pace;

/// The longest sleep without checking whether the node stops.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Work that is late catches up at full speed, by at most this much time.
const BURST: Duration = Duration::from_secs(1);

/// Limits work to a number of bytes per second.
pub(crate) struct Throttle<F> {
    /// 0: no limit.
    bytes_per_second: u64,
    began: Instant,
    bytes: u64,
    /// Called with the bytes done so far; returns whether to continue.
    each: F,
}

impl<F: FnMut(u64) -> bool> Throttle<F> {
    pub(crate) fn new(bytes_per_second: u64, each: F) -> Self {
        Self { bytes_per_second, began: Instant::now(), bytes: 0, each }
    }
}

impl<F: FnMut(u64) -> bool> Pace for Throttle<F> {
    fn step(&mut self, bytes: u64) -> ControlFlow<()> {
        self.bytes += bytes;
        loop {
            if !(self.each)(self.bytes) {
                return ControlFlow::Break(());
            }
            let due = self.bytes.saturating_mul(1_000).checked_div(self.bytes_per_second);
            let (due, spent) = (Duration::from_millis(due.unwrap_or(0)), self.began.elapsed());
            let early = due.saturating_sub(spent);
            if early.is_zero() {
                self.began += spent.saturating_sub(due).saturating_sub(BURST);
                return ControlFlow::Continue(());
            }
            std::thread::sleep(early.min(LOOK_EVERY));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_held_to_its_speed_and_ends_when_told() {
        let began = Instant::now();
        let mut pace = Throttle::new(1_000_000, |_| true);
        for _ in 0..20 {
            assert!(pace.step(10_000).is_continue());
        }
        assert!(
            began.elapsed() >= Duration::from_millis(200),
            "200,000 bytes at 1,000,000 bytes per second"
        );
        let mut ends = Throttle::new(1, |bytes| bytes < 100);
        assert!(ends.step(100).is_break(), "a low limit does not delay the end");
    }
}
