//! The clocks of a node. The only place that asks the system for the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the node's start, and the wall clock.
///
/// On Linux the monotonic clock is the one that goes on while the machine is suspended: a leader that
/// slept must find its lease over when it wakes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Duration,
}

/// Time that never goes back, from some point in the past.
#[cfg(target_os = "linux")]
fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Time that never goes back, from some point in the past. Whether it goes on while the machine is
/// suspended depends on the system.
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

    /// Monotonic time, for the core.
    pub(crate) fn now(&self) -> d_engine_core::Instant {
        let nanos = u64::try_from(monotonic().saturating_sub(self.started).as_nanos()).unwrap_or(u64::MAX);
        d_engine_core::Instant::from_nanos(nanos)
    }

    /// The system's instant for a time of the core.
    #[allow(clippy::disallowed_methods, reason = "this is where time enters")]
    pub(crate) fn instant_at(&self, at: d_engine_core::Instant) -> Instant {
        let from_now = at.since(self.now()).as_nanos().min(u64::MAX / 4);
        Instant::now() + Duration::from_nanos(from_now)
    }

    /// UNIX milliseconds: the source of log time. May jump; the log never goes back with it.
    #[allow(clippy::disallowed_methods, reason = "this is where time enters")]
    pub(crate) fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
