//! FINDINGS C1: one command that no node can apply must not stop a cluster for good.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use d_engine_replica::{ProposeError, ReadError, SkipError, UnknownBecause};
use d_engine_server::{Config, EmbeddedEngine, EntryId, NodeStatus, ReadConsistency, WaitError};
use support::failing::Failing;
use support::{TIMEOUT, cluster, put};

async fn start(config: &Config, machine: Failing) -> EmbeddedEngine {
    EmbeddedEngine::start_custom(Arc::new(machine), config.clone()).await.unwrap()
}

async fn stop_all(engines: &[EmbeddedEngine]) {
    for engine in engines {
        engine.stop().await;
    }
}

/// Waits until the status of every node satisfies `is_so`.
async fn wait_until(engines: &[EmbeddedEngine], mut is_so: impl FnMut(&NodeStatus) -> bool) {
    let looks = async {
        for engine in engines {
            while !is_so(&engine.status().await) {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, looks).await.unwrap();
}

/// Puts a record and waits until every node has applied it. A machine that fails in a chunk of
/// several entries cannot name the one that failed, so "bad" must not share a chunk with this
/// record.
async fn put_everywhere(engines: &[EmbeddedEngine], key: &str, value: &str) {
    put(engines, key, value).await;
    for engine in engines {
        let consistency = ReadConsistency::Linearizable;
        let read = engine.get_within(key.as_bytes(), consistency, TIMEOUT).await.unwrap();
        assert!(read.is_some());
    }
}

/// Skips the entry at the node that leads.
async fn skip(engines: &[EmbeddedEngine], entry: EntryId) -> Result<u64, SkipError> {
    let asks = async {
        loop {
            for engine in engines {
                match engine.skip_entry(entry.term, entry.index).await {
                    Err(SkipError::NotLeader { .. } | SkipError::OutcomeUnknown) => {
                        tokio::task::yield_now().await
                    }
                    // The leader has not heard of the others yet.
                    Err(SkipError::Refused { reason }) if reason.contains("a majority must") => {}
                    outcome => return outcome,
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, asks).await.unwrap()
}

/// Proposes the bad command, and retries until a node that leads responds.
async fn propose_bad(engines: &[EmbeddedEngine]) -> ProposeError {
    let asks = async {
        loop {
            for engine in engines {
                match engine.propose("bad").await {
                    Err(ProposeError::NotLeader { .. }) => tokio::task::yield_now().await,
                    answer => return answer.unwrap_err(),
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, asks).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_no_node_can_apply_is_skipped_and_the_cluster_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config, Failing::new()).await);
    }
    put_everywhere(&engines, "before", "1").await;
    let told = propose_bad(&engines).await;
    assert_eq!(told, ProposeError::OutcomeUnknown { why: UnknownBecause::StateMachineStopped });
    wait_until(&engines, |status| status.halted_at.is_some()).await;
    let entry = engines[0].status().await.halted_at.unwrap();

    // No entry after it is applied, no caller is served, and every node reports why; the cluster
    // still has a leader.
    for engine in &engines {
        let status = engine.status().await;
        assert!(status.stopped.is_none() && !status.ready && status.halted_at == Some(entry));
        let alarms = status.alarms.join("\n");
        let next = format!("d-engine skip-entry {entry}");
        assert!(alarms.contains("it is bad, as asked") && alarms.contains(&next), "{alarms}");
        for consistency in
            [ReadConsistency::Eventual, ReadConsistency::Lease, ReadConsistency::Linearizable]
        {
            let read = engine.get(b"before", consistency).await.unwrap_err();
            assert!(matches!(read, ReadError::Stopped { .. }), "{read}");
        }
        let refused = engine.propose("bad").await.unwrap_err();
        assert!(
            matches!(refused, ProposeError::Stopped { .. } | ProposeError::NotLeader { .. }),
            "{refused}"
        );
    }
    let wrong = skip(&engines, EntryId { index: entry.index - 1, ..entry }).await.unwrap_err();
    assert!(matches!(wrong, SkipError::Refused { .. }), "{wrong}");

    let decided_at = skip(&engines, entry).await.unwrap();
    assert!(decided_at > entry.index);
    put(&engines, "after", "2").await;
    wait_until(&engines, |status| status.applied_index > decided_at).await;
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
        assert_eq!(engine.get(b"bad", ReadConsistency::Eventual).await.unwrap(), None);
    }

    // A node that is started again reaches the entry again, now with a program that could apply it.
    engines.pop().unwrap().stop().await;
    engines.push(start(&configs[2], Failing::mended()).await);
    engines[2].wait_ready(TIMEOUT).await.unwrap();
    wait_until(&engines[2..], |status| status.applied_index > decided_at).await;
    assert_eq!(engines[2].get(b"bad", ReadConsistency::Eventual).await.unwrap(), None);
    assert!(engines[2].get(b"after", ReadConsistency::Linearizable).await.unwrap().is_some());
    stop_all(&engines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_machine_fails_alone_gives_way_and_its_entry_is_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut engines = vec![start(&configs[0], Failing::new()).await];
    for config in &configs[1..] {
        engines.push(start(config, Failing::mended()).await);
    }
    put_everywhere(&engines, "before", "1").await;
    // Only the leader fails at it; the others do not.
    engines[0].transfer_leadership(None).await.ok();
    engines[1].transfer_leadership(Some(1)).await.ok();
    engines[2].transfer_leadership(Some(1)).await.ok();
    let proposed = engines[0].propose("bad").await.unwrap_err();
    assert!(matches!(proposed, ProposeError::OutcomeUnknown { .. }), "{proposed}");
    wait_until(&engines[..1], |status| status.halted_at.is_some()).await;
    let entry = engines[0].status().await.halted_at.unwrap();
    put(&engines[1..], "after", "2").await;
    assert!(!engines[0].is_leader());
    let refused = skip(&engines, entry).await.unwrap_err().to_string();
    assert!(refused.contains("has applied it"), "{refused}");

    engines.remove(0).stop().await;
    engines.insert(0, start(&configs[0], Failing::mended()).await);
    engines[0].wait_ready(TIMEOUT).await.unwrap();
    assert!(engines[0].get(b"bad", ReadConsistency::Linearizable).await.unwrap().is_some());
    stop_all(&engines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_panic_the_node_runs_and_its_machine_waits_for_a_new_process() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
    let engine = start(&config, Failing::new()).await;
    engine.wait_ready(TIMEOUT).await.unwrap();
    let answer = engine.propose("panic").await.unwrap_err();
    assert_eq!(answer, ProposeError::OutcomeUnknown { why: UnknownBecause::StateMachineStopped });
    let one = std::slice::from_ref(&engine);
    wait_until(one, |status| status.halted_at.is_some()).await;
    let status = engine.status().await;
    let entry = status.halted_at.unwrap();
    let alarms = status.alarms.join("\n");
    assert!(
        alarms.contains("panicked in apply_chunk, entries ") && alarms.contains("as asked"),
        "{alarms}"
    );
    assert!(!engine.is_leader(), "a node that serves no callers still leads");
    let ready = engine.wait_ready(Duration::from_millis(10)).await.unwrap_err();
    assert!(matches!(ready, WaitError::Stopped { .. }), "{ready}");

    skip(one, entry).await.unwrap();
    let told = |status: &NodeStatus| {
        let reason = status.apply_stopped.as_deref().unwrap_or_default();
        reason.contains("is skipped; start this node again")
    };
    wait_until(one, told).await;
    engine.stop().await;
    let engine = start(&config, Failing::new()).await;
    engine.wait_ready(TIMEOUT).await.unwrap();
    put(std::slice::from_ref(&engine), "after", "1").await;
    engine.stop().await;
}
