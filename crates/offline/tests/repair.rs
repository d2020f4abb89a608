//! A log that is damaged in the middle is mended without a vote or a promise being forgotten.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod recover_kit;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{EntryKind, GroupId, LogId, LogIndex, SplitMix64};
use d_engine_fs::{Fs, OpenMode, write_all_at};
use d_engine_offline::repair::{
    Cause, Fetch, MissingSnapshot, Plan, RepairError, RepairRequest, RepairedDirectory,
    RepairedLog, repair,
};
use d_engine_storage::fs::read_file;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{SNAPSHOT_DIR, archive_name};
use d_engine_storage::{ClusterId, OpenedStorage, StorageError};
use recover_kit::{DIR, NOTED, OLD, Old, TIME_MS, create, log_id, open, voters};

fn new_disk(old: &Old) -> (SimFs, Arc<dyn Fs>) {
    let sim = SimFs::new();
    let fs: Arc<dyn Fs> = Arc::new(sim.clone());
    old.create(&fs);
    (sim, fs)
}

fn run(fs: &Arc<dyn Fs>) -> Result<RepairedDirectory, RepairError> {
    let request = RepairRequest { data_dir: DIR.into(), at_ms: TIME_MS };
    repair(fs, &request, None, &mut |_| ControlFlow::Continue(()))
}

fn run_with(fs: &Arc<dyn Fs>, fetch: Fetch<'_>) -> Result<RepairedDirectory, RepairError> {
    let request = RepairRequest { data_dir: DIR.into(), at_ms: TIME_MS };
    repair(fs, &request, Some(fetch), &mut |_| ControlFlow::Continue(()))
}

/// What was done in this run.
fn mended(done: RepairedDirectory) -> (Plan, PathBuf) {
    match done.log {
        RepairedLog::Mended { plan: Some(plan), old_dir } => (plan, old_dir),
        other => panic!("{other:?}"),
    }
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
    assert_eq!(opened.meta.load("apply").unwrap().as_deref(), Some(NOTED), "{context}");
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
                        let (plan, old_dir) = mended(done);
                        let last = check(&fs, &old, &whole, &context);
                        assert_eq!((plan.kept, plan.promised), (last, whole.recovered.last()));
                        assert!(fs.kind(&old_dir).is_ok(), "{context}");
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
    let (plan, _) = mended(run(&fs).unwrap());
    assert!(plan.hard_state.commit <= plan.kept.index && plan.kept.index.get() < old.commit);
    let opened = open(&fs, Path::new(DIR)).unwrap();
    assert_eq!(opened.recovered.hard_state.commit, plan.hard_state.commit);
    assert_eq!(opened.recovered.promised, Old::id(30));
}

/// A log that is damaged again before it has everything back: the first promise holds.
#[test]
fn a_second_repair_keeps_what_the_first_one_has_promised() {
    let old = Old::default();
    let (sim, fs) = new_disk(&old);
    damage(&sim, &fs);
    let (first, _) = mended(run(&fs).unwrap());
    assert_eq!(first.promised, Old::id(30));
    let mut opened = open(&fs, Path::new(DIR)).unwrap();
    let again = first.kept.index.get() + 1..28;
    for index in again.clone() {
        let state = opened.recovered.hard_state;
        opened.log.append(GroupId::FIRST, Some(state), &[old.entry(index)]).unwrap();
        opened.log.sync().unwrap();
    }
    opened.log.idle().unwrap();
    drop(opened);
    let key = format!("put key-{}", again.start + 1).into_bytes();
    let found = segments(&fs).into_iter().find_map(|path| {
        let bytes = read_file(&*fs, &path).unwrap();
        Some((path, bytes.windows(key.len()).position(|it| it == key)?))
    });
    let (path, at) = found.unwrap();
    assert!(sim.flip_bit(&path, at as u64, 1));
    let (second, _) = mended(run(&fs).unwrap());
    assert_eq!(second.kept.index.get(), again.start);
    assert_eq!(second.promised, Old::id(30), "the second log ended at entry 27");
    let opened = open(&fs, Path::new(DIR)).unwrap();
    assert_eq!(opened.recovered.promised, Old::id(30));
    drop(opened);
    // Without a readable promise it is not mended.
    sim.flip_bit(&Path::new(DIR).join("repair.meta"), 30, 1);
    let error = run(&fs).unwrap_err().to_string();
    assert!(error.contains("cannot be mended") && error.contains("repair.meta"), "{error}");
}

