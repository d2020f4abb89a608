//! The log's side of a node: writes what the replica orders, one sync for everything queued.

use std::sync::Arc;

use d_engine_core::{GroupId, LogId, PersistId};
use d_engine_storage::{LogReader, LogStats, LogStore, StorageError};

use crate::StopReason;
use crate::event::{Event, LoadJob, PersistJob};

/// Payload bytes after which a write group is closed and synced, so that what has piled up behind a
/// slow disk is not one enormous write.
const GROUP_BYTES_MAX: usize = 64 << 20;

/// Owns the [`LogStore`]. The server runs it on a thread of its own, the simulator in its event loop.
#[derive(Debug)]
pub struct LogWorker {
    store: Box<dyn LogStore>,
    group: GroupId,
}

impl LogWorker {
    /// A worker over an open log.
    #[must_use]
    pub fn new(store: Box<dyn LogStore>, group: GroupId) -> Self {
        Self { store, group }
    }

    /// Makes all `jobs` durable with one write and one sync (group commit). Returns the last job's
    /// id, for [`Event::Persisted`].
    ///
    /// # Errors
    /// The first I/O error is final: the node must stop with the reason ([`Event::Failed`]).
    pub fn persist(&mut self, jobs: &[PersistJob]) -> Result<Option<PersistId>, StopReason> {
        let mut queued = 0;
        for job in jobs {
            if queued > GROUP_BYTES_MAX {
                self.store.sync().map_err(StopReason::new)?;
                queued = 0;
            }
            self.store.append(self.group, job.hard_state, &job.entries).map_err(StopReason::new)?;
            queued += job.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
            if let Some(install) = job.install {
                // The term in which the snapshot was sent is durable before the log begins behind it.
                self.store.sync().map_err(StopReason::new)?;
                queued = 0;
                self.store.install(self.group, install.base, install.suffix).map_err(StopReason::new)?;
            }
        }
        if !jobs.is_empty() {
            self.store.sync().map_err(StopReason::new)?;
        }
        Ok(jobs.last().map(|job| job.id))
    }

    /// Reads this log for followers that are behind; on any thread.
    #[must_use]
    pub fn loader(&self) -> LogLoader {
        LogLoader { reader: self.store.reader(), group: self.group }
    }

    /// Purges the log up to `through`, which a verified snapshot covers. Nothing may be queued.
    ///
    /// # Errors
    /// As [`LogWorker::persist`].
    pub fn purge(&mut self, through: LogId) -> Result<Event, StopReason> {
        self.store.purge(self.group, through).map_err(StopReason::new)?;
        Ok(Event::Purged(through))
    }

    /// The log has fallen idle: makes the last group's durability known to a later recovery.
    ///
    /// # Errors
    /// As [`LogWorker::persist`].
    pub fn idle(&mut self) -> Result<(), StopReason> {
        self.store.idle().map_err(StopReason::new)
    }

    /// Counters of the log.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.store.stats()
    }
}

/// Reads the log for followers that are behind.
pub struct LogLoader {
    reader: Arc<dyn LogReader>,
    group: GroupId,
}

impl LogLoader {
    /// Reads entries for a follower that is behind. Entries that another leader has superseded since
    /// they were asked for are no longer there: then none are returned, and the replica drops the plan.
    ///
    /// # Errors
    /// An entry that cannot be read back stops the node: its log is damaged.
    pub fn load(&self, job: &LoadJob) -> Result<Event, StopReason> {
        let entries = match self.reader.read(self.group, job.first, job.last, job.max_bytes) {
            Ok(entries) => entries,
            Err(StorageError::Order(_)) => Vec::new(),
            Err(error) => return Err(StopReason::new(error)),
        };
        Ok(Event::Loaded { to: job.to, token: job.token, entries: entries.into() })
    }
}
