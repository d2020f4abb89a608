//! Reads a data directory or a snapshot file and says what is in it, and what of it is damaged.
//!
//! Nothing is created, repaired, truncated or locked, so it may be used on the only copy of a
//! directory that a node refuses to start on. Start at [`Directory::read`].
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//!
//! use d_engine_offline::RealFs;
//! use d_engine_offline::inspect::{Directory, Found, Range, Snapshots};
//! # use d_engine_core::{GroupId, NodeId};
//! # use d_engine_storage::{
//! #     ClusterId, FileStorageEngine, Incarnation, Member, MemberRole, Membership, OpenRequest,
//! #     StorageEngine,
//! # };
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let dir = directory.path().join("data");
//! # let member = Member {
//! #     node: 1,
//! #     peer_addr: "127.0.0.1:1".to_owned(),
//! #     client_addr: String::new(),
//! #     role: MemberRole::Voter,
//! #     incarnation: None,
//! # };
//! # let request = OpenRequest {
//! #     cluster: None,
//! #     node: NodeId::new(1).ok_or("no id")?,
//! #     group: GroupId::FIRST,
//! #     initial: Membership::new([member])?,
//! #     fresh_cluster: ClusterId([1; 16]),
//! #     fresh_incarnation: Incarnation([2; 16]),
//! # };
//! # drop(FileStorageEngine::at(&dir).open(&request)?);
//! let go_on = &mut |_| ControlFlow::Continue(());
//! let directory = Directory::read(Arc::new(RealFs::new()), &dir, Snapshots::Verify, go_on)?;
//! println!("{:?}", directory.verdict());
//! directory.entries(Range::default(), &mut |found| {
//!     match found {
//!         Found::Entry(stored) => println!("{}", stored.entry.id),
//!         Found::Damage(damage) => println!("{}: {}", damage.path.display(), damage.what),
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```

mod directory;
mod members;
mod report;
mod snapshots;
mod verdict;

pub use d_engine_core::{EntryKind, HardState, LogId, LogIndex};
pub use d_engine_storage::snapshot::{
    ChunkDamage, Compression, SnapshotContent, SnapshotError, SnapshotHeader, SnapshotSurvey,
};
pub use d_engine_storage::survey::{
    Damage, Found, LogSummary, Loss, Owner, Range, SegmentSummary, StartOutcome, StoredEntry,
    Survey, TornTail,
};
pub use d_engine_storage::{
    LogEntry, Member, MemberRole, Membership, MembershipError, SessionSerial, decode_skip, rfc3339,
};

pub use self::directory::Directory;
pub use self::members::{KnownMembers, MembersFrom};
pub use self::report::{InspectError, Progress, Snapshots};
pub use self::snapshots::{SnapshotFile, SnapshotState};
pub use self::verdict::Verdict;
