//! What is stored is read back unchanged, through segments, supersedes, purges and restarts.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{
    GROUP, Picture, entries, entry, entry_with, hard_state, log_id, membership, open, roomy, small,
};
use d_engine_core::{EntryKind, GroupId, LogIndex};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{
    Alignment, FileStorageOptions, FsOp, LogEntry, MAX_PAYLOAD_BYTES, StorageError,
};

#[test]
fn a_new_directory_is_created_empty_and_keeps_its_identity() {
    let fs = SimFs::new();
    let first = open(&fs, &roomy()).unwrap();
    assert!(first.report.created);
    assert_eq!(Picture::of(&first), Picture::default());
    let identity = first.identity.clone();
    assert_eq!(identity.initial, membership());
    drop(first);
    let second = open(&fs, &roomy()).unwrap();
    assert!(!second.report.created);
    assert_eq!(second.identity, identity);
}

/// FAULTS row 1: term and vote are one record; with the entries of the same call they are one step.
#[test]
fn entries_hard_state_sessions_and_memberships_come_back() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    let mut stored = entries(1, 1..=4);
    stored.push(LogEntry {
        kind: EntryKind::Membership,
        data: membership().encode(),
        ..entry(1, 5)
    });
    stored.push(LogEntry { kind: EntryKind::Noop, data: bytes::Bytes::new(), ..entry(2, 6) });
    let state = hard_state(2, 3, 4);
    opened.log.append(GROUP, Some(state), &stored).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let opened = open(&fs, &roomy()).unwrap();
    let mut expected = Picture::default();
    expected.append(Some(state), &stored);
    assert_eq!(Picture::of(&opened), expected);
    assert_eq!(opened.recovered.memberships, [(LogIndex::new(5), membership().encode())]);
}

#[test]
fn a_conflicting_suffix_is_superseded_and_stays_so_over_restarts() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    for (term, indexes) in [(1, 1..=9), (2, 4..=5), (3, 5..=12), (4, 2..=2)] {
        let mut opened = open(&fs, &small()).unwrap();
        let mut stored = entries(term, indexes);
        if let Some(last) = stored.last_mut() {
            (last.kind, last.data) = (EntryKind::Membership, membership().encode());
        }
        opened.log.append(GROUP, Some(hard_state(term, 1, 0)), &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(Some(hard_state(term, 1, 0)), &stored);
        drop(opened);
        assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
    }
}

#[test]
fn a_suffix_may_be_superseded_before_it_was_synced() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    opened.log.append(GROUP, None, &entries(1, 1..=5)).unwrap();
    opened.log.append(GROUP, None, &entries(2, 3..=4)).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let found = Picture::of(&open(&fs, &roomy()).unwrap());
    let ids: Vec<_> = found.entries.values().map(|entry| entry.id).collect();
    assert_eq!(ids, [log_id(1, 1), log_id(1, 2), log_id(2, 3), log_id(2, 4)]);
}

#[test]
fn a_log_of_many_segments_comes_back() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut expected = Picture::default();
    for index in 1..=60 {
        let stored = [entry(1, index)];
        opened.log.append(GROUP, Some(hard_state(1, 2, index - 1)), &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(Some(hard_state(1, 2, index - 1)), &stored);
        if index % 7 == 0 {
            opened.log.idle().unwrap();
        }
    }
    drop(opened);
    let opened = open(&fs, &small()).unwrap();
    assert!(opened.report.segments > 8, "{:?}", opened.report);
    assert_eq!(opened.report.torn_bytes, 0);
    assert_eq!(Picture::of(&opened), expected);
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_larger_segment() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let stored = [entry(1, 1), entry_with(1, 2, vec![7; 20_000]), entry(1, 3)];
    let mut expected = Picture::default();
    for entry in stored {
        let stored = [entry];
        opened.log.append(GROUP, None, &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(None, &stored);
    }
    drop(opened);
    assert_eq!(Picture::of(&open(&fs, &small()).unwrap()), expected);
}

#[test]
fn a_reader_sees_synced_entries_only() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    let reader = opened.log.reader();
    opened.log.append(GROUP, None, &entries(1, 1..=3)).unwrap();
    let unsynced = reader.read(GROUP, LogIndex::new(1), LogIndex::new(1), usize::MAX);
    assert!(matches!(unsynced, Err(StorageError::Order(_))), "{unsynced:?}");
    opened.log.sync().unwrap();
    assert_eq!(
        reader.read(GROUP, LogIndex::new(1), LogIndex::new(3), usize::MAX).unwrap(),
        entries(1, 1..=3)
    );
    assert!(reader.read(GROUP, LogIndex::new(1), LogIndex::new(4), usize::MAX).is_err());
    assert!(reader.read(GROUP, LogIndex::new(0), LogIndex::new(1), usize::MAX).is_err());
}

