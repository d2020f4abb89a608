//! The log view by example, and against a log that is a plain list of entries.

extern crate std;

use proptest::prelude::*;

use super::*;
use crate::EntryKind;

fn entry(term: u64) -> EntryMeta {
    EntryMeta {
        term: Term::new(term),
        kind: EntryKind::Command,
        time_ms: 0,
        bytes: 10,
        configuration: None,
    }
}

fn log_of(terms: &[u64]) -> LogView {
    LogView::new(InitialLog {
        entries: terms.iter().map(|term| entry(*term)).collect(),
        ..InitialLog::default()
    })
}

#[test]
fn an_order_on_its_way_does_not_count_for_entries_that_were_truncated_meanwhile() {
    let mut log = log_of(&[1]);
    log.push(&entry(2));
    log.persist_requested(PersistId::new(1));
    log.truncate_from(LogIndex::new(2));
    log.push(&entry(3));
    log.persist_requested(PersistId::new(2));
    // The first request wrote the old entry 2; the disk does not hold the new one yet.
    log.persisted_by(PersistId::new(1));
    assert_eq!(log.persisted(), LogIndex::new(1));
    assert_eq!(log.request_of(LogIndex::new(2)), Some(PersistId::new(2)));
    log.persisted_by(PersistId::new(2));
    assert_eq!(log.persisted(), LogIndex::new(2));
}

#[test]
fn the_furthest_possible_match_skips_whole_terms() {
    let log = log_of(&[1, 1, 4, 4, 6, 6]);
    let matched = |index, term| log.last_possible_match(LogIndex::new(index), Term::new(term));
    assert_eq!(matched(6, 6), LogId::new(Term::new(6), LogIndex::new(6)));
    assert_eq!(matched(6, 5), LogId::new(Term::new(4), LogIndex::new(4)));
    assert_eq!(matched(3, 4), LogId::new(Term::new(4), LogIndex::new(3)));
    assert_eq!(matched(6, 3), LogId::new(Term::new(1), LogIndex::new(2)));
    assert_eq!(matched(6, 0), LogId::ZERO);
}

#[test]
fn a_batch_has_at_least_one_entry_and_stops_at_the_byte_limit() {
    let log = log_of(&[1, 1, 1, 1]);
    let first = LogIndex::new(2);
    assert_eq!(log.batch_from(first, 1, 10), Some((LogIndex::new(2), 10)));
    assert_eq!(log.batch_from(first, 20, 10), Some((LogIndex::new(3), 20)));
    assert_eq!(log.batch_from(first, 1000, 2), Some((LogIndex::new(3), 20)));
    assert_eq!(log.batch_from(LogIndex::new(5), 1000, 10), None);
}

#[test]
fn uncommitted_bytes_follow_append_truncate_and_commit() {
    let mut log = log_of(&[1, 1, 1]);
    assert_eq!(log.uncommitted_bytes(), 3 * 74);
    log.commit_to(LogIndex::new(1));
    log.truncate_from(LogIndex::new(3));
    assert_eq!(log.uncommitted_bytes(), 74);
}

#[test]
fn a_truncated_configuration_is_undone() {
    let mut log = log_of(&[1]);
    let node = crate::NodeId::new(7).into_iter();
    let mut with_configuration = entry(2);
    with_configuration.configuration = Some(Box::new(Configuration::new(node, None)));
    log.push(&with_configuration);
    assert_eq!(log.configuration().voters().len(), 1);
    log.truncate_from(LogIndex::new(2));
    assert_eq!(log.configuration().voters().len(), 0);
}

/// A log whose entries are purged: the term of the last one is known, and the first new entry is
/// found also when it has the same term.
#[test]
fn a_purged_log_goes_on_after_its_base() {
    let mut log = log_of(&[1, 1, 2]);
    log.commit_to(LogIndex::new(3));
    assert!(log.applied_to(LogIndex::new(3)));
    let base = LogId::new(Term::new(2), LogIndex::new(3));
    log.purge_to(base);
    assert_eq!((log.last(), log.term_at(LogIndex::new(2))), (base, None));
    log.push(&entry(2));
    assert_eq!(log.term_at(LogIndex::new(4)), Some(Term::new(2)));
    assert_eq!(log.batch_from(LogIndex::new(4), 100, 10), Some((LogIndex::new(4), 10)));
    assert_eq!(log.batch_from(LogIndex::new(3), 100, 10), None);
    assert_eq!(log.last_possible_match(LogIndex::new(9), Term::new(1)), base);
}

