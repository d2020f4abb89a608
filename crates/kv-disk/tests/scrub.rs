//! What a scrub finds, and what it does not mistake for damage.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use d_engine_fs::sim::{Failure, SimFs};
use d_engine_fs::{Fs as _, FsOp, OpenMode, ensure_dir, read_file, write_all_at};
use d_engine_kv_disk::{DiskKvError, DiskKvStateMachine, KvCommand};
use d_engine_state_machine::StateMachine as _;
use support::{apply, install, snapshot};

/// A damaged page above the records hides keys while the machine runs, and changes no record: the
/// scrub finds that.
#[test]
fn a_page_above_the_records_that_is_damaged_while_the_machine_runs_is_found_by_the_scrub() {
    const PAGE: usize = 4096;
    /// The first byte of such a page.
    const BRANCH: u8 = 2;
    let fs = Arc::new(SimFs::new());
    let machine = DiskKvStateMachine::with_fs(fs.clone(), "/machine").cache_bytes(0);
    machine.start().unwrap();
    let keys: Vec<String> = (0..400).map(|n| format!("key {n:04}")).collect();
    let commands: Vec<_> =
        keys.iter().map(|key| KvCommand::put(key.clone(), "x".repeat(100))).collect();
    apply(&machine, 1, &commands);
    machine.flush().unwrap();
    machine.scrub().unwrap();
    let path = Path::new("/machine/kv.redb");
    let whole = read_file(&*fs, path).unwrap();
    let file = fs.open(path, OpenMode::Existing).unwrap();
    let branches = (PAGE..whole.len()).step_by(PAGE).filter(|page| whole[*page] == BRANCH);
    // The keys in such a page tell which records lie below which page: here the hundreds are
    // changed.
    let separators =
        |page: usize| (page..page + PAGE).filter(|at| whole[*at..].starts_with(b"key "));
    let mut hidden = 0;
    for at in branches.flat_map(separators).map(|key| key + 5) {
        write_all_at(&*file, at as u64, &[whole[at] ^ 2]).unwrap();
        let hides = keys.iter().any(|key| machine.get(key.as_bytes()).unwrap().is_none());
        let scrubbed = machine.scrub();
        write_all_at(&*file, at as u64, &whole[at..=at]).unwrap();
        if hides {
            let told = scrubbed
                .expect_err("a page hides keys, and the scrub has not found it")
                .to_string();
            assert!(told.contains("damaged"), "{told}");
            hidden += 1;
        }
    }
    assert!(hidden > 3, "{hidden} flipped bits hid keys");
    assert!(!machine.is_running());
}

/// Without space for two databases, an install closes a database while it is being scrubbed: that
/// damages nothing.
#[test]
fn a_scrub_beside_an_install_that_gives_the_records_up_finds_no_damage() {
    let fs = Arc::new(SimFs::new());
    let dir = Path::new("/snapshot");
    ensure_dir(&*fs, dir).unwrap();
    let machine = DiskKvStateMachine::with_fs(fs.clone(), "/machine").cache_bytes(0);
    machine.start().unwrap();
    let commands: Vec<_> =
        (0..2_000).map(|n| KvCommand::put(format!("key {n}"), "x".repeat(100))).collect();
    apply(&machine, 1, &commands);
    let meta = snapshot(&machine, dir);
    fs.set_free_bytes(Some(1 << 20));
    std::thread::scope(|scope| {
        let installs = scope.spawn(|| (0..20).try_for_each(|_| install(&machine, &meta, dir)));
        while !installs.is_finished() {
            machine.scrub().unwrap();
        }
        installs.join().unwrap().unwrap();
    });
    assert!(machine.is_running());
    assert_eq!(machine.len(), 2_000);
}

/// A read error of the disk does not mean that the file is damaged: nothing is discarded because of
/// it.
#[test]
fn a_scrub_that_cannot_read_the_disk_says_that_and_not_damage() {
    let fs = Arc::new(SimFs::new());
    let machine = DiskKvStateMachine::with_fs(fs.clone(), "/machine").cache_bytes(0);
    machine.start().unwrap();
    apply(&machine, 1, &[KvCommand::put("a", "1")]);
    machine.flush().unwrap();
    fs.fail(FsOp::Read, 1, Failure::Io);
    let error = machine.scrub().unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(DiskKvError::Io { .. })), "{error}");
    assert!(machine.is_running());
}
