//! Snapshots are packed, listed, verified and unpacked; errors name the damage.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use d_engine_core::GroupId;
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::fs::{OpenMode, write_all_at};
use d_engine_storage::snapshot::{
    FullSpeed, Health, SnapshotError, SnapshotOptions, SnapshotStore,
};
use d_engine_storage::{ClusterId, Fs, FsOp, RealFs};
use snapshot_kit::{
    DIR, Files, OUT, assert_unpacks, checksum, facts, files, log_id, log_ids, names, open, options,
    path_of, read_files, take, try_open, with_content, write_files,
};

#[test]
fn what_was_packed_is_listed_and_unpacked() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(3, 9);
    let info = take(&fs, &store, last_included).unwrap();
    assert_eq!((info.last_included(), info.health), (last_included, Health::Whole));
    assert_eq!(info.header.facts, facts(last_included, &files(last_included)));
    assert_eq!(names(&fs), ["snap-3-9.snap"], "staging is gone");
    assert_unpacks(&fs, &store, last_included);
    drop(store);
    let (store, report) = open(&fs);
    assert!(report.unusable.is_empty() && report.removed.is_empty(), "{report:?}");
    assert_eq!(store.newest().unwrap().health, Health::Unchecked);
    assert!(store.newest_whole().is_none(), "it was not verified yet");
    assert_eq!(store.verify(last_included, &mut FullSpeed).unwrap().sha256, info.sha256);
    assert_eq!(store.newest_whole().unwrap().last_included(), last_included);
    assert_unpacks(&fs, &store, last_included);
}

/// Sizes at which files, chunks and the archive end at the same place.
#[test]
fn files_of_every_size_around_a_chunk_come_back() {
    for (number, lens) in
        [&[][..], &[0], &[1], &[699], &[700], &[701], &[1400], &[350, 350], &[700, 0, 700, 1]]
            .into_iter()
            .enumerate()
    {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let last_included = log_id(1, 1 + number as u64);
        let files: Files = lens
            .iter()
            .enumerate()
            .map(|(at, len)| (format!("f{at}"), vec![at as u8 + 1; *len]))
            .collect();
        let staging = store.staging().unwrap();
        write_files(&fs, staging.path(), &files).unwrap();
        store.pack(staging, &facts(last_included, &files), &mut FullSpeed).unwrap();
        store.verify(last_included, &mut FullSpeed).unwrap();
        store.unpack(last_included, Path::new(OUT), &mut FullSpeed).unwrap();
        assert_eq!(read_files(&fs, Path::new(OUT)), files, "{lens:?}");
    }
}

/// The same tree as in the test of `snapshot_checksum`, and the same value.
#[test]
fn the_checksum_of_the_content_is_that_of_the_contract() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let files: Files = [("a", "first"), ("dir.x", ""), ("dir/b", "second")]
        .into_iter()
        .map(|(name, content)| (name.to_owned(), content.as_bytes().to_vec()))
        .collect();
    let hex: String = checksum(&files).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "7a6ec88e208dce264a23737dcdf9268b999bf8751219eaa8ad3ee9974647af70");
    let staging = store.staging().unwrap();
    write_files(&fs, staging.path(), &files).unwrap();
    let info = store.pack(staging, &facts(log_id(1, 1), &files), &mut FullSpeed).unwrap();
    let names: Vec<&str> = info.header.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["a", "dir.x", "dir/b"], "in byte order");
}

#[test]
fn files_that_are_not_what_the_machine_said_are_not_packed() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, 5)).unwrap();
    let staging = store.staging().unwrap();
    write_files(&fs, staging.path(), &files(log_id(1, 8))).unwrap();
    let said = facts(log_id(1, 8), &files(log_id(1, 7)));
    let error = store.pack(staging, &said, &mut FullSpeed).unwrap_err();
    assert!(matches!(error, SnapshotError::ContentChecksum { .. }), "{error}");
    assert_eq!(names(&fs), ["snap-1-5.snap"]);
    assert_eq!(log_ids(&store), [log_id(1, 5)]);
}

