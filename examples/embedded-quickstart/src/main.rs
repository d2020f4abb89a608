//! The shortest program with d-engine inside: one node, a put, a linearizable get.
//!
//! Run it: `cargo run --release -p embedded-quickstart`

use std::error::Error;
use std::time::Duration;

use d_engine::{EmbeddedEngine, KvCommand, KvReply, ReadConsistency};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A directory of your own keeps the data; this one is gone at the end.
    let dir = tempfile::tempdir()?;
    let engine = EmbeddedEngine::start(dir.path()).await?;
    engine.wait_ready(Duration::from_secs(10)).await?;

    // Answered once it is on stable storage at a majority (here: on this disk) and applied.
    let reply = engine.propose(KvCommand::put("greeting", "hello").encode()).await?;
    println!("put: {:?}", KvReply::decode(&reply)?);

    let value = engine.get(b"greeting", ReadConsistency::Linearizable).await?;
    println!("get: {value:?}");

    engine.stop().await;
    Ok(())
}
