//! What the machine does with its files: restarts, refusals, failures, and snapshots taken during
//! changes.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_fs::ensure_dir;
use d_engine_fs::sim::SimFs;
use d_engine_kv_disk::{DiskKvError, DiskKvStateMachine, KvCommand, PutOptions};
use d_engine_state_machine::{Binding, ClusterId, Incarnation, SnapshotMetadata, StateMachine};
use support::{apply, at_once, crash, id, install, snapshot, started};

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
    assert_eq!((machine.len(), machine.last_applied().index.get()), (0, 0));
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

/// The state of a node that is stopped before the writer of a `snapshot_view` has finished.
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
    let commands: Vec<_> =
        (0..500).map(|n| KvCommand::put(format!("key {n}"), vec![1; 300])).collect();
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
    assert_eq!(view.last_included(), expected.last_included);
    assert_eq!(view.write(dirs[2].path()).unwrap(), expected.checksum);
}

/// The engine has not requested a sync yet, but the machine syncs after so many bytes: a power cut
/// must not take more than that.
#[test]
fn what_was_applied_long_ago_survives_a_power_cut_without_a_flush() {
    for survives in [0, 1] {
        let fs = Arc::new(SimFs::new());
        let open = || {
            let machine =
                DiskKvStateMachine::with_fs(fs.clone(), "/machine").sync_every_bytes(10_000);
            machine.start().unwrap();
            machine
        };
        let machine = open();
        for index in 1..=50 {
            apply(&machine, index, &[KvCommand::put(format!("k{index}"), "x".repeat(500))]);
        }
        fs.halt_at(1);
        drop(machine);
        fs.crash(&mut |below| if below == 0 { 0 } else { survives % below });
        let machine = open();
        let position = machine.last_applied().index.get();
        assert!((30..=50).contains(&position), "the position is {position} of 50");
        assert_eq!(machine.len() as u64, position);
    }
}

/// The rename of the installed state is durable when the install returns.
#[test]
fn an_installed_state_survives_whatever_a_power_cut_takes() {
    for survives in 0..4 {
        let fs = Arc::new(SimFs::new());
        let dir = Path::new("/snapshot");
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
        if survives < 2 {
            install(&machine, &meta, dir).unwrap();
        } else {
            at_once(machine.reset()).unwrap();
        }
        fs.halt_at(1);
        drop((machine, source));
        fs.crash(&mut |below| if below == 0 { 0 } else { survives % 2 % below });
        let machine = open("/machine");
        let expected = if survives < 2 { (3, 3) } else { (0, 0) };
        assert_eq!((machine.last_applied().index.get(), machine.len()), expected);
    }
}

/// Pages that a view reads are not reused: beyond a limit the view is dropped, so that the disk
/// does not fill up.
#[test]
fn a_view_for_which_the_file_grows_too_far_is_given_up_with_the_figures() {
    let home = tempfile::tempdir().unwrap();
    let machine = DiskKvStateMachine::new(home.path()).view_growth_bytes(1 << 20);
    machine.start().unwrap();
    apply(&machine, 1, &[KvCommand::put("a", "1")]);
    machine.flush().unwrap();
    let held = machine.snapshot_view().unwrap().unwrap();
    let length = || std::fs::metadata(home.path().join("kv.redb")).unwrap().len();
    let before = length();
    let mut index = 1;
    while length() < before + before.max(1 << 20) + (1 << 20) && index < 100_000 {
        index += 1;
        apply(&machine, index, &[KvCommand::put(format!("k{}", index % 500), "x".repeat(100))]);
        if index % 50 == 0 {
            machine.flush().unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let given_up = held.write(dir.path()).unwrap_err().to_string();
    assert!(
        given_up.contains(&format!("from {before} to")) && given_up.contains("view_growth_bytes"),
        "{given_up}"
    );
    // The dropped view has released its pages: the file does not grow further.
    machine.flush().unwrap();
    let (after, last) = (length(), index);
    for index in last + 1..last + 2_000 {
        apply(&machine, index, &[KvCommand::put(format!("k{}", index % 500), "x".repeat(100))]);
        if index % 50 == 0 {
            machine.flush().unwrap();
        }
    }
    assert!(length() <= after + (1 << 20), "{} bytes after {after}", length());
    let dir = tempfile::tempdir().unwrap();
    machine.snapshot_view().unwrap().unwrap().write(dir.path()).unwrap();
}

/// The power fails, or the disk does, at any operation of an install or a reset: the state is the
/// old or the new one.
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
            crash(&fs, nth);
            let machine = open("/machine");
            let (position, value) =
                (machine.last_applied().index.get(), machine.get(b"a").unwrap());
            match (position, value.as_deref(), machine.len()) {
                (1, Some(b"old"), 1) if !done => old += 1,
                (3, Some(b"new"), 3) if !is_reset => new += 1,
                (0, None, 0) if is_reset => new += 1,
                found => {
                    panic!("{found:?} after a crash at operation {nth} of an install or a reset")
                }
            }
            if done {
                break;
            }
        }
        assert!(old >= 5 && new >= 1, "{old} crashes left the old state, {new} the new one");
    }
}

