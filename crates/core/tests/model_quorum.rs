//! The quorum functions against a brute-force oracle, alone and joint.
#![allow(clippy::unwrap_used)]

use d_engine_core::{Configuration, LogIndex, MembershipStep, NodeId};
use proptest::prelude::*;

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

/// The definition: more than half of the set.
fn majority_of(set: &[u64], yes: &dyn Fn(u64) -> bool) -> bool {
    2 * set.iter().filter(|id| yes(**id)).count() > set.len()
}

/// The definition, by trying every index: the highest one that a majority of each set holds.
fn committed_by_definition(sets: &[Vec<u64>], match_of: &[u64]) -> u64 {
    (0..=20)
        .rev()
        .find(|index| {
            sets.iter().all(|set| majority_of(set, &|id| match_of[id as usize] >= *index))
        })
        .unwrap_or(0)
}

fn voters() -> impl Strategy<Value = Vec<u64>> {
    proptest::sample::subsequence((1_u64..=7).collect::<Vec<_>>(), 1..=7)
}

fn configuration(incoming: &[u64], outgoing: Option<&Vec<u64>>) -> Configuration {
    let next = Configuration::new(incoming.iter().map(|id| node(*id)), None);
    match outgoing {
        Some(outgoing) => {
            Configuration::new(outgoing.iter().map(|id| node(*id)), None).joint_with(&next)
        }
        None => next,
    }
}

/// A step of a chain: which kind, towards which voters, and whether its entry is committed before
/// the next one is appended.
type Step = (bool, Vec<u64>, bool);

fn chain() -> impl Strategy<Value = (Vec<u64>, Vec<Step>)> {
    let step = (any::<bool>(), voters(), any::<bool>());
    (voters(), proptest::collection::vec(step, 4))
}

/// What a leader may append after `now`, by the rules of `docs/divergences.md`: anything legal
/// after a committed entry; after an uncommitted joint one only the return to its outgoing voters.
fn following(now: &Configuration, is_committed: bool, step: &Step) -> Option<Configuration> {
    let (back, towards, _) = step;
    let simple = |voters: &[NodeId]| Configuration::new(voters.iter().copied(), None);
    let next = match (now.is_joint(), is_committed) {
        (true, true) if !back => simple(now.voters()),
        (true, _) => simple(now.outgoing()),
        (false, true) => now.joint_with(&configuration(towards, None)),
        (false, false) => return None,
    };
    let legal = now.step_to(&next)?;
    (is_committed || legal == MembershipStep::RollBack).then_some(next)
}

/// Whether every quorum of the one has a node in common with every quorum of the other, over all
/// sets of nodes 1 to 7.
fn always_meet(one: &Configuration, other: &Configuration) -> bool {
    (0_u32..128).all(|set| {
        let holds = |id: NodeId| set & (1 << (id.get() - 1)) != 0;
        !(one.has_quorum(holds) && other.has_quorum(|id| !holds(id)))
    })
}

proptest! {
    #[test]
    fn a_quorum_is_a_majority_of_each_set(
        incoming in voters(),
        outgoing in proptest::option::of(voters()),
        yes in proptest::collection::vec(any::<bool>(), 8),
    ) {
        let subject = configuration(&incoming, outgoing.as_ref());
        let says = |id: u64| yes[id as usize];
        let expected = majority_of(&incoming, &says)
            && outgoing.as_ref().is_none_or(|outgoing| majority_of(outgoing, &says));
        prop_assert_eq!(subject.has_quorum(|id| says(id.get())), expected);
        prop_assert_eq!(subject.is_lost(|id| !says(id.get())), !expected);
    }

    #[test]
    fn the_commit_index_is_the_highest_that_a_quorum_holds(
        incoming in voters(),
        outgoing in proptest::option::of(voters()),
        match_of in proptest::collection::vec(0_u64..=20, 8),
    ) {
        let subject = configuration(&incoming, outgoing.as_ref());
        let sets: Vec<Vec<u64>> = std::iter::once(incoming).chain(outgoing).collect();
        let expected = committed_by_definition(&sets, &match_of);
        let committed = subject.committed_index(|id| LogIndex::new(match_of[id.get() as usize]));
        prop_assert_eq!(committed.get(), expected);
    }

    #[test]
    fn two_quorums_of_one_set_always_meet(
        incoming in voters(),
        one in proptest::collection::vec(any::<bool>(), 8),
        other in proptest::collection::vec(any::<bool>(), 8),
    ) {
        let subject = configuration(&incoming, None);
        let both = subject.has_quorum(|id| one[id.get() as usize])
            && subject.has_quorum(|id| other[id.get() as usize]);
        let meet = incoming.iter().any(|id| one[*id as usize] && other[*id as usize]);
        prop_assert!(!both || meet);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// The configurations that can decide something at the same time: the last committed one and
    /// all after it.
    #[test]
    fn every_legal_chain_of_configurations_overlaps((first, steps) in chain()) {
        let mut in_play = vec![configuration(&first, None)];
        for step in &steps {
            let is_committed = in_play.len() == 1;
            let Some(next) = following(in_play.last().unwrap(), is_committed, step) else {
                in_play.drain(..in_play.len() - 1);
                continue;
            };
            for earlier in &in_play {
                prop_assert!(always_meet(earlier, &next), "{:?} and {:?}", earlier, next);
            }
            in_play.push(next);
            if step.2 {
                in_play.drain(..in_play.len() - 1);
            }
        }
    }

    /// What the joint configuration is for: of two sets of voters whose quorums need not meet,
    /// neither follows the other in one step.
    #[test]
    fn sets_that_need_not_overlap_are_never_one_step_apart(one in voters(), other in voters()) {
        let (one, other) = (configuration(&one, None), configuration(&other, None));
        prop_assert!(always_meet(&one, &other) || one.step_to(&other).is_none());
        let both = one.joint_with(&other);
        prop_assert!(always_meet(&one, &both) && always_meet(&both, &other));
    }
}

#[test]
fn nobody_is_never_a_quorum() {
    assert!(!Configuration::default().has_quorum(|_| true));
}
