//! Histories of pairs of keys, which the simulator's checker judges.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use d_engine_locks::Unpoisoned;
use d_engine_sim::{Operation, Verdict, check};

use crate::record::Record;
use crate::shell::{Outcome, doing};

/// The operations on a pair of keys before its clients move to the next pair: longer histories are
/// slow to check.
const OPERATIONS_MAX: usize = 500;
/// The most steps of the search; a history that needs more counts as a finding, since it cannot be
/// checked.
const STEPS_MAX: u64 = 3_000_000;

/// Two keys, and the operations on them.
#[derive(Debug)]
pub(crate) struct Pair {
    name: String,
    operations: Mutex<Vec<Operation>>,
}

impl Pair {
    /// Returns the name of the key in the slot 0 or 1.
    pub(crate) fn key(&self, slot: usize) -> String {
        format!("{}-{slot}", self.name)
    }

    /// Adds an operation to the history.
    pub(crate) fn note(&self, operation: Operation) {
        self.lock().push(operation);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Operation>> {
        self.operations.lock().unpoisoned()
    }

    /// Checks the history so far.
    pub(crate) fn judge(&self) -> Verdict {
        check(&self.lock().clone(), STEPS_MAX)
    }
}

/// A group of clients that contend for one pair after another.
#[derive(Debug)]
pub(crate) struct Group {
    number: usize,
    pairs: Mutex<Vec<Arc<Pair>>>,
}

impl Group {
    /// Creates the group with this number.
    pub(crate) fn new(number: usize) -> Self {
        Self { number, pairs: Mutex::default() }
    }

    /// Returns the pair for the next operation.
    pub(crate) fn pair(&self) -> Arc<Pair> {
        let mut pairs = self.pairs.lock().unpoisoned();
        match pairs.last() {
            Some(last) if last.lock().len() < OPERATIONS_MAX => last.clone(),
            _ => {
                let name = format!("pair-{}-{}", self.number, pairs.len());
                let pair = Arc::new(Pair { name, operations: Mutex::default() });
                pairs.push(pair.clone());
                pair
            }
        }
    }

    /// Returns all pairs.
    pub(crate) fn pairs(&self) -> Vec<Arc<Pair>> {
        self.pairs.lock().unpoisoned().clone()
    }
}

/// Checks every pair, and writes the histories that fail below `dir`. Returns how many operations
/// were checked.
pub(crate) fn judge_all(groups: &[Arc<Group>], record: &Record, dir: &Path) -> Outcome<usize> {
    let mut judged = 0;
    for pair in groups.iter().flat_map(|group| group.pairs()) {
        judged += pair.lock().len();
        let problem = match pair.judge() {
            Verdict::Linearizable => continue,
            Verdict::Violation(operation) => {
                format!("not linearizable: no order explains {operation:?}")
            }
            Verdict::Unknown => "too hard to check: the search takes too many steps".to_owned(),
        };
        let path = write(&pair, dir)?;
        record.finding(&format!(
            "the history of {} is {problem}; see {}",
            pair.name,
            path.display()
        ));
    }
    Ok(judged)
}

/// Writes a history, one operation a line, in the order of the calls.
fn write(pair: &Pair, dir: &Path) -> Outcome<PathBuf> {
    let path = dir.join(format!("{}.history", pair.name));
    let mut operations = pair.lock().clone();
    operations.sort_by_key(|operation| operation.called);
    let mut text =
        "# called and returned in seconds since the start of the run, key, action\n".to_owned();
    let seconds = |nanos: u64| std::time::Duration::from_nanos(nanos).as_secs_f64();
    for operation in operations {
        let returned =
            operation.returned.map_or("unknown".to_owned(), |at| format!("{:.6}", seconds(at)));
        let called = seconds(operation.called);
        text.push_str(&format!(
            "{called:.6} {returned} {} {:?}\n",
            operation.slot, operation.action
        ));
    }
    fs::write(&path, text).map_err(doing(path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use d_engine_sim::Action;

    use super::*;

    fn pair(operations: &[(u64, Option<u64>, Action)]) -> Pair {
        let operation = |(called, returned, action): &(u64, Option<u64>, Action)| Operation {
            called: *called,
            returned: *returned,
            slot: 0,
            action: *action,
        };
        Pair {
            name: "pair".to_owned(),
            operations: Mutex::new(operations.iter().map(operation).collect()),
        }
    }

    #[test]
    fn a_stale_read_a_lost_write_and_a_write_that_should_not_have_happened_are_found() {
        let stale = [
            (0, Some(1), Action::Put(1)),
            (2, Some(3), Action::Put(2)),
            (4, Some(5), Action::Get(Some(1))),
        ];
        let lost = [(0, Some(1), Action::Put(1)), (2, Some(3), Action::Get(None))];
        // The put of 2 was refused, and so is not part of the history.
        let refused = [(0, Some(1), Action::Put(1)), (4, Some(5), Action::Get(Some(2)))];
        for history in [&stale[..], &lost, &refused] {
            assert!(matches!(pair(history).judge(), Verdict::Violation(_)), "{history:?}");
        }
        let unknown = [(0, None, Action::Put(1)), (2, Some(3), Action::Get(None))];
        assert_eq!(pair(&unknown).judge(), Verdict::Linearizable);
    }

    #[test]
    fn a_full_pair_is_followed_by_the_next() {
        let group = Group::new(3);
        for at in 0..OPERATIONS_MAX as u64 {
            let action = Action::Get(None);
            group.pair().note(Operation { called: at, returned: Some(at), slot: 0, action });
        }
        assert_eq!((group.pair().key(1), group.pairs().len()), ("pair-3-1-1".to_owned(), 2));
    }
}
