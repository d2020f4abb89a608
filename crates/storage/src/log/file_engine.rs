//! A data directory on a file system: its owner, and how it is opened.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, LogId, NodeId};

use crate::fs::{Fs, LockAttempt, RealFs, ensure_dir};
use crate::log::frame::Decoder;
use crate::log::latch::{FsLatch, io_error};
use crate::log::meta::LogMeta;
use crate::log::options::FileStorageOptions;
use crate::log::record::LogRecord;
use crate::log::recover::{Place, Recovered, not_covered, recover, recover_behind};
use crate::log::segment_files::SegmentFiles;
use crate::log::segment_name::number_of;
use crate::log::wal::{FileLog, LogParts};
use crate::meta_store::{self, FileMetaStore};
use crate::succession::UNFINISHED;
use crate::{
    ClusterId, DirectoryLocks, Identity, Incarnation, Membership, OpenRequest, OpenedStorage,
    RecoveredLog, Reservation, StorageEngine, StorageError,
};

pub(crate) const LOCK_FILE: &str = "LOCK";
pub(crate) const LOG_DIR: &str = "log";

/// The file-based [`StorageEngine`]: one data directory.
///
/// ```
/// use d_engine_storage::{FileStorageEngine, StorageEngine};
/// # use d_engine_storage::{ClusterId, Incarnation, Member, MemberRole, Membership, OpenRequest};
/// # use d_engine_core::{GroupId, NodeId};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path().join("data");
/// # let node = NodeId::new(1).ok_or("no id")?;
/// # let member = Member {
/// #     node: 1,
/// #     peer_addr: "127.0.0.1:1".to_owned(),
/// #     client_addr: String::new(),
/// #     role: MemberRole::Voter,
/// #     incarnation: None,
/// # };
/// # let request = OpenRequest {
/// #     cluster: None,
/// #     node,
/// #     group: GroupId::FIRST,
/// #     initial: Membership::new([member])?,
/// #     fresh_cluster: ClusterId([1; 16]),
/// #     fresh_incarnation: Incarnation([2; 16]),
/// # };
/// let opened = FileStorageEngine::at(&directory).open(&request)?;
/// assert!(opened.report.created);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileStorageEngine {
    dir: PathBuf,
    options: FileStorageOptions,
    fs: Arc<dyn Fs>,
}

