//! The bytes of archives: what this program writes, and what it still reads.
//! `REGENERATE=1 cargo test -p d-engine-storage --test snapshot_format` writes the file anew; do so
//! only before version 1 is released.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::path::Path;

use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::fs::{OpenMode, write_all_at};
use d_engine_storage::snapshot::FullSpeed;
use snapshot_kit::{log_id, open, path_of, take};

/// The bytes of version 1: they may never change once it is released.
#[test]
fn an_archive_has_the_bytes_of_version_1() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let info = take(&fs, &store, log_id(3, 9)).unwrap();
    let written = fs.image().files[&path_of(log_id(3, 9))].clone();
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/snapshot-v1/snap-3-9.snap");
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(&fixture, &written).unwrap();
    }
    assert_eq!(written, std::fs::read(&fixture).unwrap());
    assert_eq!(written.len() as u64, info.len);
}

/// The header of an archive that was written when memberships had no names.
#[test]
fn an_archive_with_a_membership_of_version_1_is_read() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let older = std::fs::read(data.join("membership-v1/snap-3-9.snap")).unwrap();
    take(&fs, &store, log_id(3, 9)).unwrap();
    let file = fs.open(&path_of(log_id(3, 9)), OpenMode::Existing).unwrap();
    file.set_len(older.len() as u64).unwrap();
    write_all_at(&*file, 0, &older).unwrap();
    drop((file, store));
    let (store, _) = open(&fs);
    store.verify(log_id(3, 9), &mut FullSpeed).unwrap();
    let header = store.open_archive(log_id(3, 9)).unwrap().header().clone();
    let names: Vec<u64> =
        header.facts.membership.members().iter().map(|member| member.node).collect();
    assert_eq!((names, header.facts.membership.last_node()), (vec![1], 1));
}
