//! Log time: it is anchored to the wall clocks of a quorum and monotonic within a term. These are
//! the rules of `src/state/log_clock.rs`, tested from outside.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{ClockState, EntryKind, Input, Message, Rejected, RoleKind};
use support::{Node, Setup, n, t};

const RIGHT: u64 = 1_700_000_000_000;
const HOUR: u64 = 3_600_000;
const TEN_YEARS: u64 = 10 * 365 * 24 * HOUR;

/// Node 1 of `voters` before its election: its wall clock shows `own`, and its log ends at log time
/// `log_ms`.
fn before_election(voters: u64, own: u64, log_ms: u64) -> Node {
    let mut setup = Setup::of(voters, 1, &[1]);
    setup.log[0].time_ms = log_ms;
    let mut node = Node::start(setup);
    node.wall_ms = own;
    node.pre_campaign();
    node
}

fn pre_vote(node: &mut Node, from: u64, wall_ms: u64) {
    let message = Message::PreVoteReply { term: t(2), granted: true, wall_ms };
    node.receive(from, message).unwrap();
}

fn vote(node: &mut Node, from: u64, wall_ms: u64) {
    node.receive(from, Message::VoteReply { term: t(2), granted: true, wall_ms }).unwrap();
}

fn clock(node: &Node) -> Option<ClockState> {
    node.core.status().clock
}

/// Node 1 leads three whose clocks are `own`, `second` and `third`.
fn leader(own: u64, second: u64, third: u64) -> Node {
    let mut node = before_election(3, own, 0);
    pre_vote(&mut node, 2, second);
    node.store();
    vote(&mut node, 2, second);
    vote(&mut node, 3, third);
    node
}

fn times(node: &mut Node) -> Vec<u64> {
    node.created().into_iter().map(|(_, _, _, time_ms)| time_ms).collect()
}

#[test]
fn the_first_entry_of_a_term_has_the_time_of_the_quorum() {
    assert_eq!(times(&mut leader(RIGHT, RIGHT + 300, RIGHT)), [RIGHT]);
    assert_eq!(times(&mut leader(RIGHT, RIGHT + TEN_YEARS, RIGHT + 10)), [RIGHT]);
}

/// FINDINGS T1: a leader whose clock is ten years ahead stamps its entries with the time of the
/// other nodes.
#[test]
fn a_leader_with_a_wrong_clock_goes_by_the_clocks_of_the_others() {
    let mut node = leader(RIGHT + TEN_YEARS, RIGHT, RIGHT + 10);
    node.store();
    node.pass(60_000);
    node.propose(1).unwrap();
    assert_eq!(times(&mut node), [RIGHT, RIGHT + 60_000]);
    assert_eq!(clock(&node), Some(ClockState::Agreed));
}

/// The clocks of the winner and its voter differ. The third node's clock may show which one is
/// wrong; the winner waits a heartbeat interval for it.
#[test]
fn a_winner_waits_a_heartbeat_interval_for_clocks_that_agree() {
    let mut node = before_election(3, RIGHT + TEN_YEARS, 0);
    pre_vote(&mut node, 2, RIGHT);
    node.store();
    vote(&mut node, 2, RIGHT);
    assert_eq!((node.role(), node.deadline_in_ms()), (RoleKind::Candidate, Some(100)));
    node.pass(20);
    pre_vote(&mut node, 3, RIGHT + 20);
    vote(&mut node, 3, RIGHT + 20);
    assert_eq!((node.role(), times(&mut node)), (RoleKind::Leader, vec![RIGHT + 20]));

    let mut node = before_election(3, RIGHT + TEN_YEARS, 5_000);
    pre_vote(&mut node, 2, RIGHT);
    node.store();
    vote(&mut node, 2, RIGHT);
    node.pass(100);
    node.step(Input::Deadline).unwrap();
    assert_eq!((node.role(), clock(&node)), (RoleKind::Leader, Some(ClockState::NoQuorum)));
    assert_eq!(times(&mut node), [5_000], "log time continues from the log");
}

