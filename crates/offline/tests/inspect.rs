//! Inspection of real directories: whole, damaged, torn, and in use.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod kit;

use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;

use d_engine_core::LogIndex;
use d_engine_fs::{Fs as _, RealFs};
use d_engine_offline::inspect::{
    Directory, Found, InspectError, Loss, MembersFrom, Progress, Range, SnapshotState, Snapshots,
    Verdict,
};
use d_engine_storage::{FileStorageEngine, Incarnation, StorageEngine as _, StorageError};
use kit::{
    CLUSTER, Node, command, damage, entries, flip, log_id, members, membership_entry, shown,
};

#[test]
fn a_whole_directory_is_shown_as_it_was_written() {
    let node = Node::with_commands(60);
    let directory = node.inspect();
    let expected: Vec<_> = (1..=60).map(|index| command(1, index)).collect();
    assert_eq!(entries(&directory), expected);
    assert_eq!((damage(&directory).len(), directory.damaged()), (0, 0));
    assert_eq!(directory.verdict(), Verdict::Starts);
    let owner = directory.survey().owner().unwrap();
    assert_eq!((owner.cluster, owner.node.get()), (CLUSTER, 3));
    let log = directory.log();
    assert!(log.segments.len() > 2, "{:?}", log.segments);
    assert_eq!(log.segments[0].first, Some(LogIndex::new(1)));
    assert!(log.segments.iter().all(|it| it.groups > 0 && it.end <= it.len && it.damaged == 0));
    assert_eq!((log.first, log.last), (Some(log_id(1, 1)), Some(log_id(1, 60))));
    let state = log.hard_state.unwrap();
    assert_eq!((state.term.get(), state.commit.get()), (1, 56));
    assert!(!log.hard_state_may_be_older);
    let members = directory.members().unwrap();
    assert_eq!(members.from, MembersFrom::Identity);
    assert_eq!(members.membership, Ok(kit::members(3)));
}

#[test]
fn damage_in_the_middle_stands_in_its_place_and_names_the_entries_that_are_lost() {
    let node = Node::with_commands(60);
    let directory = node.inspect();
    let second = &directory.log().segments[1];
    let (path, first) = (second.path.clone(), second.first.unwrap());
    // The second group of the second segment.
    let stored = shown(&directory).into_iter().find_map(|found| match found {
        Found::Entry(stored) if stored.entry.id.index == first.plus(3) => Some(stored),
        _ => None,
    });
    let stored = stored.unwrap();
    flip(&path, stored.offset as usize + 50);

    let directory = node.inspect();
    let found = shown(&directory);
    let at = found.iter().position(|it| matches!(it, Found::Damage(_))).unwrap();
    let Found::Damage(lost) = &found[at] else { unreachable!() };
    assert_eq!(lost.loss, Loss::Entries { first: first.plus(3), last: first.plus(5) });
    assert_eq!((&lost.path, lost.offset / 512), (&path, stored.offset / 512));
    assert!(lost.what.contains("checksum"), "{}", lost.what);
    let Found::Entry(before) = &found[at - 1] else { panic!("{:?}", found[at - 1]) };
    let Found::Entry(after) = &found[at + 1] else { panic!("{:?}", found[at + 1]) };
    assert_eq!(before.entry.id.index, first.plus(2));
    assert_eq!(after.entry.id.index, first.plus(6));
    assert_eq!(entries(&directory).len(), 57);
    assert_eq!(directory.damaged(), 1);
    assert_eq!(directory.log().covered_by, Some(first.plus(5)));
    let Verdict::Refuses { reason, next } = directory.verdict() else { panic!() };
    let error = node.try_open(None).unwrap_err();
    assert_eq!(reason, error.to_string());
    assert!(next[0].contains("d-engine repair --data-dir"), "{next:?}");
    assert!(next[1].contains(&format!("I of {} or more", first.plus(5))), "{next:?}");
    // Whether a range is shown or not, the directory is damaged.
    let mut seen = 0;
    let range = Range { first: LogIndex::new(1), last: first };
    let visit = &mut |found| {
        seen += u64::from(matches!(found, Found::Entry(_)));
        ControlFlow::Continue(())
    };
    assert!(directory.entries(range, visit).unwrap().is_continue());
    assert_eq!(seen, first.get());
}

