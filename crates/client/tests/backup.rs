//! Backups over the network: interrupted, continued, bounded, and ended with the node.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use d_engine_client::{BackupOf, BackupTransfer, Client, ClientError};
use d_engine_server::EmbeddedEngine;
use d_engine_storage::RealFs;
use d_engine_storage::snapshot::{FullSpeed, SnapshotArchive};
use support::{TIMEOUT, alone, client, put, wait_until};

/// A node whose newest snapshot alone is retained, with 4 MB of state.
async fn node(dir: &Path) -> (EmbeddedEngine, String) {
    let (engine, address) = alone(dir, |config| config.snapshots.retained = 1).await;
    let value = "v".repeat(100_000);
    for n in 0..40 {
        engine.propose(put(&format!("k{n}"), &value)).await.unwrap();
    }
    (engine, address)
}

/// Appends what comes, up to `most` pieces; returns whether it is the end.
async fn receive(transfer: &mut BackupTransfer, into: &mut Vec<u8>, most: usize) -> bool {
    for _ in 0..most {
        let Some(piece) = transfer.next().await.unwrap() else { return true };
        assert_eq!(piece.offset, into.len() as u64);
        into.extend_from_slice(&piece.data);
    }
    false
}

fn rest(transfer: &BackupTransfer, received: &[u8]) -> BackupOf {
    BackupOf::Rest { sha256: transfer.offer().sha256, from_offset: received.len() as u64 }
}

/// The node has newer snapshots by then, and retains one.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_continues_with_the_same_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = node(&dir.path().join("node")).await;
    let client = client(std::slice::from_ref(&address));
    let mut transfer = client.backup(&address, BackupOf::Acknowledged).await.unwrap();
    let offer = transfer.offer().clone();
    assert!(offer.complete_up_to.is_some_and(|index| index <= offer.index), "{offer:?}");
    let mut received = Vec::new();
    let mut interruptions = 0;
    while !receive(&mut transfer, &mut received, 3).await {
        let rest = rest(&transfer, &received);
        drop(transfer);
        engine.propose(put("newer", &interruptions.to_string())).await.unwrap();
        engine.take_snapshot().await.unwrap();
        transfer = client.backup(&address, rest).await.unwrap();
        assert_eq!(transfer.offer().sha256, offer.sha256);
        interruptions += 1;
    }
    assert!(interruptions > 3, "{interruptions}");
    let file = dir.path().join("db.dbak");
    std::fs::write(&file, &received).unwrap();
    let archive = SnapshotArchive::open_file(&RealFs::new(), &file).unwrap();
    archive.verify(&mut FullSpeed).unwrap();
    assert_eq!((archive.sha256(), archive.len()), (offer.sha256, offer.bytes));
    // What was received to the end is not kept.
    let gone = wait_until(TIMEOUT, async || {
        engine.propose(put("newest", "v")).await.unwrap();
        engine.take_snapshot().await.unwrap();
        let all = BackupOf::Rest { sha256: offer.sha256, from_offset: 0 };
        match client.backup(&address, all).await {
            Err(error) => Some(error),
            Ok(mut transfer) => {
                receive(&mut transfer, &mut Vec::new(), usize::MAX).await;
                None
            }
        }
    });
    let gone = gone.await;
    assert!(matches!(gone, ClientError::SnapshotFailed { .. }), "{gone:?}");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backups_at_a_time_are_sent_and_a_node_that_stops_ends_them() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = node(&dir.path().join("node")).await;
    let client = client(std::slice::from_ref(&address));
    // Nothing of it is taken.
    let mut first = client.backup(&address, BackupOf::Applied).await.unwrap();
    assert_eq!(first.offer().complete_up_to, None);
    let second = client.backup(&address, BackupOf::Acknowledged).await.unwrap();
    let third = client.backup(&address, BackupOf::Acknowledged).await.map(drop);
    assert!(matches!(third, Err(ClientError::Busy { .. })), "{third:?}");
    drop(second);
    // The place is free again.
    wait_until(TIMEOUT, async || {
        client.backup(&address, BackupOf::Acknowledged).await.ok().map(drop)
    })
    .await;
    tokio::time::timeout(TIMEOUT, engine.stop()).await.unwrap();
    let error = loop {
        match first.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the transfer ended as if it were complete"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, ClientError::Stopped { .. } | ClientError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_that_is_none_and_an_offset_past_the_end_are_refused() {
    use d_engine_api::message::{BackupRequest, engine_client::EngineClient};
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = node(&dir.path().join("node")).await;
    let client: Client = client(std::slice::from_ref(&address));
    let transfer = client.backup(&address, BackupOf::Acknowledged).await.unwrap();
    let offer = transfer.offer().clone();
    drop(transfer);
    let past = BackupOf::Rest { sha256: offer.sha256, from_offset: offer.bytes + 1 };
    let past = client.backup(&address, past).await.map(drop);
    assert!(matches!(past, Err(ClientError::SnapshotFailed { .. })), "{past:?}");
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut calls = EngineClient::new(endpoint.connect().await.unwrap());
    let request = BackupRequest { sha256: vec![1; 31].into(), ..BackupRequest::default() };
    let short = calls.backup(request).await.unwrap_err();
    assert!(short.message().contains("32 bytes"), "{short}");
    engine.stop().await;
}
