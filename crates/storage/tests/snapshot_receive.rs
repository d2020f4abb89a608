//! A snapshot that is being received: interrupted, resumed, corrupted, offered by the wrong node.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod snapshot_kit;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use d_engine_core::GroupId;
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::snapshot::{
    FullSpeed, Health, Offer, Receiver, SnapshotArchive, SnapshotError, SnapshotOptions,
    SnapshotStore,
};
use d_engine_storage::{ClusterId, Fs, FsOp};
use snapshot_kit::{
    DIR, assert_unpacks, log_id, log_ids, names, open, options, path_of, take, with_content,
};

const NO_LIMIT: u64 = u64::MAX;

/// Returns the archive of another node.
fn sent(last_included: (u64, u64)) -> SnapshotArchive {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(last_included.0, last_included.1)).unwrap();
    store.open_archive(log_id(last_included.0, last_included.1)).unwrap()
}

/// Sends pieces of `size` bytes from the receiver's position up to `end`.
fn send(
    archive: &SnapshotArchive,
    receiver: &mut Receiver,
    size: usize,
    end: u64,
) -> Result<(), SnapshotError> {
    while receiver.received() < end {
        let piece = archive.read_at(receiver.received(), size)?;
        receiver.write(piece.offset, &piece.bytes, piece.crc)?;
    }
    Ok(())
}

fn receive(store: &SnapshotStore, archive: &SnapshotArchive) -> Result<Receiver, SnapshotError> {
    store.receive(Offer::from(archive), NO_LIMIT, &mut FullSpeed)
}

#[test]
fn a_snapshot_arrives_whole_whatever_the_pieces() {
    let archive = sent((2, 9));
    for size in [1, 7, 512, 708, 100_000] {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let mut receiver = receive(&store, &archive).unwrap();
        send(&archive, &mut receiver, size, archive.len()).unwrap();
        let info = receiver.finish(&mut FullSpeed).unwrap();
        assert_eq!(
            (info.last_included(), info.health, info.sha256),
            (log_id(2, 9), Health::Whole, archive.sha256())
        );
        fs.crash(&mut |_| 0);
        let (store, _) = open(&fs);
        assert_eq!(names(&fs), ["snap-2-9.snap"]);
        assert_unpacks(&fs, &store, log_id(2, 9));
    }
}

#[test]
fn receiving_goes_on_where_it_was_cut_even_with_another_sender() {
    let archive = sent((2, 9));
    for cut in (0..archive.len()).step_by(37) {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let mut receiver = receive(&store, &archive).unwrap();
        send(&archive, &mut receiver, 37, cut).unwrap();
        let before = receiver.received();
        drop(receiver);
        // Another node that has the same archive.
        let other = sent((2, 9));
        let mut receiver = receive(&store, &other).unwrap();
        // Complete chunks are kept, and the header once it is complete.
        assert!(
            receiver.received() <= before && before - receiver.received() < 708 + 37,
            "{before}"
        );
        send(&other, &mut receiver, 100, archive.len()).unwrap();
        receiver.finish(&mut FullSpeed).unwrap();
        assert_unpacks(&fs, &store, log_id(2, 9));
    }
}