#[test]
fn a_snapshot_that_holds_the_damage_lets_the_node_start() {
    let node = Node::with_commands(60);
    let path = node.segments()[0].clone();
    flip(&path, 700);
    let covered = log_id(1, 40);
    let archive = node.take_snapshot(covered);
    let directory = node.inspect();
    assert_eq!(directory.snapshots()[0].state, SnapshotState::Whole);
    assert_eq!(directory.verdict(), Verdict::StartsAfter { snapshot: covered });
    assert_eq!(directory.damaged(), 1);
    // A damaged snapshot covers nothing.
    flip(&archive, fs::metadata(&archive).unwrap().len() as usize - 100);
    let directory = node.inspect();
    let SnapshotState::Damaged(places) = &directory.snapshots()[0].state else { panic!() };
    assert_eq!(places[0].chunk, Some(4), "{places:?}");
    assert_eq!(directory.damaged(), 2);
    assert!(matches!(directory.verdict(), Verdict::Refuses { .. }));
    // Unless nobody looks at its content.
    let unread = node.try_inspect(Snapshots::HeadersOnly).unwrap();
    assert_eq!(unread.snapshots()[0].state, SnapshotState::Unchecked);
}

#[test]
fn a_torn_tail_is_no_damage() {
    let node = Node::new();
    let mut opened = node.open();
    for index in [1, 4, 7] {
        node.append(
            &mut opened,
            &[command(1, index), command(1, index + 1), command(1, index + 2)],
        );
    }
    drop(opened);
    let path = node.segments()[0].clone();
    let content = fs::read(&path).unwrap();
    let last = content.iter().rposition(|byte| *byte != 0).unwrap();
    flip(&path, last);
    let directory = node.inspect();
    let torn = directory.log().torn.clone().unwrap();
    assert_eq!(torn.offset / 512, last as u64 / 512);
    assert_eq!((entries(&directory).len(), directory.damaged()), (6, 0));
    assert_eq!(directory.verdict(), Verdict::Starts);
    assert_eq!(node.open().report.torn_bytes, torn.bytes);
}

#[test]
fn entries_that_were_replaced_are_not_shown() {
    let node = Node::new();
    let mut opened = node.open();
    let written = [
        (1, 1..=6), // Entries 5 and 6 are replaced,
        (2, 5..=9), // and 7 to 9,
        (3, 7..=7), // and 7 once more.
        (4, 7..=20),
    ];
    for (term, indexes) in written {
        let group: Vec<_> = indexes.map(|index| command(term, index)).collect();
        node.append(&mut opened, &group);
    }
    drop(opened);
    let directory = node.inspect();
    let term = |index| match index {
        1..=4 => 1,
        5..=6 => 2,
        _ => 4,
    };
    let expected: Vec<_> = (1..=20).map(|index| command(term(index), index)).collect();
    assert_eq!(entries(&directory), expected);
    assert_eq!(directory.damaged(), 0);
}

