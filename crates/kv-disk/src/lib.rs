//! The key-value state machine of d-engine on disk: the same commands, queries and snapshots as
//! `d-engine-kv`, for data sets larger than memory and for starts that do not replay everything.
//!
//! The data are in one file of [redb](https://www.redb.org), a copy-on-write B-tree. One
//! transaction holds the changes of a log chunk and the position after it. Transactions become
//! durable when the engine requests it, and after every [`SYNC_EVERY_BYTES`] of commands; what a
//! crash loses is applied again from the log.
//!
//! The rules of commands are in [`d_engine_kv_language::rules`], for this machine and for the one
//! in memory. `machine` implements the state machine trait, `tables` is what the rules work on,
//! `database` one file, `state` the position and other metadata, `snapshot` the conversion between
//! a database and a snapshot, and `backend` the I/O.

mod backend;
mod database;
mod error;
mod machine;
mod snapshot;
mod state;
mod tables;

pub use d_engine_kv::snapshot_file::SnapshotFileError;
pub use d_engine_kv_language::{
    BATCH_OPERATIONS_MAX, GET_MANY_BYTES_MAX, GET_MANY_KEYS_MAX, Keys, KvCommand, KvOperation,
    KvQuery, KvQueryReply, KvReply, Page, PutOptions, QueryLimitError, Record, SCAN_LIMIT_DEFAULT,
    SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan, UndecodableError,
};
pub use error::DiskKvError;
pub use machine::{
    CACHE_BYTES_DEFAULT, DiskKvStateMachine, SYNC_EVERY_BYTES, VIEW_GROWTH_BYTES_DEFAULT,
};
