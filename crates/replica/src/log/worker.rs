//! The log worker of a node: persists what the replica requests, with one sync for everything
//! queued.

use std::sync::Arc;

use d_engine_core::{GroupId, HardState, LogId, LogIndex, PersistId};
use d_engine_storage::{DirectoryLocks, LogReader, LogStats, LogStore, StorageError};

use crate::StopReason;
use crate::event::{Event, LoadJob, LogDisk, PersistJob};

/// Payload bytes after which a write group is closed and synced, so that the queue of a slow disk
/// does not become one enormous write.
const GROUP_BYTES_MAX: usize = 64 << 20;

/// Owns the [`LogStore`]. The server runs it on its own thread, the simulator in its event loop.
///
/// A full disk does not stop it. Jobs that do not fit wait here, limited by what the replica gives
/// out, while terms and votes are persisted from the log's reserve. While [`LogWorker::waits`],
/// call [`LogWorker::persist`] again without jobs.
#[derive(Debug)]
pub struct LogWorker {
    store: Box<dyn LogStore>,
    group: GroupId,
    /// Jobs that are not durable; empty unless the disk is full.
    waiting: Vec<PersistJob>,
    /// The number of them, from the front, that the store has been given.
    appended: usize,
    /// The purge that waits for space.
    purge: Option<LogId>,
    /// The last hard state that is known to be durable. Its commit index is only a hint and left
    /// out.
    stored: Option<HardState>,
    /// Below this many free bytes, the free space is checked repeatedly.
    min_free_bytes: u64,
    reports: Reports,
    told: LogDisk,
}

/// The events that [`LogWorker::events`] will return.
#[derive(Debug, Default)]
struct Reports {
    hard_state: Option<PersistId>,
    disk: Option<LogDisk>,
    purged: Option<LogId>,
}

/// How many jobs are durable, and how many the store has been given.
struct Progress {
    durable: usize,
    appended: usize,
}

impl LogWorker {
    /// Creates a worker for an open log.
    #[must_use]
    pub fn new(store: Box<dyn LogStore>, group: GroupId) -> Self {
        Self {
            store,
            group,
            waiting: Vec::new(),
            appended: 0,
            purge: None,
            stored: None,
            min_free_bytes: 0,
            reports: Reports::default(),
            told: LogDisk::default(),
        }
    }

    /// Sets the number of free bytes below which the node refuses commands. Then nothing is written
    /// that would show that there is space again: see [`LogWorker::is_short_of_room`].
    #[must_use]
    pub fn with_min_free_bytes(mut self, bytes: u64) -> Self {
        self.min_free_bytes = bytes;
        self
    }

    /// Whether too few bytes were free at the last check. Then call [`LogWorker::idle`] about once
    /// a second: it checks again.
    #[must_use]
    pub fn is_short_of_room(&self) -> bool {
        self.told.free_bytes.is_some_and(|free| free < self.min_free_bytes)
    }

    /// Makes all `jobs` durable with one write and one sync (group commit). Returns the id of the
    /// last durable job, for [`Event::Persisted`]; `None` while the disk is full. Jobs that are not
    /// durable wait in their order, and a call without `jobs` retries them. Take
    /// [`LogWorker::events`] afterwards.
    ///
    /// # Errors
    /// The first I/O error is final: the node must stop with the reason ([`Event::Failed`]).
    pub fn persist(&mut self, jobs: &[PersistJob]) -> Result<Option<PersistId>, StopReason> {
        if let Some(through) = self.purge.take() {
            self.reports.purged = self.purge(through)?.is_some().then_some(through);
        }
        let durable = if self.waiting.is_empty() {
            let progress = self.write(jobs, 0)?;
            self.keep(jobs, &progress)
        } else {
            let mut all = std::mem::take(&mut self.waiting);
            all.extend_from_slice(jobs);
            let progress = self.write(&all, self.appended)?;
            self.keep(&all, &progress)
        };
        self.store_waiting_hard_state()?;
        self.tell_disk();
        Ok(durable)
    }

