//! The key-value state machine of d-engine on disk: the same commands, questions, answers and snapshots as
//! `d-engine-kv`, for more data than memory holds, and for starts that do not read it all.
//!
//! The data lie in one file of [redb](https://www.redb.org), a B-tree with copy on write. What a chunk of the log
//! changes, and the position behind it, are one transaction. Transactions are made durable when the engine asks for
//! it, and after every [`SYNC_EVERY_BYTES`] of commands; the log has whatever a crash takes away.
//!
//! What commands mean is decided in `d_engine_proto::key_value::rules`, for this machine and for the one in memory.
//! `machine` is the machine as the engine sees it, `tables` what the rules work on, `database` one file, `state` what
//! goes with it, `snapshot` both ways between a database and a snapshot, `backend` the way to the disk.

mod backend;
mod database;
mod error;
mod machine;
mod snapshot;
mod state;
mod tables;

pub use d_engine_proto::key_value::{
    BATCH_OPERATIONS_MAX, GET_MANY_BYTES_MAX, GET_MANY_KEYS_MAX, Keys, KvAnswer, KvCommand, KvOperation,
    KvQuery, KvReply, Page, PutOptions, QueryLimitError, Record, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX,
    SCAN_PAGE_BYTES, Scan, UndecodableError, snapshot_file::SnapshotFileError,
};
pub use error::DiskKvError;
pub use machine::{CACHE_BYTES_DEFAULT, DiskKvStateMachine, SYNC_EVERY_BYTES, VIEW_GROWTH_BYTES_DEFAULT};