#[test]
fn one_snapshot_at_a_time_is_built() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let staging = store.staging().unwrap();
    write_files(&fs, staging.path(), &files(log_id(1, 1))).unwrap();
    assert!(matches!(store.clone().staging(), Err(SnapshotError::Busy { .. })));
    drop(staging);
    assert!(names(&fs).is_empty(), "the abandoned snapshot is removed");
    take(&fs, &store, log_id(1, 1)).unwrap();
}

/// The caller limits the rate and may end the work.
#[test]
fn work_that_is_ended_leaves_nothing() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 2);
    take(&fs, &store, last_included).unwrap();
    let mut asked = 0;
    let mut third = |_: u64| {
        asked += 1;
        if asked == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let staging = store.staging().unwrap();
    write_files(&fs, staging.path(), &files(log_id(1, 4))).unwrap();
    let facts = facts(log_id(1, 4), &files(log_id(1, 4)));
    assert!(matches!(store.pack(staging, &facts, &mut third), Err(SnapshotError::Aborted)));
    let mut at_once = |_: u64| ControlFlow::Break(());
    assert!(matches!(store.verify(last_included, &mut at_once), Err(SnapshotError::Aborted)));
    assert!(matches!(
        store.unpack(last_included, Path::new(OUT), &mut at_once),
        Err(SnapshotError::Aborted)
    ));
    assert_eq!(names(&fs), ["snap-1-2.snap"]);
    assert!(fs.kind(Path::new(OUT)).is_err());
    assert_eq!(
        store.newest().unwrap().health,
        Health::Whole,
        "an abort is no finding about the archive"
    );
}

#[test]
fn the_last_space_is_left_to_the_log() {
    let fs = SimFs::new();
    let reserve = SnapshotOptions { reserve_bytes: 10_000, ..options() };
    let (store, _) = SnapshotStore::open(Arc::new(fs.clone()), Path::new(DIR), reserve).unwrap();
    fs.set_free_bytes(Some(12_000));
    let error = take(&fs, &store, log_id(1, 1)).unwrap_err();
    assert!(
        matches!(error, SnapshotError::NoSpace { free: 12_000, needed: 12_100.., .. }),
        "{error}"
    );
    fs.set_free_bytes(Some(14_000));
    take(&fs, &store, log_id(1, 1)).unwrap();
    // A restore may use all free space: without a state there is nothing to log.
    fs.set_free_bytes(Some(1_000));
    let unpacked = store.unpack(log_id(1, 1), Path::new(OUT), &mut FullSpeed);
    assert!(matches!(unpacked, Err(SnapshotError::NoSpace { reserve: 0, .. })), "{unpacked:?}");
    fs.set_free_bytes(Some(9_000));
    store.unpack(log_id(1, 1), Path::new(OUT), &mut FullSpeed).unwrap();
}

#[test]
fn a_target_that_is_not_empty_is_refused_and_left_alone() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, 1)).unwrap();
    fs.create_dir(Path::new("/node/out")).unwrap();
    let mine = fs.open(Path::new("/node/out/mine"), OpenMode::CreateNew).unwrap();
    write_all_at(&*mine, 0, b"mine").unwrap();
    let error = store.unpack(log_id(1, 1), Path::new(OUT), &mut FullSpeed).unwrap_err();
    assert!(matches!(error, SnapshotError::NotEmpty { .. }), "{error}");
    assert_eq!(read_files(&fs, Path::new(OUT)).into_keys().collect::<Vec<_>>(), ["mine"]);
}

#[test]
fn every_flipped_bit_of_an_archive_is_found_and_the_older_one_is_used() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let (older, newest) = (log_id(1, 5), log_id(2, 9));
    take(&fs, &store, older).unwrap();
    let len = take(&fs, &store, newest).unwrap().len;
    let image = fs.image();
    for offset in 0..len {
        let fs = SimFs::from_image(&image);
        assert!(fs.flip_bit(&path_of(newest), offset, (offset % 8) as u8));
        let (store, report) = open(&fs);
        let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
        assert_eq!(whole.unwrap().last_included(), older, "a flip at {offset}");
        assert_eq!(
            report.unusable.len() + damage.len(),
            1,
            "a flip at {offset}: {report:?} {damage:?}"
        );
        assert_eq!(store.newest().unwrap().last_included(), older);
        let unpacked = store.unpack(newest, Path::new(OUT), &mut FullSpeed);
        assert!(unpacked.is_err() && fs.kind(Path::new(OUT)).is_err(), "a flip at {offset}");
        assert!(fs.image().files.contains_key(&path_of(newest)), "reported, not removed");
    }
}

