//! The clocks of a node. The only place that asks the system for the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the node's start, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "this is where time enters")]
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Monotonic time, for the core.
    pub(crate) fn now(&self) -> d_engine_core::Instant {
        let nanos = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        d_engine_core::Instant::from_nanos(nanos)
    }

    /// The system's instant for a time of the core.
    pub(crate) fn instant_at(&self, at: d_engine_core::Instant) -> Instant {
        self.started + Duration::from_nanos(at.as_nanos().min(u64::MAX / 4))
    }

    /// UNIX milliseconds: the source of log time. May jump; the log never goes back with it.
    #[allow(clippy::disallowed_methods, reason = "this is where time enters")]
    pub(crate) fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
