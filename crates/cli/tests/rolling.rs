//! A cluster whose nodes are restarted one after the other, and a leader that is paused: real
//! processes under load.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d_engine_client::{ClientOptions, KvClient, ReadConsistency};
use support::{Cluster, TIMEOUT, run, send, wait_until};

/// What one caller saw: the times of its acknowledged puts, the last one, and how many have an
/// unknown outcome.
#[derive(Default)]
struct Seen {
    acknowledged: Vec<Instant>,
    last: u64,
    last_attempted: u64,
    unknown: u64,
}

async fn put_until(client: KvClient, caller: u64, over: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let number = seen.last_attempted + 1;
        seen.last_attempted = number;
        match client.put(format!("caller-{caller}"), number.to_string()).await {
            Ok(_) => {
                seen.acknowledged.push(Instant::now());
                seen.last = number;
            }
            Err(error) if error.is_unknown() => seen.unknown += 1,
            Err(error) => panic!("caller {caller}: {error}"),
        }
    }
    seen
}

/// SIGTERM and a new start for each node, the leader last. A leader that stops names its successor,
/// so no caller waits for an election timeout.
#[test]
fn a_rolling_restart_loses_nothing_and_hardly_pauses() {
    // Without a successor the cluster would not respond for at least four seconds; and an orderly
    // transfer leaves no caller with an unknown outcome. A machine that stalls for that long gets a
    // second try.
    let is_smooth =
        |(pause, unknown): (Duration, u64)| pause < Duration::from_millis(3_900) && unknown == 0;
    assert!(is_smooth(rolling_restart()) || is_smooth(rolling_restart()), "see the pauses above");
}

/// Restarts every node under load; returns the longest pause and the number of puts with unknown
/// outcome, after checking that nothing is lost.
fn rolling_restart() -> (Duration, u64) {
    let mut cluster =
        Cluster::start_with("election_timeout_min_ms = 4000\nelection_timeout_max_ms = 8000\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let client = {
        let _inside = runtime.enter();
        KvClient::connect(&cluster.clients, ClientOptions::default()).unwrap()
    };
    let callers: Vec<_> = (0..8)
        .map(|caller| runtime.spawn(put_until(client.clone(), caller, over.clone())))
        .collect();
    let leader = cluster.leader();
    for place in (1..=3).map(|step| (leader + step) % 3) {
        let node = cluster.nodes[place].take().unwrap();
        node.signal("TERM");
        let ended = node.finish();
        assert_eq!(ended.code, Some(0), "node {}: {}", place + 1, ended.err);
        cluster.start_node(place);
        cluster.wait_ready(&[place]);
    }
    over.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> =
        callers.into_iter().map(|caller| runtime.block_on(caller).unwrap()).collect();
    let mut moments: Vec<Instant> = seen.iter().flat_map(|one| one.acknowledged.clone()).collect();
    moments.sort_unstable();
    let pause = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    let unknown: u64 = seen.iter().map(|one| one.unknown).sum();
    println!(
        "{} puts acknowledged, {unknown} of unknown outcome, longest pause {pause:?}",
        moments.len()
    );
    let keys: Vec<String> = (0..seen.len()).map(|caller| format!("caller-{caller}")).collect();
    let values = runtime.block_on(client.get_many(keys, ReadConsistency::Linearizable)).unwrap();
    for (caller, (one, value)) in seen.iter().zip(values).enumerate() {
        let found: u64 = std::str::from_utf8(&value.unwrap()).unwrap().parse().unwrap();
        assert!(
            (one.last..=one.last_attempted).contains(&found),
            "caller {caller}: acknowledged {}, found {found}",
            one.last
        );
    }
    (pause, unknown)
}

/// A leader sleeps past its lease while another one is elected and acknowledges a write. When it
/// runs again, it must not answer from its old state (FAULTS.md row 24).
#[test]
fn row_24_a_leader_that_slept_past_its_lease_does_not_answer_from_it() {
    let cluster = Cluster::start();
    let endpoints = cluster.endpoints();
    let put = |value: &str| {
        run(&["put", "--timeout", "20s", "--endpoints", &endpoints, "k", value]).code == Some(0)
    };
    assert!(put("before"));
    for round in 0..3 {
        let leader = cluster.leader();
        let process = cluster.nodes[leader].as_ref().unwrap().id();
        let others: Vec<String> = (0..3)
            .filter(|place| *place != leader)
            .map(|place| cluster.clients[place].clone())
            .collect();
        assert!(send("STOP", process));
        let value = format!("after-{round}");
        wait_until(TIMEOUT, || {
            let args = ["put", "--timeout", "5s", "--endpoints", &others.join(","), "k", &value];
            (run(&args).code == Some(0)).then_some(())
        });
        assert!(send("CONT", process));
        let asked = [
            "get",
            "--consistency",
            "lease",
            "--timeout",
            "10s",
            "--endpoints",
            &cluster.clients[leader],
            "k",
        ];
        let read = run(&asked);
        assert_eq!((read.code, read.out.trim()), (Some(0), value.as_str()), "{}", read.err);
        cluster.wait_ready(&[leader]);
    }
}
