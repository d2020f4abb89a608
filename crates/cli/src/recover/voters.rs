//! Who of the old voters still answers.

use d_engine_offline::recover::{Configuration, Holdings, NodeId};
use d_engine_server::{MemberAnswer, answering_members};

use crate::exit::{Failure, note, say};

/// The answers of the other voters.
#[derive(Default)]
struct Answers {
    /// Each with its address, and why it counts as silent.
    silent: Vec<(NodeId, String, String)>,
    answer: Vec<(NodeId, String)>,
    /// Where a cluster answers that was made from this one already.
    continues: Option<(NodeId, String)>,
}

/// Asks every other voter of the newest configuration at its peer address.
///
/// # Errors
/// Nodes answer that have a quorum, with this node or without it: the cluster is not lost. Or one
/// of a cluster that was made from it already.
pub(super) fn check(holdings: &Holdings) -> Result<(), Failure> {
    let (own, configuration) = (holdings.owner.node, holdings.members.configuration());
    let mut answers = Answers::default();
    for (node, address, answer) in ask(holdings) {
        answers.add(&configuration, own, node, address, answer);
    }
    if let Some(refusal) = answers.refusal(&configuration, own) {
        return Err(Failure::failed(refusal));
    }
    let silent = answers.silent.iter();
    let silent = list(silent.map(|(node, address, why)| (*node, format!("{address}, {why}"))));
    if !answers.silent.is_empty() {
        say(format_args!("asked, without an answer: {silent}"));
    }
    if !answers.answer.is_empty() {
        note(format_args!(
            "{} of the old cluster still runs; without a majority it answers no writes. Stop it, \
             empty its directory, and let it join the new cluster",
            answers.names()
        ));
    }
    Ok(())
}

impl Answers {
    fn add(
        &mut self,
        configuration: &Configuration,
        own: NodeId,
        node: NodeId,
        address: String,
        answer: MemberAnswer,
    ) {
        match answer {
            // One that is at another voter's address counts as itself, and once; one that is no
            // voter here may have replaced the voter since, and counts in its place.
            MemberAnswer::Member(found) => {
                let counts_as = if configuration.is_voter(found) { found } else { node };
                if counts_as != own && !self.answer.iter().any(|(it, _)| *it == counts_as) {
                    self.answer.push((counts_as, address));
                }
            }
            MemberAnswer::Continues => self.continues = Some((node, address)),
            MemberAnswer::Silent(why) => self.silent.push((node, address, why)),
            _ => self.silent.push((node, address, "it answers something else".to_owned())),
        }
    }

    /// Why nothing must be recovered.
    fn refusal(&self, configuration: &Configuration, own: NodeId) -> Option<String> {
        if let Some((node, address)) = &self.continues {
            return Some(format!(
                "at the address of node {node} ({address}) a cluster answers that was made from \
                 this one already. Two of them never become one, and nothing was changed; empty \
                 this directory, and let its node join that cluster"
            ));
        }
        let answers = |node: NodeId| self.answer.iter().any(|(it, _)| *it == node);
        // While it is joint, nobody knows which of the sets decides: the joint entry may have
        // reached no other node, and the one that leaves it may have reached the others.
        let is_majority = |answers: &dyn Fn(NodeId) -> bool| {
            [configuration.voters(), configuration.outgoing()].into_iter().any(|voters| {
                let count = voters.iter().filter(|voter| answers(**voter)).count();
                count > voters.len() / 2
            })
        };
        let names = self.names();
        if is_majority(&answers) {
            return Some(format!(
                "a majority of the voters answers: {names}. Their cluster lives, and nothing was \
                 changed; replace node {own} (docs/members.md, \"Replacing a dead node\")"
            ));
        }
        is_majority(&|node| node == own || answers(node)).then(|| {
            format!(
                "with node {own}, those that answer are a majority of the voters: {names}. Nothing \
                 was changed; start node {own} on this directory as it is. If that does not help, \
                 stop those nodes for good, and run the command again"
            )
        })
    }

    fn names(&self) -> String {
        list(self.answer.iter().map(|(node, address)| (*node, address.clone())))
    }
}

