//! Real nodes in one process: files in a temporary directory, sockets on loopback.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvReply, KvStateMachine};
use d_engine_replica::{ProposeError, ReadConsistency};
use d_engine_server::{Config, EmbeddedEngine, MemberConfig};

const PATIENCE: Duration = Duration::from_secs(20);

/// Configurations of a cluster on free ports, data under `dir`.
fn cluster(dir: &std::path::Path, nodes: u64) -> Vec<Config> {
    // All listeners are held until every port is known, so that no port is given twice.
    let held: Vec<TcpListener> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let members: Vec<MemberConfig> = held
        .iter()
        .zip(1..)
        .map(|(listener, id)| MemberConfig {
            id,
            peer_addr: listener.local_addr().unwrap().to_string(),
            client_addr: String::new(),
        })
        .collect();
    (1..=nodes)
        .map(|node_id| Config {
            node_id,
            cluster_id: Some("00112233445566778899aabbccddeeff".to_owned()),
            data_dir: dir.join(format!("node-{node_id}")),
            members: members.clone(),
            ..Config::default()
        })
        .collect()
}

async fn start(config: &Config) -> EmbeddedEngine {
    EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config.clone()).await.unwrap()
}

/// Proposes at whichever node leads.
async fn put(engines: &[EmbeddedEngine], key: &str, value: &str) -> Bytes {
    let command = KvCommand::put(key.to_owned(), value.to_owned()).encode();
    tokio::time::timeout(PATIENCE, async {
        loop {
            for engine in engines {
                match engine.propose(command.clone()).await {
                    Ok(reply) => return reply,
                    Err(
                        ProposeError::NotLeader { .. }
                        | ProposeError::OutcomeUnknown
                        | ProposeError::Stopped { .. },
                    ) => {
                        tokio::task::yield_now().await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_answers_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::start(dir.path()).await.unwrap();
    engine.wait_ready(PATIENCE).await.unwrap();
    let reply = engine.propose(KvCommand::put("k", "v").encode()).await.unwrap();
    assert_eq!(KvReply::decode(&reply).unwrap(), KvReply::Done { existed: false });
    engine.stop().await;

    let engine = EmbeddedEngine::start(dir.path()).await.unwrap();
    engine.wait_ready(PATIENCE).await.unwrap();
    let value = engine.get(b"k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(value, Some(Bytes::from_static(b"v")));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_go_on_without_one_and_the_third_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config).await);
    }
    for engine in &engines {
        engine.wait_ready(PATIENCE).await.unwrap();
    }
    for n in 0..100 {
        put(&engines, &format!("k{n}"), "before").await;
    }
    let stopped = engines.remove(0);
    stopped.stop().await;
    for n in 0..100 {
        put(&engines, &format!("k{n}"), "after").await;
    }
    let back = start(&configs[0]).await;
    back.wait_ready(PATIENCE).await.unwrap();
    for n in 0..100 {
        let value = back.get(format!("k{n}").as_bytes(), ReadConsistency::Eventual).await.unwrap();
        assert_eq!(value, Some(Bytes::from_static(b"after")), "key k{n}");
    }
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}
