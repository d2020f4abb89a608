//! The threads of a node and what they share: inbox, read gate, throttle of background work.

pub(crate) mod apply;
pub(crate) mod building;
pub(crate) mod inbox;
pub(crate) mod pace;
pub(crate) mod raft;
pub(crate) mod read_gate;
pub(crate) mod scrub;
pub(crate) mod scrub_end;
pub(crate) mod seldom;
pub(crate) mod shared;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod work_queue;
pub(crate) mod workers;

// Files of their own: `tests/models.rs` compiles the files that they test.
#[cfg(test)]
mod inbox_tests;
#[cfg(test)]
mod read_gate_tests;