/// Asks the other voters. Returns each with its address.
fn ask(holdings: &Holdings) -> impl Iterator<Item = (NodeId, String, MemberAnswer)> {
    let (own, members) = (holdings.owner.node, &holdings.members);
    let configuration = members.configuration();
    let others = members.members().iter().filter_map(|member| {
        let node = NodeId::new(member.node)?;
        let is_asked = node != own && configuration.is_voter(node);
        is_asked.then(|| (node, member.peer_addr.clone()))
    });
    let others: Vec<(NodeId, String)> = others.collect();
    let owner = holdings.owner;
    let asked = answering_members(owner.cluster, holdings.group, owner.incarnation, others.clone());
    let answered = tokio::runtime::Handle::current().block_on(asked);
    others.into_iter().zip(answered).map(|((node, address), (_, answer))| (node, address, answer))
}

fn list(nodes: impl Iterator<Item = (NodeId, String)>) -> String {
    let nodes = nodes.map(|(node, what)| format!("node {node} ({what})"));
    nodes.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap_or_else(|| panic!("0 is no id"))
    }

    /// The answers of pairs of a member and the node that answers at its address; 0: nobody.
    fn answers(configuration: &Configuration, own: u64, found: &[(u64, u64)]) -> Option<String> {
        let mut answers = Answers::default();
        for (member, found) in found {
            let answer = NodeId::new(*found).map_or_else(
                || MemberAnswer::Silent("it does not answer".to_owned()),
                MemberAnswer::Member,
            );
            answers.add(configuration, node(own), node(*member), "a:1".to_owned(), answer);
        }
        answers.refusal(configuration, node(own))
    }

    fn voters(of: &[u64], outgoing: &[u64]) -> Configuration {
        let ids = |of: &[u64]| of.iter().map(|id| node(*id)).collect::<Vec<_>>();
        let next = Configuration::new(ids(of), []);
        match outgoing {
            [] => next,
            outgoing => Configuration::new(ids(outgoing), []).joint_with(&next),
        }
    }

    #[test]
    fn a_majority_of_either_set_is_found_under_whatever_id_it_answers() {
        let three = voters(&[1, 2, 3], &[]);
        let lives = |refusal: Option<String>| refusal.is_some_and(|it| it.contains("lives"));
        assert!(lives(answers(&three, 1, &[(2, 2), (3, 3)])));
        // They have changed places.
        assert!(lives(answers(&three, 1, &[(2, 3), (3, 2)])));
        // Nodes 4 and 5 have replaced them.
        assert!(lives(answers(&three, 3, &[(1, 4), (2, 5)])));
        // One node at both addresses is one.
        let with_own = answers(&three, 1, &[(2, 3), (3, 3)]);
        assert!(with_own.is_some_and(|it| it.contains("start node 1 on this directory")));
        assert_eq!(answers(&three, 1, &[(2, 0), (3, 0)]), None);
        // The joint configuration may have reached node 1 alone.
        let joint = voters(&[1, 4, 5, 6, 7], &[1, 2, 3]);
        let only_the_old = [(2, 2), (3, 3), (4, 0), (5, 0), (6, 0), (7, 0)];
        assert!(lives(answers(&joint, 1, &only_the_old)));
        let only_the_new = [(2, 0), (3, 0), (4, 4), (5, 5), (6, 6), (7, 0)];
        assert!(lives(answers(&joint, 1, &only_the_new)));
        let few = [(2, 0), (3, 0), (4, 4), (5, 0), (6, 0), (7, 0)];
        assert_eq!(answers(&joint, 1, &few), None);
    }

    #[test]
    fn a_cluster_that_was_made_from_this_one_already_is_named() {
        let three = voters(&[1, 2, 3], &[]);
        let mut answers = Answers::default();
        answers.add(&three, node(1), node(3), "a:1".to_owned(), MemberAnswer::Continues);
        let refusal = answers.refusal(&three, node(1)).unwrap_or_default();
        assert!(refusal.contains("node 3 (a:1)") && refusal.contains("join that"), "{refusal}");
    }
}
