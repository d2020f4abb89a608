//! # d-engine
//!
//! You bring a state machine; d-engine makes it replicated, durable and linearizable, inside your
//! own process or as a server. It is based on Raft and stores its log in files. A write is
//! acknowledged only after a majority has synced it.
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
//! ## The guide
//! [`guide`] leads from the first program to a cluster that you operate: your own state machine,
//! errors and retries, consistency, snapshots, operating, and a FAQ by symptom.
//!
//! ## Your own state machine
//! Implement [`StateMachine`] and pass it to [`EmbeddedEngine::start_custom`] or
//! [`NodeBuilder::state_machine`]. `examples/custom-state-machine` is a bank with accounts and
//! transfers on three nodes.
//!
//! ## Testing your state machine
//! With the feature `testing`, the macros `d_engine::testing::state_machine_suite!` and
//! `storage_engine_suite!` generate tests of every rule of the contract for your own
//! implementation.
//!
//! ## What is promised
//! `docs/durability.md` lists every promise with the line that keeps it and the test that fails
//! without it.

pub mod guide;

/// The parts of [`ReplicaStatus`], which [`EmbeddedEngine::replica_status`] returns.
pub use d_engine_core::{CoreStatus, FollowerStatus, RoleKind};
pub use d_engine_kv::{
    Keys, KvCommand, KvOperation, KvQuery, KvQueryReply, KvReply, KvStateMachine, Page, PutOptions,
    QueryLimitError, Record, Scan, UndecodableError,
};
pub use d_engine_replica::{
    AfterBytes, AfterEntries, AfterTime, AnyOf, Binding, Bound, Durability, Entry, Error,
    LeaderHint, LogId, LogIndex, Never, ProposeError, ReadError, ReplyProbe, Result, SkipError,
    SnapshotContext, SnapshotMetadata, SnapshotPolicy, SnapshotRoom, SnapshotView, StateMachine,
    StopReason, Term, TransferError, UnknownBecause, Unsupported, snapshot_checksum,
};
pub use d_engine_replica::{ReplicaError, ReplicaStatus};
pub use d_engine_server::{
    Admission, Backup, BackupError, BackupOptions, ChangeMembersError, ChangeOptions, Config,
    ConfigError, ConfigId, EmbeddedEngine, EntryId, IntoStateMachine, Invitation, JoinRole, Limits,
    Member, MemberAnswer, MemberChange, MemberConfig, MemberRole, Members, Node, NodeBuilder,
    NodeRole, NodeStatus, ReadConsistency, ReceivingSnapshot, SendingSnapshot, SnapshotCompression,
    SnapshotRequestError, SnapshotStatus, Snapshots, StartError, WaitError, answering_members,
};
/// Why [`ChangeMembersError::Refused`] refuses a change.
pub use d_engine_storage::ChangeError;
pub use d_engine_storage::snapshot::{SnapshotError, SnapshotInfo};
pub use d_engine_storage::{FileStorageEngine, FileStorageOptions, StorageEngine, StorageError};

/// Tools for the directories and files of a stopped node.
pub use d_engine_offline as offline;

#[cfg(feature = "testing")]
pub use d_engine_conformance as testing;
/// The key-value machine on disk ([`Durability::Durable`]), with the commands, queries and
/// snapshots of [`KvStateMachine`].
#[cfg(feature = "disk")]
pub use d_engine_kv_disk::DiskKvStateMachine;

/// The types that a custom storage engine needs; see [`StorageEngine`].
pub mod storage {
    pub use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
    pub use d_engine_storage::{
        ClusterId, EntryHead, Identity, Incarnation, LogEntry, LogReader, LogStats, LogStore,
        Member, MemberRole, Membership, MembershipError, MetaStore, OpenRequest, OpenedStorage,
        Origin, RecoveredLog, RecoveryReport, Retired, SessionSerial, StorageEngine, StorageError,
    };
    // File access through a trait, so that the simulated disk of `testing` can lose unsynced
    // writes.
    pub use d_engine_storage::{
        FileKind, Fs, FsFile, OpenMode, RealFs, StreamReader, StreamWriter, read_file, read_up_to,
        write_all_at,
    };
}

/// The programs in the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
