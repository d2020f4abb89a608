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
//! `raft_core.rs` has the struct, `step` and the term rule; `election.rs`, `follower.rs` and
//! `leader.rs` what each role does; `log_view.rs` the log without payloads; `quorum.rs` majorities;
//! `read.rs` linearizable reads, `forward.rs` those of a follower, `lease.rs` those without a round;
//! `transfer.rs` handing leadership over; `held.rs` messages that wait for the disk; `log_clock.rs`
//! the time that entries carry.
#![no_std]
extern crate alloc;

mod command_version;
mod config;
mod effects;
mod election;
mod follower;
mod forward;
mod gauges;
mod held;
mod input;
mod invariants;
mod leader;
mod lease;
mod log_clock;
mod log_view;
mod message;
mod prng;
mod progress;
mod quorum;
mod raft_core;
mod read;
mod role;
mod skip;
mod snapshot;
mod status;
mod time;
mod transfer;
mod types;

pub use command_version::CommonVersion;
pub use config::{CoreConfig, CoreConfigError};
pub use effects::{AppendPlan, Appended, Effects, PersistOrder, Send};
pub use gauges::CoreGauges;
pub use input::{EntryMeta, Input, ReadId, Rejected, SkipRefusal};
pub use log_clock::ClockState;
pub use log_view::{InitialLog, LogSummary};
pub use message::{AppendOutcome, FollowerReport, MAX_ACCEPTED_TIME_MS, Message};
pub use quorum::Configuration;
pub use raft_core::{Initial, RaftCore};
pub use role::RoleKind;
pub use status::{CoreStatus, FollowerStatus};
pub use time::{Duration, Instant};
pub use types::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, PersistId, Term};
