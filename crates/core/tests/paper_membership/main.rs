//! Changes of the membership (Raft paper, section 6; thesis, chapter 4), one test per rule. Unless
//! stated otherwise: heartbeats every 100 ms, election timeouts between 500 and 1,000 ms; node 1 is
//! under test.
#![allow(clippy::unwrap_used)]

mod leavers;
mod new_voters;
mod quorums;
mod steps;
#[path = "../support/mod.rs"]
mod support;

use d_engine_core::{
    Configuration, EntryMeta, HardState, Input, MembershipStep, Message, NodeId, QuorumRisk,
    Rejected, RoleKind, SnapshotToInstall, VoterSet,
};
use support::{Node, Setup, entry, i, id, membership, n, t};

pub(crate) fn ids(nodes: &[u64]) -> Vec<NodeId> {
    nodes.iter().map(|node| n(*node)).collect()
}

pub(crate) fn of(voters: &[u64], learners: &[u64]) -> Configuration {
    Configuration::new(ids(voters), ids(learners))
}

pub(crate) fn joint(old: &[u64], new: &[u64]) -> Configuration {
    of(old, &[]).joint_with(&of(new, &[]))
}

/// Node 1 with this history, in term 1; everything is persisted.
pub(crate) fn started(base: Configuration, log: Vec<EntryMeta>, commit: u64) -> Node {
    let hard_state = HardState { term: t(1), commit: i(commit), ..HardState::default() };
    let mut node =
        Node::start(Setup { configuration: base, hard_state, log, ..Setup::of(1, 1, &[]) });
    node.pass(500);
    node
}

pub(crate) fn pre_vote_from(node: &mut Node, from: u64) {
    let term = t(node.term() + 1);
    node.receive(from, Message::PreVoteReply { term, granted: true, wall_ms: 0 }).unwrap();
}

/// Node 1 after the votes of these nodes; a quorum elects it in term 2.
pub(crate) fn elected(base: Configuration, log: Vec<EntryMeta>, by: &[u64]) -> Node {
    let mut node = started(base, log, 0);
    node.pre_campaign();
    for from in by {
        pre_vote_from(&mut node, *from);
    }
    node.store();
    for from in by {
        node.vote_from(*from).unwrap();
    }
    node.store();
    node
}

pub(crate) fn last(node: &Node) -> u64 {
    node.core.log().last.index.get()
}

/// So many heartbeats, which these nodes answer; they have everything.
pub(crate) fn beats(node: &mut Node, from: &[u64], count: usize) {
    for _ in 0..count {
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        node.store();
        let (round, last) = (node.last_round(), last(node));
        for follower in from {
            node.answers(*follower, round, last).unwrap();
        }
    }
}

/// A leader of these voters, to whose heartbeats all of them and the learners have replied for
/// three seconds.
pub(crate) fn grown(voters: &[u64], learners: &[u64]) -> Node {
    let others: Vec<u64> = voters.iter().filter(|node| **node != 1).copied().collect();
    let mut node = elected(of(voters, learners), Vec::new(), &others);
    let all: Vec<u64> = others.iter().chain(learners).copied().collect();
    beats(&mut node, &all, 30);
    node
}

pub(crate) fn propose_at_risk(
    node: &mut Node,
    configuration: Configuration,
) -> Result<(), Rejected> {
    let configuration = Box::new(configuration);
    let risk = QuorumRisk::Accept;
    node.step(Input::ProposeMembership { configuration, bytes: 10, risk })
}

pub(crate) fn due(node: &Node) -> Option<MembershipStep> {
    node.core.membership_step_due(node.now)
}

pub(crate) fn transfer(node: &mut Node, to: Option<u64>) -> Result<(), Rejected> {
    node.step(Input::TransferLeadership { to: to.map(n) })
}

pub(crate) fn told_to_campaign(node: &mut Node) -> Vec<u64> {
    let sent = node.take_sent().into_iter();
    sent.filter(|(_, message)| matches!(message, Message::TimeoutNow { .. }))
        .map(|(to, _)| to)
        .collect()
}

pub(crate) fn asked(node: &mut Node) -> Vec<u64> {
    node.take_sent().into_iter().map(|(to, _)| to).collect()
}

/// A leader in the joint configuration from {1, 2, 3} to {1, 4, 5}, which it has found in its log.
pub(crate) fn in_joint() -> Node {
    let log = vec![membership(1, &joint(&[1, 2, 3], &[1, 4, 5]))];
    elected(of(&[1, 2, 3], &[]), log, &[2, 3, 4, 5])
}
