//! Real nodes on loopback, and a wire between client and node that a test can cut.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::TcpListener as StdTcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d_engine_client::{Client, ClientOptions, NodeStatus};
use d_engine_kv::{KvCommand, KvStateMachine};
use d_engine_replica::StateMachine;
use d_engine_server::{Config, EmbeddedEngine, MemberConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[path = "../../../server/tests/support/ports.rs"]
mod ports;
pub(crate) use ports::free_address;

/// The longest time that a test waits for anything.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The only place where a test waits: until `condition` returns a value, or the deadline has
/// passed.
pub(crate) async fn wait_until<T>(
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let look = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            looks.tick().await;
        }
    };
    tokio::time::timeout(deadline, look).await.expect("the condition held within the deadline")
}

pub(crate) fn put(key: &str, value: &str) -> Bytes {
    KvCommand::put(key.to_owned(), value.to_owned()).encode()
}

/// Returns a client whose timeout is long enough for an election on a busy machine.
pub(crate) fn client(endpoints: &[String]) -> Client {
    Client::new(endpoints, ClientOptions::default().timeout(TIMEOUT)).unwrap()
}

/// Returns an address that accepts connections and never responds, like a stopped process. Keep the
/// listener.
pub(crate) fn silent() -> (String, StdTcpListener) {
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

/// Three nodes that run in this process.
pub(crate) struct Cluster {
    pub(crate) engines: Vec<Option<EmbeddedEngine>>,
    pub(crate) addresses: Vec<String>,
}

impl Cluster {
    /// Starts three nodes with data under `dir` and waits until all are ready.
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_of(dir, || Arc::new(KvStateMachine::new())).await
    }

    /// The same with state machines of the test's own.
    pub(crate) async fn start_of(dir: &Path, machine: impl Fn() -> Arc<dyn StateMachine>) -> Self {
        let member =
            |id| MemberConfig { id, peer_addr: free_address(), client_addr: free_address() };
        let members: Vec<MemberConfig> = (1..=3).map(member).collect();
        let mut engines = Vec::new();
        for member in &members {
            let config = Config {
                node_id: Some(member.id),
                cluster_id: Some("00112233445566778899aabbccddeeff".to_owned()),
                data_dir: dir.join(format!("node-{}", member.id)),
                members: members.clone(),
                ..Config::default()
            };
            engines.push(Some(EmbeddedEngine::start_custom(machine(), config).await.unwrap()));
        }
        for engine in engines.iter().flatten() {
            engine.wait_ready(TIMEOUT).await.unwrap();
        }
        Self { engines, addresses: members.into_iter().map(|member| member.client_addr).collect() }
    }

    /// Returns the position of the node that leads.
    pub(crate) async fn leader(&self) -> usize {
        let client = client(&self.addresses);
        wait_until(TIMEOUT, async || {
            for (i, address) in self.addresses.iter().enumerate() {
                if self.engines[i].is_some()
                    && client.status(address).await.is_ok_and(|status| leads(&status))
                {
                    return Some(i);
                }
            }
            None
        })
        .await
    }

    pub(crate) async fn stop(&mut self, i: usize) {
        self.engines[i].take().unwrap().stop().await;
    }

    pub(crate) async fn stop_all(&mut self) {
        for engine in self.engines.iter_mut().filter_map(Option::take) {
            engine.stop().await;
        }
    }
}

fn leads(status: &NodeStatus) -> bool {
    status.leader == Some(status.node)
}

/// Starts a single node with a client address; `change` adjusts its config.
pub(crate) async fn alone(
    dir: &Path,
    change: impl FnOnce(&mut Config),
) -> (EmbeddedEngine, String) {
    let mut config = Config {
        data_dir: dir.to_owned(),
        client_listen: Some(free_address()),
        ..Config::default()
    };
    change(&mut config);
    let engine =
        EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config).await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    let address = engine.client_addr().unwrap().to_string();
    (engine, address)
}

/// A wire to a node: it passes bytes on, drops the node's responses, or is cut.
pub(crate) struct Wire {
    pub(crate) address: String,
    /// Connections up to this number are muted; the first one is number 1.
    muted: Arc<AtomicU64>,
    cut: watch::Sender<()>,
    connections: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl Wire {
    pub(crate) async fn to(node: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (muted, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (cut, lost) = (watch::Sender::new(()), Arc::new(AtomicU64::new(0)));
        let (node, sees_muted, counts, cuts, losses) =
            (node.to_owned(), muted.clone(), connections.clone(), cut.clone(), lost.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = counts.fetch_add(1, Ordering::SeqCst) + 1;
                let Ok(server) = TcpStream::connect(&node).await else { continue };
                let is_muted = {
                    let muted = sees_muted.clone();
                    move || number <= muted.load(Ordering::SeqCst)
                };
                tokio::spawn(carry(client, server, is_muted, losses.clone(), cuts.subscribe()));
            }
        });
        Self { address, muted, cut, connections, lost }
    }

    /// From now on the node receives everything, and its responses are lost.
    pub(crate) fn mute(&self) {
        self.muted.store(u64::MAX, Ordering::SeqCst);
    }

    /// Cuts every connection; new ones work. Muted connections stay muted to their end.
    pub(crate) fn cut(&self) {
        self.muted.store(self.connections(), Ordering::SeqCst);
        self.cut.send_replace(());
    }

    /// Returns the number of response bytes that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    is_muted: impl Fn() -> bool,
    lost: Arc<AtomicU64>,
    mut cut: watch::Receiver<()>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
    let back = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match from_server.read(&mut buffer).await? {
                0 => return std::io::Result::Ok(()),
                bytes if is_muted() => {
                    lost.fetch_add(bytes as u64, Ordering::SeqCst);
                }
                bytes => to_client.write_all(&buffer[..bytes]).await?,
            }
        }
    };
    tokio::select! {
        _ = there => {}
        _ = back => {}
        _ = cut.changed() => {}
    }
}