impl FileStorageEngine {
    /// An engine for the directory `dir` on `fs`. Touches nothing before [`StorageEngine::open`].
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, options: FileStorageOptions, fs: Arc<dyn Fs>) -> Self {
        Self { dir: dir.into(), options, fs }
    }

    /// An engine for the directory `dir` on the machine's file system, with the default options.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Self::new(dir, FileStorageOptions::default(), Arc::new(RealFs::new()))
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.join(LOG_DIR)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The records of the directory, for a moment in which its log is not open.
    pub(crate) fn meta(&self) -> FileMetaStore {
        FileMetaStore::new(Arc::clone(&self.fs), &self.dir, Arc::new(FsLatch::default()))
    }

    /// Locks the directory; creates it first if it does not exist.
    fn lock(&self) -> Result<DirectoryLocks, StorageError> {
        if !self.is_complete()? {
            self.refuse_unfinished()?;
            ensure_dir(&*self.fs, &self.dir).map_err(io_error("create", &self.dir))?;
        }
        self.take_locks()
    }

    /// Refuses to create the directory while a command is about to put another one there.
    fn refuse_unfinished(&self) -> Result<(), StorageError> {
        for (suffix, command) in UNFINISHED {
            // Without a slash at the end.
            let mut name = self.dir.components().collect::<PathBuf>().into_os_string();
            name.push(suffix);
            let unfinished = PathBuf::from(name);
            match self.fs.kind(&unfinished) {
                // A file system that cannot tell has no command working on it.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {}
                Err(error) => return Err(io_error("look at", &unfinished)(error)),
                Ok(_) => {
                    let path = self.dir.clone();
                    return Err(StorageError::Unfinished { path, unfinished, command });
                }
            }
        }
        Ok(())
    }

    /// Locks the directory, which must exist.
    pub(crate) fn take_locks(&self) -> Result<DirectoryLocks, StorageError> {
        let held = |attempt: LockAttempt| match attempt {
            LockAttempt::Held(lock) => Ok(lock),
            LockAttempt::InUse { holder } => {
                Err(StorageError::InUse { path: self.dir.clone(), holder })
            }
        };
        let path = self.dir.join(LOCK_FILE);
        let lock = held(self.fs.try_lock(&path).map_err(io_error("lock", &path))?)?;
        let dir = self.fs.try_lock_dir(&self.dir).map_err(io_error("lock", &self.dir))?;
        Ok([lock, held(dir)?].into())
    }

    /// Returns the identity in the directory or a new one, whether it is new, and the copy that
    /// must be written again. Writing the identity is the last step of creation: a directory
    /// without it is empty, or its creation did not finish.
    fn identity(
        &self,
        meta: &FileMetaStore,
        request: &OpenRequest,
    ) -> Result<(Identity, bool, Option<PathBuf>), StorageError> {
        let path = meta.path(meta_store::IDENTITY);
        if let Some((mut identity, mended)) = self.stored_identity(meta)? {
            self.check_owner(&identity, request)?;
            identity.continues = meta.origin()?.unwrap_or_default().continues;
            return Ok((identity, false, mended));
        }
        self.refuse_orphans(path)?;
        self.check_reservation(meta, request)?;
        self.remove_temporaries()?;
        let log_dir = self.log_dir();
        ensure_dir(&*self.fs, &log_dir).map_err(io_error("create", &log_dir))?;
        let identity = Identity {
            cluster: request.cluster.unwrap_or(request.fresh_cluster),
            node: request.node,
            group: request.group,
            incarnation: request.fresh_incarnation,
            initial: request.initial.clone(),
            continues: Vec::new(),
        };
        let encoded = encode_identity(&identity);
        meta.write_copy(meta_store::IDENTITY, &encoded)?;
        meta.write(meta_store::IDENTITY, &encoded)?;
        self.end_reservation(meta)?;
        Ok((identity, true, None))
    }

    /// Returns the identity in the directory, from the copy that verifies, and the copy that must
    /// be written again.
    fn stored_identity(
        &self,
        meta: &FileMetaStore,
    ) -> Result<Option<(Identity, Option<PathBuf>)>, StorageError> {
        let (path, copy_path) =
            (meta.path(meta_store::IDENTITY), meta.copy_path(meta_store::IDENTITY));
        let decode = |path: &Path, stored: &Bytes| {
            let what = "it verifies, but is not an identity".to_owned();
            decode_identity(stored).ok_or(StorageError::DamagedFile { path: path.to_owned(), what })
        };
        let read = meta.read(meta_store::IDENTITY);
        let copy = meta.read_copy(meta_store::IDENTITY);
        match (read, copy) {
            (Ok(Some(stored)), Ok(Some(copy))) if stored != copy => {
                let what = format!("{} differs from it", copy_path.display());
                Err(StorageError::DamagedFile { path, what })
            }
            (Ok(Some(stored)), Ok(Some(_))) => Ok(Some((decode(&path, &stored)?, None))),
            (Ok(Some(stored)), _) => Ok(Some((decode(&path, &stored)?, Some(copy_path)))),
            // If nothing was ever written into the directory, its creation did not finish.
            (Ok(None), Ok(Some(_))) if self.refuse_orphans(path.clone()).is_ok() => Ok(None),
            (Err(StorageError::DamagedFile { .. }) | Ok(None), Ok(Some(copy))) => {
                Ok(Some((decode(&copy_path, &copy)?, Some(path))))
            }
            (read, _) => read.map(|_| None),
        }
    }

    /// Whether the directory's creation has finished.
    fn is_complete(&self) -> Result<bool, StorageError> {
        let names = self.list_or_empty(&self.dir)?;
        Ok(names.iter().any(|name| FileMetaStore::is_record(name)))
    }

    fn list_or_empty(&self, dir: &Path) -> Result<Vec<String>, StorageError> {
        match self.fs.list(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(io_error("list", dir)),
        }
    }

    /// Refuses a directory that has a log or records but no identity: it is not an empty one.
    pub(crate) fn refuse_orphans(&self, path: PathBuf) -> Result<(), StorageError> {
        let segments = self.list_or_empty(&self.log_dir())?;
        let segments = segments.iter().filter(|name| number_of(name).is_some()).count();
        let records = self.list_or_empty(&self.dir)?;
        let records = records.iter().filter(|name| FileMetaStore::is_record(name)).count();
        if segments + records == 0 {
            return Ok(());
        }
        let what = format!(
            "it is missing, but the directory has {segments} log segments and {records} other \
             records; restore it from a copy of this directory: the other nodes know this node by \
             it, and refuse a new directory under the same node id"
        );
        Err(StorageError::DamagedFile { path, what })
    }

    fn check_owner(&self, found: &Identity, request: &OpenRequest) -> Result<(), StorageError> {
        let wrong = |what, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            Err(StorageError::WrongOwner { path: self.dir.clone(), what, found, expected })
        };
        match request.cluster {
            Some(cluster) if cluster != found.cluster => wrong("cluster", &found.cluster, &cluster),
            _ if request.node != found.node => wrong("node", &found.node, &request.node),
            _ if request.group != found.group => wrong("group", &found.group, &request.group),
            _ => Ok(()),
        }
    }

    /// Refuses to create a cluster in a directory that was reserved to join one. Joining must never
    /// turn into founding: the node may be a member already.
    fn check_reservation(
        &self,
        meta: &FileMetaStore,
        request: &OpenRequest,
    ) -> Result<(), StorageError> {
        match reserved(meta)? {
            Some(incarnation) if incarnation != request.fresh_incarnation => {
                Err(StorageError::ReservedToJoin { path: self.dir.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The identity has replaced the reservation. One that a crash leaves here is ignored.
    fn end_reservation(&self, meta: &FileMetaStore) -> Result<(), StorageError> {
        let path = meta.path(meta_store::JOIN);
        match self.fs.remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes temporary files of records that a crash left unfinished.
    fn remove_temporaries(&self) -> Result<(), StorageError> {
        let names = self.fs.list(&self.dir).map_err(io_error("list", &self.dir))?;
        for name in names.iter().filter(|name| name.ends_with(meta_store::TEMPORARY_SUFFIX)) {
            let path = self.dir.join(name);
            self.fs.remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

impl StorageEngine for FileStorageEngine {
    fn owner(&self) -> Result<Option<Identity>, StorageError> {
        Ok(self.stored_identity(&self.meta())?.map(|(identity, _)| identity))
    }

    fn reserve(&self, fresh_incarnation: Incarnation) -> Result<Reservation, StorageError> {
        let locks = self.lock()?;
        let meta = self.meta();
        self.refuse_retired(&meta)?;
        if let Some((identity, _)) = self.stored_identity(&meta)? {
            return Ok(Reservation::Owned(Box::new(identity)));
        }
        self.refuse_orphans(meta.path(meta_store::IDENTITY))?;
        if let Some(incarnation) = reserved(&meta)? {
            return Ok(Reservation::Reserved { incarnation, locks });
        }
        self.remove_temporaries()?;
        meta.write(meta_store::JOIN, &fresh_incarnation.0)?;
        Ok(Reservation::Reserved { incarnation: fresh_incarnation, locks })
    }

    fn open(&self, request: &OpenRequest) -> Result<OpenedStorage, StorageError> {
        self.open_behind(request, &mut |_| None)
    }

    fn open_behind(
        &self,
        request: &OpenRequest,
        covered: &mut dyn FnMut(&Identity) -> Option<LogId>,
    ) -> Result<OpenedStorage, StorageError> {
        let locks = self.lock()?;
        let latch = Arc::new(FsLatch::default());
        let meta = FileMetaStore::new(Arc::clone(&self.fs), &self.dir, Arc::clone(&latch));
        self.refuse_retired(&meta)?;
        let (identity, created, unusable) = self.identity(&meta, request)?;
        let (log_meta, record) =
            LogMeta::open(Arc::clone(&self.fs), &self.dir, Arc::clone(&latch))?;
        let log_dir = self.log_dir();
        let files = Arc::new(SegmentFiles::new(Arc::clone(&self.fs), log_dir.clone()));
        let place = Place { fs: &*self.fs, dir: &log_dir, files: &files, identity: &identity };
        let (mut recovered, record) = match recover(&place, &record) {
            Ok(recovered) => (recovered, record),
            Err(damage @ StorageError::Damaged { .. }) => {
                let covered = covered(&identity);
                let behind = covered.map_or(Err(damage.clone()), |covered| {
                    recover_behind(&place, &record, covered, damage)
                });
                behind.map_err(|error| not_covered(error, covered))?
            }
            Err(error) => return Err(error),
        };
        let promised = meta.repaired()?.map(|it| it.promised);
        let mut report = std::mem::take(&mut recovered.report);
        if let Some(StorageError::Damaged { segment, offset, what }) = &recovered.skipped_corruption
        {
            report.skipped_corruption =
                Some(format!("segment {segment} is damaged at offset {offset}: {what}"));
        }
        report.created = created;
        report.mended = unusable.iter().chain(&log_meta.mended).cloned().collect();
        // The directory is fully read and accepted; from here on it may be changed.
        self.remove_temporaries()?;
        if let Some(path) = unusable {
            meta.write_to(&path, meta_store::IDENTITY, &encode_identity(&identity))?;
        }
        let mut known = summary(&recovered, &identity, &record);
        known.promised = promised.filter(|it| *it > known.last()).unwrap_or_default();
        let parts = LogParts {
            fs: Arc::clone(&self.fs),
            dir: log_dir,
            files,
            options: self.options.clone(),
            identity: identity.clone(),
            meta: log_meta,
            latch,
            locks,
        };
        let log = FileLog::start(parts, record, recovered)?;
        Ok(OpenedStorage {
            identity,
            log: Box::new(log),
            meta: Box::new(meta),
            recovered: known,
            report,
        })
    }
}

/// The incarnation under which a directory is reserved, if it is.
pub(crate) fn reserved(meta: &FileMetaStore) -> Result<Option<Incarnation>, StorageError> {
    let Some(stored) = meta.read(meta_store::JOIN)? else { return Ok(None) };
    let incarnation = <[u8; 16]>::try_from(&stored[..]).map(Incarnation);
    incarnation.map(Some).map_err(|_| StorageError::DamagedFile {
        path: meta.path(meta_store::JOIN),
        what: "it verifies, but is not an incarnation".to_owned(),
    })
}

/// Returns what was recovered of the node's own group.
fn summary(recovered: &Recovered, identity: &Identity, record: &LogRecord) -> RecoveredLog {
    let facts = record.facts.get(&identity.group);
    let Some(group) = recovered.groups.get(&identity.group) else { return RecoveredLog::default() };
    RecoveredLog {
        hard_state: group.hard_state.unwrap_or_default(),
        base: record.bases.get(&identity.group).copied().unwrap_or_default(),
        base_time_ms: facts.map(|facts| facts.time_ms),
        base_membership: facts
            .map(|facts| facts.membership.clone())
            .filter(|payload| !payload.is_empty()),
        entries: group.entries.iter().map(|(head, _)| *head).collect(),
        memberships: group.memberships.clone().into_iter().collect(),
        skips: group.skips.clone().into_iter().collect(),
        promised: LogId::ZERO,
    }
}

fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&identity.cluster.0);
    bytes.extend_from_slice(&identity.incarnation.0);
    bytes.extend_from_slice(&identity.node.get().to_le_bytes());
    bytes.extend_from_slice(&identity.group.get().to_le_bytes());
    if identity.initial != Membership::default() {
        bytes.extend_from_slice(&identity.initial.encode());
    }
    bytes
}

fn decode_identity(bytes: &Bytes) -> Option<Identity> {
    let mut rest = Decoder(bytes);
    Some(Identity {
        cluster: ClusterId(rest.array()?),
        incarnation: Incarnation(rest.array()?),
        node: rest.u64().and_then(NodeId::new)?,
        group: rest.u64().and_then(GroupId::new)?,
        initial: match rest.0 {
            [] => Membership::default(),
            encoded => Membership::decode(encoded).ok()?,
        },
        continues: Vec::new(),
    })
}