/// FAULTS row 35.
#[test]
fn an_archive_that_is_cut_anywhere_or_too_long_is_not_used() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 5);
    take(&fs, &store, last_included).unwrap();
    let whole = fs.image().files[&path_of(last_included)].clone();
    for len in 0..whole.len() {
        let (store, report) =
            open(&with_content(&fs, &path_of(last_included), whole[..len].to_vec()));
        assert!(store.list().is_empty() && report.unusable.len() == 1, "{len} bytes");
    }
    for more in [1, 52, 700] {
        let longer = [&whole[..], &vec![0; more]].concat();
        let (store, _) = open(&with_content(&fs, &path_of(last_included), longer));
        assert!(store.list().is_empty(), "{more} bytes more");
    }
}

#[test]
fn chunks_that_are_exchanged_doubled_or_dropped_are_found() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 5);
    take(&fs, &store, last_included).unwrap();
    let head = store.open_archive(last_included).unwrap().header_bytes().len();
    let whole = fs.image().files[&path_of(last_included)].clone();
    let chunk = |number: usize| whole[head + number * 708..head + (number + 1) * 708].to_vec();
    let rest = whole[head + 2 * 708..].to_vec();
    let start = whole[..head].to_vec();
    let forged = [
        [start.clone(), chunk(1), chunk(0), rest.clone()].concat(),
        [start.clone(), chunk(0), chunk(0), rest.clone()].concat(),
        [start.clone(), chunk(0), rest.clone()].concat(),
        [start, chunk(0), chunk(1), chunk(1), rest].concat(),
    ];
    for (number, forged) in forged.into_iter().enumerate() {
        let fs = with_content(&fs, &path_of(last_included), forged);
        let (store, report) = open(&fs);
        let (found, damage) = store.find_whole(&mut FullSpeed).unwrap();
        assert!(found.is_none() && report.unusable.len() + damage.len() == 1, "forgery {number}");
        if number < 2 {
            // Its length fits, so the misplaced chunk is found before the whole is verified.
            let text = damage[0].to_string();
            assert!(
                text.contains(&format!("offset {}: chunk {number} ", head + number * 708)),
                "{text}"
            );
        }
    }
}

/// Each chunk verifies, but the whole does not: an archive composed of two.
#[test]
fn the_whole_is_checked_and_not_only_its_chunks() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 5);
    take(&fs, &store, last_included).unwrap();
    let mut forged = fs.image().files[&path_of(last_included)].clone();
    let trailer = forged.len() - 52;
    forged[trailer + 20] ^= 1;
    let sum = crc32c::crc32c(&forged[trailer..trailer + 48]);
    forged[trailer + 48..].copy_from_slice(&sum.to_le_bytes());
    let (store, report) = open(&with_content(&fs, &path_of(last_included), forged));
    assert!(report.unusable.is_empty(), "header and trailer verify");
    let error = store.verify(last_included, &mut FullSpeed).unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Damaged { what, .. } if what.contains("SHA-256")),
        "{error}"
    );
    assert!(store.unpack(last_included, Path::new(OUT), &mut FullSpeed).is_err());
    assert!(store.newest().is_none(), "a damaged archive is offered again");
}

/// Bytes that no chunk covers, before a trailer that counts them.
#[test]
fn an_archive_with_something_between_its_chunks_and_its_trailer_is_not_used() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 5);
    take(&fs, &store, last_included).unwrap();
    let mut forged = fs.image().files[&path_of(last_included)].clone();
    let mut trailer = forged.split_off(forged.len() - 52);
    forged.extend_from_slice(b"stowaway");
    trailer[8..16].copy_from_slice(&(forged.len() as u64 + 52).to_le_bytes());
    let sum = crc32c::crc32c(&trailer[..48]);
    trailer[48..].copy_from_slice(&sum.to_le_bytes());
    let (store, report) =
        open(&with_content(&fs, &path_of(last_included), [forged, trailer].concat()));
    assert!(store.list().is_empty());
    assert!(matches!(report.unusable[..], [SnapshotError::Damaged { .. }]), "{report:?}");
}

