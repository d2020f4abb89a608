//! The table of the state machine's methods, row by row: snapshots and purges. Real nodes, real
//! files; the state machine records its calls.
#![allow(clippy::unwrap_used)]

mod alone;
#[path = "../../replica/tests/recording/machine.rs"]
mod recording;
mod support;

use std::sync::Arc;

use alone::{Alone, hold, three_without_a_tail, until};
use d_engine_server::{Config, EmbeddedEngine};
use recording::{Manner, Recording};
use support::TIMEOUT;

#[tokio::test(flavor = "multi_thread")]
async fn row_persist_last_applied_before_a_purge_and_at_shutdown() {
    let node = Alone::start(Recording::default()).await;
    node.propose(1).await;
    node.settle().await;
    node.calls.clear();
    let last_included = node.engine.take_snapshot().await.unwrap().last_included().index.get();
    assert_eq!(node.calls.with("persist_last_applied"), [last_included.to_string()]);
    node.propose(2).await;
    node.settle().await;
    let (applied, calls) = (node.applied().await, node.calls.clone());
    node.stop().await;
    assert_eq!(
        calls.with("persist_last_applied"),
        [last_included.to_string(), applied.to_string()]
    );
    // The periodic calls are tested by `the_position_is_persisted_periodically` beside the handler.
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_snapshot_metadata_after_a_snapshot_is_created() {
    let node = Alone::start(Recording::default()).await;
    node.propose(1).await;
    node.settle().await;
    node.calls.clear();
    let taken = node.engine.take_snapshot().await.unwrap();
    let last_included = taken.last_included().index.get().to_string();
    assert_eq!(node.calls.with("update_last_snapshot_metadata"), [last_included.as_str()]);
    assert_eq!(node.calls.with("persist_last_snapshot_metadata"), [last_included.as_str()]);
    let (generated, updated) = (
        node.calls.first("generate_snapshot_data"),
        node.calls.first("update_last_snapshot_metadata"),
    );
    let persisted = node.calls.first("persist_last_snapshot_metadata");
    assert!(generated < updated && updated < persisted && persisted < node.calls.first("flush"));
    // The file was in place before the machine was called.
    let file = std::fs::read_dir(node.config.data_dir.join("snapshots")).unwrap();
    assert!(file.flatten().any(|entry| entry.metadata().unwrap().len() == taken.len));
    assert_eq!(
        node.machine.held().snapshot.as_ref().unwrap().last_included.index.to_string(),
        last_included
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_generate_snapshot_data_at_a_snapshots_creation() {
    let node = Alone::start(Recording::default()).await;
    node.propose(1).await;
    node.settle().await;
    assert_eq!(node.calls.count("generate_snapshot_data"), 0);
    let applied = node.applied().await;
    node.engine.take_snapshot().await.unwrap();
    assert_eq!(node.calls.with("generate_snapshot_data"), [format!("{applied} empty")]);
    let (mut config, machine, _dir) = node.stop().await;

    // A snapshot is also taken when the policy requests one.
    config.snapshots.after_entries = 3;
    let node = Alone::with(machine.again(), config).await;
    node.calls.clear();
    for number in 0..4 {
        node.propose(number).await;
    }
    until(async || node.calls.count("generate_snapshot_data") == 1).await;
    node.stop().await;
}

/// Entries that were applied while a snapshot was built count for the next one, even if no entry
/// follows them.
#[tokio::test(flavor = "multi_thread")]
async fn row_37_the_next_snapshot_is_taken_on_a_node_that_has_fallen_quiet() {
    let machine = Recording::with(Manner { view_ahead_by: Some(0), ..Manner::default() });
    let (pen, dir) = (machine.pen.clone(), tempfile::tempdir().unwrap());
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    (config.snapshots.after_entries, config.snapshots.reserve_bytes) = (10, 0);
    let (let_go, holder) = hold(pen);
    let node = Alone::with(machine, config).await;
    for number in 0..40 {
        node.propose(number).await;
    }
    assert_eq!(node.calls.count("write"), 0, "the first one is still being built");
    assert_eq!(node.calls.count("snapshot_view"), 1);
    drop(let_go);
    until(async || node.calls.count("write") == 2).await;
    node.settle().await;
    let applied = node.applied().await;
    until(async || {
        node.engine
            .status()
            .await
            .snapshots
            .newest
            .is_some_and(|last_included| last_included.index == applied)
    })
    .await;
    node.stop().await;
    holder.join().unwrap();
}

/// `snapshot_metadata` when a snapshot is to be sent; `apply_snapshot_from_file` and the two calls
/// of the metadata when it is installed.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_sent_and_an_installed_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, machines, mut engines) = three_without_a_tail(dir.path()).await;
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
    }
    until(async || engines.iter().any(EmbeddedEngine::is_leader)).await;
    let lead = engines.iter().position(EmbeddedEngine::is_leader).unwrap();
    let away = (lead + 1) % 3;
    engines[away].stop().await;
    let others = [lead, (lead + 2) % 3];
    let running = others.map(|other| engines[other].clone());
    for number in 0..10 {
        support::propose(&running, vec![number].into()).await;
    }
    until(async || others.iter().all(|other| machines[*other].numbers().last() == Some(&9))).await;
    // The sender is the node that leads once the stopped node is up again.
    let mut log_ids = Vec::new();
    for engine in &running {
        let last_included = engine.take_snapshot().await.unwrap().last_included().index.get();
        until(async || {
            engine.replica_status().await.unwrap().core.log.base.index.get() >= last_included
        })
        .await;
        log_ids.push(last_included);
    }
    let receiver = machines[away].calls.clone();
    machines.iter().for_each(|machine| machine.calls.clear());
    engines[away] =
        EmbeddedEngine::start_custom(Arc::new(machines[away].again()), configs[away].clone())
            .await
            .unwrap();
    until(async || receiver.count("persist_last_snapshot_metadata") > 0).await;
    let told = others.iter().find(|other| machines[**other].calls.count("snapshot_metadata") > 0);
    assert!(told.is_some(), "no node chose a snapshot to send");
    let installed = receiver.with("apply_snapshot_from_file");
    let last_included =
        log_ids.iter().find(|last_included| installed == [last_included.to_string()]);
    let last_included = last_included.unwrap_or_else(|| panic!("{installed:?} of {log_ids:?}"));
    let order = [
        "apply_snapshot_from_file",
        "update_last_applied",
        "update_last_snapshot_metadata",
        "persist_last_snapshot_metadata",
    ];
    let after = receiver.first("apply_snapshot_from_file").unwrap();
    let calls: Vec<String> = receiver.all()[after..].to_vec();
    for (call, made) in order.iter().zip(&calls) {
        assert_eq!(*made, format!("{call} {last_included}"), "{calls:?}");
    }
    for engine in &engines {
        engine.stop().await;
    }
}
