//! The process crashes at every single file operation of building, purging, receiving and
//! installing, with or without a power loss, and is restarted as in production. No acknowledged
//! entry is lost, and the state is that of a node that never crashed.
#![allow(clippy::unwrap_used)]

mod boot;
mod machine;

use boot::{Life, archive_of_the_next_leader, state_at};
use d_engine_core::{LogIndex, SplitMix64};
use d_engine_replica::Durability;
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::SnapshotArchive;

/// The step in which the node crashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Build,
    Purge,
    Receive,
    Install,
}

/// One run: entries, two snapshots with a purge of the log up to each, conflicting entries, and a
/// snapshot of the next leader that replaces them. Records each step when it begins.
fn live(boot: &mut Life, archive: &SnapshotArchive, steps: &mut Vec<Step>) -> Result<(), String> {
    for (first, last) in [(1, 6), (7, 12)] {
        boot.append(2, 1, first, last, last)?;
        steps.push(Step::Build);
        let kept = boot.build()?;
        steps.push(Step::Purge);
        boot.keep(kept)?;
    }
    boot.append_conflicting(13, 16)?;
    steps.push(Step::Receive);
    let received = boot.receive(archive)?;
    steps.push(Step::Install);
    boot.install(received)?;
    boot.append(3, 2, 21, 24, 24)
}

/// An empty disk, and the node on it.
fn newborn(durability: Durability) -> (SimFs, Life) {
    let fs = SimFs::new();
    let boot = Life::start(&fs, durability, 1).unwrap();
    (fs, boot)
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = SplitMix64::new(seed);
    move |n| random.below(n)
}

/// Crashes at operation `at` and restarts; returns the step of the crash, or `None` if the run has
/// fewer operations.
fn die_and_come_back(
    at: u64,
    seed: u64,
    durability: Durability,
    archive: &SnapshotArchive,
) -> Option<Option<Step>> {
    let context = format!("operation {at}, seed {seed}, {durability:?}");
    let (fs, mut boot) = newborn(durability);
    fs.halt_at(at);
    let mut steps = Vec::new();
    if live(&mut boot, archive, &mut steps).is_ok() {
        assert_eq!(boot.machine.commands(), state_at(24));
        return None;
    }
    assert!(fs.is_halted(), "{context}: it ended although its disk works");
    let (acknowledged, kept) = (boot.acknowledged, boot.kept);
    drop(boot);
    if seed == 0 {
        fs.kill();
    } else {
        fs.crash(&mut random(seed ^ (at << 16)));
    }
    // Two starts: the repairs of the first start must be durable at the second.
    for start in 1..=2 {
        let mut again = Life::start(&fs, durability, 1)
            .unwrap_or_else(|error| panic!("{context}, start {start}: {error}"));
        again.goes_on().unwrap_or_else(|error| panic!("{context}, start {start}: {error}"));
        let log = again.replica.core().log();
        assert!(
            log.last.index.get() >= acknowledged,
            "{context}: {log:?}, acknowledged {acknowledged}"
        );
        assert!(
            log.committed.get() >= kept,
            "{context}: {log:?}, but the snapshot of {kept} was kept"
        );
        let applied = again.replica.applied().get();
        assert_eq!(
            again.machine.commands(),
            state_at(applied),
            "{context}: the state at {applied}"
        );
        if start == 1 {
            drop(again);
            fs.crash(&mut random(seed + at));
            continue;
        }
        // The next leader brings it to the state of a node that never crashed.
        if again.replica.core().log().committed < LogIndex::new(20) {
            let received =
                again.receive(archive).unwrap_or_else(|error| panic!("{context}: {error}"));
            again.install(received).unwrap_or_else(|error| panic!("{context}: {error}"));
        }
        again.append(3, 2, 21, 24, 24).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(again.machine.commands(), state_at(24), "{context}: at the end");
    }
    Some(steps.last().copied())
}

fn dies_everywhere(durability: Durability) {
    let archive = archive_of_the_next_leader();
    for seed in 0..6 {
        let mut died_in = Vec::new();
        for at in 1.. {
            match die_and_come_back(at, seed, durability, &archive) {
                Some(step) => died_in.extend(step),
                None => break,
            }
        }
        for step in [Step::Build, Step::Purge, Step::Receive, Step::Install] {
            let times = died_in.iter().filter(|died| **died == step).count();
            assert!(times >= 3, "it crashed {times} times in {step:?}");
        }
    }
}

/// FAULTS rows 31, 35, 36, 38 and 39.
#[test]
fn a_rebuilt_machine_comes_back_wherever_the_process_dies() {
    dies_everywhere(Durability::Rebuilt);
}

#[test]
fn a_durable_machine_comes_back_wherever_the_process_dies() {
    dies_everywhere(Durability::Durable);
}

/// A run up to two snapshots, at 6 and at 12, with `tail_entries` entries kept in the log although
/// the newest one covers them.
fn with_two_snapshots(tail_entries: u64) -> SimFs {
    let fs = SimFs::new();
    let mut boot = Life::start(&fs, Durability::Rebuilt, tail_entries).unwrap();
    for (first, last) in [(1, 6), (7, 12)] {
        boot.append(2, 1, first, last, last).unwrap();
        let kept = boot.build().unwrap();
        boot.keep(kept).unwrap();
    }
    fs
}

/// A bit flips anywhere in the newest snapshot: the previous one is used, because the log reaches
/// back to it.
#[test]
fn a_damaged_snapshot_gives_way_to_the_one_before_it() {
    let path = std::path::Path::new("/data/snapshots/snap-1-12.snap");
    let image = with_two_snapshots(0).image();
    let len = image.files[path].len() as u64;
    for at in 0..len {
        let fs = SimFs::from_image(&image);
        assert!(fs.flip_bit(path, at, (at % 8) as u8));
        let mut boot = Life::start(&fs, Durability::Rebuilt, 0)
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(boot.machine.commands(), state_at(6), "byte {at}");
        boot.goes_on().unwrap();
        boot.append(3, 2, 13, 13, 13).unwrap();
        assert_eq!(boot.machine.commands(), state_at(13), "byte {at}");
    }
    let fs = with_two_snapshots(0);
    assert!(fs.flip_bit(path, len / 2, 3));
    assert!(fs.flip_bit(&path.with_file_name("snap-1-6.snap"), len / 2, 3));
    let refused = Life::start(&fs, Durability::Rebuilt, 0).map(|_| ()).unwrap_err();
    assert!(refused.contains("d-engine repair --data-dir DIR --from"), "{refused}");
    assert!(fs.kind(path).is_ok(), "the damaged one is left for inspection");
}
