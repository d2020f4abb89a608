//! What a node that nobody has invited learns from a leader that admits invited nodes, and what it
//! makes the leader do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use d_engine_core::GroupId;
use d_engine_kv::KvStateMachine;
use d_engine_storage::{ClusterId, Identity, Incarnation, JoinAs, NewMember};
use d_engine_wire::{Answer, JoinNumber, Question};
use tokio::net::TcpListener;

use crate::{Admission, Config, EmbeddedEngine, transport};

const NUMBER: JoinNumber = JoinNumber([3; 16]);
const OWN: Incarnation = Incarnation([4; 16]);

/// A leader that admits invited nodes, and its address.
async fn leader(dir: &tempfile::TempDir) -> (EmbeddedEngine, String) {
    let config = Config {
        data_dir: dir.path().join("leader"),
        peer_listen: Some("127.0.0.1:0".to_owned()),
        admission: Some(Admission::Invited),
        ..Config::default()
    };
    let engine = EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config);
    let engine = engine.await.unwrap();
    engine.wait_ready(Duration::from_secs(20)).await.unwrap();
    let address = engine.members().list.first().unwrap().peer_addr.clone();
    (engine, address)
}

/// Asks `leader` to let in the node with this directory, which says that it is reached at `at`.
async fn asks(
    leader: &str,
    cluster: Option<ClusterId>,
    directory: Incarnation,
    at: &str,
) -> Answer {
    let member = NewMember {
        node: None,
        peer_addr: at.to_owned(),
        client_addr: String::new(),
        incarnation: directory,
        joins_as: JoinAs::Voter { replaces: None },
    };
    let question = Question::Join { member, state_machine: String::new(), number: NUMBER };
    transport::ask(leader, cluster, GroupId::FIRST, directory, &question).await.unwrap()
}

#[tokio::test]
async fn a_stranger_does_not_choose_what_the_leader_dials() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, leader) = leader(&dir).await;
    let victim = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let answer = asks(&leader, None, OWN, &victim.local_addr().unwrap().to_string()).await;
    let Answer::Later(why) = answer else { panic!("{answer:?}") };
    assert!(why.contains("is not invited") && why.contains("member add --peer"), "{why}");
    let dialled = tokio::time::timeout(Duration::ZERO, victim.accept()).await;
    assert!(dialled.is_err(), "{dialled:?}");
    engine.stop().await;
}

/// It has learned the name of a member's directory, and answers the leader's probe with it.
#[tokio::test]
async fn a_stranger_that_pretends_to_be_a_member_does_not_learn_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, leader) = leader(&dir).await;
    let Identity { cluster, incarnation: known, .. } = *engine.identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let pretends =
        tokio::spawn(async move { transport::answer_probes(&listener, known, NUMBER).await });
    let answer = asks(&leader, None, known, &at).await;
    let Answer::Refused { reason, .. } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("set `cluster_id`") && !reason.contains(&cluster.to_string()));
    // A member whose answer was lost asks again, from wherever it is now.
    let answer = asks(&leader, Some(cluster), known, &at).await;
    assert!(matches!(answer, Answer::Joined { .. }), "{answer:?}");
    pretends.abort();
    engine.stop().await;
}