#[test]
fn a_read_stops_at_its_limit_but_returns_one_entry_at_least() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let stored: Vec<_> =
        (1..=40).map(|index| entry_with(1, index, vec![index as u8; 300])).collect();
    for chunk in stored.chunks(3) {
        opened.log.append(GROUP, None, chunk).unwrap();
        opened.log.sync().unwrap();
    }
    let reader = opened.log.reader();
    let read =
        |first, max| reader.read(GROUP, LogIndex::new(first), LogIndex::new(40), max).unwrap();
    assert_eq!(read(1, usize::MAX), stored);
    assert_eq!(read(5, 0), stored[4..5]);
    let some = read(5, 3_100);
    assert_eq!(some, stored[4..4 + some.len()]);
    assert!(some.len() >= 8 && some.iter().map(|entry| entry.data.len()).sum::<usize>() <= 3_100);
}

#[test]
fn purging_removes_whole_segments_and_keeps_the_hard_state() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let state = hard_state(1, 2, 0);
    opened.log.append(GROUP, Some(state), &[]).unwrap();
    let mut expected = Picture { hard_state: state, ..Picture::default() };
    for index in 1..=50 {
        opened.log.append(GROUP, None, &[entry(1, index)]).unwrap();
        opened.log.sync().unwrap();
        expected.append(None, &[entry(1, index)]);
    }
    let before = common::segments(&fs).len();
    opened.log.purge(GROUP, log_id(1, 45)).unwrap();
    expected.purge(log_id(1, 45));
    assert!(common::segments(&fs).len() + 3 < before, "two of them are kept for reuse");
    let reader = opened.log.reader();
    assert!(reader.read(GROUP, LogIndex::new(45), LogIndex::new(46), usize::MAX).is_err());
    assert!(reader.read(GROUP, LogIndex::new(46), LogIndex::new(50), usize::MAX).is_ok());
    drop(opened);
    let mut opened = open(&fs, &small()).unwrap();
    assert_eq!(Picture::of(&opened), expected);
    opened.log.purge(GROUP, log_id(1, 50)).unwrap();
    expected.purge(log_id(1, 50));
    drop(opened);
    let mut opened = open(&fs, &small()).unwrap();
    assert_eq!(Picture::of(&opened), expected);
    opened.log.append(GROUP, None, &[entry(2, 51)]).unwrap();
    opened.log.sync().unwrap();
}

/// FAULTS row 32: a gap in the indexes is an error and never stored.
#[test]
fn the_order_of_the_log_is_enforced_before_anything_is_queued() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    let log = &mut opened.log;
    let refused = |result: Result<(), StorageError>| {
        assert!(matches!(result, Err(StorageError::Order(_))), "{result:?}")
    };
    refused(log.append(GROUP, None, &[entry(1, 2)]));
    refused(log.append(GROUP, Some(hard_state(9, 1, 0)), &[entry(1, 1), entry(1, 3)]));
    refused(log.append(GROUP, None, &[entry_with(1, 1, vec![0; MAX_PAYLOAD_BYTES + 1])]));
    log.append(GROUP, None, &entries(1, 1..=5)).unwrap();
    refused(log.purge(GROUP, log_id(1, 3)));
    log.sync().unwrap();
    refused(log.purge(GROUP, log_id(1, 6)));
    refused(log.purge(GROUP, log_id(2, 3)));
    log.purge(GROUP, log_id(1, 3)).unwrap();
    refused(log.append(GROUP, None, &[entry(2, 3)]));
    log.append(GROUP, None, &[entry(2, 4)]).unwrap();
    refused(log.purge(GROUP, log_id(1, 4)));
    log.sync().unwrap();
    drop(opened);
    let found = Picture::of(&open(&fs, &roomy()).unwrap());
    assert_eq!(found.hard_state, hard_state(0, 0, 0), "the refused call left no hard state");
    assert_eq!(found.last(), 4);
}

