//! A replicated SQLite database: three nodes in one process and statements through the log. One
//! node is stopped, restarts with the data on its disk and catches up on what it missed.
//!
//! Run it: `cargo run --release -p sqlite-state-machine`

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use d_engine::{Config, EmbeddedEngine, NodeBuilder, ProposeError, ReadConsistency};
use sqlite_state_machine::{Command, Reply, SqliteMachine, Value};

const SCHEMA: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, amount \
                      INTEGER NOT NULL, at_ms INTEGER NOT NULL)";
const TIMEOUT: Duration = Duration::from_secs(20);
/// The delay between two attempts to find the leader.
const LOOK_EVERY: Duration = Duration::from_millis(10);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Running {
    engine: EmbeddedEngine,
    _shutdown: tokio::sync::watch::Sender<()>,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let configs = Config::local_cluster(dir.path(), 3)?;
    let mut nodes = Vec::new();
    for config in &configs {
        nodes.push(start(config).await?);
    }
    for node in &nodes {
        node.engine.wait_ready(TIMEOUT).await?;
    }
    println!("three nodes are ready");

    for (item, amount) in [("apples", 3), ("pears", 5), ("apples", 4)] {
        println!("ordered: {}", shown(&order(&nodes, item, amount).await?));
    }
    for sql in [
        "INSERT INTO orders VALUES (random(), 'plums', 1, 0)",
        "UPDATE orders SET at_ms = unixepoch('now')",
    ] {
        println!("{sql}\n  {}", shown(&propose(&nodes, &Command::new(sql, [])).await?));
    }

    let stopped = nodes.remove(0);
    stopped.engine.stop().await;
    drop(stopped);
    println!("node 1 is stopped; the other two continue");
    order(&nodes, "quinces", 2).await?;
    let grow = "ALTER TABLE orders ADD COLUMN paid INTEGER NOT NULL DEFAULT 0";
    propose(&nodes, &Command::new(grow, [])).await?;

    nodes.insert(0, start(&configs[0]).await?);
    nodes[0].engine.wait_ready(TIMEOUT).await?;
    println!("node 1 has restarted");
    let question = Command::new(
        "SELECT item, sum(amount), sum(paid) FROM orders GROUP BY item ORDER BY item",
        [],
    );
    let mut answers = Vec::new();
    for (node, id) in nodes.iter().zip(1..) {
        let answer = node.engine.query(&question.encode()?, ReadConsistency::Linearizable).await?;
        let answer = Reply::decode(&answer)?;
        println!("node {id} returns: {}", shown(&answer));
        answers.push(answer);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "the nodes disagree");
    for node in nodes {
        node.engine.stop().await;
    }
    println!("all three agree");
    Ok(())
}

async fn start(config: &Config) -> Outcome<Running> {
    let machine = SqliteMachine::open(config.data_dir.join("sqlite"), SCHEMA)
        .map_err(d_engine::Error::into_boxed)?;
    let (shutdown, shutdown_rx) = tokio::sync::watch::channel(());
    let node =
        NodeBuilder::new(config.clone(), shutdown_rx).state_machine(Arc::new(machine)).build()?;
    Ok(Running { engine: node.start().await?, _shutdown: shutdown })
}

async fn order(nodes: &[Running], item: &str, amount: i64) -> Outcome<Reply> {
    let sql = "INSERT INTO orders (item, amount, at_ms) VALUES (?1, ?2, log_time_ms()) RETURNING \
               id, item, amount";
    propose(nodes, &Command::new(sql, [item.into(), amount.into()])).await
}

/// Proposes to each node until one is the leader. `NotLeader` means that nothing was proposed; any
/// other error ends the example.
async fn propose(nodes: &[Running], command: &Command) -> Outcome<Reply> {
    let encoded = command.encode()?;
    let asked = async {
        loop {
            for node in nodes {
                match node.engine.propose(encoded.clone()).await {
                    Ok(reply) => return Ok(Reply::decode(&reply)?),
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

fn shown(reply: &Reply) -> String {
    let value = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    };
    match reply {
        Reply::Refused { reason } => format!("refused: {reason}"),
        Reply::Done { rows, .. } => {
            let row = |row: &Vec<Value>| row.iter().map(value).collect::<Vec<_>>().join(" ");
            rows.iter().map(row).collect::<Vec<_>>().join(", ")
        }
    }
}