fn binding(incarnation: u8) -> Binding {
    Binding::new(ClusterId([1; 16]), 1, Incarnation([incarnation; 16]))
}

/// Starts a machine that is bound to a data directory with this incarnation.
fn bound(dir: &Path, incarnation: u8) -> Result<DiskKvStateMachine, String> {
    let machine = DiskKvStateMachine::new(dir);
    machine
        .bind(&binding(incarnation))
        .and_then(|()| machine.start())
        .map_err(|error| error.to_string())?;
    Ok(machine)
}

#[test]
fn the_file_belongs_to_one_data_directory_also_after_a_reset_and_an_install() {
    let (home, others, dir) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = bound(others.path(), 8).unwrap();
    apply(&source, 1, &[KvCommand::put("a", "1")]);
    let meta = snapshot(&source, dir.path());
    // A file that was created without an engine is bound by the first engine.
    apply(&started(home.path()), 1, &[KvCommand::put("a", "0")]);
    let refused = |what: &str| {
        let refused = bound(home.path(), 8).map(drop).unwrap_err();
        assert!(
            refused.contains("incarnation 07070707") && refused.contains("incarnation 08080808"),
            "{what}: {refused}"
        );
    };
    drop(bound(home.path(), 7).unwrap());
    refused("as it was");
    let machine = bound(home.path(), 7).unwrap();
    at_once(machine.reset()).unwrap();
    drop(machine);
    refused("after a reset");
    let machine = bound(home.path(), 7).unwrap();
    install(&machine, &meta, dir.path()).unwrap();
    let error = machine.bind(&binding(8)).unwrap_err().to_string();
    assert!(error.contains("incarnation 07070707"), "{error}");
    drop(machine);
    refused("after the install of another node's snapshot");
    assert_eq!(bound(home.path(), 7).unwrap().last_applied(), id(1));
    // The binding of a recovered directory names the history that it continues.
    let machine = DiskKvStateMachine::new(home.path());
    let mut continuing = binding(8);
    continuing.continues.push((ClusterId([1; 16]), Incarnation([7; 16])));
    machine.bind(&continuing).unwrap();
    machine.start().unwrap();
    drop(machine);
    assert!(bound(home.path(), 7).is_err(), "the former directory was accepted");
    bound(home.path(), 8).unwrap();
}

#[test]
fn the_machine_knows_how_large_its_snapshot_will_be() {
    let (home, memory) = (tempfile::tempdir().unwrap(), d_engine_kv::KvStateMachine::new());
    let machine = started(home.path());
    let commands = [
        KvCommand::put("a", "1"),
        KvCommand::put("b", "a longer value"),
        KvCommand::put("a", "another value"),
        KvCommand::put_with("c", "soon gone", PutOptions::default().ttl(Duration::from_millis(5))),
        KvCommand::delete("b"),
    ];
    let is_told = |when: &str| {
        for machine in [&machine as &dyn StateMachine, &memory] {
            let dir = tempfile::tempdir().unwrap();
            machine.snapshot_view().unwrap().unwrap().write(dir.path()).unwrap();
            let written = std::fs::metadata(dir.path().join("kv.data")).unwrap().len();
            assert_eq!(machine.snapshot_bytes(), Some(written), "{when}");
        }
    };
    is_told("empty");
    apply(&machine, 1, &commands);
    apply(&memory, 1, &commands);
    is_told("after commands");
    for machine in [&machine as &dyn StateMachine, &memory] {
        machine.advance_time(id(9), 100).unwrap();
    }
    is_told("after a key has vanished");
    let dir = tempfile::tempdir().unwrap();
    let meta = snapshot(&memory, dir.path());
    at_once(memory.reset()).unwrap();
    install(&machine, &meta, dir.path()).unwrap();
    install(&memory, &meta, dir.path()).unwrap();
    is_told("after an install");
}

