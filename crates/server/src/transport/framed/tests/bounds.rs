//! Queues, memory, silence and strangers: all of them have a bound.

use super::*;

/// The receiver keeps every message, so that it reads no more; the sender's queue fills up.
#[tokio::test]
async fn a_slow_reader_costs_a_bounded_queue_and_heartbeats_still_come_through() {
    let slow = TransportSettings { inbound_bytes: 100_000, ..settings() };
    let tight = TransportSettings { queue_bytes: 300_000, ..settings() };
    let mut one = Node::start_with(1, CLUSTER, "127.0.0.1:0", tight).await;
    let mut two = Node::start_with(2, CLUSTER, "127.0.0.1:0", slow).await;
    one.dial(&two);
    one.up().await;
    let mut next = 1;
    within(async {
        while sent(&mut one, 2, &append(next, 60_000)) {
            next += 1;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let stats = one.transport.stats();
    assert_eq!(stats.dropped, 1);
    assert!(stats.queued_bytes <= 300_000, "{stats:?}");
    assert!(sent(&mut one, 2, &heartbeat(9)), "the urgent lane has space");

    // One message fits into the receiver's share; a second one only after the first is dropped.
    let held = two.next().await;
    assert!(two.nothing_happened(), "more was read than the receiver's share allows");
    assert!(matches!(&held, Happened::Message(_, _, room) if room.bytes() > 60_000));
    drop(held);
    let mut seen = vec![];
    while seen.last() != Some(&heartbeat(9)) {
        seen.push(two.message().await.1);
    }
    assert!(seen.len() < next as usize - 1, "the heartbeat overtook the appends in the queue");
}

#[tokio::test]
async fn a_frame_longer_than_its_senders_share_of_memory_still_gets_through() {
    let slow = TransportSettings { inbound_bytes: 1_000, ..settings() };
    let mut one = Node::start(1).await;
    let mut two = Node::start_with(2, CLUSTER, "127.0.0.1:0", slow).await;
    one.dial(&two);
    one.up().await;
    for index in 1..=3 {
        assert!(sent(&mut one, 2, &append(index, 50_000)));
        assert_eq!(two.message().await.1, append(index, 50_000));
    }
}

#[tokio::test]
async fn a_peer_that_leaves_pings_unanswered_is_given_up() {
    let impatient = TransportSettings {
        ping_interval: Duration::from_millis(10),
        silence_timeout: Duration::from_millis(500),
        ..settings()
    };
    let mut one = Node::start_with(1, CLUSTER, "127.0.0.1:0", impatient).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.transport.connect(n(2), &[&silent.local_addr().unwrap().to_string()]);
    let (mut stream, _) = within(silent.accept()).await.unwrap();
    let reply = HandshakeReply {
        node: 2,
        incarnation: Bytes::copy_from_slice(&directory(2).0),
        ..HandshakeReply::default()
    };
    stream.write_all(&opening(&reply.encode_to_vec())).await.unwrap();
    one.up().await;
    let greeting = Greeting {
        from: n(1),
        to: n(2),
        incarnation: directory(1),
        peer_addr: "node-1:1".to_owned(),
        ..greeting()
    };
    let expected = [opening(&encode_handshake(&greeting)), framed(b""), framed(b"")].concat();
    let mut pinged = vec![0; expected.len()];
    within(stream.read_exact(&mut pinged)).await.unwrap();
    assert_eq!(pinged, expected, "the handshake, and pings on an idle connection");
    assert_eq!(one.down().await, n(2));
}

#[tokio::test]
async fn an_idle_connection_stays() {
    let impatient = TransportSettings {
        ping_interval: Duration::from_millis(5),
        silence_timeout: Duration::from_millis(500),
        ..settings()
    };
    let mut one = Node::start_with(1, CLUSTER, "127.0.0.1:0", impatient).await;
    let mut stream = accepted_stranger(&one).await;
    // Pings written by hand: each is answered by one byte, and the node receives no event.
    for _ in 0..3 {
        stream.write_all(&framed(b"")).await.unwrap();
        let mut answer = [0];
        within(stream.read_exact(&mut answer)).await.unwrap();
    }
    assert!(one.nothing_happened());
}

#[tokio::test]
async fn connections_without_a_handshake_are_few_and_short() {
    let strict = TransportSettings {
        max_handshakes: 1,
        handshake_timeout: Duration::from_secs(1),
        ..settings()
    };
    let one = Node::start_with(1, CLUSTER, "127.0.0.1:0", strict).await;
    let mut first = stranger(&one, b"d-eng").await;
    // A silent connection does not keep the next one out.
    let mut second = stranger(&one, b"").await;
    assert!(is_closed(&mut first).await);
    one.refuses(RefusalKind::TooManyHandshakes).await;
    assert!(is_closed(&mut second).await);
    one.refuses(RefusalKind::HandshakeTimeout).await;
    // Connections that have finished their handshake do not count.
    let _third = accepted_stranger(&one).await;
    let _fourth = accepted_stranger(&one).await;
}
