//! A cluster that changes while it runs: nodes join by address, are replaced, and leave.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine_kv::KvStateMachine;
use d_engine_server::{
    Admission, ChangeMembersError, ChangeOptions, Config, ConfigId, EmbeddedEngine, Invitation,
    JoinRole, MemberChange, MemberRole, ReadConsistency, RefusedBecause, StartError,
};
use support::{TIMEOUT, free_address, put, start};

/// The first node of a cluster that others join.
fn first(dir: &Path) -> Config {
    Config { data_dir: dir.join("first"), peer_listen: Some(free_address()), ..Config::default() }
}

/// A node that joins through `seed`.
fn joining(dir: &Path, name: &str, seed: &Config) -> Config {
    Config {
        data_dir: dir.join(name),
        peer_listen: Some(free_address()),
        join: vec![seed.peer_listen.clone().unwrap()],
        ..Config::default()
    }
}

async fn voting(config: &Config) -> EmbeddedEngine {
    let engine = start(config).await;
    engine.wait_voter(TIMEOUT).await.unwrap();
    engine
}

/// Changes the members through any node.
async fn change(engine: &EmbeddedEngine, change: MemberChange) {
    let options = ChangeOptions { timeout: Some(TIMEOUT), ..ChangeOptions::default() };
    let changed = engine.change_members(change.clone(), options).await;
    assert!(changed.is_ok(), "{change:?}: {changed:?}");
}

fn roles(engine: &EmbeddedEngine) -> Vec<(u64, MemberRole)> {
    engine.members().list.iter().map(|member| (member.node, member.role)).collect()
}

async fn until_roles(engine: &EmbeddedEngine, expected: &[(u64, MemberRole)]) {
    let mut members = engine.watch_members();
    let seen = members.wait_for(|members| {
        let roles: Vec<_> = members.list.iter().map(|it| (it.node, it.role)).collect();
        members.is_committed && roles == expected
    });
    let seen = tokio::time::timeout(TIMEOUT, seen).await.map(|seen| seen.is_ok());
    assert_eq!(seen, Ok(true), "{:?}", roles(engine));
}

const V: MemberRole = MemberRole::Voter;

/// A node that nobody has announced waits, and its process need not be started again once somebody
/// announces it.
#[tokio::test(flavor = "multi_thread")]
async fn where_nodes_are_invited_a_node_joins_once_it_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let one = Config { admission: Some(Admission::Invited), ..first(dir.path()) };
    let first = start(&one).await;
    let two = joining(dir.path(), "second", &one);
    let address = two.peer_listen.clone().unwrap();
    let joins = tokio::spawn(async move { voting(&two).await });
    for wrong in ["", "db-4", "0.0.0.0:7101", "127.0.0.1:0"] {
        let invited = Invitation { peer_addr: wrong.to_owned(), replaces: None };
        let options = ChangeOptions { timeout: Some(TIMEOUT), ..ChangeOptions::default() };
        let refused = first.change_members(MemberChange::Invite(invited), options).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("host:port") && refused.contains(wrong), "{refused}");
    }
    // Somebody else is announced, and the node still waits.
    change(&first, MemberChange::Invite(Invitation { peer_addr: free_address(), replaces: None }))
        .await;
    assert_eq!(roles(&first), [(1, V)]);
    let invited = Invitation { peer_addr: address.clone(), replaces: None };
    change(&first, MemberChange::Invite(invited)).await;
    let second = tokio::time::timeout(TIMEOUT, joins).await.unwrap().unwrap();
    until_roles(&first, &[(1, V), (2, V)]).await;
    let members = second.members();
    assert_eq!(members.admission, Admission::Invited);
    assert!(members.invitations.iter().all(|it| it.peer_addr != address), "it is used up");
    assert_eq!(members.invitations.len(), 1);
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_configuration_holds_the_port_that_was_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let drawn = Config { peer_listen: Some("127.0.0.1:0".to_owned()), ..first(dir.path()) };
    let engine = start(&drawn).await;
    let members = engine.members();
    assert_eq!((members.config.version, members.list.len()), (0, 1), "nothing has changed it");
    let (host, port) = members.list[0].peer_addr.rsplit_once(':').unwrap();
    assert_eq!(host, "127.0.0.1");
    assert_ne!(port.parse::<u16>(), Ok(0));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_grows_to_three_and_loses_its_first_without_losing_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    put(std::slice::from_ref(&first), "k", "v").await;
    let second = voting(&joining(dir.path(), "second", &one)).await;
    let third = voting(&joining(dir.path(), "third", &one)).await;
    assert_eq!((second.node_id(), third.node_id()), (2, 3));
    let all = [(1, V), (2, V), (3, V)];
    for engine in [&first, &second, &third] {
        until_roles(engine, &all).await;
        let value = engine.get(b"k", ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(value, Some("v".into()), "node {}", engine.node_id());
    }
    // The leader removes itself: it names its successor, and stops.
    change(&second, MemberChange::Remove(1)).await;
    let rest = [second, third];
    put(&rest, "k", "w").await;
    for engine in &rest {
        until_roles(engine, &[(2, V), (3, V)]).await;
    }
    let stopped = tokio::time::timeout(TIMEOUT, first.stopped()).await.unwrap().unwrap_err();
    assert!(stopped.to_string().contains("node 1 was removed by configuration"), "{stopped}");
    let again = EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), one).await;
    let refused = again.unwrap_err();
    assert!(matches!(refused, StartError::DirectoryRemoved { node: 1, .. }), "{refused}");
    for engine in &rest {
        engine.stop().await;
    }
}

