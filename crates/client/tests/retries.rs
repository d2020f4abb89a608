//! Which calls are retried and which are not, against a real node on a wire that can be cut.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use d_engine_client::{Client, ClientError, ClientOptions, ReadConsistency};
use d_engine_kv::KvReply;

use support::{TIMEOUT, Wire, alone, client, free_address, put, silent, wait_until};

fn options() -> ClientOptions {
    ClientOptions::default()
}

/// FAULTS.md section 2, row 46: a client's retry applied a command twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_flight_on_a_lost_connection_is_unknown_and_never_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    let (through, direct) =
        (client(std::slice::from_ref(&wire.address)), client(std::slice::from_ref(&address)));
    through.propose(put("k", "1")).await.unwrap();
    let before = direct.status(&address).await.unwrap().commit_index;

    wire.mute();
    let call = tokio::spawn(async move { (through.propose(put("k", "2")).await, through) });
    // It takes effect, and the response is lost.
    wait_until(TIMEOUT, async || {
        let value = direct.get("k", ReadConsistency::Linearizable).await.unwrap();
        (value == Some(Bytes::from_static(b"2"))).then_some(())
    })
    .await;
    wire.cut();
    let (outcome, through) = call.await.unwrap();
    assert!(matches!(outcome, Err(ClientError::OutcomeUnknown { .. })), "{outcome:?}");
    // The connection works again, so the command could have been sent again: it was not.
    through.get("k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(direct.status(&address).await.unwrap().commit_index, before + 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_in_flight_on_a_lost_connection_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    let client = client(std::slice::from_ref(&wire.address));
    client.propose(put("k", "v")).await.unwrap();
    wire.mute();
    let call = tokio::spawn(async move { client.get("k", ReadConsistency::Linearizable).await });
    wait_until(TIMEOUT, async || (wire.lost() > 0).then_some(())).await;
    wire.cut();
    assert_eq!(call.await.unwrap(), Ok(Some(Bytes::from_static(b"v"))));
    assert_eq!(wire.connections(), 2);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_falls_silent_is_noticed_long_before_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    let options =
        options().timeout(TIMEOUT).ping(Duration::from_millis(100), Duration::from_millis(200));
    let client = Client::new([&wire.address], options).unwrap();
    client.propose(put("k", "1")).await.unwrap();
    wire.mute();
    let began = Instant::now();
    let outcome = client.propose(put("k", "2")).await;
    assert!(matches!(outcome, Err(ClientError::OutcomeUnknown { .. })), "{outcome:?}");
    assert!(began.elapsed() < TIMEOUT / 3, "{:?}", began.elapsed());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_in_flight_is_unknown_for_a_command_and_harmless_for_a_read() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    // No ping before the deadline.
    let options = options().timeout(Duration::from_secs(2)).ping(TIMEOUT, TIMEOUT);
    let client = Client::new([&wire.address], options).unwrap();
    client.propose(put("k", "1")).await.unwrap();
    wire.mute();
    let outcome = client.propose(put("k", "2")).await;
    assert!(matches!(outcome, Err(ClientError::OutcomeUnknown { .. })), "{outcome:?}");
    let outcome = client.get("k", ReadConsistency::Linearizable).await;
    assert!(matches!(outcome, Err(ClientError::DeadlineElapsed { .. })), "{outcome:?}");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_sent_is_not_unknown() {
    let timeout = Duration::from_millis(500);
    let nobody = free_address();
    let client = Client::new([&nobody], options().timeout(timeout)).unwrap();
    let began = Instant::now();
    let outcome = client.propose(put("k", "v")).await;
    assert!(
        matches!(&outcome, Err(ClientError::Unreachable { endpoint, .. }) if *endpoint == nobody),
        "{outcome:?}"
    );
    // It was retried for most of that time.
    assert!(began.elapsed() >= timeout / 4, "{:?}", began.elapsed());

    // A process that hangs still accepts connections.
    let (silent, _listener) = silent();
    let client = Client::new([&silent], options().timeout(timeout)).unwrap();
    let outcome = client.propose(put("k", "v")).await;
    assert!(matches!(outcome, Err(ClientError::DeadlineElapsed { .. })), "{outcome:?}");
    let patient = options().timeout(timeout).connect_timeout(Duration::from_millis(100));
    let outcome = Client::new([&silent], patient).unwrap().propose(put("k", "v")).await;
    assert!(matches!(outcome, Err(ClientError::Unreachable { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_went_and_came_back_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let client = client(std::slice::from_ref(&address));
    client.propose(put("k", "1")).await.unwrap();
    engine.stop().await;
    // The connection is dead, and no process listens: this call waits for the node.
    let call = tokio::spawn(async move { client.propose(put("k", "2")).await });
    let (engine, _) =
        alone(dir.path(), |config| config.client_listen = Some(address.clone())).await;
    let reply = call.await.unwrap().unwrap();
    assert_eq!(KvReply::decode(&reply), Ok(KvReply::Done { existed: true }));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_node_is_asked_again_until_it_takes_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) =
        alone(dir.path(), |config| config.limits.max_pending_proposals = 1).await;
    let client = client(std::slice::from_ref(&address));
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..200 {
        let client = client.clone();
        callers.spawn(async move { client.propose(put(&format!("k{n}"), "v")).await });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap().unwrap();
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_work_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) =
        alone(dir.path(), |config| config.limits.max_command_bytes = 1000).await;
    let client = client(std::slice::from_ref(&address));
    let began = Instant::now();
    let error = client.propose(vec![b'x'; 1001]).await.unwrap_err();
    assert_eq!(error, ClientError::TooLarge { size: 1001, limit: Some(1000) });
    // Too long even for the node's message reader, which responds without a detail.
    let error = client.propose(vec![b'x'; 1 << 20]).await.unwrap_err();
    assert_eq!(error, ClientError::TooLarge { size: 1 << 20, limit: None });
    let error = client.query("what?", ReadConsistency::Linearizable).await.unwrap_err();
    assert!(matches!(error, ClientError::StateMachineFailed { .. }), "{error}");
    assert!(began.elapsed() < TIMEOUT / 3, "{:?}", began.elapsed());
    engine.stop().await;
}
