//! The simulator's random numbers. Each component draws from its own stream, derived from the seed
//! and the component's name, so that a new fault in one component does not change the numbers of
//! the others.

use d_engine_core::SplitMix64;

/// A stream of numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prng(SplitMix64);

impl Prng {
    /// Creates the stream `name` of the run with this seed.
    #[must_use]
    pub fn stream(seed: u64, name: &str) -> Self {
        // FNV-1a over the name keeps streams apart; the mixing in `next` does the rest.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut prng = Self(SplitMix64::new(seed ^ hash));
        prng.next();
        prng
    }

    /// Returns the next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0.number()
    }

    /// Returns a number below `bound`; zero, and draws nothing, if `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// Returns a number from `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from.saturating_add(self.below(to.saturating_sub(from).saturating_add(1)))
    }

    /// Returns true with a probability of `per_million` in a million.
    pub fn chance(&mut self, per_million: u64) -> bool {
        self.below(1_000_000) < per_million
    }

    /// Returns a roughly exponential number with this mean: many small ones and a long tail.
    pub fn tail(&mut self, mean: u64) -> u64 {
        // Only integer arithmetic: floating-point results differ between machines. The number of
        // leading zeros of a random word is geometrically distributed; scaling a uniform number by
        // it gives the tail.
        let doublings = u64::from(self.next().leading_zeros()).min(6);
        self.below(mean.saturating_mul(doublings.saturating_add(1)).saturating_add(1))
    }

    /// Returns one of `items`, or `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let index = usize::try_from(self.below(items.len() as u64)).ok()?;
        items.get(index)
    }
}