/// The log has the members: a node that has joined needs neither its id nor `join` again.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_have_joined_start_again_under_their_ids() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let two = joining(dir.path(), "second", &one);
    let first = start(&one).await;
    let second = voting(&two).await;
    put(std::slice::from_ref(&first), "k", "v").await;
    for engine in [&first, &second] {
        engine.stop().await;
    }
    let without_join = Config { join: Vec::new(), ..two };
    let (first, second) = tokio::join!(start(&one), start(&without_join));
    for engine in [&first, &second] {
        engine.wait_ready(TIMEOUT).await.unwrap();
        assert_eq!(roles(engine), [(1, V), (2, V)]);
    }
    assert_eq!(second.node_id(), 2);
    let value = second.get(b"k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(value, Some("v".into()));
    for engine in [&first, &second] {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    let second = voting(&joining(dir.path(), "second", &one)).await;
    let third = voting(&joining(dir.path(), "third", &one)).await;
    third.stop().await;
    let spare = Config { replaces: Some(3), ..joining(dir.path(), "fourth", &one) };
    let fourth = voting(&spare).await;
    for engine in [&first, &second, &fourth] {
        until_roles(engine, &[(1, V), (2, V), (4, V)]).await;
    }
    for engine in [&first, &second, &fourth] {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_learns_until_it_is_promoted_and_again_after_it_is_demoted() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    let spare = Config { join_as: JoinRole::Learner, ..joining(dir.path(), "second", &one) };
    let second = start(&spare).await;
    until_roles(&second, &[(1, V), (2, MemberRole::Learner)]).await;
    let late = second.wait_voter(Duration::from_millis(1)).await.unwrap_err();
    assert!(late.to_string().contains("does not vote after 1 ms"), "{late}");
    put(std::slice::from_ref(&first), "k", "v").await;
    let value = second.get(b"k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(value, Some("v".into()), "a learner serves reads");
    change(&first, MemberChange::Promote(2)).await;
    until_roles(&second, &[(1, V), (2, V)]).await;
    // A goal that is reached already.
    change(&second, MemberChange::Promote(2)).await;
    change(&second, MemberChange::Demote(2)).await;
    until_roles(&second, &[(1, V), (2, MemberRole::Learner)]).await;
    for engine in [&second, &first] {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_cannot_be_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    first.wait_ready(TIMEOUT).await.unwrap();
    let refused = async |change, expected| {
        let options = ChangeOptions { expected, ..ChangeOptions::default() };
        first.change_members(change, options).await.unwrap_err().to_string()
    };
    let last = refused(MemberChange::Remove(1), None).await;
    assert!(last.contains("add another voter first"), "{last}");
    let unknown = refused(MemberChange::Remove(12), None).await;
    assert_eq!(unknown, "node 12 has never been a member");
    let stale = refused(MemberChange::Demote(1), Some(ConfigId { term: 9, version: 9 })).await;
    assert!(stale.contains("expected configuration 9.9"), "{stale}");

    let silent = Config { join_as: JoinRole::Learner, ..joining(dir.path(), "second", &one) };
    let second = start(&silent).await;
    second.wait_ready(TIMEOUT).await.unwrap();
    let asked = second.change_members(MemberChange::Remove(12), ChangeOptions::default());
    let asked = asked.await.unwrap_err();
    let unknown =
        ChangeMembersError::RefusedByLeader { reason: unknown, because: RefusedBecause::Rule };
    assert_eq!(asked, unknown, "a follower asks its leader");
    let other = Some(ConfigId { term: 9, version: 9 });
    let options = ChangeOptions { expected: other, ..ChangeOptions::default() };
    let stale = second.change_members(MemberChange::Demote(1), options).await.unwrap_err();
    assert_eq!(stale.refused_because(), RefusedBecause::Stale, "{stale}");
    // The caller gives up while the leader is asked.
    let options = ChangeOptions { timeout: Some(Duration::ZERO), ..ChangeOptions::default() };
    let asked = second.change_members(MemberChange::Promote(2), options).await.unwrap_err();
    let ChangeMembersError::NotDone { is_written, .. } = asked else { panic!("{asked:?}") };
    assert_eq!(is_written, None, "it may be");
    change(&first, MemberChange::Demote(2)).await;
    for (peer_addr, client_addr) in [(Some("n1"), None), (None, Some("0.0.0.0:1"))] {
        let [peer_addr, client_addr] = [peer_addr, client_addr].map(|it| it.map(str::to_owned));
        let moved = MemberChange::UpdateAddress { node: 1, peer_addr, client_addr };
        let moved = refused(moved, None).await;
        assert!(moved.contains("host:port"), "{moved}");
    }
    let moved = Some(free_address());
    let moved = MemberChange::UpdateAddress { node: 1, peer_addr: moved, client_addr: None };
    let moved = refused(moved, None).await;
    assert!(moved.contains("node 1 is not reached at"), "the leader itself: {moved}");
    second.stop().await;
    let short = Some(Duration::from_secs(2));
    let expected = Some(first.members().config);
    let options = ChangeOptions { timeout: short, expected, ..ChangeOptions::default() };
    // A caller that repeats its request has not been overtaken by itself.
    for _ in 0..2 {
        let waits = first.change_members(MemberChange::Promote(2), options).await.unwrap_err();
        assert!(waits.to_string().contains("node 2 to keep up with the log"), "{waits}");
    }
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_leave_by_themselves_whatever_their_role() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    let second = voting(&joining(dir.path(), "second", &one)).await;
    let spare = Config { join_as: JoinRole::Learner, ..joining(dir.path(), "third", &one) };
    let third = start(&spare).await;
    third.wait_ready(TIMEOUT).await.unwrap();
    third.leave(TIMEOUT).await.unwrap();
    until_roles(&first, &[(1, V), (2, V)]).await;
    // The leader.
    first.leave(TIMEOUT).await.unwrap();
    until_roles(&second, &[(2, V)]).await;
    put(std::slice::from_ref(&second), "k", "v").await;
    let last = second.leave(TIMEOUT).await.unwrap_err().to_string();
    assert!(last.contains("add another voter first"), "{last}");
    put(std::slice::from_ref(&second), "k", "w").await;
    second.stop().await;
}

/// A mount that failed must not throw a node's place away, and a stranger must not take it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_join_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    let two = joining(dir.path(), "second", &one);
    let second = voting(&two).await;
    second.stop().await;
    let refused = async |config: Config| {
        EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config)
            .await
            .unwrap_err()
            .to_string()
    };
    let empty = refused(Config { data_dir: dir.path().join("mount"), ..two.clone() }).await;
    assert!(empty.contains("belongs to node 2, which has another directory"), "{empty}");
    assert!(empty.contains("`replaces = 2`"), "{empty}");
    let taken = Config { node_id: Some(1), ..joining(dir.path(), "third", &one) };
    let taken = refused(taken).await;
    assert!(taken.contains("node 1 is bound to another directory"), "{taken}");
    let far = Config { node_id: Some(u64::MAX), ..joining(dir.path(), "fourth", &one) };
    let far = refused(far).await;
    assert!(far.contains("is too high"), "{far}");
    // The only other voter is down, so nothing commits, and the new node asks until it is stopped.
    let waits = joining(dir.path(), "fifth", &one);
    let (stop, stopped) = tokio::sync::watch::channel(());
    let node = d_engine_server::NodeBuilder::new(waits, stopped).build().unwrap();
    let starts = tokio::spawn(node.start());
    drop(stop);
    let shut_down = starts.await.unwrap().unwrap_err();
    assert!(shut_down.to_string().contains("shut down"), "{shut_down}");
    let founder = Config { join: two.join.clone(), ..one.clone() };
    first.stop().await;
    // It has another member now, so the seeds only say where that may be found.
    let grown = EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), founder).await;
    grown.unwrap().stop().await;
    let silent = refused(Config { peer_listen: None, ..one }).await;
    assert!(silent.contains("the cluster has the members 1, 2"), "{silent}");
    let alone = Config { data_dir: dir.path().join("alone"), ..joining(dir.path(), "", &two) };
    let founder = start(&Config { join: Vec::new(), ..alone.clone() }).await;
    founder.wait_ready(TIMEOUT).await.unwrap();
    founder.stop().await;
    let founder = refused(alone).await;
    assert!(founder.contains("has founded cluster"), "{founder}");
}

