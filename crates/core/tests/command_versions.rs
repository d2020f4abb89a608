//! The highest command version that a leader knows every voter to decode.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod support;

use d_engine_core::{CommonVersion, Configuration, FollowerReport, Input, Message};
use support::{Node, Setup, i, n};

/// `from` replies to the newest round, with a program that decodes commands up to `version`.
fn announces(node: &mut Node, from: u64, version: u32) {
    announces_in(node, from, node.last_round(), version);
}

fn announces_in(node: &mut Node, from: u64, round: u64, version: u32) {
    let report = FollowerReport { command_version_max: version, ..node.report() };
    let term = node.core.term();
    node.receive(
        from,
        Message::HeartbeatReply { term, round, received: i(0), persisted: i(0), report },
    )
    .unwrap();
}

fn common(node: &Node) -> CommonVersion {
    node.core.common_command_version().unwrap()
}

/// The leader of three, which decodes commands up to version 2, after its first round.
fn leader() -> Node {
    let mut node = Node::settled(3, 1, &[1]);
    beat(&mut node);
    node
}

fn beat(node: &mut Node) {
    node.pass(100);
    node.step(Input::Deadline).unwrap();
}

#[test]
fn a_voter_that_was_not_heard_in_this_leadership_holds_the_version_down() {
    let mut node = leader();
    announces(&mut node, 2, 2);
    assert_eq!(common(&node), CommonVersion { version: 0, held_by: n(3), announced: None });
    announces(&mut node, 3, 1);
    assert_eq!(common(&node), CommonVersion { version: 1, held_by: n(3), announced: Some(1) });
    announces(&mut node, 3, 7);
    assert_eq!(common(&node).version, 2, "its own program decodes no more");
    assert_eq!(common(&node).held_by, n(1));
    let known: Vec<_> =
        node.core.status().followers.iter().map(|follower| follower.command_version_max).collect();
    assert_eq!(known, [Some(2), Some(7)]);
}

/// Another program may have been started on the peer since: even its reply to an earlier round does
/// not count.
#[test]
fn a_lost_connection_takes_an_announcement_back() {
    let mut node = leader();
    let before = node.last_round();
    announces(&mut node, 2, 2);
    announces(&mut node, 3, 2);
    assert_eq!(common(&node).version, 2);
    node.step(Input::PeerLost(n(3))).unwrap();
    assert_eq!(common(&node), CommonVersion { version: 0, held_by: n(3), announced: None });
    announces_in(&mut node, 3, before, 2);
    assert_eq!(common(&node).announced, None, "sent before the loss");
    beat(&mut node);
    announces(&mut node, 3, 1);
    assert_eq!(common(&node).announced, Some(1));
}

#[test]
fn a_learner_holds_nothing_down_and_a_single_voter_asks_nobody() {
    let mut node = Node::start(Setup {
        configuration: Configuration::new([n(1)], [n(2)]),
        ..Setup::of(1, 1, &[1])
    });
    assert_eq!(node.core.common_command_version(), None, "it does not lead yet");
    node.step(Input::Deadline).unwrap();
    node.store();
    assert_eq!(common(&node), CommonVersion { version: 2, held_by: n(1), announced: Some(2) });
}
