//! The starting position of a node: each row of the table at the head of `restore.rs`.
#![allow(clippy::unwrap_used)]

mod recording;

use std::sync::Arc;

use d_engine_core::{EntryKind, Term};
use d_engine_replica::{ApplyJob, ApplySource, Never, SnapshotMetadata, StopReason};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{FullSpeed, SnapshotOptions, SnapshotStore};
use d_engine_storage::{Admission, Fs, FsOp, LogEntry, MemberChange};
use recording::node::{
    Node, command, damage, damage_content, leader_with_snapshot, now, purge, send, store,
};
use recording::{Ground, Manner, Recording, at, entry, id};

/// A node that has applied six entries, with snapshots at 2 and 4.
fn ground_with_snapshots(machine: Recording) -> Ground {
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    for (first, last) in [(1, 2), (3, 4)] {
        node.commit(first, last);
        node.take_snapshot();
    }
    node.commit(5, 6);
    let Node { ground, .. } = node;
    ground
}

fn start(ground: Ground, machine: Recording) -> Result<Node, StopReason> {
    Node::start(ground, machine, Never)
}

fn refusal(ground: Ground, machine: Recording) -> String {
    let stopped = machine.calls.clone();
    let refused = start(ground, machine).map(|_| ()).unwrap_err().to_string();
    assert_eq!(stopped.count("stop"), 1, "it was started, so it is stopped");
    refused
}

#[test]
fn a_rebuilt_machine_gets_the_newest_snapshot_and_the_log_from_there() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 4);
    let node = start(ground.again(), Recording::default()).unwrap();
    let expected = [
        "bind",
        "start",
        "last_applied",
        "reset",
        "apply_snapshot_from_file 4",
        "update_last_applied 4",
        "persist_last_applied 4",
        "flush",
        "update_last_snapshot_metadata 4",
        "persist_last_snapshot_metadata 4",
    ];
    assert_eq!(node.machine.calls.take()[..10], expected);
    assert_eq!((node.machine.numbers(), node.start_position.applied.get()), (vec![1, 2, 3, 4], 4));
    assert_eq!((node.start_position.covered.get(), node.start_position.time_ms), (4, 1_004));
    assert_eq!(node.start_position.membership.as_ref().unwrap().members().len(), 1);
}

#[test]
fn a_damaged_snapshot_is_passed_over_while_the_log_reaches_to_the_one_before_it() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 2);
    let newest = ground.store.newest().unwrap();
    damage(&ground, &newest);
    let node = start(ground.again(), Recording::default()).unwrap();
    assert_eq!(node.machine.calls.with("apply_snapshot_from_file"), ["2"]);
    assert_eq!((node.machine.numbers(), node.start_position.applied.get()), (vec![1, 2], 2));
}

#[test]
fn entries_that_are_gone_are_named_and_nothing_is_started_without_them() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 4);
    let newest = ground.store.newest().unwrap();
    damage(&ground, &newest);
    let refused = refusal(ground.again(), Recording::default());
    assert!(refused.contains("begins after index 4 of term 1"), "{refused}");
    assert!(
        refused.contains("checksum") && refused.contains("d-engine repair --data-dir DIR --from"),
        "{refused}"
    );
}

#[test]
fn a_durable_machine_inside_the_log_needs_no_snapshot() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 4);
    let node = start(ground.again(), Recording::durable_at(at(1, 5))).unwrap();
    assert_eq!(node.machine.calls.count("apply_snapshot_from_file"), 0);
    assert_eq!(node.machine.calls.count("reset"), 0);
    assert_eq!(node.start_position.applied.get(), 5);
    assert_eq!(
        node.start_position.time_ms, 1_004,
        "log time at the log's base is that of the snapshot"
    );
}