/// A node that nobody reaches would count towards the quorum later.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_at_which_another_node_listens_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let first = start(&one).await;
    let other = Config { data_dir: dir.path().join("other"), ..Config::default() };
    let other = Config { peer_listen: Some(free_address()), ..other };
    let founder = start(&other).await;
    let elsewhere =
        Config { advertise_peer: other.peer_listen, ..joining(dir.path(), "second", &one) };
    let refused = EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), elsewhere).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("but node 1 of a cluster answers there"), "{refused}");
    assert!(refused.contains("check `advertise_peer`"), "{refused}");
    assert_eq!(roles(&first), [(1, V)], "nothing was changed");
    founder.stop().await;
    first.stop().await;
}

/// Where the members are, as the log has it.
async fn until_reached_at(engine: &EmbeddedEngine, expected: &[Config]) {
    let expected: Vec<String> =
        expected.iter().map(|config| config.peer_listen.clone().unwrap()).collect();
    let mut members = engine.watch_members();
    let seen = members.wait_for(|members| {
        let addresses = members.list.iter().map(|it| it.peer_addr.clone());
        members.is_committed && addresses.collect::<Vec<_>>() == expected
    });
    let seen = tokio::time::timeout(TIMEOUT, seen).await.map(|seen| seen.is_ok());
    assert_eq!(seen, Ok(true), "{expected:?}: {:?}", engine.members());
}

