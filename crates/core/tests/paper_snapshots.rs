//! Snapshots (Raft paper, section 7 and figure 13), one test per rule.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{Appended, Input, LogSuffix, Message, Rejected, RoleKind, SnapshotToInstall};
use support::{Node, cluster, i, id, n, t};

/// A leader of three in term 2 that has committed, applied and purged its log up to entry 4; its
/// log ends at 6. Node 2 has everything; node 3 was never heard.
fn purged_leader() -> Node {
    let mut node = Node::leader(3, 1, &[1, 1, 1]);
    node.stored_by(2, 4).unwrap();
    node.propose(2).unwrap();
    node.store();
    node.stored_by(2, 6).unwrap();
    node.step(Input::Applied(i(6))).unwrap();
    node.step(Input::Purged(id(2, 4))).unwrap();
    node.appends.clear();
    node
}

/// Node 3 replies to the leader's first probe (for entry 3) that its log is empty.
fn has_nothing(node: &mut Node) {
    node.refused_by(3, 3, id(0, 0)).unwrap();
}

fn beat(node: &mut Node) -> u64 {
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    node.last_round()
}

#[test]
fn s7_only_what_was_applied_is_purged() {
    let mut node = Node::settled(3, 1, &[1, 1, 1]);
    node.step(Input::Applied(i(3))).unwrap();
    assert_eq!(node.step(Input::Purged(id(2, 4))), Err(Rejected::OutOfSequence));
    assert_eq!(node.step(Input::Purged(id(2, 3))), Err(Rejected::OutOfSequence), "another term");
    node.step(Input::Purged(id(1, 3))).unwrap();
    assert_eq!(node.core.log().base, id(1, 3));
    assert_eq!(node.core.term_at(i(2)), None);
}

/// A leader may lead for years: the first entry of its term can be purged like any other.
#[test]
fn s7_a_leader_purges_the_first_entry_of_its_term() {
    let mut node = purged_leader();
    node.step(Input::Purged(id(2, 6))).unwrap();
    assert_eq!((node.core.log().base, node.role()), (id(2, 6), RoleKind::Leader));
    node.propose(1).unwrap();
    node.store();
    node.stored_by(2, 7).unwrap();
    assert_eq!(node.commit(), 7);
}

/// A follower whose next entry was purged is sent one snapshot, and no entries while that is being
/// sent.
#[test]
fn s7_a_follower_behind_the_purged_log_gets_a_snapshot() {
    let mut node = purged_leader();
    has_nothing(&mut node);
    assert_eq!(node.snapshots, [3]);
    node.propose(1).unwrap();
    let round = beat(&mut node);
    node.answers_holding(3, round, 0, 0).unwrap();
    has_nothing(&mut node);
    assert_eq!(node.snapshots, [3], "a snapshot is being sent");
    assert_eq!(node.take_appends_to(3), []);
}

/// The entry before the first remaining one can still be compared.
#[test]
fn s7_a_follower_that_ends_where_the_log_begins_needs_no_snapshot() {
    let mut node = purged_leader();
    node.stored_by(3, 4).unwrap();
    assert_eq!(node.snapshots, [] as [u64; 0]);
    assert_eq!(node.take_appends_to(3), [(4, 6)]);
}

/// The snapshot counts as sent once the follower has applied and persisted it, as its heartbeat
/// replies show.
#[test]
fn s7_a_follower_with_the_snapshot_gets_entries_again() {
    let mut node = purged_leader();
    has_nothing(&mut node);
    assert_eq!(node.snapshots, [3]);
    node.take_appends();
    let round = beat(&mut node);
    node.answers(3, round, 5).unwrap();
    assert_eq!(node.take_appends_to(3), [(5, 6)]);
}

