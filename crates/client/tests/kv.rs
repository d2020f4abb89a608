//! The key-value calls against real nodes.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use d_engine_client::{
    BatchOutcome, ClientError, KvClient, KvError, KvOperation, PutOptions, PutOutcome,
    QueryLimitError, ReadConsistency, Scan, SwapOutcome,
};

use support::{Wire, alone, client, free_address, wait_until};

const LINEARIZABLE: ReadConsistency = ReadConsistency::Linearizable;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let kv = KvClient::new(client(&[address]));
    assert!(!kv.put("a", "1").await.unwrap());
    assert!(kv.put("a", "2").await.unwrap());
    let returning = PutOptions::default().previous();
    let outcome = kv.put_with("a", "3", returning).await.unwrap();
    assert_eq!(outcome, PutOutcome { existed: true, previous: Some(bytes("2")) });
    let outcome = kv.put_with("b", "1", returning).await.unwrap();
    assert_eq!(outcome, PutOutcome { existed: false, previous: None });
    let outcome = kv.compare_and_swap("a", Some(bytes("wrong")), Some(bytes("4"))).await.unwrap();
    assert_eq!(outcome, SwapOutcome::Failed { current: Some(bytes("3")) });
    let outcome = kv.compare_and_swap("a", Some(bytes("3")), Some(bytes("4"))).await.unwrap();
    assert_eq!(outcome, SwapOutcome::Done);
    assert_eq!(kv.get("a", LINEARIZABLE).await.unwrap(), Some(bytes("4")));
    let values = kv.get_many(["b", "none", "a"], LINEARIZABLE).await.unwrap();
    assert_eq!(values, [Some(bytes("1")), None, Some(bytes("4"))]);
    assert!(kv.delete("b").await.unwrap());
    assert!(!kv.delete("b").await.unwrap());

    let failing = [KvOperation::put("c", "1"), KvOperation::compare_and_swap("a", None, None)];
    let outcome = kv.batch(failing).await.unwrap();
    assert_eq!(outcome, BatchOutcome::Failed { operation: 1, current: Some(bytes("4")) });
    let outcome = kv.batch([KvOperation::put("c", "1"), KvOperation::delete("a")]).await.unwrap();
    assert_eq!(outcome, BatchOutcome::Done { existed: vec![false, true] });
    assert_eq!(kv.get_many(["a", "c"], LINEARIZABLE).await.unwrap(), [None, Some(bytes("1"))]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_goes_from_page_to_page_until_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let kv = KvClient::new(client(&[address]));
    for n in 0..7 {
        kv.put(format!("k{n}"), "v").await.unwrap();
    }
    kv.put("other", "v").await.unwrap();
    let mut pages = kv.pages(Scan::prefix("k").limit(3).keys_only(), LINEARIZABLE);
    let mut sizes = Vec::new();
    while let Some(page) = pages.next_page().await.unwrap() {
        sizes.push(page.records.len());
        assert!(page.records.iter().all(|record| record.value.is_none()));
    }
    assert_eq!(sizes, [3, 3, 1]);
    let page = kv.scan(Scan::range("k5", Some(bytes("k6"))), LINEARIZABLE).await.unwrap();
    assert_eq!((page.records.len(), page.next), (1, None));
    assert_eq!(page.records[0].value, Some(bytes("v")));
    engine.stop().await;
}

/// No other command is written: the leader's ticks move log time.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_time_to_live_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let kv = KvClient::new(client(&[address]));
    kv.put_with("k", "v", PutOptions::default().ttl(Duration::from_millis(50))).await.unwrap();
    kv.put_with("kept", "v", PutOptions::default().ttl(Duration::from_secs(3600))).await.unwrap();
    wait_until(support::TIMEOUT, async || {
        kv.get("k", LINEARIZABLE).await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(kv.get("kept", LINEARIZABLE).await.unwrap(), Some(bytes("v")));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_too_much_is_refused_before_it_is_sent() {
    // No process listens there.
    let kv = KvClient::new(client(&[free_address()]));
    let error = kv.get_many(vec!["k"; 10_001], LINEARIZABLE).await.unwrap_err();
    assert_eq!(error, KvError::Limit(QueryLimitError::Keys { keys: 10_001 }));
    let error = kv.scan(Scan::all().limit(10_001), LINEARIZABLE).await.unwrap_err();
    assert_eq!(error, KvError::Limit(QueryLimitError::Records { limit: 10_001 }));
    let error = kv.batch(vec![KvOperation::delete("k"); 1_001]).await.unwrap_err();
    assert_eq!(error, KvError::BatchTooLong { operations: 1_001 });
    let error = kv.put("k", vec![0; 9 << 20]).await.unwrap_err();
    assert!(
        matches!(error, KvError::Client(ClientError::TooLarge { limit: Some(8_388_608), .. })),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_commands_declared_idempotent_are_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let direct = KvClient::new(client(std::slice::from_ref(&address)));
    for (idempotent, key) in [(false, "once"), (true, "twice")] {
        let wire = Wire::to(&address).await;
        let kv = KvClient::new(client(std::slice::from_ref(&wire.address)));
        let kv = if idempotent { kv.idempotent() } else { kv };
        // The first command checks the state machine's name.
        kv.delete("nothing").await.unwrap();
        wire.mute();
        let call = tokio::spawn(async move { kv.put(key, "v").await });
        wait_until(support::TIMEOUT, async || direct.get(key, LINEARIZABLE).await.unwrap()).await;
        wire.cut();
        match call.await.unwrap() {
            // At the second attempt the key existed.
            Ok(existed) => assert!(idempotent && existed),
            Err(error) => assert!(!idempotent && error.is_unknown(), "{error}"),
        }
    }
    engine.stop().await;
}
