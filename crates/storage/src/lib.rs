//! The durable side of a node: entries and hard state in one synced stream, identity and pointers
//! beside it, every file operation through [`Fs`].
//!
//! Start at [`StorageEngine`]: it opens a data directory and hands out a [`LogStore`] and a
//! [`MetaStore`]. `docs/file-format.md` draws every byte.

mod dir_handles;
mod engine;
mod entry;
mod error;
mod file_engine;
mod frame;
pub mod fs;
mod fs_latch;
#[cfg(feature = "testing")]
pub mod fs_sim;
mod fs_stream;
mod identity;
mod index;
mod log_meta;
mod log_record;
mod membership;
mod meta_store;
mod recover;
mod scrub;
mod segment;
mod segment_files;
pub mod snapshot;
mod spares;
mod wal;

pub use engine::{
    DirectoryLocks, LogReader, LogStats, LogStore, LogSuffix, MetaStore, OpenRequest, OpenedStorage,
    RecoveredLog, RecoveryReport, StorageEngine,
};
pub use entry::{EntryHead, LogEntry, SessionSerial};
pub use error::StorageError;
pub use file_engine::{FileStorageEngine, FileStorageOptions};
pub use frame::MAX_PAYLOAD_BYTES;
pub use fs::{
    FileKind, Fs, FsCounts, FsFile, FsLock, FsOp, LockAttempt, OpenMode, RealFs, read_file, read_up_to,
    write_all_at,
};
pub use fs_latch::is_want_of_room;
pub use fs_stream::{SYNC_EVERY_BYTES, StreamReader, StreamWriter};
pub use identity::{ClusterId, Identity, Incarnation};
pub use membership::{Member, MemberRole, Membership, MembershipError};
pub use scrub::{LogDamage, ScrubPlace, Scrubbed};
pub use segment::Alignment;