/// After a power cut everything that verifies is kept, and nothing else is used.
#[test]
fn receiving_goes_on_after_a_power_cut() {
    let archive = sent((2, 9));
    let mut kept = 0;
    for seed in 0..200_u64 {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let mut receiver = receive(&store, &archive).unwrap();
        send(&archive, &mut receiver, 300, seed * 13 % archive.len()).unwrap();
        let mut state = seed;
        fs.crash(&mut |n| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n.max(1)
        });
        let (store, report) = open(&fs);
        kept += report.partial.len();
        let mut receiver = receive(&store, &archive).unwrap();
        send(&archive, &mut receiver, 300, archive.len()).unwrap();
        receiver.finish(&mut FullSpeed).unwrap();
        assert_unpacks(&fs, &store, log_id(2, 9));
    }
    assert_eq!(kept, 200, "the name of the partial file is durable from the start");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let mut receiver = receive(&store, &archive).unwrap();
    send(&archive, &mut receiver, 500, 1000).unwrap();
    let at = receiver.received();
    let good = archive.read_at(at, 200).unwrap();
    let mut flipped = good.bytes.to_vec();
    flipped[100] ^= 4;
    assert!(matches!(receiver.write(at, &flipped, good.crc), Err(SnapshotError::Piece { .. })));
    let ahead = archive.read_at(at + 1, 200).unwrap();
    let gap = receiver.write(ahead.offset, &ahead.bytes, ahead.crc);
    assert!(matches!(gap, Err(SnapshotError::Gap { expected, .. }) if expected == at));
    let misplaced = receiver.write(at - 100, &good.bytes, good.crc);
    assert!(
        matches!(misplaced, Err(SnapshotError::Overlap { .. })),
        "other content at a place that was received"
    );
    let end = archive.len() - 100;
    let past = receiver.write(end, &good.bytes, good.crc);
    assert!(matches!(past, Err(SnapshotError::PastEnd { .. })));
    let absurd = receiver.write(u64::MAX - 3, &good.bytes, good.crc);
    assert!(matches!(absurd, Err(SnapshotError::PastEnd { .. })));
    assert_eq!(receiver.received(), at);
    let again = archive.read_at(at - 150, 200).unwrap();
    receiver.write(again.offset, &again.bytes, again.crc).unwrap();
    receiver.write(again.offset, &again.bytes, again.crc).unwrap();
    assert_eq!(receiver.received(), at + 50, "a piece may come twice");
    send(&archive, &mut receiver, 500, archive.len()).unwrap();
    receiver.finish(&mut FullSpeed).unwrap();
}

/// FAULTS row 35: an incomplete archive is never taken for a snapshot.
#[test]
fn what_was_received_in_part_is_no_snapshot() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(1, 4)).unwrap();
    let mut receiver = receive(&store, &archive).unwrap();
    send(&archive, &mut receiver, 500, archive.len() - 1).unwrap();
    assert_eq!(receiver.received(), archive.len(), "the last piece reaches the end");
    drop(receiver);
    let mut receiver = receive(&store, &archive).unwrap();
    assert_eq!(receiver.received(), archive.len());
    drop(receiver);
    let (store, report) = open(&fs);
    assert_eq!((log_ids(&store), report.partial.len()), (vec![log_id(1, 4)], 1));
    receiver = receive(&store, &sent((2, 10))).unwrap();
    assert_eq!(receiver.received(), 0);
    assert_eq!(names(&fs).len(), 2, "what was received of another offer is removed");
    let error = receiver.finish(&mut FullSpeed).unwrap_err();
    assert!(matches!(error, SnapshotError::Incomplete { received: 0, .. }), "{error}");
    assert_eq!(log_ids(&store), [log_id(1, 4)]);
}

/// FAULTS section 5: flipped, dropped, doubled and reordered chunks, each with a checksum that fits
/// the piece as it was sent: the sender, or its disk, is at fault.
#[test]
fn a_damaged_archive_is_refused_however_it_is_sent() {
    let good = sent((2, 9));
    let bytes = good.read_at(0, usize::MAX).unwrap().bytes.to_vec();
    let head = good.header_bytes().len();
    let (first, second) = (head..head + 708, head + 708..head + 1416);
    let mut damaged: Vec<Vec<u8>> = (0..bytes.len())
        .step_by(11)
        .map(|at| {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            damaged
        })
        .collect();
    for (left, right) in [(&second, &first), (&first, &first), (&second, &second)] {
        let rest = bytes[second.end..].to_vec();
        damaged.push(
            [&bytes[..head], &bytes[left.clone()], &bytes[right.clone()], &rest[..]].concat(),
        );
    }
    let mut dropped = [&bytes[..first.start], &bytes[second.start..]].concat();
    dropped.resize(bytes.len(), 0);
    damaged.push(dropped);
    for (number, damaged) in damaged.into_iter().enumerate() {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        take(&fs, &store, log_id(1, 4)).unwrap();
        let mut receiver = receive(&store, &good).unwrap();
        for (at, piece) in damaged.chunks(600).enumerate() {
            receiver.write(at as u64 * 600, piece, crc32c::crc32c(piece)).unwrap();
        }
        let error = receiver.finish(&mut FullSpeed).unwrap_err();
        assert!(!matches!(error, SnapshotError::Io { .. }), "{number}: {error}");
        assert_eq!(log_ids(&store), [log_id(1, 4)], "{number}");
        assert_eq!(names(&fs), ["snap-1-4.snap"], "{number}: nothing is left to resume");
    }
}

