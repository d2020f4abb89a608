//! A process that changes its working directory. The test has a file of its own, because the change
//! affects every thread of the process.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_kv::KvCommand;
use d_engine_server::{EmbeddedEngine, ReadConsistency};
use support::TIMEOUT;

/// The worst case: the new working directory contains the `data` of a stopped engine.
#[tokio::test(flavor = "multi_thread")]
async fn a_relative_data_dir_stays_where_it_was_when_the_node_started() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    for (place, value) in [(&there, "theirs"), (&here, "ours")] {
        std::fs::create_dir(place).unwrap();
        std::env::set_current_dir(place).unwrap();
        let engine = EmbeddedEngine::start("data").await.unwrap();
        engine.wait_ready(TIMEOUT).await.unwrap();
        std::env::set_current_dir(&there).unwrap();
        // Enough writes for new segments, a snapshot and a purge.
        for n in 0..20 {
            let command = KvCommand::put(format!("k{n}"), vec![n; 900 << 10]).encode();
            engine.propose(command).await.unwrap();
        }
        engine.propose(KvCommand::put("whose", value).encode()).await.unwrap();
        engine.take_snapshot().await.unwrap();
        engine.stop().await;
    }
    for (place, value) in [(&there, "theirs"), (&here, "ours")] {
        let engine = EmbeddedEngine::start(place.join("data")).await.unwrap();
        engine.wait_ready(TIMEOUT).await.unwrap();
        let found = engine.get(b"whose", ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(found.as_deref(), Some(value.as_bytes()));
        engine.stop().await;
    }
}
