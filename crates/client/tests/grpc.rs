//! The client service as programs in other languages see it: the plain gRPC calls.
#![allow(clippy::unwrap_used)]

#[path = "../../server/tests/support/held.rs"]
mod held;
mod support;

use std::sync::Arc;
use std::time::Duration;

use d_engine_api::message::engine_client::EngineClient;
use d_engine_api::message::{Consistency, GetRequest, ProposeRequest, QueryRequest, StatusRequest};
use d_engine_client::{Client, ClientError, ClientOptions};
use d_engine_server::{Config, EmbeddedEngine};
use held::Held;
use support::{TIMEOUT, alone, free_address, put};
use tonic::Request;

async fn connect(address: &str) -> EngineClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    EngineClient::new(endpoint.connect().await.unwrap())
}

fn get(key: &str, consistency: Consistency) -> GetRequest {
    GetRequest { key: key.to_owned().into(), consistency: consistency.into() }
}

/// Without the field a read gets the strongest consistency: only an eventual read promises no
/// index.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_without_a_consistency_is_linearizable() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let mut calls = connect(&address).await;
    calls.propose(ProposeRequest { command: put("k", "v") }).await.unwrap();
    for (consistency, is_confirmed) in [
        (Consistency::Unspecified, true),
        (Consistency::Linearizable, true),
        (Consistency::Lease, true),
        (Consistency::Eventual, false),
    ] {
        let reply = calls.get(get("k", consistency)).await.unwrap().into_inner();
        assert_eq!(
            (reply.value.as_ref(), reply.read_index > 0),
            (b"v".as_slice(), is_confirmed),
            "{consistency:?}"
        );
        let request = d_engine_kv::KvQuery::get_many(["k"]).encode();
        let request = QueryRequest { request, consistency: consistency.into() };
        let reply = calls.query(request).await.unwrap().into_inner();
        assert_eq!(reply.read_index > 0, is_confirmed, "{consistency:?}");
    }
    engine.stop().await;
}

/// A command whose caller no longer waits is not proposed.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_time_left_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let mut calls = connect(&address).await;
    for n in 0..20 {
        let mut request = Request::new(ProposeRequest { command: put(&format!("late {n}"), "v") });
        request.metadata_mut().insert("grpc-timeout", "1n".parse().unwrap());
        calls.propose(request).await.unwrap_err();
    }
    calls.propose(ProposeRequest { command: put("k", "v") }).await.unwrap();
    for n in 0..20 {
        let late = calls
            .get(get(&format!("late {n}"), Consistency::Linearizable))
            .await
            .unwrap()
            .into_inner();
        assert!(!late.found, "{n}");
    }
    engine.stop().await;
}

/// The value is looked up after the read barrier has been passed, not when the request arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_what_is_committed_before_it_looks() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, address) = (Arc::new(Held::default()), free_address());
    let config = Config {
        data_dir: dir.path().to_owned(),
        client_listen: Some(address.clone()),
        ..Config::default()
    };
    let engine = EmbeddedEngine::start_custom(machine.clone(), config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let mut calls = connect(&address).await;
    let closed = machine.apply.close();
    let mut writes = calls.clone();
    let write =
        tokio::spawn(
            async move { writes.propose(ProposeRequest { command: put("k", "v") }).await },
        );
    closed.blocks_a_call().await;
    let reads: Vec<_> = [Consistency::Linearizable, Consistency::Lease]
        .map(|consistency| {
            let mut reads = calls.clone();
            tokio::spawn(async move { reads.get(get("k", consistency)).await })
        })
        .into();
    // Sent after the reads on the same connection: once these have responses, the reads have
    // arrived.
    for _ in 0..3 {
        calls.status(StatusRequest {}).await.unwrap();
    }
    assert!(
        reads.iter().all(|read| !read.is_finished()),
        "a read did not wait for what is committed"
    );
    drop(closed);
    write.await.unwrap().unwrap();
    for read in reads {
        assert!(read.await.unwrap().unwrap().into_inner().found);
    }
    engine.stop().await;
}

/// The error names the call's own deadline, not an unreachable node.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_takes_longer_than_its_caller_waits_is_late() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, address) = (Arc::new(Held::default()), free_address());
    let config = Config {
        data_dir: dir.path().to_owned(),
        client_listen: Some(address.clone()),
        ..Config::default()
    };
    let engine = EmbeddedEngine::start_custom(machine.clone(), config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let client = Client::new([&address], ClientOptions::default()).unwrap();
    client.propose(put("k", "v")).await.unwrap();
    let closed = machine.apply.close();
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.propose(put("k", "w")).await }
    });
    closed.blocks_a_call().await;
    for ms in [1, 2, 5, 20, 50] {
        let hasty = client.with_timeout(Duration::from_millis(ms));
        let late = hasty.take_snapshot(&address).await.unwrap_err();
        assert!(matches!(late, ClientError::DeadlineElapsed { .. }), "{ms} ms: {late}");
    }
    drop(closed);
    write.await.unwrap().unwrap();
    engine.stop().await;
}
