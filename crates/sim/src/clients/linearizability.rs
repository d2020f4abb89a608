//! Decides whether a history of two keys is linearizable, with operations on one key and on both.
//! The algorithm is the search of Wing and Gong with Lowe's memo: try every operation that could
//! come first, and remember the pairs (set of done operations, values) that led nowhere.

use std::collections::BTreeSet;

/// The values of the two keys.
pub type Values = [Option<u64>; 2];

/// What an operation did to its key, or to both keys, and what it observed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Set the key; observed nothing.
    Put(u64),
    /// Removed the key; observed nothing.
    Delete,
    /// Set both keys; observed nothing.
    PutBoth(u64),
    /// Read the key.
    Get(Option<u64>),
    /// Read both keys at the same moment.
    GetBoth([Option<u64>; 2]),
    /// A compare-and-swap that succeeded.
    CasDone {
        /// The value to compare with.
        expected: Option<u64>,
        /// The value that was set.
        new: u64,
    },
    /// A compare-and-swap that found another value.
    CasRefused {
        /// The value to compare with.
        expected: Option<u64>,
        /// The value that was found.
        found: Option<u64>,
    },
    /// A compare-and-swap of unknown outcome.
    CasUnknown {
        /// The value to compare with.
        expected: Option<u64>,
        /// The value that may have been set.
        new: u64,
    },
}

/// One operation of a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// When it was called.
    pub called: u64,
    /// When it returned. `None` if the outcome is unknown: it may take effect at any time after the
    /// call, or never.
    pub returned: Option<u64>,
    /// The operation's key, 0 or 1; ignored for operations on both.
    pub slot: usize,
    /// What it did.
    pub action: Action,
}

/// The result of checking a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// An order of the operations exists that explains every observation.
    Linearizable,
    /// No such order exists. Carries the operation that could not be placed in the longest attempt.
    Violation(Operation),
    /// The search was stopped after too many steps; the history is too hard to check.
    Unknown,
}

impl Action {
    /// Returns the values after the action on the key `slot`, or `None` if its observation
    /// contradicts `values`.
    fn apply(self, slot: usize, mut values: Values) -> Option<Values> {
        match self {
            Self::PutBoth(new) => Some([Some(new); 2]),
            Self::GetBoth(seen) => (seen == values).then_some(values),
            _ => {
                let value = values.get_mut(slot)?;
                *value = self.apply_to_one(*value)?;
                Some(values)
            }
        }
    }

    fn apply_to_one(self, value: Option<u64>) -> Option<Option<u64>> {
        match self {
            Self::Put(new) => Some(Some(new)),
            Self::Delete => Some(None),
            Self::Get(seen) => (seen == value).then_some(value),
            Self::CasDone { expected, new } => (expected == value).then_some(Some(new)),
            Self::CasRefused { expected, found } => {
                (found == value && expected != value).then_some(value)
            }
            Self::CasUnknown { expected, new } => {
                Some(if expected == value { Some(new) } else { value })
            }
            Self::PutBoth(_) | Self::GetBoth(_) => None,
        }
    }

    fn writes(self) -> Option<u64> {
        match self {
            Self::Put(new)
            | Self::PutBoth(new)
            | Self::CasDone { new, .. }
            | Self::CasUnknown { new, .. } => Some(new),
            Self::Delete | Self::Get(_) | Self::GetBoth(_) | Self::CasRefused { .. } => None,
        }
    }

    fn sees(self) -> Values {
        match self {
            Self::Get(value) | Self::CasRefused { found: value, .. } => [value, None],
            Self::GetBoth(values) => values,
            Self::CasDone { expected, .. } => [expected, None],
            Self::Put(_) | Self::PutBoth(_) | Self::Delete | Self::CasUnknown { .. } => {
                [None, None]
            }
        }
    }
}

