//! Makes the data directory of a new cluster of one node from a snapshot file. Further nodes join
//! it and fetch the data by themselves.
//!
//! The new cluster has an id of its own, so no node, snapshot or segment of the old one is ever
//! taken for a part of it. The last included entry keeps its index, because a state machine's files
//! carry it, and the term rises by [`TERMS_ABOVE`] and a random number below that: a term and an
//! index that a client has seen do not come again, whatever the old cluster, or an earlier restore
//! of the same file, has written after the snapshot.
//!
//! The directory is built beside its target, under the name with [`UNFINISHED_SUFFIX`], and renamed
//! when it is complete. After a crash the target is as it was; the next run begins anew.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{HardState, LogSuffix, Term};
pub use d_engine_core::{LogId, NodeId};
use d_engine_fs::{FileKind, Fs, LockAttempt, OpenMode, ensure_dir};
use d_engine_storage::snapshot::{
    SNAPSHOT_DIR, SnapshotArchive, SnapshotError, SnapshotOptions, SnapshotStore,
};
pub use d_engine_storage::{Admission, ClusterId};
use d_engine_storage::{
    FileStorageEngine, FileStorageOptions, Incarnation, Member, MemberRole, Membership,
    MembershipError, OpenRequest, RESTORING, StorageEngine, StorageError, address,
};

pub use crate::founding::TERMS_ABOVE;
use crate::founding::{self, LOG_BYTES};

/// What the name of the directory ends with while it is built.
pub const UNFINISHED_SUFFIX: &str = RESTORING;
const LOCK_NAME: &str = "restore.lock";

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The snapshot file: a backup, or a file from the `snapshots` directory of a node.
    pub file: PathBuf,
    /// The data directory to make. It must not exist, or be an empty directory, which is replaced
    /// and is no mount point.
    pub data_dir: PathBuf,
    /// The id of the node in the new cluster.
    pub node: NodeId,
    /// The address at which other nodes will reach the node, as `host:port`; empty if none will.
    pub peer_addr: String,
    /// The address at which clients will reach the node, as `host:port`; empty if none will.
    pub client_addr: String,
}

/// What was restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The id of the new cluster.
    pub cluster: ClusterId,
    /// The cluster from which the snapshot is.
    pub from: ClusterId,
    /// The last entry whose effect is in the state.
    pub last_included: LogId,
    /// Log time of that entry, in UNIX milliseconds. Log time continues from here.
    pub time_ms: u64,
    /// The name of the state machine; empty if unknown.
    pub machine: String,
    /// The members of the new cluster: the node.
    pub membership: Membership,
    /// Length of the snapshot file in bytes.
    pub bytes: u64,
}

/// Why nothing was restored. The target is as it was, but after [`RestoreError::NotSynced`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The snapshot is damaged, cannot be read, or does not fit on the disk. Use another one, or
    /// make space.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The log of the new directory cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The member cannot be one. Correct its id or its addresses.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// There is something at the target. Name a directory that does not exist, or move it away.
    #[error("{path} {what}; nothing is overwritten: name a directory that does not exist")]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// Another process restores into the same target. Wait for it, or stop it.
    #[error("another process ({holder}) restores into {path}; wait for it, or stop it")]
    InUse {
        /// The target.
        path: PathBuf,
        /// The process, as far as the lock names it.
        holder: String,
    },
    /// Nobody can be reached at this address. Write it as `host:port`, without a wildcard.
    #[error(
        "nobody can be reached at {0:?}; write the address at which others will reach the node, as \
         host:port"
    )]
    Address(String),
    /// There is too little space. Make space, or name a target on another disk.
    #[error(
        "the disk of {path} has {free} bytes free, and {needed} are needed; make space, or name a \
         target on another disk"
    )]
    NoSpace {
        /// The directory that was checked.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        needed: u64,
    },
    /// The file system failed.
    #[error("failed to {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// The system gives no random numbers.
    #[error("no random number can be drawn for the new cluster: {0}")]
    Entropy(String),
    /// The restored directory is in its place, but it is not certain that its name survives a power
    /// loss. Check the disk, and that the directory is there.
    #[error(
        "{path} is restored, but its name could not be made durable: {source}; check the disk, and \
         after a power loss that the directory is there"
    )]
    NotSynced {
        /// The restored directory.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// The caller's progress function has ended the work.
    #[error("the restore was stopped before it was done; nothing was restored")]
    Stopped,
}