/// A snapshot replaces a log that ends before it, or holds another entry at its index: nothing of
/// the log stays, and writes in flight make no entry durable that the log holds now.
#[test]
fn a_snapshot_drops_a_log_that_does_not_hold_its_last_entry() {
    for (terms, last) in [(&[1, 1][..], 5), (&[1, 1, 1, 1, 1, 1][..], 5)] {
        let mut log = log_of(terms);
        log.commit_to(LogIndex::new(1));
        log.push(&entry(2));
        log.persist_requested(PersistId::new(1));
        let last = LogId::new(Term::new(3), LogIndex::new(last));
        assert_eq!(log.install(last, Box::new(voters(3)), 77), LogSuffix::Drop);
        assert_eq!((log.last(), log.committed()), (last, last.index));
        assert_eq!((log.uncommitted_bytes(), log.time_ms()), (0, 77));
        assert_eq!(log.configuration(), &voters(3));
        log.persist_requested(PersistId::new(2));
        log.persisted_by(PersistId::new(1));
        assert_eq!(log.persisted(), LogIndex::new(1), "the entries committed and persisted before");
        log.persisted_by(PersistId::new(2));
        assert_eq!(log.persisted(), last.index);
        log.push(&entry(3));
        assert_eq!(log.term_at(last.index.next()), Some(Term::new(3)));
    }
}

/// The log as a list of all entries; every method searches the whole list.
#[derive(Default)]
struct Model {
    log: Vec<EntryMeta>,
    committed: usize,
    persisted: usize,
    /// Per request, how many entries of the *current* log the disk holds once it is complete.
    orders: Vec<usize>,
    completed: usize,
    /// Entries before this one are purged; nothing but its own term is known any more.
    base: usize,
}

#[derive(Clone, Debug)]
enum Op {
    Push {
        next_term: bool,
        bytes: u32,
        time_ms: u64,
        voters: Option<u64>,
    },
    Truncate(usize),
    Order,
    Complete(usize),
    Commit(usize),
    Purge(usize),
    /// A snapshot that ends with an entry which the log holds.
    InstallHeld(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let push =
        (any::<bool>(), 0_u32..30, 0_u64..100, proptest::option::weighted(0.2, 1_u64..6)).prop_map(
            |(next_term, bytes, time_ms, voters)| Op::Push { next_term, bytes, time_ms, voters },
        );
    prop_oneof![
        8 => push,
        2 => (0_usize..12).prop_map(Op::Truncate),
        3 => Just(Op::Order),
        3 => (0_usize..12).prop_map(Op::Complete),
        2 => (0_usize..12).prop_map(Op::Commit),
        1 => (0_usize..12).prop_map(Op::Purge),
        1 => (0_usize..12).prop_map(Op::InstallHeld),
    ]
}

fn voters(count: u64) -> Configuration {
    Configuration::new((1..=count).filter_map(crate::NodeId::new), None)
}

impl Model {
    /// Does the same to both; what is not allowed is left out.
    fn run(&mut self, log: &mut LogView, op: Op) {
        match op {
            Op::Push { next_term, bytes, time_ms, voters: count } => {
                let term = self.log.last().map_or(1, |last| last.term.get()) + u64::from(next_term);
                let configuration = count.map(|count| Box::new(voters(count)));
                let entry = EntryMeta { bytes, time_ms, configuration, ..entry(term) };
                log.push(&entry);
                self.log.push(entry);
            }
            Op::Truncate(kept) if kept >= self.committed && kept < self.log.len() => {
                log.truncate_from(LogIndex::new(kept as u64 + 1));
                self.log.truncate(kept);
                self.persisted = self.persisted.min(kept);
                for held in &mut self.orders {
                    *held = kept.min(*held);
                }
            }
            Op::Truncate(_) => {}
            Op::Order => {
                self.orders.push(self.log.len());
                log.persist_requested(PersistId::new(self.orders.len() as u64));
            }
            Op::Complete(order) => {
                log.persisted_by(PersistId::new(order as u64));
                self.completed = self.completed.max(order.min(self.orders.len()));
                let held = self.orders.iter().take(order).max().copied().unwrap_or(0);
                self.persisted = self.persisted.max(held);
            }
            Op::Commit(index) => {
                let index = index.min(self.log.len());
                log.commit_to(LogIndex::new(index as u64));
                self.committed = self.committed.max(index);
            }
            Op::Purge(through) => {
                let through = through.min(self.committed).min(self.persisted);
                if through > self.base {
                    let id = LogId::new(self.log[through - 1].term, LogIndex::new(through as u64));
                    assert!(log.applied_to(id.index));
                    log.purge_to(id);
                    self.base = through;
                }
            }
            Op::InstallHeld(last) => {
                if last > self.committed && last <= self.log.len() {
                    let id = LogId::new(self.log[last - 1].term, LogIndex::new(last as u64));
                    // A snapshot knows the configuration at its last entry.
                    let earlier = self
                        .log
                        .iter()
                        .take(last)
                        .rev()
                        .find_map(|entry| entry.configuration.clone());
                    let configuration = earlier.unwrap_or_default();
                    let suffix = log.install(id, configuration.clone(), 0);
                    assert_eq!(suffix, LogSuffix::Keep, "the log holds the entry");
                    (self.base, self.committed) = (last, last);
                    self.log[last - 1].configuration = Some(configuration);
                }
            }
        }
    }

