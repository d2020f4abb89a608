//! The life cycle of a state machine in a node: start, apply, snapshots, skipped entries.

pub(crate) mod apply_queue;
pub(crate) mod apply_records;
pub(crate) mod apply_steps;
pub(crate) mod apply_worker;
pub(crate) mod callers;
pub(crate) mod handler;
pub(crate) mod install;
pub(crate) mod install_pause;
pub(crate) mod position;
pub(crate) mod restore;
pub(crate) mod skips;
pub(crate) mod snapshot_build;
pub(crate) mod snapshot_due;
pub(crate) mod snapshot_requests;
