//! Nodes that were removed and cut off at that moment, so that they do not know of it, come back to
//! the recovered cluster: for a hundred election timeouts they may not disturb it.

use crate::faults::Sometimes;
use crate::monitors::violation::{Rule, Violation};
use crate::time::{MS, SECOND};
use crate::world::World;

/// A hundred of the shortest election timeouts.
const LENGTH: u64 = 100 * 500 * MS;

/// Connects the nodes that are cut off, and watches the cluster.
///
/// # Errors
/// There was an election, or a rule was broken.
pub(crate) fn come_back(world: &mut World) -> Result<(), Violation> {
    let nodes = world.network.are_cut_off();
    if nodes.is_empty() {
        return Ok(());
    }
    // Messages that were delayed for many election timeouts are not the removed nodes' doing.
    world.run_until(world.now + 21 * SECOND)?;
    let before = (world.leader(), world.elections);
    for node in &nodes {
        world.trace.note(world.now, format_args!("node {node}, which was removed, comes back"));
        world.network.reconnect(*node);
    }
    world.counts.reached(Sometimes::RemovedNodeCameBack);
    world.run_until(world.now + LENGTH)?;
    let after = (world.leader(), world.elections);
    match before == after {
        true => Ok(()),
        false => Rule::NoDisturbance.broken(format_args!(
            "after the removed nodes {nodes:?} came back, {before:?} became {after:?}"
        )),
    }
}
