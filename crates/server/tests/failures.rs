//! What happens when something breaks: disks, state machines, directories, shutdowns.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvStateMachine};
use d_engine_replica::{ProposeError, ReadError, StateMachine as _};
use d_engine_server::{
    Config, EmbeddedEngine, NodeBuilder, ReadConsistency, StartError, WaitError,
};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::{FileStorageEngine, FileStorageOptions, FsOp, StorageError};
use support::failing::Failing;
use support::{TIMEOUT, cluster, put, start};
use tokio::sync::watch;

/// Starts a node whose files are on `fs`.
async fn start_on(fs: &SimFs, config: &Config) -> (EmbeddedEngine, watch::Sender<()>) {
    let (shutdown, shutdown_rx) = watch::channel(());
    let options = FileStorageOptions { segment_bytes: 1 << 20, ..FileStorageOptions::default() };
    let storage = FileStorageEngine::new("/data", options, Arc::new(fs.clone()));
    let node = NodeBuilder::new(config.clone(), shutdown_rx)
        .storage_engine(Arc::new(storage))
        .state_machine(Arc::new(KvStateMachine::new()))
        .build()
        .unwrap();
    (node.start().await.unwrap(), shutdown)
}

/// Row 33 of the catalogue and of the table of bad input: a failed sync of the log stops the node
/// with the reason, the others continue, and after the repair every acknowledged write is there.
#[tokio::test(flavor = "multi_thread")]
async fn row_33_a_failed_sync_stops_the_node_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let fs = SimFs::new();
    let (broken, _shutdown) = start_on(&fs, &configs[0]).await;
    let others = [start(&configs[1]).await, start(&configs[2]).await];
    broken.wait_ready(TIMEOUT).await.unwrap();
    let all = [broken.clone(), others[0].clone(), others[1].clone()];
    put(&all, "before", "1").await;
    fs.fail(FsOp::SyncData, 1, Failure::Io);
    put(&all, "during", "2").await;
    let stopped = tokio::time::timeout(TIMEOUT, broken.stopped()).await.unwrap().unwrap_err();
    assert!(stopped.to_string().contains("/data"), "{stopped}");
    let refused = broken.propose(Bytes::new()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Stopped { .. }), "{refused}");
    let status = broken.status().await;
    assert!(status.stopped.is_some() && broken.replica_status().await.is_none());
    put(&others, "after", "3").await;

    // The repair: a power cut loses what the failed write left, and the node starts again.
    fs.crash(&mut |_| 0);
    let (back, _shutdown) = start_on(&fs, &configs[0]).await;
    back.wait_ready(TIMEOUT).await.unwrap();
    for key in ["before", "during", "after"] {
        let value = back.get(key.as_bytes(), ReadConsistency::Eventual).await.unwrap();
        assert!(value.is_some(), "{key} is missing");
    }
    for engine in others.iter().chain([&back]) {
        engine.stop().await;
    }
}

/// A lack of space before a sync loses nothing: the write is retried, and the node continues by
/// itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_room_is_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let fs = SimFs::new();
    let (full, _shutdown) = start_on(&fs, &configs[0]).await;
    let others = [start(&configs[1]).await, start(&configs[2]).await];
    full.wait_ready(TIMEOUT).await.unwrap();
    let all = [full.clone(), others[0].clone(), others[1].clone()];
    put(&all, "before", "1").await;
    fs.fail(FsOp::Write, 1, Failure::NoSpace);
    put(&all, "during", "2").await;
    for key in ["before", "during"] {
        let value = full.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert!(value.is_some(), "{key} is missing");
    }
    assert!(full.status().await.stopped.is_none());
    for engine in &all {
        engine.stop().await;
    }
}

