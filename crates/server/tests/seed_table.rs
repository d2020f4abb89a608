//! The table of the state machine's methods, row by row: which thread calls each, and when. Real
//! nodes, real files; the state machine records its calls.
#![allow(clippy::unwrap_used)]

mod alone;
#[path = "../../replica/tests/recording/machine.rs"]
mod recording;
mod support;

use std::sync::Arc;

use alone::{Alone, hold, until};
use bytes::Bytes;
use d_engine_replica::ProposeError;
use d_engine_server::{Config, EmbeddedEngine, ReadConsistency, WaitError};
use recording::{Manner, Recording};
use support::{TIMEOUT, cluster};

#[tokio::test(flavor = "multi_thread")]
async fn row_start_at_node_initialization() {
    let node = Alone::start(Recording::default()).await;
    assert_eq!(
        (node.calls.first("bind"), node.calls.first("start")),
        (Some(0), Some(1)),
        "it is the first call"
    );
    node.propose(1).await;
    assert_eq!(node.calls.count("start"), 1);
    node.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let machine = Arc::new(Recording::with(Manner { fails_start: true, ..Manner::default() }));
    let refused = EmbeddedEngine::start_custom(machine, config).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("the backend is locked by another process"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_stop_at_node_shutdown() {
    let node = Alone::start(Recording::default()).await;
    let calls = node.calls.clone();
    node.propose(1).await;
    assert_eq!(calls.count("stop"), 0);
    let (_, machine, _) = node.stop().await;
    assert_eq!(calls.count("stop"), 1);
    assert!(
        calls.first("stop") > calls.last("apply_chunk")
            && calls.first("stop") > calls.last("flush")
    );
    drop(machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_is_running_at_health_checks() {
    let node = Alone::start(Recording::default()).await;
    node.calls.clear();
    assert!(node.engine.status().await.state_machine_running);
    assert_eq!(node.calls.count("is_running"), 1);
    node.stop().await;
}

/// Part of the node's readiness: the status reports that the node does not serve, and why.
#[tokio::test(flavor = "multi_thread")]
async fn row_is_running_a_node_whose_state_machine_does_not_run_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let machine = Arc::new(Recording::with(Manner { is_down: true, ..Manner::default() }));
    let engine = EmbeddedEngine::start_custom(machine, config).await.unwrap();
    until(async || engine.replica_status().await.unwrap().applied > 0).await;
    until(async || {
        let waited = engine.wait_ready(std::time::Duration::from_millis(200)).await;
        matches!(waited, Err(WaitError::StateMachineDown { .. }))
    })
    .await;
    let status = engine.status().await;
    assert_eq!((status.state_machine_running, status.ready), (false, false));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_get_at_a_clients_read_after_the_read_barrier() {
    let node = Alone::start(Recording::default()).await;
    node.propose(20).await;
    node.propose(22).await;
    let read = node.engine.get(b"sum", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(read, Some(Bytes::from_static(b"42")));
    assert_eq!(node.calls.with("get"), ["sum"]);
    assert!(
        node.calls.first("get") > node.calls.last("apply_chunk"),
        "an acknowledged command is not visible"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_entry_term_at_the_consistency_checks_of_a_start_and_of_a_last_included_entry() {
    let node = Alone::start(Recording::durable()).await;
    node.propose(1).await;
    node.settle().await;
    node.calls.clear();
    let last_included = node.engine.take_snapshot().await.unwrap().last_included().index.get();
    assert_eq!(
        node.calls.with("entry_term"),
        [last_included.to_string()],
        "the last included entry of the snapshot"
    );
    let calls = node.calls.clone();
    let (config, machine, _dir) = node.stop().await;
    calls.clear();
    let node = Alone::with(machine.again(), config).await;
    let asked = calls.first("entry_term").unwrap();
    assert!(calls.first("last_applied").unwrap() < asked);
    let (config, machine, _dir) = node.stop().await;

    // A term other than the log's means a different history.
    let wrong = Arc::new(machine.again_as(Manner { wrong_by: 4, ..machine.manner }));
    let refused = EmbeddedEngine::start_custom(wrong, config.clone())
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("of term 6") && refused.contains("term 2"), "both values: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_included_entry_of_another_term_than_the_machine_knows_is_refused() {
    let node = Alone::start(Recording::with(Manner { wrong_by: 4, ..Manner::default() })).await;
    node.propose(1).await;
    let refused = node.engine.take_snapshot().await.unwrap_err().to_string();
    assert!(
        refused.contains("is of term 5") && refused.contains("no snapshot is taken"),
        "{refused}"
    );
    // The node continues.
    assert_eq!(node.propose(2).await, Bytes::from_static(b"3"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_apply_chunk_when_entries_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut nodes = Vec::new();
    for config in &configs {
        let machine = Arc::new(Recording::default());
        let engine = EmbeddedEngine::start_custom(machine.clone(), config.clone()).await.unwrap();
        nodes.push((engine, machine.calls.clone()));
    }
    for (engine, _) in &nodes {
        engine.wait_ready(TIMEOUT).await.unwrap();
    }
    until(async || nodes.iter().any(|(engine, _)| engine.is_leader())).await;
    let at = nodes.iter().position(|(engine, _)| engine.is_leader()).unwrap();
    let (leader, calls) = nodes.swap_remove(at);
    leader.propose(vec![1]).await.unwrap();
    leader.propose(vec![2]).await.unwrap();
    let applied = calls.applied();
    assert_eq!(applied.len(), 2, "commands only: {applied:?}");
    assert!(applied.is_sorted());

    // Only the leader has persisted the entry: it is not committed, so it is not applied.
    for (engine, _) in nodes {
        engine.stop().await;
    }
    let last = leader.replica_status().await.unwrap().core.log.last.index.get();
    let (proposing, command) = (leader.clone(), Bytes::from_static(&[3]));
    let proposed = tokio::spawn(async move { proposing.propose(command).await });
    until(async || {
        let Some(replica) = leader.replica_status().await else { return true };
        replica.core.log.persisted.get() > last
    })
    .await;
    assert_eq!(calls.applied().len(), 2);
    leader.stop().await;
    let told = proposed.await.unwrap().unwrap_err();
    assert!(
        matches!(told, ProposeError::OutcomeUnknown { .. } | ProposeError::Stopped { .. }),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn row_len_for_monitoring() {
    let node = Alone::start(Recording::default()).await;
    node.propose(1).await;
    node.propose(2).await;
    assert_eq!(node.calls.count("len"), 0, "it may be expensive: only a status request calls it");
    assert_eq!(node.engine.status().await.records, Some(2));
    assert_eq!(node.calls.count("len"), 1);
    node.stop().await;
}

/// A state machine may hold its lock for long; a status request must not wait for that.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::await_holding_lock, reason = "the lock that the machine needs for its answer")]
async fn row_len_a_machine_that_does_not_answer_holds_no_status_up() {
    let node = Alone::start(Recording::default()).await;
    let held = node.machine.held();
    for _ in 0..2 {
        let status = node.engine.status().await;
        assert_eq!((status.state_machine_running, status.records), (true, None));
        assert!(status.ready, "it runs, however long it takes to count");
    }
    assert_eq!(
        node.calls.count("len"),
        1,
        "one thread waits for it, not another one with every status"
    );
    drop(held);
    until(async || node.engine.status().await.records == Some(0)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_is_empty_decides_at_a_start_beside_a_snapshot() {
    let node = Alone::start(Recording::durable()).await;
    node.propose(7).await;
    let last_included = node.engine.take_snapshot().await.unwrap().last_included().index.get();
    node.propose(8).await;
    let (config, _, _dir) = node.stop().await;
    // The machine's own files are lost: the snapshot reaches further than the first entry of the
    // log.
    let node = Alone::with(Recording::durable(), config).await;
    assert_eq!(node.calls.count("is_empty"), 1);
    assert_eq!(node.calls.with("apply_snapshot_from_file"), [last_included.to_string()]);
    let read = node.engine.get(b"sum", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(read, Some(Bytes::from_static(b"15")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_update_last_applied_during_entry_application() {
    let node = Alone::start(Recording::default()).await;
    node.propose(1).await;
    node.propose(2).await;
    node.settle().await;
    let told: Vec<u64> =
        node.calls.with("update_last_applied").iter().map(|index| index.parse().unwrap()).collect();
    assert!(told.is_sorted(), "{told:?}");
    // This holds for the engine's own entries too; there are at least two of them.
    assert_eq!(told.last(), Some(&node.applied().await));
    assert!(node.applied().await >= 4 && node.calls.applied().len() == 2);
    assert!(node.calls.last("update_last_applied") > node.calls.last("apply_chunk"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_last_applied_at_recovery_and_restart() {
    for machine in [Recording::default(), Recording::durable()] {
        let is_durable = machine.manner.is_durable;
        let node = Alone::start(machine).await;
        node.propose(1).await;
        let calls = node.calls.clone();
        let (config, machine, _dir) = node.stop().await;
        let applied = calls.applied();
        calls.clear();
        let node = Alone::with(machine.again(), config).await;
        assert!(calls.count("last_applied") > 0);
        // Entries that a machine has applied are not delivered to it again; entries that it has
        // lost are.
        assert_eq!(calls.applied(), if is_durable { Vec::new() } else { applied });
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_save_hard_state_at_elections() {
    let node = Alone::start(Recording::default()).await;
    until(async || node.calls.count("save_hard_state") > 0).await;
    let saved = node.calls.count("save_hard_state");
    for number in 0..20 {
        node.propose(number).await;
    }
    assert_eq!(node.calls.count("save_hard_state"), saved, "a write must not call it");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_flush_before_a_purge_before_shutdown_and_in_drop() {
    let node = Alone::start(Recording::default()).await;
    node.propose(1).await;
    assert_eq!(node.calls.count("flush"), 0);
    node.engine.take_snapshot().await.unwrap();
    assert_eq!(node.calls.count("flush"), 1, "what is purged now must be durable");
    let calls = node.calls.clone();
    let (_, machine, _dir) = node.stop().await;
    assert_eq!(calls.count("flush"), 2);
    assert_eq!(calls.count("drop"), 0, "the handle that the caller kept still lives");
    until(async || Arc::strong_count(&machine) == 1).await;
    drop(machine);
    let all = calls.all();
    assert_eq!(all[all.len() - 2..], ["drop", "flush"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_reset_before_a_rebuilt_machine_is_built_anew() {
    let node = Alone::start(Recording::default()).await;
    node.propose(5).await;
    assert_eq!((node.calls.first("reset"), node.calls.count("reset")), (Some(3), 1));
    let calls = node.calls.clone();
    let (config, machine, _dir) = node.stop().await;
    calls.clear();
    // The machine still holds its numbers; the log delivers them again, once.
    let node = Alone::with(machine.again(), config).await;
    assert!(calls.first("reset") < calls.first("apply_chunk"));
    let read = node.engine.get(b"sum", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(read, Some(Bytes::from_static(b"5")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_check_before_a_command_is_proposed() {
    let manner = Manner { refuses: Some(13), panics_on: Some(14), ..Manner::default() };
    let node = Alone::start(Recording::with(manner)).await;
    node.propose(1).await;
    node.settle().await;
    let before = node.applied().await;
    for (number, said) in [(13, "an unlucky number"), (14, "check panicked: as asked")] {
        let refused = node.engine.propose(vec![number]).await.unwrap_err();
        assert!(matches!(&refused, ProposeError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains(said), "{refused}");
    }
    assert_eq!(node.applied().await, before, "nothing was logged");
    assert_eq!(node.propose(2).await, Bytes::from_static(b"3"));
    assert_eq!(node.calls.applied().len(), 2);
    node.stop().await;
}

/// A missing reply is a fault of the state machine, and is reported as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_comes_second_is_counted_in_the_status() {
    let node =
        Alone::start(Recording::with(Manner { replies_twice: true, ..Manner::default() })).await;
    assert_eq!(node.propose(7).await, Bytes::from_static(b"7"));
    assert_eq!(node.engine.status().await.late_replies, 1);
    node.stop().await;
}

/// A machine that may wait for a disk in a read blocks no other task on the caller's threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reads_that_may_wait_for_a_disk_leave_the_callers_threads_free() {
    let manner = Manner { reads_wait: true, ..Manner::default() };
    let node = Alone::start(Recording::with(manner)).await;
    node.propose(5).await;
    let (let_go, holder) = hold(node.machine.pen.clone());
    let engine = node.engine.clone();
    let read = tokio::spawn(async move { engine.get(b"sum", ReadConsistency::Linearizable).await });
    until(async || node.calls.count("get") > 0).await;
    // The only thread for tasks is free.
    tokio::time::timeout(TIMEOUT, tokio::spawn(async {})).await.unwrap().unwrap();
    assert!(!read.is_finished());
    drop(let_go);
    holder.join().unwrap();
    assert_eq!(read.await.unwrap().unwrap(), Some(Bytes::from_static(b"5")));
    node.stop().await;
}
