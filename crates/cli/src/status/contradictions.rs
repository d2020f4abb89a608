//! Statements of nodes that cannot all be true of one cluster.

use std::collections::{BTreeMap, BTreeSet};

use d_engine_client::{ConfigId, NodeRole, NodeStatus};

use super::answers::Answers;
use crate::json::hex;

/// Returns one sentence per contradiction.
pub(super) fn contradictions(answers: &Answers) -> Vec<String> {
    let says: Vec<Says> = answers.values().flatten().map(Says::of).collect();
    let mut found = Vec::new();
    let clusters = by(&says, |says| Some(says.cluster.clone()));
    if clusters.len() > 1 {
        found.push(format!("the nodes belong to different clusters: {}", list(&clusters)));
    }
    let members = by(&newest(&says), |says| says.members.clone());
    if members.len() > 1 {
        found.push(format!("the nodes have different member lists: {}", list(&members)));
    }
    let mut leaders: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for one in &says {
        if let Some(term) = one.leads_in {
            leaders.entry(term).or_default().insert(one.node);
        }
    }
    for (term, nodes) in leaders.into_iter().filter(|(_, nodes)| nodes.len() > 1) {
        let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
        found.push(format!("nodes {} all lead in term {term}", nodes.join(" and ")));
    }
    found
}

/// What one node states.
#[derive(Clone)]
struct Says {
    node: u64,
    cluster: String,
    /// `None` for a node that has stopped: it names no members.
    members: Option<String>,
    /// The configuration that has these members.
    config: ConfigId,
    leader: Option<u64>,
    leads_in: Option<u64>,
}

impl Says {
    fn of(status: &NodeStatus) -> Self {
        let ids: Vec<String> =
            status.members.iter().map(|member| member.node.to_string()).collect();
        let works = status.stopped.is_none();
        Self {
            node: status.node,
            cluster: hex(&status.cluster_id),
            members: Some(ids.join(", ")).filter(|ids| works && !ids.is_empty()),
            config: status.config,
            leader: status.leader,
            leads_in: (works && status.role == NodeRole::Leader).then_some(status.term),
        }
    }
}

/// The nodes with the newest configuration behind each leader: a node that follows the same leader
/// and has an older one only lags.
fn newest(says: &[Says]) -> Vec<Says> {
    let newest = |of: &Says| {
        let behind = says.iter().filter(|one| one.leader == of.leader);
        behind.map(|one| one.config).max()
    };
    let is_newest = |one: &&Says| one.leader.is_some() && Some(one.config) == newest(one);
    says.iter().filter(is_newest).cloned().collect()
}

/// Groups the nodes by their statement.
fn by(says: &[Says], what: impl Fn(&Says) -> Option<String>) -> BTreeMap<String, BTreeSet<u64>> {
    let mut nodes: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for one in says {
        if let Some(said) = what(one) {
            nodes.entry(said).or_default().insert(one.node);
        }
    }
    nodes
}

fn list(nodes: &BTreeMap<String, BTreeSet<u64>>) -> String {
    let told = nodes
        .iter()
        .flat_map(|(said, nodes)| nodes.iter().map(move |node| format!("node {node}: {said}")));
    told.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(node: u64, cluster: &str, members: &str, leads_in: Option<u64>) -> Says {
        Says {
            node,
            cluster: cluster.to_owned(),
            members: Some(members.to_owned()),
            config: ConfigId::default(),
            leader: Some(1),
            leads_in,
        }
    }

    #[test]
    fn nodes_are_listed_by_what_they_say() {
        let all =
            [says(1, "aa", "1", None), says(2, "aa", "1, 2", None), says(3, "bb", "1, 2", None)];
        let clusters = by(&all, |one| Some(one.cluster.clone()));
        assert_eq!(list(&clusters), "node 1: aa; node 2: aa; node 3: bb");
        assert_eq!(by(&all, |one| one.members.clone()).len(), 2);
        assert!(by(&[], |one| one.members.clone()).is_empty());
    }
}
