//! The simulated disk loses what it should lose, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

use std::io::ErrorKind;
use std::path::Path;

use d_engine_fs::sim::{Failure, SimFs};
use d_engine_fs::{Fs, FsOp};
use d_engine_fs::{OpenMode, read_file, write_all_at};

const FILE: &str = "/disk/file";

/// Creates a disk with one durable file of 2048 bytes `1`, overwritten with 2048 bytes `2` without
/// a sync.
fn overwritten() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir(Path::new("/disk")).unwrap();
    let file = fs.open(Path::new(FILE), OpenMode::CreateNew).unwrap();
    write_all_at(&*file, 0, &[1; 2048]).unwrap();
    file.sync_all().unwrap();
    fs.sync_dir(Path::new("/disk")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    write_all_at(&*file, 0, &[2; 2048]).unwrap();
    fs
}

fn content(fs: &SimFs) -> Vec<u8> {
    read_file(fs, Path::new(FILE)).unwrap()
}

#[test]
fn unsynced_sectors_are_seen_and_lost_or_kept_or_torn_by_a_crash() {
    for (draw, expected) in [(0, vec![1; 2048]), (3, vec![2; 2048])] {
        let fs = overwritten();
        assert_eq!(content(&fs), [2; 2048]);
        fs.crash(&mut |n| draw % n);
        assert_eq!(content(&fs), expected);
    }
    let fs = overwritten();
    let mut draws = [0, 0, 1, 100, 2, 30, 3].into_iter();
    fs.crash(&mut |n| draws.next().unwrap() % n);
    let mut expected = vec![1; 2048];
    expected[512..612].fill(2);
    expected[1536 - 30..].fill(2);
    assert_eq!(content(&fs), expected);
}

/// The sectors of one sync may reach the disk in order, up to the moment when the power fails.
#[test]
fn a_crash_may_keep_what_was_written_up_to_some_place() {
    let fs = overwritten();
    let mut draws = [2, 3].into_iter();
    fs.crash(&mut |n| draws.next().unwrap() % n);
    assert_eq!(content(&fs), [vec![2; 1536], vec![1; 512]].concat());
}

/// A crash in the middle of a sync is not a failed sync: every sector may have been written, not
/// written, or written in part.
#[test]
fn a_sync_that_the_crash_interrupts_keeps_loses_or_tears_each_sector() {
    for sync_all in [false, true] {
        for (draw, expected) in [(0, vec![1; 2048]), (3, vec![2; 2048])] {
            let fs = overwritten();
            let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
            fs.halt_at(1);
            let synced = if sync_all { file.sync_all() } else { file.sync_data() };
            synced.unwrap_err();
            // What the dying process still calls has no effect.
            file.sync_data().unwrap_err();
            fs.crash(&mut |n| draw % n);
            assert_eq!(content(&fs), expected);
        }
    }
    let fs = overwritten();
    let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
    fs.halt_at(1);
    file.sync_data().unwrap_err();
    let mut draws = [0, 0, 1, 100, 2, 30, 3].into_iter();
    fs.crash(&mut |n| draws.next().unwrap() % n);
    let mut expected = vec![1; 2048];
    expected[512..612].fill(2);
    expected[1536 - 30..].fill(2);
    assert_eq!(content(&fs), expected);
}

#[test]
fn synced_writes_survive_every_crash() {
    for draw in 0..4 {
        let fs = overwritten();
        fs.open(Path::new(FILE), OpenMode::Existing).unwrap().sync_data().unwrap();
        fs.crash(&mut |n| draw % n);
        assert_eq!(content(&fs), [2; 2048]);
    }
}

/// FAULTS row 33: later syncs succeed, and the data is lost all the same.
#[test]
fn a_failed_sync_drops_its_pages_but_they_stay_readable() {
    let fs = overwritten();
    let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(content(&fs), [2; 2048]);
    fs.kill();
    assert_eq!(content(&fs), [2; 2048]);
    fs.crash(&mut |n| n - 1);
    assert_eq!(content(&fs), [1; 2048]);
}

#[test]
fn a_failure_that_was_taken_back_does_not_occur() {
    let fs = overwritten();
    let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    fs.fail_no_more();
    file.sync_data().unwrap();
}

/// FAULTS row 30: stricter than ext4, which makes a new file's name durable with its content.
#[test]
fn names_survive_for_certain_only_after_the_directory_is_synced() {
    for (synced, draw, survives) in [(false, 0, false), (false, 1, true), (true, 0, true)] {
        let fs = overwritten();
        let (from, to) = (Path::new("/disk/new"), Path::new("/disk/renamed"));
        fs.open(from, OpenMode::CreateNew).unwrap().sync_all().unwrap();
        fs.rename(from, to).unwrap();
        fs.remove_file(Path::new(FILE)).unwrap();
        if synced {
            fs.sync_dir(Path::new("/disk")).unwrap();
        }
        fs.crash(&mut |n| draw % n);
        let expected = if survives { ["renamed"] } else { ["file"] };
        assert_eq!(fs.list(Path::new("/disk")).unwrap(), expected);
    }
}

