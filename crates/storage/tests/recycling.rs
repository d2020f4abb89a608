//! The files of purged segments are reused, and their earlier content never reappears: wherever the
//! process dies, whatever part of the steps a crash leaves, and while a reader is still reading.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{
    DIR, GROUP, Picture, Random, entries, entry, entry_with, goes_on, hard_state, log_id, open,
    segments, small, with_content,
};
use d_engine_core::LogIndex;
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::fs::{LockAttempt, OpenMode};
use d_engine_storage::{
    FileStorageEngine, FileStorageOptions, Fs, FsCounts, FsFile, FsOp, LogStore, OpenedStorage,
    StorageEngine, StorageError,
};

/// What may be found after a crash: what was acknowledged, or that and the step in progress.
#[derive(Clone, Default)]
struct Expected {
    acknowledged: Picture,
    attempted: Picture,
}

/// Appends two entries at a time, supersedes and falls idle now and then, and purges repeatedly:
/// each round begins about two segments.
fn live(
    opened: &mut OpenedStorage,
    expected: &mut Expected,
    rounds: u64,
) -> Result<(), StorageError> {
    let first_term = expected.acknowledged.hard_state.term.get() + 1;
    for term in first_term..first_term + rounds {
        for step in 0..10 {
            let back = u64::from(step == 5 && term % 2 == 0);
            let first = expected.acknowledged.last() + 1 - back;
            let stored = [entry(term, first), entry_with(term, first + 1, vec![term as u8; 300])];
            let state = hard_state(term, 1, first - 1);
            expected.attempted.append(Some(state), &stored);
            opened.log.append(GROUP, Some(state), &stored)?;
            opened.log.sync()?;
            expected.acknowledged = expected.attempted.clone();
            if step == 7 && term % 3 == 0 {
                opened.log.idle()?;
            }
        }
        let kept = expected.acknowledged.last() - term % 4;
        let through = expected.acknowledged.entries[&kept].id;
        expected.attempted.purge(through);
        opened.log.purge(GROUP, through)?;
        expected.acknowledged = expected.attempted.clone();
    }
    Ok(())
}

#[test]
fn purged_segments_serve_again_and_what_is_kept_is_bounded() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Expected::default();
    for round in 0..12 {
        live(&mut opened, &mut expected, 1).unwrap();
        // The one in use, possibly the one before it, one prepared, and two spares.
        assert!(segments(&fs).len() <= 5, "round {round}: {:?}", segments(&fs));
    }
    let stats = opened.log.stats();
    assert!(stats.recycled >= 10, "{stats:?}");
    drop(opened);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected.acknowledged);
}

#[test]
fn a_recycled_segment_is_overwritten_and_not_grown() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Expected::default();
    live(&mut opened, &mut expected, 4).unwrap();
    let recycled = opened.log.stats().recycled;
    let first = expected.acknowledged.last() + 1;
    let mut writes = 0;
    // Up to the first group of a recycled segment, and through half of that segment.
    for next in first..first + 40 {
        if writes == 4 {
            break;
        }
        writes = if opened.log.stats().recycled == recycled { 0 } else { writes + 1 };
        let before = fs.counts().of(FsOp::Write);
        opened.log.append(GROUP, None, &[entry(9, next)]).unwrap();
        opened.log.sync().unwrap();
        assert!(writes == 0 || fs.counts().of(FsOp::Write) == before + 1, "zeros were written");
    }
    assert_eq!(writes, 4);
}

/// A file that is too long, because it held one large group, or too short, because a recovery has
/// cut it, is not kept as a spare: it would hold space permanently, or save no work.
#[test]
fn only_files_of_about_the_size_of_a_segment_are_kept() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, None, &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, None, &[entry_with(1, 2, vec![2; 20_000])]).unwrap();
    opened.log.sync().unwrap();
    for index in 3..=20 {
        opened.log.append(GROUP, None, &[entry_with(1, index, vec![3; 300])]).unwrap();
        opened.log.sync().unwrap();
    }
    opened.log.purge(GROUP, log_id(1, 20)).unwrap();
    let files = fs.image().files;
    let lens: Vec<_> = segments(&fs).iter().map(|path| files[path].len()).collect();
    assert!(
        lens.len() > 1 && lens.iter().all(|len| (2048..=4096 + 1024).contains(len)),
        "{lens:?}"
    );
}

