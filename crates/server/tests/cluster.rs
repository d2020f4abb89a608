//! Real nodes in one process: files in a temporary directory, sockets on loopback.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvReply};
use d_engine_replica::ReadConsistency;
use d_engine_server::EmbeddedEngine;
use support::{PATIENCE, cluster, put, start};

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
