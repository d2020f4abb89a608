//! The seam between a node and its disk. All traits are blocking and dyn-compatible; the node
//! calls them from a thread of its own.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, HardState, LogId, LogIndex, NodeId};

use crate::fs::FsLock;
use crate::{
    ClusterId, EntryHead, Identity, Incarnation, LogEntry, Membership, ScrubPlace, Scrubbed, StorageError,
};

/// Opens data directories. One value stands for one directory.
pub trait StorageEngine: Send + Sync + Debug + 'static {
    /// Locks the directory, checks that it belongs to `request`, creates it when it is empty, and
    /// recovers the log: the torn tail is cut, damage is refused.
    ///
    /// # Errors
    /// [`StorageError`] says what to do. Nothing is deleted or rewritten on any error.
    fn open(&self, request: &OpenRequest) -> Result<OpenedStorage, StorageError>;

    /// As [`StorageEngine::open`], for a directory whose node also keeps snapshots. If the log is damaged, `covered` is
    /// asked for the last entry of a snapshot that was read whole. If that holds everything that the damage may have
    /// taken, the log begins behind it, and [`RecoveryReport::passed_over`] says so.
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
}

/// Who wants to open a data directory.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The cluster that the node belongs to. `None` takes whatever an existing directory says and
    /// draws `fresh_cluster` for a new one.
    pub cluster: Option<ClusterId>,
    /// The node's id.
    pub node: NodeId,
    /// The node's group.
    pub group: GroupId,
    /// The configuration at (term 0, index 0), written into a new directory. An existing directory
    /// keeps its own.
    pub initial: Membership,
    /// 16 random bytes for a new directory when `cluster` is `None`. The caller draws them, because
    /// this crate has no random source.
    pub fresh_cluster: ClusterId,
    /// 16 random bytes for a new directory.
    pub fresh_incarnation: Incarnation,
}

/// What keeps a data directory from being opened again, as long as one clone is held.
pub type DirectoryLocks = Arc<[Box<dyn FsLock>]>;

/// An open data directory. Dropping `log` releases the directory lock, unless somebody holds its
/// [`LogStore::directory_locks`].
#[derive(Debug)]
pub struct OpenedStorage {
    /// What the directory says about itself.
    pub identity: Identity,
    /// The log, for the log worker alone.
    pub log: Box<dyn LogStore>,
    /// The small, atomically replaced records.
    pub meta: Box<dyn MetaStore>,
    /// What the log held.
    pub recovered: RecoveredLog,
    /// What recovery did, for the node's first log lines.
    pub report: RecoveryReport,
}

/// The content of a recovered log, without payloads of commands.
#[derive(Clone, Debug, Default)]
pub struct RecoveredLog {
    /// The last hard state that is known to be stored.
    pub hard_state: HardState,
    /// The entry before the first one kept: where the log was purged to. [`LogId::ZERO`] at first.
    pub base: LogId,
    /// Log time at `base`, in UNIX milliseconds; `None` where the log does not know it: it begins behind a
    /// snapshot that was received, which says it.
    pub base_time_ms: Option<u64>,
    /// The payload of the last membership entry up to `base`; `None` where there was none, or the log does not know.
    pub base_membership: Option<Bytes>,
    /// One head per entry, in order, without gaps, from the index after `base`.
    pub entries: Vec<EntryHead>,
    /// The payloads of the membership entries among them.
    pub memberships: Vec<(LogIndex, Bytes)>,
    /// The payloads of the entries among them that name an entry to be skipped.
    pub skips: Vec<(LogIndex, Bytes)>,
}

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the directory was created by this call.
    pub created: bool,
    /// Bytes cut off the end of the log because a crash left them half-written. Never acknowledged.
    pub torn_bytes: u64,
    /// The segment file and offset where the tail was cut.
    pub torn_at: Option<(String, u64)>,
    /// Segments read.
    pub segments: usize,
    /// Records of which one of two copies was damaged or missing; it was written anew from the other.
    pub mended: Vec<PathBuf>,
    /// Damage in the log that was passed over, because a whole snapshot holds what was there.
    pub passed_over: Option<String>,
}

/// The log of one directory: entries and hard state in one stream.
///
/// The order of calls is any number of [`LogStore::append`], then one [`LogStore::sync`] that makes
/// them durable together (group commit). The first error is final: every later call fails with it.
pub trait LogStore: Send + Debug {
    /// What keeps the directory locked: whoever still writes in it holds a clone, beyond the end of this store.
    fn directory_locks(&self) -> DirectoryLocks {
        DirectoryLocks::default()
    }

