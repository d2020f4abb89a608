//! What a read may miss, and what it costs.
//!
//! | [`ReadConsistency`](crate::ReadConsistency) | sees every write acknowledged before it began | costs |
//! |---|---|---|
//! | `Linearizable` | yes | one round of heartbeats, shared by all waiting reads; at a follower also a round trip to the leader |
//! | `Lease` | yes, while clocks drift less than configured | nothing at a leader that holds a lease; elsewhere as `Linearizable` |
//! | `Eventual` | no: it returns what this node has applied | nothing |
//!
//! Every node serves all three. None of them ever shows half of a command.
//!
//! # Which one
//! - **Linearizable** is the default and right for almost everything. Reads that arrive together
//!   share a round, so that the cost per read falls as the load rises.
//! - **Lease** rests on a bound on clock *rates* (`clock_drift_percent_max`, 10 percent by
//!   default), not on synchronized clocks. If you cannot guarantee the bound, for example because
//!   virtual machines are suspended, use linearizable reads.
//! - **Eventual** is for monitoring, caches, and data where old is good enough. It also works while
//!   there is no leader.
//!
//! # Reading your own state machine
//! [`get`](crate::EmbeddedEngine::get) and [`query`](crate::EmbeddedEngine::query) confirm the read
//! and then call your machine. If you hold the machine yourself, confirm first and read afterwards:
//!
//! ```
//! use std::time::Duration;
//! use d_engine::{EmbeddedEngine, ReadConsistency};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let engine = EmbeddedEngine::start(directory.path()).await?;
//! # engine.wait_ready(Duration::from_secs(10)).await?;
//! let index = engine.read_barrier(ReadConsistency::Linearizable).await?;
//! // From here on, the machine of this node has applied everything that was acknowledged before
//! // the call, up to at least `index`.
//! let records = engine.state_machine().len();
//! # assert!(index > 0 && records == 0);
//! # engine.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Time
//! A state machine knows one clock: [`Entry::time_ms`](crate::Entry::time_ms), log time. It follows
//! the wall clocks of a majority, is the same on every node, and never goes back along the log.
//! What expires, expires in log time, and therefore at the same entry on every node.