#[test]
fn another_archive_than_the_offered_one_is_refused() {
    let archive = sent((2, 9));
    let offer = Offer::from(&archive);
    let lies =
        [Offer { last_included: log_id(2, 10), ..offer }, Offer { sha256: [7; 32], ..offer }];
    for lie in lies {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let mut receiver = store.receive(lie, NO_LIMIT, &mut FullSpeed).unwrap();
        send(&archive, &mut receiver, 500, archive.len()).unwrap();
        let error = receiver.finish(&mut FullSpeed).unwrap_err();
        assert!(matches!(error, SnapshotError::WrongOwner { .. }), "{error}");
        assert!(names(&fs).is_empty() && store.list().is_empty());
    }
}

/// An archive of another cluster or group, or of a newer format, is refused before it takes any
/// space.
#[test]
fn a_stranger_is_refused_at_the_end_even_if_nobody_asked_at_the_start() {
    let archive = sent((2, 9));
    let strangers = [
        SnapshotOptions { cluster: ClusterId([9; 16]), ..options() },
        SnapshotOptions { group: GroupId::new(8).unwrap(), ..options() },
    ];
    for options in strangers {
        let fs = SimFs::new();
        let (store, _) =
            SnapshotStore::open(Arc::new(fs.clone()), Path::new(DIR), options).unwrap();
        assert!(store.check_header(archive.header_bytes()).is_err());
        let mut receiver = receive(&store, &archive).unwrap();
        send(&archive, &mut receiver, 500, archive.len()).unwrap();
        let error = receiver.finish(&mut FullSpeed).unwrap_err();
        assert!(matches!(error, SnapshotError::WrongOwner { .. }), "{error}");
        assert!(names(&fs).is_empty() && store.list().is_empty());
    }
}

#[test]
fn an_offer_is_not_believed() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let offer = Offer { len: 1 << 40, ..Offer::from(&archive) };
    assert!(matches!(
        store.receive(offer, 1 << 30, &mut FullSpeed),
        Err(SnapshotError::TooLarge { found: 0x100_0000_0000, limit: 0x4000_0000, .. })
    ));
    fs.set_free_bytes(Some(1000));
    assert!(matches!(receive(&store, &archive), Err(SnapshotError::NoSpace { .. })));
    fs.set_free_bytes(None);
    // A length shorter than the archive's: the end of the archive does not fit.
    let short = Offer { len: (archive.len() - 52) / 4 * 4, ..Offer::from(&archive) };
    let mut receiver = store.receive(short, NO_LIMIT, &mut FullSpeed).unwrap();
    send(&archive, &mut receiver, 4, short.len).unwrap();
    assert!(receiver.finish(&mut FullSpeed).is_err());
    assert!(store.list().is_empty());
}

#[test]
fn two_senders_at_once_do_not_mix() {
    let (one, other) = (sent((2, 9)), sent((2, 10)));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let mut receiver = receive(&store, &one).unwrap();
    assert!(matches!(receive(&store, &other), Err(SnapshotError::Busy { .. })));
    assert!(matches!(receive(&store, &one), Err(SnapshotError::Busy { .. })));
    send(&one, &mut receiver, 500, one.len()).unwrap();
    receiver.finish(&mut FullSpeed).unwrap();
    let mut receiver = receive(&store, &other).unwrap();
    send(&other, &mut receiver, 500, other.len()).unwrap();
    receiver.finish(&mut FullSpeed).unwrap();
    assert_eq!(log_ids(&store), [log_id(2, 10), log_id(2, 9)]);
}

