//! What a node must achieve before it votes, and what is checked before the change.

use std::time::Duration;

use super::*;

// What a node must achieve before it votes, and what is checked before the change.

fn promote_four(node: &mut Node) -> Result<(), Rejected> {
    let both = node.core.configuration().joint_with(&of(&[1, 2, 3, 4], &[]));
    propose_at_risk(node, both)
}

fn with_learner(beats_kept_up: usize) -> Node {
    let mut node = elected(of(&[1, 2, 3], &[4]), Vec::new(), &[2, 3]);
    beats(&mut node, &[2, 3, 4], beats_kept_up);
    node
}

fn refused(result: Result<(), Rejected>) -> bool {
    result == Err(Rejected::NotCaughtUp(n(4)))
}

#[test]
fn thesis_4_2_1_a_new_voter_keeps_up_for_two_longest_election_timeouts() {
    assert!(refused(promote_four(&mut with_learner(19))));
    assert_eq!(promote_four(&mut with_learner(22)), Ok(()));
}

#[test]
fn thesis_4_2_1_a_new_voter_was_heard_within_two_heartbeats() {
    let mut node = with_learner(30);
    beats(&mut node, &[2, 3], 2);
    assert!(node.core.is_promotable(n(4), node.now));
    beats(&mut node, &[2, 3], 1);
    assert!(refused(promote_four(&mut node)));
}

#[test]
fn thesis_4_2_1_a_new_voter_receives_entries() {
    let mut node = with_learner(30);
    node.step(Input::PeerLost(n(4))).unwrap();
    assert!(refused(promote_four(&mut node)), "where its log ends is not known");
}

#[test]
fn thesis_4_2_1_the_rounds_of_a_new_voter_are_short() {
    let mut node = with_learner(30);
    let mut stored = last(&node);
    for beat in 0..60 {
        node.propose(1).unwrap();
        beats(&mut node, &[2, 3], 1);
        if beat % 6 == 5 {
            // It has persisted now what the log held six heartbeats ago, and nothing newer.
            stored = last(&node);
        }
        let (round, received) = (node.last_round(), last(&node));
        node.answers_holding(4, round, received, stored).unwrap();
    }
    assert!(refused(promote_four(&mut node)));
    beats(&mut node, &[2, 3, 4], 25);
    assert_eq!(promote_four(&mut node), Ok(()));
}

#[test]
fn thesis_4_2_1_one_long_round_is_enough_to_begin_again() {
    let mut node = with_learner(30);
    node.propose(1).unwrap();
    for _ in 0..7 {
        beats(&mut node, &[2, 3], 1);
        let (round, received) = (node.last_round(), last(&node));
        node.answers_holding(4, round, received, received - 1).unwrap();
    }
    assert!(refused(promote_four(&mut node)), "it is heard, but its round does not end");
    beats(&mut node, &[2, 3, 4], 1);
    assert!(refused(promote_four(&mut node)), "the round has ended, late");
    beats(&mut node, &[2, 3, 4], 25);
    assert_eq!(promote_four(&mut node), Ok(()));
}

#[test]
fn a_majority_of_each_set_must_have_been_heard() {
    let mut node = grown(&[1, 2, 3], &[4, 5]);
    beats(&mut node, &[4, 5], 3);
    let replaced = joint(&[1, 2, 3], &[1, 4, 5]);
    let outgoing = Err(Rejected::WouldLoseQuorum(VoterSet::Outgoing));
    assert_eq!(node.propose_membership(replaced.clone()), outgoing);
    assert_eq!(propose_at_risk(&mut node, replaced), Ok(()));
    let mut node = grown(&[1, 2, 3], &[]);
    beats(&mut node, &[2], 3);
    let incoming = Err(Rejected::WouldLoseQuorum(VoterSet::Incoming));
    assert_eq!(node.propose_membership(joint(&[1, 2, 3], &[1, 3])), incoming);
    assert_eq!(node.propose_membership(joint(&[1, 2, 3], &[1, 2])), Ok(()));
    let mut node = grown(&[1, 2, 3], &[]);
    beats(&mut node, &[2], 3);
    assert_eq!(propose_at_risk(&mut node, joint(&[1, 2, 3], &[1, 3])), Ok(()));
}

/// A voter that comes back with an old log answers at once, and stores nothing new for long.
#[test]
fn a_voter_that_lags_does_not_count_towards_the_majority_of_a_change() {
    let mut node = grown(&[1, 2, 3], &[]);
    let stored = last(&node);
    for _ in 0..7 {
        node.propose(1).unwrap();
        beats(&mut node, &[3], 1);
        let (round, received) = (node.last_round(), last(&node));
        node.answers_holding(2, round, received, stored).unwrap();
    }
    let incoming = Err(Rejected::WouldLoseQuorum(VoterSet::Incoming));
    assert_eq!(node.propose_membership(joint(&[1, 2, 3], &[1, 2])), incoming);
    beats(&mut node, &[2, 3], 1);
    assert_eq!(node.propose_membership(joint(&[1, 2, 3], &[1, 2])), incoming, "its round was long");
    beats(&mut node, &[2, 3], 1);
    assert_eq!(node.propose_membership(joint(&[1, 2, 3], &[1, 2])), Ok(()));
}

#[test]
fn an_accepted_risk_never_makes_a_voter_of_a_node_that_lags() {
    assert!(refused(promote_four(&mut with_learner(5))));
    let mut node = grown(&[1, 2, 3], &[]);
    let stranger = joint(&[1, 2, 3], &[1, 2, 3, 4]);
    assert!(refused(propose_at_risk(&mut node, stranger)), "nothing is known of it");
}

/// The only voter of the last configuration may have acknowledged the leader that this
/// configuration leaves out, and that leader may still hold a lease.
#[test]
fn thesis_6_4_1_the_only_voter_waits_after_a_restart_if_it_has_followed_a_leader() {
    let log = vec![membership(1, &joint(&[1, 2], &[1])), membership(1, &of(&[1], &[]))];
    let setup = |stickiness_ms| Setup {
        configuration: of(&[1, 2], &[]),
        hard_state: HardState {
            term: t(1),
            stickiness: Duration::from_millis(stickiness_ms),
            ..HardState::default()
        },
        log: log.clone(),
        ..Setup::of(2, 1, &[])
    };
    let waits = |stickiness_ms| Node::start_as_stored(setup(stickiness_ms)).deadline_in_ms();
    assert_eq!(waits(0), Some(0), "it has always been alone, or has led");
    assert!(waits(500) >= Some(500), "{:?}", waits(500));
}
