//! How fast a leader sends, and how it detects losses: batches and pipelines (Raft thesis, section
//! 10.2), retries (paper, section 5.3: "retries AppendEntries RPCs indefinitely").
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{CoreConfig, Input, LogId, Message};
use support::{Node, Setup, cluster, id, n, t};

/// A leader of three with `config`, whose followers hold its two entries.
fn leader_with(config: CoreConfig) -> Node {
    let mut node = Node::leader_of(Setup { config, ..Setup::of(3, 1, &[1]) });
    node.settle();
    node
}

/// Lets `rounds` heartbeat intervals pass; `from` answers each round with `received` as its last
/// received index.
fn beat(node: &mut Node, from: u64, received: u64, rounds: u64) {
    for _ in 0..rounds {
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        let round = node.last_round();
        let persisted = received.min(2);
        node.answers_holding(from, round, received, persisted).unwrap();
    }
}

/// Until the leader knows where the logs match, one append at a time is in flight.
#[test]
fn s5_3_a_follower_of_unknown_state_is_probed_with_one_append_at_a_time() {
    let mut node = Node::leader(3, 1, &[1]);
    assert_eq!(node.take_appends_to(2), [(1, 2)]);
    node.propose(1).unwrap();
    node.propose(1).unwrap();
    assert_eq!(node.take_appends_to(2), []);
    node.stored_by(2, 2).unwrap();
    assert_eq!(node.take_appends_to(2), [(2, 4)]);
}

/// Once the logs are known to match, appends follow each other without waiting for replies.
#[test]
fn thesis_10_2_1_appends_to_a_follower_that_matches_are_pipelined() {
    let mut node = Node::settled(3, 1, &[1]);
    for _ in 0..3 {
        node.propose(1).unwrap();
    }
    assert_eq!(node.take_appends_to(2), [(2, 3), (3, 4), (4, 5)]);
}

/// The pipeline has a limit of messages; an ack makes space in it.
#[test]
fn thesis_10_2_1_the_window_counts_messages() {
    let mut node = leader_with(CoreConfig { inflight_appends_max: 2, ..CoreConfig::default() });
    for _ in 0..4 {
        node.propose(1).unwrap();
    }
    assert_eq!(node.take_appends_to(2), [(2, 3), (3, 4)]);
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.take_appends_to(2), [(4, 6)], "the waiting entries are sent in one message");
}

/// The pipeline also has a limit of bytes.
#[test]
fn thesis_10_2_1_the_window_counts_bytes() {
    let mut node = leader_with(CoreConfig { inflight_bytes_max: 25, ..CoreConfig::default() });
    for _ in 0..5 {
        node.propose(1).unwrap();
    }
    assert_eq!(node.take_appends_to(2), [(2, 3), (3, 4), (4, 5)]);
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.take_appends_to(2), [(5, 7)]);
}

/// The window is per follower: a slow follower does not delay a fast one.
#[test]
fn thesis_10_2_1_a_slow_follower_holds_up_nobody_else() {
    let mut node = leader_with(CoreConfig { inflight_appends_max: 1, ..CoreConfig::default() });
    node.propose(1).unwrap();
    node.stored_by(3, 3).unwrap();
    node.take_appends();
    node.propose(1).unwrap();
    assert_eq!(node.take_appends(), [(3, 3, 4)]);
}

/// A message has a limit of bytes and entries, but may carry one entry of any size.
#[test]
fn thesis_10_2_2_a_message_has_a_limit_of_bytes_and_entries() {
    let config =
        CoreConfig { append_bytes_max: 20, append_entries_max: 3, ..CoreConfig::default() };
    let mut node = leader_with(config);
    node.step(Input::Propose { sizes: vec![10, 10, 10, 1000, 0, 0, 0, 0] }).unwrap();
    assert_eq!(node.take_appends_to(2), [(2, 4), (4, 5), (5, 6), (6, 9), (9, 10)]);
}

/// If a follower's log is inconsistent with the leader's, the leader probes further back.
#[test]
fn s5_3_after_a_refusal_the_leader_probes_further_back() {
    let mut node = Node::leader(3, 5, &[1, 1, 4, 4, 4]);
    assert_eq!(node.take_appends_to(2), [(5, 6)]);
    node.refused_by(2, 5, id(2, 4)).unwrap();
    assert_eq!(node.take_appends_to(2), [(2, 6)], "the leader has no term 2, so term 1 is next");
    node.refused_by(2, 2, LogId::ZERO).unwrap();
    assert_eq!(node.take_appends_to(2), [(0, 6)]);
}