/// A heartbeat reply brings the missing clock. Before the first command is stamped, log time may
/// jump; afterwards it runs a tenth faster.
#[test]
fn an_agreement_that_comes_late_leaps_only_before_the_first_command() {
    for (first, expected) in [(false, RIGHT), (true, 5_000 + 100 + 1_100)] {
        let mut node = before_election(3, RIGHT + TEN_YEARS, 5_000);
        pre_vote(&mut node, 2, RIGHT - 2_100);
        node.store();
        vote(&mut node, 2, RIGHT - 2_100);
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        if first {
            node.propose(1).unwrap();
        }
        node.pass(100);
        node.step(Input::Deadline).unwrap();
        let round = node.last_round();
        node.heard_with_clock(3, round, RIGHT - 1_000);
        node.heard_with_clock(2, round, RIGHT - 1_000);
        assert_eq!(clock(&node), Some(ClockState::Agreed));
        node.pass(1_000);
        node.propose(1).unwrap();
        assert_eq!(times(&mut node).last(), Some(&expected));
    }
}

#[test]
fn log_time_never_goes_back() {
    let mut node = leader(RIGHT, RIGHT, RIGHT);
    node.wall_ms = RIGHT - HOUR;
    node.propose(1).unwrap();
    assert_eq!(times(&mut node), [RIGHT, RIGHT]);

    let mut node = before_election(3, RIGHT, RIGHT + HOUR);
    pre_vote(&mut node, 2, RIGHT);
    node.store();
    vote(&mut node, 2, RIGHT);
    node.pass(1_000);
    node.propose(1).unwrap();
    assert_eq!(
        times(&mut node),
        [RIGHT + HOUR, RIGHT + HOUR + 900],
        "slower until the clocks have caught up"
    );
}

#[test]
fn a_node_that_is_alone_holds_log_time_when_its_clock_leaps_at_a_start() {
    let mut node = before_election(1, RIGHT + TEN_YEARS, RIGHT);
    node.store();
    assert_eq!(clock(&node), Some(ClockState::Held));
    node.pass(500);
    node.propose(1).unwrap();
    assert_eq!(times(&mut node), [RIGHT, RIGHT + 500]);

    let mut setup = Setup::of(1, 1, &[1]);
    setup.log[0].time_ms = RIGHT;
    let mut node = Node::start_accepting_the_clock(setup);
    node.wall_ms = RIGHT + TEN_YEARS;
    node.pre_campaign();
    node.store();
    assert_eq!(
        (clock(&node), times(&mut node)),
        (Some(ClockState::Agreed), vec![RIGHT + TEN_YEARS])
    );
}

#[test]
fn a_tick_is_compared_with_log_time() {
    let mut node = leader(RIGHT + TEN_YEARS, RIGHT, RIGHT);
    assert_eq!(node.core.log_time_ms(node.now), Some(RIGHT));
    node.step(Input::Tick).unwrap();
    assert_eq!(
        node.created().last().map(|entry| (entry.0, entry.3)),
        Some((EntryKind::Tick, RIGHT))
    );
    let follower = Node::new(3, 1, &[1]);
    assert_eq!(follower.core.log_time_ms(follower.now), None);
}

#[test]
fn a_time_after_the_year_9999_is_refused() {
    let mut node = Node::new(3, 1, &[1]);
    let mut entry = support::entry(1);
    entry.time_ms = u64::MAX;
    assert_eq!(node.append_of(2, 1, support::id(1, 1), vec![entry], 0), Err(Rejected::OutOfRange));
    let mut node = Node::leader(3, 1, &[1]);
    let reply = Message::VoteReply { term: node.core.term(), granted: true, wall_ms: u64::MAX };
    assert_eq!(node.receive(3, reply), Err(Rejected::OutOfRange));
    node.step(Input::PeerLost(n(3))).unwrap();
}
