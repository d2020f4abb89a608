//! Real nodes in one process: files in a temporary directory, sockets on loopback.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvReply};
use std::time::Duration;

use d_engine_replica::{ReadError, TransferError};
use d_engine_server::{EmbeddedEngine, ReadConsistency};
use support::{TIMEOUT, cluster, put, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_answers_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::start(dir.path()).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let reply = engine.propose(KvCommand::put("k", "v").encode()).await.unwrap();
    assert_eq!(KvReply::decode(&reply).unwrap(), KvReply::Done { existed: false });
    engine.stop().await;

    let engine = EmbeddedEngine::start(dir.path()).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
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
        engine.wait_ready(TIMEOUT).await.unwrap();
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
    back.wait_ready(TIMEOUT).await.unwrap();
    for n in 0..100 {
        let value = back.get(format!("k{n}").as_bytes(), ReadConsistency::Eventual).await.unwrap();
        assert_eq!(value, Some(Bytes::from_static(b"after")), "key k{n}");
    }
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}

/// Reads at this node, and retries during an election.
async fn read(engine: &EmbeddedEngine, key: &str, consistency: ReadConsistency) -> Option<Bytes> {
    let answered = async {
        loop {
            match engine.get(key.as_bytes(), consistency).await {
                Ok(value) => return value,
                Err(ReadError::NotLeader { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(TIMEOUT, answered).await.unwrap()
}

/// Returns the node that leads.
async fn leader(engines: &[EmbeddedEngine]) -> usize {
    let found = async {
        loop {
            tokio::task::yield_now().await;
            for (place, engine) in engines.iter().enumerate() {
                if engine.is_leader()
                    && engine.read_barrier(ReadConsistency::Linearizable).await.is_ok()
                {
                    return place;
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, found).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_the_node_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = Vec::new();
    for config in &cluster(dir.path(), 3) {
        engines.push(start(config).await);
    }
    put(&engines, "k", "v").await;
    let old = leader(&engines).await;
    let target = (old + 1) % 3;
    let named = target as u64 + 1;
    assert_eq!(engines[old].transfer_leadership(Some(named)).await, Ok(named));
    put(&engines, "k", "w").await;
    assert_eq!(leader(&engines).await, target);
    let refused = engines[target].transfer_leadership(Some(9)).await.unwrap_err();
    assert_eq!(refused, TransferError::NoTarget);
    let refused = engines[old].transfer_leadership(None).await.unwrap_err();
    assert!(matches!(refused, TransferError::NotLeader { leader: Some(_) }), "{refused}");
    for engine in &engines {
        engine.stop().await;
    }
}

/// Every node serves every kind of read; the first two kinds see every write that was acknowledged
/// before.
#[tokio::test(flavor = "multi_thread")]
async fn every_node_sees_acknowledged_writes_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = Vec::new();
    for config in &cluster(dir.path(), 3) {
        engines.push(start(config).await);
    }
    for n in 0..50 {
        let value = n.to_string();
        put(&engines, "k", &value).await;
        for (place, engine) in engines.iter().enumerate() {
            for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease] {
                let seen = read(engine, "k", consistency).await;
                assert_eq!(seen, Some(Bytes::from(value.clone())), "node {place}, {consistency:?}");
            }
        }
    }
    for engine in &engines {
        engine.stop().await;
    }
    let closed = engines[0].get(b"k", ReadConsistency::Lease).await.unwrap_err();
    assert!(matches!(closed, ReadError::Stopped { .. }), "{closed}");
    let closed = engines[0].get(b"k", ReadConsistency::Eventual).await.unwrap_err();
    assert!(matches!(closed, ReadError::Stopped { .. }), "{closed}");
}

/// The leader of two voters whose follower is down cannot confirm a round. Its lease serves reads
/// until the lease has expired, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_read_asks_nobody_while_the_lease_lasts_and_somebody_after() {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = Vec::new();
    for mut config in cluster(dir.path(), 2) {
        config.election_timeout_min_ms = 4_000;
        config.election_timeout_max_ms = 8_000;
        engines.push(start(&config).await);
    }
    put(&engines, "k", "v").await;
    let leader = leader(&engines).await;
    // Once a round has confirmed a read, the first heartbeats after the election have been
    // acknowledged.
    engines[leader].get(b"k", ReadConsistency::Linearizable).await.unwrap();
    engines[1 - leader].stop().await;
    let asked = engines[leader].get(b"k", ReadConsistency::Linearizable);
    let quarter = Duration::from_millis(250);
    assert!(tokio::time::timeout(quarter, asked).await.is_err(), "a round needs the other node");
    let by_lease = engines[leader].get(b"k", ReadConsistency::Lease);
    assert_eq!(tokio::time::timeout(quarter, by_lease).await.unwrap().unwrap(), Some("v".into()));
    let over = async {
        while let Ok(Ok(_)) =
            tokio::time::timeout(quarter, engines[leader].get(b"k", ReadConsistency::Lease)).await
        {
        }
    };
    tokio::time::timeout(TIMEOUT, over).await.unwrap();
    engines[leader].stop().await;
}

/// With election timeouts of several seconds, the others continue within four seconds only after a
/// leadership transfer.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_shuts_down_leaves_no_election_timeout_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = Vec::new();
    for mut config in cluster(dir.path(), 3) {
        config.election_timeout_min_ms = 5_000;
        config.election_timeout_max_ms = 7_000;
        engines.push(start(&config).await);
    }
    put(&engines, "k", "v").await;
    let old = leader(&engines).await;
    engines.remove(old).stop().await;
    tokio::time::timeout(Duration::from_secs(4), put(&engines, "k", "w")).await.unwrap();
    for engine in &engines {
        engine.stop().await;
    }
}
