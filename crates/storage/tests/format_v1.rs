//! Files of version 1, as this program writes them and as every later program must read them.
//! `REGENERATE=1 cargo test -p d-engine-storage --test format_v1` writes them anew; do so only
//! before version 1 is released, and check the difference.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{GROUP, Picture, entries, entry, hard_state, log_id, membership, open};
use d_engine_core::EntryKind;
use d_engine_storage::fs::sim::{SimFs, SimImage};
use d_engine_storage::{
    Admission, Alignment, ConfigId, FileStorageEngine, FileStorageOptions, LogEntry, Membership,
    OpenedStorage, RealFs, StorageEngine,
};

fn options() -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: 2048,
        alignment: Alignment::Sector,
        grow_bytes: 512,
        prepare_bytes: 2048,
        spare_segments: 2,
        reserve_bytes: 1024,
    }
}

/// A short boot that contains everything: every kind of entry, sessions, a command version, a
/// superseded suffix, a watermark alone, two opens, a purge, a record of the node's own.
fn written() -> (SimImage, Picture) {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    let mut opened = open(&fs, &options()).unwrap();
    let newer = vec![entry(2, 5), LogEntry { version: 3, ..entry(2, 6) }];
    for chunk in [entries(1, 1..=3), entries(1, 4..=5), entries(1, 6..=7), newer] {
        let state = hard_state(chunk[0].id.term.get(), 2, chunk[0].id.index.get() - 1);
        opened.log.append(GROUP, Some(state), &chunk).unwrap();
        opened.log.sync().unwrap();
        expected.append(Some(state), &chunk);
    }
    opened.log.idle().unwrap();
    drop(opened);
    let mut opened = open(&fs, &options()).unwrap();
    let kinds = [EntryKind::Noop, EntryKind::Membership, EntryKind::Session, EntryKind::Tick];
    let stored: Vec<LogEntry> =
        (7..).zip(kinds).map(|(index, kind)| kind_of_entry(index, kind)).collect();
    opened.log.append(GROUP, Some(hard_state(3, 0, 6)), &stored).unwrap();
    opened.log.sync().unwrap();
    expected.append(Some(hard_state(3, 0, 6)), &stored);
    opened.log.purge(GROUP, log_id(1, 2)).unwrap();
    expected.purge(log_id(1, 2));
    opened.meta.store("snapshot", b"a pointer").unwrap();
    opened.log.idle().unwrap();
    (fs.image(), expected)
}

fn kind_of_entry(index: u64, kind: EntryKind) -> LogEntry {
    let data =
        if kind == EntryKind::Membership { membership().encode() } else { bytes::Bytes::new() };
    LogEntry { kind, data, ..entry(3, index) }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1")
}

/// The same, as it was written when memberships had no names.
fn fixture_with_older_memberships() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/membership-v1")
}

/// Returns the files of the directory, by relative path.
fn on_disk(dir: &Path, prefix: &Path, image: &mut SimImage) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = prefix.join(path.file_name().unwrap());
        if path.is_dir() {
            image.dirs.push(name.clone());
            on_disk(&path, &name, image);
        } else {
            image.files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn this_program_writes_version_1_byte_for_byte() {
    let (image, _) = written();
    if std::env::var_os("REGENERATE").is_some() {
        for (path, content) in &image.files {
            let path = fixture().join(path.strip_prefix(common::DIR).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }
    let mut stored = SimImage::default();
    on_disk(&fixture(), Path::new(common::DIR), &mut stored);
    let names = |image: &SimImage| image.files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&image), names(&stored));
    for (path, content) in &image.files {
        let differs = content.iter().zip(&stored.files[path]).position(|(a, b)| a != b);
        assert_eq!(
            (differs, content.len()),
            (None, stored.files[path].len()),
            "{}",
            path.display()
        );
    }
}

/// Opens a copy of the files.
fn opened(fixture: &Path) -> (tempfile::TempDir, OpenedStorage) {
    let copy = tempfile::tempdir().unwrap();
    let dir = copy.path().join("data");
    let mut stored = SimImage::default();
    on_disk(fixture, &dir, &mut stored);
    std::fs::create_dir_all(dir.join("log")).unwrap();
    for (path, content) in &stored.files {
        std::fs::write(path, content).unwrap();
    }
    let engine = FileStorageEngine::new(&dir, options(), Arc::new(RealFs::new()));
    (copy, engine.open(&common::request()).unwrap())
}

/// A membership without a name is the one at the cluster's birth. Nobody could join then.
#[test]
fn files_with_memberships_of_version_1_are_read() {
    let (_copy, opened) = opened(&fixture_with_older_memberships());
    let read = membership().with_admission(Admission::Invited);
    assert_eq!(opened.identity.initial, read);
    let stored = opened.recovered.memberships.last().map(|(_, payload)| payload);
    assert_eq!(Membership::decode(stored.unwrap()), Ok(read));
    assert_eq!((membership().id(), membership().last_node()), (ConfigId::default(), 3));
}

#[test]
fn files_of_version_1_are_read() {
    let (_, expected) = written();
    let (_copy, opened) = opened(&fixture());
    assert_eq!(Picture::of(&opened), expected);
    assert_eq!(opened.identity.initial, membership());
    assert_eq!(opened.meta.load("snapshot").unwrap().unwrap(), b"a pointer".as_slice());
    assert_eq!(opened.report.torn_bytes, 0);
}
