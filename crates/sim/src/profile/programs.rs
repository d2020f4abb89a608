//! Programs of several versions: which commands each decodes, and when a node is started with
//! another one. Drawn from a separate stream.

use crate::prng::Prng;
use crate::time::SECOND;

/// The newest program decodes commands up to this version.
pub(crate) const NEWEST: u32 = 2;

/// How the nodes of a run use programs of several versions. Times are in simulated nanoseconds,
/// chances in millionths.
#[derive(Clone, Debug)]
pub struct ProgramProfile {
    /// Mean time between restarts of a node with another program. Zero: all nodes run the newest
    /// program, and all commands have version 0.
    pub change_every: u64,
    /// Chance that a restarted node gets an older program.
    pub downgrade: u64,
    /// Chance that a restarted node gets a newer program. It takes precedence over an older one.
    pub upgrade: u64,
}

impl ProgramProfile {
    /// Draws the part of a seed's profile that concerns programs.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "programs");
        let mixed = prng.chance(300_000);
        let change_every = if mixed { prng.between(SECOND / 2, 5 * SECOND) } else { 0 };
        // In half of these runs no node is downgraded, as careful operators do it.
        let downgrade = if prng.chance(500_000) { prng.between(100_000, 600_000) } else { 0 };
        Self { change_every, downgrade, upgrade: prng.between(200_000, 800_000) }
    }

    /// The profile in which all nodes run the newest program.
    #[must_use]
    pub const fn none() -> Self {
        Self { change_every: 0, downgrade: 0, upgrade: 0 }
    }

    /// Whether the run has programs of several versions.
    #[must_use]
    pub fn are_mixed(&self) -> bool {
        self.change_every > 0
    }
}
