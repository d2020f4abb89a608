//! Random numbers that depend on a seed alone.

use core::time::Duration;

use crate::nanos;

/// The generator SplitMix64: the same seed gives the same numbers on every machine and in every
/// version, so a seed in a test's list keeps its meaning. It is not for secrets.
///
/// The core draws from it; node threads, the simulator and tests use the same one.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Creates the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`; zero if `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// A time from `from` (included) to `to` (excluded).
    pub(crate) fn duration_between(&mut self, from: Duration, to: Duration) -> Duration {
        let (from, to) = (nanos(from), nanos(to));
        Duration::from_nanos(from.saturating_add(self.below(to.saturating_sub(from))))
    }
}

#[cfg(test)]
mod tests {
    use super::SplitMix64;

    /// The first numbers of the reference implementation (Vigna, `splitmix64.c`).
    #[test]
    fn a_seed_keeps_its_meaning() {
        let mut numbers = SplitMix64::new(1_234_567);
        let drawn: [u64; 3] = core::array::from_fn(|_| numbers.number());
        let reference =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(drawn, reference);
        assert_eq!(numbers.below(0), 0);
    }
}
