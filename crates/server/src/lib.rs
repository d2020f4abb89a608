//! d-engine on threads, clocks and sockets.
//!
//! [`NodeBuilder`] puts a [`Node`] together from a [`Config`]; starting it gives an
//! [`EmbeddedEngine`], the handle for everything else.
//!
//! # Where to look
//! `builder.rs` starts a node over the threads of `node_threads.rs`; `raft_thread.rs` drives the replica;
//! `worker_threads.rs` has the log thread, `apply_thread.rs` and `snapshot_thread.rs` the others; `inbox.rs` what comes
//! in for the raft thread; `transport/` how nodes talk; `transfers.rs` how snapshots travel; `api.rs` the client service.

mod api;
mod apply_thread;
mod builder;
mod client_bytes;
mod client_connections;
mod clock;
mod config;
mod descriptors;
mod embedded;
mod ending;
mod entropy;
mod error;
mod inbox;
mod node_status;
mod node_threads;
mod pace;
mod peer_refusals;
mod raft_thread;
mod read_gate;
mod scrub_thread;
mod seldom;
mod snapshot_status;
mod snapshot_thread;
mod transfers;
pub mod transport;
mod worker_threads;

// What the handle's methods take and give.
pub use d_engine_replica::{
    ProposeError, ReadConsistency, ReadError, SkipError, TransferError, UnknownBecause,
};

pub use builder::{IntoStateMachine, Node, NodeBuilder};
pub use config::{Config, ConfigError, Limits, MemberConfig, SnapshotCompression, Snapshots};
pub use embedded::EmbeddedEngine;
pub use error::{SnapshotRequestError, StartError, WaitError};
pub use node_status::NodeStatus;
pub use snapshot_status::SnapshotStatus;
pub use transfers::{ReceivingSnapshot, SendingSnapshot};

/// Why a node has stopped that was asked to.
const SHUT_DOWN: &str = "the node was shut down";
