//! Random boots of a log, with crashes, checked against a model that is a map.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{GROUP, Picture, Random, entry_with, hard_state, log_id, open, small};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FsOp, LogEntry, LogSuffix, OpenedStorage};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    /// Go back by `back` entries and append `count` entries of `size` bytes.
    Append {
        back: u64,
        count: u64,
        size: usize,
    },
    Vote {
        vote: u64,
    },
    Sync,
    Idle,
    /// Purge all but the last `keep` entries.
    Purge {
        keep: u64,
    },
    /// Install a snapshot whose last included entry is `distance` entries before or after the last
    /// entry of the log.
    Install {
        distance: i64,
        matches: bool,
    },
    /// Clean restart.
    Reopen,
    /// The process dies; the machine keeps running.
    Kill,
    /// The power fails at the operation with this number, counted from now.
    PowerCut {
        after: u64,
        seed: u64,
    },
    /// The next sync fails, and the power fails later.
    SyncFails,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (prop_oneof![4 => Just(0), 1 => 0_u64..12], 1_u64..8, prop_oneof![9 => 0_usize..300, 1 => 300_usize..9000])
            .prop_map(|(back, count, size)| Act::Append { back, count, size }),
        2 => (0_u64..4).prop_map(|vote| Act::Vote { vote }),
        8 => Just(Act::Sync),
        2 => Just(Act::Idle),
        2 => (0_u64..10).prop_map(|keep| Act::Purge { keep }),
        2 => (-10_i64..20, any::<bool>()).prop_map(|(distance, matches)| Act::Install { distance, matches }),
        1 => Just(Act::Reopen),
        1 => Just(Act::Kill),
        2 => (1_u64..30, any::<u64>()).prop_map(|(after, seed)| Act::PowerCut { after, seed }),
        1 => Just(Act::SyncFails),
    ]
}

/// The log, what it has acknowledged, what is queued, and what the step in progress would make of
/// it.
struct Life {
    fs: SimFs,
    opened: Option<OpenedStorage>,
    acknowledged: Picture,
    queued: Picture,
    attempted: Picture,
    term: u64,
}

impl Life {
    fn new() -> Self {
        let fs = SimFs::new();
        let opened = Some(open(&fs, &small()).unwrap());
        let empty = Picture::default();
        Self {
            fs,
            opened,
            acknowledged: empty.clone(),
            queued: empty.clone(),
            attempted: empty,
            term: 1,
        }
    }

    fn appended(&mut self, back: u64, count: u64, size: usize) -> Vec<LogEntry> {
        let last = self.queued.last();
        let first = last.saturating_sub(back).max(self.queued.base.index.get()) + 1;
        self.term += u64::from(first <= last);
        let term = self.term;
        (first..first + count)
            .map(|index| entry_with(term, index, vec![index as u8; size]))
            .collect()
    }

    /// Executes one step. Returns `false` when the log has failed and must be opened again.
    fn step(&mut self, act: &Act) -> bool {
        let appended = match act {
            Act::Append { back, count, size } => self.appended(*back, *count, *size),
            _ => Vec::new(),
        };
        let Some(opened) = &mut self.opened else { return false };
        match act {
            Act::Append { .. } => {
                self.queued.append(None, &appended);
                return opened.log.append(GROUP, None, &appended).is_ok();
            }
            Act::Vote { vote } => {
                self.term += 1;
                let state = hard_state(self.term, *vote, self.acknowledged.last());
                self.queued.append(Some(state), &[]);
                return opened.log.append(GROUP, Some(state), &[]).is_ok();
            }
            Act::Sync | Act::Idle | Act::SyncFails => {
                if matches!(act, Act::SyncFails) {
                    self.fs.fail(FsOp::SyncData, 1, Failure::Io);
                }
                self.attempted = self.queued.clone();
                let done =
                    if matches!(act, Act::Idle) { opened.log.idle() } else { opened.log.sync() };
                if done.is_err() {
                    return false;
                }
            }
            Act::Purge { keep } => {
                let last = self.acknowledged.last();
                let through = last.saturating_sub(*keep);
                let Some(entry) = self.acknowledged.entries.get(&through) else { return true };
                if self.queued.entries.get(&through) != Some(entry)
                    || self.queued != self.acknowledged
                {
                    return true;
                }
                self.attempted.purge(entry.id);
                if opened.log.purge(GROUP, entry.id).is_err() {
                    return false;
                }
                self.queued.purge(entry.id);
            }
            Act::Install { distance, matches } => {
                let index = self.acknowledged.last().saturating_add_signed(*distance);
                if self.queued != self.acknowledged || index <= self.acknowledged.base.index.get() {
                    return true;
                }
                let held = self.acknowledged.entries.get(&index).map(|entry| entry.id);
                let (base, suffix) = match held.filter(|_| *matches) {
                    Some(base) => (base, LogSuffix::Keep),
                    None => {
                        self.term += 1;
                        (log_id(self.term, index), LogSuffix::Drop)
                    }
                };
                match suffix {
                    LogSuffix::Keep => self.attempted.purge(base),
                    LogSuffix::Drop => self.attempted.restart(base),
                }
                if opened.log.install(GROUP, base, suffix).is_err() {
                    return false;
                }
                self.queued = self.attempted.clone();
            }
            Act::Reopen | Act::Kill => return false,
            Act::PowerCut { after, .. } => self.fs.halt_at(*after),
        }
        if !matches!(act, Act::PowerCut { .. }) {
            self.acknowledged = self.attempted.clone();
        }
        true
    }

    /// Ends the process and restarts it; what is found counts as acknowledged from then on.
    fn restart(&mut self, power_cut: Option<u64>) -> Result<(), TestCaseError> {
        self.opened = None;
        match power_cut {
            Some(seed) => Random::new(seed).crash(&self.fs),
            None => self.fs.kill(),
        }
        let opened =
            open(&self.fs, &small()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let found = Picture::of(&opened);
        prop_assert!(
            found == self.acknowledged || found == self.attempted,
            "found {found:#?}\nacknowledged {:#?}\nattempted {:#?}",
            self.acknowledged,
            self.attempted
        );
        self.acknowledged = found.clone();
        self.queued = found.clone();
        self.attempted = found;
        self.opened = Some(opened);
        Ok(())
    }
}

proptest! {
    // Set `PROPTEST_CASES=20000` for a longer run.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_log_is_what_was_acknowledged_or_that_and_the_step_under_way(
        acts in proptest::collection::vec(act(), 1..80)
    ) {
        let mut boot = Life::new();
        let mut power_cut = None;
        for act in &acts {
            if let Act::PowerCut { seed, .. } = act {
                power_cut = Some(*seed);
            }
            if !boot.step(act) {
                let cut = power_cut.take().filter(|_| boot.fs.is_halted());
                boot.restart(cut)?;
            }
        }
        boot.restart(Some(1))?;
        boot.restart(Some(2))?;
    }
}
