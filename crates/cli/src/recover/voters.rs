//! Who of the old voters still answers.

use d_engine_offline::recover::{Holdings, NodeId};
use d_engine_server::answering_members;

use crate::exit::{Failure, note, say};

/// The answers of the other voters.
struct Answers {
    /// Each with its address, and why it counts as silent.
    silent: Vec<(NodeId, String, String)>,
    answer: Vec<(NodeId, String)>,
}

/// Asks every other voter of the newest configuration at its peer address.
///
/// # Errors
/// Nodes answer that have a quorum, with this node or without it: the cluster is not lost.
pub(super) fn check(holdings: &Holdings) -> Result<(), Failure> {
    let answers = ask(holdings);
    let own = holdings.owner.node;
    let answers_now = |node: NodeId| answers.answer.iter().any(|(it, _)| *it == node);
    let configuration = holdings.members.configuration();
    let names = list(answers.answer.iter().map(|(node, address)| (*node, address.clone())));
    if configuration.has_quorum(answers_now) {
        return Err(Failure::failed(format_args!(
            "a majority of the voters answers: {names}. Their cluster lives, and nothing was \
             changed; replace node {own} (docs/members.md, \"Replacing a dead node\")"
        )));
    }
    if configuration.has_quorum(|node| node == own || answers_now(node)) {
        return Err(Failure::failed(format_args!(
            "with node {own}, those that answer are a majority of the voters: {names}. Nothing was \
             changed; start node {own} on this directory as it is. If that does not help, stop \
             those nodes for good, and run the command again"
        )));
    }
    let silent = answers.silent.iter();
    let silent = list(silent.map(|(node, address, why)| (*node, format!("{address}, {why}"))));
    if !answers.silent.is_empty() {
        say(format_args!("asked, without an answer: {silent}"));
    }
    if !answers.answer.is_empty() {
        note(format_args!(
            "{names} of the old cluster still runs; without a majority it answers no writes. Stop \
             it, empty its directory, and let it join the new cluster"
        ));
    }
    Ok(())
}

fn ask(holdings: &Holdings) -> Answers {
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
    let mut answers = Answers { silent: Vec::new(), answer: Vec::new() };
    for ((node, address), (_, answer)) in others.into_iter().zip(answered) {
        match answer {
            Ok(()) => answers.answer.push((node, address)),
            Err(why) => answers.silent.push((node, address, why)),
        }
    }
    answers
}

fn list(nodes: impl Iterator<Item = (NodeId, String)>) -> String {
    let nodes = nodes.map(|(node, what)| format!("node {node} ({what})"));
    nodes.collect::<Vec<_>>().join(", ")
}