#[test]
fn names_are_not_believed() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, 5)).unwrap();
    fs.rename(&path_of(log_id(1, 5)), &path_of(log_id(7, 700))).unwrap();
    let (store, report) = open(&fs);
    assert!(store.list().is_empty());
    assert!(
        matches!(
            report.unusable[..],
            [SnapshotError::WrongOwner { what: "last included entry", .. }]
        ),
        "{report:?}"
    );
    assert!(fs.image().files.contains_key(&path_of(log_id(7, 700))));
}

#[test]
fn snapshots_of_another_cluster_group_or_version_are_refused_with_both_values() {
    let fs = SimFs::new();
    let newer = SnapshotOptions { user_format: 3, command_version_max: 9, ..options() };
    let (store, _) = SnapshotStore::open(Arc::new(fs.clone()), Path::new(DIR), newer).unwrap();
    let staging = store.staging().unwrap();
    write_files(&fs, staging.path(), &files(log_id(1, 5))).unwrap();
    let mut said = facts(log_id(1, 5), &files(log_id(1, 5)));
    said.user_format = 3;
    said.command_version = 9;
    store.pack(staging, &said, &mut FullSpeed).unwrap();
    let header = store.open_archive(log_id(1, 5)).unwrap().header_bytes().clone();
    assert_eq!(store.check_header(&header).unwrap().facts, said);
    let other = [
        (SnapshotOptions { cluster: ClusterId([9; 16]), ..options() }, "0909", "c1c1"),
        (SnapshotOptions { group: GroupId::new(8).unwrap(), ..options() }, "8", "1"),
        (
            SnapshotOptions { user_format: 2, command_version_max: 9, ..options() },
            "up to 2",
            "version 3",
        ),
        (
            SnapshotOptions { user_format: 3, command_version_max: 8, ..options() },
            "up to 8",
            "version 9",
        ),
    ];
    for (options, ours, theirs) in other {
        let (store, report) =
            SnapshotStore::open(Arc::new(fs.clone()), Path::new(DIR), options).unwrap();
        assert!(store.list().is_empty());
        for text in
            [report.unusable[0].to_string(), store.check_header(&header).unwrap_err().to_string()]
        {
            assert!(text.contains(ours) && text.contains(theirs), "{text}");
        }
    }
}

/// The rename succeeded, but the sync after it failed: the archive is listed, but not used.
#[test]
fn an_archive_whose_name_was_not_synced_is_listed_but_not_trusted() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let before = fs.counts().of(FsOp::SyncDir);
    take(&fs, &store, log_id(1, 1)).unwrap();
    // The last directory sync is that of the archive's name.
    let syncs = fs.counts().of(FsOp::SyncDir) - before;
    fs.fail(FsOp::SyncDir, syncs, Failure::Io);
    take(&fs, &store, log_id(1, 2)).unwrap_err();
    assert_eq!(log_ids(&store), [log_id(1, 2), log_id(1, 1)]);
    assert_eq!(store.newest_whole().unwrap().last_included(), log_id(1, 1));
}

/// A sector that cannot be read counts as damage.
#[test]
fn a_snapshot_that_cannot_be_read_does_not_hide_the_older_one() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, 1)).unwrap();
    take(&fs, &store, log_id(1, 2)).unwrap();
    // The header, the header as a whole, and the trailer of the older one are read first.
    fs.fail(FsOp::Read, 4, Failure::Io);
    let (store, report) = open(&fs);
    assert!(matches!(report.unusable[..], [SnapshotError::Io { .. }]), "{report:?}");
    assert_eq!(log_ids(&store), [log_id(1, 1)]);
    let (store, _) = open(&fs);
    fs.fail(FsOp::Read, 5, Failure::Io);
    let (whole, damage) = store.find_whole(&mut FullSpeed).unwrap();
    assert_eq!(whole.unwrap().last_included(), log_id(1, 1));
    assert!(matches!(damage[..], [SnapshotError::Io { .. }]), "{damage:?}");
}

