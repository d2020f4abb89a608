//! The client side: proposals and their limits, linearizable reads (Raft paper, section 8; thesis,
//! section 6.4), log time, and the rules for membership entries (thesis, section 4.1 and its
//! correction).
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{CoreConfig, EntryKind, Input, Message, Rejected};
use support::{Node, Setup, cluster, entries, id, membership, t};

/// A leader of three whose no-op is committed.
fn settled_with(config: CoreConfig) -> Node {
    let mut node = Node::leader_of(Setup { config, ..Setup::of(3, 1, &[1]) });
    node.settle();
    node
}

/// Clients send their requests to the leader; any other server names the leader that it has heard.
#[test]
fn s8_whoever_does_not_lead_names_the_leader() {
    let mut node = Node::new(3, 4, &[1]);
    assert_eq!(node.propose(1), Err(Rejected::NotLeader { leader: None }));
    assert_eq!(node.read(1), Err(Rejected::NotLeader { leader: None }));
    assert_eq!(node.step(Input::Tick), Err(Rejected::NotLeader { leader: None }));
    node.heartbeat(3, 4, 0).unwrap();
    let elsewhere = Err(Rejected::NotLeader { leader: Some(support::n(3)) });
    assert_eq!(node.propose(1), elsewhere);
    assert_eq!(node.propose_membership(cluster(3, 0)), elsewhere);
    assert_eq!(node.log_terms(), [1]);
}

/// A deposed leader reports that the outcome of its proposals is unknown.
#[test]
fn s8_a_deposed_leader_says_so() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose(1).unwrap();
    assert!(!node.lost_leadership);
    node.deposed_by(2, 9);
    assert!(node.lost_leadership);
}

/// A read is confirmed by a round of heartbeats to a majority before it is served.
#[test]
fn thesis_6_4_a_read_is_confirmed_by_a_round_that_a_majority_answers() {
    let mut node = Node::settled(5, 1, &[1]);
    node.read(7).unwrap();
    let heartbeats =
        node.sent.iter().filter(|(_, message)| matches!(message, Message::Heartbeat { .. }));
    assert_eq!((heartbeats.count(), node.last_round()), (4, 1));
    node.answers(2, 1, 2).unwrap();
    assert_eq!(node.confirmed, []);
    node.answers(3, 1, 2).unwrap();
    assert_eq!(node.confirmed, [(7, 2)]);
    node.answers(4, 1, 2).unwrap();
    assert_eq!(node.confirmed, [(7, 2)], "once");
}

/// The round must be sent after the read arrived: replies to an earlier round prove nothing about
/// the time since.
#[test]
fn thesis_6_4_an_answer_to_a_round_from_before_the_read_confirms_nothing() {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.last_round(), 1);
    node.read(7).unwrap();
    assert_eq!(node.last_round(), 2, "a round of its own");
    node.answers(2, 1, 2).unwrap();
    node.answers(3, 1, 2).unwrap();
    assert_eq!(node.confirmed, []);
    node.answers(2, 2, 2).unwrap();
    assert_eq!(node.confirmed, [(7, 2)]);
}

/// Reads that arrive during a round share the next one.
#[test]
fn thesis_6_4_reads_that_arrive_during_a_round_share_the_next() {
    let mut node = Node::settled(3, 1, &[1]);
    node.read(1).unwrap();
    node.read(2).unwrap();
    node.read(3).unwrap();
    assert_eq!(node.last_round(), 1);
    node.answers(2, 1, 2).unwrap();
    assert_eq!((node.confirmed.as_slice(), node.last_round()), ([(1, 2)].as_slice(), 2));
    node.answers(3, 2, 2).unwrap();
    assert_eq!(node.confirmed, [(1, 2), (2, 2), (3, 2)]);
}

/// A late or duplicate reply counts only for its own round and sender.
#[test]
fn thesis_6_4_duplicate_answers_do_not_make_a_majority() {
    let mut node = Node::settled(5, 1, &[1]);
    node.read(1).unwrap();
    for _ in 0..3 {
        node.answers(2, 1, 2).unwrap();
    }
    assert_eq!(node.confirmed, []);
}

/// If the round was lost, the next heartbeat confirms the read.
#[test]
fn thesis_6_4_a_lost_round_is_made_up_for_by_the_next_heartbeat() {
    let mut node = Node::settled(3, 1, &[1]);
    node.read(1).unwrap();
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    node.answers(2, 2, 2).unwrap();
    assert_eq!(node.confirmed, [(1, 2)]);
}

