//! A replicated SQLite database: three nodes in one process, statements through the log, a node that is stopped and
//! comes back with what it had on its disk and what it has missed.
//!
//! Run it: `cargo run --release -p sqlite-state-machine`

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine::{Config, EmbeddedEngine, MemberConfig, NodeBuilder, ProposeError, ReadConsistency};
use sqlite_state_machine::{Command, Reply, SqliteMachine, Value};

const SCHEMA: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, amount INTEGER NOT NULL, at_ms INTEGER NOT NULL)";
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds of asking who leads.
const LOOK_EVERY: Duration = Duration::from_millis(10);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Running {
    engine: EmbeddedEngine,
    _shutdown: tokio::sync::watch::Sender<()>,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let configs = configs(dir.path(), 3)?;
    let mut nodes = Vec::new();
    for config in &configs {
        nodes.push(start(config).await?);
    }
    for node in &nodes {
        node.engine.wait_ready(PATIENCE).await?;
    }
    println!("three nodes are ready");

    for (item, amount) in [("apples", 3), ("pears", 5), ("apples", 4)] {
        println!("ordered: {}", shown(&order(&nodes, item, amount).await?));
    }
    for sql in
        ["INSERT INTO orders VALUES (random(), 'plums', 1, 0)", "UPDATE orders SET at_ms = unixepoch('now')"]
    {
        println!("{sql}\n  {}", shown(&propose(&nodes, &Command::new(sql, [])).await?));
    }

    let stopped = nodes.remove(0);
    stopped.engine.stop().await;
    drop(stopped);
    println!("node 1 is stopped; the other two go on");
    order(&nodes, "quinces", 2).await?;
    let grow = "ALTER TABLE orders ADD COLUMN paid INTEGER NOT NULL DEFAULT 0";
    propose(&nodes, &Command::new(grow, [])).await?;

    nodes.insert(0, start(&configs[0]).await?);
    nodes[0].engine.wait_ready(PATIENCE).await?;
    println!("node 1 is back");
    let question =
        Command::new("SELECT item, sum(amount), sum(paid) FROM orders GROUP BY item ORDER BY item", []);
    let mut answers = Vec::new();
    for (node, id) in nodes.iter().zip(1..) {
        let answer = node.engine.query(&question.encode()?, ReadConsistency::Linearizable).await?;
        let answer = Reply::decode(&answer)?;
        println!("node {id} says: {}", shown(&answer));
        answers.push(answer);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "the nodes do not agree");
    for node in nodes {
        node.engine.stop().await;
    }
    println!("all three agree");
    Ok(())
}

async fn start(config: &Config) -> Outcome<Running> {
    let machine =
        SqliteMachine::open(config.data_dir.join("sqlite"), SCHEMA).map_err(d_engine::Error::into_boxed)?;
    let (shutdown, shutdown_rx) = tokio::sync::watch::channel(());
    let node = NodeBuilder::new(config.clone(), shutdown_rx).state_machine(Arc::new(machine)).build()?;
    Ok(Running { engine: node.start().await?, _shutdown: shutdown })
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

async fn order(nodes: &[Running], item: &str, amount: i64) -> Outcome<Reply> {
    let sql =
        "INSERT INTO orders (item, amount, at_ms) VALUES (?1, ?2, log_time_ms()) RETURNING id, item, amount";
    propose(nodes, &Command::new(sql, [item.into(), amount.into()])).await
}

/// Proposes at whichever node leads. `NotLeader` means that nothing was proposed; any other error ends the example.
async fn propose(nodes: &[Running], command: &Command) -> Outcome<Reply> {
    let encoded = command.encode()?;
    let asked = async {
        loop {
            for node in nodes {
                match node.engine.propose(encoded.clone()).await {
                    Ok(reply) => return Ok(Reply::decode(&reply)?),
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
