//! Which connections are refused, and what the refused side receives.

use d_engine_wire::PROTOCOL_VERSION;

use super::*;

/// A handshake that no program sends.
fn changed(change: fn(&mut Handshake)) -> Bytes {
    let mut greeting = Handshake::decode(encode_handshake(&greeting())).unwrap();
    change(&mut greeting);
    Bytes::from(greeting.encode_to_vec())
}

/// Greetings that are refused, how they are refused on both sides, and the text.
fn strangers() -> Vec<(Bytes, Refusal, RefusalKind, &'static str)> {
    vec![
        (
            encode_handshake(&Greeting { cluster: ClusterId([8; 16]), ..greeting() }),
            Refusal::OtherCluster,
            RefusalKind::OtherCluster,
            "node 2 belongs to cluster 08080808080808080808080808080808, node 1 to another one; compare their `cluster_id`",
        ),
        (
            encode_handshake(&Greeting { group: GroupId::new(2).unwrap(), ..greeting() }),
            Refusal::OtherGroup,
            RefusalKind::OtherGroup,
            "node 2 is in group 2, this node in 1",
        ),
        (
            encode_handshake(&Greeting { to: n(3), ..greeting() }),
            Refusal::NotTheExpectedNode,
            RefusalKind::NotTheExpectedNode,
            "node 2 dialled node 3; this is node 1",
        ),
        (
            encode_handshake(&Greeting { from: n(6), ..greeting() }),
            Refusal::UnknownNode,
            RefusalKind::UnknownNode,
            "node 6 is not a member of the cluster that node 1 knows",
        ),
        (
            encode_handshake(&Greeting { incarnation: directory(9), ..greeting() }),
            Refusal::OtherIncarnation,
            RefusalKind::OtherIncarnation,
            "node 2 has the data directory 09090909090909090909090909090909, but the cluster has bound it to 02020202020202020202020202020202: its directory was emptied or replaced",
        ),
        (
            encode_handshake(&Greeting { members: vec![1, 2, 3], ..greeting() }),
            Refusal::OtherMembers,
            RefusalKind::OtherMembers,
            "node 2 knows the members 1, 2, 3, node 1 knows 1, 2, 3, 4, 5: give every node of a cluster the same `members`",
        ),
        (
            encode_handshake(&Greeting { state_machine: "example/queue".to_owned(), ..greeting() }),
            Refusal::OtherStateMachine,
            RefusalKind::OtherStateMachine,
            "node 2 runs the state machine \"example/queue\", node 1 runs \"example/bank\": all nodes of a cluster must run the same one",
        ),
        (
            changed(|greeting| greeting.protocol_version = 9),
            Refusal::ProtocolVersion,
            RefusalKind::ProtocolVersion,
            "the peer has protocol version 9, this node has 2",
        ),
        (
            changed(|greeting| greeting.from_node = 0),
            Refusal::Malformed,
            RefusalKind::MalformedFrame,
            "the field `from_node` of the handshake is invalid",
        ),
    ]
}

#[tokio::test]
async fn a_stranger_is_told_why_it_is_refused() {
    let mut one = Node::start(1).await;
    for (greeting, refusal, kind, text) in strangers() {
        let mut stream = stranger(&one, &opening(&greeting)).await;
        let reply = reply(&mut stream).await;
        assert_eq!((reply.refusal(), reply.refusal_text.as_str()), (refusal, text));
        assert_eq!(reply.incarnation.len(), 0, "a stranger learns nothing about the directory");
        assert!(is_closed(&mut stream).await);
        one.refuses(kind).await;
        assert_eq!(one.refused(kind), 1);
        let told = one.recorder.refusals.lock().unwrap().pop();
        let is_told =
            told.is_some_and(|told| !told.by_peer && told.kind == kind && told.text == text);
        // Bytes that are not a greeting name no node.
        let is_greeting =
            !matches!(kind, RefusalKind::ProtocolVersion | RefusalKind::MalformedFrame);
        assert_eq!(is_told, is_greeting, "{kind:?}");
    }
    assert!(one.nothing_happened());
}