/// Restores a snapshot file into a new directory, for a new cluster of one node. Everything is
/// durable when the call returns. `progress` receives the bytes that were copied since its last
/// call, and may end the work. Blocks; needs no runtime and no state machine.
///
/// A state machine with files of its own outside the data directory must be empty, or must not have
/// been bound to a directory yet: otherwise the node does not start.
///
/// # Errors
/// See [`RestoreError`]. The target is as it was, but after [`RestoreError::NotSynced`].
pub fn restore(
    fs: &Arc<dyn Fs>,
    request: &RestoreRequest,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    for address in [&request.peer_addr, &request.client_addr] {
        if !address.is_empty() && !address::can_be_dialled(address) {
            return Err(RestoreError::Address(address.clone()));
        }
    }
    let target = Target::of(&**fs, &request.data_dir)?;
    let source = SnapshotArchive::open_file(&**fs, &request.file)?;
    target.check_space(source.len().saturating_add(LOG_BYTES))?;
    let lock = target.begin()?;
    let restored = build(fs, &target.unfinished, &source, request, progress).and_then(|restored| {
        if progress(0).is_break() {
            return Err(RestoreError::Stopped);
        }
        target.finish().map(|()| restored)
    });
    match restored {
        Ok(_) | Err(RestoreError::NotSynced { .. }) => {
            // A node does not mind the file.
            fs.remove_file(&target.path.join(LOCK_NAME)).ok();
        }
        // If it cannot be removed now, the next run removes it.
        Err(_) => fs.remove_tree(&target.unfinished).unwrap_or_default(),
    }
    drop(lock);
    restored
}

/// Where the directory is built, and where it goes.
struct Target<'a> {
    fs: &'a dyn Fs,
    path: PathBuf,
    parent: PathBuf,
    unfinished: PathBuf,
    /// An empty directory is there, which the new one replaces.
    is_empty_dir: bool,
}

impl<'a> Target<'a> {
    fn of(fs: &'a dyn Fs, data_dir: &Path) -> Result<Self, RestoreError> {
        let path = std::path::absolute(data_dir).map_err(io("resolve", data_dir))?;
        let occupied = |what| Err(RestoreError::Occupied { path: path.clone(), what });
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return occupied("is the root of the file system");
        };
        let is_empty_dir = match fs.kind(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(io("look at", &path)(error)),
            Ok(FileKind::Dir) => match fs.list(&path).map_err(io("list", &path))?.as_slice() {
                [] => true,
                _ => return occupied("is not empty"),
            },
            Ok(_) => return occupied("is no directory"),
        };
        let mut unfinished = name.to_owned();
        unfinished.push(UNFINISHED_SUFFIX);
        let (parent, unfinished) = (parent.to_owned(), parent.join(unfinished));
        Ok(Self { fs, path, parent, unfinished, is_empty_dir })
    }

    fn check_space(&self, needed: u64) -> Result<(), RestoreError> {
        ensure_dir(self.fs, &self.parent).map_err(io("create", &self.parent))?;
        let free = self.fs.free_bytes(&self.parent).map_err(io("look at", &self.parent))?;
        match free.filter(|free| *free < needed) {
            Some(free) => Err(RestoreError::NoSpace { path: self.parent.clone(), free, needed }),
            None => Ok(()),
        }
    }

    /// Creates the empty directory in which the new one is built. What an earlier run has left
    /// there is removed.
    fn begin(&self) -> Result<Box<dyn d_engine_fs::FsLock>, RestoreError> {
        let (fs, dir) = (self.fs, &self.unfinished);
        if fs.kind(dir).is_ok() {
            let found = fs.list(dir).map_err(io("list", dir))?;
            if !found.is_empty() && !found.iter().any(|name| name == LOCK_NAME) {
                let what = "is where the directory is to be built, and is not of a restore";
                return Err(RestoreError::Occupied { path: dir.clone(), what });
            }
            // Held by a run that is still at work.
            drop(self.lock()?);
            fs.remove_tree(dir).map_err(io("remove", dir))?;
        }
        if self.is_empty_dir {
            // Found out before anything is copied: a mount point cannot be replaced.
            fs.create_dir(dir).map_err(io("create", dir))?;
            self.replace()?;
        }
        fs.create_dir(dir).map_err(io("create", dir))?;
        let mark = dir.join(LOCK_NAME);
        fs.open(&mark, OpenMode::CreateNew).map_err(io("create", &mark))?;
        fs.sync_dir(dir).map_err(io("sync", dir))?;
        self.lock()
    }

    /// Renames the new directory to the target. An empty directory there is replaced, anything else
    /// is not.
    fn replace(&self) -> Result<(), RestoreError> {
        let renamed = self.fs.rename(&self.unfinished, &self.path);
        renamed.map_err(|source| {
            self.fs.remove_tree(&self.unfinished).ok();
            let operation = "put the new directory in the place of (if it is a mount point, name a \
                             directory inside it)";
            RestoreError::Io { operation, path: self.path.clone(), source }
        })
    }

    fn lock(&self) -> Result<Box<dyn d_engine_fs::FsLock>, RestoreError> {
        let path = self.unfinished.join(LOCK_NAME);
        match self.fs.try_lock(&path).map_err(io("lock", &path))? {
            LockAttempt::Held(lock) => Ok(lock),
            LockAttempt::InUse { holder } => {
                Err(RestoreError::InUse { path: self.path.clone(), holder })
            }
        }
    }

    /// Puts the complete directory into its place.
    fn finish(&self) -> Result<(), RestoreError> {
        let (fs, dir) = (self.fs, &self.unfinished);
        fs.sync_dir(dir).map_err(io("sync", dir))?;
        self.replace()?;
        let synced = fs.sync_dir(&self.parent);
        synced.map_err(|source| RestoreError::NotSynced { path: self.path.clone(), source })
    }
}