/// A node says where it is reached, and the leader writes it into the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_comes_back_at_another_address_is_found_there() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let two = joining(dir.path(), "second", &one);
    let three = joining(dir.path(), "third", &one);
    let first = start(&one).await;
    let second = voting(&two).await;
    let third = voting(&three).await;
    third.stop().await;
    let moved = Config { peer_listen: Some(free_address()), ..three };
    let third = start(&moved).await;
    for engine in [&first, &second, &third] {
        until_reached_at(engine, &[one.clone(), two.clone(), moved.clone()]).await;
        engine.wait_ready(TIMEOUT).await.unwrap();
    }
    for engine in [&first, &second, &third] {
        engine.stop().await;
    }
}

/// No address in the log is right any more; the seeds bring the nodes together.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_move_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let one = first(dir.path());
    let (two, three) = (joining(dir.path(), "second", &one), joining(dir.path(), "third", &one));
    let engines = [start(&one).await, voting(&two).await, voting(&three).await];
    put(&engines, "k", "v").await;
    for engine in &engines {
        engine.stop().await;
    }
    let addresses = [free_address(), free_address(), free_address()];
    let moved: Vec<Config> = [one, two, three]
        .into_iter()
        .zip(&addresses)
        .map(|(config, address)| Config {
            peer_listen: Some(address.clone()),
            // The first node founded the cluster; it is asked, and asks nobody.
            join: if config.join.is_empty() { Vec::new() } else { addresses.to_vec() },
            ..config
        })
        .collect();
    let mut engines = Vec::new();
    for config in &moved {
        engines.push(start(config).await);
    }
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
        until_reached_at(engine, &moved).await;
        let value = engine.get(b"k", ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(value, Some("v".into()));
    }
    for engine in &engines {
        engine.stop().await;
    }
}
