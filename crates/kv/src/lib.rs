//! The default key-value state machine of d-engine: ordered keys in memory, rebuilt from snapshot
//! and log at every start.
//!
//! Commands, replies, queries and query results are defined in `d-engine-kv-language`, so that
//! network clients share the types, and are re-exported here. Their rules are in
//! [`d_engine_kv_language::rules`]. `store` is the map that they work on; [`KvStateMachine`] adds a
//! lock and positions. [`snapshot_file`] is the format of snapshots, which the machine on disk
//! shares. Simulator and server run the same code.

mod blob;
mod machine;
mod snapshot;
pub mod snapshot_file;
mod store;

pub use d_engine_kv_language::{
    BATCH_OPERATIONS_MAX, GET_MANY_BYTES_MAX, GET_MANY_KEYS_MAX, Keys, KvCommand, KvOperation,
    KvQuery, KvQueryReply, KvReply, Page, PutOptions, QueryLimitError, Record, SCAN_LIMIT_DEFAULT,
    SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan, UndecodableError,
};
pub use machine::KvStateMachine;
pub use snapshot_file::SnapshotFileError;