#[tokio::test]
async fn another_version_is_told_ours_and_another_protocol_nothing() {
    let one = Node::start(1).await;
    let mut newer = stranger(&one, b"d-engine\x09\x00\x00\x00").await;
    let mut answer = Vec::new();
    within(newer.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, wire::preamble());
    one.refuses(RefusalKind::ProtocolVersion).await;

    let mut browser = stranger(&one, b"GET / HTTP/1.1\r\n\r\n").await;
    let mut answer = Vec::new();
    within(browser.read_to_end(&mut answer)).await.unwrap_or(0);
    assert!(answer.is_empty());
    one.refuses(RefusalKind::OtherProtocol).await;
}

#[tokio::test]
async fn nodes_of_different_clusters_refuse_each_other_and_keep_silent() {
    let mut one = Node::start(1).await;
    let mut two = Node::start_with(2, ClusterId([9; 16]), "127.0.0.1:0", settings()).await;
    one.dial(&two);
    two.dial(&one);
    for node in [&one, &two] {
        // By its own check of the other node, and by the other node's reply.
        until(|| node.refused(RefusalKind::OtherCluster) >= 2).await;
    }
    assert!(one.nothing_happened() && two.nothing_happened());
}

/// A node of the cluster that was ended by force, which dials a member's address, and the node of
/// its continuation that answers there.
#[tokio::test]
async fn a_node_of_a_cluster_that_has_ended_learns_so_from_its_continuation() {
    let mut new = Node::start(1).await;
    let mut old = Node::start_with(2, ENDED, "127.0.0.1:0", settings()).await;
    old.dial(&new);
    assert!(matches!(old.next().await, Happened::Superseded));
    new.refuses(RefusalKind::Superseded).await;
    let refusals = old.recorder.refusals.lock().unwrap().clone();
    assert!(refusals.iter().all(|it| it.by_peer && it.text.contains("has ended")), "{refusals:?}");
    assert!(new.nothing_happened());

    // It may be started without heeding that.
    let settings = TransportSettings { heeds_superseded: false, ..settings() };
    let mut stubborn = Node::start_with(2, ENDED, "127.0.0.1:0", settings).await;
    stubborn.dial(&new);
    stubborn.refuses(RefusalKind::Superseded).await;
    assert!(stubborn.nothing_happened());
}

/// The dialled side sends `preamble` and `reply`; returns the kind of the dialling side's refusal.
async fn refusal_of(preamble: &[u8], reply: &HandshakeReply) -> RefusalKind {
    let mut one = Node::start(1).await;
    let impostor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.transport.connect(n(2), &[&impostor.local_addr().unwrap().to_string()]);
    let (mut stream, _) = within(impostor.accept()).await.unwrap();
    stream.write_all(&[preamble, &framed(&reply.encode_to_vec())].concat()).await.unwrap();
    until(|| !one.transport.stats().refused.is_empty()).await;
    assert!(one.nothing_happened());
    *one.transport.stats().refused.keys().next().unwrap()
}

#[tokio::test]
async fn the_dialling_side_checks_who_answers() {
    let good = HandshakeReply {
        protocol_version: PROTOCOL_VERSION,
        node: 2,
        incarnation: Bytes::copy_from_slice(&directory(2).0),
        ..HandshakeReply::default()
    };
    let ours = wire::preamble();
    let newer = b"d-engine\x09\x00\x00\x00";
    assert_eq!(refusal_of(newer, &good).await, RefusalKind::ProtocolVersion);
    assert_eq!(refusal_of(b"HTTP/1.1 400", &good).await, RefusalKind::OtherProtocol);
    let other_node = HandshakeReply { node: 3, ..good.clone() };
    assert_eq!(refusal_of(&ours, &other_node).await, RefusalKind::NotTheExpectedNode);
    let wiped = HandshakeReply { incarnation: Bytes::copy_from_slice(&[9; 16]), ..good.clone() };
    assert_eq!(refusal_of(&ours, &wiped).await, RefusalKind::OtherIncarnation);
    let none = HandshakeReply { incarnation: Bytes::new(), ..good.clone() };
    assert_eq!(refusal_of(&ours, &none).await, RefusalKind::MalformedFrame);
    let unknown_refusal = HandshakeReply { refusal: 99, ..good };
    assert_eq!(refusal_of(&ours, &unknown_refusal).await, RefusalKind::MalformedFrame);
}

