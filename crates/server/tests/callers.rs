//! What callers receive: deadlines, readiness, leadership transfers, and the shutdown of a node.
#![allow(clippy::unwrap_used)]

#[path = "support/held.rs"]
mod held;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use d_engine_kv::KvCommand;
use d_engine_replica::StateMachine;
use d_engine_server::{
    Config, EmbeddedEngine, ProposeError, ReadConsistency, ReadError, StartError, TransferError,
    UnknownBecause,
};
use held::Held;
use support::{TIMEOUT, cluster, put, start};

fn command(key: &str) -> bytes::Bytes {
    KvCommand::put(key.to_owned(), "v").encode()
}

async fn held(dir: &std::path::Path) -> (Arc<Held>, EmbeddedEngine) {
    let machine = Arc::new(Held::default());
    let config = Config { data_dir: dir.join("data"), ..Config::default() };
    // The engine also accepts a machine whose concrete type is not known.
    let any: Arc<dyn StateMachine> = machine.clone();
    let engine = EmbeddedEngine::start_custom(any, config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    (machine, engine)
}

#[tokio::test]
async fn a_stop_reason_is_known_only_once_the_node_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::start(dir.path()).await.unwrap();
    assert_eq!(engine.stop_reason(), None);
    engine.stop().await;
    assert!(engine.stop_reason().unwrap().to_string().contains("shut down"));
}

/// Returns the position of the node that leads.
async fn leader(engines: &[EmbeddedEngine]) -> usize {
    let mut leader = None;
    let found = async {
        while leader.is_none() {
            leader = engines.iter().position(EmbeddedEngine::is_leader);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, found).await.unwrap();
    leader.unwrap()
}

/// Starts three nodes whose timeouts are so long that leadership moves only when the test moves it.
async fn calm(dir: &std::path::Path) -> Vec<EmbeddedEngine> {
    let mut engines = Vec::new();
    for mut config in cluster(dir, 3) {
        config.election_timeout_min_ms = 2_000;
        config.election_timeout_max_ms = 2_500;
        engines.push(start(&config).await);
    }
    put(&engines, "k", "v").await;
    engines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_to_a_node_that_has_just_died_says_who_leads_and_sends_callers_to_it_meanwhile()
{
    let dir = tempfile::tempdir().unwrap();
    let engines = calm(dir.path()).await;
    let leads = leader(&engines).await;
    let (target, number) = ((leads + 1) % 3, ((leads + 1) % 3) as u64 + 1);
    engines[target].stop().await;
    let transfer = engines[leads].transfer_leadership(Some(number));
    let propose = async {
        loop {
            match engines[leads].propose(command("k")).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => return error,
            }
        }
    };
    let (moved, refused) =
        tokio::time::timeout(TIMEOUT, async { tokio::join!(transfer, propose) }).await.unwrap();
    let ProposeError::TransferInProgress { successor: Some(successor) } = refused else {
        panic!("{refused}")
    };
    assert_eq!(
        (successor.node.get(), successor.client_addr),
        (number, format!("127.0.0.1:{number}"))
    );
    let TransferError::TimedOut { target: Some(named), leader: Some(still), waited_ms } =
        moved.unwrap_err()
    else {
        panic!("no timeout")
    };
    // The leader's own timeout and two elections.
    assert_eq!((named, still, waited_ms), (number, leads as u64 + 1, 2_000 + 2 * 2_500));

    // By now the leader knows that the target does not respond.
    let began = Instant::now();
    let refused = engines[leads].transfer_leadership(Some(number)).await.unwrap_err();
    assert!(
        matches!(refused, TransferError::TargetSilent { target, .. } if target == number),
        "{refused}"
    );
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    engines[leads].propose(command("k")).await.unwrap();
    for engine in &engines {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_no_majority_confirms_ends_with_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let engines = calm(dir.path()).await;
    let leads = leader(&engines).await;
    for other in [(leads + 1) % 3, (leads + 2) % 3] {
        engines[other].stop().await;
    }
    let timeout = Duration::from_millis(20);
    let late =
        engines[leads].get_within(b"k", ReadConsistency::Linearizable, timeout).await.unwrap_err();
    assert_eq!(late, ReadError::Expired);
    let late = engines[leads]
        .query_within(b"k", ReadConsistency::Linearizable, timeout)
        .await
        .unwrap_err();
    assert_eq!(late, ReadError::Expired);
    let now = engines[leads].get_within(b"k", ReadConsistency::Eventual, timeout).await.unwrap();
    assert_eq!(now, Some("v".into()));
    engines[leads].stop().await;
}

/// The read was confirmed, but the state machine hangs on its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_state_machine_hangs_ends_with_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let closed = machine.get.close();
    let timeout = Duration::from_millis(50);
    let late = engine.get_within(b"k", ReadConsistency::Eventual, timeout).await.unwrap_err();
    assert_eq!(late, ReadError::Expired);
    drop(closed);
    engine.get_within(b"k", ReadConsistency::Eventual, Duration::from_secs(5)).await.unwrap();
    engine.stop().await;
}

/// The command is in the log, and its caller receives the deadline as the reason, not a lost
/// leadership.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_applied_in_time_has_an_unknown_outcome_with_the_right_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let closed = machine.apply.close();
    let late = engine.propose_within(command("k"), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(late, ProposeError::OutcomeUnknown { why: UnknownBecause::DeadlinePassed });
    drop(closed);
    engine.stop().await;
}

/// A lease allows no read of a state that lacks acknowledged writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_read_waits_for_what_is_committed_and_not_applied_yet() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let closed = machine.apply.close();
    let proposed = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.propose(command("k")).await })
    };
    closed.blocks_a_call().await;
    let timeout = Duration::from_millis(200);
    for consistency in [ReadConsistency::Lease, ReadConsistency::Linearizable] {
        let read = engine.get_within(b"k", consistency, timeout).await;
        assert_eq!(read, Err(ReadError::Expired), "{consistency:?}");
    }
    drop(closed);
    proposed.await.unwrap().unwrap();
    let read = engine.get_within(b"k", ReadConsistency::Lease, TIMEOUT).await.unwrap();
    assert_eq!(read, Some("v".into()));
    engine.stop().await;
}

