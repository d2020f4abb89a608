#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_core::{GroupId, Instant, LogId, LogIndex, NodeId, Term};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{
    FullSpeed, SnapshotArchive, SnapshotFacts, SnapshotOptions, SnapshotStore,
};
use d_engine_storage::{ClusterId, Fs, Member, MemberRole, Membership, OpenMode};
use sha2::{Digest, Sha256};

use super::*;
use crate::InstallError;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.plus(Duration::from_millis(millis))
}

/// A store on its own disk, of the cluster with this number.
fn store(cluster: u8) -> (Arc<dyn Fs>, SnapshotStore) {
    let fs: Arc<dyn Fs> = Arc::new(SimFs::new());
    fs.create_dir(Path::new("/data")).unwrap();
    let options = SnapshotOptions {
        reserve_bytes: 0,
        chunk_bytes: 1 << 10,
        ..SnapshotOptions::new(ClusterId([cluster; 16]), GroupId::FIRST)
    };
    let (store, _) =
        SnapshotStore::open(fs.clone(), Path::new("/data/snapshots"), options).unwrap();
    (fs, store)
}

/// A snapshot of one file with these bytes.
fn archive(cluster: u8, last_included: LogId, content: &[u8]) -> SnapshotArchive {
    let (fs, store) = store(cluster);
    let staging = store.staging().unwrap();
    let file = fs.open(&staging.path().join("data"), OpenMode::CreateNew).unwrap();
    assert_eq!(file.write_at(0, content).unwrap(), content.len());
    file.sync_all().unwrap();
    let mut hash = Sha256::new();
    hash.update(4_u32.to_le_bytes());
    hash.update(b"data");
    hash.update((content.len() as u64).to_le_bytes());
    hash.update(content);
    let member = Member {
        node: 1,
        peer_addr: "peer:1".to_owned(),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    let facts = SnapshotFacts {
        last_included,
        time_ms: 77,
        membership: Membership::new([member]).unwrap(),
        envelope: Bytes::new(),
        machine: "one".to_owned(),
        user_format: 0,
        command_version: 0,
        checksum: hash.finalize().into(),
    };
    store.pack(staging, &facts, &mut FullSpeed).unwrap();
    store.open_archive(last_included).unwrap()
}

fn limits() -> SendLimits {
    SendLimits { piece_bytes: 700, window_bytes: 2_000, ..SendLimits::default() }
}

fn receiver(store: &SnapshotStore) -> SnapshotReceiver {
    SnapshotReceiver::new(store.clone(), NodeId::new(1).unwrap(), 1 << 30, LogIndex::new(39))
}

/// Delivers messages until the whole archive is there, or until `pieces` pieces were delivered.
fn carry(sender: &mut SnapshotSender, receiver: &mut SnapshotReceiver, pieces: usize) -> bool {
    let mut delivered = 0;
    while let Some(message) = sender.poll().unwrap() {
        if matches!(message, SnapshotMessage::Piece { .. }) {
            if delivered == pieces {
                return false;
            }
            delivered += 1;
        }
        match receiver.on_message(message, &mut FullSpeed) {
            ReceiverStep::Answer(answer) => sender.on_message(at(1), answer).unwrap(),
            ReceiverStep::Finish => return true,
            ReceiverStep::Refuse(answer) => panic!("refused: {answer:?}"),
        }
    }
    panic!("the sender waits for a message");
}

#[test]
fn a_snapshot_arrives_whole_and_counts_only_when_it_is_applied() {
    let (_, store) = store(1);
    let archive = archive(1, id(3, 40), &[7; 10_000]);
    let mut sender = SnapshotSender::new(archive, Term::new(4), limits(), at(0));
    let mut receiver = receiver(&store);
    assert!(carry(&mut sender, &mut receiver, usize::MAX));
    let received = receiver.finish(&mut FullSpeed).unwrap();
    assert_eq!(
        (received.term, received.last_included, received.time_ms),
        (Term::new(4), id(3, 40), 77)
    );
    assert_eq!(store.list().len(), 1, "the archive is finished before the replica is informed");
    sender.on_message(at(2), SnapshotMessage::Installing).unwrap();
    assert!(!sender.is_applied(), "everything was received and nothing is applied");
    sender.on_message(at(3), SnapshotReceiver::outcome(Ok(()))).unwrap();
    assert!(sender.is_applied());
}

#[test]
fn after_a_cut_it_goes_on_where_it_stood_also_from_another_node_with_the_same_archive() {
    let (_, store) = store(1);
    let content: Vec<u8> = (0..20_000_u32).map(|at| (at / 7) as u8).collect();
    let mut first =
        SnapshotSender::new(archive(1, id(3, 40), &content), Term::new(4), limits(), at(0));
    let mut cut = receiver(&store);
    assert!(!carry(&mut first, &mut cut, 20));
    drop(cut);
    let mut other =
        SnapshotSender::new(archive(1, id(3, 40), &content), Term::new(5), limits(), at(0));
    let mut resumed = receiver(&store);
    assert!(carry(&mut other, &mut resumed, usize::MAX));
    assert!(other.resumed_at() > 10_000, "resumed at {}", other.resumed_at());
    assert_eq!(resumed.finish(&mut FullSpeed).unwrap().term, Term::new(5));
}

#[test]
fn an_archive_that_is_here_already_is_not_sent_again() {
    let (_, store) = store(1);
    let archive = archive(1, id(3, 40), &[7; 10_000]);
    let mut sender = SnapshotSender::new(archive.clone(), Term::new(4), limits(), at(0));
    let mut deposed = receiver(&store);
    assert!(carry(&mut sender, &mut deposed, usize::MAX));
    deposed.finish(&mut FullSpeed).unwrap();
    drop(deposed);
    let mut sender = SnapshotSender::new(archive, Term::new(6), limits(), at(0));
    let mut again = receiver(&store);
    assert!(carry(&mut sender, &mut again, 0), "no piece was sent");
    assert_eq!(again.finish(&mut FullSpeed).unwrap().term, Term::new(6));
    sender.on_message(at(1), SnapshotMessage::Installing).unwrap();
}

/// A snapshot may wait long to be installed, and the next one may arrive before that.
#[test]
fn what_was_received_is_not_pruned_before_it_is_installed() {
    let (_, store) = store(1);
    let receive = |last_included, receiver: &mut SnapshotReceiver| {
        let mut sender = SnapshotSender::new(
            archive(1, last_included, &[7; 900]),
            Term::new(4),
            limits(),
            at(0),
        );
        assert!(carry(&mut sender, receiver, usize::MAX));
        receiver.finish(&mut FullSpeed).unwrap()
    };
    let waits = receive(id(3, 40), &mut receiver(&store));
    drop(receive(id(3, 50), &mut receiver(&store)));
    store.prune(1, &[]).unwrap();
    let newer = receive(id(3, 60), &mut receiver(&store));
    store.prune(1, &[]).unwrap();
    let log_ids =
        || store.list().iter().map(|info| info.last_included().index.get()).collect::<Vec<_>>();
    assert!(log_ids().contains(&40), "{:?}", log_ids());
    drop((waits, newer));
    store.prune(1, &[]).unwrap();
    assert!(!log_ids().contains(&40), "{:?}", log_ids());
}

/// The replica receives the snapshot anyway: it reports to its leader how far its log matches.
#[test]
fn of_what_is_committed_here_nothing_is_sent() {
    let (_, store) = store(1);
    let mut sender =
        SnapshotSender::new(archive(1, id(3, 39), &[7; 10_000]), Term::new(4), limits(), at(0));
    let mut receiver = receiver(&store);
    assert!(carry(&mut sender, &mut receiver, 0));
    assert_eq!(receiver.finish(&mut FullSpeed).unwrap().last_included, id(3, 39));
    assert!(store.list().is_empty());
}

#[test]
fn what_cannot_be_used_is_refused_before_a_byte_of_it_is_sent() {
    let (_, store) = store(1);
    let mut of_another_cluster =
        SnapshotSender::new(archive(2, id(3, 40), &[7; 10_000]), Term::new(4), limits(), at(0));
    let offer = of_another_cluster.poll().unwrap().unwrap();
    let ReceiverStep::Refuse(answer) = receiver(&store).on_message(offer, &mut FullSpeed) else {
        panic!("accepted")
    };
    let failure = of_another_cluster.on_message(at(1), answer).unwrap_err();
    assert!(
        matches!(failure, SendFailure::Refused { refusal: Refusal::Unusable, .. }),
        "{failure}"
    );
    assert!(failure.to_string().contains("cluster"), "{failure}");

    let mut too_large =
        SnapshotSender::new(archive(1, id(3, 40), &[7; 10_000]), Term::new(4), limits(), at(0));
    let mut small = SnapshotReceiver::new(store, NodeId::new(1).unwrap(), 5_000, LogIndex::ZERO);
    let offer = too_large.poll().unwrap().unwrap();
    let ReceiverStep::Refuse(answer) = small.on_message(offer, &mut FullSpeed) else {
        panic!("accepted")
    };
    assert!(too_large.on_message(at(1), answer).unwrap_err().to_string().contains("5000"));
}

/// Space for the archive alone is not enough, because it is unpacked next to itself. The refusal
/// does not count as damage of the archive.
#[test]
fn without_room_to_unpack_it_nothing_is_received_and_nobody_doubts_the_archive() {
    let fs = SimFs::new();
    let disk: Arc<dyn Fs> = Arc::new(fs.clone());
    disk.create_dir(Path::new("/data")).unwrap();
    let options = SnapshotOptions {
        reserve_bytes: 0,
        ..SnapshotOptions::new(ClusterId([1; 16]), GroupId::FIRST)
    };
    let (store, _) = SnapshotStore::open(disk, Path::new("/data/snapshots"), options).unwrap();
    let archive = archive(1, id(3, 40), &[7; 10_000]);
    let mut sender = SnapshotSender::new(archive.clone(), Term::new(4), limits(), at(0));
    let offer = sender.poll().unwrap().unwrap();
    for free in [5_000, archive.len(), archive.len() + 9_999] {
        fs.set_free_bytes(Some(free));
        let ReceiverStep::Refuse(refused) =
            receiver(&store).on_message(offer.clone(), &mut FullSpeed)
        else {
            panic!("accepted with {free} bytes free")
        };
        let mut sender = SnapshotSender::new(archive.clone(), Term::new(4), limits(), at(0));
        sender.poll().unwrap();
        let told = sender.on_message(at(1), refused).unwrap_err();
        assert!(matches!(&told, SendFailure::Refused { refusal: Refusal::Busy, .. }), "{told}");
    }
    fs.set_free_bytes(Some(archive.len() + 10_000));
    assert!(matches!(receiver(&store).on_message(offer, &mut FullSpeed), ReceiverStep::Answer(_)));
}

#[test]
fn a_damaged_or_misplaced_piece_is_asked_for_again() {
    let (_, store) = store(1);
    let mut sender =
        SnapshotSender::new(archive(1, id(3, 40), &[7; 10_000]), Term::new(4), limits(), at(0));
    let mut receiver = receiver(&store);
    let offer = sender.poll().unwrap().unwrap();
    let ReceiverStep::Answer(accept) = receiver.on_message(offer, &mut FullSpeed) else {
        panic!("refused")
    };
    sender.on_message(at(1), accept).unwrap();
    let (lost, behind) = (sender.poll().unwrap().unwrap(), sender.poll().unwrap().unwrap());
    let ReceiverStep::Answer(again) = receiver.on_message(behind, &mut FullSpeed) else {
        panic!("refused")
    };
    assert_eq!(again, SnapshotMessage::Accept { offset: 0 });
    let SnapshotMessage::Piece { offset, bytes, crc } = lost else { panic!("no piece") };
    let damaged = SnapshotMessage::Piece { offset, bytes, crc: crc ^ 1 };
    let ReceiverStep::Answer(again) = receiver.on_message(damaged, &mut FullSpeed) else {
        panic!("refused")
    };
    assert_eq!(again, SnapshotMessage::Accept { offset: 0 });
    sender.on_message(at(2), again).unwrap();
    assert!(carry(&mut sender, &mut receiver, usize::MAX));
    receiver.finish(&mut FullSpeed).unwrap();
}

#[test]
fn of_two_senders_one_waits_and_an_over_long_piece_is_refused() {
    let (_, store) = store(1);
    let archive = archive(1, id(3, 40), &[7; 10_000]);
    let mut first = SnapshotSender::new(archive.clone(), Term::new(4), limits(), at(0));
    let mut receiving = receiver(&store);
    assert!(!carry(&mut first, &mut receiving, 1));
    let mut second = SnapshotSender::new(archive, Term::new(5), limits(), at(0));
    let offer = second.poll().unwrap().unwrap();
    let step = receiver(&store).on_message(offer, &mut FullSpeed);
    assert!(
        matches!(
            &step,
            ReceiverStep::Refuse(SnapshotMessage::Refused { refusal: Refusal::Busy, .. })
        ),
        "{step:?}"
    );
    let long = SnapshotMessage::Piece {
        offset: 0,
        bytes: Bytes::from(vec![0; PIECE_BYTES_MAX + 1]),
        crc: 0,
    };
    assert!(matches!(receiving.on_message(long, &mut FullSpeed), ReceiverStep::Refuse(_)));
    drop(receiving);
    assert!(
        store.receive(first_offer(&mut second), 1 << 30, &mut FullSpeed).is_ok(),
        "the store accepts another archive"
    );
}

fn first_offer(sender: &mut SnapshotSender) -> d_engine_storage::snapshot::Offer {
    d_engine_storage::snapshot::Offer::from(sender.archive())
}

#[test]
fn the_sender_sends_no_more_than_the_window_and_gives_up_who_says_nothing() {
    let mut sender =
        SnapshotSender::new(archive(1, id(3, 40), &[7; 10_000]), Term::new(4), limits(), at(0));
    sender.poll().unwrap().unwrap();
    assert_eq!(sender.poll().unwrap(), None, "nothing is sent before the reply");
    sender.on_message(at(10), SnapshotMessage::Accept { offset: 0 }).unwrap();
    let mut pieces = 0;
    while sender.poll().unwrap().is_some() {
        pieces += 1;
    }
    assert_eq!(pieces, 3, "2,000 bytes in pieces of 700");
    sender.on_message(at(20), SnapshotMessage::Received { offset: 700 }).unwrap();
    assert!(sender.poll().unwrap().is_some());
    assert_eq!(sender.expired(at(30_019)), None);
    assert_eq!(
        sender.expired(at(30_020)),
        Some(SendFailure::Silent { silence: Duration::from_millis(30_000) })
    );
    sender.on_message(at(30_020), SnapshotMessage::Working).unwrap();
    assert_eq!(sender.expired(at(60_019)), None);
}

#[test]
fn applying_has_a_deadline_of_its_own() {
    let limits = SendLimits { apply: Duration::from_millis(50_000), ..limits() };
    let (_, store) = store(1);
    let mut sender =
        SnapshotSender::new(archive(1, id(3, 40), &[7; 900]), Term::new(4), limits, at(0));
    assert!(carry(&mut sender, &mut receiver(&store), usize::MAX));
    sender.on_message(at(1_000), SnapshotMessage::Installing).unwrap();
    sender.on_message(at(30_000), SnapshotMessage::Working).unwrap();
    assert_eq!(sender.expired(at(50_999)), None);
    let limit = Duration::from_millis(50_000);
    assert_eq!(sender.expired(at(51_000)), Some(SendFailure::ApplyTooLong { limit }));
}

#[test]
fn an_answer_that_cannot_be_is_an_error_and_never_a_success() {
    let start = || {
        let mut sender =
            SnapshotSender::new(archive(1, id(3, 40), &[7; 9_000]), Term::new(4), limits(), at(0));
        sender.poll().unwrap();
        sender
    };
    let refused = |sender: &mut SnapshotSender, message| {
        assert!(sender.on_message(at(1), message).is_err());
        assert!(!sender.is_applied());
    };
    refused(&mut start(), SnapshotMessage::Applied);
    refused(&mut start(), SnapshotMessage::Received { offset: 0 });
    refused(&mut start(), SnapshotMessage::Accept { offset: u64::MAX });
    refused(&mut start(), SnapshotMessage::Piece { offset: 0, bytes: Bytes::new(), crc: 0 });
    let mut sending = start();
    sending.on_message(at(1), SnapshotMessage::Accept { offset: 0 }).unwrap();
    sending.poll().unwrap();
    refused(&mut sending, SnapshotMessage::Received { offset: 701 });
    refused(&mut sending, SnapshotMessage::Installing);
    refused(&mut sending, SnapshotMessage::Applied);
    for (error, refusal) in [
        (InstallError::Stale, Refusal::NotNeeded),
        (InstallError::Busy, Refusal::Busy),
        (InstallError::Stopped { reason: crate::StopReason::new("x") }, Refusal::Busy),
    ] {
        let answer = SnapshotReceiver::outcome(Err(error));
        assert!(
            matches!(answer, SnapshotMessage::Refused { refusal: found, .. } if found == refusal)
        );
    }
}

/// The state of another kind of machine is refused by name before a byte of it is sent.
#[test]
fn a_snapshot_of_another_state_machine_is_refused_by_name() {
    let archive = archive(1, id(3, 40), &[7; 1_000]);
    for (machine, is_taken) in [("two", false), ("one", true), ("", true)] {
        let disk: Arc<dyn Fs> = Arc::new(SimFs::new());
        disk.create_dir(Path::new("/data")).unwrap();
        let options = SnapshotOptions {
            reserve_bytes: 0,
            machine: machine.to_owned(),
            ..SnapshotOptions::new(ClusterId([1; 16]), GroupId::FIRST)
        };
        let (store, _) = SnapshotStore::open(disk, Path::new("/data/snapshots"), options).unwrap();
        let mut sender = SnapshotSender::new(archive.clone(), Term::new(4), limits(), at(0));
        let step = receiver(&store).on_message(sender.poll().unwrap().unwrap(), &mut FullSpeed);
        match step {
            ReceiverStep::Answer(_) => assert!(is_taken, "{machine:?}"),
            ReceiverStep::Refuse(answer) => {
                let told = sender.on_message(at(1), answer).unwrap_err().to_string();
                assert!(!is_taken && told.contains("one") && told.contains("two"), "{told}");
            }
            ReceiverStep::Finish => panic!("nothing was sent"),
        }
    }
}