/// A late or duplicate refusal refers to an earlier probe.
#[test]
fn s5_3_a_stale_refusal_changes_nothing() {
    let mut node = Node::leader(3, 5, &[1, 1, 4, 4, 4]);
    node.refused_by(2, 5, id(1, 2)).unwrap();
    node.take_appends();
    node.refused_by(2, 5, id(1, 1)).unwrap();
    assert_eq!(node.take_appends_to(2), [], "the probe is now at 2");
    node.stored_by(2, 6).unwrap();
    node.refused_by(2, 5, id(1, 1)).unwrap();
    node.propose(1).unwrap();
    assert_eq!(node.take_appends_to(2), [(6, 7)], "the refused entry is known to be persisted");
}

/// A refusal in the middle of a pipeline (an earlier message was lost) starts a new probe at the
/// follower's end, and never before its last ack.
#[test]
fn s5_3_a_gap_in_the_pipeline_leads_back_to_a_probe() {
    let mut node = Node::settled(3, 1, &[1]);
    for _ in 0..4 {
        node.propose(1).unwrap();
    }
    node.stored_by(2, 3).unwrap();
    node.take_appends();
    node.refused_by(2, 5, id(1, 1)).unwrap();
    assert_eq!(node.take_appends_to(2), [(3, 6)]);
    node.propose(1).unwrap();
    assert_eq!(node.take_appends_to(2), [], "one append at a time again");
}

/// A follower that refuses entries that it has acknowledged has lost its log. Probing it again at
/// once does not help, and probing without a pause would keep both nodes busy at the speed of the
/// network.
#[test]
fn s5_3_a_follower_that_refuses_what_it_acknowledged_is_not_asked_without_pause() {
    let mut node = Node::settled(3, 1, &[1]);
    beat(&mut node, 2, 0, 1);
    assert_eq!(node.take_appends_to(2), [(2, 2)], "it reports an empty log: a probe");
    node.refused_by(2, 2, LogId::ZERO).unwrap();
    assert_eq!(node.take_appends_to(2), []);
    beat(&mut node, 2, 0, 2);
    assert_eq!(node.take_appends_to(2), [(2, 2)], "and again after two heartbeats");
}

/// An append that was lost without a report of the transport is detected by an *empty* append after
/// everything sent, and not before three of the longest election timeouts without progress.
#[test]
fn s5_3_a_lost_append_is_found_out_by_an_empty_one_and_sent_again() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.propose(1).unwrap();
    assert_eq!(node.take_appends_to(2), [(2, 3), (3, 4)]);
    beat(&mut node, 2, 2, 30);
    assert_eq!(node.take_appends_to(2), [], "it may still be in flight");
    beat(&mut node, 2, 2, 1);
    assert_eq!(node.take_appends_to(2), [(4, 4)], "no entry is sent twice without evidence");
    node.refused_by(2, 4, id(1, 2)).unwrap();
    assert_eq!(node.take_appends_to(2), [(2, 4)], "now the missing entries are known");
}

/// The log may have been purged past everything sent meanwhile. Then no empty append is possible,
/// and the follower is sent a snapshot. Found by the simulator.
#[test]
fn s5_3_a_follower_that_hangs_before_a_purge_gets_a_snapshot() {
    let config = CoreConfig { inflight_appends_max: 1, ..CoreConfig::default() };
    let mut node = leader_with(config);
    for _ in 0..3 {
        node.propose(1).unwrap();
    }
    assert_eq!(node.take_appends_to(2), [(2, 3)]);
    node.store();
    node.stored_by(3, 5).unwrap();
    node.step(Input::Applied(support::i(5))).unwrap();
    node.step(Input::Purged(id(2, 5))).unwrap();
    beat(&mut node, 2, 2, 31);
    assert_eq!(node.snapshots, [2]);
}

/// On a slow link messages are late but not lost: the leader keeps them counted as in flight and
/// sends nothing twice, however long it takes.
#[test]
fn s5_3_on_a_slow_link_nothing_is_sent_twice() {
    let config = CoreConfig { inflight_appends_max: 2, ..CoreConfig::default() };
    let mut node = leader_with(config);
    for _ in 0..5 {
        node.propose(1).unwrap();
    }
    assert_eq!(node.take_appends_to(2), [(2, 3), (3, 4)]);
    beat(&mut node, 2, 2, 100);
    assert_eq!(node.take_appends_to(2), [(4, 4), (4, 4), (4, 4)], "three probes in ten seconds");
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.take_appends_to(2), [(4, 7)]);
    node.stored_by(2, 4).unwrap();
    assert_eq!(node.take_appends_to(2), []);
}

