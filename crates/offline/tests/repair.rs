//! A log that is damaged in the middle is mended without a vote or a promise being forgotten.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod recover_kit;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{EntryKind, GroupId, LogId, LogIndex, SplitMix64};
use d_engine_fs::Fs;
use d_engine_offline::repair::{Cause, RepairError, RepairRequest, RepairedDirectory, repair};
use d_engine_storage::fs::read_file;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::SNAPSHOT_DIR;
use d_engine_storage::{OpenedStorage, StorageError};
use recover_kit::{DIR, Old, TIME_MS, log_id, open, voters};

fn new_disk(old: &Old) -> (SimFs, Arc<dyn Fs>) {
    let sim = SimFs::new();
    let fs: Arc<dyn Fs> = Arc::new(sim.clone());
    old.create(&fs);
    (sim, fs)
}

fn run(fs: &Arc<dyn Fs>) -> Result<RepairedDirectory, RepairError> {
    let request = RepairRequest { data_dir: DIR.into(), at_ms: TIME_MS };
    repair(fs, &request, &mut |_| ControlFlow::Continue(()))
}

fn segments(fs: &Arc<dyn Fs>) -> Vec<PathBuf> {
    let dir = Path::new(DIR).join("log");
    fs.list(&dir).unwrap().into_iter().map(|name| dir.join(name)).collect()
}

/// Damages the third group of the oldest segment that is left.
fn damage(sim: &SimFs, fs: &Arc<dyn Fs>) {
    assert!(sim.flip_bit(&segments(fs).swap_remove(0), 1_700, 1));
}

/// The hard state and the last entry that the intact log has.
fn intact(old: &Old) -> OpenedStorage {
    open(&new_disk(old).1, Path::new(DIR)).unwrap()
}

/// What a start finds in a mended directory: the log of an earlier time, and the promise of all of
/// it.
fn check(fs: &Arc<dyn Fs>, old: &Old, whole: &OpenedStorage, context: &str) -> LogId {
    let opened = open(fs, Path::new(DIR)).unwrap_or_else(|error| panic!("{context}: {error}"));
    let (found, before) = (&opened.recovered, &whole.recovered);
    assert_eq!(opened.identity, whole.identity, "{context}: the same node and directory");
    let base = old.snapshot.map(Old::id).unwrap_or_default();
    assert_eq!(found.base, base, "{context}");
    let reader = opened.log.reader();
    for (index, head) in (base.index.get() + 1..).zip(&found.entries) {
        let at = LogIndex::new(index);
        let read = reader.read(GroupId::FIRST, at, at, usize::MAX).unwrap().remove(0);
        assert_eq!((head.id, &read), (read.id, &old.entry(index)), "{context}");
    }
    let (new, had) = (found.hard_state, before.hard_state);
    assert_eq!((new.term.get(), new.vote), (had.term.get() + 1, None), "{context}");
    assert!(new.commit <= had.commit && new.commit <= found.last().index, "{context}: {new:?}");
    assert!(new.stickiness >= had.stickiness);
    let promised = found.promised.max(found.last());
    assert_eq!(promised, before.last(), "{context}: it has forgotten what it may have promised");
    found.last()
}