#[test]
fn s7_a_snapshot_that_failed_is_sent_again_with_the_next_heartbeat_not_at_once() {
    let mut node = purged_leader();
    has_nothing(&mut node);
    node.step(Input::SnapshotFailed(n(3))).unwrap();
    assert_eq!(node.snapshots, [3]);
    beat(&mut node);
    assert_eq!(node.snapshots, [3, 3]);
    beat(&mut node);
    assert_eq!(node.snapshots, [3, 3], "a snapshot is being sent");
    node.step(Input::SnapshotFailed(n(2))).unwrap();
    beat(&mut node);
    assert_eq!(node.snapshots, [3, 3], "node 2 needs none");
}

/// A lost connection for messages does not affect the snapshot's own connection.
#[test]
fn s7_a_lost_connection_does_not_order_a_second_snapshot() {
    let mut node = purged_leader();
    has_nothing(&mut node);
    node.step(Input::PeerLost(n(3))).unwrap();
    assert_eq!(node.snapshots, [3]);
}

fn install(
    node: &mut Node,
    from: u64,
    term: u64,
    last: d_engine_core::LogId,
) -> Result<(), Rejected> {
    let configuration = Box::new(cluster(3, 0));
    let (from, term) = (n(from), t(term));
    node.step(Input::InstallSnapshot(SnapshotToInstall {
        from,
        term,
        last,
        time_ms: 9_000,
        configuration,
    }))
}

fn snapshot_orders(node: &Node) -> Vec<Appended> {
    let orders = node.orders.iter().map(|order| order.appended.clone());
    orders.filter(|appended| matches!(appended, Appended::Snapshot { .. })).collect()
}

/// Figure 13, rule 7: a log without the snapshot's last included entry is discarded completely.
#[test]
fn fig13_a_snapshot_replaces_a_shorter_or_conflicting_log() {
    for log in [&[1][..], &[1, 1, 2, 2, 2, 2]] {
        let mut node = Node::new(3, 4, log);
        install(&mut node, 2, 4, id(3, 5)).unwrap();
        assert_eq!(
            snapshot_orders(&node),
            [Appended::Snapshot { last: id(3, 5), suffix: LogSuffix::Drop }]
        );
        let summary = node.core.log();
        assert_eq!((summary.base, summary.last, summary.committed), (id(3, 5), id(3, 5), i(5)));
        assert_eq!(node.superseded_from, Some(6));
        assert_eq!(node.leader_known(), Some(2));
        // Entries continue after it.
        node.store();
        node.append(2, 4, id(3, 5), &[4], 5).unwrap();
        assert_eq!(node.core.log().last, id(4, 6));
    }
}

/// Figure 13, rule 6: entries after an entry that log and snapshot have in common are kept.
#[test]
fn fig13_a_matching_suffix_is_kept() {
    let mut node = Node::new(3, 4, &[1, 3, 3, 3, 4]);
    install(&mut node, 2, 4, id(3, 3)).unwrap();
    assert_eq!(
        snapshot_orders(&node),
        [Appended::Snapshot { last: id(3, 3), suffix: LogSuffix::Keep }]
    );
    let summary = node.core.log();
    assert_eq!((summary.base, summary.last, summary.committed), (id(3, 3), id(4, 5), i(3)));
    assert_eq!(node.superseded_from, None);
}

/// Only the part that the snapshot covers is known to match: the suffix is acknowledged after an
/// append has shown that it matches.
#[test]
fn fig13_an_installed_snapshot_is_acknowledged_once_it_is_stored_and_no_further() {
    let mut node = Node::new(3, 4, &[1, 3, 3, 3, 4]);
    install(&mut node, 2, 4, id(3, 3)).unwrap();
    node.take_sent();
    node.store();
    node.heartbeat(2, 4, 0).unwrap();
    let acks: Vec<_> = node
        .take_sent()
        .into_iter()
        .filter_map(|(_, message)| match message {
            Message::HeartbeatReply { received, persisted, .. } => Some((received, persisted)),
            _ => None,
        })
        .collect();
    assert_eq!(acks, [(i(3), i(3))]);
}

