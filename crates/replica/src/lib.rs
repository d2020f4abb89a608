//! Everything a d-engine node does, as plain structs: the core, the durable log and the user's
//! state machine, driven by `Replica::handle(now, event)`. No threads, no runtime, no clock; the
//! server and the simulator drive the same code.

mod callback_error;
mod entry;
mod error;
mod event;
mod peer_message;
mod snapshot_checksum;
mod state_machine;

pub use callback_error::{Error, Result, Unsupported};
pub use entry::{Entry, LogId, ReplyProbe, ReplySink};
pub use error::{LeaderHint, ProposeError, ReadError, StopReason};
pub use event::{
    ApplyJob, ApplySource, Event, Jobs, LoadJob, Outgoing, PersistJob, Proposal, ProposeResponder,
    ReadRequest, ReadResponder,
};
pub use peer_message::PeerMessage;
pub use snapshot_checksum::snapshot_checksum;
pub use state_machine::{Durability, SnapshotMetadata, SnapshotView, StateMachine};
