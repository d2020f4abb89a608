//! Backups: a snapshot with everything that was acknowledged, copied out of the data directory.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d_engine_api::ReadConsistency;
use d_engine_replica::{ReadError, StopReason};
use d_engine_storage::snapshot::{
    BackupFile, FullSpeed, Hold, Offer, SnapshotArchive, SnapshotError, SnapshotInfo, SnapshotStore,
};
use d_engine_storage::{Fs, RealFs};
use tokio::sync::oneshot;

use super::EmbeddedEngine;
use crate::SnapshotRequestError;

/// How long a copy that is ahead of its pace waits before it looks again.
const PACE_STEP: Duration = Duration::from_millis(20);

/// How a backup is made. Start from the default and change what you need.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct BackupOptions {
    /// Do not confirm what has been acknowledged, which needs a quorum. The backup then has what
    /// this node has applied; writes that were acknowledged after that may be missing.
    pub stale: bool,
}

impl BackupOptions {
    /// Sets [`BackupOptions::stale`].
    #[must_use]
    pub fn stale(mut self, stale: bool) -> Self {
        self.stale = stale;
        self
    }
}

/// A finished backup.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// The last entry whose effect is in it.
    pub last_included: d_engine_core::LogId,
    /// Every write that was acknowledged before the call is at this index or before it, and in the
    /// backup. `None` if that was not confirmed ([`BackupOptions::stale`]).
    pub complete_up_to: Option<u64>,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of everything before the trailer of the file.
    pub sha256: [u8; 32],
}

