//! A state machine that panics in a read, seen over the network.
#![allow(clippy::unwrap_used)]

#[path = "../../replica/tests/recording/machine.rs"]
mod recording;
mod support;

use std::sync::Arc;

use d_engine_client::{ClientError, KvClient, KvError, ReadConsistency};
use d_engine_server::{Config, EmbeddedEngine};
use recording::{Manner, Recording};
use support::{TIMEOUT, client, free_address};

/// The caller receives the panic as an error, the client does not retry, and nothing else is
/// affected.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_read_is_told_once_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let config = Config {
        data_dir: dir.path().to_owned(),
        client_listen: Some(address.clone()),
        ..Config::default()
    };
    let machine = Recording::with(Manner { panics_in_reads: true, ..Manner::default() });
    let calls = machine.calls.clone();
    let engine = EmbeddedEngine::start_custom(Arc::new(machine), config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let client = client(&[address]);
    let told = client.get("k", ReadConsistency::Linearizable).await.unwrap_err();
    assert!(matches!(told, ClientError::StateMachineFailed { .. }), "{told:?}");
    assert!(told.to_string().contains("get panicked: as asked"), "{told}");
    assert_eq!(told.to_string().matches("could not").count(), 1, "{told}");
    assert_eq!(calls.with("get"), ["k"]);
    client.propose(vec![1]).await.unwrap();
    engine.stop().await;
}

/// Another state machine might accept any bytes as its own command: nothing may reach its log.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_at_another_state_machine_is_refused_before_it_is_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let config = Config {
        data_dir: dir.path().to_owned(),
        client_listen: Some(address.clone()),
        ..Config::default()
    };
    let machine = Recording::with(Manner::default());
    let calls = machine.calls.clone();
    let engine = EmbeddedEngine::start_custom(Arc::new(machine), config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let kv = KvClient::new(client(&[address]));
    for _ in 0..2 {
        let refused = kv.put("k", "v").await.unwrap_err();
        assert!(
            matches!(refused, KvError::OtherMachine { .. }) && !refused.is_unknown(),
            "{refused}"
        );
    }
    assert!(calls.with("apply_chunk").is_empty());
    engine.stop().await;
}
