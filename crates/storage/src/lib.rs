//! Durable storage of a node: entries and hard state in one synced stream, the identity and other
//! small records beside it. Every file operation goes through [`Fs`].
//!
//! Start at [`StorageEngine`]: it opens a data directory and hands out a [`LogStore`] and a
//! [`MetaStore`]. `docs/file-format.md` draws every byte.

pub mod address;
mod error;
mod identity;
mod log;
mod membership;
mod meta_store;
mod promise;
pub mod snapshot;
mod succession;
mod time;

pub use d_engine_core::{ClusterId, Incarnation, LogSuffix, SessionSerial};
pub use d_engine_fs as fs;
pub use d_engine_fs::{
    FileKind, Fs, FsCounts, FsFile, FsLock, FsOp, LockAttempt, OpenMode, RealFs, SYNC_EVERY_BYTES,
    StreamReader, StreamWriter, is_out_of_space, read_file, read_up_to, write_all_at,
};
pub use error::StorageError;
pub use identity::Identity;
pub use log::engine::{
    DirectoryLocks, LogDamage, LogReader, LogStats, LogStore, MetaStore, OpenRequest,
    OpenedStorage, RecoveredLog, RecoveryReport, Reservation, ScrubPlace, Scrubbed, StorageEngine,
};
pub use log::entry::{EntryHead, LogEntry, SKIP_BYTES, decode_skip, encode_skip};
pub use log::file_engine::FileStorageEngine;
pub use log::frame::MAX_PAYLOAD_BYTES;
pub use log::options::FileStorageOptions;
pub use log::segment::Alignment;
pub use log::survey;
pub use membership::{
    Admission, ChangeError, ConfigId, Invitation, JoinAs, Leavers, Member, MemberChange,
    MemberRole, Membership, MembershipError, NewMember, VoterIntent, canonical_address,
};
pub use promise::Repaired;
pub use succession::{Origin, RECOVERING, REPAIRING, RESTORING, Retired, RetiredBy};
pub use time::rfc3339;
