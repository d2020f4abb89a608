//! A client of a cluster whose members change.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine_client::{
    Admission, ChangeOptions, ChangeRefusal, Client, ClientError, ClientOptions, ConfigId,
    MemberChange, MemberRole, Members, MembersWatch, ReadConsistency,
};
use d_engine_kv::KvStateMachine;
use d_engine_server::{Config, EmbeddedEngine, JoinRole, MemberConfig};
use support::{TIMEOUT, alone, client, free_address, put};

/// A node with short election timeouts, because a joining node must keep up for two of them.
fn node(dir: &Path, name: &str) -> Config {
    Config {
        data_dir: dir.join(name),
        peer_listen: Some(free_address()),
        client_listen: Some(free_address()),
        heartbeat_interval_ms: 50,
        election_timeout_min_ms: 250,
        election_timeout_max_ms: 500,
        ..Config::default()
    }
}

fn joining(dir: &Path, name: &str, seed: &Config) -> Config {
    Config { join: vec![seed.peer_listen.clone().unwrap()], ..node(dir, name) }
}

async fn start(config: &Config) -> EmbeddedEngine {
    let machine = Arc::new(KvStateMachine::new());
    let engine = EmbeddedEngine::start_custom(machine, config.clone()).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    engine
}

async fn voting(config: &Config) -> EmbeddedEngine {
    let engine = start(config).await;
    engine.wait_voter(TIMEOUT).await.unwrap();
    engine
}

fn address(config: &Config) -> String {
    config.client_listen.clone().unwrap()
}

