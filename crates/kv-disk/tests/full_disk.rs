//! A full disk: the machine continues once there is space, and starts that are refused use none.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_fs::ensure_dir;
use d_engine_fs::sim::{Failure, SimFs};
use d_engine_fs::{Fs as _, FsOp};
use d_engine_kv_disk::{DiskKvStateMachine, KvCommand, KvReply};
use d_engine_state_machine::{Error, StateMachine};
use support::{apply, apply_at, at_once, crash, id, install, snapshot};

const HOME: &str = "/machine";

fn open(fs: &Arc<SimFs>) -> DiskKvStateMachine {
    let machine = DiskKvStateMachine::with_fs(fs.clone(), HOME);
    machine.start().unwrap();
    machine
}

fn put(key: u64) -> (u64, Bytes) {
    (7, KvCommand::put(format!("key {key}"), vec![5; 3_000]).encode())
}

/// Applies puts one by one until the disk is full; returns the index of the one that failed.
fn fill(machine: &DiskKvStateMachine, first: u64) -> (u64, Error) {
    for index in first..first + 10_000 {
        let applied = apply_at(machine, index, &[put(index)]);
        let applied = applied.and_then(|replies| machine.flush().map(|()| replies));
        if let Err(error) = applied {
            return (index, error);
        }
    }
    panic!("the disk does not fill up")
}

/// Whether a flush or a command fails first, the machine opens its database again, and every
/// command has taken effect once.
#[test]
fn after_want_of_room_the_machine_goes_on_by_itself() {
    for left in (0..400 << 10).step_by(28 << 10) {
        let fs = Arc::new(SimFs::new());
        let machine = open(&fs);
        fs.set_capacity(Some(fs.used_bytes() + left));
        let (index, error) = fill(&machine, 1);
        assert!(error.is_out_of_space(), "{left}: {error}");
        assert!(machine.flush().unwrap_err().is_out_of_space());
        let position = machine.last_applied();
        assert!(position == id(index) || position == id(index - 1), "{position} of {index}");

        fs.set_capacity(None);
        let again = apply_at(&machine, index, &[put(index), put(index + 1)]).unwrap();
        let replies: Vec<_> = again.iter().flatten().collect();
        assert_eq!(replies.len(), if position == id(index) { 1 } else { 2 }, "{left}: once each");
        for reply in replies {
            assert_eq!(KvReply::decode(reply).unwrap(), KvReply::Done { existed: false }, "{left}");
        }
        assert_eq!(machine.len() as u64, index + 1);
        machine.flush().unwrap();
        fs.halt_at(0);
        drop(machine);
        fs.crash(&mut |_| 0);
        let machine = open(&fs);
        assert_eq!((machine.last_applied(), machine.len() as u64), (id(index + 1), index + 1));
    }
}

/// A read finds out by itself that there is space again, and a view that was taken before fails.
#[test]
fn a_read_opens_the_database_again() {
    let fs = Arc::new(SimFs::new());
    let machine = DiskKvStateMachine::with_fs(fs.clone(), HOME).cache_bytes(0);
    machine.start().unwrap();
    fs.set_capacity(Some(fs.used_bytes() + (64 << 10)));
    let (index, _) = fill(&machine, 1);
    let error = machine.get(b"key 1").map(drop).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    fs.set_capacity(None);
    assert_eq!(machine.get(b"key 1").unwrap().unwrap().len(), 3_000);
    assert_eq!(machine.len() as u64, machine.last_applied().index.get());
    apply(&machine, index + 1, &[KvCommand::put("after", "1")]);
    snapshot_of(&fs, &machine, "/view");
}

fn snapshot_of(
    fs: &SimFs,
    machine: &DiskKvStateMachine,
    dir: &str,
) -> d_engine_state_machine::SnapshotMetadata {
    ensure_dir(fs, Path::new(dir)).unwrap();
    snapshot(machine, Path::new(dir))
}

/// A sync that fails leaves pages in doubt, whatever its error says.
#[test]
fn a_database_whose_sync_has_failed_is_not_used_again() {
    let fs = Arc::new(SimFs::new());
    let machine = open(&fs);
    apply(&machine, 1, &[KvCommand::put("a", "1")]);
    fs.fail(FsOp::SyncData, 1, Failure::NoSpace);
    machine.flush().unwrap_err();
    apply_at(&machine, 2, &[put(2)]).unwrap_err();
    let error = machine.flush().unwrap_err();
    assert!(!error.is_out_of_space(), "{error}");
}