/// The log itself records its base: no snapshot has to be read for it.
#[test]
fn a_durable_machine_inside_a_purged_log_starts_without_any_usable_snapshot() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 4);
    for entry in std::fs::read_dir(ground.dir.path().join("data/snapshots")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"flipped").unwrap();
    }
    let node = start(ground.again(), Recording::durable_at(at(1, 5))).unwrap();
    assert_eq!((node.start_position.applied.get(), node.start_position.time_ms), (5, 1_004));
}

/// A log that begins after a received snapshot records neither time nor membership: the snapshot
/// does.
#[test]
fn a_durable_machine_behind_a_received_snapshot_gets_its_time_and_members() {
    let (leader, received) = leader_with_snapshot(9);
    let ground = ground_with_snapshots(Recording::default());
    send(&leader, &received, &ground.store);
    let mut node = start(ground.again(), Recording::durable_at(at(1, 6))).unwrap();
    node.commit(10, 11);
    let Node { ground, .. } = node;
    let node = start(ground.again(), Recording::durable_at(at(1, 10))).unwrap();
    assert_eq!(node.machine.calls.count("apply_snapshot_from_file"), 0);
    assert_eq!((node.start_position.applied.get(), node.start_position.time_ms), (10, 1_009));
    assert!(node.start_position.membership.is_some());
}

/// A full disk, or a process without file handles, does not mean that the snapshot is damaged: it
/// stays the newest.
#[test]
fn a_snapshot_that_cannot_be_unpacked_is_not_taken_for_a_damaged_one() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 2);
    std::fs::write(ground.dir.path().join("data/snapshots/unpacked"), b"in the way").unwrap();
    let refused = refusal(ground.again(), Recording::default());
    assert!(refused.contains("could not be unpacked") || refused.contains("unpacked"), "{refused}");
}

#[test]
fn a_durable_machine_before_the_log_gets_a_snapshot() {
    let mut ground = ground_with_snapshots(Recording::default());
    purge(&mut ground, 4);
    let node = start(ground.again(), Recording::durable_at(at(1, 3))).unwrap();
    assert_eq!(node.machine.calls.with("apply_snapshot_from_file"), ["4"]);
    assert_eq!(node.machine.calls.count("reset"), 1, "its old state is of no use");
    assert_eq!(node.machine.numbers(), [1, 2, 3, 4]);
}

#[test]
fn a_durable_machine_that_is_empty_beside_a_snapshot_gets_it() {
    let ground = ground_with_snapshots(Recording::default());
    let node = start(ground.again(), Recording::durable()).unwrap();
    assert_eq!(node.machine.calls.with("apply_snapshot_from_file"), ["4"]);
    assert_eq!(node.start_position.applied.get(), 4);
}

/// An install has begun: the snapshot is there, and the log is still the old one.
#[test]
fn an_install_that_was_cut_short_is_finished() {
    for machine in [Recording::default(), Recording::durable_at(at(1, 6))] {
        let (leader, received) = leader_with_snapshot(9);
        let ground = ground_with_snapshots(Recording::default());
        send(&leader, &received, &ground.store);
        let mut node = start(ground.again(), machine).unwrap();
        assert_eq!(node.machine.calls.with("apply_snapshot_from_file"), ["9"]);
        assert_eq!((node.machine.numbers().len(), node.start_position.applied.get()), (9, 9));
        assert_eq!(node.ground.opened.recovered.base, id(1, 9));
        assert!(node.ground.opened.recovered.entries.is_empty());
        // The log is consistent with it, now and after the next start, and continues after it.
        node.commit(10, 11);
        let ground = node.ground.again();
        assert_eq!(ground.opened.recovered.base, id(1, 9));
        let node = start(ground, Recording::default()).unwrap();
        assert_eq!(node.start_position.applied.get(), 9);
        assert_eq!(node.ground.opened.recovered.entries.len(), 2);
    }
}

