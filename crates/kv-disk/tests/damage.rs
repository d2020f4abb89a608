//! Damage of the database file and of the files of a snapshot.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_fs::sim::SimFs;
use d_engine_fs::{Fs as _, OpenMode, ensure_dir, read_file, write_all_at};
use d_engine_kv_disk::{DiskKvStateMachine, KvCommand, PutOptions};
use d_engine_state_machine::{SnapshotMetadata, StateMachine, snapshot_checksum};
use support::{apply, id, install, snapshot, started};

/// The file has a checksum of its own: here the metadata agrees with the damaged file.
#[test]
fn a_flipped_bit_or_a_cut_anywhere_is_refused_and_the_old_state_stays() {
    let (home, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (machine, source) = (started(home.path()), started(others.path()));
    apply(&machine, 1, &[KvCommand::put("old", "state")]);
    apply(&source, 1, &[KvCommand::put("a", "1"), KvCommand::put("b", "2")]);
    let dir = tempfile::tempdir().unwrap();
    let meta = snapshot(&source, dir.path());
    let file = dir.path().join("kv.data");
    let whole = std::fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(3) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        for damaged in [&flipped[..], &whole[..at]] {
            std::fs::write(&file, damaged).unwrap();
            let refusal = install(&machine, &meta, dir.path()).unwrap_err();
            assert!(refusal.contains("checksum"), "{refusal}");
            let agreeing =
                SnapshotMetadata::new(meta.last_included, snapshot_checksum(dir.path()).unwrap());
            assert!(
                install(&machine, &agreeing, dir.path()).is_err(),
                "damage at byte {at} was accepted"
            );
            assert_eq!((machine.last_applied(), machine.len()), (id(1), 1));
        }
    }
    drop(machine);
    let names = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["kv.redb", "lock"], "no unfinished file is left");
    assert_eq!(started(home.path()).get(b"old").unwrap(), Some(Bytes::from_static(b"state")));
}

/// The engine fills the empty machine from the snapshot and the log, or reports what is missing:
/// nothing is lost, and the damaged file is kept.
#[test]
fn a_file_that_is_no_database_is_put_aside() {
    for content in [&b"something else"[..], &[0; 8192]] {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("kv.redb"), content).unwrap();
        let machine = started(home.path());
        assert_eq!((machine.last_applied().index.get(), machine.len()), (0, 0));
        assert_eq!(std::fs::read(home.path().join("kv.redb.damaged")).unwrap(), content);
        apply(&machine, 1, &[KvCommand::put("a", "1")]);
        drop(machine);
        assert_eq!(started(home.path()).len(), 1);
    }
}

/// A bit is flipped in every byte of a small file, one after the other: what the machine then
/// serves and writes into snapshots is either unchanged or nothing.
#[test]
fn a_flipped_bit_anywhere_in_the_file_is_never_served() {
    let home = tempfile::tempdir().unwrap();
    let machine = started(home.path());
    let commands: Vec<KvCommand> = (0..8)
        .map(|n| match n % 4 {
            0 => KvCommand::put_with(
                format!("k{n}"),
                "x",
                PutOptions::default().ttl(Duration::from_secs(60)),
            ),
            _ => KvCommand::put(format!("k{n}"), format!("value {n}")),
        })
        .collect();
    apply(&machine, 1, &commands);
    let dir = tempfile::tempdir().unwrap();
    let expected = snapshot(&machine, dir.path());
    drop(machine);
    let whole = std::fs::read(home.path().join("kv.redb")).unwrap();
    let (mut given_up, mut harmless) = (0, 0);
    // Most of the file is pages of zeros, which the tree does not use.
    let used = |at: usize| whole[at / 512 * 512..].iter().take(512).any(|byte| *byte != 0);
    for at in (0..whole.len()).filter(|at| used(*at)) {
        let fs = SimFs::new();
        let place = Path::new("/machine");
        ensure_dir(&fs, place).unwrap();
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let file = fs.open(&place.join("kv.redb"), OpenMode::CreateNew).unwrap();
        write_all_at(&*file, 0, &flipped).unwrap();
        drop(file);
        let machine = DiskKvStateMachine::with_fs(Arc::new(fs.clone()), place).cache_bytes(1 << 20);
        machine.start().unwrap();
        if machine.last_applied().index == 0 {
            assert!(machine.is_empty(), "byte {at}");
            given_up += 1;
            continue;
        }
        ensure_dir(&fs, Path::new("/snapshot")).unwrap();
        let meta = snapshot(&machine, Path::new("/snapshot"));
        assert_eq!(meta, expected, "byte {at}");
        harmless += 1;
    }
    assert!(given_up > 1_000, "{given_up} flips were noticed, {harmless} did no harm");
}

/// Damage that occurs while the machine runs: the read reports it, the machine is not ready, the
/// next entry stops the node with the reason, and the next start begins empty.
#[test]
fn a_record_that_is_damaged_while_the_machine_runs_stops_it() {
    let fs = Arc::new(SimFs::new());
    let place = Path::new("/machine");
    let open = || DiskKvStateMachine::with_fs(fs.clone(), place).cache_bytes(0);
    let machine = open();
    machine.start().unwrap();
    let value = "a value that is long enough to be found in the file again";
    apply(&machine, 1, &[KvCommand::put("a", value), KvCommand::put("b", "2")]);
    machine.flush().unwrap();
    let path = place.join("kv.redb");
    let mut bytes = read_file(&*fs, &path).unwrap();
    let found: Vec<usize> = (0..bytes.len() - value.len())
        .filter(|at| bytes[*at..].starts_with(value.as_bytes()))
        .collect();
    let file = fs.open(&path, OpenMode::Existing).unwrap();
    for at in found {
        bytes[at] ^= 1;
        write_all_at(&*file, at as u64, &bytes[at..=at]).unwrap();
    }
    assert!(machine.get(b"b").unwrap().is_some(), "what is not damaged is served");
    assert!(machine.scrub().unwrap_err().to_string().contains("the record of \"a\""));
    let told = machine.get(b"a").unwrap_err().to_string();
    assert!(told.contains("the record of \"a\"") && told.contains("refills the machine"), "{told}");
    assert!(!machine.is_running());
    let next = vec![(0, KvCommand::put("c", "3").encode())];
    assert!(
        support::apply_at(&machine, 3, &next).unwrap_err().to_string().contains("the record of")
    );
    drop(machine);
    let machine = open();
    machine.start().unwrap();
    assert_eq!((machine.last_applied().index.get(), machine.len()), (0, 0));
    assert!(fs.kind(&place.join("kv.redb.damaged")).is_ok());
}