/// A start that installs a snapshot for which there is no space, again and again, as a supervisor
/// does it.
#[test]
fn refused_starts_use_no_more_space_each_time() {
    let (mut refused, mut from_empty) = (0, 0);
    let renames = |fs: &SimFs| fs.counts().of(FsOp::Rename);
    for left in (0..512 << 10).step_by(20 << 10) {
        let fs = Arc::new(SimFs::new());
        let source = DiskKvStateMachine::with_fs(fs.clone(), "/source");
        source.start().unwrap();
        for index in 1..=50 {
            apply_at(&source, index, &[put(index)]).unwrap();
        }
        let meta = snapshot_of(&fs, &source, "/snapshot");
        drop(source);
        let machine = open(&fs);
        apply_at(&machine, 1, &[put(1)]).unwrap();
        drop(machine);
        let before = fs.used_bytes();
        fs.set_capacity(Some(before + left));
        for nth in 1..=6 {
            let machine = DiskKvStateMachine::with_fs(fs.clone(), HOME);
            let started = machine.start().map_err(|error| error.to_string());
            let (was_empty, renamed) = (machine.last_applied().index == 0, renames(&fs));
            let installed = started.and_then(|()| install(&machine, &meta, Path::new("/snapshot")));
            if was_empty && installed.is_err() {
                assert_eq!(renames(&fs), renamed, "{left}: an empty database replaces another");
                from_empty += 1;
            }
            machine.stop().ok();
            drop(machine);
            if installed.is_ok() {
                break;
            }
            refused += 1;
            let now = fs.used_bytes();
            assert!(now <= before, "{left}: start {nth} uses {now} bytes instead of {before}");
        }
    }
    assert!(refused > 20 && from_empty > 5, "{refused}, {from_empty} of them when empty");
}

/// The install of a snapshot that lacks space at any point is tried again in the same process.
/// Until it succeeds, a crash leaves the old state or an empty one, never a part.
#[test]
fn an_install_without_room_is_tried_again() {
    let (mut refused, mut emptied, mut own_lacked) = (0, 0, 0);
    for nth in 0..60_u64 {
        let fs = Arc::new(SimFs::new());
        let source = DiskKvStateMachine::with_fs(fs.clone(), "/source");
        source.start().unwrap();
        for index in 1..=80 {
            apply_at(&source, index, &[put(index)]).unwrap();
        }
        let meta = snapshot_of(&fs, &source, "/snapshot");
        drop(source);
        let machine = open(&fs);
        apply_at(&machine, 1, &[put(1), put(2)]).unwrap();
        machine.flush().unwrap();
        fs.set_capacity(Some(fs.used_bytes() + nth * (16 << 10)));
        if nth % 2 == 0 {
            // The open database itself has lacked space before.
            fill(&machine, 3);
            own_lacked += 1;
        }
        for _ in 0..3 {
            let installed = at_once(machine.apply_snapshot_from_file(&meta, "/snapshot".into()));
            let Err(error) = installed else { break };
            assert!(error.is_out_of_space(), "{nth}: {error}");
            refused += 1;
            if machine.last_applied().index == 0 {
                let error = machine.get(b"key 1").map(drop).unwrap_err();
                assert!(error.to_string().contains("installing a snapshot"), "{error}");
                emptied += 1;
            }
        }
        let crashes = nth % 3 == 0;
        fs.set_capacity(None);
        if crashes && machine.last_applied() != id(80) {
            fs.halt_at(0);
            drop(machine);
            crash(&fs, nth);
            let again = open(&fs);
            let (position, length) = (again.last_applied().index.get(), again.len() as u64);
            assert_eq!(position, length, "{nth}: the state of its position");
            install(&again, &meta, Path::new("/snapshot")).unwrap();
            assert_eq!((again.last_applied(), again.len()), (id(80), 80));
            continue;
        }
        install(&machine, &meta, Path::new("/snapshot")).unwrap();
        apply_at(&machine, 81, &[put(81)]).unwrap();
        machine.flush().unwrap();
        assert_eq!((machine.last_applied(), machine.len()), (id(81), 81), "{nth}");
        assert_eq!(machine.get(b"key 81").unwrap().unwrap().len(), 3_000);
        fs.halt_at(0);
        drop(machine);
        crash(&fs, nth);
        let again = open(&fs);
        assert_eq!((again.last_applied(), again.len()), (id(81), 81), "{nth}");
    }
    assert!(refused > 20 && emptied > 5 && own_lacked > 20, "{refused} {emptied} {own_lacked}");
}

/// The database that makes room for another one is not used again, so it may have failed.
#[test]
fn a_failed_database_makes_room_for_a_snapshot() {
    let fs = Arc::new(SimFs::new());
    let source = DiskKvStateMachine::with_fs(fs.clone(), "/source");
    source.start().unwrap();
    apply_at(&source, 1, &(1..=80).map(put).collect::<Vec<_>>()).unwrap();
    let meta = snapshot_of(&fs, &source, "/snapshot");
    drop(source);
    let machine = open(&fs);
    apply_at(&machine, 1, &(1..=60).map(put).collect::<Vec<_>>()).unwrap();
    machine.flush().unwrap();
    apply_at(&machine, 61, &[put(61)]).unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::NoSpace);
    machine.flush().unwrap_err();
    fs.set_capacity(Some(fs.used_bytes() + (256 << 10)));
    let renamed = fs.counts().of(FsOp::Rename);
    let installed = install(&machine, &meta, Path::new("/snapshot"));
    assert_eq!((installed, machine.len()), (Ok(()), 80));
    assert_eq!(fs.counts().of(FsOp::Rename) - renamed, 2, "an empty one first");
}