/// The log has other entries at the snapshot's end: the conflicting suffix is dropped, and the term
/// is kept.
#[test]
fn a_suffix_that_conflicts_with_a_received_snapshot_is_dropped_and_a_matching_one_is_kept() {
    let (leader, received) = leader_with_snapshot(9);
    let mut ground = Ground::new();
    let of_term_2 = |index| LogEntry { id: id(2, index), ..entry(index, EntryKind::Command, 99) };
    let entries: Vec<LogEntry> = (1..=5).map(command).chain((6..=12).map(of_term_2)).collect();
    store(&mut ground, 2, &entries);
    send(&leader, &received, &ground.store);
    let node = start(ground.again(), Recording::default()).unwrap();
    assert_eq!(node.ground.opened.recovered.base, id(1, 9));
    assert!(node.ground.opened.recovered.entries.is_empty(), "entry 10 followed another entry 9");
    assert_eq!(node.ground.opened.recovered.hard_state.term, Term::new(2));

    let mut ground = Ground::new();
    let entries: Vec<LogEntry> = (1..=12).map(command).collect();
    store(&mut ground, 1, &entries);
    send(&leader, &received, &ground.store);
    let node = start(ground.again(), Recording::default()).unwrap();
    assert_eq!(node.start_position.applied.get(), 9);
    assert_eq!(node.ground.opened.recovered.entries.last().unwrap().id, id(1, 12));
}

/// Seed 6374: the log begins after one received snapshot, and a later one with later members was
/// received and is damaged.
#[test]
fn the_members_are_those_of_the_snapshot_at_the_logs_base() {
    let (mut leader, first) = leader_with_snapshot(2);
    let before = first.header.facts.membership.clone();
    let later = before.edited(&MemberChange::Admit(Admission::Invited)).unwrap().unwrap();
    let later = later.following(&before, 1);
    let members = LogEntry { data: later.encode(), ..entry(3, EntryKind::Membership, 0) };
    store(&mut leader.ground, 1, std::slice::from_ref(&members));
    let source = ApplySource::Entries(vec![members]);
    now(leader.worker.run(ApplyJob { source, responders: Vec::new(), skip: None })).unwrap();
    let second = leader.take_snapshot();
    assert_eq!(second.header.facts.membership, later);

    let machine = Recording::durable();
    let ground = Ground::new();
    send(&leader, &first, &ground.store);
    let node = start(ground.again(), machine.again()).unwrap();
    assert_eq!(node.ground.opened.recovered.base, id(1, 2));
    let Node { ground, .. } = node;
    send(&leader, &second, &ground.store);
    damage_content(&ground, &second);
    let ground = ground.again();
    let listed: Vec<_> = ground.store.list().iter().map(|info| info.last_included()).collect();
    assert_eq!(listed, [id(1, 3), id(1, 2)], "the header is whole");
    let node = start(ground, machine).unwrap();
    assert_eq!(node.ground.opened.recovered.base, id(1, 2));
    assert_eq!(node.start_position.membership, Some(before));
}

#[test]
fn a_node_whose_term_is_behind_a_snapshots_takes_it_over() {
    let (leader, received) = leader_with_snapshot(9);
    let ground = Ground::new();
    assert_eq!(ground.opened.recovered.hard_state.term, Term::new(0));
    send(&leader, &received, &ground.store);
    let node = start(ground.again(), Recording::default()).unwrap();
    assert_eq!(node.ground.opened.recovered.hard_state.term, Term::new(1));
    let ground = node.ground.again();
    assert_eq!(ground.opened.recovered.hard_state.term, Term::new(1), "on the disk too");
}

/// A snapshot of a newer program's state machine is not damaged, and this program cannot use it.
#[test]
fn a_snapshot_of_a_newer_format_is_refused_with_both_numbers() {
    let newer = Manner { format: 3, ..Manner::default() };
    let mut ground = ground_with_snapshots(Recording::with(newer));
    assert_eq!(ground.store.list().len(), 2);
    purge(&mut ground, 4);
    // `Ground` opens for a machine of format 0.
    let refused = refusal(ground.again(), Recording::default());
    assert!(refused.contains("version 3") && refused.contains("up to 0"), "{refused}");
}

