//! The log of one node becomes a new cluster of one, whole or not at all, and the old directory
//! never runs again.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

#[path = "recover_kit/mod.rs"]
mod kit;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{EntryKind, LogId};
use d_engine_fs::sim::SimFs;
use d_engine_fs::{Fs, OpenMode, ensure_dir};
use d_engine_offline::inspect::{Directory, Snapshots, Verdict};
use d_engine_offline::recover::{Progress, RecoverError, Unfit, recover};
use d_engine_storage::{
    Admission, FileStorageEngine, FileStorageOptions, MemberRole, StorageEngine, StorageError,
};
use kit::{DIR, OLD, Old, check, log_id, request, run};

fn new_disk() -> (SimFs, Arc<dyn Fs>) {
    let sim = SimFs::new();
    let fs: Arc<dyn Fs> = Arc::new(sim.clone());
    (sim, fs)
}

fn names(fs: &Arc<dyn Fs>) -> Vec<String> {
    let mut names = fs.list(Path::new("/nodes")).unwrap();
    names.sort();
    names
}

#[test]
fn the_log_of_a_survivor_becomes_a_cluster_of_one() {
    for (snapshot, purged) in
        [(None, 0), (Some(12), 0), (Some(12), 6), (Some(12), 12), (Some(30), 9)]
    {
        let (_, fs) = new_disk();
        let old = Old { snapshot, purged, ..Old::default() };
        old.create(&fs);
        let recovered = run(&fs, &request()).unwrap();
        let found = check(&fs, &old);
        let kept = recovered.kept.unwrap();
        assert_eq!((recovered.cluster, recovered.from), (found.identity.cluster, OLD));
        assert_ne!(recovered.cluster, OLD, "no node of the old cluster takes it for its own");
        assert_eq!(recovered.membership, found.identity.initial);
        assert_eq!(kept.last, log_id(5, 30));
        let committed = snapshot.unwrap_or(0).max(27);
        assert_eq!(kept.not_known_committed, 30 - committed);
        assert_eq!(kept.snapshot, snapshot.map(Old::id));
        let begins_after = snapshot.unwrap_or(0);
        let lists = [8, 24].into_iter().filter(|index| *index > begins_after).count();
        assert_eq!(kept.memberships, lists as u64);
        let [only] = found.identity.initial.members() else { panic!("{found:?}") };
        assert_eq!((only.node, only.role), (2, MemberRole::Voter));
        assert_eq!(only.peer_addr, "old-2:7101", "as the old cluster knew it");
        assert_eq!(only.incarnation, Some(found.identity.incarnation));
        assert!(found.identity.initial.has_removed(5), "an id is not given again");
        assert_eq!(found.identity.initial.admission(), Admission::Invited, "not on loopback");
        assert_eq!(names(&fs), ["data", "data.before-recover-20251128T140211Z"]);
    }
}

/// A cluster that was never written to has a log without entries.
#[test]
fn an_empty_log_is_continued_too() {
    let (_, fs) = new_disk();
    let old = Old { entries: 0, commit: 0, ..Old::default() };
    old.create(&fs);
    let kept = run(&fs, &request()).unwrap().kept.unwrap();
    assert_eq!((kept.last, kept.not_known_committed), (LogId::ZERO, 0));
    check(&fs, &old);
}

/// Nodes that join would meet the old lists, and refuse the new directory of this node.
#[test]
fn every_membership_entry_becomes_a_no_op_with_its_own_term_and_time() {
    let (_, fs) = new_disk();
    let old = Old::default();
    old.create(&fs);
    run(&fs, &request()).unwrap();
    let found = check(&fs, &old);
    assert_eq!(found.recovered.memberships, []);
    for index in [8, 24] {
        let head = found.recovered.entries[index - 1];
        assert_eq!(head.id, Old::id(index as u64));
        assert_eq!((head.kind, head.data_len, head.version), (EntryKind::Noop, 0, 0));
    }
}

