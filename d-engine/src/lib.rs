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
//! ## Does it keep the contract?
//! With the feature `testing`, `d_engine::testing::state_machine_suite!` and `storage_engine_suite!` run every line of
//! the contract against your own implementation, each as a test.
//!
//! ## What is promised
//! `docs/durability.md` lists every promise with the line that keeps it and the test that fails
//! without it.

/// What [`ReplicaStatus`] holds.
pub use d_engine_core::{CoreStatus, FollowerStatus, RoleKind};
pub use d_engine_kv::{
    Keys, KvAnswer, KvCommand, KvOperation, KvQuery, KvReply, KvStateMachine, Page, PutOptions,
    QueryLimitError, Record, Scan, UndecodableError,
};
pub use d_engine_replica::{
    AfterBytes, AfterEntries, AfterTime, AnyOf, Binding, Bound, Durability, Entry, Error, LeaderHint, LogId,
    Never, ProposeError, ReadConsistency, ReadError, ReplyProbe, Result, SkipError, SnapshotContext,
    SnapshotMetadata, SnapshotPolicy, SnapshotRoom, SnapshotView, StateMachine, StopReason, TransferError,
    UnknownBecause, Unsupported, snapshot_checksum,
};
pub use d_engine_replica::{ReplicaError, ReplicaStatus};
pub use d_engine_server::{
    Config, ConfigError, EmbeddedEngine, IntoStateMachine, Limits, MemberConfig, Node, NodeBuilder,
    NodeStatus, ReceivingSnapshot, SendingSnapshot, SnapshotCompression, SnapshotRequestError,
    SnapshotStatus, Snapshots, StartError, WaitError,
};
pub use d_engine_storage::snapshot::{SnapshotError, SnapshotInfo};
pub use d_engine_storage::{FileStorageEngine, FileStorageOptions, StorageEngine, StorageError};

/// The key-value machine on disk ([`Durability::Durable`]), with the commands, questions and snapshots of
/// [`KvStateMachine`].
#[cfg(feature = "disk")]
pub use d_engine_kv_disk::DiskKvStateMachine;
#[cfg(feature = "testing")]
pub use d_engine_testing as testing;

/// Everything that a storage engine of one's own is made of; see [`StorageEngine`].
pub mod storage {
    pub use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
    pub use d_engine_storage::{
        ClusterId, EntryHead, Identity, Incarnation, LogEntry, LogReader, LogStats, LogStore, Member,
        MemberRole, Membership, MembershipError, MetaStore, OpenRequest, OpenedStorage, RecoveredLog,
        RecoveryReport, SessionSerial, StorageEngine, StorageError,
    };
    // For files that the simulated disk of `testing` can lose.
    pub use d_engine_storage::{
        FileKind, Fs, FsFile, OpenMode, RealFs, StreamReader, StreamWriter, read_file, read_up_to,
        write_all_at,
    };
}