/// FAULTS row 33: a failed sync is not retried; the snapshot is abandoned.
#[test]
fn after_an_io_error_the_old_snapshot_is_still_there_and_a_new_one_can_be_taken() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, 1)).unwrap();
    let image = fs.image();
    let mut failed = 0;
    for op in FsOp::ALL {
        for failure in [Failure::Io, Failure::NoSpace] {
            for nth in 1..40 {
                let fs = SimFs::from_image(&image);
                let (store, _) = open(&fs);
                fs.fail(op, nth, failure);
                let Err(error) = take(&fs, &store, log_id(1, 2)) else { continue };
                failed += 1;
                assert!(matches!(error, SnapshotError::Io { .. }), "{op:?} {nth}: {error}");
                assert!(log_ids(&store).contains(&log_id(1, 1)));
                fs.kill();
                let (store, _) = try_open(&fs).unwrap();
                take(&fs, &store, log_id(1, 2)).unwrap();
                fs.crash(&mut |_| 0);
                let (store, _) = open(&fs);
                for last_included in [log_id(1, 2), log_id(1, 1)] {
                    store.verify(last_included, &mut FullSpeed).unwrap();
                }
            }
        }
    }
    assert!(failed > 60, "{failed}");
}

#[test]
fn writes_that_take_only_a_part_are_completed() {
    for nth in 1..12 {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let staging = store.staging().unwrap();
        write_files(&fs, staging.path(), &files(log_id(1, 2))).unwrap();
        fs.fail(FsOp::Write, nth, Failure::Short);
        store.pack(staging, &facts(log_id(1, 2), &files(log_id(1, 2))), &mut FullSpeed).unwrap();
        store.verify(log_id(1, 2), &mut FullSpeed).unwrap();
        assert_unpacks(&fs, &store, log_id(1, 2));
    }
}

#[test]
fn on_a_real_disk_files_come_back_and_links_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("data").join("snapshots");
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let defaults = SnapshotOptions::new(ClusterId([1; 16]), GroupId::FIRST);
    let (store, _) = SnapshotStore::open(Arc::clone(&fs), &dir, defaults).unwrap();
    let mut large = files(log_id(1, 7));
    large.insert("large".to_owned(), (0..3_000_000_u32).map(|at| (at / 7) as u8).collect());
    let staging = store.staging().unwrap();
    write_files(&*fs, staging.path(), &large).unwrap();
    store.pack(staging, &facts(log_id(1, 7), &large), &mut FullSpeed).unwrap();
    let out = scratch.path().join("out");
    store.unpack(log_id(1, 7), &out, &mut FullSpeed).unwrap();
    assert_eq!(read_files(&*fs, &out), large);

    let staging = store.staging().unwrap();
    std::os::unix::fs::symlink(&out, staging.path().join("link")).unwrap();
    let error =
        store.pack(staging, &facts(log_id(1, 8), &Files::new()), &mut FullSpeed).unwrap_err();
    assert!(matches!(&error, SnapshotError::Name { name, .. } if name == "link"), "{error}");
    assert!(out.join("large").exists(), "what the link pointed to is untouched");
    assert_eq!(fs.list(&dir).unwrap(), ["snap-1-7.snap"]);
    assert!(fs.free_bytes(&dir).unwrap().is_some_and(|free| free > 0));
}

/// An archive is not used before the directory sync of its name has succeeded.
#[test]
fn an_archive_whose_name_was_not_synced_is_whole_only_once_it_is() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 4);
    let staged = fs.counts().of(FsOp::SyncDir);
    take(&fs, &store, log_id(1, 3)).unwrap();
    let syncs = fs.counts().of(FsOp::SyncDir) - staged;
    let mut failed = false;
    for nth in 1..=syncs {
        fs.fail(FsOp::SyncDir, nth, d_engine_storage::fs::sim::Failure::Io);
        failed =
            take(&fs, &store, last_included).is_err() && fs.kind(&path_of(last_included)).is_ok();
        if failed {
            break;
        }
    }
    assert!(failed, "the sync after the rename must fail");
    assert!(
        store
            .list()
            .iter()
            .all(|info| info.last_included() != last_included || info.health == Health::Unchecked)
    );
    store.verify(last_included, &mut FullSpeed).unwrap();
    fs.crash(&mut |_| 0);
    let (store, _) = open(&fs);
    store.verify(last_included, &mut FullSpeed).unwrap();
}