#[test]
fn the_last_membership_that_counts_is_in_force() {
    let node = Node::new();
    let mut opened = node.open();
    node.append(&mut opened, &[command(1, 1), membership_entry(1, 2, &members(4))]);
    node.append(&mut opened, &[command(1, 3), membership_entry(1, 4, &members(5))]);
    let in_force = |directory: &Directory| {
        let known = directory.members().unwrap();
        (known.from, known.membership.clone().unwrap().members().len())
    };
    drop(opened);
    assert_eq!(in_force(&node.inspect()), (MembersFrom::Entry(LogIndex::new(4)), 5));
    // The second one is replaced by a command.
    let mut opened = node.open();
    node.append(&mut opened, &[command(2, 4), command(2, 5)]);
    drop(opened);
    assert_eq!(in_force(&node.inspect()), (MembersFrom::Entry(LogIndex::new(2)), 4));
    // The first one is purged; the record of the log's beginning still knows it.
    let mut opened = node.open();
    opened.log.purge(d_engine_core::GroupId::FIRST, log_id(1, 3)).unwrap();
    drop(opened);
    node.take_snapshot(log_id(1, 3));
    let directory = node.inspect();
    assert_eq!(in_force(&directory), (MembersFrom::LogBeginning, 4));
    assert_eq!(directory.verdict(), Verdict::Starts);
    assert_eq!(entries(&directory).len(), 2);
}

#[test]
fn a_purged_log_without_an_intact_snapshot_cannot_be_rebuilt() {
    let node = Node::with_commands(60);
    let mut opened = node.open();
    opened.log.purge(d_engine_core::GroupId::FIRST, log_id(1, 30)).unwrap();
    drop(opened);
    let Verdict::Refuses { reason, next } = node.inspect().verdict() else { panic!() };
    assert!(reason.contains("begins after entry 30, and there is no intact snapshot"), "{reason}");
    assert!(next[0].contains("--from HOST:PORT"), "{next:?}");
    assert!(next[1].contains("an I of 30 or more"), "{next:?}");
    node.take_snapshot(log_id(1, 29));
    let Verdict::Refuses { reason, .. } = node.inspect().verdict() else { panic!() };
    assert!(reason.contains("ends at entry 29"), "{reason}");
    node.take_snapshot(log_id(1, 30));
    assert_eq!(node.inspect().verdict(), Verdict::Starts);
}

#[test]
fn a_lost_identity_and_a_lost_beginning_are_named_and_the_log_is_still_read() {
    let node = Node::with_commands(30);
    for name in ["identity.meta", "identity.meta.2", "log.meta", "log.meta.2"] {
        flip(&node.dir.join(name), 30);
    }
    let directory = node.inspect();
    assert!(directory.survey().identity().is_none());
    assert_eq!(directory.survey().owner().unwrap().cluster, CLUSTER);
    assert_eq!(entries(&directory).len(), 30);
    assert_eq!(directory.log().base, None);
    let lost: Vec<_> = directory.survey().damage().iter().map(|it| it.loss).collect();
    assert_eq!(lost, [Loss::Record, Loss::Record]);
    let Verdict::Refuses { reason, .. } = directory.verdict() else { panic!() };
    assert_eq!(reason, node.try_open(None).unwrap_err().to_string());
}

#[test]
fn one_damaged_copy_is_damage_that_a_start_repairs() {
    let node = Node::with_commands(30);
    flip(&node.dir.join("identity.meta"), 30);
    flip(&node.dir.join("log.meta.2"), 30);
    let directory = node.inspect();
    let lost: Vec<_> = directory.survey().damage().iter().map(|it| it.loss).collect();
    assert_eq!(lost, [Loss::Copy, Loss::Copy]);
    assert_eq!((directory.damaged(), directory.verdict()), (2, Verdict::Starts));
    assert_eq!(node.open().report.mended.len(), 2);
    assert_eq!(node.inspect().damaged(), 0);
}

#[test]
fn a_directory_in_use_is_read_with_a_warning() {
    let node = Node::with_commands(30);
    let opened = node.open();
    let directory = node.inspect();
    let holder = format!("process {}", std::process::id());
    assert_eq!(directory.survey().holder(), Some(holder.as_str()));
    assert_eq!(directory.verdict(), Verdict::InUse { holder });
    assert_eq!(entries(&directory).len(), 30);
    drop(opened);
    assert_eq!(node.inspect().verdict(), Verdict::Starts);
}

