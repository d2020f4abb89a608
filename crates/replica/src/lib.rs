//! Everything that a d-engine node does, as plain structs: the core, the durable log and the user's
//! state machine, driven by [`Replica::handle`]. It has no threads, no async runtime and no clock;
//! the server and the simulator drive the same code.
//!
//! # Where to look
//! `replica.rs` drives the core. `log/worker.rs` and `state_machine/apply_worker.rs` execute its
//! jobs. `d_engine_state_machine` has the trait that applications implement;
//! `state_machine/handler.rs` calls it.

mod admission;
mod clients;
mod config;
mod convert;
mod error;
mod event;
mod gauges;
mod health;
mod log;
mod members;
mod membership_driver;
mod moved;
mod peer_message;
mod read_gate;
mod replica;
mod snapshots;
mod state_machine;
mod status;
mod ticker;

pub use admission::{Admission, Admitted};
pub use config::ReplicaConfig;
pub use d_engine_state_machine::{
    AfterBytes, AfterEntries, AfterTime, AnyOf, Binding, Bound, Durability, Entry, Error, LogId,
    LogIndex, Never, ReplyProbe, ReplySink, Result, SnapshotContext, SnapshotMetadata,
    SnapshotPolicy, SnapshotRoom, SnapshotView, StateMachine, Term, Unsupported, snapshot_checksum,
    snapshot_checksum_in,
};
pub use error::{
    InstallError, LeaderHint, ProposeError, ReadError, ReplicaError, SkipError,
    SnapshotRequestError, StopReason, TransferError, UnknownBecause,
};
pub use event::{
    ApplyJob, ApplySource, ApplyStop, Event, HaltCause, Install, InstallResponder, Jobs, LoadJob,
    LogDisk, Outgoing, PersistJob, Proposal, ProposeResponder, ReadRequest, ReadResponder,
    ReceivedSnapshot, SkipResponder, SkippedEntry, SnapshotProgress, SnapshotSendRequest,
    TransferResponder,
};
pub use gauges::Gauges;
pub use log::cache::CACHED_ENTRY_COST;
pub use log::load_queue::LoadQueue;
pub use log::scrub::Scrubber;
pub use log::steps::{LogStep, LogSteps, LogWait, LogWork, SPACE_RETRY_INTERVAL};
pub use log::worker::{LogLoader, LogWorker};
pub use membership_driver::{
    ChangeMembers, ChangeMembersError, ChangeResponder, MissingVoters, PeerAddresses,
    RefusedBecause,
};
pub use peer_message::PeerMessage;
pub use read_gate::{ReadDecision, ReadGateInputs, decide_eventual_read, decide_lease_read};
pub use replica::Replica;
pub use snapshots::choice::{ArchiveChoice, ArchivePreference, choose_archive};
pub use snapshots::exchange::{
    OFFERED_HEADER_BYTES_MAX, PIECE_BYTES_MAX, ReceiverStep, Refusal, SendFailure, SendLimits,
    SendProgress, SnapshotMessage, SnapshotReceiver, SnapshotSender,
};
pub use snapshots::receiving::{OfferDecision, decide_offer};
pub use snapshots::sending::{
    AfterAttempt, SendAttempt, SendOutcome, SendingSnapshot, SnapshotSends,
};
pub use state_machine::apply_steps::{ApplyStep, ApplySteps, ApplyWork, UNPACK_RETRY_INTERVAL};
pub use state_machine::apply_worker::{ApplyRun, ApplyWorker, SnapshotCause};
pub use state_machine::handler::StateMachineHandler;
pub use state_machine::restore::{Start, StartPosition};
pub use state_machine::snapshot_build::SnapshotTask;
pub use state_machine::snapshot_requests::{SnapshotRequests, SnapshotResponder};
pub use status::ReplicaStatus;