/// Each place of each segment, in a directory with a snapshot and in one without.
#[test]
fn wherever_the_log_is_damaged_it_is_mended_or_the_node_is_to_be_replaced() {
    let mut outcomes = BTreeMap::<&str, u32>::new();
    for old in [Old::default(), Old { snapshot: Some(9), ..Old::default() }] {
        let whole = intact(&old);
        let (_, clean) = new_disk(&old);
        for path in segments(&clean) {
            let len = read_file(&*clean, &path).unwrap().len() as u64;
            for offset in (3..len).step_by(61) {
                let (sim, fs) = new_disk(&old);
                sim.flip_bit(&path, offset, 2);
                let context = format!("{} at {offset}, {:?}", path.display(), old.snapshot);
                let started = open(&fs, Path::new(DIR)).map(drop);
                let outcome = match (started, run(&fs)) {
                    (Ok(()), Err(RepairError::Cannot { cause: Cause::Intact, .. })) => "intact",
                    (Err(StorageError::Damaged { .. }), Ok(done)) => {
                        let plan = done.plan.unwrap();
                        let last = check(&fs, &old, &whole, &context);
                        assert_eq!((plan.kept, plan.promised), (last, whole.recovered.last()));
                        assert!(fs.kind(&done.old_dir).is_ok(), "{context}");
                        "mended"
                    }
                    (
                        Err(_),
                        Err(RepairError::Cannot {
                            cause: Cause::VoteMayBeLost { .. } | Cause::Covered,
                            ..
                        }),
                    ) => "refused",
                    (started, repaired) => panic!("{context}: {started:?}, {repaired:?}"),
                };
                *outcomes.entry(outcome).or_default() += 1;
            }
        }
    }
    assert!(outcomes["mended"] > 50 && outcomes["refused"] > 3, "{outcomes:?}");
}

/// The first damaged group may have replaced entries before it: only what was known to be committed
/// at that time counts as committed.
#[test]
fn the_commit_index_is_that_of_the_time_before_the_damage() {
    let old = Old::default();
    let (sim, fs) = new_disk(&old);
    damage(&sim, &fs);
    let plan = run(&fs).unwrap().plan.unwrap();
    assert!(plan.hard_state.commit <= plan.kept.index && plan.kept.index.get() < old.commit);
    let opened = open(&fs, Path::new(DIR)).unwrap();
    assert_eq!(opened.recovered.hard_state.commit, plan.hard_state.commit);
    assert_eq!(opened.recovered.promised, Old::id(30));
}

/// Once the log has reached the promised entry, the promise is over.
#[test]
fn the_promise_is_over_when_the_log_has_reached_it() {
    let old = Old::default();
    let (sim, fs) = new_disk(&old);
    damage(&sim, &fs);
    let kept = run(&fs).unwrap().plan.unwrap().kept;
    let mut opened = open(&fs, Path::new(DIR)).unwrap();
    let missing: Vec<_> = (kept.index.get() + 1..=old.entries).map(|it| old.entry(it)).collect();
    let (last, before) = missing.split_last().unwrap();
    opened.log.append(GroupId::FIRST, None, before).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let mut opened = open(&fs, Path::new(DIR)).unwrap();
    assert_eq!(opened.recovered.promised, Old::id(30));
    opened.log.append(GroupId::FIRST, None, std::slice::from_ref(last)).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let opened = open(&fs, Path::new(DIR)).unwrap();
    assert_eq!((opened.recovered.promised, opened.recovered.last()), (LogId::ZERO, Old::id(30)));
    // A damaged promise must not be taken for none.
    drop(opened);
    sim.flip_bit(&Path::new(DIR).join("repair.meta"), 30, 1);
    let error = open(&fs, Path::new(DIR)).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::DamagedFile { .. }), "{error}");
}

#[test]
fn what_cannot_be_mended_is_named_and_nothing_is_changed() {
    // Intact.
    let (_, fs) = new_disk(&Old::default());
    let error = run(&fs).unwrap_err();
    assert!(error.to_string().contains("start the node"), "{error}");
    // The identity.
    let (sim, fs) = new_disk(&Old::default());
    for name in ["identity.meta", "identity.meta.2"] {
        assert!(sim.flip_bit(&Path::new(DIR).join(name), 30, 1));
    }
    let error = run(&fs).unwrap_err().to_string();
    assert!(error.contains("replaces ="), "{error}");
    // A log that begins after the end of every snapshot.
    let old = Old { entries: 90, snapshot: Some(20), purged: 12, ..Old::default() };
    let (sim, fs) = new_disk(&old);
    fs.remove_tree(&Path::new(DIR).join(SNAPSHOT_DIR)).unwrap();
    assert!(sim.flip_bit(&segments(&fs).swap_remove(1), 1_700, 1));
    let error = run(&fs).unwrap_err();
    let is_expected =
        matches!(error, RepairError::Cannot { cause: Cause::NoSnapshot { base: 12 }, .. });
    assert!(is_expected, "{error}");
    // A node runs there.
    let (sim, fs) = new_disk(&Old::default());
    let opened = open(&fs, Path::new(DIR)).unwrap();
    assert!(matches!(run(&fs), Err(RepairError::Storage(StorageError::InUse { .. }))));
    drop(opened);
    // Too little space.
    damage(&sim, &fs);
    sim.set_free_bytes(Some(1_000));
    assert!(matches!(run(&fs), Err(RepairError::NoSpace { .. })));
    sim.set_free_bytes(None);
    // The caller's stop.
    let request = RepairRequest { data_dir: DIR.into(), at_ms: TIME_MS };
    let stop = &mut |_| ControlFlow::Break(());
    repair(&fs, &request, stop).unwrap_err();
    assert_eq!(fs.list(Path::new("/nodes")).unwrap(), ["data"]);
    run(&fs).unwrap();
}