/// A state machine that takes long to count its records does not delay readiness.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_count_does_not_make_a_node_unready() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let closed = machine.len.close();
    for _ in 0..2 {
        let status = engine.status().await;
        assert!(status.ready && status.state_machine_running);
        assert_eq!(status.records, None);
    }
    drop(closed);
    engine.stop().await;
}

/// Readiness means that the node has caught up once; numbers report how far it lags behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_stays_ready_while_it_applies() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let closed = machine.apply.close();
    let proposed = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.propose(command("k")).await })
    };
    closed.blocks_a_call().await;
    let status = engine.status().await;
    assert!(status.commit_index > status.applied_index && status.ready, "{status:?}");
    drop(closed);
    proposed.await.unwrap().unwrap();
    engine.stop().await;
    assert!(!engine.status().await.ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_of_stop_does_not_let_the_next_one_return_early() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let closed = machine.apply.close();
    let proposed = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.propose(command("k")).await })
    };
    closed.blocks_a_call().await;
    // Longer than the node waits for its callers: by then it joins its threads.
    let timeout = Duration::from_secs(4);
    for _ in 0..2 {
        assert!(
            tokio::time::timeout(timeout, engine.stop()).await.is_err(),
            "the apply thread still runs"
        );
    }
    drop(closed);
    tokio::time::timeout(TIMEOUT, engine.stop()).await.unwrap();
    // Its command was committed before: it gets its reply, or learns that the node has stopped.
    proposed.await.unwrap().unwrap_or_default();
    assert!(
        !engine.is_leader() && engine.leader().is_none(),
        "a stopped node still reports that it leads"
    );
}

/// A follower learns of a commit with the next message; it must not take its snapshot before that.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_at_a_follower_has_everything_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let engines = calm(dir.path()).await;
    let leads = leader(&engines).await;
    let follower = &engines[(leads + 1) % 3];
    for n in 0..20 {
        put(&engines, &n.to_string(), "v").await;
        let committed = engines[leads].replica_status().await.unwrap().core.log.committed;
        let taken = follower.take_snapshot().await.unwrap();
        assert!(taken.last_included().index >= committed, "{taken:?} after {committed:?}");
    }
    for engine in &engines {
        engine.stop().await;
    }
}

#[test]
fn a_runtime_without_timers_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(EmbeddedEngine::start(dir.path().join("data"))).unwrap_err();
    assert!(matches!(refused, StartError::NoRuntime), "{refused}");
    assert!(!dir.path().join("data").exists(), "the data directory was created");
}

/// The apply thread may still write: until it has ended, no other process gets the directory, even
/// if the log is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_stays_locked_until_the_last_thread_of_a_dropped_engine_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, engine) = held(dir.path()).await;
    let hung = machine.apply.close();
    let proposed = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.propose(command("k")).await })
    };
    hung.blocks_a_call().await;
    proposed.abort();
    proposed.await.unwrap_err();
    drop(engine);
    let again = || EmbeddedEngine::start(dir.path().join("data"));
    let began = Instant::now();
    // The raft thread waits two seconds for requests in flight; the log is closed a moment later.
    while began.elapsed() < Duration::from_secs(4) {
        let refused = again().await.unwrap_err().to_string();
        assert!(refused.contains("`stop()`"), "{refused}");
    }
    drop(hung);
    let started = async {
        loop {
            match again().await {
                Ok(engine) => return engine,
                Err(error) => assert!(error.to_string().contains("`stop()`"), "{error}"),
            }
        }
    };
    let engine = tokio::time::timeout(TIMEOUT, started).await.unwrap();
    engine.stop().await;
}
