//! A node that has lost entries of its log to damage: it votes as if it had them, and leads only
//! once it has them (Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage").
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{Input, LogId, Message, NodeId, RoleKind};
use support::{Node, Setup, i, id, t};

/// Node 1 of three in term 5. Its log had entry 6 of term 4, of which it has 1 to 3.
fn damaged() -> Node {
    let mut node = Node::start(Setup { promised: id(4, 6), ..Setup::of(3, 5, &[1, 4, 4]) });
    node.pass(500);
    node
}

fn grants(node: &mut Node, last: LogId) -> (bool, bool) {
    let term = node.term() + 1;
    node.take_sent();
    node.ask_pre_vote(2, term, last).unwrap();
    node.ask_vote(2, term, last).unwrap();
    node.store();
    let mut granted = node.take_sent().into_iter().map(|(_, message)| match message {
        Message::PreVoteReply { granted, .. } | Message::VoteReply { granted, .. } => granted,
        other => panic!("{other:?}"),
    });
    (granted.next().unwrap(), granted.next().unwrap())
}

/// It may have acknowledged entry 6: a leader without it could lose a committed entry.
#[test]
fn a_candidate_must_be_as_advanced_as_the_log_was_before_the_damage() {
    for (last, granted) in [
        (id(4, 3), false),
        (id(4, 5), false),
        (id(3, 9), false),
        (id(4, 6), true),
        (id(5, 1), true),
    ] {
        assert_eq!(grants(&mut damaged(), last), (granted, granted), "{last}");
    }
}

#[test]
fn it_does_not_campaign_before_its_log_has_reached_what_it_had() {
    let mut node = damaged();
    assert_eq!(node.core.status().lacks, Some(id(4, 6)));
    for _ in 0..3 {
        node.pass(5_000);
        node.step(Input::Deadline).unwrap();
        assert_eq!((node.role(), node.take_sent()), (RoleKind::Follower, vec![]));
    }
    node.receive(2, Message::TimeoutNow { term: t(5) }).unwrap();
    assert_eq!(node.role(), RoleKind::Follower);
    // The leader of term 5 sends what is missing, one entry less than all of it.
    node.append(2, 5, id(4, 3), &[4, 4], 3).unwrap();
    node.store();
    node.pass(5_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!((node.role(), node.core.lacks_promised()), (RoleKind::Follower, true));
    node.append(2, 5, id(4, 5), &[4], 5).unwrap();
    node.store();
    assert_eq!((node.core.lacks_promised(), node.core.status().lacks), (false, None));
    node.pre_campaign();
    assert_eq!(node.role(), RoleKind::PreCandidate);
}

/// A leader without those entries proves that they were not committed.
#[test]
fn an_entry_of_a_later_term_takes_the_place_of_what_was_lost() {
    let mut node = damaged();
    node.append(2, 6, id(4, 3), &[6], 3).unwrap();
    node.store();
    assert!(!node.core.lacks_promised());
    node.pass(5_000);
    assert_eq!(grants(&mut { node }, id(4, 6)), (false, false));
}

/// It acknowledges only what it has.
#[test]
fn it_acknowledges_only_what_is_on_its_disk() {
    let mut node = damaged();
    node.append(2, 5, id(4, 6), &[5], 3).unwrap();
    node.store();
    let sent = node.take_sent();
    let conflict = support::conflict(6, id(4, 3));
    assert_eq!(sent, [(2, Message::AppendReply { term: t(5), outcome: conflict })]);
    node.append(2, 5, id(4, 3), &[4], 3).unwrap();
    node.store();
    let persisted = d_engine_core::AppendOutcome::Persisted(i(4));
    assert_eq!(node.take_sent(), [(2, Message::AppendReply { term: t(5), outcome: persisted })]);
}

/// It does not campaign, but a leader that is not heard any more is forgotten: otherwise the node
/// would count on it when another cluster has taken the place of its own.
#[test]
fn a_leader_that_is_gone_does_not_keep_the_fence_away() {
    let mut node = damaged();
    node.heartbeat(2, 5, 2).unwrap();
    assert_eq!(node.core.status().leader, NodeId::new(2));
    node.pass(5_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.core.status().leader, None);
    node.step(Input::Superseded).unwrap();
    assert!(node.core.status().abstains);
    assert_eq!(grants(&mut node, id(9, 9)), (false, false));
}
