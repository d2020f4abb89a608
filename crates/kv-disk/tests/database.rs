//! What the machine does with its files: restarts, refusals, failures, and snapshots beside changes.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_kv_disk::{DiskKvError, DiskKvStateMachine, KvCommand};
use d_engine_replica::{SnapshotMetadata, StateMachine, snapshot_checksum};
use d_engine_storage::fs::ensure_dir;
use d_engine_storage::fs_sim::SimFs;
use support::{apply, at_once, id, install, snapshot, started};

#[test]
fn everything_is_there_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let machine = started(home.path());
    apply(&machine, 1, &[KvCommand::put("a", "1"), KvCommand::put("b", "2")]);
    machine.update_last_applied(id(3));
    let meta = SnapshotMetadata::new(id(2), [7; 32]).with_format(5);
    machine.update_last_snapshot_metadata(&meta).unwrap();
    drop(machine);
    let machine = started(home.path());
    assert_eq!(machine.last_applied(), id(3));
    assert_eq!(
        (machine.entry_term(3), machine.entry_term(2), machine.entry_term(1)),
        (Some(1), Some(1), None)
    );
    assert_eq!(machine.snapshot_metadata(), Some(meta));
    assert_eq!(machine.get(b"b").unwrap(), Some(Bytes::from_static(b"2")));
    assert_eq!(machine.len(), 2);
}

#[test]
fn stopped_and_started_again_it_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let machine = started(home.path());
    apply(&machine, 1, &[KvCommand::put("a", "1")]);
    machine.stop().unwrap();
    machine.stop().unwrap();
    assert!(!machine.is_running());
    machine.start().unwrap();
    apply(&machine, 2, &[KvCommand::put("b", "2")]);
    assert_eq!(machine.len(), 2);
}

#[test]
fn a_machine_that_was_not_started_says_so_and_touches_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("none");
    let machine = DiskKvStateMachine::new(&dir);
    let error = machine.get(b"a").unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(DiskKvError::NotStarted { .. })), "{error}");
    assert_eq!((machine.len(), machine.last_applied().index), (0, 0));
    machine.stop().unwrap();
    drop(machine);
    assert!(!dir.exists());
}

#[test]
fn a_directory_is_opened_once() {
    let home = tempfile::tempdir().unwrap();
    let machine = started(home.path());
    let error = DiskKvStateMachine::new(home.path()).start().unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(DiskKvError::InUse { .. })), "{error}");
    drop(machine);
    started(home.path());
}

/// As after a `snapshot_view` whose writer has not come to its end when the node is stopped.
#[test]
fn a_view_does_not_keep_the_directory_in_use() {
    let home = tempfile::tempdir().unwrap();
    let machine = started(home.path());
    apply(&machine, 1, &[KvCommand::put("a", "1")]);
    let view = machine.snapshot_view().unwrap().unwrap();
    drop(machine);
    let machine = started(home.path());
    let dir = tempfile::tempdir().unwrap();
    view.write(dir.path()).unwrap_err();
    assert_eq!(machine.len(), 1);
}

#[test]
fn a_view_outlives_the_state_that_it_was_taken_of() {
    let (home, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (machine, other) = (started(home.path()), started(others.path()));
    let commands: Vec<_> = (0..500).map(|n| KvCommand::put(format!("key {n}"), vec![1; 300])).collect();
    apply(&machine, 1, &commands);
    apply(&other, 1, &commands[..1]);
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let expected = snapshot(&machine, dirs[0].path());
    let view = machine.snapshot_view().unwrap().unwrap();
    let changes: Vec<_> = (0..500).map(|n| KvCommand::put(format!("key {n}"), "after")).collect();
    apply(&machine, 501, &changes);
    machine.flush().unwrap();
    let small = snapshot(&other, dirs[1].path());
    install(&machine, &small, dirs[1].path()).unwrap();
    at_once(machine.reset()).unwrap();
    assert!(machine.is_empty());
    assert_eq!(view.label(), expected.last_included);
    assert_eq!(view.write(dirs[2].path()).unwrap(), expected.checksum);
}

/// The file is checked by itself too: here the metadata agree with the damaged file.
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
            let agreeing = SnapshotMetadata::new(meta.last_included, snapshot_checksum(dir.path()).unwrap());
            assert!(install(&machine, &agreeing, dir.path()).is_err(), "damage at byte {at} was accepted");
            assert_eq!((machine.last_applied(), machine.len()), (id(1), 1));
        }
    }
    drop(machine);
    let names = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["kv.redb", "lock"], "nothing unfinished is left");
    assert_eq!(started(home.path()).get(b"old").unwrap(), Some(Bytes::from_static(b"state")));
}

#[test]
fn a_file_that_is_no_database_refuses_the_start() {
    let home = tempfile::tempdir().unwrap();
    for content in [&b"something else"[..], &[0; 8192]] {
        std::fs::write(home.path().join("kv.redb"), content).unwrap();
        let error = DiskKvStateMachine::new(home.path()).start().unwrap_err();
        assert!(error.to_string().contains("kv.redb"), "{error}");
    }
}

/// The power fails, or the disk does, at any operation of an install or a reset: the state is the old or the new one.
#[test]
fn a_crash_anywhere_in_an_install_or_a_reset_leaves_the_old_state_or_the_new_one() {
    let dir = Path::new("/snapshot");
    for is_reset in [false, true] {
        let (mut old, mut new, mut nth) = (0, 0, 0);
        loop {
            nth += 1;
            let fs = Arc::new(SimFs::new());
            ensure_dir(&*fs, dir).unwrap();
            let open = |home: &str| {
                let machine = DiskKvStateMachine::with_fs(fs.clone(), home);
                machine.start().unwrap();
                machine
            };
            let source = open("/source");
            apply(&source, 1, &["a", "b", "c"].map(|key| KvCommand::put(key, "new")));
            let meta = snapshot(&source, dir);
            let machine = open("/machine");
            apply(&machine, 1, &[KvCommand::put("a", "old")]);
            machine.flush().unwrap();
            fs.halt_at(nth);
            let done = if is_reset {
                at_once(machine.reset()).is_ok()
            } else {
                install(&machine, &meta, dir).is_ok()
            };
            drop((machine, source));
            let mut state = nth;
            fs.crash(&mut |below| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if below == 0 { 0 } else { (state >> 33) % below }
            });
            let machine = open("/machine");
            let (position, value) = (machine.last_applied().index, machine.get(b"a").unwrap());
            match (position, value.as_deref(), machine.len()) {
                (1, Some(b"old"), 1) if !done => old += 1,
                (3, Some(b"new"), 3) if !is_reset => new += 1,
                (0, None, 0) if is_reset => new += 1,
                found => panic!("{found:?} after a crash at operation {nth} of an install or a reset"),
            }
            if done {
                break;
            }
        }
        assert!(old >= 5 && new >= 1, "{old} crashes left the old state, {new} the new one");
    }
}