#[test]
fn one_sync_is_one_write_and_one_sync_of_the_file() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    opened.log.idle().unwrap();
    let before = d_engine_storage::Fs::counts(&fs);
    let stats = opened.log.stats();
    for index in 1..=5 {
        opened.log.append(GROUP, Some(hard_state(1, 1, index)), &[entry(1, index)]).unwrap();
    }
    opened.log.sync().unwrap();
    opened.log.sync().unwrap();
    let after = d_engine_storage::Fs::counts(&fs);
    assert_eq!(after.of(FsOp::Write) - before.of(FsOp::Write), 1);
    assert_eq!(after.of(FsOp::SyncData) - before.of(FsOp::SyncData), 1);
    assert_eq!(after.total() - before.total(), 2);
    assert_eq!(opened.log.stats().entries - stats.entries, 5);
    assert_eq!(opened.log.stats().groups - stats.groups, 1);
    assert_eq!(opened.log.stats().syncs - stats.syncs, 1);
}

#[test]
fn an_idle_log_writes_its_watermark_once_and_prepares_a_segment_once() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.append(GROUP, None, &[entry(1, 1)]).unwrap();
    opened.log.sync().unwrap();
    let groups = opened.log.stats().groups;
    for _ in 0..8 {
        opened.log.idle().unwrap();
    }
    assert_eq!(opened.log.stats().groups, groups + 1);
    let changes = |fs: &_| {
        let counts = d_engine_storage::Fs::counts(fs);
        [FsOp::Write, FsOp::SyncData, FsOp::SyncAll, FsOp::Open]
            .map(|operation| counts.of(operation))
    };
    let before = changes(&fs);
    opened.log.idle().unwrap();
    assert_eq!(changes(&fs), before);
    assert_eq!(common::segments(&fs).len(), 2);
}

#[test]
fn groups_share_a_directory_without_mixing() {
    let fs = SimFs::new();
    let other = GroupId::new(2).unwrap();
    let mut opened = open(&fs, &small()).unwrap();
    for index in 1..=20 {
        opened.log.append(GROUP, None, &[entry(1, index)]).unwrap();
        opened.log.append(other, Some(hard_state(7, 1, 0)), &[entry(7, index)]).unwrap();
        opened.log.sync().unwrap();
    }
    opened.log.purge(GROUP, log_id(1, 20)).unwrap();
    drop(opened);
    let opened = open(&fs, &small()).unwrap();
    assert_eq!(Picture::of(&opened).last(), 20);
    let read =
        opened.log.reader().read(other, LogIndex::new(1), LogIndex::new(20), usize::MAX).unwrap();
    assert_eq!(read, entries(7, 1..=20));
}

#[test]
fn segments_of_either_alignment_are_read_by_either() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    for (index, alignment) in
        [Alignment::Sector, Alignment::Page, Alignment::Sector].into_iter().enumerate()
    {
        let options = FileStorageOptions { alignment, ..roomy() };
        let mut opened = open(&fs, &options).unwrap();
        let stored = [entry(1, index as u64 + 1)];
        opened.log.append(GROUP, None, &stored).unwrap();
        opened.log.sync().unwrap();
        opened.log.idle().unwrap();
        expected.append(None, &stored);
        drop(opened);
        assert_eq!(Picture::of(&open(&fs, &options).unwrap()), expected);
    }
}