#[test]
fn a_directory_that_only_may_be_read_is_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let node = Node::with_commands(10);
    let read_only = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for path in node.segments() {
        read_only(&path, 0o400);
    }
    read_only(&node.dir.join("log"), 0o500);
    read_only(&node.dir, 0o500);
    let directory = node.inspect();
    assert_eq!(entries(&directory).len(), 10);
    read_only(&node.dir, 0o700);
    read_only(&node.dir.join("log"), 0o700);
}

#[test]
fn a_directory_that_is_reserved_belongs_to_a_node_that_is_about_to_join() {
    let node = Node::new();
    let engine = FileStorageEngine::at(&node.dir);
    drop(engine.reserve(Incarnation([7; 16])).unwrap());
    let directory = node.inspect();
    assert_eq!(directory.survey().reserved(), Some(Incarnation([7; 16])));
    assert_eq!((directory.verdict(), directory.damaged()), (Verdict::Joins, 0));
}

#[test]
fn what_is_no_data_directory_is_refused_and_not_created() {
    let node = Node::new();
    let missing = node.try_inspect_missing();
    assert!(matches!(missing, InspectError::Directory(StorageError::Io { .. })), "{missing}");
    assert!(!node.dir.exists());
    fs::create_dir(&node.dir).unwrap();
    fs::write(node.dir.join("notes.txt"), "hello").unwrap();
    let empty = node.try_inspect(Snapshots::Verify).unwrap_err();
    assert!(matches!(empty, InspectError::NotADirectory { .. }), "{empty}");
    assert!(empty.to_string().contains("data_dir"), "{empty}");
}

impl Node {
    fn try_inspect_missing(&self) -> InspectError {
        let go_on = &mut |_| ControlFlow::Continue(());
        Directory::read(Arc::new(RealFs::new()), &self.dir, Snapshots::Verify, go_on).unwrap_err()
    }
}

#[test]
fn snapshots_of_others_and_unfinished_ones_are_told_apart() {
    let node = Node::with_commands(30);
    let archive = node.take_snapshot(log_id(1, 20));
    let snapshots = node.dir.join("snapshots");
    fs::copy(&archive, snapshots.join("snap-1-25.snap")).unwrap();
    fs::write(snapshots.join("snap-1-28.snap.tmp"), "half").unwrap();
    let directory = node.inspect();
    let mut states = directory.snapshots().iter().map(|it| &it.state);
    let renamed = states.find(|it| matches!(it, SnapshotState::Unusable(_))).unwrap();
    let SnapshotState::Unusable(reason) = renamed else { unreachable!() };
    assert!(reason.contains("requires the name snap-1-20.snap"), "{reason}");
    assert_eq!(directory.leftovers(), ["snap-1-28.snap.tmp"]);
    assert_eq!(directory.damaged(), 0);
}

#[test]
fn the_caller_learns_what_was_read_and_can_stop_it() {
    let node = Node::with_commands(60);
    let archive = node.take_snapshot(log_id(1, 20));
    let (mut log, mut snapshot) = (0, 0);
    let fs = Arc::new(RealFs::new());
    let count = &mut |progress| {
        match progress {
            Progress::Log(bytes) => log += bytes,
            Progress::Snapshot(bytes) => snapshot += bytes,
        }
        ControlFlow::Continue(())
    };
    let directory = Directory::read(fs.clone(), &node.dir, Snapshots::Verify, count).unwrap();
    let end: u64 = directory.log().segments.iter().map(|it| it.end - 512).sum();
    assert_eq!(log, end);
    assert!(snapshot > 4_500 && snapshot < fs::metadata(&archive).unwrap().len());
    let stop = &mut |_| ControlFlow::Break(());
    let stopped = Directory::read(fs.clone(), &node.dir, Snapshots::HeadersOnly, stop);
    assert!(matches!(stopped, Err(InspectError::Stopped)));
    assert_eq!(fs.lock_holder(&node.dir.join("LOCK")).unwrap(), None);
}
