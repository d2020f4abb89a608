//! A registry of services on three nodes in one process: three instances register with a time to live and renew
//! it; one of them dies, and vanishes from the registry by itself.
//!
//! Run it: `cargo run --release -p service-registry`

mod registry;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use d_engine::{Config, EmbeddedEngine, MemberConfig, NodeBuilder};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use registry::{Instance, Outcome, Registry};

/// How long an instance is believed to live after its last sign of life.
const TTL: Duration = Duration::from_millis(1_500);
/// How often an instance gives one.
const RENEW_EVERY: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    // Dropping the sender shuts the nodes down.
    let (_shutdown, shutdown_rx) = tokio::sync::watch::channel(());
    let mut nodes = Vec::new();
    for config in configs(dir.path(), 3)? {
        nodes.push(NodeBuilder::new(config, shutdown_rx.clone()).build()?.start().await?);
    }
    for node in &nodes {
        node.wait_ready(PATIENCE).await?;
    }
    let registry = Registry::new(nodes.clone(), TTL);

    let mut alive = Vec::new();
    for (id, address) in [("a", "10.0.0.1:80"), ("b", "10.0.0.2:80"), ("c", "10.0.0.3:80")] {
        registry.register("web", id, address).await?;
        alive.push(live(&registry, id, address));
    }
    show(&registry.instances("web").await?);

    // It is killed, not asked: nobody takes it off the list.
    let died = Instant::now();
    alive.remove(1).abort();
    println!("b dies");
    let left = until(&registry, |found| found.len() == 2).await?;
    println!("b is gone {:.1} s later, by log time alone", died.elapsed().as_secs_f64());
    show(&left);
    assert!(left.iter().all(|instance| instance.id != "b"), "those that live are still there");

    for task in alive {
        task.abort();
    }
    println!("the others die too");
    // Nobody writes any more: on an idle cluster the leader's ticks move log time.
    until(&registry, <[Instance]>::is_empty).await?;
    println!("the registry is empty");
    stop(nodes).await;
    Ok(())
}

/// An instance as long as it lives: it renews its registration.
fn live(registry: &Registry, id: &'static str, address: &'static str) -> JoinHandle<Outcome<()>> {
    let registry = registry.clone();
    tokio::spawn(async move {
        let mut renewals = interval(RENEW_EVERY);
        loop {
            renewals.tick().await;
            registry.register("web", id, address).await?;
        }
    })
}

/// Looks until the instances are as `wanted`.
async fn until(registry: &Registry, wanted: impl Fn(&[Instance]) -> bool) -> Outcome<Vec<Instance>> {
    let looks = async {
        let mut looks = interval(Duration::from_millis(50));
        loop {
            looks.tick().await;
            let found = registry.instances("web").await?;
            if wanted(&found) {
                return Ok(found);
            }
        }
    };
    timeout(PATIENCE, looks).await?
}

fn show(instances: &[Instance]) {
    let list: Vec<String> = instances.iter().map(|one| format!("{} at {}", one.id, one.address)).collect();
    println!("registered: {}", list.join(", "));
}

async fn stop(nodes: Vec<EmbeddedEngine>) {
    for node in nodes {
        node.stop().await;
    }
}

/// Three members on free ports of this machine.
fn configs(dir: &Path, nodes: u64) -> Outcome<Vec<Config>> {
    let listeners = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let mut members = Vec::new();
    for (listener, id) in listeners.iter().zip(1..) {
        let peer_addr = listener.local_addr()?.to_string();
        members.push(MemberConfig { id, peer_addr, client_addr: String::new() });
    }
    let config = |node_id| Config {
        node_id,
        cluster_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        data_dir: dir.join(format!("node-{node_id}")),
        members: members.clone(),
        ..Config::default()
    };
    Ok((1..=nodes).map(config).collect())
}
