//! A backup appears complete, verified and durable, or not at all, and an interrupted one
//! continues.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::SplitMix64;
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::fs::{LockAttempt, OpenMode, read_file, write_all_at};
use d_engine_storage::snapshot::{BackupFile, FullSpeed, Offer, SnapshotArchive, SnapshotError};
use snapshot_kit::{log_id, open, take};

const DIR: &str = "/backups";
const PIECE: usize = 300;

fn archive(index: u64) -> SnapshotArchive {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, index)).unwrap();
    store.open_archive(log_id(1, index)).unwrap()
}

fn disk() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir(Path::new(DIR)).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

fn target() -> PathBuf {
    Path::new(DIR).join("db.dbak")
}

fn begin(fs: &SimFs, archive: &SnapshotArchive) -> Result<BackupFile, SnapshotError> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    BackupFile::begin(&fs, &target(), Offer::from(archive), &mut FullSpeed)
}

/// Receives until `end`, as from a network.
fn receive(
    file: &mut BackupFile,
    archive: &SnapshotArchive,
    end: u64,
) -> Result<(), SnapshotError> {
    while file.received() < end {
        let piece = archive.read_at(file.received(), PIECE)?;
        file.write(piece.offset, &piece.bytes, piece.crc)?;
    }
    Ok(())
}

fn back_up(fs: &SimFs, archive: &SnapshotArchive) -> Result<(), SnapshotError> {
    let mut file = begin(fs, archive)?;
    receive(&mut file, archive, archive.len())?;
    file.finish(&mut FullSpeed).map(drop)
}

fn names(fs: &SimFs) -> Vec<String> {
    fs.list(Path::new(DIR)).unwrap()
}

fn content(archive: &SnapshotArchive) -> Vec<u8> {
    archive.read_at(0, usize::MAX).unwrap().bytes.to_vec()
}

#[test]
fn a_crash_at_any_operation_leaves_no_backup_or_a_whole_one_and_the_next_run_makes_it() {
    let archive = archive(5);
    let mut operations = 0;
    for seed in 0..16 {
        for at in 1.. {
            let fs = disk();
            let mut random = SplitMix64::new(seed ^ (at << 16));
            fs.halt_at(at);
            let done = back_up(&fs, &archive);
            let was_cut = fs.is_halted();
            assert!(was_cut || done.is_ok(), "operation {at}: {done:?}");
            match seed {
                0 => fs.kill(),
                _ => fs.crash(&mut |n| random.below(n)),
            }
            let is_there = fs.kind(&target()).is_ok();
            assert!(is_there || done.is_err(), "seed {seed}, operation {at}: it is lost");
            if !is_there {
                back_up(&fs, &archive).unwrap_or_else(|error| panic!("operation {at}: {error}"));
            }
            assert_eq!(read_file(&fs, &target()).unwrap(), content(&archive), "operation {at}");
            if !was_cut {
                break;
            }
            operations = operations.max(at);
        }
    }
    assert!(operations > 15, "{operations} operations");
}

#[test]
fn an_interrupted_backup_continues_with_the_same_archive_and_gives_way_to_another() {
    let (first, second) = (archive(5), archive(9));
    let fs = disk();
    let mut file = begin(&fs, &first).unwrap();
    receive(&mut file, &first, first.len() * 2 / 3).unwrap();
    drop(file);
    let offer = BackupFile::unfinished(&fs, &target()).unwrap();
    assert_eq!(offer, Some(Offer::from(&first)));
    let file = begin(&fs, &first).unwrap();
    assert!(file.received() > first.len() / 3, "{} of {}", file.received(), first.len());
    drop(file);
    let mut file = begin(&fs, &second).unwrap();
    assert_eq!(file.received(), 0);
    file.copy_from(&second, &mut FullSpeed).unwrap();
    file.finish(&mut FullSpeed).unwrap();
    assert_eq!(names(&fs), ["db.dbak"], "nothing else is left");
    assert_eq!(read_file(&fs, &target()).unwrap(), content(&second));
}

/// Damage on the way that the piece's own checksum does not show, or on the disk.
#[test]
fn a_backup_with_a_flipped_bit_is_never_finished() {
    let archive = archive(5);
    for at in (0..archive.len()).step_by(37) {
        let fs = disk();
        let mut file = begin(&fs, &archive).unwrap();
        receive(&mut file, &archive, archive.len()).unwrap();
        assert!(fs.flip_bit(file.partial_path(), at, 3), "{at}");
        let finished = file.finish(&mut FullSpeed);
        assert!(finished.is_err(), "a flipped bit at {at} was not seen");
        assert_eq!(names(&fs), Vec::<String>::new(), "{at}");
    }
}

#[test]
fn nothing_is_overwritten_and_two_backups_do_not_write_one_file() {
    let archive = archive(5);
    let fs = disk();
    let mut file = begin(&fs, &archive).unwrap();
    let holder = fs.try_lock(&Path::new(DIR).join("db.dbak.partial.lock")).unwrap();
    assert!(matches!(holder, LockAttempt::InUse { .. }));
    assert!(matches!(begin(&fs, &archive), Err(SnapshotError::Locked { .. })));
    // A file that appears meanwhile.
    receive(&mut file, &archive, archive.len()).unwrap();
    write_all_at(&*fs.open(&target(), OpenMode::CreateNew).unwrap(), 0, b"mine").unwrap();
    assert!(matches!(file.finish(&mut FullSpeed), Err(SnapshotError::Exists { .. })));
    assert!(matches!(begin(&fs, &archive), Err(SnapshotError::Exists { .. })));
    assert!(matches!(BackupFile::check_target(&fs, &target()), Err(SnapshotError::Exists { .. })));
    assert_eq!(read_file(&fs, &target()).unwrap(), b"mine");
}

#[test]
fn space_is_asked_for_first_and_the_caller_may_stop() {
    let archive = archive(5);
    let fs = disk();
    fs.set_free_bytes(Some(archive.len() - 1));
    let error = begin(&fs, &archive).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SnapshotError::NoSpace { reserve: 0, .. }), "{text}");
    assert!(!text.contains("reserve"), "{text}");
    fs.set_free_bytes(None);
    let mut file = begin(&fs, &archive).unwrap();
    let stop = &mut |_| ControlFlow::Break(());
    assert!(matches!(file.copy_from(&archive, stop), Err(SnapshotError::Aborted)));
    file.copy_from(&archive, &mut FullSpeed).unwrap();
    assert!(matches!(file.finish(stop), Err(SnapshotError::Aborted)));
    // What was received is kept.
    let mut file = begin(&fs, &archive).unwrap();
    assert_eq!(file.received(), archive.len());
    file.copy_from(&archive, &mut FullSpeed).unwrap();
    file.finish(&mut FullSpeed).unwrap();
}

#[test]
fn a_place_that_cannot_be_is_named() {
    let fs = disk();
    for (path, word) in [("/missing/db", "directory"), ("/", "file name"), ("/backups/..", "file")]
    {
        let error = BackupFile::check_target(&fs, Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(word), "{path}: {error}");
    }
}