/// Before an entry of its term is committed, a leader does not know the commit index: reads wait
/// for that.
#[test]
fn thesis_6_4_no_read_before_the_terms_first_commit() {
    let mut node = Node::leader(3, 1, &[1]);
    node.read(7).unwrap();
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    node.answers(3, 1, 0).unwrap();
    assert_eq!(node.confirmed, []);
    node.stored_by(2, 2).unwrap();
    assert_eq!(
        (node.commit(), node.last_round()),
        (2, 2),
        "the commit begins the round of the reads"
    );
    node.answers(3, 1, 0).unwrap();
    assert_eq!(node.confirmed, []);
    node.answers(2, 2, 2).unwrap();
    assert_eq!(node.confirmed, [(7, 2)]);
}

/// The read index is the commit index when the round begins; entries committed later do not delay
/// it.
#[test]
fn thesis_6_4_the_read_index_is_the_commit_index_of_the_rounds_begin() {
    let mut node = Node::settled(3, 1, &[1]);
    node.read(1).unwrap();
    node.propose(1).unwrap();
    node.store();
    node.stored_by(2, 3).unwrap();
    assert_eq!(node.commit(), 3);
    node.answers(2, 1, 3).unwrap();
    assert_eq!(node.confirmed, [(1, 2)]);
}

/// The only voter is its own majority, once its no-op is stored.
#[test]
fn thesis_6_4_a_single_node_confirms_reads_by_itself_after_its_first_commit() {
    let mut node = Node::new(1, 1, &[1]);
    node.pre_campaign();
    node.store();
    node.read(1).unwrap();
    assert_eq!(node.confirmed, []);
    node.store();
    node.read(2).unwrap();
    assert_eq!(node.confirmed, [(1, 2), (2, 2)]);
}

/// Learners do not confirm reads.
#[test]
fn thesis_6_4_learners_do_not_confirm_reads() {
    let mut node = Node::leader_of(Setup { configuration: cluster(3, 2), ..Setup::of(3, 1, &[1]) });
    node.stored_by(2, 2).unwrap();
    node.read(1).unwrap();
    for learner in [4, 5] {
        node.answers(learner, 1, 0).unwrap();
    }
    assert_eq!(node.confirmed, []);
}

/// A deposed leader can no longer confirm reads: those that wait or are in a round are lost.
#[test]
fn thesis_6_4_reads_are_lost_with_leadership() {
    let mut node = Node::settled(3, 1, &[1]);
    node.read(1).unwrap();
    node.read(2).unwrap();
    node.deposed_by(2, 9);
    assert_eq!(
        (node.lost_reads.as_slice(), node.confirmed.as_slice()),
        ([1, 2].as_slice(), [].as_slice())
    );
    node.answers(3, 1, 2).unwrap();
    assert_eq!(node.confirmed, []);
}

/// The same if it steps down because it has lost its quorum.
#[test]
fn thesis_6_4_reads_are_lost_when_the_quorum_is() {
    let mut node = Node::settled(3, 1, &[1]);
    node.read(1).unwrap();
    node.pass(1_000);
    node.step(Input::Deadline).unwrap();
    assert_eq!(node.lost_reads, [1]);
}

/// The number of waiting reads is limited; reads beyond it are refused, not queued.
#[test]
fn thesis_6_4_waiting_reads_are_bounded() {
    let mut node = settled_with(CoreConfig { waiting_reads_max: 2, ..CoreConfig::default() });
    node.read(1).unwrap();
    node.read(2).unwrap();
    assert_eq!(node.read(3), Err(Rejected::TooManyReads));
    node.answers(2, 1, 2).unwrap();
    node.read(4).unwrap();
    assert_eq!(node.confirmed, [(1, 2)]);
}

/// The bytes that wait for commit are limited; a commit makes space again.
#[test]
fn thesis_10_2_uncommitted_bytes_are_bounded() {
    let mut node =
        settled_with(CoreConfig { uncommitted_bytes_max: 3 * 74, ..CoreConfig::default() });
    node.propose(3).unwrap();
    assert_eq!(node.propose(1), Err(Rejected::TooMuchUncommitted));
    assert_eq!(node.core.log().last, id(2, 5));
    node.store();
    node.stored_by(2, 3).unwrap();
    node.propose(1).unwrap();
    assert_eq!(node.propose(1), Err(Rejected::TooMuchUncommitted));
}

/// From a batch of commands, the first ones are accepted as far as they fit; only a single command
/// is accepted beyond the limit.
#[test]
fn thesis_10_2_of_a_batch_as_much_as_fits_can_be_taken() {
    let mut node =
        settled_with(CoreConfig { uncommitted_bytes_max: 3 * 74, ..CoreConfig::default() });
    assert_eq!(node.core.fitting(&[10, 10, 10, 10]), 3);
    assert_eq!(node.core.fitting(&[1_000, 10]), 1);
    assert_eq!(
        node.step(Input::Propose { sizes: vec![1_000, 10] }),
        Err(Rejected::TooMuchUncommitted)
    );
    node.propose(1).unwrap();
    assert_eq!(node.core.fitting(&[10, 10, 10]), 2);
    assert_eq!(node.core.fitting(&[1_000]), 0);
}

