//! The directories that are left, side by side: which one has the most, and what may be lost.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

#[path = "recover_kit/mod.rs"]
mod kit;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{EntryKind, GroupId, HardState, LogIndex, NodeId, Term};
use d_engine_fs::Fs;
use d_engine_fs::sim::SimFs;
use d_engine_offline::inspect::{InspectError, Snapshots};
use d_engine_offline::recover::{Findings, Unfit, VoterSet, inspect};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Leavers, LogEntry, MemberChange, Membership,
    Repaired,
};
use kit::{Old, incarnation, log_id, voters};

/// The directory of a node, under its number.
fn node(number: u64, entries: u64, commit: u64) -> Old {
    let dir = PathBuf::from(format!("/nodes/{number}"));
    let incarnation = incarnation(number as u8);
    Old { dir, node: number, incarnation, entries, commit, ..Old::default() }
}

fn look(sim: &SimFs, dirs: &[&str]) -> Findings {
    let before = sim.image();
    let dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
    let go_on = &mut |_| ControlFlow::Continue(());
    let found = inspect(&fs(sim), &dirs, Snapshots::Verify, go_on).unwrap();
    assert!(before == sim.image(), "nothing is changed");
    found
}

fn disk(nodes: &[Old]) -> SimFs {
    let sim = SimFs::new();
    for node in nodes {
        node.create(&fs(&sim));
    }
    sim
}

fn fs(sim: &SimFs) -> Arc<dyn Fs> {
    Arc::new(sim.clone())
}

fn best(found: &Findings) -> &str {
    found.best().unwrap().dir.to_str().unwrap()
}

#[test]
fn the_latest_last_entry_is_taken_the_term_before_the_index() {
    // Node 1 has the longer log, of an older term.
    let sim = disk(&[node(1, 12, 12), node(2, 13, 10), node(3, 30, 20), node(4, 30, 25)]);
    let found = look(&sim, &["/nodes/1", "/nodes/2"]);
    assert_eq!(best(&found), "/nodes/2");
    let rows = found.survivors.iter().map(|it| it.holdings.as_ref().unwrap());
    let rows: Vec<_> = rows.map(|it| (it.owner.node.get(), it.last, it.committed.get())).collect();
    assert_eq!(rows, [(1, log_id(3, 12), 12), (2, log_id(5, 13), 10)]);
    append(&sim, 1, 13, 4, None);
    append(&sim, 1, 14, 4, None);
    assert_eq!(best(&look(&sim, &["/nodes/1", "/nodes/2"])), "/nodes/2", "14 of term 4");
    // Equal last entries: the one that knows more to be committed, then the first one.
    assert_eq!(best(&look(&sim, &["/nodes/3", "/nodes/4"])), "/nodes/4");
    let sim = disk(&[node(3, 30, 20), node(4, 30, 20)]);
    assert_eq!(best(&look(&sim, &["/nodes/4", "/nodes/3"])), "/nodes/4");
}

/// Appends an entry to the directory of a node.
fn append(sim: &SimFs, node: u64, index: u64, term: u64, members: Option<&Membership>) {
    let mut opened = kit::open(&fs(sim), Path::new(&format!("/nodes/{node}"))).unwrap();
    let command = LogEntry {
        id: log_id(term, index),
        kind: EntryKind::Noop,
        time_ms: kit::TIME_MS + index,
        session: None,
        version: 0,
        data: bytes::Bytes::new(),
    };
    let entry = match members {
        Some(members) => {
            LogEntry { kind: EntryKind::Membership, data: members.encode(), ..command }
        }
        None => command,
    };
    let state =
        HardState { term: Term::new(term + 10), commit: LogIndex::new(10), ..HardState::default() };
    opened.log.append(GroupId::FIRST, Some(state), &[entry]).unwrap();
    opened.log.sync().unwrap();
}

/// In the log of 30 entries the cluster has five voters, in that of 12 four, in that of 7 three.
#[test]
fn nothing_is_lost_if_every_majority_has_a_survivor_in_it() {
    for (survivors, entries, of, needed, is_safe) in [
        (&[1, 2][..], 7, 3, 2, true),
        (&[1], 7, 3, 2, false),
        (&[1, 4], 12, 4, 3, true),
        (&[4], 12, 4, 3, false),
        (&[1, 4, 5], 30, 5, 3, true),
        (&[1, 4], 30, 5, 3, false),
        // Not a voter.
        (&[1, 9], 7, 3, 2, false),
    ] {
        let nodes: Vec<Old> = survivors.iter().map(|number| node(*number, entries, 1)).collect();
        let sim = disk(&nodes);
        let dirs: Vec<String> = survivors.iter().map(|it| format!("/nodes/{it}")).collect();
        let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
        let found = look(&sim, &dirs);
        let survive = survivors.iter().filter(|node| **node <= of as u64).count();
        assert_eq!(found.voters, [VoterSet { of, needed, survive }]);
        assert_eq!(found.nothing_is_lost(), is_safe, "{survivors:?} of {of}");
    }
}