/// The machine was flushed before the snapshot was reported to it, so it has lost data that it
/// should not have lost.
#[test]
fn a_durable_machine_that_stands_before_its_own_snapshot_is_refused() {
    let ground = ground_with_snapshots(Recording::durable());
    let machine = Recording::durable_at(at(1, 3));
    let meta = SnapshotMetadata::new(at(1, 4), [0; 32]);
    machine.held().snapshot = Some(meta);
    let refused = refusal(ground, machine);
    assert!(refused.contains("index 3") && refused.contains("index 4"), "{refused}");
    assert!(refused.contains("remove the state machine's files"), "{refused}");
}

#[test]
fn a_durable_machine_that_contradicts_its_log_is_refused() {
    let ground = ground_with_snapshots(Recording::default());
    let refused = refusal(ground.again(), Recording::durable_at(at(1, 7)));
    assert!(refused.contains("index 7") && refused.contains("index 6"), "{refused}");
}

/// The files belong to another node, or to this one before its data directory was wiped.
#[test]
fn a_machine_whose_files_are_bound_to_another_history_is_not_started() {
    let machine = Recording::durable();
    let node = start(Ground::new(), machine.again()).unwrap();
    let Node { ground, .. } = node;
    drop(start(ground.again(), machine.again()).unwrap());
    let elsewhere = Ground::new_with_incarnation(9);
    machine.calls.clear();
    let refused = start(elsewhere, machine.again()).map(|_| ()).unwrap_err().to_string();
    assert!(
        refused.contains("incarnation 09090909")
            && refused.contains("remove the state machine's files"),
        "{refused}"
    );
    assert_eq!((machine.calls.count("start"), machine.calls.count("stop")), (0, 0));
}

/// Otherwise a machine whose author forgot `Durable` would silently lose its state at every start.
#[test]
fn a_machine_that_is_rebuilt_and_stands_somewhere_is_refused_with_the_advice() {
    let machine = Recording::default();
    machine.held().last = at(1, 7);
    let refused = refusal(Ground::new(), machine.clone());
    assert!(refused.contains("index 7") && refused.contains("Durability::Durable"), "{refused}");
    assert_eq!(machine.calls.count("reset"), 0, "its state is unchanged");
}

/// The machine is reset before it receives the snapshot; an empty one needs no reset.
#[test]
fn a_durable_machine_is_reset_before_it_is_filled_anew() {
    let machine = Recording::durable();
    let mut ground = ground_with_snapshots(machine.again());
    purge(&mut ground, 4);
    let mut held = machine.held();
    (held.last, held.snapshot) = (at(1, 1), None);
    drop(held);
    machine.calls.clear();
    let node = start(ground.again(), machine.again()).unwrap();
    assert!(machine.calls.first("reset") < machine.calls.first("apply_snapshot_from_file 4"));
    assert_eq!(machine.calls.count("reset"), 1);
    let Node { ground, .. } = node;
    let binding = machine.held().binding;
    *machine.held() = recording::Held { binding, ..recording::Held::default() };
    machine.calls.clear();
    start(ground.again(), machine.again()).unwrap();
    assert_eq!(
        (machine.calls.count("apply_snapshot_from_file"), machine.calls.count("reset")),
        (1, 0)
    );
}

/// The membership with node 1 bound to its incarnation, in an entry of the log.
fn bound_at(index: u64) -> LogEntry {
    let member = d_engine_storage::Member {
        node: 1,
        peer_addr: "peer:1".to_owned(),
        client_addr: String::new(),
        role: d_engine_storage::MemberRole::Voter,
        incarnation: Some(d_engine_storage::Incarnation([2; 16])),
    };
    let data = d_engine_storage::Membership::new([member]).unwrap().encode();
    LogEntry { data, ..entry(index, EntryKind::Membership, 0) }
}

