//! # d-engine
//!
//! Bring a state machine; d-engine makes it replicated, durable and linearizable, inside your own
//! process or as a server. Raft underneath, files by default, nothing acknowledged before a majority
//! has synced it.
//!
//! ## In your own process
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
//! engine.propose(KvCommand::put("greeting", "hello").encode()).await?;
//! let value = engine.get(b"greeting", ReadConsistency::Linearizable).await?;
//! assert_eq!(value.as_deref(), Some(b"hello".as_slice()));
//! engine.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! ## Your own state machine
//! Implement [`StateMachine`] and hand it to [`EmbeddedEngine::start_custom`] or to
//! [`NodeBuilder::state_machine`]. `examples/custom-state-machine` is a bank with accounts and
//! transfers on three nodes.
//!
//! ## What is promised
//! `docs/durability.md` lists every promise with the line that keeps it and the test that fails
//! without it.

pub use d_engine_kv::{
    Keys, KvAnswer, KvCommand, KvOperation, KvQuery, KvReply, KvStateMachine, Page, PutOptions,
    QueryLimitError, Record, Scan, UndecodableError,
};
pub use d_engine_replica::{
    Durability, Entry, Error, LeaderHint, LogId, Never, ProposeError, ReadConsistency, ReadError, ReplyProbe,
    Result, SnapshotContext, SnapshotMetadata, SnapshotPolicy, SnapshotView, StateMachine, StopReason,
    TransferError, Unsupported, snapshot_checksum,
};
pub use d_engine_server::{
    Config, ConfigError, EmbeddedEngine, Limits, MemberConfig, Node, NodeBuilder, NodeStatus, StartError,
    WaitError,
};
pub use d_engine_storage::{FileStorageEngine, FileStorageOptions, StorageEngine, StorageError};

/// Everything that a storage engine of one's own is made of; see [`StorageEngine`].
pub mod storage {
    pub use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
    pub use d_engine_storage::{
        ClusterId, EntryHead, Identity, Incarnation, LogEntry, LogReader, LogStats, LogStore, Member,
        MemberRole, Membership, MembershipError, MetaStore, OpenRequest, OpenedStorage, RecoveredLog,
        RecoveryReport, SessionSerial, StorageEngine, StorageError,
    };
}