/// The read runs on its caller's thread, so its panic does not affect the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_read_is_that_reads_error() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
    let machine = Arc::new(Failing::new());
    let engine = EmbeddedEngine::start_custom(machine, config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let told = engine.get(b"panic", ReadConsistency::Linearizable).await.unwrap_err();
    assert!(
        matches!(&told, ReadError::StateMachine(text) if text.contains("get panicked: as asked")),
        "{told}"
    );
    put(std::slice::from_ref(&engine), "k", "v").await;
    let read = engine.get(b"k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(read, Some(Bytes::from_static(b"v")));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_a_snapshot_that_panics_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
    let machine = Arc::new(Failing::new());
    let engine = EmbeddedEngine::start_custom(machine, config).await.unwrap();
    put(std::slice::from_ref(&engine), "cursed", "v").await;
    let told = engine.take_snapshot().await.unwrap_err().to_string();
    assert!(told.contains("panicked: as asked"), "{told}");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_the_machine_refuses_is_not_proposed_and_the_node_lives() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::start(dir.path().join("data")).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let refused = engine.propose("no command at all").await.unwrap_err();
    assert!(matches!(&refused, ProposeError::Refused { .. }), "{refused}");
    engine.propose(KvCommand::put("k", "v").encode()).await.unwrap();
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_at_a_follower_names_the_leader_and_its_client_address() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config).await);
    }
    put(&engines, "k", "v").await;
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
    }
    let mut followers = 0;
    for engine in &engines {
        let Err(error) = engine.propose(KvCommand::put("k", "w").encode()).await else { continue };
        let ProposeError::NotLeader { leader: Some(leader) } = error else { panic!("{error}") };
        assert_eq!(leader.client_addr, format!("127.0.0.1:{}", leader.node));
        followers += 1;
    }
    assert_eq!(followers, 2);
    for engine in &engines {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_shutdown_sender_shuts_down_and_frees_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
    let (shutdown, shutdown_rx) = watch::channel(());
    let engine =
        NodeBuilder::new(config.clone(), shutdown_rx).build().unwrap().start().await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    engine.propose(KvCommand::put("k", "v").encode()).await.unwrap();

    let in_use = EmbeddedEngine::start(dir.path().join("data")).await.unwrap_err();
    assert!(matches!(in_use, StartError::Storage(StorageError::InUse { .. })), "{in_use}");
    assert!(
        in_use.to_string().contains("that is this process")
            && in_use.to_string().contains("stop()"),
        "{in_use}"
    );

    drop(shutdown);
    tokio::time::timeout(TIMEOUT, engine.stopped()).await.unwrap().unwrap();
    let again = EmbeddedEngine::start(dir.path().join("data")).await.unwrap();
    again.wait_ready(TIMEOUT).await.unwrap();
    assert!(again.get(b"k", ReadConsistency::Linearizable).await.unwrap().is_some());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_node_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 2);
    let engine = start(&configs[0]).await;
    engine.stop().await;

    let other_node = Config { data_dir: configs[0].data_dir.clone(), ..configs[1].clone() };
    let machine = || Arc::new(KvStateMachine::new());
    let refused =
        EmbeddedEngine::start_custom(machine(), other_node).await.unwrap_err().to_string();
    assert!(refused.contains("node 1") && refused.contains("node 2"), "{refused}");

    let cluster_id = Some("ffffffffffffffffffffffffffffffff".to_owned());
    let other_cluster = Config { cluster_id, ..configs[0].clone() };
    let refused =
        EmbeddedEngine::start_custom(machine(), other_cluster).await.unwrap_err().to_string();
    assert!(refused.contains("ffffffff") && refused.contains("00112233"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_refused_by_name_and_nothing_is_left_running() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = Config {
        data_dir: dir.path().join("data"),
        peer_listen: Some(address.clone()),
        ..Config::default()
    };
    let machine = || Arc::new(KvStateMachine::new());
    let refused = EmbeddedEngine::start_custom(machine(), config.clone()).await.unwrap_err();
    assert!(refused.to_string().contains(&address), "{refused}");
    drop(taken);
    let engine = EmbeddedEngine::start_custom(machine(), config).await.unwrap();
    engine.stop().await;
}

/// Waits until the leader has bound every directory that it has seen.
async fn bind_all(engines: &[EmbeddedEngine]) {
    let bound = async {
        loop {
            put(engines, "k", "v").await;
            let mut all = true;
            for engine in engines {
                let members = engine.replica_status().await.unwrap().membership;
                all &= members.members().iter().all(|member| member.incarnation.is_some());
            }
            if all {
                return;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, bound).await.unwrap();
}

/// Row 51, after the entry that bound the directory has been purged from the logs of the others and
/// they have been restarted.
#[tokio::test(flavor = "multi_thread")]
async fn row_51_a_bound_directory_stays_bound_over_a_snapshot_a_purge_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs = cluster(dir.path(), 3);
    for config in &mut configs {
        (config.snapshots.tail_entries, config.snapshots.tail_bytes) = (0, 0);
        config.snapshots.retained = 1;
        config.snapshots.reserve_bytes = 0;
    }
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config).await);
    }
    bind_all(&engines).await;
    for engine in &engines {
        engine.take_snapshot().await.unwrap();
    }
    put(&engines, "k", "after the snapshots").await;
    for engine in engines {
        engine.stop().await;
    }
    std::fs::remove_dir_all(&configs[2].data_dir).unwrap();
    let engines = [start(&configs[0]).await, start(&configs[1]).await];
    let wiped = start(&configs[2]).await;
    put(&engines, "k", "w").await;
    for engine in &engines {
        assert!(
            engine.replica_status().await.unwrap().core.log.base.index.get() > 0,
            "its log was purged"
        );
    }
    let waited = wiped.wait_ready(Duration::from_secs(3)).await;
    assert!(matches!(waited, Err(WaitError::TimedOut { .. })), "{waited:?}");
    for engine in engines.iter().chain([&wiped]) {
        engine.stop().await;
    }
}

