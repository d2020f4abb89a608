//! The default key-value state machine of d-engine: ordered keys in memory, rebuilt from snapshot
//! and log at every start.
//!
//! Commands, replies, questions and answers are typed in `d_engine_proto::key_value`, so that network clients
//! have the same ones, and are given out here too; what they mean is in `d_engine_proto::key_value::rules`. `store` is
//! the map that they work on, and [`KvStateMachine`] puts it under a lock, numbers and files. Simulator and
//! server run the same code.

mod blob;
mod machine;
mod snapshot_file;
mod store;

pub use d_engine_proto::key_value::snapshot_file::SnapshotFileError;
pub use d_engine_proto::key_value::{
    BATCH_OPERATIONS_MAX, GET_MANY_BYTES_MAX, GET_MANY_KEYS_MAX, Keys, KvAnswer, KvCommand, KvOperation,
    KvQuery, KvReply, Page, PutOptions, QueryLimitError, Record, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX,
    SCAN_PAGE_BYTES, Scan, UndecodableError,
};
pub use machine::KvStateMachine;
