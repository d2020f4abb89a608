//! The node: d-engine on threads, clocks and sockets.
//!
//! [`NodeBuilder`] builds a [`Node`] from a [`Config`]; starting it returns an [`EmbeddedEngine`],
//! the handle for everything else.
//!
//! # Where to look
//! `node/builder.rs` starts a node, whose threads `threads/start.rs` assembles: `threads/raft.rs`
//! drives the replica; `threads/workers.rs` contains the log thread; `threads/apply.rs` and
//! `threads/snapshot.rs` contain the apply and snapshot threads; `threads/inbox.rs` is the raft
//! thread's input. What the threads do is decided in `d_engine_replica`; what they share is checked
//! in `tests/models.rs`. `transport/` connects nodes, `members/` lets them join and leave,
//! `snapshots/` sends and receives snapshots, `clients/` is the client service, and `config.rs` has
//! the settings.

mod clients;
mod config;
mod error;
mod members;
mod node;
mod snapshots;
mod sync;
mod threads;
pub mod transport;

// Types in the signatures of the handle's methods.
pub use d_engine_api::message::EntryId;
pub use d_engine_api::{
    Admission, ConfigId, Invitation, Member, MemberChange, MemberRole, Members, NodeRole,
    NodeStatus, ReadConsistency, ReceivingSnapshot, SendingSnapshot, SnapshotStatus,
};
pub use d_engine_replica::{
    ChangeMembersError, ProposeError, ReadError, RefusedBecause, SkipError, SnapshotRequestError,
    TransferError, UnknownBecause,
};

pub use config::{
    Config, ConfigError, JoinRole, Limits, MemberConfig, SnapshotCompression, Snapshots,
    free_loopback_ports,
};
pub use error::{StartError, WaitError};
pub use members::answering::{MemberAnswer, answering_members};
pub use node::builder::{IntoStateMachine, Node, NodeBuilder};
pub use node::embedded::{Backup, BackupError, BackupOptions, ChangeOptions, EmbeddedEngine};

/// The stop reason of a node that was shut down in order.
const SHUT_DOWN: &str = "the node was shut down";