/// Why there is no backup. The node and its snapshots are not affected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is no snapshot to copy. Without a quorum, call it with [`BackupOptions::stale`].
    #[error(transparent)]
    Snapshot(#[from] SnapshotRequestError),
    /// The file cannot be written or does not verify; see [`SnapshotError`]. What was copied is
    /// kept in FILE.*.partial if it can be of use.
    #[error(transparent)]
    File(#[from] SnapshotError),
}

/// A snapshot of this node that is open, and is not pruned meanwhile.
pub(crate) struct OpenBackup {
    pub(crate) archive: SnapshotArchive,
    pub(crate) hold: Hold,
    pub(crate) complete_up_to: Option<u64>,
}

impl EmbeddedEngine {
    /// Writes a backup to `file`, a snapshot archive that `d-engine restore` or
    /// `d_engine::offline::restore` makes a new cluster of. It contains everything that was
    /// acknowledged to any client before the call. Call it on a follower if there is one: a state
    /// machine without views does not apply while it takes a snapshot.
    ///
    /// The file appears when it is complete, verified and durable; until then it is
    /// FILE.*.partial beside it. The work on files runs on a thread for blocking work, at most at
    /// `snapshots.send_bytes_per_second`. Dropping the future ends it.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn backup(
        &self,
        file: impl Into<PathBuf>,
        options: BackupOptions,
    ) -> Result<Backup, BackupError> {
        let (fs, file): (Arc<dyn Fs>, PathBuf) = (Arc::new(RealFs::new()), file.into());
        BackupFile::check_target(&*fs, &file)?;
        let open = self.open_backup(options).await?;
        let is_dropped = Arc::new(AtomicBool::new(false));
        let _end = SetOnDrop(is_dropped.clone());
        let rate = self.snapshot_bytes_per_second();
        let copied =
            tokio::task::spawn_blocking(move || copy(&fs, file, &open, rate, &is_dropped)).await;
        // The join fails only when the runtime shuts down.
        copied.unwrap_or(Err(SnapshotError::Aborted)).map_err(Into::into)
    }

    /// Takes a snapshot and opens it.
    pub(crate) async fn open_backup(
        &self,
        options: BackupOptions,
    ) -> Result<OpenBackup, SnapshotRequestError> {
        let complete_up_to = match options.stale {
            true => None,
            false => Some(self.confirm_acknowledged().await?),
        };
        let mut taken = self.snapshot_of_applied().await?;
        // One that was taken earlier may have been damaged since; now the node knows, and takes
        // another one.
        if self.is_damaged(&taken).await {
            taken = self.snapshot_of_applied().await?;
        }
        self.open_snapshot(&taken, complete_up_to)
    }

    /// Reads the whole snapshot.
    async fn is_damaged(&self, info: &SnapshotInfo) -> bool {
        let (store, last_included) = (self.snapshots(), info.last_included());
        let hold = store.hold(last_included);
        let verified = tokio::task::spawn_blocking(move || {
            let _hold = hold;
            store.verify(last_included, &mut FullSpeed)
        });
        matches!(verified.await, Ok(Err(SnapshotError::Damaged { .. })))
    }

    /// The node's snapshots.
    pub(crate) fn snapshots(&self) -> SnapshotStore {
        self.inner.shared.snapshots.clone()
    }

    /// Opens the snapshot with this SHA-256, which an earlier backup has begun with; `None` if it
    /// is not here any more.
    pub(crate) fn reopen_backup(
        &self,
        sha256: &[u8; 32],
    ) -> Result<Option<OpenBackup>, SnapshotRequestError> {
        let list = self.inner.shared.snapshots.list();
        let known = list.iter().find(|info| info.sha256 == *sha256);
        known.map(|info| self.open_snapshot(info, None)).transpose()
    }

    /// The pace of snapshots and backups that leave this node; 0: no limit.
    pub(crate) fn snapshot_bytes_per_second(&self) -> u64 {
        self.inner.shared.exchange.settings.bytes_per_second
    }

    fn open_snapshot(
        &self,
        info: &SnapshotInfo,
        complete_up_to: Option<u64>,
    ) -> Result<OpenBackup, SnapshotRequestError> {
        let store = &self.inner.shared.snapshots;
        let hold = store.hold(info.last_included());
        let opened = store.open_archive(info.last_included());
        let archive = opened.map_err(|error| SnapshotRequestError::Failed {
            reason: StopReason::new(format_args!("the snapshot cannot be read: {error}")),
        })?;
        Ok(OpenBackup { archive, hold, complete_up_to })
    }

    /// Waits until this node has applied everything that was acknowledged to any client before the
    /// call. Returns the index up to which that is.
    pub(super) async fn confirm_acknowledged(&self) -> Result<u64, SnapshotRequestError> {
        let confirmed = self.read_barrier(ReadConsistency::Linearizable).await;
        confirmed.map_err(|error| match error {
            ReadError::Stopped { reason } => SnapshotRequestError::Stopped { reason },
            ReadError::Busy { .. } => SnapshotRequestError::Busy,
            error => SnapshotRequestError::Failed {
                reason: StopReason::new(format_args!(
                    "this node could not confirm what has been acknowledged, so the snapshot might \
                     lack some of it: {error}"
                )),
            },
        })
    }

    /// Takes a snapshot of what this node has applied.
    pub(super) async fn snapshot_of_applied(&self) -> Result<SnapshotInfo, SnapshotRequestError> {
        if let Some(reason) = self.inner.shared.inbox.closed() {
            return Err(SnapshotRequestError::Stopped { reason });
        }
        let (answer, asked) = oneshot::channel();
        let responder = Box::new(move |taken| {
            // The caller may have dropped its future.
            answer.send(taken).ok();
        });
        self.inner.shared.apply.put(move |work| work.request_snapshot(responder));
        match asked.await {
            Ok(taken) => taken,
            Err(_) => Err(SnapshotRequestError::Stopped { reason: self.reason_of_the_end().await }),
        }
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn copy(
    fs: &Arc<dyn Fs>,
    file: PathBuf,
    open: &OpenBackup,
    bytes_per_second: u64,
    is_dropped: &AtomicBool,
) -> Result<Backup, SnapshotError> {
    let mut pace = |_| match is_dropped.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let offer = Offer::from(&open.archive);
    let mut backup = BackupFile::begin(fs, Path::new(&file), offer, &mut pace)?;
    let (began, mut copied) = (Instant::now(), 0_u64);
    backup.copy_from(&open.archive, &mut |bytes| {
        copied = copied.saturating_add(bytes);
        let due = copied.checked_div(bytes_per_second).map(Duration::from_secs);
        while due.is_some_and(|due| began.elapsed() < due) && !is_dropped.load(Ordering::Relaxed) {
            std::thread::sleep(PACE_STEP);
        }
        pace(bytes)
    })?;
    backup.finish(&mut pace)?;
    let Offer { last_included, len: bytes, sha256 } = offer;
    Ok(Backup { file, last_included, complete_up_to: open.complete_up_to, bytes, sha256 })
}