/// Entries that the driver could not send are planned again from there once the follower is heard,
/// not before: a full queue must drain first. Entries sent before are not sent again.
#[test]
fn s5_3_what_was_not_sent_is_planned_again_once_the_follower_is_heard() {
    let mut node = Node::settled(3, 1, &[1]);
    for _ in 0..3 {
        node.propose(1).unwrap();
    }
    assert_eq!(node.take_appends_to(2), [(2, 3), (3, 4), (4, 5)]);
    for prev in [3, 4] {
        let (to, term, prev) = (n(2), node.core.term(), support::i(prev));
        node.step(Input::AppendNotSent { to, term, prev }).unwrap();
    }
    node.propose(1).unwrap();
    assert_eq!(node.take_appends_to(2), [], "the queue is full");
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.take_appends_to(2), [(3, 6)]);
}

/// A report about an earlier term, or about entries persisted meanwhile, changes nothing.
#[test]
fn s5_3_a_late_report_of_an_append_that_was_not_sent_changes_nothing() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.take_appends();
    let term = node.core.term();
    let old =
        Input::AppendNotSent { to: n(2), term: support::t(term.get() - 1), prev: support::i(2) };
    node.step(old).unwrap();
    node.stored_by(2, 3).unwrap();
    node.step(Input::AppendNotSent { to: n(2), term, prev: support::i(3) }).unwrap();
    node.propose(1).unwrap();
    assert_eq!(node.take_appends_to(2), [(3, 4)]);
}

/// A probe with more than a few entries would delay everything after it on a slow link, and would
/// be wasted if the follower does not match.
#[test]
fn s5_3_a_probe_carries_no_more_than_a_few_kilobytes() {
    let mut setup = Setup::of(3, 1, &[1, 1]);
    setup.log[1].bytes = 100_000;
    let mut node = Node::leader_of(setup);
    node.take_appends();
    node.refused_by(2, 2, id(1, 1)).unwrap();
    assert_eq!(node.take_appends_to(2), [(1, 1)]);
}

/// A follower that makes progress, however slowly, is not probed.
#[test]
fn s5_3_a_follower_that_makes_progress_is_not_probed() {
    let mut node = Node::settled(3, 1, &[1]);
    for _ in 0..6 {
        node.propose(1).unwrap();
    }
    node.take_appends();
    for received in 3..=7 {
        beat(&mut node, 2, received, 2);
    }
    assert_eq!(node.take_appends_to(2), []);
}

/// Neither is one that has received everything and has a slow disk.
#[test]
fn s5_3_a_follower_with_a_slow_disk_is_not_sent_everything_again() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.take_appends();
    beat(&mut node, 2, 3, 9);
    assert_eq!(node.take_appends_to(2), []);
}

/// A lost probe is sent again as well.
#[test]
fn s5_3_a_lost_probe_is_sent_again() {
    let mut node = Node::leader(3, 1, &[1]);
    node.stored_by(3, 2).unwrap();
    node.take_appends();
    beat(&mut node, 2, 0, 1);
    assert_eq!(node.take_appends_to(2), []);
    beat(&mut node, 2, 0, 1);
    assert_eq!(
        node.take_appends_to(2),
        [(1, 1)],
        "the first append may be late: no entry is sent again"
    );
}

/// The reply to a heartbeat is an ack: if an ack is lost, nothing is sent twice.
#[test]
fn s5_3_a_lost_ack_is_replaced_by_the_answer_to_a_heartbeat() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    node.store();
    node.take_appends();
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    let round = node.last_round();
    node.answers(2, round, 3).unwrap();
    assert_eq!((node.commit(), node.take_appends_to(2)), (3, vec![]));
}

/// A restarted follower no longer knows how far its log matches; an empty append tells it.
#[test]
fn s5_3_a_restarted_follower_is_found_and_probed() {
    let mut node = Node::settled(3, 1, &[1]);
    beat(&mut node, 2, 0, 1);
    assert_eq!(node.take_appends_to(2), [(2, 2)]);
}

