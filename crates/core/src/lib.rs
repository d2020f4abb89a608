//! The Raft algorithm of d-engine, and nothing else: inputs in, effects out.
//!
//! There is no clock, thread, disk, socket, random source or log output in this crate; a run is a
//! function of its inputs and of one seed. `RaftCore::step` is called with everything that
//! happens and fills `Effects` with everything that must be done about it.
#![no_std]
extern crate alloc;

mod message;
mod quorum;
mod time;
mod types;

pub use message::AppendOutcome;
pub use quorum::Configuration;
pub use time::{Duration, Instant};
pub use types::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, PersistId, Term};
