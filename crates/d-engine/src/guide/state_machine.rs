//! Bring your own state machine.
//!
//! The engine orders commands, makes them durable, and calls your machine with each of them, in the
//! same order on every node. After a restart some are delivered again; "In memory or on disk" says
//! which. Commands and replies are bytes that only your machine reads.
//!
//! # The rule
//! **The state depends on the commands alone.** Two nodes that apply the same commands must have
//! the same state, on any machine and in any year. So an apply uses no clock (each entry carries
//! [`time_ms`](crate::Entry::time_ms), the same on every node), no random numbers, no iteration
//! over a hash map, no request to another service.
//!
//! # A whole machine
//! A set of counters, in memory. It needs the crates `async-trait`, `bytes`, `postcard` and `tokio`
//! beside `d-engine`. The engine's log is its disk: at a start the engine restores the newest
//! snapshot and applies the log after it.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::path::PathBuf;
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! use d_engine::{
//!     Config, EmbeddedEngine, Entry, Error, LogId, ReadConsistency, Result, SnapshotMetadata,
//!     StateMachine, snapshot_checksum,
//! };
//!
//! #[derive(Default)]
//! struct Counters {
//!     counts: Mutex<BTreeMap<String, u64>>,
//! }
//!
//! #[async_trait::async_trait]
//! impl StateMachine for Counters {
//!     // A command is the name of a counter; its reply is the new count.
//!     async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
//!         let mut counts = self.counts.lock().map_err(|_| Error::msg("a panic held the lock"))?;
//!         for entry in &chunk {
//!             let count = counts.entry(String::from_utf8_lossy(&entry.data).into()).or_default();
//!             *count += 1;
//!             entry.reply(count.to_string());
//!         }
//!         Ok(())
//!     }
//!
//!     fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>> {
//!         let counts = self.counts.lock().map_err(|_| Error::msg("a panic held the lock"))?;
//!         let count = counts.get(&*String::from_utf8_lossy(key));
//!         Ok(count.map(|count| count.to_string().into()))
//!     }
//!
//!     fn len(&self) -> usize {
//!         self.counts.lock().map_or(0, |counts| counts.len())
//!     }
//!
//!     async fn generate_snapshot_data(&self, dir: PathBuf, _: LogId) -> Result<[u8; 32]> {
//!         let counts = self.counts.lock().map_err(|_| Error::msg("a panic held the lock"))?;
//!         std::fs::write(dir.join("counts"), postcard::to_allocvec(&*counts)?)?;
//!         Ok(snapshot_checksum(&dir)?)
//!     }
//!
//!     async fn apply_snapshot_from_file(
//!         &self,
//!         meta: &SnapshotMetadata,
//!         path: PathBuf,
//!     ) -> Result<()> {
//!         if snapshot_checksum(&path)? != meta.checksum {
//!             return Err(Error::msg("the snapshot has a wrong checksum"));
//!         }
//!         let counts = postcard::from_bytes(&std::fs::read(path.join("counts"))?)?;
//!         *self.counts.lock().map_err(|_| Error::msg("a panic held the lock"))? = counts;
//!         Ok(())
//!     }
//!
//!     async fn reset(&self) -> Result<()> {
//!         self.counts.lock().map_err(|_| Error::msg("a panic held the lock"))?.clear();
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let config = Config { data_dir: directory.into(), ..Config::default() };
//! let engine = EmbeddedEngine::start_custom(Arc::new(Counters::default()), config).await?;
//! engine.wait_ready(Duration::from_secs(10)).await?;
//! assert_eq!(engine.propose("visits").await?, "1");
//! assert_eq!(engine.propose("visits").await?, "2");
//! let count = engine.get(b"visits", ReadConsistency::Linearizable).await?;
//! assert_eq!(count.as_deref(), Some(b"2".as_slice()));
//! engine.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What the methods must keep
//! - **`apply_chunk`** applies a chunk as a whole. Return an error only if nothing was changed, and
//!   only for what no client can cause: an error halts the machine at that entry until an operator
//!   acts. A command that makes no sense gets a reply that says so, or is refused by
//!   [`check`](crate::StateMachine::check) before it reaches the log.
//! - **`get`** and **`query`** run on the caller's thread beside apply. They must never see half of
//!   a command.
//! - **`generate_snapshot_data`** writes the whole state. Apply waits meanwhile. A machine that can
//!   freeze its state cheaply also implements
//!   [`snapshot_view`](crate::StateMachine::snapshot_view); the engine then uses the view.
//! - **`apply_snapshot_from_file`** verifies first, reads everything, and only then replaces the
//!   state, in one step.
//!
//! # In memory or on disk
//! The machine above is [`Durability::Rebuilt`](crate::Durability::Rebuilt), the default. A machine
//! that keeps its own files is [`Durability::Durable`](crate::Durability::Durable): it stores its
//! data and the position of the last applied entry in one atomic step, and continues from there. It
//! must ignore entries up to that position, which may be delivered again. The documentation of
//! [`StateMachine`](crate::StateMachine) lists the methods that such a machine writes in addition.
//!
//! # Test it
//! With the feature `testing`, one macro generates the tests of every rule of the contract; see the
//! README, "Testing your state machine".
//!
//! # Change it later
//! Old entries stay in the log, and nodes are upgraded one after the other. So a new program must
//! still decode the commands of the old one. Give new kinds of commands a higher
//! [`command_version`](crate::StateMachine::command_version), and raise
//! [`command_version_max`](crate::StateMachine::command_version_max) to it: the leader accepts them
//! only after every voter runs a program that decodes them.