    fn term_at(&self, index: usize) -> Option<Term> {
        if index < self.base {
            return None;
        }
        if index == 0 { Some(Term::ZERO) } else { self.log.get(index - 1).map(|entry| entry.term) }
    }

    fn request_of(&self, index: usize) -> Option<PersistId> {
        if index <= self.persisted {
            return None;
        }
        let order = (self.completed..self.orders.len()).find(|order| self.orders[*order] >= index);
        order.map(|order| PersistId::new(order as u64 + 1))
    }

    fn last_possible_match(&self, index: usize, term: Term) -> usize {
        let fits = |index: &usize| self.term_at(*index).is_some_and(|own| own <= term);
        (self.base..=index.min(self.log.len())).rev().find(fits).unwrap_or(self.base)
    }

    fn batch_from(
        &self,
        first: usize,
        bytes_max: u64,
        entries_max: u64,
    ) -> Option<(LogIndex, u64)> {
        if first <= self.base {
            return None;
        }
        let (mut last, mut bytes) = (first, u64::from(self.log.get(first.checked_sub(1)?)?.bytes));
        while let Some(next) = self.log.get(last) {
            let with_it = bytes + u64::from(next.bytes);
            if with_it > bytes_max || (last - first + 1) as u64 >= entries_max {
                break;
            }
            (last, bytes) = (last + 1, with_it);
        }
        Some((LogIndex::new(last as u64), bytes))
    }

    fn configuration(&self) -> (u64, Configuration) {
        let with_one = |(at, entry): (usize, &EntryMeta)| {
            entry.configuration.clone().map(|configuration| (at as u64 + 1, *configuration))
        };
        self.log.iter().enumerate().rev().find_map(with_one).unwrap_or_default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_log_view_answers_as_a_plain_list_does(
        ops in proptest::collection::vec(op(), 1..60),
        limits in (0_u64..60, 1_u64..5),
    ) {
        let (mut model, mut log) = (Model::default(), LogView::new(InitialLog::default()));
        for op in ops {
            model.run(&mut log, op);
            let index = |at: usize| LogIndex::new(at as u64);
            prop_assert_eq!(log.last_index(), index(model.log.len()));
            prop_assert_eq!(log.persisted(), index(model.persisted));
            prop_assert_eq!(log.committed(), index(model.committed));
            prop_assert_eq!(log.may_apply_to(), index(model.committed.min(model.persisted)));
            let waiting: u64 = model.log[model.committed..].iter().map(|entry| u64::from(entry.bytes) + 64).sum();
            prop_assert_eq!(log.uncommitted_bytes(), waiting);
            let time_ms = model.log.iter().map(|entry| entry.time_ms).max().unwrap_or(0);
            prop_assert!(log.time_ms() >= time_ms);
            let configuration = (log.configuration_index().get(), log.configuration().clone());
            prop_assert_eq!(configuration, model.configuration());
            for at in 0..model.log.len() + 2 {
                prop_assert_eq!(log.term_at(index(at)), model.term_at(at), "at {}", at);
                prop_assert_eq!(log.request_of(index(at)), model.request_of(at), "at {}", at);
                let batch = log.batch_from(index(at), limits.0, limits.1);
                prop_assert_eq!(batch, model.batch_from(at, limits.0, limits.1), "at {}", at);
                for term in 0..8 {
                    let found = log.last_possible_match(index(at), Term::new(term));
                    let expected = model.last_possible_match(at, Term::new(term));
                    prop_assert_eq!(found.index, index(expected), "at {} of term {}", at, term);
                    prop_assert_eq!(Some(found.term), model.term_at(expected));
                }
            }
        }
    }
}
