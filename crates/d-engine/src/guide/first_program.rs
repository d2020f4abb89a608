//! Start a node, then three, and use them.
//!
//! # One node
//! A node is a value in your process. It keeps its log and snapshots in a directory, and it owns
//! threads of its own; your code only awaits its calls.
//!
//! ```
//! use std::time::Duration;
//! use d_engine::{EmbeddedEngine, KvCommand, ReadConsistency};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let engine = EmbeddedEngine::start(directory).await?;
//! engine.wait_ready(Duration::from_secs(10)).await?;
//!
//! // The call returns once the command is synced by a majority and applied.
//! engine.propose(KvCommand::put("greeting", "hello").encode()).await?;
//! let value = engine.get(b"greeting", ReadConsistency::Linearizable).await?;
//! assert_eq!(value.as_deref(), Some(b"hello".as_slice()));
//!
//! // Waits until everything is synced and the directory's lock is released.
//! engine.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! `start` uses the key-value machine that comes with the engine. [`super::state_machine`] shows
//! how to bring your own.
//!
//! # Three nodes
//! One node survives a crash of its process. Three survive the loss of one of them, because a
//! majority is left. [`Config::local_cluster`](crate::Config::local_cluster) returns the
//! configurations of a cluster on this machine, which is enough for development and tests.
//!
//! ```
//! use std::time::Duration;
//! use d_engine::{Config, KvCommand, NodeBuilder, ReadConsistency};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let (_shutdown, shutdown_rx) = tokio::sync::watch::channel(());
//! let mut engines = Vec::new();
//! for config in Config::local_cluster(directory, 3)? {
//!     engines.push(NodeBuilder::new(config, shutdown_rx.clone()).build()?.start().await?);
//! }
//! for engine in &engines {
//!     engine.wait_ready(Duration::from_secs(30)).await?;
//! }
//!
//! // Commands go to the leader. Every node serves reads.
//! let leader = engines.iter().find(|engine| engine.is_leader()).ok_or("no node leads")?;
//! leader.propose(KvCommand::put("greeting", "hello").encode()).await?;
//! for engine in &engines {
//!     let value = engine.get(b"greeting", ReadConsistency::Linearizable).await?;
//!     assert_eq!(value.as_deref(), Some(b"hello".as_slice()));
//! }
//! # for engine in &engines { engine.stop().await; }
//! # Ok(())
//! # }
//! ```
//!
//! A leader can change at any moment, so a real program handles
//! [`ProposeError::NotLeader`](crate::ProposeError::NotLeader), which names the leader; see
//! [`super::errors`].
//!
//! # On three machines
//! Each machine runs one node with its own configuration. All configurations name the same
//! `cluster_id` and the same members; only `node_id` differs, and `data_dir` if two nodes run on
//! one machine.
//!
//! ```
//! use d_engine::{Config, ConfigError};
//!
//! # fn main() -> Result<(), ConfigError> {
//! let config = Config::from_toml(
//!     r#"
//!     node_id = 1
//!     cluster_id = "00112233445566778899aabbccddeeff"
//!     data_dir = "/var/lib/app"
//!
//!     [[members]]
//!     id = 1
//!     peer_addr = "10.0.0.1:7101"
//!     client_addr = "10.0.0.1:7001"
//!
//!     [[members]]
//!     id = 2
//!     peer_addr = "10.0.0.2:7101"
//!     client_addr = "10.0.0.2:7001"
//!
//!     [[members]]
//!     id = 3
//!     peer_addr = "10.0.0.3:7101"
//!     client_addr = "10.0.0.3:7001"
//!     "#,
//! )?;
//! assert_eq!(config.members.len(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! Every field is checked before any file or port is opened. Leave `client_addr` empty if no
//! network client should reach the node. Peers and clients are not encrypted or authenticated yet:
//! keep these ports on a network that you trust.
