//! Backups of a cluster that serves, from inside the process.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use d_engine_server::{BackupError, BackupOptions, EmbeddedEngine};
use d_engine_storage::RealFs;
use d_engine_storage::snapshot::{FullSpeed, SnapshotArchive, SnapshotError};
use support::{TIMEOUT, cluster, put, start};

async fn start_all(dir: &std::path::Path) -> Vec<EmbeddedEngine> {
    let configs = cluster(dir, 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config).await);
    }
    engines
}

/// A follower learns late that an entry is committed: the backup must not miss it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_has_every_write_that_was_acknowledged_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let engines = start_all(dir.path()).await;
    for round in 0..20 {
        put(&engines, &format!("k{round}"), "v").await;
        let leader = engines.iter().find(|engine| engine.is_leader()).unwrap();
        let acknowledged = leader.status().await.commit_index;
        for engine in engines.iter().filter(|engine| !engine.is_leader()) {
            let file = dir.path().join(format!("{}-{round}.dbak", engine.node_id()));
            let backup = engine.backup(&file, BackupOptions::default()).await.unwrap();
            let last = backup.last_included.index.get();
            assert!(last >= acknowledged, "{acknowledged} is acknowledged, {last} is in it");
            assert!(backup.complete_up_to.unwrap() >= acknowledged, "{backup:?}");
            let archive = SnapshotArchive::open_file(&RealFs::new(), &file).unwrap();
            archive.verify(&mut FullSpeed).unwrap();
            assert_eq!(archive.last_included(), backup.last_included);
            assert_eq!((archive.sha256(), archive.len()), (backup.sha256, backup.bytes));
        }
    }
    for engine in &engines {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_backup_is_made_only_if_it_may_be_stale() {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = start_all(dir.path()).await;
    put(&engines, "k", "v").await;
    let last = engines.remove(2);
    last.wait_ready(TIMEOUT).await.unwrap();
    for engine in &engines {
        engine.stop().await;
    }
    let file = dir.path().join("db.dbak");
    let refused = last.backup(&file, BackupOptions::default()).await;
    assert!(matches!(refused, Err(BackupError::Snapshot(_))), "{refused:?}");
    assert!(!file.exists());
    let backup = last.backup(&file, BackupOptions::default().stale(true)).await.unwrap();
    assert_eq!(backup.complete_up_to, None);
    assert!(file.exists());
    // Nothing is overwritten, and no snapshot is taken for that.
    let again = last.backup(&file, BackupOptions::default()).await;
    assert!(matches!(again, Err(BackupError::File(SnapshotError::Exists { .. }))), "{again:?}");
    last.stop().await;
    let stopped = Arc::new(last);
    let refused = stopped.backup(dir.path().join("x"), BackupOptions::default().stale(true)).await;
    assert!(matches!(refused, Err(BackupError::Snapshot(_))), "{refused:?}");
}

/// The cluster is idle, so the snapshot that was taken for the first backup would do for the
/// second.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_damaged_since_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let engines = start_all(dir.path()).await;
    put(&engines, "k", "v").await;
    let engine = engines.iter().find(|engine| !engine.is_leader()).unwrap();
    let first = engine.backup(dir.path().join("1"), BackupOptions::default()).await.unwrap();
    let data = dir.path().join(format!("node-{}", engine.node_id()));
    for entry in std::fs::read_dir(data.join("snapshots")).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
    let second = engine.backup(dir.path().join("2"), BackupOptions::default()).await.unwrap();
    assert!(second.last_included >= first.last_included);
    for file in ["1", "2"] {
        let archive = SnapshotArchive::open_file(&RealFs::new(), &dir.path().join(file)).unwrap();
        archive.verify(&mut FullSpeed).unwrap();
    }
    for engine in &engines {
        engine.stop().await;
    }
}
