//! Which members of a cluster still answer. Asked by tools before a cluster is continued by force.

use d_engine_core::{ClusterId, GroupId, Incarnation, NodeId};
use tokio::task::JoinSet;

use crate::transport;

/// Asks at the peer address of each node whether that node of the cluster runs there, all at the
/// same time, for at most 5 seconds. Returns them in the same order: `Ok` for those that answer,
/// and the reason in words for the others. `own` is the directory in whose name it is asked.
///
/// What listens at the addresses learns the cluster's id, so name only addresses of its members. A
/// node that does not answer may run all the same: the network between may be cut.
pub async fn answering_members(
    cluster: ClusterId,
    group: GroupId,
    own: Incarnation,
    nodes: Vec<(NodeId, String)>,
) -> Vec<(NodeId, Result<(), String>)> {
    let mut asked = JoinSet::new();
    for (at, (node, address)) in nodes.into_iter().enumerate() {
        asked.spawn(async move {
            let probed = transport::probe(&address, cluster, group, own).await;
            let answer = probed.and_then(|found| match found.node {
                Some(found_node) if found.cluster == Some(cluster) && found_node == node => Ok(()),
                Some(other) => Err(format!("node {other} answers there")),
                None => Err("a node that has not joined answers there".to_owned()),
            });
            (at, node, answer)
        });
    }
    let mut answers = Vec::new();
    while let Some(ended) = asked.join_next().await {
        answers.extend(ended);
    }
    answers.sort_by_key(|(at, ..)| *at);
    answers.into_iter().map(|(_, node, answer)| (node, answer)).collect()
}
