//! More requests than a node can handle: it reports the overload, executes what it has accepted,
//! and keeps its leader.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::KvCommand;
use d_engine_replica::ProposeError;
use d_engine_server::{Config, EmbeddedEngine, ReadConsistency};
use support::{TIMEOUT, cluster, put, start};

/// Ten times as many callers as commands fit; none of them waits after a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn under_overload_callers_are_refused_and_nothing_taken_in_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = Vec::new();
    for mut config in cluster(dir.path(), 3) {
        config.limits.max_pending_proposals = 64;
        engines.push(start(&config).await);
    }
    put(&engines, "before", "x").await;
    let leader = leader(&engines).await;
    let term = leader.replica_status().await.unwrap().core.term;
    let callers = (0..640).map(|caller| {
        let leader = leader.clone();
        tokio::spawn(async move {
            let (mut refused, mut done) = (0_u64, BTreeMap::new());
            for round in 0..40_u64 {
                let (key, value) = (format!("{caller}"), format!("{round}"));
                match leader.propose(KvCommand::put(key, value).encode()).await {
                    Ok(_) => drop(done.insert(caller, round)),
                    Err(ProposeError::Busy { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (refused, done)
        })
    });
    let mut refused = 0;
    let mut done = BTreeMap::new();
    for caller in callers.collect::<Vec<_>>() {
        let (more, last) = caller.await.unwrap();
        refused += more;
        done.extend(last);
    }
    assert!(refused > 0, "no command was refused: there was no overload");
    assert!(!done.is_empty(), "every command was refused");
    for (caller, round) in done {
        let value =
            leader.get(caller.to_string().as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(value, Some(Bytes::from(round.to_string())), "caller {caller}");
    }
    assert_eq!(
        leader.replica_status().await.unwrap().core.term,
        term,
        "overload caused an election"
    );
    for engine in &engines {
        engine.stop().await;
    }
}

async fn leader(engines: &[EmbeddedEngine]) -> EmbeddedEngine {
    let found = async {
        loop {
            tokio::task::yield_now().await;
            for engine in engines {
                if engine.is_leader() {
                    return engine.clone();
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, found).await.unwrap()
}

/// A command whose caller no longer waits is not proposed.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_time_left_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::start(dir.path()).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let late = KvCommand::put("k", "late").encode();
    let refused = engine.propose_within(late, Duration::ZERO).await.unwrap_err();
    assert!(
        matches!(refused, ProposeError::Expired | ProposeError::OutcomeUnknown { .. }),
        "{refused}"
    );
    engine.propose_within(KvCommand::put("l", "in time").encode(), TIMEOUT).await.unwrap();
    assert_eq!(engine.get(b"k", ReadConsistency::Linearizable).await.unwrap(), None);
    engine.stop().await;
}

/// A connection that sends nothing does not keep others out.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stays_silent_is_closed() {
    use tokio::io::AsyncReadExt;
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: dir.path().into(), ..Config::default() };
    config.client_listen = Some("127.0.0.1:0".to_owned());
    let engine = start(&config).await;
    let mut silent = tokio::net::TcpStream::connect(engine.client_addr().unwrap()).await.unwrap();
    let mut said = Vec::new();
    // The server's settings arrive, and then the end of the connection, with or without a reset.
    let closed = tokio::time::timeout(TIMEOUT, silent.read_to_end(&mut said)).await;
    assert!(closed.is_ok(), "the connection is still open");
    engine.stop().await;
}

/// The second connection is served once the first is closed.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_clients_are_bounded() {
    use tokio::io::AsyncReadExt;
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: dir.path().into(), ..Config::default() };
    config.client_listen = Some("127.0.0.1:0".to_owned());
    config.limits.max_client_connections = 1;
    let engine = start(&config).await;
    let address = engine.client_addr().unwrap();
    let mut byte = [0];
    let greeting = |mut connection: tokio::net::TcpStream| async move {
        // An HTTP/2 server sends its settings first.
        connection.read_exact(&mut byte).await.map(|_| connection)
    };
    let first = greeting(tokio::net::TcpStream::connect(address).await.unwrap()).await.unwrap();
    let second = tokio::spawn(greeting(tokio::net::TcpStream::connect(address).await.unwrap()));
    let mut second = second;
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut second).await.is_err());
    drop(first);
    tokio::time::timeout(TIMEOUT, second).await.unwrap().unwrap().unwrap();
    engine.stop().await;
}
