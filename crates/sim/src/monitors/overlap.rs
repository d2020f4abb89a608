//! "overlap": every quorum of a configuration that may decide something meets every quorum of every
//! other one. Found by brute force over the sets of nodes, so that the rule does not rest on the
//! algebra of majorities by which the engine argues.
//!
//! A configuration may decide if it is in force at a leader that a quorum of it has not overtaken
//! by a later term, or at a node whose log is new enough to win an election. Only nodes whose logs
//! hold the last committed membership count: others lead nobody who knows of it.

use std::collections::{BTreeMap, BTreeSet};

use d_engine_core::{Configuration, LogId, NodeId, RaftCore, RoleKind, Term};

use crate::monitors::disks::Disks;
use crate::monitors::memberships::Memberships;
use crate::monitors::violation::{Rule, Violation};
use crate::names::node_id;

/// The pairs of configurations that were found to overlap.
#[derive(Debug, Default)]
pub(crate) struct Overlap {
    meet: BTreeSet<(Sets, Sets)>,
}

/// The voters of a configuration: the incoming or only set, and the outgoing one.
type Sets = (Vec<NodeId>, Vec<NodeId>);

fn sets(configuration: &Configuration) -> Sets {
    (configuration.voters().to_vec(), configuration.outgoing().to_vec())
}

/// The terms and the last entries of all nodes.
struct Nodes<'a, 'd> {
    running: BTreeMap<u64, &'a RaftCore>,
    disks: &'d Disks,
}

impl Nodes<'_, '_> {
    fn term(&self, node: NodeId) -> Term {
        let running = self.running.get(&node.get()).map(|core| core.term());
        running.or_else(|| self.disks.term_of(node.get())).unwrap_or_default()
    }

    fn last(&self, node: NodeId) -> (u64, u64) {
        let key = |last: LogId| (last.term.get(), last.index.get());
        let running = self.running.get(&node.get()).map(|core| key(core.log().last));
        running.or_else(|| self.disks.last_id_of(node.get())).unwrap_or_default()
    }

    fn may_decide(&self, node: u64, core: &RaftCore) -> bool {
        let configuration = core.configuration();
        let own = self.last(node_id(node));
        let leads = core.role() == RoleKind::Leader
            && configuration.has_quorum(|voter| self.term(voter) <= core.term());
        leads || configuration.has_quorum(|voter| self.last(voter) <= own)
    }
}

impl Overlap {
    /// Checks all running nodes.
    ///
    /// # Errors
    /// Two configurations could decide without each other.
    pub(crate) fn check<'a>(
        &mut self,
        running: impl Iterator<Item = (u64, &'a RaftCore)>,
        disks: &Disks,
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let Some((last, _)) = memberships.committed().last() else { return Ok(()) };
        let nodes = Nodes { running: running.collect(), disks };
        let knows = |core: &RaftCore| {
            core.log().base.index >= last.index || core.term_at(last.index) == Some(last.term)
        };
        let deciding = nodes
            .running
            .iter()
            .filter(|(node, core)| knows(core) && nodes.may_decide(**node, core));
        let deciding: BTreeMap<Sets, (u64, &Configuration)> = deciding
            .map(|(node, core)| (sets(core.configuration()), (*node, core.configuration())))
            .collect();
        for (one, (node, configuration)) in &deciding {
            for (other, (at, beside)) in deciding.range(one..) {
                if self.meet.contains(&(one.clone(), other.clone())) {
                    continue;
                }
                if let Some(quorum) = lone_quorum(configuration, beside) {
                    return Rule::Overlap.broken_by(
                        *node,
                        format_args!(
                            "nodes {quorum:?} are a quorum of {configuration:?} at node {node}, \
                             and all others one of {beside:?} at node {at}"
                        ),
                    );
                }
                self.meet.insert((one.clone(), other.clone()));
            }
        }
        Ok(())
    }
}

/// A quorum of `one` that meets some quorum of `other` nowhere.
fn lone_quorum(one: &Configuration, other: &Configuration) -> Option<Vec<NodeId>> {
    let mut all = one.members();
    all.extend(other.members());
    all.sort_unstable();
    all.dedup();
    let mask = |nodes: &[NodeId]| {
        let positions = nodes.iter().filter_map(|node| all.binary_search(node).ok());
        positions.fold(0, |mask, position| mask | 1_u64 << position)
    };
    // What a majority is, is counted here, not asked of the engine.
    let decides = |set: u64, voters: u64| (set & voters).count_ones() > voters.count_ones() / 2;
    let masks = |it: &Configuration| (mask(it.voters()), mask(it.outgoing()));
    let is_quorum = |set: u64, (incoming, outgoing): (u64, u64)| {
        decides(set, incoming) && (outgoing == 0 || decides(set, outgoing))
    };
    let (one, other) = (masks(one), masks(other));
    let alone =
        (0..1_u64 << all.len().min(20)).find(|set| is_quorum(*set, one) && is_quorum(!*set, other));
    alone.map(|set| {
        let is_in = |(position, _): &(usize, &NodeId)| set >> position & 1 == 1;
        all.iter().enumerate().filter(is_in).map(|(_, node)| *node).collect()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn voters(numbers: &[u64]) -> Configuration {
        Configuration::new(numbers.iter().map(|number| NodeId::new(*number).unwrap()), None)
    }

    #[test]
    fn quorums_of_neighbours_meet_and_those_of_others_need_not() {
        let (old, new) = (voters(&[1, 2, 3]), voters(&[1, 4, 5]));
        let joint = old.joint_with(&new);
        assert_eq!(lone_quorum(&old, &joint), None);
        assert_eq!(lone_quorum(&joint, &new), None);
        assert_eq!(lone_quorum(&joint, &joint), None);
        assert!(lone_quorum(&old, &new).is_some());
        assert!(lone_quorum(&old, &voters(&[1, 2, 3, 4])).is_none());
        assert!(lone_quorum(&voters(&[1]), &voters(&[1, 2])).is_none());
    }
}
