//! The core's random numbers: SplitMix64, seeded once and part of the state, so that a run is a
//! function of its inputs and its seed.

use core::time::Duration;

use crate::nanos;

#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Prng(u64);

impl Prng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A time from `from` (included) to `to` (excluded).
    pub(crate) fn duration_between(&mut self, from: Duration, to: Duration) -> Duration {
        let (from, to) = (nanos(from), nanos(to));
        let spread = to.saturating_sub(from).max(1);
        Duration::from_nanos(from.saturating_add(self.number() % spread))
    }
}
