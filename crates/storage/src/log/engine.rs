//! The interface between a node and its disk. All traits are blocking and dyn-compatible; the node
//! calls them from a thread of its own.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, HardState, LogId, LogIndex, LogSuffix, NodeId};

use crate::fs::FsLock;
use crate::log::frame::Position;
use crate::{ClusterId, EntryHead, Identity, Incarnation, LogEntry, Membership, StorageError};

/// Opens a data directory. One value stands for one directory.
pub trait StorageEngine: Send + Sync + Debug + 'static {
    /// Locks the directory, checks that it belongs to `request`, creates it if it is empty, and
    /// recovers the log: cuts a torn tail and refuses damage.
    ///
    /// # Errors
    /// [`StorageError`] says what to do. Nothing is deleted or rewritten on any error.
    fn open(&self, request: &OpenRequest) -> Result<OpenedStorage, StorageError>;

    /// As [`StorageEngine::open`], for a directory whose node also keeps snapshots. If the log is
    /// damaged, calls `covered` for the last included entry of a snapshot that was read and is
    /// whole. If that snapshot contains everything that the damage may have destroyed, the log
    /// begins after it, and [`RecoveryReport::skipped_corruption`] says so.
    ///
    /// # Errors
    /// As [`StorageEngine::open`].
    fn open_behind(
        &self,
        request: &OpenRequest,
        _covered: &mut dyn FnMut(&Identity) -> Option<LogId>,
    ) -> Result<OpenedStorage, StorageError> {
        self.open(request)
    }

    /// Returns the identity of the directory without opening it; `None` if it has none yet, or if
    /// the engine does not know.
    ///
    /// # Errors
    /// [`StorageError`] if there is one that cannot be read.
    fn owner(&self) -> Result<Option<Identity>, StorageError> {
        Ok(None)
    }

    /// Reserves an empty directory for a node that is about to join a cluster: its incarnation is
    /// durable before any other node learns of it, so that a node that is killed while it joins
    /// does not join a second time. Returns the identity of a directory that has one.
    ///
    /// # Errors
    /// [`StorageError`]; [`StorageError::CannotReserve`] from an engine without this method.
    fn reserve(&self, _fresh_incarnation: Incarnation) -> Result<Reservation, StorageError> {
        Err(StorageError::CannotReserve)
    }
}

/// The node that opens a data directory, and what a new directory needs.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The cluster that the node belongs to. `None` accepts the cluster of an existing directory,
    /// and uses `fresh_cluster` for a new one.
    pub cluster: Option<ClusterId>,
    /// The node's id.
    pub node: NodeId,
    /// The node's group.
    pub group: GroupId,
    /// The configuration at (term 0, index 0), written into a new directory. An existing directory
    /// keeps its own. [`Membership::before_joining`] at a node that has joined.
    pub initial: Membership,
    /// 16 random bytes for a new directory when `cluster` is `None`. The caller draws them, because
    /// this crate has no random source.
    pub fresh_cluster: ClusterId,
    /// 16 random bytes for a new directory; the reserved incarnation for a reserved one.
    pub fresh_incarnation: Incarnation,
}

/// The locks of a data directory. It cannot be opened again while a clone of this is held.
pub type DirectoryLocks = Arc<[Box<dyn FsLock>]>;

/// Whose an existing or empty data directory is; see [`StorageEngine::reserve`].
#[derive(Debug)]
pub enum Reservation {
    /// A node's, which has an identity.
    Owned(Box<Identity>),
    /// A node's that is about to join a cluster, which will know the directory by this incarnation.
    Reserved {
        /// The incarnation; the same one however often the directory is reserved.
        incarnation: Incarnation,
        /// The directory's locks. Drop them just before the directory is opened.
        locks: DirectoryLocks,
    },
}

/// An open data directory. Dropping `log` releases the directory locks, unless a clone of
/// [`LogStore::directory_locks`] is still held.
#[derive(Debug)]
pub struct OpenedStorage {
    /// The identity stored in the directory.
    pub identity: Identity,
    /// The log, for exclusive use by the log worker.
    pub log: Box<dyn LogStore>,
    /// The small, atomically replaced records.
    pub meta: Box<dyn MetaStore>,
    /// The content of the log.
    pub recovered: RecoveredLog,
    /// What recovery did, for the node's first log lines.
    pub report: RecoveryReport,
}