fn is_bound(membership: &d_engine_storage::Membership) -> bool {
    membership.members().iter().all(|member| member.incarnation.is_some())
}

/// Row 51: incarnations that were bound in the log are in the next snapshot, and after an install
/// in all later ones.
#[test]
fn bound_directories_are_in_every_snapshot_from_then_on() {
    for machine in [Recording::default(), Recording::durable()] {
        let mut node = start(Ground::new(), machine).unwrap();
        let bound = bound_at(1);
        store(&mut node.ground, 1, std::slice::from_ref(&bound));
        let job = ApplyJob {
            source: ApplySource::Entries(vec![bound]),
            responders: Vec::new(),
            skip: None,
        };
        now(node.worker.run(job)).unwrap();
        node.commit(2, 3);
        let info = node.take_snapshot();
        assert!(is_bound(&info.header.facts.membership), "in the header");
        node.commit(4, 4);
        let machine = node.machine.again();
        let Node { ground, .. } = node;
        let mut node = start(ground.again(), machine).unwrap();
        if node.start_position.applied.get() < 4 {
            // The entries after the snapshot come from the log again.
            let (first, last) =
                (node.start_position.applied.next(), d_engine_core::LogIndex::new(4));
            let job = ApplyJob {
                source: ApplySource::Stored(first, last),
                responders: Vec::new(),
                skip: None,
            };
            now(node.worker.run(job)).unwrap();
        }
        node.commit(5, 5);
        assert!(is_bound(&node.take_snapshot().header.facts.membership), "after a restart");
        purge(&mut node.ground, 5);
        let machine = node.machine.again();
        let Node { ground, .. } = node;
        let mut node = start(ground.again(), machine).unwrap();
        assert!(
            is_bound(node.start_position.membership.as_ref().unwrap()),
            "after a purge and a restart"
        );
        node.commit(6, 6);
        let last = node.take_snapshot();
        assert!(is_bound(&last.header.facts.membership), "after a purge");
        let mut other = start(Ground::new(), Recording::default()).unwrap();
        send(&node, &last, &other.ground.store);
        other.install(at(1, 6)).unwrap();
        let job = ApplyJob {
            source: ApplySource::Entries(vec![command(7)]),
            responders: Vec::new(),
            skip: None,
        };
        now(other.worker.run(job)).unwrap();
        assert!(is_bound(&other.take_snapshot().header.facts.membership), "after an install");
    }
}

/// Log time continues from the time at which the log was purged: it must not restart at zero.
#[test]
fn log_time_does_not_go_back_over_a_purge_and_a_restart() {
    let machine = Recording::durable();
    let mut ground = ground_with_snapshots(machine.again());
    purge(&mut ground, 4);
    let mut node = start(ground.again(), machine.again()).unwrap();
    assert_eq!((node.start_position.applied.get(), node.start_position.time_ms), (6, 1_004));
    node.commit(7, 7);
    node.take_snapshot();
    let Node { mut ground, .. } = node;
    purge(&mut ground, 7);
    let mut node = start(ground.again(), machine.again()).unwrap();
    assert_eq!(node.start_position.time_ms, 1_007, "the log time of the snapshot");
    let mut early = command(8);
    early.time_ms = 1;
    store(&mut node.ground, 1, std::slice::from_ref(&early));
    let job =
        ApplyJob { source: ApplySource::Entries(vec![early]), responders: Vec::new(), skip: None };
    now(node.worker.run(job)).unwrap();
    assert_eq!(node.take_snapshot().header.facts.time_ms, 1_007);
}

