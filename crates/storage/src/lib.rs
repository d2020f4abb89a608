//! The durable side of a node: entries and hard state in one synced stream, identity and pointers
//! beside it, every file operation through [`Fs`].
//!
//! Start at [`StorageEngine`]: it opens a data directory and hands out a [`LogStore`] and a
//! [`MetaStore`]. `docs/file-format.md` draws every byte.

mod engine;
mod entry;
mod error;
mod identity;
mod membership;

pub use engine::{
    LogReader, LogStats, LogStore, MetaStore, OpenRequest, OpenedStorage, RecoveredLog, RecoveryReport,
    StorageEngine,
};
pub use entry::{EntryHead, LogEntry, SessionSerial};
pub use error::StorageError;
pub use identity::{ClusterId, Identity, Incarnation};
pub use membership::{Member, MemberRole, Membership, MembershipError};