/// A node whose log was repaired has lost what it had stored, unless another survivor has it.
#[test]
fn a_repaired_survivor_counts_only_if_another_one_has_what_it_had() {
    for (other, promised, survive) in
        [(7, log_id(3, 12), 1), (7, log_id(4, 7), 1), (7, log_id(3, 7), 2), (12, log_id(3, 12), 2)]
    {
        let sim = disk(&[node(1, other, 1), node(2, 6, 1)]);
        let engine =
            FileStorageEngine::new(Path::new("/nodes/2"), FileStorageOptions::default(), fs(&sim));
        let locks = engine.lock_stopped().unwrap();
        engine.set_repaired(&Repaired { at_ms: 1, promised }, &locks).unwrap();
        drop(locks);
        let found = look(&sim, &["/nodes/1", "/nodes/2"]);
        assert_eq!(found.voters[0].survive, survive, "{other}, {promised}");
        let holdings = found.survivors[1].holdings.as_ref().unwrap();
        assert_eq!((best(&found), holdings.promised), ("/nodes/1", Some(promised)));
    }
}

/// The joint configuration may have reached no other node: then the old voters alone decided.
#[test]
fn both_sets_of_a_joint_configuration_must_be_covered() {
    let sim = disk(&[node(1, 7, 7), node(2, 7, 7)]);
    let before = voters(3);
    let demoting = before.edited(&MemberChange::Demote(1)).unwrap().unwrap();
    let joint = demoting.joint(|_| true, Leavers::Go).unwrap();
    let joint = joint.following(&before, 3);
    assert!(joint.is_joint());
    append(&sim, 2, 8, 3, Some(&joint));
    let found = look(&sim, &["/nodes/1", "/nodes/2"]);
    assert_eq!(found.members.as_ref(), Some(&joint), "the newest configuration of all");
    let (two, three) =
        (VoterSet { of: 2, needed: 2, survive: 1 }, VoterSet { of: 3, needed: 2, survive: 2 });
    assert_eq!(found.voters, [two, three]);
    assert!(found.nothing_is_lost());
    let found = look(&sim, &["/nodes/2"]);
    assert_eq!(found.voters, [two, VoterSet { survive: 1, ..three }]);
    assert!(!found.nothing_is_lost(), "two old voters may have acknowledged a write");
}

#[test]
fn what_does_not_fit_is_named_and_not_taken() {
    let other = ClusterId([0xDD; 16]);
    let copy = Old { dir: "/nodes/copy".into(), ..node(1, 20, 9) };
    let stranger = Old { cluster: other, ..node(7, 30, 30) };
    let sim = disk(&[node(1, 12, 9), node(2, 12, 9), copy, stranger]);
    let found = look(&sim, &["/nodes/1", "/nodes/copy", "/nodes/7", "/nodes/2"]);
    assert_eq!(best(&found), "/nodes/copy", "the copy that has the most");
    let unfit: Vec<Option<&Unfit>> = found.survivors.iter().map(|it| it.unfit.as_ref()).collect();
    let [Some(Unfit::Copy { of }), None, Some(Unfit::OtherCluster { cluster, .. }), None] =
        unfit[..]
    else {
        panic!("{unfit:?}");
    };
    assert_eq!((of.to_str(), *cluster), (Some("/nodes/copy"), other));
    assert_eq!(found.voters, [VoterSet { of: 4, needed: 3, survive: 2 }]);
    // Damaged, in use, retired.
    let segment = node(2, 12, 9).oldest_segment(&fs(&sim));
    assert!(sim.flip_bit(&segment, 512 + 90, 1));
    let running = kit::open(&fs(&sim), Path::new("/nodes/7")).unwrap();
    let found = look(&sim, &["/nodes/2", "/nodes/7"]);
    let [Some(Unfit::Damaged { reason }), Some(Unfit::InUse { .. })] =
        [&found.survivors[0].unfit, &found.survivors[1].unfit]
    else {
        panic!("{found:?}");
    };
    assert!(reason.contains("offset 512"), "{reason}");
    assert!(found.best.is_none() && !found.nothing_is_lost());
    drop(running);
    let request = kit::RecoverRequest { data_dir: "/nodes/1".into(), ..kit::request() };
    let recovered = kit::run(&fs(&sim), &request).unwrap();
    let old = recovered.old_dir.to_str().unwrap();
    let found = look(&sim, &[old, "/nodes/1"]);
    let retired = found.survivors[0].retired().unwrap();
    assert_eq!(retired.cluster, recovered.cluster);
    assert_eq!(best(&found), "/nodes/1");
}

/// A node that was wiped, and joined again, acknowledged nothing with its first directory since.
#[test]
fn a_directory_that_the_cluster_has_replaced_does_not_count() {
    let sim = disk(&[node(1, 7, 7), node(2, 7, 7)]);
    let bound = voters(3).with_incarnation(NodeId::new(1).unwrap(), incarnation(77));
    append(&sim, 2, 8, 3, Some(&bound.following(&voters(3), 3)));
    let found = look(&sim, &["/nodes/1", "/nodes/2"]);
    assert!(
        matches!(&found.survivors[0].unfit, Some(Unfit::OtherDirectory { node }) if node.get() == 1)
    );
    assert_eq!(found.voters, [VoterSet { of: 3, needed: 2, survive: 1 }]);
}

#[test]
fn a_path_that_is_no_data_directory_is_an_error() {
    let sim = disk(&[node(1, 7, 7)]);
    let dirs = [PathBuf::from("/nodes/1"), PathBuf::from("/nodes")];
    let error = inspect(&fs(&sim), &dirs, Snapshots::Verify, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(error, Err(InspectError::NotADirectory { path }) if path == dirs[1]));
}
