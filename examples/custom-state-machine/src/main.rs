//! A bank on three nodes in one process. The example opens accounts, transfers from many tasks at
//! once, shuts the leader down in the middle, continues with the other two, and checks that the
//! total is unchanged.
//!
//! Run it: `cargo run --release -p custom-state-machine`

mod bank;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bank::{Bank, Command, Reply};
use d_engine::{Config, EmbeddedEngine, NodeBuilder, ProposeError, ReadConsistency};

const ACCOUNTS: u64 = 10;
const OPENING_BALANCE: u64 = 1_000;
const TRANSFERS: u64 = 400;
const TIMEOUT: Duration = Duration::from_secs(20);
/// The delay between two attempts to find the leader.
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
    for config in Config::local_cluster(dir.path(), 3)? {
        nodes.push(start(config).await?);
    }
    for node in &nodes {
        node.engine.wait_ready(TIMEOUT).await?;
    }
    println!("three nodes are ready");

    for account in 0..ACCOUNTS {
        let command =
            Command::Open { account: format!("account-{account}"), balance: OPENING_BALANCE };
        propose(&nodes, &command).await?;
    }
    println!("{ACCOUNTS} accounts opened with {OPENING_BALANCE} each");

    let mut refused = transfer(&nodes, 0..TRANSFERS / 2).await?;
    let leader = leader(&nodes).await.ok_or("no node leads")?;
    let stopped = nodes.remove(leader);
    stopped.shutdown.send(())?;
    stopped.engine.stopped().await?;
    println!("the leader was shut down after {} transfers; the other two continue", TRANSFERS / 2);
    refused += transfer(&nodes, TRANSFERS / 2..TRANSFERS).await?;
    println!("{TRANSFERS} transfers, {refused} of them refused for lack of money");

    for node in &nodes {
        // The barrier ensures that this node, leader or not, has applied every acknowledged entry
        // before its balances are summed.
        let index = node.engine.read_barrier(ReadConsistency::Linearizable).await?;
        println!("total on one node, up to entry {index}: {}", node.bank.total());
        assert_eq!(node.bank.total(), ACCOUNTS * OPENING_BALANCE, "money was created or destroyed");
    }
    for node in nodes {
        node.engine.stop().await;
    }
    println!("no money was created or destroyed");
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

/// Proposes to each node until one is the leader. `NotLeader` means that nothing was proposed, so
/// the next node is tried. Any other error ends the example. In particular, `OutcomeUnknown` must
/// not be retried here, because a transfer might then happen twice.
async fn propose(nodes: &[Running], command: &Command) -> Outcome<Reply> {
    let encoded = postcard::to_allocvec(command)?;
    let asked = async {
        loop {
            for node in nodes {
                match node.engine.propose(encoded.clone()).await {
                    Ok(reply) => return Ok(postcard::from_bytes(&reply)?),
                    Err(
                        ProposeError::NotLeader { .. } | ProposeError::TransferInProgress { .. },
                    ) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // No leader yet: an election takes about an election timeout.
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(TIMEOUT, asked).await?
}

async fn leader(nodes: &[Running]) -> Option<usize> {
    for (place, node) in nodes.iter().enumerate() {
        let status = node.engine.status().await;
        if status.leader == Some(status.node) {
            return Some(place);
        }
    }
    None
}