/// FAULTS row 33: what a failed sync leaves readable may be lost with the next power cut.
#[test]
fn after_a_failed_sync_nothing_received_is_kept() {
    let archive = sent((2, 9));
    for op in [FsOp::SyncData, FsOp::SyncAll] {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        let mut receiver = receive(&store, &archive).unwrap();
        fs.fail(op, 1, Failure::Io);
        let sent = send(&archive, &mut receiver, 500, archive.len());
        let outcome = sent.and_then(|()| receiver.finish(&mut FullSpeed).map(drop));
        assert!(matches!(outcome, Err(SnapshotError::Io { .. })));
        let mut receiver = receive(&store, &archive).unwrap();
        assert_eq!(receiver.received(), 0, "{op:?}");
        send(&archive, &mut receiver, 500, archive.len()).unwrap();
        receiver.finish(&mut FullSpeed).unwrap();
        fs.crash(&mut |_| 0);
        let (store, _) = open(&fs);
        store.verify(log_id(2, 9), &mut FullSpeed).unwrap();
    }
}

#[test]
fn work_that_is_ended_can_be_begun_again() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let mut receiver = receive(&store, &archive).unwrap();
    send(&archive, &mut receiver, 500, archive.len()).unwrap();
    let mut at_once = |_: u64| ControlFlow::Break(());
    assert!(matches!(receiver.finish(&mut at_once), Err(SnapshotError::Aborted)));
    assert!(matches!(
        store.receive(Offer::from(&archive), NO_LIMIT, &mut at_once),
        Err(SnapshotError::Aborted)
    ));
    receive(&store, &archive).unwrap().finish(&mut FullSpeed).unwrap();
}

#[test]
fn a_good_snapshot_takes_the_place_of_a_damaged_one_with_the_same_last_included_entry() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    take(&fs, &store, log_id(2, 9)).unwrap();
    assert!(fs.flip_bit(&path_of(log_id(2, 9)), 900, 0));
    assert!(store.verify(log_id(2, 9), &mut FullSpeed).is_err());
    assert!(store.newest().is_none());
    let mut receiver = receive(&store, &archive).unwrap();
    send(&archive, &mut receiver, 500, archive.len()).unwrap();
    receiver.finish(&mut FullSpeed).unwrap();
    assert_eq!(store.newest_whole().unwrap().last_included(), log_id(2, 9));
    assert_unpacks(&fs, &store, log_id(2, 9));
}

#[test]
fn what_was_received_and_nobody_will_finish_is_pruned() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let receiver = receive(&store, &archive).unwrap();
    take(&fs, &store, log_id(1, 4)).unwrap();
    drop(receiver);
    store.prune(0, &[]).unwrap();
    assert_eq!(names(&fs).len(), 2, "it may still be needed");
    let receiver = receive(&store, &archive).unwrap();
    take(&fs, &store, log_id(2, 9)).unwrap();
    store.prune(0, &[]).unwrap();
    assert_eq!(names(&fs).len(), 3, "it is being received");
    drop(receiver);
    store.prune(0, &[]).unwrap();
    assert_eq!(names(&fs), ["snap-1-4.snap", "snap-2-9.snap"]);
    drop(receive(&store, &archive).expect("another one can be received"));
}

/// A partial file with good chunks, followed by foreign bytes.
#[test]
fn a_partial_file_is_cut_where_it_stops_to_verify() {
    let archive = sent((2, 9));
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let mut receiver = receive(&store, &archive).unwrap();
    send(&archive, &mut receiver, 500, 1500).unwrap();
    drop(receiver);
    let path = Path::new(DIR).join(names(&fs).pop().unwrap());
    let mut content = fs.image().files[&path].clone();
    content.resize(9000, 0xEE);
    let fs = with_content(&fs, &path, content);
    let (store, _) = open(&fs);
    let mut receiver = receive(&store, &archive).unwrap();
    assert_eq!(receiver.received(), archive.header_bytes().len() as u64 + 708);
    assert_eq!(
        fs.open(&path, d_engine_storage::fs::OpenMode::Existing).unwrap().len().unwrap(),
        receiver.received()
    );
    send(&archive, &mut receiver, 500, archive.len()).unwrap();
    receiver.finish(&mut FullSpeed).unwrap();
    assert_unpacks(&fs, &store, log_id(2, 9));
}
