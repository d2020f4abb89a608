//! Tools for the directories and files of a stopped node, without a state machine and without a
//! runtime: every function blocks, and returns when its work is done.
//!
//! A tool here knows what a data directory is for, and what an operator may do next. What the bytes
//! mean is known by `d-engine-storage`, whose decoders these tools use: no format is read twice.
//! `docs/file-format.md` draws every byte.
//!
//! [`inspect`] reads a directory and changes nothing, also one that a node refuses to open.
//! [`restore`] makes the directory of a new cluster from a snapshot file.

pub mod inspect;
pub mod restore;

/// The file system of the machine, and the trait that the tools reach every file through.
pub use d_engine_fs::{Fs, RealFs};