/// FAULTS row 51: a node returns under its old id with an emptied directory.
#[tokio::test]
async fn a_peer_with_a_wiped_directory_is_refused_in_both_directions() {
    let (mut one, mut two) = (Node::start(1).await, Node::start(2).await);
    *one.recorder.wiped.lock().unwrap() = Some(n(2));
    one.dial(&two);
    two.dial(&one);
    until(|| one.refused(RefusalKind::OtherIncarnation) >= 2).await;
    two.refuses(RefusalKind::OtherIncarnation).await;
    assert!(one.nothing_happened() && two.nothing_happened());
}

/// Bad frames of an accepted peer end its connection before they reach the node.
#[tokio::test]
async fn bad_frames_end_the_connection_and_never_reach_the_node() {
    let mut one = Node::start(1).await;
    let mut damaged = framed(&encode_frame(GROUP, &heartbeat(1)).to_bytes());
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let beyond = PeerMessage::Heartbeat {
        term: Term::new(u64::MAX),
        commit: LogIndex::ZERO,
        round: 1,
        matched: LogIndex::ZERO,
    };
    let four_gib = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let cases = [
        (damaged, RefusalKind::Checksum),
        (framed(b"not a message"), RefusalKind::MalformedFrame),
        (four_gib.to_vec(), RefusalKind::OversizedFrame),
        (framed(&encode_frame(GROUP, &beyond).to_bytes()), RefusalKind::MalformedFrame),
    ];
    for (bytes, kind) in cases {
        let before = one.refused(kind);
        let mut stream = accepted_stranger(&one).await;
        stream.write_all(&bytes).await.unwrap();
        assert!(is_closed(&mut stream).await);
        until(|| one.refused(kind) == before + 1).await;
    }
    assert!(one.nothing_happened());
}

#[tokio::test]
async fn a_stranger_gets_no_more_memory_than_a_handshake_needs() {
    let one = Node::start(1).await;
    let mut stream = stranger(&one, &opening(&vec![0; wire::MAX_HANDSHAKE_BYTES + 1])).await;
    assert!(is_closed(&mut stream).await);
    one.refuses(RefusalKind::OversizedFrame).await;
}

/// Messages sent directly after the handshake, in the same packet.
#[tokio::test]
async fn frames_that_come_with_the_handshake_are_not_lost() {
    let mut one = Node::start(1).await;
    let frame = framed(&encode_frame(GROUP, &heartbeat(4)).to_bytes());
    let _stream = stranger(&one, &[opening(&encode_handshake(&greeting())), frame].concat()).await;
    assert_eq!(one.message().await, (n(2), heartbeat(4)));
}

/// Two processes with copies of one directory: without a refusal they would endlessly replace
/// each other's connections.
#[tokio::test]
async fn a_node_that_runs_twice_is_told_so_and_the_other_stays_connected() {
    let mut one = Node::start(1).await;
    let mut first = accepted_stranger(&one).await;
    let greeting = |start| opening(&encode_handshake(&Greeting { start, ..greeting() }));
    let mut second = stranger(&one, &greeting(8)).await;
    assert_eq!(
        reply(&mut second).await.refusal(),
        Refusal::None,
        "it may just have been restarted"
    );
    assert!(is_closed(&mut first).await);
    // The first process dials again.
    let mut again = stranger(&one, &greeting(7)).await;
    let refused = reply(&mut again).await;
    assert_eq!(refused.refusal(), Refusal::RunsTwice);
    assert!(refused.refusal_text.starts_with("node 2 runs twice"), "{}", refused.refusal_text);
    one.refuses(RefusalKind::RunsTwice).await;
    second.write_all(&framed(&encode_frame(GROUP, &heartbeat(1)).to_bytes())).await.unwrap();
    assert_eq!(one.message().await, (n(2), heartbeat(1)));
    // Once the other connection has ended, it is accepted.
    drop(second);
    within(async {
        loop {
            let mut again = stranger(&one, &greeting(7)).await;
            if reply(&mut again).await.refusal() == Refusal::None {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn nodes_whose_state_machines_have_no_name_are_not_compared() {
    let one = Node::start(1).await;
    let unnamed = Greeting { state_machine: String::new(), ..greeting() };
    let mut stream = stranger(&one, &opening(&encode_handshake(&unnamed))).await;
    assert_eq!(reply(&mut stream).await.refusal(), Refusal::None);
}
