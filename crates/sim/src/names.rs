//! What all nodes of a run have in common: cluster, group, directories, and the form of their ids.

use d_engine_core::{GroupId, NodeId};

/// Where a node keeps its snapshots.
pub(crate) const SNAPSHOT_DIR: &str = "/data/snapshots";
/// The cluster of all simulated nodes.
pub(crate) const CLUSTER: [u8; 16] = [7; 16];
/// The group of all simulated nodes.
pub(crate) const GROUP: GroupId = GroupId::FIRST;

/// Converts the id to the engine's type.
///
/// # Panics
/// Panics for the reserved id zero, which the simulator never uses.
#[must_use]
pub(crate) fn node_id(id: u64) -> NodeId {
    NodeId::new(id).unwrap_or_else(|| unreachable!("simulated nodes are numbered from 1"))
}