#[test]
fn a_file_that_was_cut_or_grown_without_a_sync_has_either_length() {
    for (len, draw, expected) in [(100, 0, 2048), (100, 1, 100), (4096, 0, 2048), (4096, 1, 4096)] {
        let fs = overwritten();
        fs.crash(&mut |_| 0);
        fs.open(Path::new(FILE), OpenMode::Existing).unwrap().set_len(len).unwrap();
        fs.crash(&mut |n| draw % n);
        assert_eq!(content(&fs).len(), expected, "set to {len}");
    }
}

#[test]
fn a_process_that_died_has_no_files_any_more_and_everything_fails_once_it_is_dead() {
    let fs = overwritten();
    let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
    fs.halt_at(2);
    file.sync_data().unwrap();
    assert!(!fs.is_halted());
    file.sync_data().unwrap_err();
    assert!(fs.is_halted());
    assert!(fs.list(Path::new("/disk")).is_err());
    fs.kill();
    assert!(file.len().is_err());
    assert_eq!(content(&fs), [2; 2048]);
}

#[test]
fn errors_say_what_they_are() {
    let fs = overwritten();
    let kind = |result: std::io::Result<()>| result.unwrap_err().kind();
    fs.fail(FsOp::Write, 2, Failure::NoSpace);
    let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
    write_all_at(&*file, 0, b"fits").unwrap();
    assert_eq!(kind(write_all_at(&*file, 0, b"does not")), ErrorKind::StorageFull);
    assert_eq!(
        kind(fs.open(Path::new(FILE), OpenMode::CreateNew).map(drop)),
        ErrorKind::AlreadyExists
    );
    assert_eq!(
        kind(fs.open(Path::new("/disk/none"), OpenMode::Existing).map(drop)),
        ErrorKind::NotFound
    );
    assert_eq!(kind(fs.create_dir(Path::new("/none/below"))), ErrorKind::NotFound);
    assert_eq!(fs.counts().of(FsOp::CreateDir), 2);
}

#[test]
fn a_full_disk_stays_full_until_something_is_freed() {
    let fs = overwritten();
    fs.set_capacity(Some(2048 + 1024));
    let dir = Path::new("/disk");
    assert_eq!(Fs::free_bytes(&fs, dir).unwrap(), Some(1024));
    let file = fs.open(Path::new(FILE), OpenMode::Existing).unwrap();
    // What does not fit is cut off, and after that nothing fits, however often it is tried.
    assert_eq!(file.write_at(2000, &[3; 2000]).unwrap(), 1072);
    for _ in 0..3 {
        assert_eq!(file.write_at(3072, b"x").unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(file.set_len(4000).unwrap_err().kind(), ErrorKind::StorageFull);
        let created = fs.open(Path::new("/disk/new"), OpenMode::CreateNew).map(drop);
        assert_eq!(created.unwrap_err().kind(), ErrorKind::StorageFull);
    }
    assert_eq!(file.write_at(0, &[4; 3072]).unwrap(), 3072, "what is there can be overwritten");
    file.set_len(512).unwrap();
    assert_eq!(Fs::free_bytes(&fs, dir).unwrap(), Some(2560));
    let other = fs.open(Path::new("/disk/new"), OpenMode::CreateNew).unwrap();
    write_all_at(&*other, 0, &[5; 2560]).unwrap();
    // A removed file takes space until it is closed.
    fs.remove_file(Path::new("/disk/new")).unwrap();
    assert_eq!(Fs::free_bytes(&fs, dir).unwrap(), Some(0));
    drop(other);
    assert_eq!(Fs::free_bytes(&fs, dir).unwrap(), Some(2560));
    assert_eq!(fs.used_bytes(), 512);
}

#[test]
fn a_process_has_only_so_many_handles() {
    let fs = overwritten();
    fs.set_max_open(Some(2));
    let open = || fs.open(Path::new(FILE), OpenMode::Existing);
    let (first, _second) = (open().unwrap(), open().unwrap());
    assert_eq!(open().unwrap_err().raw_os_error(), Some(24));
    drop(first);
    open().unwrap();
    for (failure, errno) in [(Failure::Quota, 122), (Failure::TooManyFilesInSystem, 23)] {
        fs.fail(FsOp::Open, 1, failure);
        assert_eq!(open().unwrap_err().raw_os_error(), Some(errno));
    }
}