/// Drops writes of unknown outcome whose value no operation has observed. Because every value is
/// written once, they explain nothing, and each of them would double the search.
fn relevant(history: &[Operation]) -> Vec<Operation> {
    let seen: BTreeSet<u64> = history.iter().flat_map(|op| op.action.sees()).flatten().collect();
    let mut kept: Vec<Operation> = history
        .iter()
        .filter(|op| {
            op.returned.is_some() || op.action.writes().is_none_or(|value| seen.contains(&value))
        })
        .copied()
        .collect();
    kept.sort_by_key(|op| op.called);
    kept
}

/// Checks a history of two keys that start without a value. Every written value must be unique. The
/// search stops with `Unknown` after `steps_max` steps.
#[must_use]
pub fn check(history: &[Operation], steps_max: u64) -> Verdict {
    let operations = relevant(history);
    let words = operations.len().div_ceil(64);
    let mut done = vec![0_u64; words];
    let mut memo: BTreeSet<(Vec<u64>, Values)> = BTreeSet::new();
    // A stack of decisions: the operation that was placed, and the values before it.
    let mut placed: Vec<(usize, Values)> = Vec::new();
    let mut values: Values = [None, None];
    let mut candidate = 0_usize;
    let mut steps = 0_u64;
    let mut deepest: (usize, Option<usize>) = (0, None);
    loop {
        steps += 1;
        if steps > steps_max {
            return Verdict::Unknown;
        }
        let first_return = first_return(&operations, &done);
        let Some(bound) = first_return else { return Verdict::Linearizable };
        // Only an operation that was called before the earliest return of the remaining ones can
        // come first.
        let next = (candidate..operations.len()).find(|index| {
            !is_done(&done, *index)
                && operations.get(*index).is_some_and(|op| {
                    op.called <= bound.0 && op.action.apply(op.slot, values).is_some()
                })
        });
        match next.and_then(|index| operations.get(index).map(|op| (index, op))) {
            Some((index, operation)) => {
                mark(&mut done, index);
                let Some(after) = operation.action.apply(operation.slot, values) else {
                    return Verdict::Unknown;
                };
                if memo.insert((done.clone(), after)) {
                    placed.push((index, values));
                    values = after;
                    candidate = 0;
                } else {
                    unmark(&mut done, index);
                    candidate = index + 1;
                }
            }
            None => {
                if placed.len() >= deepest.0 {
                    deepest = (placed.len(), Some(bound.1));
                }
                let Some((index, before)) = placed.pop() else {
                    let culprit = deepest.1.and_then(|index| operations.get(index)).copied();
                    return culprit.map_or(Verdict::Unknown, Verdict::Violation);
                };
                unmark(&mut done, index);
                values = before;
                candidate = index + 1;
            }
        }
    }
}

/// Returns the earliest return time among the operations that are not placed, and that operation's
/// index. `None` if only operations of unknown outcome are left: they need not take effect.
fn first_return(operations: &[Operation], done: &[u64]) -> Option<(u64, usize)> {
    operations
        .iter()
        .enumerate()
        .filter(|(index, _)| !is_done(done, *index))
        .filter_map(|(index, op)| op.returned.map(|at| (at, index)))
        .min()
}

fn is_done(done: &[u64], index: usize) -> bool {
    done.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
}

fn mark(done: &mut [u64], index: usize) {
    if let Some(word) = done.get_mut(index / 64) {
        *word |= 1 << (index % 64);
    }
}

