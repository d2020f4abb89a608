//! Who is admitted after the members have changed, and nodes that need not be members.

use d_engine_core::GroupId;
use d_engine_storage::{JoinAs, NewMember};
use d_engine_wire::JoinNumber;

use super::*;

const NUMBER: JoinNumber = JoinNumber([5; 16]);
const CHANGED: ConfigId = ConfigId { term: 3, version: 1 };

/// Node 1 after configuration 3.1 has removed node 5; learners only, so that it is removed at once.
async fn without_five() -> Node {
    let node = Node::start(1).await;
    *node.recorder.change.lock().unwrap() = Some(MemberChange::Add(NewMember {
        // Skipped ids count as removed.
        node: Some(9),
        peer_addr: "node-9:1".to_owned(),
        client_addr: String::new(),
        incarnation: directory(9),
        joins_as: JoinAs::Learner,
    }));
    node
}

fn from(id: u64, config: ConfigId) -> Greeting {
    let members = Vec::new();
    let peer_addr = format!("node-{id}:1");
    Greeting { from: n(id), incarnation: directory(id), config, members, peer_addr, ..greeting() }
}

/// Rule R28.
#[tokio::test]
async fn a_removed_node_is_told_which_configuration_has_removed_it() {
    let one = without_five().await;
    let greeting = from(7, ConfigId::default());
    let mut stream = stranger(&one, &opening(&encode_handshake(&greeting))).await;
    let told = reply(&mut stream).await;
    assert_eq!(told.refusal(), Refusal::Removed);
    assert_eq!(told.refusal_text, "node 7 was removed by configuration 3.1");
    assert_eq!(d_engine_wire::config_from_wire(told.config), CHANGED);
    one.refuses(RefusalKind::Removed).await;
}

#[tokio::test]
async fn a_node_that_is_told_of_its_removal_by_a_member_reports_it() {
    let (one, mut seven) = (without_five().await, Node::start(7).await);
    seven.dial(&one);
    let told = within(seven.happened.recv()).await.unwrap();
    assert!(matches!(told, Happened::Removed(by) if by == CHANGED), "{told:?}");
    until(|| seven.refused(RefusalKind::Removed) == 1).await;
}

/// A stranger must not be able to stop a node.
#[tokio::test]
async fn nobody_but_a_member_with_its_directory_is_believed_that_a_node_was_removed() {
    let refusal = |change: fn(&mut HandshakeReply)| {
        let mut reply = HandshakeReply {
            protocol_version: d_engine_wire::PROTOCOL_VERSION,
            node: 2,
            incarnation: Bytes::copy_from_slice(&directory(2).0),
            cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
            refusal: Refusal::Removed.into(),
            config: Some(d_engine_wire::config_to_wire(CHANGED)),
            ..HandshakeReply::default()
        };
        change(&mut reply);
        reply
    };
    let lies: [fn(&mut HandshakeReply); 4] = [
        |reply| reply.node = 3,
        |reply| reply.incarnation = Bytes::copy_from_slice(&directory(9).0),
        |reply| reply.incarnation = Bytes::new(),
        |reply| reply.cluster_id = Bytes::new(),
    ];
    for lie in lies {
        let (mut one, refusal) = (Node::start(1).await, refusal(lie));
        answer_with(&mut one, &refusal).await;
        until(|| one.refused(RefusalKind::Removed) == 1).await;
        assert!(one.nothing_happened(), "{refusal:?}");
    }
    let mut one = Node::start(1).await;
    answer_with(&mut one, &refusal(|_| ())).await;
    let told = within(one.happened.recv()).await.unwrap();
    assert!(matches!(told, Happened::Removed(by) if by == CHANGED), "{told:?}");
}

