//! Tools for the directories and files of a stopped node, without a state machine and without a
//! runtime: every function blocks, and returns when its work is done.
//!
//! A tool here knows what a data directory is for, and what an operator may do next. What the bytes
//! mean is known by `d-engine-storage`, whose decoders these tools use: no format is read twice.
//! `docs/file-format.md` draws every byte.
//!
//! [`inspect`] reads a directory and changes nothing, also one that a node refuses to open.
//! [`backup`] writes and verifies copies of snapshots.
//! [`restore`] makes the directory of a new cluster from a snapshot file.
//! [`recover`] continues the log of one node as a new cluster when the majority is lost for good.

pub mod backup;
mod founding;
pub mod inspect;
pub mod recover;
pub mod repair;
mod replacement;
pub mod restore;

/// The file system of the machine, and the trait that the tools reach every file through.
pub use d_engine_fs::{Fs, RealFs};
