//! Snapshots of the key-value machine: written, read back, and refused when anything is wrong.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_fs::sim::SimFs;
use d_engine_fs::{Fs, FsOp, OpenMode, ensure_dir};
use d_engine_kv::{KvCommand, KvStateMachine, PutOptions, SnapshotFileError};
use d_engine_state_machine::{LogId, SnapshotMetadata, StateMachine, snapshot_checksum};
use proptest::prelude::*;
use support::{apply, apply_at, at_once};

const LAST_INCLUDED: LogId = LogId::of(1, 3);

fn with_three_keys() -> KvStateMachine {
    let machine = KvStateMachine::new();
    let commands = ["b", "a", "c"].map(|key| KvCommand::put(key, "value"));
    apply(&machine, 1, &commands);
    machine
}

fn generate(machine: &KvStateMachine, dir: &Path, last_included: LogId) -> SnapshotMetadata {
    let checksum = at_once(machine.generate_snapshot_data(dir.to_owned(), last_included)).unwrap();
    SnapshotMetadata::new(last_included, checksum)
}

fn install(machine: &KvStateMachine, dir: &Path, meta: &SnapshotMetadata) -> Result<(), String> {
    at_once(machine.apply_snapshot_from_file(meta, dir.to_owned()))
        .map_err(|error| error.to_string())
}

/// A machine with other content, which a refused snapshot must leave unchanged.
fn bystander() -> KvStateMachine {
    let machine = KvStateMachine::new();
    apply(&machine, 1, &[KvCommand::put("old", "state")]);
    machine
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_snapshot_restores_state_and_position(
        records in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..200), 0..40)
    ) {
        let machine = KvStateMachine::new();
        let commands: Vec<_> = records.into_iter().map(|(key, value)| KvCommand::put(key, value)).collect();
        apply(&machine, 1, &commands);
        let last_included = LogId::of(1, commands.len() as u64 + 2);
        let dir = tempfile::tempdir().unwrap();
        let meta = generate(&machine, dir.path(), last_included);

        let other = bystander();
        prop_assert_eq!(install(&other, dir.path(), &meta), Ok(()));
        prop_assert_eq!(other.state_hash(), machine.state_hash());
        prop_assert_eq!(other.last_applied(), last_included);
        prop_assert_eq!(other.len(), commands.len());
    }
}

#[test]
fn equal_states_give_equal_files() {
    let (one, other) = (with_three_keys(), KvStateMachine::new());
    let commands = ["a", "c", "b"].map(|key| KvCommand::put(key, "value"));
    apply(&other, 1, &commands);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    assert_eq!(
        generate(&one, dirs[0].path(), LAST_INCLUDED),
        generate(&other, dirs[1].path(), LAST_INCLUDED)
    );
}

#[test]
fn the_checksum_is_that_of_the_directory_and_nothing_unfinished_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let meta = generate(&with_three_keys(), dir.path(), LAST_INCLUDED);
    assert_eq!(meta.checksum, snapshot_checksum(dir.path()).unwrap());
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["kv.data"]);
}

#[test]
fn entries_go_on_after_an_installed_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let meta = generate(&with_three_keys(), dir.path(), LAST_INCLUDED);
    let machine = KvStateMachine::new();
    install(&machine, dir.path(), &meta).unwrap();
    apply(&machine, 4, &[KvCommand::delete("a")]);
    assert_eq!(machine.len(), 2);
}

#[test]
fn a_wrong_checksum_is_refused_and_the_old_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut meta = generate(&with_three_keys(), dir.path(), LAST_INCLUDED);
    meta.checksum[0] ^= 1;
    let machine = bystander();
    let before = machine.position_and_hash();
    let refusal = install(&machine, dir.path(), &meta).unwrap_err();
    assert!(refusal.contains("checksum"), "{refusal}");
    assert_eq!(machine.position_and_hash(), before);
}

/// The file has a checksum of its own: here the metadata agrees with the damaged file.
#[test]
fn a_flipped_bit_or_a_cut_anywhere_is_refused_and_the_old_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    generate(&with_three_keys(), dir.path(), LAST_INCLUDED);
    let file = dir.path().join("kv.data");
    let whole = std::fs::read(&file).unwrap();
    let machine = bystander();
    let before = machine.position_and_hash();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        for damaged in [&flipped[..], &whole[..at]] {
            std::fs::write(&file, damaged).unwrap();
            let meta = SnapshotMetadata::new(LAST_INCLUDED, snapshot_checksum(dir.path()).unwrap());
            assert!(
                install(&machine, dir.path(), &meta).is_err(),
                "damage at byte {at} was accepted"
            );
            assert_eq!(machine.position_and_hash(), before);
        }
    }
    std::fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
    let meta = SnapshotMetadata::new(LAST_INCLUDED, snapshot_checksum(dir.path()).unwrap());
    assert!(install(&machine, dir.path(), &meta).is_err(), "a byte too many was accepted");
}

