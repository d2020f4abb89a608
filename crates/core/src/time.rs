//! Time, supplied by the driver; the core reads no clock itself. Monotonic time is a counter of
//! nanoseconds, unrelated to any wall clock.

use core::fmt;
use core::time::Duration;

/// A point in monotonic time, in nanoseconds since an origin that only the driver knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

/// The time at which an input arrives, as the driver reads its two clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// The monotonic clock: every timeout, deadline and lease is measured with it.
    pub monotonic: Instant,
    /// The wall clock in UNIX milliseconds: the source of log time, and used for nothing else.
    pub wall_ms: u64,
}

impl Instant {
    /// The driver's origin.
    pub const ZERO: Self = Self(0);

    /// A point `nanos` after the driver's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the driver's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This point plus `by`; saturates.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }

    /// The time from `earlier` to this point; zero when `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A length of time in nanoseconds; saturates after 584 years.
#[must_use]
pub const fn nanos(length: Duration) -> u64 {
    let nanos = length.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