/// The content of a recovered log, without payloads of commands.
#[derive(Clone, Debug, Default)]
pub struct RecoveredLog {
    /// The last hard state that is known to be durable.
    pub hard_state: HardState,
    /// The entry before the first one in the log: the log was purged up to here. [`LogId::ZERO`] at
    /// first.
    pub base: LogId,
    /// Log time at `base`, in UNIX milliseconds. `None` if the log does not know it, because it
    /// begins after a received snapshot; the snapshot contains it.
    pub base_time_ms: Option<u64>,
    /// The payload of the last membership entry up to `base`; `None` if there was none or the log
    /// does not know it.
    pub base_membership: Option<Bytes>,
    /// One head per entry, in order and without gaps, from the index after `base`.
    pub entries: Vec<EntryHead>,
    /// The payloads of the membership entries among them.
    pub memberships: Vec<(LogIndex, Bytes)>,
    /// The payloads of those among them that name an entry to skip.
    pub skips: Vec<(LogIndex, Bytes)>,
    /// After a repair: an upper bound of the last entry that the log may have had before it was
    /// damaged. [`LogId::ZERO`] if it was never repaired, or has reached that entry.
    pub promised: LogId,
}

impl RecoveredLog {
    /// Returns the last entry; `base` if there is none.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |head| head.id)
    }
}

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the directory was created by this call.
    pub created: bool,
    /// Bytes cut off the end of the log because a crash left them half-written. They were never
    /// acknowledged.
    pub torn_bytes: u64,
    /// The segment file and the offset of the cut.
    pub torn_at: Option<(String, u64)>,
    /// Segments read.
    pub segments: usize,
    /// Records with two copies of which one was damaged or missing, and was written again from the
    /// other.
    pub mended: Vec<PathBuf>,
    /// Damage in the log that was skipped, because a whole snapshot contains the damaged part.
    pub skipped_corruption: Option<String>,
}

/// The log of one directory: entries and hard state in one stream.
///
/// The order of calls is any number of [`LogStore::append`], then one [`LogStore::sync`] that makes
/// them durable together (group commit). The first error is final: every later call fails with it.
pub trait LogStore: Send + Debug {
    /// Returns the directory's locks. Code that may still write in the directory after this store
    /// has ended holds a clone.
    fn directory_locks(&self) -> DirectoryLocks {
        DirectoryLocks::default()
    }

    /// Queues records for the next sync. An entry whose index is not after the last one replaces
    /// that entry and everything after it (a conflicting suffix, Raft paper section 5.3). Hard
    /// state and entries queued in one call become durable together or not at all.
    ///
    /// # Errors
    /// Gaps in the indexes, entries too large for the format, or an earlier error of this store.
    fn append(
        &mut self,
        group: GroupId,
        hard_state: Option<HardState>,
        entries: &[LogEntry],
    ) -> Result<(), StorageError>;

    /// Writes everything queued as one group and syncs it. Returns after the sync has returned.
    ///
    /// # Errors
    /// Any I/O error; it is final. Nothing queued may be counted as stored.
    ///
    /// [`StorageError::NoRoom`] is not final: what is queued waits. Call again once there may be
    /// space. Until a call succeeds, nothing more can be appended; [`LogStore::store_hard_state`]
    /// still works.
    fn sync(&mut self) -> Result<(), StorageError>;

    /// Stores a term and a vote alone, also while queued records wait for space: there is a reserve
    /// for it. They take effect at once, whatever hard state is queued. The commit hint is lowered
    /// to the last entry that is stored. Returns after the sync has returned.
    ///
    /// # Errors
    /// As [`LogStore::sync`]; [`StorageError::NoRoom`] if the reserve is used up as well.
    fn store_hard_state(
        &mut self,
        group: GroupId,
        hard_state: HardState,
    ) -> Result<(), StorageError> {
        self.append(group, Some(hard_state), &[])?;
        self.sync()
    }