/// Dies at operation `first`, continues after the recovery and dies at operation `second` of that
/// boot, restarts and runs to the end. Returns `false` if the first boot has fewer operations.
fn die_twice(first: u64, second: u64, seed: u64) -> bool {
    let context = format!("operation {first}, then {second}, seed {seed}");
    let fs = SimFs::new();
    let mut random = Random::new(seed ^ (first << 20) ^ (second << 40));
    let mut expected = Expected::default();
    fs.halt_at(first);
    if open(&fs, &small()).and_then(|mut opened| live(&mut opened, &mut expected, 5)).is_ok() {
        return false;
    }
    for death in [Some(second), None] {
        random.crash(&fs);
        let opened = open(&fs, &small()).unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = Picture::of(&opened);
        let allowed = [&expected.acknowledged, &expected.attempted];
        assert!(allowed.contains(&&found), "{context}: {found:#?}\nis neither of {allowed:#?}");
        drop(opened);
        // What was found must be found again, wherever the next recovery dies.
        expected = Expected { acknowledged: found.clone(), attempted: found };
        let Some(at) = death else { break };
        fs.halt_at(at);
        drop(open(&fs, &small()).and_then(|mut opened| live(&mut opened, &mut expected, 3)));
    }
    let mut opened = open(&fs, &small()).unwrap();
    live(&mut opened, &mut expected, 2).unwrap();
    drop(opened);
    random.crash(&fs);
    let found = Picture::of(&open(&fs, &small()).unwrap());
    assert_eq!(found, expected.acknowledged, "{context}: at the end");
    true
}

/// Every boundary between two operations of rolling, purging, renaming and beginning again, with a
/// second crash in the boot that follows.
#[test]
fn nothing_is_lost_and_no_old_life_is_seen_wherever_the_process_dies() {
    let mut at = 1;
    while die_twice(at, 1 + at * 7 % 150, at) {
        for seed in 0..6 {
            die_twice(at, 1 + (at * 13 + seed * 29) % 190, seed);
        }
        at += 1;
    }
    assert!(at > 300, "the boot has {at} operations");
}

/// So many spare files that some are left after an open, which takes one.
fn many() -> FileStorageOptions {
    FileStorageOptions { spare_segments: 6, ..small() }
}

/// Returns a log whose next segment reuses the file of a purged one; files are listed by number.
fn with_a_spare() -> (SimFs, Picture) {
    let fs = SimFs::new();
    let mut opened = open(&fs, &many()).unwrap();
    let mut expected = Expected::default();
    live(&mut opened, &mut expected, 2).unwrap();
    (fs, expected.acknowledged)
}

/// The operations of a roll that recycles, in this order: each one relies on those before it.
#[test]
fn a_segment_is_renamed_and_its_name_synced_before_its_header_is_written() {
    let (fs, _) = with_a_spare();
    let opened = |fs: &SimFs| open(fs, &many()).unwrap();
    drop(opened(&fs));
    let image = fs.image();
    let mut seen = Vec::new();
    for at in 1..400 {
        let fs = SimFs::from_image(&image);
        let mut log = opened(&fs).log;
        let before = fs.counts();
        fs.halt_at(at);
        let mut failed = false;
        for index in 0..8 {
            let next = log_id(9, image_last(&image) + 1 + index);
            failed = failed
                || log
                    .append(GROUP, None, &[entry_with(9, next.index.get(), vec![9; 300])])
                    .is_err()
                || log.sync().is_err();
        }
        if !failed {
            break;
        }
        let renames = fs.counts().of(FsOp::Rename) - before.of(FsOp::Rename);
        let dirs = fs.counts().of(FsOp::SyncDir) - before.of(FsOp::SyncDir);
        let syncs = fs.counts().of(FsOp::SyncAll) - before.of(FsOp::SyncAll);
        seen.push((renames, dirs, syncs));
        if renames == 2 {
            break;
        }
    }
    // Rename, sync of the directory, sync of the header; then `log.meta` is written.
    seen.dedup();
    assert_eq!(seen[..5], [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2)]);
}

fn image_last(image: &d_engine_storage::fs::sim::SimImage) -> u64 {
    Picture::of(&open(&SimFs::from_image(image), &small()).unwrap()).last()
}

/// The crash left the rename and nothing after it: the header still names the purged segment, and
/// all of its old groups verify at their places.
#[test]
fn a_file_that_was_renamed_and_not_begun_holds_nothing() {
    let (fs, expected) = with_a_spare();
    let spare = segments(&fs)[0].clone();
    let next = spare.with_file_name("00000000000000000099.seg");
    fs.rename(&spare, &next).unwrap();
    assert_eq!(goes_on(&fs, &small(), "renamed"), expected);
    let opened = open(&fs, &small()).unwrap();
    assert_eq!(Picture::of(&opened), expected);
    assert_eq!(opened.report.torn_bytes, 0, "{:?}", opened.report);
    assert!(
        !segments(&fs).contains(&next),
        "its header would be taken for that of a renamed segment"
    );
}

/// The header is torn in every possible way: what lies after it belongs to another boot.
#[test]
fn a_header_torn_while_it_was_written_anew_begins_nothing() {
    let (fs, expected) = with_a_spare();
    let spare = segments(&fs)[0].clone();
    let content = fs.image().files[&spare].clone();
    let next = spare.with_file_name("00000000000000000099.seg");
    fs.rename(&spare, &next).unwrap();
    for at in 0..80 {
        let mut torn = content.clone();
        torn[at] ^= 0x55;
        let fs = with_content(&fs, &next, torn);
        assert_eq!(goes_on(&fs, &small(), &format!("byte {at}")), expected);
    }
}