/// Commands without payload are limited too.
#[test]
fn thesis_10_2_empty_commands_are_bounded() {
    let mut node = settled_with(CoreConfig { uncommitted_bytes_max: 640, ..CoreConfig::default() });
    node.step(Input::Propose { sizes: vec![0; 10] }).unwrap();
    assert_eq!(node.step(Input::Propose { sizes: vec![0] }), Err(Rejected::TooMuchUncommitted));
}

/// One command of any size is accepted if nothing waits; otherwise it could never be accepted.
#[test]
fn thesis_10_2_a_large_command_is_let_in_alone() {
    let mut node = settled_with(CoreConfig { uncommitted_bytes_max: 30, ..CoreConfig::default() });
    node.step(Input::Propose { sizes: vec![1_000] }).unwrap();
    assert_eq!(node.propose(1), Err(Rejected::TooMuchUncommitted));
}

/// A tick carries only the time. It is not a command, and like a command it is rejected during a
/// transfer.
#[test]
fn a_tick_puts_the_time_into_the_log() {
    let mut node = Node::settled(3, 1, &[1]);
    node.pass(700);
    node.step(Input::Tick).unwrap();
    assert_eq!(node.created(), [(EntryKind::Tick, 3, 1, 700)]);
    assert_eq!(node.take_appends().len(), 2);
    node.step(Input::TransferLeadership { to: None }).unwrap();
    assert_eq!(node.step(Input::Tick), Err(Rejected::TransferInProgress));
}

/// No membership entry before the leader has committed one of its own term (the correction to the
/// thesis, section 4.1: otherwise majorities of two leaders might not meet).
#[test]
fn thesis_4_1_no_membership_entry_before_the_terms_first_commit() {
    let mut node = Node::leader(3, 1, &[1]);
    assert_eq!(node.propose_membership(cluster(3, 0)), Err(Rejected::MembershipBusy));
    node.stored_by(2, 2).unwrap();
    node.propose_membership(cluster(3, 0)).unwrap();
    assert_eq!(node.created().last(), Some(&(EntryKind::Membership, 3, 1, 0)));
}

/// One membership entry at a time.
#[test]
fn thesis_4_1_one_membership_entry_at_a_time() {
    let mut node = Node::settled(3, 1, &[1]);
    node.propose_membership(cluster(3, 0)).unwrap();
    assert_eq!(node.propose_membership(cluster(3, 0)), Err(Rejected::MembershipBusy));
    node.propose(1).unwrap();
    node.store();
    node.stored_by(2, 3).unwrap();
    node.propose_membership(cluster(3, 0)).unwrap();
    assert_eq!(node.core.log().last, id(2, 5));
}

/// An uncommitted membership entry of an earlier leader counts as well.
#[test]
fn thesis_4_1_an_inherited_membership_entry_is_waited_for() {
    let mut setup = Setup::of(3, 1, &[1]);
    setup.log.push(membership(1, &cluster(3, 0)));
    setup.log.extend(entries(&[1]));
    let mut node = Node::leader_of(setup);
    assert_eq!(node.propose_membership(cluster(3, 0)), Err(Rejected::MembershipBusy));
    node.stored_by(2, 4).unwrap();
    node.propose_membership(cluster(3, 0)).unwrap();
}

/// Voters change through a joint configuration only; the rejection has no effect.
#[test]
fn s6_a_change_of_voters_without_a_joint_configuration_is_refused() {
    let mut node = Node::settled(3, 1, &[1]);
    assert_eq!(node.propose_membership(cluster(4, 0)), Err(Rejected::IllegalStep));
    assert_eq!(node.propose_membership(cluster(2, 0)), Err(Rejected::IllegalStep));
    assert_eq!((node.core.log().last, node.orders.len()), (id(2, 2), 0));
}

/// The configuration in force at a restart is the last one in the log, committed or not (section
/// 6).
#[test]
fn s6_a_restarted_node_uses_the_last_configuration_in_its_log() {
    let mut setup = Setup::of(3, 1, &[1]);
    setup.log.push(membership(1, &cluster(5, 0)));
    let mut node = Node::start(setup);
    assert_eq!((node.core.configuration(), node.commit()), (&cluster(5, 0), 0));
    node.pre_campaign();
    assert_eq!(node.take_sent().len(), 4);
    node.receive(2, Message::PreVoteReply { term: t(2), granted: true, wall_ms: 0 }).unwrap();
    assert_eq!(node.role(), d_engine_core::RoleKind::PreCandidate, "two of five");
}
