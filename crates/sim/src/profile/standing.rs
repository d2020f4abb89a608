//! Commands that halt state machines: how often they come, and who can apply them. Drawn from a
//! separate stream.

use crate::prng::Prng;
use crate::time::SECOND;

/// The part of a seed's profile about commands that halt state machines.
#[derive(Clone, Copy, Debug)]
pub struct StandingProfile {
    /// Mean time between such commands; zero for none.
    pub bad_every: u64,
    /// Chance, in millionths, that a newer program can apply such a command.
    pub mendable: u64,
    /// Chance, in millionths, that a node starts with the newer program.
    pub newer: u64,
}

impl StandingProfile {
    /// No such commands.
    #[must_use]
    pub fn none() -> Self {
        Self { bad_every: 0, mendable: 0, newer: 0 }
    }

    /// Draws a seed's profile.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "standing");
        let is_on = prng.chance(200_000);
        let bad_every = if is_on { prng.between(4, 20) * SECOND } else { 0 };
        Self { bad_every, mendable: prng.between(0, 600_000), newer: prng.between(0, 1_000_000) }
    }
}
