//! Real nodes on free loopback ports, data in a temporary directory.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvStateMachine};
use d_engine_replica::ProposeError;
use d_engine_server::{Config, EmbeddedEngine, MemberConfig};

pub(crate) mod failing;
mod ports;
pub(crate) use ports::free_address;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the configs of a cluster on free ports, with the data under `dir`.
pub(crate) fn cluster(dir: &std::path::Path, nodes: u64) -> Vec<Config> {
    let member =
        |id| MemberConfig { id, peer_addr: free_address(), client_addr: format!("127.0.0.1:{id}") };
    let members: Vec<MemberConfig> = (1..=nodes).map(member).collect();
    (1..=nodes)
        .map(|node_id| Config {
            node_id: Some(node_id),
            cluster_id: Some("00112233445566778899aabbccddeeff".to_owned()),
            data_dir: dir.join(format!("node-{node_id}")),
            // The members name client addresses, which redirects mention; no process listens there.
            client_listen: Some(String::new()),
            members: members.clone(),
            ..Config::default()
        })
        .collect()
}

pub(crate) async fn start(config: &Config) -> EmbeddedEngine {
    EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config.clone()).await.unwrap()
}

/// Proposes at the node that leads, and retries until a proposal succeeds.
pub(crate) async fn put(engines: &[EmbeddedEngine], key: &str, value: &str) -> Bytes {
    propose(engines, KvCommand::put(key.to_owned(), value.to_owned()).encode()).await
}

/// Like [`put`], with any command. The command may be applied twice.
pub(crate) async fn propose(engines: &[EmbeddedEngine], command: Bytes) -> Bytes {
    tokio::time::timeout(TIMEOUT, async {
        loop {
            for engine in engines {
                match engine.propose(command.clone()).await {
                    Ok(reply) => return reply,
                    Err(
                        ProposeError::NotLeader { .. }
                        | ProposeError::OutcomeUnknown { .. }
                        | ProposeError::Stopped { .. },
                    ) => {
                        tokio::task::yield_now().await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    })
    .await
    .unwrap()
}
