//! Proof that acknowledged entries are lost.

use d_engine_client::{Client, NodeRole, NodeStatus};

use super::answers::{Answers, statuses_by_node};

/// Returns one sentence for each proof that acknowledged entries are lost: reports of nodes, and
/// logs that contradict a commit index.
pub(super) async fn losses(client: &Client, answers: &Answers) -> Vec<String> {
    let mut found = Vec::new();
    for status in statuses_by_node(answers).into_values() {
        found.extend(
            status.losses.iter().map(|loss| format!("reported by node {}: {loss}", status.node)),
        );
    }
    let others: Vec<Place> = statuses_by_node(answers).into_values().map(Place::of).collect();
    let answered =
        answers.iter().filter_map(|(address, answer)| Some((address, answer.as_ref().ok()?)));
    let leader = answered.filter(|(_, status)| leads(status)).max_by_key(|(_, status)| status.term);
    if let Some((address, leader)) = leader
        && !beyond(Place::of(leader), &others).is_empty()
        // Request its status again, after the others': its log may have grown meanwhile.
        && let Some(leader) = client.status(address).await.ok().filter(leads)
    {
        found.extend(beyond(Place::of(&leader), &others));
    }
    found
}

fn leads(status: &NodeStatus) -> bool {
    status.stopped.is_none() && status.role == NodeRole::Leader
}

/// Term, commit index and last log index of a node.
#[derive(Clone, Copy, Debug)]
struct Place {
    node: u64,
    term: u64,
    commit_index: u64,
    last_index: u64,
}

impl Place {
    fn of(status: &NodeStatus) -> Self {
        let NodeStatus { node, term, commit_index, last_index, .. } = *status;
        Self { node, term, commit_index, last_index }
    }
}

/// Returns a sentence for each node with a commit index after the end of the leader's log. A
/// leader's log contains every entry that was committed in its term or before (Raft paper, figure
/// 3: leader completeness), so this proves a loss, provided that the leader's status was read after
/// the others'.
fn beyond(leader: Place, others: &[Place]) -> Vec<String> {
    let others = others
        .iter()
        .filter(|other| other.term <= leader.term && other.commit_index > leader.last_index);
    let sentence = |other: &Place| {
        format!(
            "entries up to {} are committed on node {}, but the log of node {}, the leader of term \
             {}, ends at {}: a node has lost a part of its log; stop writing and compare the \
             nodes' data directories",
            other.commit_index, other.node, leader.node, leader.term, leader.last_index
        )
    };
    others.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_beyond_the_leaders_log_is_lost_unless_a_later_leader_may_have_committed_it()
     {
        let place =
            |node, term, commit_index, last_index| Place { node, term, commit_index, last_index };
        let leader = place(1, 4, 7, 7);
        let proof = beyond(leader, &[leader, place(2, 4, 7, 9), place(3, 4, 9, 9)]);
        assert_eq!(proof.len(), 1, "{proof:?}");
        assert!(
            proof[0].starts_with("entries up to 9 are committed on node 3, but the log of node 1"),
            "{proof:?}"
        );
        assert!(beyond(leader, &[place(3, 5, 9, 9)]).is_empty());
    }
}