/// Entries that a purged entry had superseded do not reappear when their segments are removed, nor
/// when recovery has to write the superseding entry again.
#[test]
fn what_a_purged_entry_superseded_stays_superseded() {
    for restarts_before_purge in [false, true] {
        let fs = SimFs::new();
        let mut opened = open(&fs, &small()).unwrap();
        opened.log.append(GROUP, None, &entries(1, 1..=25)).unwrap();
        opened.log.sync().unwrap();
        // A segment that begins with an entry far after the one that stays.
        opened.log.append(GROUP, None, &entries(1, 26..=40)).unwrap();
        opened.log.sync().unwrap();
        opened.log.append(GROUP, None, &entries(2, 20..=24)).unwrap();
        opened.log.append(GROUP, None, &[entry(3, 10)]).unwrap();
        opened.log.sync().unwrap();
        if restarts_before_purge {
            drop(opened);
            opened = open(&fs, &small()).unwrap();
        }
        opened.log.purge(GROUP, log_id(3, 10)).unwrap();
        for _ in 0..3 {
            drop(opened);
            opened = open(&fs, &small()).unwrap();
            let expected = Picture { base: log_id(3, 10), ..Picture::default() };
            assert_eq!(Picture::of(&opened), expected);
            opened.log.append(GROUP, None, &[entry(3, 12)]).expect_err("entry 11 is missing");
        }
        opened.log.append(GROUP, None, &[entry(3, 11)]).unwrap();
        opened.log.sync().unwrap();
        assert_eq!(common::read_all(&*opened.log, log_id(3, 10), 1), [entry(3, 11)]);
    }
}

/// After a purge the log itself contains log time and members at its base; after a received
/// snapshot it does not.
#[test]
fn a_purged_log_knows_the_time_and_the_members_at_its_base() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let member = |index| LogEntry {
        kind: d_engine_core::EntryKind::Membership,
        data: common::membership().encode(),
        ..entry(1, index)
    };
    opened.log.append(GROUP, None, &entries(1, 1..=9)).unwrap();
    opened.log.append(GROUP, None, &[member(10)]).unwrap();
    opened.log.append(GROUP, None, &entries(1, 11..=30)).unwrap();
    opened.log.sync().unwrap();
    for (through, known) in [(5, false), (10, true), (20, true)] {
        opened.log.purge(GROUP, log_id(1, through)).unwrap();
        drop(opened);
        fs.crash(&mut |_| 0);
        opened = open(&fs, &small()).unwrap();
        let found = &opened.recovered;
        assert_eq!((found.base, found.base_time_ms), (log_id(1, through), Some(1_000 + through)));
        let members = known.then(|| common::membership().encode());
        assert_eq!(found.base_membership, members, "purged to {through}");
    }
    opened.log.install(GROUP, log_id(7, 90), d_engine_storage::LogSuffix::Drop).unwrap();
    opened.log.append(GROUP, None, &entries(7, 91..=95)).unwrap();
    opened.log.sync().unwrap();
    opened.log.purge(GROUP, log_id(7, 93)).unwrap();
    drop(opened);
    let found = open(&fs, &small()).unwrap().recovered;
    assert_eq!(
        (found.base_time_ms, found.base_membership),
        (None, None),
        "only the snapshot contains them"
    );
}

/// The counted size is the size of what is written, however often a log is opened.
#[test]
fn the_logs_size_is_counted_in_written_bytes() {
    let fs = SimFs::new();
    let options = d_engine_storage::FileStorageOptions::default();
    for _ in 0..36 {
        let mut opened = open(&fs, &options).unwrap();
        for _ in 0..3 {
            opened.log.idle().unwrap();
        }
    }
    let mut opened = open(&fs, &options).unwrap();
    opened.log.append(GROUP, None, &[entry_with(1, 1, vec![1; 100_000])]).unwrap();
    opened.log.sync().unwrap();
    let bytes = opened.log.stats().log_bytes;
    assert!((100_000..1 << 20).contains(&bytes), "{bytes}");
}
