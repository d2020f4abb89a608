//! The clocks of a node. The replica and its core know no other time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the node's start, and the wall clock.
///
/// On Linux the monotonic clock also counts the time while the machine is suspended
/// (`CLOCK_BOOTTIME`): the lease of a suspended leader must have expired when it wakes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Duration,
}

/// Returns a time that never goes back, counted from an arbitrary point in the past.
#[cfg(target_os = "linux")]
fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns a time that never goes back, counted from an arbitrary point in the past. Whether it
/// counts while the machine is suspended depends on the system.
#[cfg(not(target_os = "linux"))]
#[allow(clippy::disallowed_methods, reason = "this is where time enters")]
fn monotonic() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: monotonic() }
    }

    /// Returns both clocks, for the replica.
    pub(crate) fn time(&self) -> d_engine_core::Now {
        d_engine_core::Now { monotonic: self.now(), wall_ms: self.wall_ms() }
    }

    /// Returns the monotonic time, for the core.
    pub(crate) fn now(&self) -> d_engine_core::Instant {
        d_engine_core::Instant::ZERO.plus(monotonic().saturating_sub(self.started))
    }

    /// Converts a time of the core into the system's instant.
    #[allow(clippy::disallowed_methods, reason = "this is where time enters")]
    pub(crate) fn instant_at(&self, at: d_engine_core::Instant) -> Instant {
        Instant::now() + at.since(self.now()).min(Duration::from_nanos(u64::MAX / 4))
    }

    /// Returns the wall clock in UNIX milliseconds, the source of log time. It may jump; log time
    /// never goes back.
    #[allow(clippy::disallowed_methods, reason = "this is where time enters")]
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