#[test]
fn fig13_nothing_of_a_snapshot_counts_before_it_is_stored() {
    let mut node = Node::new(3, 4, &[1]);
    install(&mut node, 2, 4, id(3, 5)).unwrap();
    node.take_sent();
    node.heartbeat(2, 4, 5).unwrap();
    assert_eq!(node.apply_to.filter(|index| *index > 1), None);
    let persisted = |node: &mut Node| {
        node.take_sent().into_iter().find_map(|(_, message)| match message {
            Message::HeartbeatReply { persisted, .. } => Some(persisted),
            _ => None,
        })
    };
    assert!(persisted(&mut node).is_none_or(|index| index <= i(1)));
    node.store();
    node.heartbeat(2, 4, 5).unwrap();
    assert_eq!((persisted(&mut node), node.apply_to), (Some(i(5)), Some(5)));
}

/// A snapshot that contains nothing new changes nothing.
#[test]
fn fig13_an_old_snapshot_is_refused() {
    let mut node = Node::new(3, 4, &[1, 3, 3]);
    node.append(2, 4, id(3, 3), &[], 3).unwrap();
    assert_eq!(node.commit(), 3);
    assert_eq!(install(&mut node, 2, 4, id(3, 3)), Err(Rejected::SnapshotStale));
    assert_eq!(
        install(&mut node, 2, 3, id(3, 3)),
        Err(Rejected::SnapshotStale),
        "nor one of a deposed leader"
    );
    assert_eq!(
        install(&mut node, 2, 4, id(5, 9)),
        Err(Rejected::OutOfRange),
        "newer than its sender's term"
    );
    assert_eq!((node.core.log().last, snapshot_orders(&node)), (id(3, 3), vec![]));
}

/// Figure 13, rule 1, extended: entries in a snapshot of a deposed leader are committed in every
/// later term too. Only the snapshot is accepted; the sender is not followed, and a candidate or
/// leader keeps its role.
#[test]
fn fig13_a_snapshot_of_a_deposed_leader_is_installed_and_its_sender_is_not_followed() {
    for (log, last, suffix) in [
        (&[1][..], id(3, 5), LogSuffix::Drop),
        (&[1, 1, 2, 2, 2, 2], id(3, 5), LogSuffix::Drop),
        (&[1, 3, 3, 3, 4], id(3, 3), LogSuffix::Keep),
    ] {
        let mut node = Node::new(3, 6, log);
        node.heartbeat(2, 6, 0).unwrap();
        let due = node.core.next_deadline();
        node.pass(50);
        install(&mut node, 1, 4, last).unwrap();
        assert_eq!(snapshot_orders(&node), [Appended::Snapshot { last, suffix }]);
        assert_eq!((node.commit(), node.core.log().base), (last.index.get(), last));
        assert_eq!(
            (node.role(), node.term(), node.leader_known()),
            (RoleKind::Follower, 6, Some(2))
        );
        assert_eq!(node.core.next_deadline(), due, "the election timeout continues");
    }
    let mut node = Node::new(3, 6, &[1]);
    install(&mut node, 1, 4, id(3, 5)).unwrap();
    assert_eq!((node.term(), node.leader_known(), node.commit()), (6, None, 5));
}

#[test]
fn fig13_a_candidate_or_leader_of_a_later_term_takes_no_snapshot_of_a_deposed_leader() {
    for mut node in [Node::candidate(3, 6, &[1]), Node::leader(3, 6, &[1])] {
        let (role, term, last) = (node.role(), node.term(), node.core.log().last);
        assert_eq!(install(&mut node, 2, 4, id(3, 5)), Err(Rejected::SnapshotStale));
        assert_eq!((node.role(), node.term(), node.core.log().last), (role, term, last));
        assert_eq!(snapshot_orders(&node), vec![]);
    }
}