/// Builds snapshots, identity and log below `dir`.
fn build(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    source: &SnapshotArchive,
    request: &RestoreRequest,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    let header = Arc::clone(source.header());
    let (group, facts) = (header.group, &header.facts);
    let (cluster, incarnation) = (ClusterId(random()?), Incarnation(random()?));
    let term = founding::term_above(facts.last_included.term).map_err(RestoreError::Entropy)?;
    // It is the only voter, so its directory is known from the beginning.
    let member = Member {
        node: request.node.get(),
        peer_addr: request.peer_addr.clone(),
        client_addr: request.client_addr.clone(),
        role: MemberRole::Voter,
        incarnation: Some(incarnation),
    };
    let membership = founding::alone(&facts.membership, member, term)?;
    let options = SnapshotOptions::new(cluster, group);
    let (store, _) = SnapshotStore::open(Arc::clone(fs), &dir.join(SNAPSHOT_DIR), options)?;
    let copied = store.repack(source, membership.clone(), &mut |bytes| progress(bytes));
    copied.map_err(|error| match error {
        SnapshotError::Aborted => RestoreError::Stopped,
        error => error.into(),
    })?;
    let owner = OpenRequest {
        cluster: Some(cluster),
        node: request.node,
        group,
        initial: membership.clone(),
        fresh_cluster: cluster,
        fresh_incarnation: incarnation,
    };
    write_log(fs, dir, &owner, facts.last_included, term)?;
    Ok(Restored {
        cluster,
        from: header.cluster,
        last_included: facts.last_included,
        time_ms: facts.time_ms,
        machine: facts.machine.clone(),
        membership,
        bytes: source.len(),
    })
}

/// A log that begins after the snapshot, in a term that no node of the old cluster has reached.
fn write_log(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    owner: &OpenRequest,
    last_included: LogId,
    term: Term,
) -> Result<(), RestoreError> {
    let engine = FileStorageEngine::new(dir, FileStorageOptions::default(), Arc::clone(fs));
    let mut log = engine.open(owner)?.log;
    log.install(owner.group, last_included, LogSuffix::Drop)?;
    let hard_state = HardState { term, commit: last_included.index, ..HardState::default() };
    log.append(owner.group, Some(hard_state), &[])?;
    Ok(log.sync()?)
}

fn random<const N: usize>() -> Result<[u8; N], RestoreError> {
    founding::random().map_err(RestoreError::Entropy)
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io { operation, path, source }
}
