//! Finding the leader among real nodes.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use d_engine_client::{Client, ClientError, ClientOptions, ReadConsistency};

use support::{Cluster, client, free_address, put, silent};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_at_a_follower_goes_to_the_leader_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let leader = cluster.leader().await;
    // The leader's address is not in the list of endpoints.
    let follower = client(&[cluster.addresses[(leader + 1) % 3].clone()]);
    follower.propose(put("k", "v")).await.unwrap();
    assert_eq!(follower.leader(), Some(cluster.addresses[leader].clone()));
    for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease] {
        let value = follower.get("k", consistency).await.unwrap();
        assert_eq!(value, Some(Bytes::from_static(b"v")));
    }
    assert_eq!(follower.get("none", ReadConsistency::Linearizable).await.unwrap(), None);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eventual_read_is_answered_by_the_node_that_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let leader = cluster.leader().await;
    client(&cluster.addresses).propose(put("k", "v")).await.unwrap();
    let address = cluster.addresses[(leader + 1) % 3].clone();
    let follower = client(std::slice::from_ref(&address));
    support::wait_until(support::TIMEOUT, async || {
        follower.get("k", ReadConsistency::Eventual).await.unwrap()
    })
    .await;
    // The client did not have to search for the leader.
    assert_eq!(follower.leader(), None);
    cluster.stop_all().await;
}

/// A follower serves the read itself: that does not make it the leader for the next command.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_a_follower_serves_does_not_make_it_the_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let leader = cluster.leader().await;
    let address = cluster.addresses[(leader + 1) % 3].clone();
    let client = client(std::slice::from_ref(&address));
    for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease] {
        client.get("k", consistency).await.unwrap();
        assert_eq!(client.leader(), None);
    }
    client.propose(put("k", "v")).await.unwrap();
    assert_eq!(client.leader(), Some(cluster.addresses[leader].clone()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_dead_or_silent_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let (silent, _listener) = silent();
    let mut endpoints = vec![free_address(), silent];
    endpoints.extend(cluster.addresses.clone());
    let options =
        ClientOptions::default().timeout(support::TIMEOUT).connect_timeout(Duration::from_secs(1));
    let client = Client::new(&endpoints, options).unwrap();
    client.propose(put("k", "v")).await.unwrap();
    // From then on the client asks the leader first.
    let began = Instant::now();
    client.propose(put("k", "w")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_leader_costs_no_call_that_was_not_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let client = client(&cluster.addresses);
    client.propose(put("k", "1")).await.unwrap();
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    client.propose(put("k", "2")).await.unwrap();
    assert_ne!(client.leader(), Some(cluster.addresses[leader].clone()));
    let value = client.get("k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(value, Some(Bytes::from_static(b"2")));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_when_the_leader_goes_are_answered_unknown_or_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let client = client(&cluster.addresses);
    client.propose(put("k", "1")).await.unwrap();
    let leader = cluster.leader().await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..16 {
        let client = client.clone();
        callers.spawn(async move {
            for n in 0..100 {
                match client.propose(put(&format!("{caller}-{n}"), "v")).await {
                    Ok(_) | Err(ClientError::OutcomeUnknown { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
    }
    cluster.stop(leader).await;
    while let Some(ended) = callers.join_next().await {
        ended.unwrap().unwrap();
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_done_and_the_caller_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    client(&cluster.addresses).propose(put("k", "v")).await.unwrap();
    let leader = cluster.leader().await;
    let (gone, left) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop(gone).await;
    cluster.stop(leader).await;

    let options = ClientOptions::default().timeout(Duration::from_secs(2));
    let client = Client::new(&cluster.addresses, options).unwrap();
    // The leader that stopped made the last node its successor; without a quorum, that one steps
    // down.
    let alone = async {
        while client.status(&cluster.addresses[left]).await.unwrap().leader.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), alone).await.unwrap();
    let error = client.propose(put("k", "w")).await.unwrap_err();
    assert!(matches!(error, ClientError::NoLeader { .. }), "{error}");
    let error = client.get("k", ReadConsistency::Linearizable).await.unwrap_err();
    assert!(matches!(error, ClientError::NoLeader { .. }), "{error}");
    // An eventual read needs no leader, and the client skips the two dead nodes.
    client.get("k", ReadConsistency::Eventual).await.unwrap();

    let status = client.status(&cluster.addresses[left]).await.unwrap();
    assert_eq!((status.node, status.members.len()), (left as u64 + 1, 3));
    let error = client.status(&cluster.addresses[gone]).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Unreachable { endpoint, .. } if *endpoint == cluster.addresses[gone]),
        "{error}"
    );
    cluster.stop_all().await;
}

/// Otherwise every call would first wait in vain for a node that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_just_failed_is_not_asked_while_others_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = support::alone(dir.path(), |_| ()).await;
    let (silent, listener) = silent();
    let options = ClientOptions::default().connect_timeout(Duration::from_millis(500));
    let client = Client::new([silent, address], options).unwrap();
    for _ in 0..3 {
        client.get("k", ReadConsistency::Eventual).await.unwrap();
    }
    listener.set_nonblocking(true).unwrap();
    let tried = std::iter::from_fn(|| listener.accept().ok()).count();
    assert_eq!(tried, 1, "the silent node was tried again");
    engine.stop().await;
}

/// A caller with a short deadline proves nothing about the node: others continue to ask it.
#[tokio::test(flavor = "multi_thread")]
async fn a_missed_deadline_does_not_send_other_callers_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = support::alone(dir.path(), |_| ()).await;
    let (silent, listener) = silent();
    let client = Client::new([address, silent], ClientOptions::default()).unwrap();
    client.propose(put("k", "v")).await.unwrap();
    let hasty = client.with_timeout(Duration::from_nanos(1));
    // The runtime's clock ticks once a millisecond, and some calls are faster than that.
    let late = support::wait_until(support::TIMEOUT, async || {
        hasty.get("k", ReadConsistency::Eventual).await.err()
    });
    let late = late.await;
    assert!(matches!(late, ClientError::DeadlineElapsed { .. }), "{late}");
    let late =
        support::wait_until(support::TIMEOUT, async || hasty.propose(put("k", "w")).await.err());
    let late = late.await;
    // Or the node responds first that no time is left.
    assert!(
        matches!(late, ClientError::OutcomeUnknown { .. } | ClientError::Busy { .. }),
        "{late}"
    );
    assert!(client.leader().is_some());
    client.get("k", ReadConsistency::Eventual).await.unwrap();
    client.propose(put("k", "x")).await.unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(
        std::iter::from_fn(|| listener.accept().ok()).count(),
        0,
        "the other address was tried"
    );
    engine.stop().await;
}

#[test]
fn a_client_may_have_as_many_calls_in_flight_as_a_node_takes_on_its_connection() {
    let node = d_engine_server::Limits::default().max_calls_per_connection;
    assert_eq!(ClientOptions::default().max_in_flight, node);
}