    /// Called when the log has become idle. Writes and syncs a group that contains only the durable
    /// watermark, unless the last group is already such a one. Also prepares the next segment if
    /// there is space; if there is none, nothing is prepared until a purge. Checks the free space
    /// ([`LogStats::free_bytes`]).
    ///
    /// # Errors
    /// As [`LogStore::sync`], but a lack of space is an error only if queued records wait for it.
    fn idle(&mut self) -> Result<(), StorageError>;

    /// Purges the entries up to and including `through`. The new start of the log is durable before
    /// anything is removed.
    ///
    /// # Errors
    /// As [`LogStore::sync`]; also if `through` is beyond the last synced entry.
    fn purge(&mut self, group: GroupId, through: LogId) -> Result<(), StorageError>;

    /// Replaces the log up to `base` with a durable snapshot; the next entry to append is the one
    /// after `base`. The step is atomic: after a crash the log is the old one or the new one. The
    /// hard state is kept. Nothing may be queued. Does nothing if `base` is already the log's base.
    ///
    /// # Errors
    /// As [`LogStore::sync`]; and [`StorageError::Order`], with nothing changed, if records are
    /// queued, if `base` is before the log's base, or if `suffix` does not fit the log.
    fn install(
        &mut self,
        group: GroupId,
        base: LogId,
        suffix: LogSuffix,
    ) -> Result<(), StorageError>;

    /// Returns a reader of what has been synced, usable from any thread.
    fn reader(&self) -> Arc<dyn LogReader>;

    /// Returns the counters since the store was opened.
    fn stats(&self) -> LogStats;
}

/// Reads entries. Usable concurrently with the writer.
pub trait LogReader: Send + Sync + Debug {
    /// Returns the entries from `first` to `last`, both included. Stops early once their payloads
    /// exceed `max_bytes`, but returns at least one entry. The entries must have been synced.
    ///
    /// # Errors
    /// An index that is purged or not in the log, a checksum that does not match, or an I/O error.
    fn read(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, StorageError>;

    /// Reads the next piece of what is stored and verifies its checksums. Begin with the default,
    /// and continue with [`Scrubbed::next`]. A store without scrubbing returns an empty result.
    ///
    /// # Errors
    /// An I/O error. Damage is part of the result.
    fn scrub(&self, _group: GroupId, _from: ScrubPlace) -> Result<Scrubbed, StorageError> {
        Ok(Scrubbed::default())
    }
}

/// Counters of a log store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Syncs that have returned.
    pub syncs: u64,
    /// Write groups written.
    pub groups: u64,
    /// Bytes written to segments, padding included.
    pub bytes_written: u64,
    /// Entries appended.
    pub entries: u64,
    /// Segments that reuse the file of a purged one.
    pub recycled: u64,
    /// Segments in the log now.
    pub segments: u64,
    /// Bytes written in these segments; in the current one without the zeros ahead.
    pub log_bytes: u64,
    /// Bytes that could still be written in the log's directory at a recent check; `None` if
    /// unknown.
    pub free_bytes: Option<u64>,
}

/// Small records beside the log, each replaced atomically (temporary file, sync, rename, sync of
/// the directory). [`StorageEngine::open`] writes the identity.
pub trait MetaStore: Send + Debug {
    /// Returns the record with this name, or `None` if it was never written. The format fixes the
    /// names: lower-case letters and dashes.
    ///
    /// # Errors
    /// An I/O error or a checksum that does not match.
    fn load(&self, name: &str) -> Result<Option<Bytes>, StorageError>;

    /// Replaces the record with this name. Durable when the call returns.
    ///
    /// # Errors
    /// An I/O error; the old record is still there. [`StorageError::NoRoom`] is not final: call
    /// again once there may be space.
    fn store(&mut self, name: &str, record: &[u8]) -> Result<(), StorageError>;
}

/// Where the next scrub step continues. The default is the beginning of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ScrubPlace(pub(crate) Position);

/// The result of one scrub step.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// Where to continue; `None` at the end of the log.
    pub next: Option<ScrubPlace>,
    /// The damage found, if any. The rest of that segment is skipped.
    pub damage: Option<LogDamage>,
}

/// Damage in the log.
#[derive(Clone, Debug)]
pub struct LogDamage {
    /// The last entry that the damage may affect; zero if it affects none that is kept.
    pub through: LogIndex,
    /// The place of the damage, and what does not verify there.
    pub error: StorageError,
}
