//! The Raft algorithm of d-engine, and nothing else: inputs in, effects out.
//!
//! There is no clock, thread, disk, socket, random source or log output in this crate; a run is a
//! function of its inputs and of one seed. [`RaftCore::step`] is called with everything that
//! happens and fills [`Effects`] with everything that must be done about it.
//!
//! # How to drive it
//! 1. [`RaftCore::new`] with what the log held at the last start.
//! 2. [`RaftCore::step`] with an [`Input`]; then do all that [`Effects`] says. Nothing in it may be
//!    ignored, nothing needs an order of its own: a message that depends on a write is not in it
//!    before the write was reported with [`Input::Persisted`].
//! 3. [`RaftCore::next_deadline`] tells when to call with [`Input::Deadline`] if nothing happens.
//!
//! # Where to look
//! `raft_core.rs` has the struct, `step` and the term rule. The folders:
//!
//! - `interface`: configuration, inputs, effects, messages, status;
//! - `protocol`: what each role does: elections, replication, membership changes, leadership
//!   transfer, snapshots, skipped entries, and the invariants that are checked after every step;
//! - `state`: what is tracked: the log without payloads, followers, quorums, log time, messages
//!   that wait for the disk;
//! - `read`: linearizable reads by rounds of heartbeats, reads at a follower, the leader lease.
#![no_std]
extern crate alloc;

mod interface;
mod prng;
mod protocol;
mod raft_core;
mod read;
mod state;
mod time;
mod types;

pub use interface::config::{CoreConfig, CoreConfigError};
pub use interface::effects::{AppendPlan, Appended, Effects, Envelope, LogSuffix, PersistRequest};
pub use interface::gauges::CoreGauges;
pub use interface::input::{
    Input, QuorumRisk, ReadId, ReadMode, Rejected, SkipRefusal, SnapshotToInstall, VoterSet,
};
pub use interface::message::{
    AppendOutcome, EntryMeta, FollowerReport, MAX_ACCEPTED_TIME_MS, Message, SentMessage,
};
pub use interface::status::{CoreStatus, FollowerStatus};
pub use prng::SplitMix64;
pub use protocol::role::RoleKind;
pub use raft_core::{Initial, RaftCore};
pub use state::command_version::CommonVersion;
pub use state::log_clock::ClockState;
pub use state::log_view::{InitialLog, LogSummary};
pub use state::quorum::{Configuration, MembershipStep};
pub use time::{Instant, Now, nanos};
pub use types::{
    ClusterId, EntryKind, GroupId, HardState, Incarnation, LogId, LogIndex, NodeId, PersistId,
    SessionSerial, Term,
};