/// A node that only answers at a member's address must not be able to stop an election.
#[tokio::test]
async fn nobody_but_the_continuation_of_a_members_directory_is_believed_that_the_cluster_ended() {
    let refusal = |change: fn(&mut HandshakeReply)| {
        let mut reply = HandshakeReply {
            protocol_version: d_engine_wire::PROTOCOL_VERSION,
            node: 2,
            continued_incarnation: Bytes::copy_from_slice(&directory(2).0),
            refusal: Refusal::Superseded.into(),
            ..HandshakeReply::default()
        };
        change(&mut reply);
        reply
    };
    let lies: [fn(&mut HandshakeReply); 3] = [
        |reply| reply.node = 3,
        |reply| reply.continued_incarnation = Bytes::copy_from_slice(&directory(9).0),
        |reply| reply.continued_incarnation = Bytes::new(),
    ];
    for lie in lies {
        let (mut one, refusal) = (Node::start(1).await, refusal(lie));
        answer_with(&mut one, &refusal).await;
        until(|| one.refused(RefusalKind::Superseded) == 1).await;
        assert!(one.nothing_happened(), "{refusal:?}");
    }
    let mut one = Node::start(1).await;
    answer_with(&mut one, &refusal(|_| ())).await;
    assert!(matches!(within(one.happened.recv()).await, Some(Happened::Superseded)));
}

/// Node 2, which `one` dials, answers with this.
async fn answer_with(one: &mut Node, reply: &HandshakeReply) {
    let impostor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.transport.connect(n(2), &[&impostor.local_addr().unwrap().to_string()]);
    let (mut stream, _) = within(impostor.accept()).await.unwrap();
    stream.write_all(&opening(&reply.encode_to_vec())).await.unwrap();
}

/// Rule R27: its answers must reach the node that it follows.
#[tokio::test]
async fn a_peer_with_a_later_configuration_is_admitted_and_reported_with_its_address() {
    let mut one = without_five().await;
    let later = ConfigId { term: 3, version: 2 };
    let mut stream = stranger(&one, &opening(&encode_handshake(&from(12, later)))).await;
    assert_eq!(reply(&mut stream).await.refusal(), Refusal::None);
    let met = within(one.happened.recv()).await.unwrap();
    let is_met =
        matches!(&met, Happened::Provisional(node, at) if *node == n(12) && at == "node-12:1");
    assert!(is_met, "{met:?}");
    stream.write_all(&framed(&encode_frame(GROUP, &heartbeat(4)).to_bytes())).await.unwrap();
    assert_eq!(one.message().await, (n(12), heartbeat(4)));
}

#[tokio::test]
async fn members_that_know_different_configurations_are_not_compared() {
    let one = without_five().await;
    let mut stream = stranger(&one, &opening(&encode_handshake(&from(2, CHANGED)))).await;
    assert_eq!(reply(&mut stream).await.refusal(), Refusal::None);
    let earlier = from(3, ConfigId::default());
    let mut stream = stranger(&one, &opening(&encode_handshake(&earlier))).await;
    assert_eq!(reply(&mut stream).await.refusal(), Refusal::None);
}

#[tokio::test]
async fn connections_of_a_node_that_is_dropped_are_closed_in_both_directions() {
    let (mut one, mut two) = (Node::start(1).await, Node::start(2).await);
    one.dial(&two);
    two.dial(&one);
    one.up().await;
    two.up().await;
    one.transport.keep_only(|node| node != n(2));
    assert!(
        matches!(within(one.happened.recv()).await.unwrap(), Happened::Down(node) if node == n(2))
    );
    assert!(
        matches!(within(two.happened.recv()).await.unwrap(), Happened::Down(node) if node == n(1))
    );
}

/// Also of one that is not dialled.
#[tokio::test]
async fn an_accepted_connection_of_a_node_that_is_dropped_is_closed() {
    let (mut one, mut two) = (Node::start(1).await, Node::start(2).await);
    two.dial(&one);
    two.up().await;
    assert!(sent(&mut two, 1, &heartbeat(1)));
    assert_eq!(one.message().await, (n(2), heartbeat(1)));
    one.transport.keep_only(|node| node != n(2));
    let lost = within(two.happened.recv()).await.unwrap();
    assert!(matches!(lost, Happened::Down(node) if node == n(1)), "{lost:?}");
}