#[test]
fn a_snapshot_under_another_last_included_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = generate(&with_three_keys(), dir.path(), LAST_INCLUDED);
    let older = SnapshotMetadata::new(LogId::of(1, 2), meta.checksum);
    let refusal = install(&bystander(), dir.path(), &older).unwrap_err();
    assert!(
        refusal.contains("index 3 of term 1") && refusal.contains("index 2 of term 1"),
        "{refusal}"
    );
}

/// A last included entry older than the data would make followers apply entries twice.
#[test]
fn data_newer_than_the_last_included_entry_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let last_included = LogId::of(1, 2);
    let error =
        at_once(with_three_keys().generate_snapshot_data(dir.path().to_owned(), last_included))
            .unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(SnapshotFileError::OtherLastIncluded { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn metadata_are_remembered_until_reset() {
    let machine = with_three_keys();
    let meta = SnapshotMetadata::new(LogId::of(1, 2), [7; 32]);
    assert_eq!(machine.snapshot_metadata(), None);
    machine.update_last_snapshot_metadata(&meta).unwrap();
    machine.persist_last_snapshot_metadata(&meta).unwrap();
    assert_eq!(machine.snapshot_metadata(), Some(meta));
    assert_eq!(machine.entry_term(2), Some(1));
    at_once(machine.reset()).unwrap();
    assert_eq!(machine.snapshot_metadata(), None);
}

#[test]
fn expiries_and_log_time_go_with_the_snapshot() {
    let machine = KvStateMachine::new();
    let put = |key: &'static str, ttl| {
        KvCommand::put_with(key, "v", PutOptions::default().ttl(Duration::from_millis(ttl)))
    };
    let commands = [put("soon", 100), put("late", 200), KvCommand::put("ever", "v")];
    apply_at(&machine, 1, &commands.map(|command| (1_000, command)));
    let last_included = LogId::of(1, 4);
    machine.advance_time(last_included, 1_050).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let meta = generate(&machine, dir.path(), last_included);
    let other = bystander();
    install(&other, dir.path(), &meta).unwrap();
    assert_eq!(other.position_and_hash(), machine.position_and_hash());
    assert_eq!(other.next_expiry_ms(), Some(1_100));
    // Both continue alike, even with an entry whose own time is before the log time.
    let next = [(1_000, put("new", 100)), (1_100, KvCommand::delete("none"))];
    assert_eq!(apply_at(&other, 5, &next), apply_at(&machine, 5, &next));
    assert_eq!(other.position_and_hash(), machine.position_and_hash());
    assert_eq!(other.get(b"soon").unwrap(), None);
    assert_eq!(other.next_expiry_ms(), Some(1_150));
}

/// The file of the first version, byte for byte: without log time and expiries.
#[test]
fn a_snapshot_of_the_first_version_is_still_read() {
    let mut file = b"d-eng-kv\x01\0\0\0\0\0\0\0".to_vec();
    for number in [LAST_INCLUDED.term.get(), LAST_INCLUDED.index.get(), 2] {
        file.extend(u64::to_le_bytes(number));
    }
    file.extend(b"\x01\0\0\0\x03\0\0\0aone\x01\0\0\0\0\0\0\0b");
    let hash = <sha2::Sha256 as sha2::Digest>::digest(&file);
    file.extend(hash.as_slice());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kv.data"), file).unwrap();
    let meta = SnapshotMetadata::new(LAST_INCLUDED, snapshot_checksum(dir.path()).unwrap());
    let machine = bystander();
    install(&machine, dir.path(), &meta).unwrap();
    assert_eq!(machine.get(b"a").unwrap(), Some(Bytes::from_static(b"one")));
    assert_eq!(machine.get(b"b").unwrap(), Some(Bytes::new()));
    assert_eq!((machine.len(), machine.next_expiry_ms()), (2, None));
}

#[test]
fn a_snapshot_of_a_newer_version_is_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    generate(&with_three_keys(), dir.path(), LAST_INCLUDED);
    let file = dir.path().join("kv.data");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] = 3;
    std::fs::write(&file, bytes).unwrap();
    let meta = SnapshotMetadata::new(LAST_INCLUDED, snapshot_checksum(dir.path()).unwrap());
    let refusal = install(&bystander(), dir.path(), &meta).unwrap_err();
    assert!(refusal.contains("format version 3, this program reads 1 to 2"), "{refusal}");
}