/// Row 51: a node with a wiped directory must not be accepted as the earlier one.
#[tokio::test(flavor = "multi_thread")]
async fn row_51_a_node_with_a_wiped_directory_is_not_let_in_again() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config).await);
    }
    bind_all(&engines).await;
    engines.remove(2).stop().await;
    std::fs::remove_dir_all(&configs[2].data_dir).unwrap();
    let wiped = start(&configs[2]).await;
    put(&engines, "k", "w").await;
    let waited = wiped.wait_ready(Duration::from_secs(3)).await;
    assert!(matches!(waited, Err(WaitError::TimedOut { .. })), "{waited:?}");
    for engine in engines.iter().chain([&wiped]) {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_may_serve_clients_on_any_port() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().join("data"),
        client_listen: Some("127.0.0.1:0".to_owned()),
        ..Config::default()
    };
    let machine = || Arc::new(KvStateMachine::new());
    let engine = EmbeddedEngine::start_custom(machine(), config.clone()).await.unwrap();
    assert!(engine.client_addr().is_some_and(|address| address.port() != 0));
    engine.stop().await;

    let same = Config {
        data_dir: dir.path().join("other"),
        peer_listen: Some("127.0.0.1:7999".to_owned()),
        client_listen: Some("127.0.0.1:7999".to_owned()),
        ..config
    };
    let refused = EmbeddedEngine::start_custom(machine(), same).await.unwrap_err().to_string();
    assert!(refused.contains("127.0.0.1:7999"), "{refused}");
}

/// A state machine that was started is stopped, whatever prevents the node from starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_stops_the_state_machine_again() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config {
        data_dir: dir.path().join("data"),
        client_listen: Some(taken.local_addr().unwrap().to_string()),
        ..Config::default()
    };
    let machine = Arc::new(KvStateMachine::new());
    let refused = EmbeddedEngine::start_custom(machine.clone(), config).await.unwrap_err();
    assert!(matches!(refused, StartError::Bind { whom: "clients", .. }), "{refused}");
    assert!(!machine.is_running());
}
