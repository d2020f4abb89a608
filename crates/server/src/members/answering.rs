//! Which members of a cluster still answer. Asked by tools before a cluster is continued by force.

use d_engine_core::{ClusterId, GroupId, Incarnation, NodeId};
use tokio::task::JoinSet;

use crate::transport;

/// What listens at the address of a member.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MemberAnswer {
    /// This node of the same cluster. It may be another one than the member, which it has replaced,
    /// or at whose address it is now.
    Member(NodeId),
    /// A node of a cluster that continues this one by force.
    Continues,
    /// Nothing of this cluster, for this reason.
    Silent(String),
}

/// Asks at the peer address of each node whether a node of the cluster runs there, all at the same
/// time, for at most 5 seconds. Returns them in the same order. `own` is the directory in whose
/// name it is asked.
///
/// What listens at the addresses learns the cluster's id, so name only addresses of its members. A
/// node that does not answer may run all the same: the network between may be cut.
pub async fn answering_members(
    cluster: ClusterId,
    group: GroupId,
    own: Incarnation,
    nodes: Vec<(NodeId, String)>,
) -> Vec<(NodeId, MemberAnswer)> {
    let mut asked = JoinSet::new();
    for (at, (node, address)) in nodes.into_iter().enumerate() {
        asked.spawn(async move {
            let probed = transport::probe(&address, cluster, group, own).await;
            let silent = |why: &str| MemberAnswer::Silent(why.to_owned());
            let answer = match probed {
                Err(why) => MemberAnswer::Silent(why),
                Ok(found) if found.continues => MemberAnswer::Continues,
                Ok(found) => match found.node {
                    Some(node) if found.cluster == Some(cluster) => MemberAnswer::Member(node),
                    Some(_) => silent("a node of another cluster answers there"),
                    None => silent("a node that has not joined answers there"),
                },
            };
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