    /// Queues records for the next sync. An entry whose index is not after the last one replaces
    /// that one and everything behind it (a conflicting suffix, Raft paper section 5.3).
    /// Hard state and entries queued in one call become durable in one step, or not at all.
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
    /// [`StorageError::NoRoom`] is not final: what is queued waits. Call again when there may be room. Until
    /// a call has succeeded nothing more can be appended; [`LogStore::store_hard_state`] goes on.
    fn sync(&mut self) -> Result<(), StorageError>;

    /// Stores a term and a vote alone, also while queued records wait for room: there is a reserve for it.
    /// They count from then on, whatever hard state is queued. The commit hint is lowered to what is stored.
    /// Returns after the sync has returned.
    ///
    /// # Errors
    /// As [`LogStore::sync`]; [`StorageError::NoRoom`] when the reserve is used up too.
    fn store_hard_state(&mut self, group: GroupId, hard_state: HardState) -> Result<(), StorageError> {
        self.append(group, Some(hard_state), &[])?;
        self.sync()
    }

    /// Called when the log has fallen idle: writes and syncs a group that carries only the durable
    /// watermark, unless the last group is such a one already. Also prepares the next segment, as far as there
    /// is room; where there is none, nothing is prepared until a purge. Looks at the free space
    /// ([`LogStats::free_bytes`]).
    ///
    /// # Errors
    /// As [`LogStore::sync`], but want of room is one only if what was to be synced waits for it.
    fn idle(&mut self) -> Result<(), StorageError>;

    /// Forgets the entries up to and including `through`. The purge pointer is durable first.
    ///
    /// # Errors
    /// As [`LogStore::sync`]; also when `through` lies past the last synced entry.
    fn purge(&mut self, group: GroupId, through: LogId) -> Result<(), StorageError>;

    /// A durable snapshot takes the place of the log up to `base`; the next entry to append is the one
    /// behind it. The step is atomic: after a crash the log is the old one or the new one. The hard
    /// state stays. Nothing may be queued. When `base` is the log's base already, nothing happens.
    ///
    /// # Errors
    /// As [`LogStore::sync`]; and [`StorageError::Order`], with nothing changed, when records are
    /// queued, when `base` lies before the log's base, or when `suffix` does not fit the log.
    fn install(&mut self, group: GroupId, base: LogId, suffix: LogSuffix) -> Result<(), StorageError>;

    /// A reader of what has been synced, usable from any thread.
    fn reader(&self) -> Arc<dyn LogReader>;

    /// Counters since the store was opened.
    fn stats(&self) -> LogStats;
}

/// What becomes of the entries behind the label of a snapshot that is installed (Raft paper figure 13,
/// rules 6 and 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogSuffix {
    /// They stay: the log holds the label's entry, with its term, so they follow from the snapshot.
    Keep,
    /// They are dropped, with all before them, and never come back: the log does not hold the label's
    /// entry, so nothing says that what lies behind it follows from the snapshot.
    Drop,
}

/// Reads entries back. Usable beside the writer.
pub trait LogReader: Send + Sync + Debug {
    /// The entries from `first` to `last`, both included, stopping early once their payloads pass
    /// `max_bytes` (at least one entry is returned). Entries must have been synced.
    ///
    /// # Errors
    /// An index that is purged or not there, a checksum that does not match, or an I/O error.
    fn read(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, StorageError>;

    /// Looks at the next piece of what is stored and compares its checksums. Begin with the default, and go on with what
    /// was returned. A store that does not know how to has nothing to look at.
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
    /// Segments that were begun in the file of a purged one.
    pub recycled: u64,
    /// Segments that hold the log now.
    pub segments: u64,
    /// Bytes that are written in them; of the one in use without the zeros ahead.
    pub log_bytes: u64,
    /// Bytes that can still be written where the log lies, as of lately; `None` where nobody knows.
    pub free_bytes: Option<u64>,
}

/// Small records beside the log, each replaced atomically (temporary file, sync, rename, sync of
/// the directory). The identity is written by [`StorageEngine::open`].
pub trait MetaStore: Send + Debug {
    /// The record with this name, or `None` if it was never written. Names are fixed by the format:
    /// lower-case letters and dashes.
    ///
    /// # Errors
    /// An I/O error or a checksum that does not match.
    fn load(&self, name: &str) -> Result<Option<Bytes>, StorageError>;

    /// Replaces the record with this name. Durable when the call returns.
    ///
    /// # Errors
    /// An I/O error; the old record is still there.
    fn store(&mut self, name: &str, record: &[u8]) -> Result<(), StorageError>;
}
