//! Everything a d-engine node does, as plain structs: the core, the durable log and the user's
//! state machine, driven by [`Replica::handle`]. No threads, no runtime, no clock; the server and
//! the simulator drive the same code.
//!
//! # Where to look
//! `replica.rs` drives the core; `log_worker.rs` and `apply_worker.rs` do the jobs it gives out;
//! `state_machine.rs` is the trait that applications implement and `state_machine_handler.rs` calls
//! it.

mod apply_queue;
mod apply_records;
mod apply_worker;
mod binding;
mod brake;
mod callback_error;
mod callers;
mod command_version;
mod config;
mod convert;
mod entry;
mod error;
mod event;
mod gauges;
mod health;
mod holds;
mod intake;
mod loads;
mod log_cache;
mod log_worker;
mod members;
mod payloads;
mod peer_message;
mod proposals;
mod reads;
mod replica;
mod restore;
mod scrub;
mod skips;
mod snapshot_build;
mod snapshot_checksum;
mod snapshot_policy;
mod snapshot_room;
mod snapshot_transfer;
mod snapshots;
mod standing;
mod state_machine;
mod state_machine_handler;
mod status;
mod ticker;
mod worker_watch;

pub use apply_worker::ApplyWorker;
pub use binding::{Binding, Bound};
pub use callback_error::{Error, Result, Unsupported};
pub use config::ReplicaConfig;
pub use entry::{Entry, LogId, ReplyProbe, ReplySink};
pub use error::{
    InstallError, LeaderHint, ProposeError, ReadError, ReplicaError, SkipError, StopReason, TransferError,
    UnknownBecause,
};
pub use event::{
    ApplyJob, ApplySource, ApplyStop, Event, Install, InstallResponder, Jobs, LoadJob, LogDisk, Outgoing,
    PersistJob, Proposal, ProposeResponder, ReadRequest, ReadResponder, ReceivedSnapshot, SkipResponder,
    SkippedEntry, SnapshotOrder, SnapshotProgress, TransferResponder,
};
pub use gauges::Gauges;
pub use log_worker::{LogLoader, LogWorker};
pub use peer_message::PeerMessage;
pub use reads::ReadConsistency;
pub use replica::Replica;
pub use restore::{Footing, Start};
pub use scrub::Scrubber;
pub use snapshot_build::SnapshotTask;
pub use snapshot_checksum::{snapshot_checksum, snapshot_checksum_in};
pub use snapshot_policy::{
    AfterBytes, AfterEntries, AfterTime, AnyOf, Never, SnapshotContext, SnapshotPolicy,
};
pub use snapshot_room::SnapshotRoom;
pub use snapshot_transfer::{
    OFFERED_HEADER_BYTES_MAX, PIECE_BYTES_MAX, ReceiverStep, Refusal, SendFailure, SendLimits,
    SnapshotMessage, SnapshotReceiver, SnapshotSender,
};
pub use state_machine::{Durability, SnapshotMetadata, SnapshotView, StateMachine};
pub use state_machine_handler::StateMachineHandler;
pub use status::ReplicaStatus;
