//! What keeps the log short.
//!
//! A node writes the whole state of its machine into a snapshot from time to time, and purges the
//! log before it. A follower that needs purged entries receives the snapshot instead. All of this
//! happens by itself; `docs/snapshots.md` has every default and every failure.
//!
//! # What your machine does
//! Two methods are enough: `generate_snapshot_data` writes files into an empty directory, and
//! `apply_snapshot_from_file` replaces the state by such files. The engine packs, checksums,
//! stores, sends, verifies, unpacks and removes them.
//!
//! - Without a view, **apply waits** while the files are written, for at most
//!   `snapshots.pause_max_ms` (enforced only where your code awaits). For a state of some hundred
//!   megabytes implement [`snapshot_view`](crate::StateMachine::snapshot_view): it freezes the
//!   state in a moment, for example by cloning a persistent map, and a thread writes the view while
//!   apply continues.
//! - If the machine knows how large the next snapshot will be, it says so with
//!   [`snapshot_bytes`](crate::StateMachine::snapshot_bytes). Then no attempt begins that the disk
//!   cannot hold.
//!
//! # When
//! By default after 128 MiB of log. A policy of your own decides otherwise:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use d_engine::{AfterEntries, AfterTime, AnyOf, Config, NodeBuilder};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let config = Config { data_dir: directory.path().into(), ..Config::default() };
//! let hourly = Arc::new(AfterTime(Duration::from_secs(3_600)));
//! let policy = AnyOf(vec![Arc::new(AfterEntries(1_000_000)), hourly]);
//! let (_shutdown, shutdown_rx) = tokio::sync::watch::channel(());
//! let engine = NodeBuilder::new(config, shutdown_rx)
//!     .snapshot_policy(Arc::new(policy))
//!     .build()?
//!     .start()
//!     .await?;
//! engine.wait_ready(Duration::from_secs(10)).await?;
//! // Or by hand: returns when the snapshot is durable.
//! let snapshot = engine.take_snapshot().await?;
//! # assert!(snapshot.len > 0);
//! # engine.stop().await;
//! # Ok(())
//! # }
//! ```
