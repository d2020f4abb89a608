//! The quorum functions against a brute-force oracle, alone and joint.
#![allow(clippy::unwrap_used)]

use d_engine_core::{Configuration, LogIndex, NodeId};
use proptest::prelude::*;

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

/// By definition: more than half of the set.
fn majority_of(set: &[u64], yes: &dyn Fn(u64) -> bool) -> bool {
    2 * set.iter().filter(|id| yes(**id)).count() > set.len()
}

/// By trying every index: the highest one that a majority of each set holds.
fn committed_by_definition(sets: &[Vec<u64>], match_of: &[u64]) -> u64 {
    (0..=20)
        .rev()
        .find(|index| sets.iter().all(|set| majority_of(set, &|id| match_of[id as usize] >= *index)))
        .unwrap_or(0)
}

fn voters() -> impl Strategy<Value = Vec<u64>> {
    proptest::sample::subsequence((1_u64..=7).collect::<Vec<_>>(), 1..=7)
}

fn configuration(incoming: &[u64], outgoing: Option<&Vec<u64>>) -> Configuration {
    let next = Configuration::new(incoming.iter().map(|id| node(*id)), None);
    match outgoing {
        Some(outgoing) => Configuration::new(outgoing.iter().map(|id| node(*id)), None).joint_with(&next),
        None => next,
    }
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

#[test]
fn nobody_is_never_a_quorum() {
    assert!(!Configuration::default().has_quorum(|_| true));
}
