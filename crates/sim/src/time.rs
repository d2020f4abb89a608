//! Units of simulated time.

/// One millisecond, in simulated nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// One second, in simulated nanoseconds.
pub(crate) const SECOND: u64 = 1_000 * MS;
/// The offset of a correct wall clock; wrong clocks may be behind or ahead of it.
pub(crate) const RIGHT_TIME_MS: u64 = 86_400_000;