/// A power loss may leave a torn tail, which a start cuts: it was never acknowledged.
#[test]
fn what_a_crash_left_half_written_is_no_damage() {
    let (_, fs) = new_disk();
    let old = Old::default();
    old.create(&fs);
    let segment = old.newest_segment(&fs);
    let file = fs.open(&segment, OpenMode::Existing).unwrap();
    let end = Directory::read(fs.clone(), Path::new(DIR), Snapshots::Verify, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap()
    .log()
    .segments
    .last()
    .unwrap()
    .end;
    file.write_at(end, b"dGRP and a half-written group").unwrap();
    file.sync_all().unwrap();
    run(&fs, &request()).unwrap();
    check(&fs, &old);
}

/// A received snapshot after which the log was not yet restarted replaces the log.
#[test]
fn a_log_that_does_not_reach_the_newest_snapshot_is_dropped() {
    for received in [log_id(6, 40), log_id(6, 20)] {
        let (_, fs) = new_disk();
        let old = Old::default();
        old.create(&fs);
        old.take_snapshot(&fs, received);
        let kept = run(&fs, &request()).unwrap().kept.unwrap();
        assert_eq!((kept.last, kept.snapshot), (received, Some(received)));
        assert_eq!(kept.not_known_committed, 0);
        let found = kit::open(&fs, Path::new(DIR)).unwrap();
        assert_eq!(found.recovered.base, received);
        assert_eq!(found.recovered.entries, []);
    }
}

#[test]
fn a_node_does_not_start_in_a_directory_that_was_recovered() {
    let (_, fs) = new_disk();
    let old = Old::default();
    old.create(&fs);
    let recovered = run(&fs, &request()).unwrap();
    let error = kit::open(&fs, &recovered.old_dir).unwrap_err();
    assert!(matches!(error, StorageError::Retired { .. }), "{error}");
    let said = error.to_string();
    for part in ["retired by `recover` on 2025-11-28T14:02:11", "/nodes/data;", "join"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(said.contains(&recovered.cluster.to_string()), "{said}");
    let engine =
        FileStorageEngine::new(&recovered.old_dir, FileStorageOptions::default(), fs.clone());
    let reserved = engine.reserve(kit::incarnation(9)).unwrap_err();
    assert!(matches!(reserved, StorageError::Retired { .. }), "{reserved}");
    // It can still be read, and be told from one that may be recovered.
    let go_on = &mut |_| ControlFlow::Continue(());
    let read = Directory::read(fs.clone(), &recovered.old_dir, Snapshots::Verify, go_on).unwrap();
    assert_eq!(read.survey().retired().unwrap().cluster, recovered.cluster);
    assert_eq!(read.damaged(), 0);
    assert_eq!(read.log().last, Some(log_id(5, 30)));
    assert!(matches!(read.verdict(), Verdict::Refuses { reason, .. } if reason == said));
    let mut again = request();
    again.data_dir.clone_from(&recovered.old_dir);
    let error = run(&fs, &again).unwrap_err();
    let is_retired = matches!(error, RecoverError::Unfit { reason: Unfit::Retired(_), .. });
    assert!(is_retired, "{error}");
    // It was put back, and the new one is gone.
    fs.remove_tree(Path::new(DIR)).unwrap();
    fs.rename(&recovered.old_dir, Path::new(DIR)).unwrap();
    let error = run(&fs, &request()).unwrap_err();
    assert!(matches!(error, RecoverError::NoSuccessor { .. }), "{error}");
    assert!(error.to_string().contains("/nodes/data.recovering, is missing"), "{error}");
}

/// A flipped bit in the record must not bring the directory back.
#[test]
fn a_damaged_record_of_retirement_keeps_the_node_from_starting_too() {
    let (sim, fs) = new_disk();
    Old::default().create(&fs);
    let recovered = run(&fs, &request()).unwrap();
    assert!(sim.flip_bit(&recovered.old_dir.join("retired.meta"), 30, 2));
    let error = kit::open(&fs, &recovered.old_dir).unwrap_err();
    assert!(matches!(error, StorageError::DamagedFile { .. }), "{error}");
    let go_on = &mut |_| ControlFlow::Continue(());
    let read = Directory::read(fs.clone(), &recovered.old_dir, Snapshots::Verify, go_on).unwrap();
    assert_eq!(read.damaged(), 1);
    assert!(matches!(read.verdict(), Verdict::Refuses { .. }), "{:?}", read.verdict());
}

/// All of the old clusters are to be told that they have ended.
#[test]
fn a_cluster_that_is_recovered_twice_remembers_both_old_ones() {
    let (_, fs) = new_disk();
    let old = Old::default();
    old.create(&fs);
    let first = run(&fs, &request()).unwrap();
    let between = check(&fs, &old).identity;
    let alone = run(&fs, &request()).unwrap_err();
    assert!(matches!(alone, RecoverError::SoleVoter { .. }), "{alone}");
    assert!(alone.to_string().contains("the only voter"), "{alone}");
    kit::grow(&fs, &between.initial);
    let second = run(&fs, &request()).unwrap();
    assert_eq!(second.from, first.cluster);
    let found = kit::open(&fs, Path::new(DIR)).unwrap();
    let expected = [(OLD, kit::incarnation(2)), (first.cluster, between.incarnation)];
    assert_eq!(found.identity.continues, expected);
    assert_eq!(found.recovered.memberships, []);
    let both = ["data.before-recover-20251128T140211Z", "data.before-recover-20251128T140211Z-2"];
    assert_eq!(names(&fs)[1..], both);
}

#[test]
fn damage_is_refused_by_its_place_and_nothing_is_changed() {
    let (sim, fs) = new_disk();
    let old = Old { snapshot: Some(12), purged: 12, ..Old::default() };
    old.create(&fs);
    let segment = old.oldest_segment(&fs);
    assert!(sim.flip_bit(&segment, 512 + 90, 1));
    let error = run(&fs, &request()).unwrap_err();
    let said = error.to_string();
    let RecoverError::Unfit { reason: Unfit::Damaged { reason }, .. } = error else {
        panic!("{said}");
    };
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert!(reason.contains(name) && reason.contains("offset 512"), "{said}");
    assert!(said.contains("another survivor") && said.contains("snapshot"), "{said}");
    assert_eq!(names(&fs), ["data"]);
    assert!(sim.flip_bit(&segment, 512 + 90, 1));
    run(&fs, &request()).unwrap();
    check(&fs, &old);
}

/// A start would skip it as well.
#[test]
fn damage_that_the_newest_snapshot_covers_does_not_matter() {
    let (sim, fs) = new_disk();
    let old = Old { snapshot: Some(12), ..Old::default() };
    old.create(&fs);
    assert!(sim.flip_bit(&old.oldest_segment(&fs), 1024 + 90, 1));
    run(&fs, &request()).unwrap();
    check(&fs, &old);
}

/// The snapshot is the only copy of what was purged.
#[test]
fn a_log_that_begins_after_a_damaged_snapshot_is_refused() {
    let (sim, fs) = new_disk();
    let old = Old { snapshot: Some(12), purged: 12, ..Old::default() };
    old.create(&fs);
    let snapshot = PathBuf::from(DIR).join("snapshots/snap-3-12.snap");
    assert!(sim.flip_bit(&snapshot, 700, 1));
    let error = run(&fs, &request()).unwrap_err();
    let is_damage = matches!(error, RecoverError::Unfit { reason: Unfit::Damaged { .. }, .. });
    assert!(is_damage, "{error}");
    // With the whole log, the damaged snapshot is not needed.
    let (sim, fs) = new_disk();
    let old = Old { snapshot: Some(12), ..Old::default() };
    old.create(&fs);
    assert!(sim.flip_bit(&snapshot, 700, 1));
    run(&fs, &request()).unwrap();
    check(&fs, &Old { snapshot: None, ..old });
}

#[test]
fn a_directory_in_which_a_node_runs_is_refused() {
    let (_, fs) = new_disk();
    Old::default().create(&fs);
    let running = kit::open(&fs, Path::new(DIR)).unwrap();
    let error = run(&fs, &request()).unwrap_err();
    assert!(matches!(error, RecoverError::Storage(StorageError::InUse { .. })), "{error}");
    drop(running);
    // Nor does a node start while the directory is recovered.
    let recovered = recover(&fs, &request(), &mut |_| ControlFlow::Continue(()), &mut |_| {
        let error = kit::open(&fs, Path::new(DIR)).unwrap_err();
        assert!(matches!(error, StorageError::InUse { .. }), "{error}");
        ControlFlow::Continue(())
    });
    recovered.unwrap();
}

#[test]
fn a_disk_without_room_is_found_out_first() {
    let (sim, fs) = new_disk();
    Old::default().create(&fs);
    sim.set_capacity(Some(sim.used_bytes() + (1 << 20)));
    let said = run(&fs, &request()).unwrap_err().to_string();
    assert!(said.contains("bytes free") && said.contains("are needed"), "{said}");
    assert_eq!(names(&fs), ["data"]);
}

#[test]
fn nothing_is_overwritten_and_what_is_stopped_leaves_the_directory_as_it_was() {
    let (_, fs) = new_disk();
    let old = Old { snapshot: Some(12), ..Old::default() };
    old.create(&fs);
    for wrong in ["db-2", "0.0.0.0:1", "db-2:0"] {
        let request = kit::RecoverRequest { peer_addr: Some(wrong.to_owned()), ..request() };
        let said = run(&fs, &request).unwrap_err().to_string();
        assert!(said.contains(wrong) && said.contains("host:port"), "{said}");
    }
    ensure_dir(&*fs, Path::new("/nodes/data.recovering")).unwrap();
    fs.open(Path::new("/nodes/data.recovering/mine"), OpenMode::CreateNew).unwrap();
    let occupied = run(&fs, &request()).unwrap_err().to_string();
    assert!(occupied.contains("/nodes/data.recovering is where"), "{occupied}");
    fs.remove_tree(Path::new("/nodes/data.recovering")).unwrap();
    let refused = recover(
        &fs,
        &request(),
        &mut |holdings| {
            assert_eq!(holdings.last, log_id(5, 30));
            assert_eq!(holdings.members.members().len(), 5);
            ControlFlow::Break(())
        },
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(matches!(refused, Err(RecoverError::Stopped)));
    for stop_at in [Progress::Read(0), Progress::Written(0)] {
        let stopped = recover(&fs, &request(), &mut |_| ControlFlow::Continue(()), &mut |at| {
            match std::mem::discriminant(&at) == std::mem::discriminant(&stop_at) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        assert!(stopped.is_err());
        assert_eq!(names(&fs), ["data"]);
    }
    drop(kit::open(&fs, Path::new(DIR)).unwrap());
    run(&fs, &request()).unwrap();
    check(&fs, &old);
    let none = kit::RecoverRequest { data_dir: "/nodes/none".into(), ..request() };
    let said = run(&fs, &none).unwrap_err().to_string();
    assert!(said.contains("/nodes/none is not the data directory of a node"), "{said}");
    assert!(fs.kind(Path::new("/nodes/none")).is_err());
}

/// The state of the disk after a cut: which directory a node starts in.
#[derive(PartialEq, Eq, Debug)]
enum AfterCut {
    Old,
    Neither,
    New,
}

fn after_a_cut(fs: &Arc<dyn Fs>) -> AfterCut {
    let engine =
        |dir: &Path| FileStorageEngine::new(dir, FileStorageOptions::default(), fs.clone());
    for before in names(fs).iter().filter(|name| name.contains("before-recover")) {
        let retired = engine(&Path::new("/nodes").join(before)).retired().unwrap();
        assert!(retired.is_some(), "{before} is not retired");
    }
    let data = engine(Path::new(DIR));
    match data.owner().unwrap() {
        Some(owner) if owner.cluster != OLD => AfterCut::New,
        Some(_) if data.retired().unwrap().is_none() => AfterCut::Old,
        _ => AfterCut::Neither,
    }
}

/// After a power cut at any file operation the old directory is usable, or it is retired and the
/// new one is complete. The same command begins anew or finishes the work.
#[test]
fn a_recovery_that_is_cut_off_anywhere_is_run_again() {
    let (mut olds, mut between, mut news) = (0, 0, 0);
    for operation in 1.. {
        let mut has_finished = false;
        for seed in 1..=8 {
            let (sim, fs) = new_disk();
            let old = Old { snapshot: Some(12), purged: 6, ..Old::default() };
            old.create(&fs);
            sim.halt_at(operation);
            has_finished = run(&fs, &request()).is_ok() && !sim.is_halted();
            let mut state = operation * seed;
            sim.crash(&mut |below| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if below == 0 { 0 } else { (state >> 33) % below }
            });
            match after_a_cut(&fs) {
                AfterCut::Old => {
                    olds += 1;
                    assert!(run(&fs, &request()).unwrap().kept.is_some());
                }
                AfterCut::Neither => {
                    between += 1;
                    let recovered = run(&fs, &request()).unwrap();
                    assert_eq!((recovered.from, recovered.kept), (OLD, None), "{operation}");
                }
                AfterCut::New => news += 1,
            }
            let found = check(&fs, &old);
            assert_eq!(found.identity.continues, [(OLD, kit::incarnation(2))]);
            let names = names(&fs);
            assert_eq!(names, ["data", "data.before-recover-20251128T140211Z"], "{operation}");
            let before = Path::new("/nodes").join(&names[1]);
            assert!(matches!(kit::open(&fs, &before), Err(StorageError::Retired { .. })));
        }
        if has_finished {
            break;
        }
    }
    assert!(olds > 300 && between > 24 && news > 8, "{olds}, {between} and {news}");
}

/// As above, but only the process dies: everything that was written is still readable.
#[test]
fn a_recovery_that_is_killed_anywhere_is_run_again() {
    for operation in 1.. {
        let (sim, fs) = new_disk();
        let old = Old { snapshot: Some(12), ..Old::default() };
        old.create(&fs);
        sim.halt_at(operation);
        let finished = run(&fs, &request()).is_ok() && !sim.is_halted();
        sim.kill();
        if after_a_cut(&fs) != AfterCut::New {
            run(&fs, &request()).unwrap();
        }
        check(&fs, &old);
        assert_eq!(names(&fs).len(), 2, "{operation}: {:?}", names(&fs));
        if finished {
            break;
        }
    }
}

/// Something was created in the moment in which the old directory was away.
#[test]
fn a_directory_that_was_created_meanwhile_is_not_overwritten() {
    for operation in 1.. {
        let (sim, fs) = new_disk();
        let old = Old::default();
        old.create(&fs);
        sim.halt_at(operation);
        assert!(run(&fs, &request()).is_err(), "no operation lies between the renames");
        sim.kill();
        if fs.kind(Path::new(DIR)).is_ok() {
            continue;
        }
        let refused = kit::create(&fs, Path::new(DIR)).map(drop).unwrap_err();
        assert!(matches!(refused, StorageError::Unfinished { command: "recover", .. }));
        fs.create_dir(Path::new(DIR)).unwrap();
        fs.open(&Path::new(DIR).join("file"), OpenMode::CreateNew).unwrap();
        let occupied = run(&fs, &request()).unwrap_err().to_string();
        assert!(occupied.contains("/nodes/data was created while"), "{occupied}");
        fs.remove_tree(Path::new(DIR)).unwrap();
        run(&fs, &request()).unwrap();
        check(&fs, &old);
        return;
    }
}

/// The memory for the copy does not grow with the log.
#[test]
fn a_long_log_is_copied_in_pieces() {
    let (_, fs) = new_disk();
    let old = Old { payload: 1 << 20, ..Old::default() };
    old.create(&fs);
    let mut pieces = Vec::new();
    let recovered = recover(&fs, &request(), &mut |_| ControlFlow::Continue(()), &mut |at| {
        if let Progress::Written(bytes) = at {
            pieces.push(bytes);
        }
        ControlFlow::Continue(())
    });
    recovered.unwrap();
    check(&fs, &old);
    assert!(pieces.len() >= 6, "{pieces:?}");
    assert!(pieces.iter().all(|bytes| *bytes < 6 << 20), "{pieces:?}");
}
