//! The members of a cluster, and their addresses.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use d_engine_server::{Config, MemberConfig, ProposeError, ReadConsistency};
use support::{TIMEOUT, cluster, free_address, put, start};

/// One node cannot become three by an edit of its config: the two others would be a majority
/// without it. The log has the members.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_other_members_has_no_effect_after_the_first_start() {
    let dir = tempfile::tempdir().unwrap();
    let three = cluster(dir.path(), 3).remove(0);
    let alone = Config { members: three.members[..1].to_vec(), ..three.clone() };
    let engine = start(&alone).await;
    put(std::slice::from_ref(&engine), "k", "v").await;
    engine.stop().await;
    let engine = start(&three).await;
    engine.wait_ready(TIMEOUT).await.unwrap();
    assert!(engine.get(b"k", ReadConsistency::Linearizable).await.unwrap().is_some());
    let known: Vec<u64> = engine.members().list.iter().map(|member| member.node).collect();
    assert_eq!(known, [1]);
    engine.stop().await;
}

/// Addresses may change; they have no part in safety.
#[tokio::test(flavor = "multi_thread")]
async fn new_addresses_in_every_config_take_effect_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs = cluster(dir.path(), 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config).await);
    }
    put(&engines, "k", "v").await;
    // Once the directories are bound, the log also contains the old addresses.
    let bound = async {
        loop {
            let replica = engines[0].replica_status().await.unwrap();
            if replica.membership.members().iter().all(|member| member.incarnation.is_some()) {
                return;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, bound).await.unwrap();
    for engine in engines.drain(..) {
        engine.stop().await;
    }
    let moved: Vec<MemberConfig> = (1..=3)
        .map(|id| MemberConfig {
            id,
            peer_addr: free_address(),
            client_addr: format!("127.0.0.2:{id}"),
        })
        .collect();
    for config in &mut configs {
        config.members.clone_from(&moved);
        engines.push(start(config).await);
    }
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
        let seen = engine.replica_status().await.unwrap().membership;
        for (member, wanted) in seen.members().iter().zip(&moved) {
            assert_eq!(
                (&member.peer_addr, &member.client_addr),
                (&wanted.peer_addr, &wanted.client_addr)
            );
        }
    }
    put(&engines, "k", "w").await;
    let follower = engines.iter().find(|engine| !engine.is_leader()).unwrap();
    let refused = follower.propose("anything").await.unwrap_err();
    let ProposeError::NotLeader { leader: Some(hint) } = refused else { panic!("{refused}") };
    assert_eq!(hint.client_addr, format!("127.0.0.2:{}", hint.node));
    for engine in &engines {
        engine.stop().await;
    }
}

/// A node that runs alone, and two new nodes whose configs make it one of three.
#[tokio::test(flavor = "multi_thread")]
async fn new_nodes_that_a_member_refuses_found_no_second_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let alone = Config { members: configs[0].members[..1].to_vec(), ..configs[0].clone() };
    let old = start(&alone).await;
    put(std::slice::from_ref(&old), "k", "v").await;
    let new = [start(&configs[1]).await, start(&configs[2]).await];
    // Two of three would suffice for an election.
    for engine in &new {
        assert!(
            engine.wait_ready(Duration::from_secs(3)).await.is_err(),
            "a second cluster was created"
        );
        assert_eq!(engine.replica_status().await.unwrap().core.term.get(), 0);
        let told = engine.status().await.refusals;
        let expected = "node 1 refuses this node: the peer says: node ";
        assert!(
            told.iter().any(|text| text.starts_with(expected) && text.contains("is not a member")),
            "{told:?}"
        );
    }
    let told = old.status().await.refusals;
    assert!(told.iter().any(|text| text.starts_with("node 2 is refused: ")), "{told:?}");
    assert!(old.is_leader());
    put(std::slice::from_ref(&old), "k", "w").await;
    for engine in new.iter().chain([&old]) {
        engine.stop().await;
    }
}
