//! Connections for snapshots.

use d_engine_replica::SnapshotMessage;

use super::*;

/// A snapshot has its own connection: same handshake, same port, messages in both directions.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_travels_on_a_line_of_its_own() {
    let (mut sender, mut receiver) = (Node::start(1).await, Node::start(2).await);
    sender.dial(&receiver);
    let dialer = sender.transport.snapshot_dialer(n(2)).unwrap();
    assert!(sender.transport.snapshot_dialer(n(3)).is_none());
    let mut out = tokio::task::spawn_blocking(move || dialer.dial()).await.unwrap().unwrap();
    let mut line = loop {
        match receiver.next().await {
            Happened::Snapshot(from, line) => {
                assert_eq!(from, n(1));
                break line;
            }
            Happened::Up(..) | Happened::Down(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let piece = SnapshotMessage::Piece { offset: 5, bytes: Bytes::from(vec![7; 300_000]), crc: 9 };
    let expected = piece.clone();
    let both = tokio::task::spawn_blocking(move || {
        let sending = std::thread::spawn(move || {
            out.send(&piece).unwrap();
            out.receive(DEADLINE).unwrap()
        });
        let received = line.receive(DEADLINE).unwrap();
        assert_eq!(line.receive(Duration::from_millis(5)).unwrap(), None, "no second message");
        line.send(&SnapshotMessage::Received { offset: 7 }).unwrap();
        let answer = sending.join().unwrap();
        // The other end is closed when its thread ends.
        (received, answer, line.receive(DEADLINE).is_err())
    });
    let (received, answer, is_closed) = both.await.unwrap();
    assert_eq!(received, Some(expected));
    assert_eq!(answer, Some(SnapshotMessage::Received { offset: 7 }));
    assert!(is_closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_for_a_snapshot_needs_the_same_welcome_as_messages() {
    let (mut stranger, receiver) = (Node::start(6).await, Node::start(2).await);
    stranger.dial(&receiver);
    let dialer = stranger.transport.snapshot_dialer(n(2)).unwrap();
    let refused = tokio::task::spawn_blocking(move || dialer.dial()).await.unwrap().unwrap_err();
    assert!(refused.contains("not a member"), "{refused}");
}
