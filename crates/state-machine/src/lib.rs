//! What a state machine is written against: the trait, entries and replies, errors, snapshot
//! policies, and the checksum of a snapshot. Nothing of the engine that calls it.
//!
//! # Where to look
//! `state_machine.rs` has [`StateMachine`], and says of every method when it is called, on which
//! thread, and what its default does. `entry.rs` has what the machine receives and replies.

mod binding;
mod entry;
mod error;
mod snapshot_checksum;
mod snapshot_policy;
mod snapshot_room;
mod state_machine;

pub use binding::{Binding, Bound};
/// Parts of [`Binding`] and [`Entry`], and the position of an entry in the log.
pub use d_engine_core::{ClusterId, Incarnation, LogId, LogIndex, SessionSerial, Term};
pub use entry::{Entry, ReplyProbe, ReplySink};
pub use error::{Error, Result, Unsupported};
pub use snapshot_checksum::{snapshot_checksum, snapshot_checksum_in};
pub use snapshot_policy::{
    AfterBytes, AfterEntries, AfterTime, AnyOf, Never, SnapshotContext, SnapshotPolicy,
};
pub use snapshot_room::SnapshotRoom;
pub use state_machine::{Durability, SnapshotMetadata, SnapshotView, StateMachine};