async fn until(watch: &mut MembersWatch, holds: impl Fn(&Members) -> bool) -> Members {
    let seen = async {
        loop {
            let members = watch.next().await.unwrap();
            if holds(&members) {
                return members;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, seen).await.expect("the members were seen in time")
}

fn voters(members: &Members) -> Vec<u64> {
    let voters = members.list.iter().filter(|member| member.role == MemberRole::Voter);
    voters.map(|member| member.node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_told_one_address_follows_five_nodes_that_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = node(dir.path(), "node-1");
    let first = address(&config);
    let mut engine = start(&config).await;
    let through = client(std::slice::from_ref(&first));
    through.propose(put("k", "1")).await.unwrap();
    let mut gone = Vec::new();
    for number in 2..=5_u64 {
        let next = Config {
            replaces: Some(number - 1),
            ..joining(dir.path(), &format!("node-{number}"), &config)
        };
        let successor = voting(&next).await;
        // The connection of the client to the old node still works: it names the new one.
        through.propose(put("k", &number.to_string())).await.unwrap();
        engine.stop().await;
        gone.push(address(&config));
        (config, engine) = (next, successor);
    }
    let value = through.get("k", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(value.as_deref(), Some(b"5".as_slice()));
    assert_eq!(voters(&through.members().await.unwrap()), [5]);

    // A client that knows only removed nodes names them.
    let options = ClientOptions::default().timeout(Duration::from_millis(500));
    let late = Client::new(&gone, options).unwrap();
    let error = late.propose(put("k", "6")).await.unwrap_err();
    let ClientError::NoLeader { silent, .. } = &error else { panic!("{error}") };
    assert_eq!(silent.len(), 4, "{error}");
    for address in &gone {
        assert!(error.to_string().contains(address.as_str()), "{error}");
    }
    engine.stop().await;
}

/// While a removed node still answers, the client learns from it who the members are.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_leads_a_client_to_the_members() {
    let dir = tempfile::tempdir().unwrap();
    let one = node(dir.path(), "node-1");
    let first = start(&one).await;
    let second = voting(&joining(dir.path(), "node-2", &one)).await;
    let through = client(&[address(&one)]);
    let changed =
        through.change_members(MemberChange::Remove(1), ChangeOptions::default()).await.unwrap();
    assert_eq!(voters(&changed), [2]);
    let fresh = client(&[address(&one)]);
    fresh.propose(put("k", "v")).await.unwrap();
    // The removed node needs no connection any more.
    first.stop().await;
    fresh.propose(put("k", "w")).await.unwrap();
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_at_a_known_address_is_refused_at_once() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, address) = alone(ours.path(), |_| ()).await;
    let through = client(std::slice::from_ref(&address));
    through.propose(put("k", "ours")).await.unwrap();
    engine.stop().await;
    let listen = Some(address.clone());
    let (engine, _) = alone(theirs.path(), |config| config.client_listen = listen).await;
    let error = through.propose(put("k", "ours again")).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::OtherCluster { endpoint, expected, found }
            if *endpoint == address && expected != found && found.len() == 32),
        "{error}"
    );
    let error = through.get("k", ReadConsistency::Eventual).await.unwrap_err();
    assert!(matches!(error, ClientError::OtherCluster { .. }), "{error}");
    // Its status can still be read, to find out what is there.
    through.status(&address).await.unwrap();
    assert_eq!(client(&[address]).get("k", ReadConsistency::Linearizable).await, Ok(None));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_changed_from_any_node_and_watched_across_failures() {
    let dir = tempfile::tempdir().unwrap();
    let one = node(dir.path(), "node-1");
    let first = start(&one).await;
    let second = voting(&joining(dir.path(), "node-2", &one)).await;
    let spare = Config { join_as: JoinRole::Learner, ..joining(dir.path(), "node-3", &one) };
    let third = start(&spare).await;
    // The learner knows who leads.
    let through = client(&[address(&spare)]);
    let mut watch = through.watch_members();
    let seen = until(&mut watch, |members| members.is_committed && members.list.len() == 3).await;
    assert_eq!(voters(&seen), [1, 2]);

    let change = async |change, options| through.change_members(change, options).await;
    let any = ChangeOptions::default();
    let stale = ChangeOptions::default().expected(ConfigId { term: 99, version: 1 });
    let stale = change(MemberChange::Promote(3), stale).await.unwrap_err();
    let why = |error: &ClientError| match error {
        ClientError::MembersNotChanged { refusal, .. } => Some(*refusal),
        _ => None,
    };
    assert_eq!(why(&stale), Some(ChangeRefusal::Stale), "{stale}");
    let unknown = change(MemberChange::Remove(12), any).await.unwrap_err();
    assert_eq!(why(&unknown), Some(ChangeRefusal::Rule), "{unknown}");

    let mut waits = Vec::new();
    let promoted = through.change_members_with(MemberChange::Promote(3), any, |text| {
        waits.push(text.to_owned());
    });
    let promoted = promoted.await.unwrap();
    assert_eq!(voters(&promoted), [1, 2, 3]);
    assert!(waits.iter().any(|text| text.contains("node 3 to keep up")), "{waits:?}");
    until(&mut watch, |members| members.is_committed && voters(members) == [1, 2, 3]).await;

    // The node that is watched stops; the watch goes on at another one.
    third.stop().await;
    let lone = change(MemberChange::Remove(2), any).await;
    let moved = MemberChange::UpdateAddress {
        node: 3,
        peer_addr: None,
        client_addr: Some("127.0.0.1:1".to_owned()),
    };
    match lone {
        // Node 1 alone would be left with a node that does not answer.
        Err(error) => {
            assert_eq!(why(&error), Some(ChangeRefusal::WouldLoseQuorum), "{error}");
            let named = "needs 2 of the nodes that vote after the change (1, 3), and these do not \
                         answer or do not keep up with the log: 3;";
            assert!(error.to_string().contains(named), "{error}");
        }
        Ok(members) => panic!("{members:?}"),
    }
    change(moved, any).await.unwrap();
    let seen = until(&mut watch, |members| {
        members.get(3).and_then(|it| it.client_addr.as_deref()) == Some("127.0.0.1:1")
    });
    assert_eq!(voters(&seen.await), [1, 2, 3]);
    for engine in [second, first] {
        engine.stop().await;
    }
}

/// Three nodes of one cluster. Node 1 and the others dial each other at addresses where nobody
/// listens.
fn with_first_cut_off(dir: &Path) -> [Config; 3] {
    let addresses: Vec<[String; 2]> = (0..3).map(|_| [free_address(), free_address()]).collect();
    let dead: Vec<String> = (0..3).map(|_| free_address()).collect();
    [0, 1, 2].map(|own: usize| {
        let members = (0..3).map(|other: usize| {
            let is_reached = own == other || (own > 0 && other > 0);
            let [peer, client_addr] = addresses[other].clone();
            let peer_addr = if is_reached { peer } else { dead[other].clone() };
            MemberConfig { id: other as u64 + 1, peer_addr, client_addr }
        });
        Config {
            node_id: Some(own as u64 + 1),
            cluster_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            members: members.collect(),
            peer_listen: None,
            client_listen: None,
            ..node(dir, &own.to_string())
        }
    })
}

/// The first node that the client knows is cut off from the others, which have a leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_is_left_for_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let configs = with_first_cut_off(dir.path());
    let mut engines = Vec::new();
    for config in &configs {
        let machine = Arc::new(KvStateMachine::new());
        engines.push(EmbeddedEngine::start_custom(machine, config.clone()).await.unwrap());
    }
    engines[1].wait_ready(TIMEOUT).await.unwrap();
    let first = configs[0].members[0].client_addr.clone();
    let through = client(std::slice::from_ref(&first));
    let mut watch = through.watch_members();
    let members = until(&mut watch, |members| members.leader.is_some()).await;
    assert_ne!(members.node, 1);
    // A change is not left with a node that cannot ask the leader.
    let through = client(std::slice::from_ref(&first));
    let (admit, any) = (MemberChange::Admit(Admission::Invited), ChangeOptions::default());
    let changed = through.change_members(admit, any).await.unwrap();
    assert_eq!(changed.admission, Admission::Invited);
    for engine in engines {
        engine.stop().await;
    }
}
