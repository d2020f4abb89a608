//! The process dies at every single file operation of building, purging, receiving and installing, with or
//! without the power, and is started again the way that production starts: nothing that was acknowledged is lost,
//! and the state is that of a node that never died.
#![allow(clippy::unwrap_used)]

mod life;
mod machine;

use d_engine_core::LogIndex;
use d_engine_replica::Durability;
use d_engine_storage::Fs;
use d_engine_storage::fs_sim::SimFs;
use d_engine_storage::snapshot::SnapshotArchive;
use life::{Life, archive_of_the_next_leader, state_at};

/// What the node is about to do when it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Build,
    Purge,
    Receive,
    Install,
}

/// One life: entries, two snapshots with the log purged behind them, entries that will conflict, and a snapshot of
/// the next leader's in their place. Notes each step when it begins.
fn live(life: &mut Life, archive: &SnapshotArchive, steps: &mut Vec<Step>) -> Result<(), String> {
    for (first, last) in [(1, 6), (7, 12)] {
        life.append(2, 1, first, last, last)?;
        steps.push(Step::Build);
        let kept = life.build()?;
        steps.push(Step::Purge);
        life.keep(kept)?;
    }
    life.append_conflicting(13, 16)?;
    steps.push(Step::Receive);
    let received = life.receive(archive)?;
    steps.push(Step::Install);
    life.install(received)?;
    life.append(3, 2, 21, 24, 24)
}

/// A disk on which nothing has happened yet, and the node on it.
fn newborn(durability: Durability) -> (SimFs, Life) {
    let fs = SimFs::new();
    let life = Life::start(&fs, durability, 1).unwrap();
    (fs, life)
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n.max(1)
    }
}

/// Dies at operation `at`; `None` when the life does not have so many, else the step it died in.
fn die_and_come_back(
    at: u64,
    seed: u64,
    durability: Durability,
    archive: &SnapshotArchive,
) -> Option<Option<Step>> {
    let context = format!("operation {at}, seed {seed}, {durability:?}");
    let (fs, mut life) = newborn(durability);
    fs.halt_at(at);
    let mut steps = Vec::new();
    if live(&mut life, archive, &mut steps).is_ok() {
        assert_eq!(life.machine.commands(), state_at(24));
        return None;
    }
    assert!(fs.is_halted(), "{context}: it ended although its disk is well");
    let (acknowledged, kept) = (life.acknowledged, life.kept);
    drop(life);
    if seed == 0 {
        fs.kill();
    } else {
        fs.crash(&mut random(seed ^ (at << 16)));
    }
    // Twice: what the first start has found and repaired is there at the second.
    for start in 1..=2 {
        let mut again = Life::start(&fs, durability, 1)
            .unwrap_or_else(|error| panic!("{context}, start {start}: {error}"));
        again.goes_on().unwrap_or_else(|error| panic!("{context}, start {start}: {error}"));
        let log = again.replica.core().log();
        assert!(log.last.index.get() >= acknowledged, "{context}: {log:?}, acknowledged {acknowledged}");
        assert!(log.committed.get() >= kept, "{context}: {log:?}, but the snapshot of {kept} was kept");
        let applied = again.replica.applied().get();
        assert_eq!(again.machine.commands(), state_at(applied), "{context}: the state at {applied}");
        if start == 1 {
            drop(again);
            fs.crash(&mut random(seed + at));
            continue;
        }
        // The next leader brings it where a node is that never died.
        if again.replica.core().log().committed < LogIndex::new(20) {
            let received = again.receive(archive).unwrap_or_else(|error| panic!("{context}: {error}"));
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
            assert!(times >= 3, "it died {times} times in {step:?}");
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

/// A life up to two snapshots, at 6 and at 12, with so many entries kept behind the newest.
fn with_two_snapshots(tail_entries: u64) -> SimFs {
    let fs = SimFs::new();
    let mut life = Life::start(&fs, Durability::Rebuilt, tail_entries).unwrap();
    for (first, last) in [(1, 6), (7, 12)] {
        life.append(2, 1, first, last, last).unwrap();
        let kept = life.build().unwrap();
        life.keep(kept).unwrap();
    }
    fs
}

/// A bit turns anywhere in the newest snapshot: the one before it serves, because the log reaches back to it.
#[test]
fn a_damaged_snapshot_gives_way_to_the_one_before_it() {
    let path = std::path::Path::new("/data/snapshots/snap-1-12.snap");
    let image = with_two_snapshots(0).image();
    let len = image.files[path].len() as u64;
    for at in 0..len {
        let fs = SimFs::from_image(&image);
        assert!(fs.flip_bit(path, at, (at % 8) as u8));
        let mut life =
            Life::start(&fs, Durability::Rebuilt, 0).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(life.machine.commands(), state_at(6), "byte {at}");
        life.goes_on().unwrap();
        life.append(3, 2, 13, 13, 13).unwrap();
        assert_eq!(life.machine.commands(), state_at(13), "byte {at}");
    }
    let fs = with_two_snapshots(0);
    assert!(fs.flip_bit(path, len / 2, 3));
    assert!(fs.flip_bit(&path.with_file_name("snap-1-6.snap"), len / 2, 3));
    let refused = Life::start(&fs, Durability::Rebuilt, 0).map(|_| ()).unwrap_err();
    assert!(refused.contains("bring back a copy of this node's directory"), "{refused}");
    assert!(fs.kind(path).is_ok(), "the damaged one is left for whoever looks");
}