/// A snapshot store on its own disk.
fn with_simulated_snapshots(ground: Ground, reserve_bytes: u64) -> (Ground, SimFs) {
    let fs = SimFs::new();
    let identity = &ground.opened.identity;
    let options =
        SnapshotOptions { reserve_bytes, ..SnapshotOptions::new(identity.cluster, identity.group) };
    let (store, _) =
        SnapshotStore::open(Arc::new(fs.clone()), "/snapshots".as_ref(), options).unwrap();
    (Ground { store, ..ground }, fs)
}

/// FINDINGS D2: the size of a first snapshot is unknown; it is abandoned while there is still space
/// for the log.
#[test]
fn a_snapshot_that_does_not_fit_is_given_up_while_it_is_written() {
    let Node { ground, .. } = start(Ground::new(), Recording::default()).unwrap();
    let (ground, fs) = with_simulated_snapshots(ground, 1 << 20);
    let machine = Recording::with(Manner { view_ahead_by: Some(0), ..Manner::default() });
    let mut node = start(ground, machine).unwrap();
    node.commit(1, 4);
    let task = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap()
        .unwrap();
    fs.set_free_bytes(Some((1 << 20) - 1));
    let told = task.build(&node.ground.store, &mut FullSpeed).unwrap_err().to_string();
    assert!(told.contains("make space"), "{told}");
    assert!(
        Fs::list(&fs, "/snapshots/staging".as_ref()).unwrap_or_default().is_empty(),
        "its files are removed"
    );
}

/// FINDINGS D3, D4: the snapshot has replaced the log already, so a node without space for the
/// unpacked files waits and does not stop.
#[test]
fn an_install_waits_for_room() {
    let (leader, info) = leader_with_snapshot(4);
    let Node { ground, .. } = start(Ground::new(), Recording::default()).unwrap();
    let (full, fs) = with_simulated_snapshots(ground, 0);
    let mut node = start(full, Recording::default()).unwrap();
    send(&leader, &info, &node.ground.store);
    let job =
        ApplyJob { source: ApplySource::Snapshot(at(1, 4)), responders: Vec::new(), skip: None };
    fs.set_capacity(Some(fs.used_bytes()));
    // First the check for space fails; then it passes, and the space is used up meanwhile.
    for (claimed, expected) in
        [(None, "make space"), (Some(1 << 30), "No space"), (None, "make space")]
    {
        fs.set_free_bytes(claimed);
        let waits = node.worker.unpack(&job).unwrap();
        assert!(waits.as_ref().is_some_and(|why| why.contains(expected)), "{waits:?}");
    }
    fs.set_capacity(None);
    fs.set_max_open(Some(0));
    let waits = node.worker.unpack(&job).unwrap();
    assert!(waits.as_ref().is_some_and(|why| why.contains("Too many open files")), "{waits:?}");
    fs.set_max_open(None);
    assert_eq!(node.worker.unpack(&job).unwrap(), None);
    let unpacked = Fs::counts(&fs).of(FsOp::Open);
    now(node.worker.run(job)).ok();
    let opened_since = Fs::counts(&fs).of(FsOp::Open) - unpacked;
    assert_eq!(opened_since, 0, "it is unpacked once");
}

/// A node whose state machine has no space to begin with is started again and again. The unpacked
/// files of its snapshot do not stay on the full disk.
#[test]
fn a_start_without_room_for_the_unpacked_files_leaves_none() {
    let (leader, info) = leader_with_snapshot(4);
    let Node { ground, .. } = start(Ground::new(), Recording::default()).unwrap();
    let (full, fs) = with_simulated_snapshots(ground, 0);
    send(&leader, &info, &full.store);
    let before = fs.used_bytes();
    let machine = Recording::default();
    machine.is_full.store(true, std::sync::atomic::Ordering::Relaxed);
    let refused = refusal(full, machine);
    assert!(refused.contains("reset"), "{refused}");
    assert_eq!(fs.used_bytes(), before, "files stay behind");
    assert!(Fs::kind(&fs, "/snapshots/unpacked".as_ref()).is_err());
}