/// Without space for two databases the old records are removed first. Whenever the power fails, the
/// machine starts empty, or with the complete snapshot: the next start installs the snapshot again.
#[test]
fn without_room_for_two_the_records_are_given_up_for_those_of_the_snapshot() {
    let dir = Path::new("/snapshot");
    let (mut old, mut empty, mut new, mut nth) = (0, 0, 0, 0);
    loop {
        nth += 1;
        let fs = Arc::new(SimFs::new());
        ensure_dir(&*fs, dir).unwrap();
        let open = |home: &str| {
            let machine = DiskKvStateMachine::with_fs(fs.clone(), home);
            machine.bind(&binding(7)).unwrap();
            machine.start().unwrap();
            machine
        };
        let source = open("/source");
        apply(&source, 1, &["a", "b", "c"].map(|key| KvCommand::put(key, "new")));
        let meta = snapshot(&source, dir);
        let machine = open("/machine");
        apply(&machine, 1, &[KvCommand::put("a", "old")]);
        let first = SnapshotMetadata::new(id(1), [0; 32]);
        machine.update_last_snapshot_metadata(&first).unwrap();
        machine.persist_last_snapshot_metadata(&first).unwrap();
        assert!(
            machine.install_bytes(&meta, 1 << 30) > 1 << 30,
            "it requests the space that it needs"
        );
        fs.set_free_bytes(Some(1 << 20));
        fs.halt_at(nth);
        let done = install(&machine, &meta, dir).is_ok();
        if !done {
            assert!(
                machine.get(b"a").is_err() || machine.get(b"a").unwrap().as_deref() == Some(b"old"),
                "no half"
            );
        }
        drop((machine, source));
        crash(&fs, nth);
        fs.set_free_bytes(None);
        let machine = open("/machine");
        let named = machine.snapshot_metadata().map(|meta| meta.last_included.index.get());
        match (
            machine.last_applied().index.get(),
            machine.get(b"a").unwrap().as_deref(),
            machine.len(),
            named,
        ) {
            (1, Some(b"old"), 1, Some(1)) if !done => old += 1,
            (0, None, 0, None) if !done => empty += 1,
            (3, Some(b"new"), 3, Some(1)) => new += 1,
            found => panic!("{found:?} after a crash at operation {nth}"),
        }
        install(&machine, &meta, dir).unwrap();
        assert_eq!(machine.get(b"a").unwrap().as_deref(), Some(&b"new"[..]));
        if done {
            break;
        }
    }
    assert!(
        old >= 3 && empty >= 5 && new >= 1,
        "{old} crashes left the old state, {empty} none, {new} the new one"
    );
}

/// Every disk that is too small for an empty database, in steps of a page.
#[test]
fn a_start_refused_by_a_full_disk_leaves_nothing_behind() {
    let mut refused = 0;
    for capacity in (0..).step_by(4096) {
        let fs = Arc::new(SimFs::new());
        ensure_dir(&*fs, Path::new("/machine")).unwrap();
        fs.set_capacity(Some(capacity));
        let machine = DiskKvStateMachine::with_fs(fs.clone(), "/machine").cache_bytes(0);
        let Err(error) = machine.start() else { break };
        refused += 1;
        assert_eq!(fs.used_bytes(), 0, "{capacity} bytes: {error}");
    }
    assert!(refused > 1, "{refused}");
}