/// Entries that this node has acknowledged to the present leader, up to the end of the deposed
/// leader's snapshot, are in that snapshot: the node still acknowledges all of them to the present
/// leader.
#[test]
fn fig13_a_snapshot_of_a_deposed_leader_takes_no_acknowledgement_back() {
    let mut node = Node::new(3, 6, &[1, 3]);
    node.append(2, 6, id(3, 2), &[3], 2).unwrap();
    node.store();
    install(&mut node, 1, 4, id(4, 5)).unwrap();
    node.store();
    node.take_sent();
    node.heartbeat(2, 6, 5).unwrap();
    let acked = |(_, message): &(u64, Message)| match message {
        Message::HeartbeatReply { received, persisted, .. } => Some((*received, *persisted)),
        _ => None,
    };
    assert_eq!(node.take_sent().iter().find_map(acked), Some((i(5), i(5))));
}

/// A follower whose commit index is beyond the snapshot needs entries. It tells its leader so,
/// instead of being offered the snapshot forever.
#[test]
fn fig13_who_refuses_an_old_snapshot_tells_how_far_its_log_matches() {
    let mut node = Node::new(3, 4, &[1, 3, 3, 3]);
    node.append(2, 4, id(3, 4), &[], 4).unwrap();
    node.heartbeat(3, 5, 0).unwrap();
    node.store();
    node.take_sent();
    assert_eq!(install(&mut node, 3, 5, id(3, 3)), Err(Rejected::SnapshotStale));
    node.heartbeat(3, 5, 0).unwrap();
    let persisted = |(_, message): &(u64, Message)| match message {
        Message::HeartbeatReply { persisted, .. } => Some(*persisted),
        _ => None,
    };
    assert_eq!(node.take_sent().iter().find_map(persisted), Some(i(4)));
}

/// A follower installs the snapshot, and forgets its leader before the leader has heard of it. Its
/// reply to the next heartbeat still reports the snapshot: a leader that has sent one sends nothing
/// else until then.
#[test]
fn fig13_who_has_forgotten_its_leader_still_tells_that_the_snapshot_is_installed() {
    let mut node = Node::new(3, 4, &[1]);
    install(&mut node, 2, 4, id(3, 5)).unwrap();
    node.store();
    node.step(Input::Applied(i(5))).unwrap();
    node.pass(1_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!((node.role(), node.leader_known()), (RoleKind::PreCandidate, None));
    node.take_sent();
    node.heartbeat(2, 4, 0).unwrap();
    let persisted = |(_, message): &(u64, Message)| match message {
        Message::HeartbeatReply { persisted, .. } => Some(*persisted),
        _ => None,
    };
    assert_eq!(node.take_sent().iter().find_map(persisted), Some(i(5)));
}

/// The sender leads its term: a candidate of the same term, or a leader of an earlier one, follows
/// it.
#[test]
fn fig13_a_snapshot_makes_its_sender_the_leader() {
    let mut node = Node::candidate(3, 4, &[1]);
    install(&mut node, 2, 5, id(3, 5)).unwrap();
    assert_eq!((node.role(), node.leader_known()), (RoleKind::Follower, Some(2)));
    let mut node = Node::leader(3, 4, &[1]);
    install(&mut node, 2, 9, id(3, 5)).unwrap();
    assert_eq!((node.role(), node.term(), node.leader_known()), (RoleKind::Follower, 9, Some(2)));
    assert!(node.lost_leadership);
}

/// The configuration in force is then the snapshot's; a later one in a kept suffix remains in
/// force.
#[test]
fn s6_a_snapshot_brings_its_configuration() {
    let mut node = Node::new(3, 4, &[1]);
    let configuration = Box::new(cluster(5, 0));
    let (from, term, last) = (n(2), t(4), id(3, 5));
    let snapshot = SnapshotToInstall { from, term, last, time_ms: 0, configuration };
    node.step(Input::InstallSnapshot(snapshot)).unwrap();
    assert_eq!(node.core.configuration(), &cluster(5, 0));
}
