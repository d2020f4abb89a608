//! What to watch, back up, upgrade and restart.
//!
//! # Is it well?
//! `d-engine status` asks every node. It exits with 0 if the cluster serves: a node leads, a
//! majority of the voters follows it, its state machine is not halted, no nodes contradict each
//! other, and nothing acknowledged is provably lost. A line with ALARM names the resource, its
//! figure and the next step. In the process,
//! [`EmbeddedEngine::status`](crate::EmbeddedEngine::status) has this node's part:
//!
//! ```
//! use std::time::Duration;
//! use d_engine::EmbeddedEngine;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let engine = EmbeddedEngine::start(directory.path()).await?;
//! # engine.wait_ready(Duration::from_secs(10)).await?;
//! let status = engine.status().await;
//! // For a readiness probe: caught up once, not stopped, and the state machine runs.
//! assert!(status.ready);
//! // For a liveness probe: `stopped` says why a node must be restarted.
//! assert!(status.stopped.is_none());
//! # engine.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Restart and upgrade
//! A node may be killed at any moment; it loses nothing acknowledged. Stop it in an orderly way to
//! save the others an election: [`stop`](crate::EmbeddedEngine::stop), or SIGTERM to `d-engine
//! serve`. Transfer leadership first with `d-engine transfer-leader`, and callers notice even less.
//!
//! Upgrade one node after the other, and wait until `status` shows each as ready before the next. A
//! new program reads what the old one wrote. Commands of a higher version are accepted once every
//! voter decodes them.
//!
//! # Add, replace and remove nodes
//! A node is added by starting it with an empty data directory and
//! [`Config::join`](crate::Config::join); it votes once it keeps up with the log.
//! [`Config::replaces`](crate::Config::replaces) lets it vote in the place of a node that is lost.
//! `d-engine member` and [`change_members`](crate::EmbeddedEngine::change_members) make every other
//! change. `docs/members.md` shows how a cluster grows from one node to three, replaces a dead node
//! and moves to new machines. In one program:
//!
//! ```
//! use std::time::Duration;
//! use d_engine::{ChangeOptions, Config, EmbeddedEngine, KvStateMachine, MemberChange};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let founder = Config {
//!     data_dir: directory.path().join("node-1"),
//!     peer_listen: Some("127.0.0.1:0".to_owned()),
//!     ..Config::default()
//! };
//! let machine = || std::sync::Arc::new(KvStateMachine::new());
//! let first = EmbeddedEngine::start_custom(machine(), founder).await?;
//! first.wait_ready(Duration::from_secs(10)).await?;
//! let address = first.members().list[0].peer_addr.clone();
//!
//! let joining = Config {
//!     data_dir: directory.path().join("node-2"),
//!     peer_listen: Some("127.0.0.1:0".to_owned()),
//!     join: vec![address],
//!     ..Config::default()
//! };
//! let second = EmbeddedEngine::start_custom(machine(), joining).await?;
//! second.wait_voter(Duration::from_secs(30)).await?;
//!
//! // The goal is reached when this returns.
//! let left = first.change_members(MemberChange::Remove(2), ChangeOptions::default()).await?;
//! assert_eq!(left.list.len(), 1);
//! # second.stop().await;
//! # first.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! **A join hands out all data.** A cluster whose first nodes are not all on loopback addresses
//! admits only nodes that its operator has announced by their peer address: `d-engine member add`,
//! or [`MemberChange::Invite`](crate::MemberChange::Invite). [`Config::admission`](crate::Config)
//! says otherwise. Keep the peer ports in a private network.
//!
//! # Disks
//! - Put the data directory on a local file system whose `fsync` is honest. A network file system
//!   is not one.
//! - A full disk does not stop a running node: it refuses commands, transfers leadership to a node
//!   with space, and continues by itself once there is space. A start needs some free space, and a
//!   state machine that cannot write its own files is halted.
//! - A hanging disk costs the leader its leadership within about two election timeouts.
//! - An I/O error of the log stops the node with the reason. Replace the disk, or free the cause,
//!   and restart it.
//!
//! # Back up
//! `d-engine backup FILE`, or [`EmbeddedEngine::backup`](crate::EmbeddedEngine::backup), copies a
//! snapshot out of a cluster that serves. Every write that was acknowledged before the call is in
//! it. `d-engine restore` makes a new cluster of it (`docs/recovery.md`). A directory may be copied
//! while its node is stopped, and put back in the place of the same node, if that node was not
//! started since.
//! **Never start a node from an older copy of its directory:** it would forget what it has
//! acknowledged. The other nodes notice it in some cases, not in all.
//!
//! # When the majority is lost for good
//! `d-engine recover` continues the log of one survivor as a new cluster, and so does
//! [`offline::recover`](crate::offline::recover). `docs/recovery.md` is the runbook.
//!
//! # Clocks
//! Correctness does not depend on wall clocks. Expiry follows the clocks of a majority that agree,
//! so keep NTP running; a single wrong clock is outvoted, and `status` does not show it. `status`
//! raises an alarm when no majority of the clocks agrees within `max_clock_offset_ms`.
//!
//! # What is not there
//! Encryption and authentication, sessions, recovery from the loss of a majority. `SECURITY.md`
//! says what that means for where you may run it.
