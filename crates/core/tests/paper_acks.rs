//! When a follower acknowledges entries, and what an acknowledgement says: Raft paper, figure 2
//! (AppendEntries) and section 5.3.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{Message, Rejected};
use support::{Node, conflict, follower, id, persisted};

/// An ack promises stable storage: it is sent after the entries are persisted.
#[test]
fn fig2_an_ack_leaves_only_once_the_entries_are_stored() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 0).unwrap();
    assert_eq!(node.take_acks(), []);
    node.store();
    assert_eq!(node.take_acks(), [persisted(3)]);
}

/// A duplicate of an append that is not persisted yet is not acknowledged early either.
#[test]
fn fig2_a_duplicate_append_waits_for_the_first_ones_write() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4, 4], 0).unwrap();
    node.append(2, 4, id(1, 1), &[4, 4], 0).unwrap();
    assert_eq!((node.take_acks(), node.orders.len()), (vec![], 1));
    node.store();
    assert_eq!(node.take_acks(), [persisted(3)]);
    node.append(2, 4, id(1, 1), &[4, 4], 0).unwrap();
    assert_eq!(node.take_acks(), [persisted(3)], "persisted entries are acknowledged at once");
}

/// The ack covers the entries of the message, not the rest of the follower's log.
#[test]
fn s5_3_an_ack_names_the_end_of_the_message_not_of_the_log() {
    let mut node = follower(4, &[1, 1, 1, 1]);
    node.append(2, 4, id(1, 1), &[1], 0).unwrap();
    assert_eq!(node.take_acks(), [persisted(2)]);
}

/// Acks that waited for one write are sent as one: the last covers the others.
#[test]
fn s5_3_acks_that_waited_together_leave_as_one() {
    let mut node = follower(4, &[1]);
    for index in 1..=5 {
        let prev = if index == 1 { id(1, 1) } else { id(4, index) };
        node.append(2, 4, prev, &[4], 0).unwrap();
    }
    assert_eq!(node.core.status().held_messages, 5);
    node.store();
    assert_eq!(node.take_acks(), [persisted(6)]);
}

/// An ack covers earlier ones to the same receiver, not those to another.
#[test]
fn s5_3_acks_to_different_receivers_are_not_merged() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.append(3, 4, id(4, 2), &[4], 0).unwrap();
    node.store();
    let receivers: Vec<u64> = node.take_sent().into_iter().map(|(to, _)| to).collect();
    assert_eq!(receivers, [2, 3]);
}

/// A write that covers some of the entries releases the acks of those.
#[test]
fn s5_3_a_partial_write_releases_what_it_covers() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.append(2, 4, id(4, 2), &[4], 0).unwrap();
    node.store_order(1).unwrap();
    assert_eq!(node.take_acks(), [persisted(2)]);
    assert_eq!(node.core.status().held_messages, 1);
}

/// A refusal between two acks is sent separately.
#[test]
fn s5_3_a_refusal_is_not_swallowed_by_the_acks_around_it() {
    let mut node = follower(3, &[1]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.append(2, 4, id(4, 9), &[4], 0).unwrap();
    node.append(2, 4, id(4, 2), &[4], 0).unwrap();
    node.store();
    assert_eq!(node.take_acks(), [persisted(2), conflict(9, id(4, 2)), persisted(3)]);
}

/// An ack to a leader of an earlier term has no meaning.
#[test]
fn s5_3_acks_of_an_earlier_term_are_dropped() {
    let mut node = follower(4, &[1]);
    node.append(2, 4, id(1, 1), &[4], 0).unwrap();
    node.heartbeat(3, 5, 0).unwrap();
    node.store();
    let sent = node.take_sent();
    assert!(matches!(sent.as_slice(), [(3, Message::HeartbeatReply { .. })]), "{sent:?}");
}

/// A leader accepts no ack for entries that it never sent.
#[test]
fn s5_3_acks_past_the_end_of_the_log_are_rejected() {
    let mut node = Node::leader(3, 1, &[1]);
    assert_eq!(node.stored_by(2, 3), Err(Rejected::OutOfRange));
    assert_eq!(node.answers_holding(2, 0, 3, 3), Err(Rejected::OutOfRange));
    assert_eq!(node.answers_holding(2, 0, 1, 3), Err(Rejected::OutOfRange));
    assert_eq!(node.answers(2, 1, 2), Err(Rejected::OutOfRange), "a round that was never sent");
    assert_eq!(node.commit(), 0);
}