fn unmark(done: &mut [u64], index: usize) {
    if let Some(word) = done.get_mut(index / 64) {
        *word &= !(1 << (index % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: u64, returned: u64, action: Action) -> Operation {
        Operation { called, returned: Some(returned), slot: 0, action }
    }

    fn unknown(called: u64, action: Action) -> Operation {
        Operation { called, returned: None, slot: 0, action }
    }

    fn verdict(history: &[Operation]) -> Verdict {
        check(history, 1_000_000)
    }

    #[test]
    fn reads_of_the_latest_write_are_linearizable() {
        let history = [
            op(0, 1, Action::Put(1)),
            op(2, 3, Action::Get(Some(1))),
            op(4, 5, Action::Delete),
            op(6, 7, Action::Get(None)),
        ];
        assert_eq!(verdict(&history), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_a_violation() {
        let stale = op(4, 5, Action::Get(Some(1)));
        let history = [op(0, 1, Action::Put(1)), op(2, 3, Action::Put(2)), stale];
        assert_eq!(verdict(&history), Verdict::Violation(stale));
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_value_but_not_go_back() {
        let write = op(2, 9, Action::Put(2));
        let base = [op(0, 1, Action::Put(1)), write];
        let forward = [op(3, 4, Action::Get(Some(1))), op(5, 6, Action::Get(Some(2)))];
        let back = [op(3, 4, Action::Get(Some(2))), op(5, 6, Action::Get(Some(1)))];
        assert_eq!(verdict(&[base.as_slice(), &forward].concat()), Verdict::Linearizable);
        assert!(matches!(verdict(&[base.as_slice(), &back].concat()), Verdict::Violation(_)));
    }

    #[test]
    fn a_write_of_unknown_outcome_may_take_effect_late_or_never() {
        let late = [
            unknown(0, Action::Put(1)),
            op(1, 2, Action::Get(None)),
            op(3, 4, Action::Get(Some(1))),
        ];
        let never = [unknown(0, Action::Put(1)), op(1, 2, Action::Get(None))];
        let twice = [
            unknown(0, Action::Put(1)),
            op(1, 2, Action::Get(Some(1))),
            op(3, 4, Action::Put(2)),
            op(5, 6, Action::Get(Some(1))),
        ];
        assert_eq!(verdict(&late), Verdict::Linearizable);
        assert_eq!(verdict(&never), Verdict::Linearizable);
        assert!(matches!(verdict(&twice), Verdict::Violation(_)));
    }

    #[test]
    fn a_lost_acknowledged_write_is_a_violation() {
        let history = [op(0, 1, Action::Put(1)), op(2, 3, Action::Get(None))];
        assert!(matches!(verdict(&history), Verdict::Violation(_)));
    }

    #[test]
    fn a_value_that_nobody_wrote_is_a_violation() {
        assert!(matches!(verdict(&[op(0, 1, Action::Get(Some(9)))]), Verdict::Violation(_)));
    }

    #[test]
    fn two_compare_and_swaps_from_one_value_cannot_both_succeed() {
        let cas = |new| Action::CasDone { expected: Some(1), new };
        let history = [op(0, 1, Action::Put(1)), op(2, 5, cas(2)), op(3, 6, cas(3))];
        assert!(matches!(verdict(&history), Verdict::Violation(_)));
        let one_refused = [
            op(0, 1, Action::Put(1)),
            op(2, 5, cas(2)),
            op(3, 6, Action::CasRefused { expected: Some(1), found: Some(2) }),
        ];
        assert_eq!(verdict(&one_refused), Verdict::Linearizable);
    }

    #[test]
    fn a_batch_over_two_keys_is_seen_whole_or_not_at_all() {
        let other = |op: Operation| Operation { slot: 1, ..op };
        let batch = op(0, 9, Action::PutBoth(1));
        let before_and_after =
            [batch, op(1, 2, Action::Get(None)), other(op(3, 4, Action::Get(Some(1))))];
        assert_eq!(verdict(&before_and_after), Verdict::Linearizable);
        let half = [batch, op(1, 2, Action::Get(Some(1))), other(op(3, 4, Action::Get(None)))];
        assert!(matches!(verdict(&half), Verdict::Violation(_)));
        let torn = [batch, op(1, 2, Action::GetBoth([Some(1), None]))];
        assert!(matches!(verdict(&torn), Verdict::Violation(_)));
        let one_replaced = [
            batch,
            other(op(10, 11, Action::Put(2))),
            op(12, 13, Action::GetBoth([Some(1), Some(2)])),
        ];
        assert_eq!(verdict(&one_replaced), Verdict::Linearizable);
    }

    #[test]
    fn too_long_a_search_is_given_up_and_said() {
        let history: Vec<Operation> = (0..40)
            .map(|n| op(0, 100, Action::Put(n)))
            .chain([op(101, 102, Action::Get(None))])
            .collect();
        assert_eq!(check(&history, 1_000), Verdict::Unknown);
    }
}