/// What an earlier boot left after the last group is neither torn nor cut off with a warning.
#[test]
fn the_remains_of_an_earlier_life_are_not_reported_as_torn() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Expected::default();
    let mut recycled = 0;
    for round in 0..40 {
        live(&mut opened, &mut expected, 1).unwrap();
        // So that the process dies at every position of a segment.
        for _ in 0..round % 8 {
            let next = [entry(
                expected.acknowledged.hard_state.term.get(),
                expected.acknowledged.last() + 1,
            )];
            opened.log.append(GROUP, None, &next).unwrap();
            opened.log.sync().unwrap();
            expected.acknowledged.append(None, &next);
        }
        expected.attempted = expected.acknowledged.clone();
        recycled += opened.log.stats().recycled;
        drop(opened);
        fs.kill();
        opened = open(&fs, &small()).unwrap();
        assert_eq!(opened.report.torn_bytes, 0, "{:?}", opened.report);
    }
    assert!(recycled > 40, "{recycled}");
}

/// A group that was torn in a recycled segment is reported with its position, like any other.
#[test]
fn a_torn_group_in_a_recycled_segment_is_reported() {
    let (fs, _) = with_a_spare();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::of(&opened);
    for _ in 0..20 {
        if opened.log.stats().recycled > 1 {
            break;
        }
        let stored = [entry_with(9, expected.last() + 1, vec![9; 300])];
        opened.log.append(GROUP, None, &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(None, &stored);
    }
    let lost = entries(9, expected.last() + 1..=expected.last() + 6);
    opened.log.append(GROUP, None, &lost).unwrap();
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    opened.log.sync().unwrap_err();
    drop(opened);
    fs.kill();
    let newest = segments(&fs).pop().unwrap();
    let content = fs.image().files[&newest].clone();
    // Header, a first group of one block, the lost group: its header stays intact, one of its
    // records does not.
    let mut torn = content;
    torn[1024 + 100] ^= 1;
    let fs = with_content(&fs, &newest, torn);
    assert_eq!(goes_on(&fs, &small(), "torn"), expected);
    let opened = open(&fs, &small()).unwrap();
    assert_eq!(
        opened.report.torn_at.as_ref().map(|(_, at)| *at),
        Some(1024),
        "{:?}",
        opened.report
    );
}

/// Executes an action in the middle of the next read, as another thread may.
#[derive(Clone, Debug)]
struct Interrupting {
    fs: SimFs,
    next_read: Interruption,
}

#[derive(Clone, Default)]
struct Interruption(Arc<Mutex<Option<Action>>>);

type Action = Box<dyn FnOnce() + Send>;

impl std::fmt::Debug for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interruption")
    }
}

impl Fs for Interrupting {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.fs.create_dir(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>> {
        let file = self.fs.open(path, mode)?;
        Ok(Arc::new(InterruptingFile { file, next_read: self.next_read.clone() }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.fs.remove_file(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.fs.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.sync_dir(dir)
    }
    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt> {
        self.fs.try_lock(path)
    }
    fn counts(&self) -> FsCounts {
        self.fs.counts()
    }
}

#[derive(Debug)]
struct InterruptingFile {
    file: Arc<dyn FsFile>,
    next_read: Interruption,
}

impl FsFile for InterruptingFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let interruption = self.next_read.0.lock().unwrap().take();
        if let Some(interrupt) = interruption {
            interrupt();
        }
        self.file.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(offset, bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

/// A reader has looked up its positions; before it reads there, the segment is purged and others
/// are begun. It still gets the entries that it looked up.
#[test]
fn a_segment_that_is_being_read_is_not_overwritten() {
    let fs = Interrupting { fs: SimFs::new(), next_read: Interruption::default() };
    let engine = FileStorageEngine::new(DIR, small(), Arc::new(fs.clone()) as Arc<dyn Fs>);
    let log = Arc::new(Mutex::new(engine.open(&common::request()).unwrap().log));
    let append = |log: &mut dyn LogStore, index: u64| {
        log.append(GROUP, None, &[entry_with(1, index, vec![index as u8; 300])]).unwrap();
        log.sync().unwrap();
    };
    for index in 1..=30 {
        append(&mut **log.lock().unwrap(), index);
    }
    let reader = log.lock().unwrap().reader();
    let writer = Arc::clone(&log);
    *fs.next_read.0.lock().unwrap() = Some(Box::new(move || {
        let log = &mut **writer.lock().unwrap();
        log.purge(GROUP, log_id(1, 30)).unwrap();
        for index in 31..=60 {
            append(log, index);
        }
        assert_eq!(log.stats().recycled, 1, "one of the two spares is being read");
    }));
    let read = reader.read(GROUP, LogIndex::new(1), LogIndex::new(4), usize::MAX).unwrap();
    assert_eq!(
        read,
        (1..=4).map(|index| entry_with(1, index, vec![index as u8; 300])).collect::<Vec<_>>()
    );
    assert!(fs.next_read.0.lock().unwrap().is_none());
}
