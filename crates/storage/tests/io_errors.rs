//! The first I/O error is final, whichever operation returns it.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{GROUP, Picture, Random, entries, entry, hard_state, log_id, open, small};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FsOp, OpenedStorage, StorageError};

const WRITING: [FsOp; 8] = [
    FsOp::Open,
    FsOp::Write,
    FsOp::SyncData,
    FsOp::SyncAll,
    FsOp::SyncDir,
    FsOp::Rename,
    FsOp::Remove,
    FsOp::SetLen,
];

/// Writes until an operation fails. Returns the error and what was acknowledged.
fn work(opened: &mut OpenedStorage, expected: &mut Picture) -> Result<(), StorageError> {
    for index in 1..=40 {
        let stored = [entry(1, index)];
        opened.log.append(GROUP, Some(hard_state(1, 1, index)), &stored)?;
        opened.log.sync()?;
        expected.append(Some(hard_state(1, 1, index)), &stored);
        if index % 10 == 0 {
            opened.log.idle()?;
            opened.log.purge(GROUP, log_id(1, index - 5))?;
            expected.purge(log_id(1, index - 5));
            opened.meta.store("snapshot", b"pointer")?;
        }
    }
    Ok(())
}

/// FAULTS row 33: nothing is retried, and every later call returns the first reason.
#[test]
fn after_the_first_error_every_call_fails_with_its_text() {
    let mut failed = 0;
    for op in WRITING {
        for failure in [Failure::Io, Failure::NoSpace] {
            let is_sync = matches!(op, FsOp::SyncData | FsOp::SyncAll | FsOp::SyncDir);
            if failure == Failure::NoSpace && !is_sync {
                // The log waits for these to pass: `full_disk.rs`.
                continue;
            }
            for nth in 1..60 {
                let fs = SimFs::new();
                let mut opened = open(&fs, &small()).unwrap();
                let mut expected = Picture::default();
                fs.fail(op, nth, failure);
                let Err(first) = work(&mut opened, &mut expected) else { break };
                failed += 1;
                let reason = first.to_string();
                assert!(matches!(first, StorageError::Io { .. }), "{first}");
                let writes = d_engine_storage::Fs::counts(&fs).total();
                let log = &mut opened.log;
                let answers = [
                    log.append(GROUP, None, &[entry(1, 41)]),
                    log.sync(),
                    log.idle(),
                    log.purge(GROUP, log_id(1, 1)),
                    opened.meta.store("snapshot", b"pointer"),
                ];
                for answer in answers {
                    let Err(StorageError::Stopped { first }) = answer else {
                        panic!("{op:?}: {answer:?}")
                    };
                    assert_eq!(*first, *reason);
                }
                assert_eq!(
                    d_engine_storage::Fs::counts(&fs).total(),
                    writes,
                    "an operation was retried"
                );
                drop(opened);
                // The failed step may or may not be there; everything acknowledged is.
                Random::new(nth).crash(&fs);
                let found = Picture::of(&open(&fs, &small()).unwrap());
                assert!(found.last() >= expected.last(), "{op:?} {nth}");
                for (index, entry) in &expected.entries {
                    assert!(
                        *index <= found.base.index.get() || found.entries.get(index) == Some(entry)
                    );
                }
            }
        }
    }
    assert!(failed > 150, "{failed}");
}

#[test]
fn readers_go_on_after_the_writer_has_stopped() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, None, &entries(1, 1..=3)).unwrap();
    opened.log.sync().unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    opened.log.append(GROUP, None, &entries(1, 4..=5)).unwrap();
    opened.log.sync().unwrap_err();
    assert_eq!(common::read_all(&*opened.log, log_id(0, 0), 3), entries(1, 1..=3));
    assert!(opened.log.reader().read(GROUP, log_id(1, 4).index, log_id(1, 4).index, 0).is_err());
}

#[test]
fn short_writes_are_continued() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::default();
    for nth in 1..200 {
        fs.fail(FsOp::Write, nth, Failure::Short);
    }
    work(&mut opened, &mut expected).unwrap();
    drop(opened);
    Random::new(1).crash(&fs);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
}

/// A call out of sequence is the caller's error and leaves the store as it was.
#[test]
fn a_refused_call_does_not_stop_the_store() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, None, &[entry(1, 7)]).unwrap_err();
    opened.log.purge(GROUP, log_id(1, 7)).unwrap_err();
    opened.log.append(GROUP, None, &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
}