#[tokio::test]
async fn who_listens_at_an_address_can_be_asked_by_anybody() {
    let one = Node::start(1).await;
    let address = one.transport.local_addr().to_string();
    let asks = |cluster| probe(&address, cluster, GROUP, directory(9));
    let found = probe_joiner(&address, NUMBER, GROUP, directory(9)).await.unwrap();
    // With the cluster or the directory a stranger could speak in this node's name.
    let known = (found.node, found.cluster, found.incarnation);
    assert_eq!(known, (Some(n(1)), None, None), "a stranger receives the id alone");
    let found = asks(CLUSTER).await.unwrap();
    assert_eq!((found.cluster, found.incarnation), (Some(CLUSTER), Some(directory(1))));
    let refused = asks(ClusterId([8; 16])).await.unwrap_err();
    assert!(refused.contains("node 1 belongs to another one"), "{refused}");
    assert!(!refused.contains("0707"), "{refused}");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let unreachable = probe(&nobody.to_string(), CLUSTER, GROUP, directory(9)).await.unwrap_err();
    assert!(unreachable.contains("refused"), "{unreachable}");
}

#[tokio::test]
async fn a_question_is_answered_and_too_many_are_put_off() {
    let one = Node::start(1).await;
    let address = one.transport.local_addr().to_string();
    let member = NewMember {
        node: None,
        peer_addr: "node-9:1".to_owned(),
        client_addr: String::new(),
        incarnation: directory(9),
        joins_as: JoinAs::Learner,
    };
    let question = Question::Join { member, state_machine: String::new(), number: NUMBER };
    let asks = || ask(&address, None, GROUP, directory(9), &question);
    let refused = refusal(&format!("no place for {}", directory(9)));
    assert_eq!(asks().await, Ok(refused));
    let change = MemberChange::Remove(2);
    let (expected, risk) = (None, d_engine_core::QuorumRisk::Refuse);
    let change = Question::Change { change, expected, risk };
    let by = |cluster, of| ask(&address, cluster, GROUP, directory(of), &change);
    assert_eq!(by(Some(CLUSTER), 2).await, Ok(Answer::Changed));
    let refused = refusal("only a member may ask for a change of the members");
    assert_eq!(by(None, 2).await, Ok(refused.clone()));
    assert_eq!(by(Some(CLUSTER), 9).await, Ok(refused));
    let all = one.transport.shared.joining.try_acquire_many(16).unwrap();
    assert_eq!(asks().await, Ok(Answer::Later("too many nodes ask at once".to_owned())));
    drop(all);
    let other = GroupId::new(2).unwrap();
    let refused = ask(&address, None, other, directory(9), &question).await.unwrap_err();
    assert!(refused.contains("it asks group 2"), "{refused}");
}

/// The leader finds out whether it reaches a node before it adds it. A node that does not know the
/// number of the join does not receive the name of the directory, and cannot ask in its name.
#[tokio::test]
async fn a_node_that_joins_answers_the_probe_of_whom_it_asked_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering =
        tokio::spawn(async move { answer_probes(&listener, directory(9), NUMBER).await });
    let address_text = address.to_string();
    let asks = |number| probe_joiner(&address_text, number, GROUP, directory(1));
    let found = asks(NUMBER).await.unwrap();
    assert_eq!((found.node, found.cluster, found.incarnation), (None, None, Some(directory(9))));
    let other = asks(JoinNumber([1; 16])).await.unwrap_err();
    assert!(other.contains("with another request"), "{other}");
    probe(&address_text, CLUSTER, GROUP, directory(1)).await.unwrap_err();
    let mut one = Node::start(1).await;
    one.transport.connect(n(2), &[&address.to_string()]);
    until(|| one.refused(RefusalKind::NotJoined) > 0).await;
    answering.abort();
}
