//! How a cluster's members change in a run.

use d_engine_storage::Admission;

use crate::prng::Prng;
use crate::time::SECOND;

/// Changes of the membership.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemberProfile {
    /// The voters at the cluster's birth, nodes 1 to this; zero stands for all nodes.
    pub at_birth: u64,
    /// The most nodes that there may ever be.
    pub nodes_max: u64,
    /// Mean time between two requests to change the members; zero for none.
    pub change_every: u64,
    /// Which nodes may join.
    pub admission: Admission,
}

impl MemberProfile {
    /// Whether the members change in the run of this seed: in half of all.
    pub(crate) fn changes_in(seed: u64) -> bool {
        Prng::stream(seed, "whether members change").chance(500_000)
    }

    /// The highest id that a node may have: a node that joins may skip one.
    pub(crate) fn ids_max(&self) -> u64 {
        2 * self.nodes_max
    }

    /// Draws a cluster that changes.
    pub(crate) fn changing(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "members");
        let at_birth = match prng.below(10) {
            0..3 => 1,
            3 => 2,
            4..8 => 3,
            _ => 5,
        };
        let nodes_max = at_birth + prng.between(2, 5);
        let admission = match Prng::stream(seed, "who may join").chance(300_000) {
            true => Admission::Invited,
            false => Admission::Open,
        };
        let change_every = prng.between(SECOND / 2, 6 * SECOND);
        Self { at_birth, nodes_max, change_every, admission }
    }
}