/// On the simulated disk: what `generate_snapshot_data` has written survives a power cut
/// immediately, and the file is the same as on a real disk.
#[test]
fn files_go_through_the_file_system_that_was_given() {
    let fs = Arc::new(SimFs::new());
    let dir = Path::new("/snapshot");
    ensure_dir(&*fs, dir).unwrap();
    let machine = KvStateMachine::with_fs(fs.clone());
    // More than is synced at a time.
    let commands: Vec<_> =
        (0..9).map(|key: u8| KvCommand::put(vec![key], vec![key; 1 << 20])).collect();
    apply(&machine, 1, &commands);
    // A file that a crash has left does not become part of this one.
    fs.open(&dir.join("kv.data.tmp"), OpenMode::CreateNew).unwrap().set_len(99).unwrap();
    let last_included = LogId::of(1, 9);
    let meta = generate(&machine, dir, last_included);
    fs.crash(&mut |_| 0);
    let other = KvStateMachine::with_fs(fs.clone());
    install(&other, dir, &meta).unwrap();
    assert_eq!(other.position_and_hash(), machine.position_and_hash());
    assert!(fs.counts().of(FsOp::SyncData) >= 2, "a single large write-back would stall the log");

    let real = tempfile::tempdir().unwrap();
    let same = KvStateMachine::new();
    apply(&same, 1, &commands);
    assert_eq!(generate(&same, real.path(), last_included), meta);
}

/// Whichever operation fails: the snapshot fails with the reason, and the state is unchanged.
#[test]
fn a_failure_of_any_file_operation_is_reported_and_loses_nothing() {
    let mut failures = 0;
    for nth in 1.. {
        let fs = Arc::new(SimFs::new());
        let dir = Path::new("/snapshot");
        ensure_dir(&*fs, dir).unwrap();
        let machine = KvStateMachine::with_fs(fs.clone());
        apply(&machine, 1, &["a", "b", "c"].map(|key| KvCommand::put(key, "value")));
        let before = machine.position_and_hash();
        fs.halt_at(nth);
        let written = at_once(machine.generate_snapshot_data(dir.to_owned(), LAST_INCLUDED));
        assert_eq!(machine.position_and_hash(), before);
        match written {
            Ok(_) => break,
            Err(_) => failures += 1,
        }
    }
    assert!(failures >= 5, "create, write, sync, rename and the directory's sync must fail");
}

/// Returns the files of a directory, by name.
fn content(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect()
}

/// Entries are applied while the view waits to be written: the snapshot does not contain them.
#[test]
fn a_view_is_written_byte_for_byte_as_the_state_was_when_it_was_taken() {
    let machine = KvStateMachine::new();
    let put = |key: u64, ttl| {
        let options = PutOptions::default().ttl(Duration::from_millis(ttl));
        KvCommand::put_with(key.to_be_bytes().to_vec(), "before", options)
    };
    let commands: Vec<_> = (0..1_000).map(|key| (1_000, put(key, key + 1))).collect();
    apply_at(&machine, 1, &commands);
    let last_included = LogId::of(1, 1_001);
    machine.advance_time(last_included, 1_050).unwrap();
    let expected = tempfile::tempdir().unwrap();
    let meta = generate(&machine, expected.path(), last_included);

    let view = machine.snapshot_view().unwrap().unwrap();
    let changes: Vec<_> = (0..2_000_u64)
        .map(|key| {
            let bytes = key.to_be_bytes().to_vec();
            (
                1_100,
                if key % 3 == 0 {
                    KvCommand::delete(bytes)
                } else {
                    KvCommand::put(bytes, "after")
                },
            )
        })
        .collect();
    apply_at(&machine, 1_002, &changes);
    machine.advance_time(LogId::of(2, 5_000), 9_000).unwrap();
    assert_eq!(view.last_included(), last_included);
    let found = tempfile::tempdir().unwrap();
    assert_eq!(view.write(found.path()).unwrap(), meta.checksum);
    assert_eq!(content(found.path()), content(expected.path()));
}

/// A reset or an install in the middle of a build does not change what is being built.
#[test]
fn a_view_outlives_the_state_that_it_was_taken_of() {
    let machine = with_three_keys();
    let expected = tempfile::tempdir().unwrap();
    let meta = generate(&machine, expected.path(), LAST_INCLUDED);
    let view = machine.snapshot_view().unwrap().unwrap();
    at_once(machine.reset()).unwrap();
    assert!(machine.is_empty());
    drop(machine);
    let found = tempfile::tempdir().unwrap();
    assert_eq!(view.write(found.path()).unwrap(), meta.checksum);
}