/// Once the log has reached the promised entry, the promise is over.
#[test]
fn the_promise_is_over_when_the_log_has_reached_it() {
    let old = Old::default();
    let (sim, fs) = new_disk(&old);
    damage(&sim, &fs);
    let kept = mended(run(&fs).unwrap()).0.kept;
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
    repair(&fs, &request, None, stop).unwrap_err();
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

fn start(fs: &Arc<dyn Fs>) -> Result<OpenedStorage, StorageError> {
    create(fs, Path::new(DIR))
}

/// Nothing goes on from the damaged directory, wherever it is put and whatever is done to it: the
/// votes and entries of the mended one are not in it.
#[test]
fn the_damaged_directory_is_never_repaired_again_or_started() {
    let old = Old::default();
    let (sim, fs) = new_disk(&old);
    damage(&sim, &fs);
    let (_, old_dir) = mended(run(&fs).unwrap());
    let request = RepairRequest { data_dir: old_dir.clone(), at_ms: TIME_MS + 9 };
    let error = repair(&fs, &request, None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("the mended directory is /nodes/data"), "{error}");
    // Back in its old place.
    fs.rename(Path::new(DIR), Path::new("/nodes/elsewhere")).unwrap();
    fs.rename(&old_dir, Path::new(DIR)).unwrap();
    let is_retired =
        |error: &RepairError| matches!(error, RepairError::Cannot { cause: Cause::Retired(_), .. });
    assert!(is_retired(&run(&fs).unwrap_err()));
    assert!(matches!(start(&fs), Err(StorageError::Retired { .. })));
}

/// A run that was cut off before its end is not finished months later, when the directory is away
/// and an earlier repair has left its own.
#[test]
fn only_the_mended_directory_that_the_damaged_one_names_is_put_into_its_place() {
    let old = Old::default();
    let (sim, fs) = new_disk(&old);
    damage(&sim, &fs);
    mended(run(&fs).unwrap());
    let image = sim.image();
    let mut unfinished = 0;
    for at in 1.. {
        let sim = SimFs::from_image(&image);
        let fs: Arc<dyn Fs> = Arc::new(sim.clone());
        // As it was before.
        fs.rename(Path::new(DIR), Path::new("/nodes/elsewhere")).unwrap();
        old.create(&fs);
        damage(&sim, &fs);
        sim.halt_at(at);
        let request = RepairRequest { data_dir: DIR.into(), at_ms: TIME_MS + 1_000_000 };
        let done = repair(&fs, &request, None, &mut |_| ControlFlow::Continue(()));
        let was_cut = sim.is_halted();
        sim.kill();
        let is_retired = matches!(start(&fs), Err(StorageError::Retired { .. }));
        let new = Path::new("/nodes/data.repairing");
        if done.is_err() && fs.kind(new).is_ok() && fs.kind(Path::new(DIR)).is_ok() {
            // Somebody solves it in another way; the mended directory stays, and is old then.
            fs.rename(Path::new(DIR), Path::new("/nodes/away")).unwrap();
            assert!(run(&fs).is_err(), "operation {at}");
            assert!(fs.kind(Path::new(DIR)).is_err(), "operation {at}");
            let refused = start(&fs).map(drop).unwrap_err();
            assert!(matches!(refused, StorageError::Unfinished { .. }), "{refused}");
            unfinished += u32::from(!is_retired);
        }
        if !was_cut {
            break;
        }
    }
    assert!(unfinished > 10, "{unfinished}");
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
            // A start meanwhile is refused, or finds the mended log. A supervisor may have created
            // the directory for it.
            if seed.is_multiple_of(2) && fs.kind(Path::new(DIR)).is_err() {
                fs.create_dir(Path::new(DIR)).unwrap();
            }
            if start(&fs).is_ok() {
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

/// A directory whose log begins after entry 12, without its snapshots.
fn without_snapshots() -> (Old, SimFs, Arc<dyn Fs>) {
    let old = Old { entries: 90, snapshot: Some(20), purged: 12, ..Old::default() };
    let (sim, fs) = new_disk(&old);
    fs.remove_tree(&Path::new(DIR).join(SNAPSHOT_DIR)).unwrap();
    (old, sim, fs)
}

/// The bytes of a snapshot up to `index` that another node has taken.
fn snapshot_of(cluster: ClusterId, index: u64) -> Vec<u8> {
    let (_, fs) = new_disk(&Old { cluster, snapshot: Some(index), ..Old::default() });
    let name = archive_name(Old::id(index));
    read_file(&*fs, &Path::new(DIR).join(SNAPSHOT_DIR).join(name)).unwrap()
}

fn write(fs: &Arc<dyn Fs>, path: &Path, bytes: &[u8]) -> ControlFlow<()> {
    let opened = fs.open(path, OpenMode::CreateNew);
    match opened.and_then(|file| write_all_at(&*file, 0, bytes)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

#[test]
fn a_log_that_begins_after_every_snapshot_gets_one_of_another_node() {
    let bytes = snapshot_of(OLD, 24);
    let fetch = |fs: &Arc<dyn Fs>| {
        run_with(fs, &mut |missing: &MissingSnapshot| {
            assert_eq!((missing.owner.cluster, missing.base.get()), (OLD, 12));
            write(fs, &missing.file, &bytes)
        })
    };
    // The log is intact.
    let (_, _, fs) = without_snapshots();
    let error = run(&fs).unwrap_err();
    assert!(error.to_string().contains("--from HOST:PORT"), "{error}");
    let done = fetch(&fs).unwrap();
    assert_eq!((done.fetched, done.log), (Some(Old::id(24)), RepairedLog::Kept));
    let names = fs.list(&Path::new(DIR).join(SNAPSHOT_DIR)).unwrap();
    assert_eq!(names, [archive_name(Old::id(24))]);
    let error = fetch(&fs).unwrap_err();
    assert!(matches!(error, RepairError::Cannot { cause: Cause::Intact, .. }), "{error}");
    // It is damaged as well.
    let (old, sim, fs) = without_snapshots();
    let whole = open(&fs, Path::new(DIR)).unwrap().recovered;
    let last = segments(&fs).len() - 2;
    assert!(sim.flip_bit(&segments(&fs).swap_remove(last), 1_700, 1));
    assert!(open(&fs, Path::new(DIR)).is_err());
    let done = fetch(&fs).unwrap();
    assert_eq!(done.fetched, Some(Old::id(24)));
    let (plan, _) = mended(done);
    assert_eq!((plan.snapshot, plan.promised), (Some(Old::id(24)), whole.last()));
    let found = open(&fs, Path::new(DIR)).unwrap().recovered;
    assert_eq!((found.base, found.promised), (Old::id(24), Old::id(old.entries)));
    // What no snapshot mends is refused before one is fetched.
    let (_, sim, fs) = without_snapshots();
    for name in ["identity.meta", "identity.meta.2"] {
        assert!(sim.flip_bit(&Path::new(DIR).join(name), 30, 1));
    }
    let error = run_with(&fs, &mut |_| panic!("it is of no use")).unwrap_err();
    assert!(error.to_string().contains("identity"), "{error}");
    // One that is damaged has the same name.
    let (_, sim, fs) = without_snapshots();
    let dir = Path::new(DIR).join(SNAPSHOT_DIR);
    fs.create_dir(&dir).unwrap();
    let path = dir.join(archive_name(Old::id(24)));
    assert!(write(&fs, &path, &bytes).is_continue() && sim.flip_bit(&path, 3_000, 1));
    fetch(&fs).unwrap();
    assert_eq!(read_file(&*fs, &path).unwrap(), bytes);
}

#[test]
fn a_fetched_snapshot_that_does_not_fit_is_refused_and_the_next_run_fetches_again() {
    let (_, _, fs) = without_snapshots();
    let mut damaged = snapshot_of(OLD, 24);
    damaged[3_000] ^= 1;
    let other = ClusterId([7; 16]);
    let wrong = [snapshot_of(other, 24), snapshot_of(OLD, 9), damaged];
    let texts = ["is of cluster", "ends at entry 9, and the log", "chunk"];
    for (bytes, text) in wrong.iter().zip(texts) {
        let fetched = run_with(&fs, &mut |missing| write(&fs, &missing.file, bytes));
        let error = fetched.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert!(!fs.list(&Path::new(DIR).join(SNAPSHOT_DIR)).unwrap().concat().contains("snap-"));
    }
    // What an earlier run has received is used, without a second transfer.
    let stopped = run_with(&fs, &mut |missing| {
        let _written = write(&fs, &missing.file, &snapshot_of(OLD, 24));
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(RepairError::Stopped)), "{stopped:?}");
    let done = run_with(&fs, &mut |_| panic!("it is there")).unwrap();
    assert_eq!(done.fetched, Some(Old::id(24)));
}

/// The directory has the snapshot, or still lacks it; the same command fetches it.
#[test]
fn a_fetch_that_is_cut_off_anywhere_is_run_again() {
    let (_, sim, _) = without_snapshots();
    let (image, bytes) = (sim.image(), snapshot_of(OLD, 24));
    let mut operations = 0;
    for seed in 0..6 {
        for at in 1.. {
            let sim = SimFs::from_image(&image);
            let fs: Arc<dyn Fs> = Arc::new(sim.clone());
            sim.halt_at(at);
            let done = run_with(&fs, &mut |missing| write(&fs, &missing.file, &bytes));
            let was_cut = sim.is_halted();
            assert!(was_cut || done.is_ok(), "{done:?}");
            let mut random = SplitMix64::new(seed ^ (at << 8));
            match seed {
                0 => sim.kill(),
                _ => sim.crash(&mut |n| random.below(n)),
            }
            let context = format!("seed {seed}, operation {at}");
            let again = run_with(&fs, &mut |missing| write(&fs, &missing.file, &bytes));
            match (&done, again) {
                (Err(_), Ok(it)) if it.fetched == Some(Old::id(24)) => {}
                (_, Err(RepairError::Cannot { cause: Cause::Intact, .. })) => {}
                (done, again) => panic!("{context}: {done:?}, {again:?}"),
            }
            if !was_cut {
                break;
            }
            operations = operations.max(at);
        }
    }
    assert!(operations > 8, "{operations} operations");
}
