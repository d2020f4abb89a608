//! FINDINGS C1: an entry that halts every state machine can be skipped, and no other entry can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use d_engine_core::{
    EntryKind, FollowerReport, Input, LogId, LogIndex, Message, NodeId, Rejected, SkipRefusal, Term,
};
use support::{Node, i, n, t};

mod support;

/// A leader of three whose entries 1 (of term 1) and 2 (its no-op) are committed, with 1 applied
/// nowhere.
fn leader() -> Node {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    node
}

/// `from` replies to the last round.
fn reports(node: &mut Node, from: u64, applied: u64, halted_at: Option<LogId>) {
    let report = FollowerReport { applied: i(applied), halted_at, ..node.report() };
    let (term, round) = (node.core.term(), node.last_round());
    node.receive(
        from,
        Message::HeartbeatReply { term, round, received: i(2), persisted: i(2), report },
    )
    .unwrap();
}

fn skip(node: &mut Node, target: LogId) -> Result<(), Rejected> {
    node.step(Input::ProposeSkip { target, bytes: 16 })
}

fn refused(node: &mut Node, target: LogId) -> SkipRefusal {
    match skip(node, target).unwrap_err() {
        Rejected::SkipRefused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

const ENTRY: LogId = LogId { term: Term::new(1), index: LogIndex::new(1) };

#[test]
fn a_quorum_must_stand_at_the_entry() {
    let mut node = leader();
    assert_eq!(refused(&mut node, ENTRY), SkipRefusal::TooFew { standing: 0, voters: 3 });
    node.step(Input::HaltedAt(Some(ENTRY))).unwrap();
    assert_eq!(refused(&mut node, ENTRY), SkipRefusal::TooFew { standing: 1, voters: 3 });
    let other = LogId::new(t(2), i(2));
    reports(&mut node, 2, 0, Some(other));
    assert_eq!(
        refused(&mut node, ENTRY),
        SkipRefusal::TooFew { standing: 1, voters: 3 },
        "halted at another entry"
    );
    reports(&mut node, 3, 0, Some(ENTRY));
    skip(&mut node, ENTRY).unwrap();
    assert_eq!(
        node.created().last().map(|entry| (entry.0, entry.1, entry.2)),
        Some((EntryKind::Skip, 3, 1))
    );
}

#[test]
fn what_anybody_has_applied_is_not_skipped() {
    let mut node = leader();
    node.step(Input::HaltedAt(Some(ENTRY))).unwrap();
    reports(&mut node, 2, 0, Some(ENTRY));
    reports(&mut node, 3, 1, None);
    assert_eq!(refused(&mut node, ENTRY), SkipRefusal::AppliedBy(n(3)));
    assert_eq!(n(3), NodeId::new(3).unwrap());

    let mut node = leader();
    node.step(Input::Applied(i(1))).unwrap();
    for from in [2, 3] {
        reports(&mut node, from, 0, Some(ENTRY));
    }
    assert_eq!(
        refused(&mut node, ENTRY),
        SkipRefusal::AppliedBy(n(1)),
        "the leader itself has applied it"
    );
}

#[test]
fn only_what_is_committed_is_skipped_and_only_by_a_leader() {
    let mut node = leader();
    node.propose(1).unwrap();
    for target in [
        LogId::new(t(2), i(3)),
        LogId::new(t(2), i(1)),
        LogId::new(t(1), i(0)),
        LogId::new(t(1), i(9)),
    ] {
        assert_eq!(refused(&mut node, target), SkipRefusal::NotCommitted, "{target:?}");
    }
    let mut follower = Node::new(3, 1, &[1]);
    assert!(matches!(skip(&mut follower, ENTRY), Err(Rejected::NotLeader { .. })));
}

/// A report of an earlier term does not count in this one: the node may have applied the entry
/// since.
#[test]
fn reports_to_an_earlier_leader_do_not_count() {
    let mut node = Node::settled(3, 1, &[1]);
    node.step(Input::HaltedAt(Some(ENTRY))).unwrap();
    assert_eq!(refused(&mut node, ENTRY), SkipRefusal::TooFew { standing: 1, voters: 3 });
}

/// A node that reconnects may run a program that applies the entry at once.
#[test]
fn a_report_does_not_outlive_its_connection() {
    let mut node = leader();
    node.step(Input::HaltedAt(Some(ENTRY))).unwrap();
    reports(&mut node, 2, 0, Some(ENTRY));
    node.step(Input::PeerLost(n(2))).unwrap();
    assert_eq!(refused(&mut node, ENTRY), SkipRefusal::TooFew { standing: 1, voters: 3 });
    reports(&mut node, 2, 0, Some(ENTRY));
    assert_eq!(
        refused(&mut node, ENTRY),
        SkipRefusal::TooFew { standing: 1, voters: 3 },
        "a reply to a round from before the loss"
    );
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    reports(&mut node, 2, 0, Some(ENTRY));
    skip(&mut node, ENTRY).unwrap();
}

#[test]
fn a_follower_tells_where_it_stands() {
    let mut node = Node::new(3, 1, &[1]);
    node.step(Input::HaltedAt(Some(ENTRY))).unwrap();
    let told = |node: &mut Node, round| {
        node.receive(2, Message::Heartbeat { term: t(1), commit: i(1), round, matched: i(0) })
            .unwrap();
        let sent = std::mem::take(&mut node.sent);
        sent.iter().find_map(|(_, message)| match message {
            Message::HeartbeatReply { report, .. } => Some(report.halted_at),
            _ => None,
        })
    };
    assert_eq!(told(&mut node, 1), Some(Some(ENTRY)));
    node.step(Input::HaltedAt(None)).unwrap();
    assert_eq!(told(&mut node, 2), Some(None));
}

/// Leadership is transferred to a voter whose state machine is not halted.
#[test]
fn who_stands_is_not_chosen_to_lead() {
    let mut node = leader();
    reports(&mut node, 2, 0, Some(ENTRY));
    reports(&mut node, 3, 0, None);
    node.step(Input::TransferLeadership { to: None }).unwrap();
    assert_eq!(node.core.transfer_target(), Some(n(3)));
}