/// No other node has the entries of a node that votes alone.
#[test]
fn the_only_voter_is_not_mended() {
    let old = Old { entries: 7, commit: 7, ..Old::default() };
    let sim = SimFs::new();
    let fs: Arc<dyn Fs> = Arc::new(sim.clone());
    old.create(&fs);
    let mut opened = open(&fs, Path::new(DIR)).unwrap();
    let alone = voters(3).members().iter().find(|it| it.node == 2).cloned().unwrap();
    let mut entry = old.entry(7);
    entry.id = log_id(5, 8);
    entry.kind = EntryKind::Membership;
    entry.session = None;
    entry.version = 0;
    entry.data = voters(3).continued_by(alone, 5).unwrap().encode();
    opened.log.append(GroupId::FIRST, None, &[entry]).unwrap();
    opened.log.sync().unwrap();
    let state = opened.recovered.hard_state;
    opened.log.append(GroupId::FIRST, Some(state), &[]).unwrap();
    opened.log.sync().unwrap();
    opened.log.idle().unwrap();
    drop(opened);
    damage(&sim, &fs);
    let error = run(&fs).unwrap_err();
    assert!(matches!(error, RepairError::Cannot { cause: Cause::SoleVoter { .. }, .. }), "{error}");
}

/// After a cut the directory is the damaged one, which no node starts on, or the mended one; the
/// same command brings the mended one.
#[test]
fn a_repair_that_is_cut_off_anywhere_is_run_again() {
    let old = Old { snapshot: Some(9), ..Old::default() };
    let whole = intact(&old);
    let snapshots = |fs: &Arc<dyn Fs>| fs.list(&Path::new(DIR).join(SNAPSHOT_DIR)).unwrap().len();
    let (sim, fs) = new_disk(&old);
    let count = snapshots(&fs);
    assert!(sim.flip_bit(&segments(&fs).swap_remove(0), 2_800, 1));
    let image = sim.image();
    let mut operations = 0;
    for seed in 0..6 {
        for at in 1.. {
            let sim = SimFs::from_image(&image);
            let fs: Arc<dyn Fs> = Arc::new(sim.clone());
            sim.halt_at(at);
            let done = run(&fs);
            let was_cut = sim.is_halted();
            assert!(was_cut || done.is_ok(), "{done:?}");
            let mut random = SplitMix64::new(seed ^ (at << 8));
            match seed {
                0 => sim.kill(),
                _ => sim.crash(&mut |n| random.below(n)),
            }
            let context = format!("seed {seed}, operation {at}");
            // A start meanwhile is refused, or finds the mended log.
            if fs.kind(Path::new(DIR)).is_ok() && open(&fs, Path::new(DIR)).is_ok() {
                check(&fs, &old, &whole, &context);
            } else {
                assert!(done.is_err(), "{context}");
                run(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
                check(&fs, &old, &whole, &context);
            }
            assert_eq!(snapshots(&fs), count, "{context}");
            if !was_cut {
                break;
            }
            operations = operations.max(at);
        }
    }
    assert!(operations > 30, "{operations} operations");
}