/// After a lost connection, everything in flight is sent again from the last ack on.
#[test]
fn s5_3_after_a_lost_connection_the_leader_starts_from_the_last_ack() {
    let mut node = Node::settled(3, 1, &[1]);
    for _ in 0..3 {
        node.propose(1).unwrap();
    }
    node.stored_by(2, 3).unwrap();
    node.take_appends();
    node.step(Input::PeerLost(support::n(2))).unwrap();
    assert_eq!(node.take_appends(), [(2, 3, 5)]);
    node.step(Input::PeerLost(support::n(77))).unwrap();
    assert_eq!(node.take_appends(), []);
}

/// A new leader has no acks. If a connection breaks then, the probe is repeated; the whole log is
/// not sent again.
#[test]
fn s5_3_a_probe_is_sent_again_from_where_it_stood_after_a_lost_connection() {
    let mut node = Node::leader(3, 1, &[1, 1, 1]);
    node.take_appends();
    node.step(Input::PeerLost(n(2))).unwrap();
    let sent = node.take_appends_to(2);
    assert_eq!(sent, [(3, 4)]);
}

/// Heartbeat replies that wait for a hanging disk must not fill memory.
#[test]
fn s5_3_of_the_answers_to_heartbeats_that_wait_only_the_last_is_kept() {
    let mut node = Node::new(3, 0, &[]);
    for _ in 0..50 {
        node.heartbeat(2, 1, 0).unwrap();
    }
    assert_eq!(node.core.status().held_messages, 1);
    node.store();
    assert_eq!(node.take_sent().len(), 1);
}

/// Repeated elections while this node's disk hangs must not fill memory: messages of an earlier
/// term are of no use, and of the pre-vote replies the last one suffices.
#[test]
fn s5_3_of_what_waits_for_the_disk_only_the_current_term_is_kept() {
    let mut node = Node::new(3, 1, &[1]);
    for term in 2..50 {
        node.ask_pre_vote(3, term + 1, id(1, 1)).unwrap();
        node.ask_vote(2, term, id(1, 1)).unwrap();
        node.pass(2_000);
        node.heartbeat(2, term, 0).unwrap();
        node.pass(2_000);
    }
    assert!(node.core.status().held_messages <= 3, "{}", node.core.status().held_messages);
    node.take_sent();
    node.store();
    assert!(node.take_sent().iter().all(|(_, message)| message.term() >= t(49)));
}

/// A follower asks for a read again and again, under a new token each time, and this node's disk
/// hangs.
#[test]
fn s6_4_of_the_answers_to_reads_that_wait_the_last_few_are_kept() {
    let mut node = Node::new(3, 1, &[1]);
    node.heartbeat(2, 2, 0).unwrap();
    for token in 1..=50 {
        node.receive(3, Message::ReadRequest { term: t(2), token }).unwrap();
    }
    assert_eq!(node.core.status().held_messages, 1 + 4);
    node.store();
    let tokens = node.take_sent().into_iter().filter_map(|(to, message)| match message {
        Message::ReadReply { token, .. } => Some((to, token)),
        _ => None,
    });
    assert_eq!(tokens.collect::<Vec<_>>(), [(3, 47), (3, 48), (3, 49), (3, 50)]);
}

/// Repeated appends while the disk hangs must not fill memory with acks either.
#[test]
fn s5_3_an_append_that_comes_again_is_acknowledged_once() {
    let mut node = Node::new(3, 1, &[1]);
    for _ in 0..50 {
        node.append(2, 1, id(1, 1), &[1], 0).unwrap();
    }
    assert_eq!(node.core.status().held_messages, 1);
    node.store();
    assert_eq!(node.take_sent().len(), 1);
}

/// A refusal with a term that is not persisted waits for the disk, and an unstable link repeats the
/// request.
#[test]
fn s5_3_a_question_that_comes_again_is_refused_once() {
    let mut node = Node::new(3, 1, &[1]);
    for _ in 0..50 {
        node.append(2, 2, id(2, 9), &[], 0).unwrap();
    }
    assert_eq!(node.core.status().held_messages, 1);
    node.store();
    assert_eq!(node.take_sent().len(), 1);
}

/// A leader neither accepts messages from nodes outside the configuration nor replies to them.
#[test]
fn s5_3_acks_of_strangers_do_not_count() {
    let mut node = Node::leader_of(Setup { configuration: cluster(3, 0), ..Setup::of(3, 1, &[1]) });
    node.stored_by(77, 2).unwrap();
    node.answers(88, 0, 2).unwrap();
    assert_eq!((node.commit(), node.core.status().followers.len()), (0, 2));
}
