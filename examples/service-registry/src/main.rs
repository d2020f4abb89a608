//! A service registry on three nodes in one process: three instances register with a time to live
//! and renew it; one of them is killed, and its registration expires.
//!
//! Run it: `cargo run --release -p service-registry`

mod registry;

use std::time::{Duration, Instant};

use d_engine::{Config, EmbeddedEngine, NodeBuilder};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use registry::{Instance, Outcome, Registry};

/// How long a registration lives after its last renewal.
const TTL: Duration = Duration::from_millis(1_500);
/// How often an instance renews its registration.
const RENEW_EVERY: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    // Dropping the sender shuts the nodes down.
    let (_shutdown, shutdown_rx) = tokio::sync::watch::channel(());
    let mut nodes = Vec::new();
    for config in Config::local_cluster(dir.path(), 3)? {
        nodes.push(NodeBuilder::new(config, shutdown_rx.clone()).build()?.start().await?);
    }
    for node in &nodes {
        node.wait_ready(TIMEOUT).await?;
    }
    let registry = Registry::new(nodes.clone(), TTL);

    let mut alive = Vec::new();
    for (id, address) in [("a", "10.0.0.1:80"), ("b", "10.0.0.2:80"), ("c", "10.0.0.3:80")] {
        registry.register("web", id, address).await?;
        alive.push(live(&registry, id, address));
    }
    show(&registry.instances("web").await?);

    // The instance is killed without deregistering.
    let died = Instant::now();
    alive.remove(1).abort();
    println!("b is killed");
    let left = until(&registry, |found| found.len() == 2).await?;
    println!("b expired {:.1} s later, by log time alone", died.elapsed().as_secs_f64());
    show(&left);
    assert!(
        left.iter().all(|instance| instance.id != "b"),
        "the running instances are still registered"
    );

    for task in alive {
        task.abort();
    }
    println!("the others are killed too");
    // There are no more writes: on an idle cluster the leader's ticks advance log time.
    until(&registry, <[Instance]>::is_empty).await?;
    println!("the registry is empty");
    stop(nodes).await;
    Ok(())
}

/// Runs an instance: it renews its registration until its task is aborted.
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

/// Polls until the instances are as `wanted`.
async fn until(
    registry: &Registry,
    wanted: impl Fn(&[Instance]) -> bool,
) -> Outcome<Vec<Instance>> {
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
    timeout(TIMEOUT, looks).await?
}

fn show(instances: &[Instance]) {
    let list: Vec<String> =
        instances.iter().map(|one| format!("{} at {}", one.id, one.address)).collect();
    println!("registered: {}", list.join(", "));
}

async fn stop(nodes: Vec<EmbeddedEngine>) {
    for node in nodes {
        node.stop().await;
    }
}
