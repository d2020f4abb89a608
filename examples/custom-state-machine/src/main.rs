//! A bank on three nodes in one process: opens accounts, transfers from many tasks at once, stops the
//! leader in the middle, goes on with the other two, and checks that no money was made or lost.
//!
//! Run it: `cargo run --release -p custom-state-machine`

mod bank;

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bank::{Bank, Command, Reply};
use d_engine::{Config, EmbeddedEngine, MemberConfig, NodeBuilder, ProposeError, ReadConsistency};

const ACCOUNTS: u64 = 10;
const OPENING_BALANCE: u64 = 1_000;
const TRANSFERS: u64 = 400;
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds of asking who leads.
const LOOK_EVERY: Duration = Duration::from_millis(10);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A node, its state machine, and the sender whose message shuts it down.
struct Running {
    engine: EmbeddedEngine,
    bank: Arc<Bank>,
    shutdown: tokio::sync::watch::Sender<()>,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let mut nodes = Vec::new();
    for config in configs(dir.path(), 3)? {
        nodes.push(start(config).await?);
    }
    for node in &nodes {
        node.engine.wait_ready(PATIENCE).await?;
    }
    println!("three nodes are ready");

    for account in 0..ACCOUNTS {
        let command = Command::Open { account: format!("account-{account}"), balance: OPENING_BALANCE };
        propose(&nodes, &command).await?;
    }
    println!("{ACCOUNTS} accounts opened with {OPENING_BALANCE} each");

    let mut refused = transfer(&nodes, 0..TRANSFERS / 2).await?;
    let leader = leader(&nodes).await.ok_or("nobody leads")?;
    let stopped = nodes.remove(leader);
    stopped.shutdown.send(())?;
    stopped.engine.stopped().await?;
    println!("the leader was shut down after {} transfers; the other two go on", TRANSFERS / 2);
    refused += transfer(&nodes, TRANSFERS / 2..TRANSFERS).await?;
    println!("{TRANSFERS} transfers, {refused} of them refused for want of money");

    for node in &nodes {
        // The barrier makes sure that this node, whoever leads, has applied everything that was acknowledged
        // before its books are summed up.
        let index = node.engine.read_barrier(ReadConsistency::Linearizable).await?;
        println!("a node's books, up to entry {index}: {}", node.bank.total());
        assert_eq!(node.bank.total(), ACCOUNTS * OPENING_BALANCE, "money was made or lost");
    }
    for node in nodes {
        node.engine.stop().await;
    }
    println!("no money was made or lost");
    Ok(())
}

async fn start(config: Config) -> Outcome<Running> {
    let bank = Arc::new(Bank::default());
    let (shutdown, shutdown_rx) = tokio::sync::watch::channel(());
    let node = NodeBuilder::new(config, shutdown_rx)
        .state_machine(bank.clone()) // Set state machine
        .build()?;
    Ok(Running { engine: node.start().await?, bank, shutdown })
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

/// Sends transfers one after the other; returns how many the bank refused.
async fn transfer(nodes: &[Running], numbers: std::ops::Range<u64>) -> Outcome<u64> {
    let mut refused = 0;
    for number in numbers {
        let (from, to) = (number % ACCOUNTS, (number * 7 + 1) % ACCOUNTS);
        let command = Command::Transfer {
            from: format!("account-{from}"),
            to: format!("account-{to}"),
            amount: number % 300,
        };
        if matches!(propose(nodes, &command).await?, Reply::Refused { .. }) {
            refused += 1;
        }
    }
    Ok(refused)
}

/// Proposes at whichever node leads. `NotLeader` means that nothing was proposed: the next node is
/// asked. Any other error ends the example; an `OutcomeUnknown` above all must not be retried here,
/// because a transfer might then happen twice.
async fn propose(nodes: &[Running], command: &Command) -> Outcome<Reply> {
    let encoded = postcard::to_allocvec(command)?;
    let asked = async {
        loop {
            for node in nodes {
                match node.engine.propose(encoded.clone()).await {
                    Ok(reply) => return Ok(postcard::from_bytes(&reply)?),
                    Err(ProposeError::NotLeader { .. } | ProposeError::TransferInProgress { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // Nobody leads yet: that takes about an election timeout.
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await?
}

async fn leader(nodes: &[Running]) -> Option<usize> {
    for (place, node) in nodes.iter().enumerate() {
        let status = node.engine.status().await;
        if status.replica.is_some_and(|replica| replica.core.leader == Some(status.identity.node)) {
            return Some(place);
        }
    }
    None
}
