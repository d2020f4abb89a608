//! The default key-value state machine of d-engine: ordered keys in memory, rebuilt from snapshot
//! and log at every start.
//!
//! [`command`] has the typed commands and replies, `store` what they do to a map, and
//! [`KvStateMachine`] puts the map under a lock, numbers and files. Simulator and server run the
//! same code.

pub mod command;
mod machine;
mod snapshot_file;
mod store;

pub use command::{KvCommand, KvReply};
pub use machine::KvStateMachine;
pub use snapshot_file::SnapshotFileError;