    /// Whether jobs or a purge wait for space on the disk.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty() || self.purge.is_some()
    }

    /// Takes the events to report in addition to the results of the calls.
    pub fn events(&mut self) -> Vec<Event> {
        let Reports { hard_state, disk, purged } = std::mem::take(&mut self.reports);
        let hard_state = hard_state.map(Event::HardStatePersisted);
        let (disk, purged) = (disk.map(Event::LogDisk), purged.map(Event::Purged));
        [hard_state, disk, purged].into_iter().flatten().collect()
    }

    /// Writes until all jobs are durable or there is no space. `appended` is the number of jobs
    /// that the store has been given already.
    fn write(&mut self, jobs: &[PersistJob], mut appended: usize) -> Result<Progress, StopReason> {
        let mut durable = 0;
        while durable < jobs.len() {
            if appended == durable {
                let mut queued = 0;
                for job in jobs.iter().skip(durable) {
                    if queued > GROUP_BYTES_MAX {
                        break;
                    }
                    self.store
                        .append(self.group, job.hard_state, &job.entries)
                        .map_err(StopReason::new)?;
                    queued += job.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
                    appended += 1;
                    if job.install.is_some() {
                        break;
                    }
                }
            }
            let install = appended.checked_sub(1).and_then(|last| jobs.get(last)?.install);
            // The term in which a snapshot was sent must be durable before the log begins after it.
            let stored = self.store.sync().and_then(|()| match install {
                Some(install) => self.store.install(self.group, install.base, install.suffix),
                None => Ok(()),
            });
            match stored {
                Ok(()) => durable = appended,
                Err(StorageError::NoRoom { .. }) => break,
                Err(error) => return Err(StopReason::new(error)),
            }
        }
        Ok(Progress { durable, appended })
    }

    /// Keeps the jobs that are not durable, and returns the id of the last durable one.
    fn keep(&mut self, jobs: &[PersistJob], progress: &Progress) -> Option<PersistId> {
        let (durable, waiting) = jobs.split_at_checked(progress.durable)?;
        self.waiting.extend_from_slice(waiting);
        self.appended = progress.appended - progress.durable;
        let last = durable.iter().rev().find_map(|job| job.hard_state);
        self.stored = last.map(without_commit).or(self.stored);
        durable.last().map(|job| job.id)
    }

    /// Persists the newest hard state from the reserve, so that terms and votes do not wait for
    /// entries that do not fit.
    fn store_waiting_hard_state(&mut self) -> Result<(), StopReason> {
        let Some(last) = self.waiting.last().map(|job| job.id) else { return Ok(()) };
        let Some(state) = self.waiting.iter().rev().find_map(|job| job.hard_state) else {
            return Ok(());
        };
        if self.stored == Some(without_commit(state)) {
            return Ok(());
        }
        match self.store.store_hard_state(self.group, state) {
            Ok(()) => {}
            Err(StorageError::NoRoom { .. }) => return Ok(()),
            Err(error) => return Err(StopReason::new(error)),
        }
        for job in &mut self.waiting {
            job.hard_state = None;
        }
        self.stored = Some(without_commit(state));
        self.reports.hard_state = Some(last);
        Ok(())
    }

    fn tell_disk(&mut self) {
        let now =
            LogDisk { full: !self.waiting.is_empty(), free_bytes: self.store.stats().free_bytes };
        if now != self.told {
            if now.full != self.told.full {
                let free = now.free_bytes;
                match now.full {
                    true => tracing::warn!(
                        free,
                        "no space for the log: entries wait, terms and votes are still persisted"
                    ),
                    false => tracing::info!(free, "there is space for the log again"),
                }
            }
            self.told = now;
            self.reports.disk = Some(now);
        }
    }

    /// A reader of this log for followers that lag behind; usable on any thread.
    #[must_use]
    pub fn loader(&self) -> LogLoader {
        LogLoader { reader: self.store.reader(), group: self.group }
    }

    /// Purges the log up to `through`, which a verified snapshot covers. Returns `None` if the
    /// purge has to wait for space; [`LogWorker::persist`] retries it.
    ///
    /// # Errors
    /// As [`LogWorker::persist`].
    pub fn purge(&mut self, through: LogId) -> Result<Option<Event>, StopReason> {
        match self.store.purge(self.group, through) {
            Ok(()) => {
                self.tell_disk();
                Ok(Some(Event::Purged(through)))
            }
            Err(StorageError::NoRoom { .. }) => {
                self.purge = Some(through);
                Ok(None)
            }
            Err(error) => Err(StopReason::new(error)),
        }
    }

    /// Call it when the log has become idle: records the last group's durability for a later
    /// recovery.
    ///
    /// # Errors
    /// As [`LogWorker::persist`].
    pub fn idle(&mut self) -> Result<(), StopReason> {
        if self.waits() {
            return Ok(());
        }
        self.store.idle().map_err(StopReason::new)?;
        self.tell_disk();
        Ok(())
    }

    /// The locks of the data directory; see [`LogStore::directory_locks`].
    #[must_use]
    pub fn directory_locks(&self) -> DirectoryLocks {
        self.store.directory_locks()
    }

    /// Counters of the log.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.store.stats()
    }
}

fn without_commit(state: HardState) -> HardState {
    HardState { commit: LogIndex::ZERO, ..state }
}

/// Reads the log for followers that lag behind.
pub struct LogLoader {
    reader: Arc<dyn LogReader>,
    group: GroupId,
}

impl LogLoader {
    /// Reads entries for a follower that lags behind. Returns no entries if another leader has
    /// superseded them since the request, or if there is no file handle to read them with; the
    /// replica then drops the plan.
    ///
    /// A damaged entry results in [`Event::LoadFailed`]: the replica decides what to do.
    ///
    /// # Errors
    /// The disk cannot be read: the node must stop.
    pub fn load(&self, job: &LoadJob) -> Result<Event, StopReason> {
        let entries = match self.reader.read(self.group, job.first, job.last, job.max_bytes) {
            Ok(entries) => entries,
            Err(StorageError::Order(_) | StorageError::NoRoom { .. }) => Vec::new(),
            Err(damage @ StorageError::Damaged { .. }) => {
                let at = self.last_damaged(job);
                return Ok(Event::LoadFailed {
                    to: job.to,
                    token: job.token,
                    at,
                    reason: StopReason::new(damage),
                });
            }
            Err(error) => return Err(StopReason::new(error)),
        };
        Ok(Event::Loaded { to: job.to, token: job.token, entries: entries.into() })
    }

    /// The last damaged entry of the job: a snapshot that reaches it helps.
    fn last_damaged(&self, job: &LoadJob) -> LogIndex {
        let mut index = job.last;
        while index > job.first {
            match self.reader.read(self.group, index, index, 0) {
                Err(StorageError::Damaged { .. }) => return index,
                _ => index = index.previous(),
            }
        }
        job.first
    }
}
