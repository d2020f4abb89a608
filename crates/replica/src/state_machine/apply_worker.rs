//! The apply worker of a node: executes jobs in order and replies to callers directly.

use std::sync::Arc;

use d_engine_core::{GroupId, Instant, LogIndex, NodeId};
use d_engine_storage::snapshot::{Hold, SnapshotInfo, SnapshotStore};
use d_engine_storage::{LogReader, MetaStore, StorageError};

use crate::event::{ApplyJob, ApplySource, ApplyStop, Event, HaltCause, SkippedEntry};
use crate::state_machine::apply_records::ApplyRecords;
use crate::state_machine::callers::Callers;
use crate::state_machine::install_pause::Installing;
use crate::state_machine::snapshot_build::SnapshotTask;
use crate::{Durability, LogId, StateMachineHandler, StopReason};

/// Payload bytes read from the log at a time while a backlog is applied.
const READ_BYTES_MAX: usize = 4 << 20;

/// Why a snapshot may be begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotCause {
    /// The policy decides whether one is due.
    Policy,
    /// One is due regardless of the policy: a caller or the replica has requested it.
    Requested,
}

/// What became of a job.
#[must_use = "a job that waits must be run again"]
pub enum ApplyRun {
    /// The event for the replica.
    Done(Event),
    /// The state machine has no space for the entries or the snapshot. Run the rest of the job
    /// again in about a second
    /// ([`ApplySteps::postpone`](super::apply_steps::ApplySteps::postpone)). The callers of what
    /// was applied are answered.
    Waits {
        /// The rest.
        job: ApplyJob,
        /// What the state machine said.
        why: StopReason,
    },
}

/// Owns the [`StateMachineHandler`]. The server runs it on its own thread, the simulator in its
/// event loop.
pub struct ApplyWorker {
    pub(super) handler: StateMachineHandler,
    reader: Arc<dyn LogReader>,
    group: GroupId,
    node: u64,
    pub(super) snapshots: Option<SnapshotStore>,
    /// The snapshot that is being built.
    building: Option<Hold>,
    /// Keeps the snapshot that was last reported to the state machine: as long as the machine names
    /// it, its archive must exist.
    told: Option<Hold>,
    pub(super) install: Installing,
    /// Waits before a failed read is retried.
    pause: fn(),
    /// The durable record of halted and skipped entries.
    records: Option<ApplyRecords>,
    /// Where the state machine is halted, if it is.
    stop: Option<ApplyStop>,
}

impl ApplyWorker {
    /// Creates a worker over an opened state machine and the log that it applies.
    #[must_use]
    pub fn new(handler: StateMachineHandler, reader: Arc<dyn LogReader>, group: GroupId) -> Self {
        Self {
            handler,
            reader,
            group,
            node: 0,
            snapshots: None,
            building: None,
            told: None,
            install: Installing::default(),
            pause: || {},
            records: None,
            stop: None,
        }
    }

    /// Keeps the record of halted and skipped entries in `meta`.
    #[must_use]
    pub fn with_records(mut self, meta: Box<dyn MetaStore>) -> Self {
        let records = ApplyRecords::load(meta);
        self.handler.singly = records.singly();
        self.handler.skipped.extend(records.skipped().map(|skip| skip.target));
        self.handler.settles_at = records.skipped().map(|skip| skip.decided_at).max().unwrap_or(0);
        self.records = Some(records);
        self
    }

    /// Sets the function that waits before a read is retried that failed for lack of file handles.
    #[must_use]
    pub fn pausing(mut self, pause: fn()) -> Self {
        self.pause = pause;
        self
    }

    /// Takes snapshots into `store`, and installs those received there. `node` is this node's id;
    /// it staggers the first snapshots of the cluster's nodes.
    #[must_use]
    pub fn with_snapshots(mut self, store: SnapshotStore, node: NodeId) -> Self {
        self.snapshots = Some(store);
        self.node = node.get();
        self.hold_told();
        self
    }

    pub(super) fn hold_told(&mut self) {
        let last_included = self.handler.snapshot;
        self.told = self
            .snapshots
            .as_ref()
            .filter(|_| last_included.index > 0)
            .map(|store| store.hold(last_included));
    }

    /// Sets the time of the worker's clock, which measures the pauses between snapshots and between
    /// attempts to install one. Call it between jobs.
    pub fn at(&mut self, now: Instant) {
        self.handler.due.at(now);
        self.install.at(now);
    }

    /// The handler, for all calls other than apply.
    pub fn handler(&mut self) -> &mut StateMachineHandler {
        &mut self.handler
    }

    /// As [`Self::run_or_wait`]; a lack of space counts as an entry that cannot be applied.
    ///
    /// # Errors
    /// The node must stop with the reason ([`Event::Failed`]).
    pub async fn run(&mut self, job: ApplyJob) -> Result<Event, StopReason> {
        match self.run_or_wait(job).await? {
            ApplyRun::Done(event) => Ok(event),
            ApplyRun::Waits { job, why } => {
                drop(Callers::new(job.responders));
                self.stops(&why, HaltCause::Error)
            }
        }
    }

    /// Executes one job and replies to its callers. Returns the event for the replica.
    ///
    /// An entry that the state machine cannot apply does not stop the node. The state machine is
    /// halted there ([`Event::ApplyStopped`]), and later jobs are returned without being
    /// executed. A durable machine that has no space for the entries is not halted: it has changed
    /// nothing, and the job is run again later. So is the install of a snapshot for which it has no
    /// space.
    ///
    /// # Errors
    /// The node must stop with the reason ([`Event::Failed`]).
    pub async fn run_or_wait(&mut self, mut job: ApplyJob) -> Result<ApplyRun, StopReason> {
        let stop = self.still_stops(&job);
        let mut callers = Callers::new(std::mem::take(&mut job.responders));
        if let Some(stop) = stop {
            let through = self.handler.applied();
            return Ok(ApplyRun::Done(Event::ApplyStopped { through, stop }));
        }
        // A later failure is not related to the entries of an earlier job.
        self.handler.in_hand = None;
        if let (Some(skip), Some(records)) = (job.skip, &mut self.records) {
            match records.skips(skip, self.handler.machine().durability()) {
                Err(reason) if reason.lacks_room() => {
                    job.responders = callers.left();
                    return Ok(ApplyRun::Waits { job, why: reason });
                }
                recorded => recorded?,
            }
        }
        let result = match &job.source {
            ApplySource::Entries(entries) => {
                self.handler.apply_for(entries, &mut callers, job.skip).await
            }
            ApplySource::Stored(first, last) => {
                self.run_stored((*first, *last), &mut callers, job.skip).await
            }
            ApplySource::Snapshot(last_included) => self.install(*last_included).await,
        };
        if let Err(reason) = result {
            let is_durable = self.handler.machine().durability() == Durability::Durable;
            let installs = matches!(job.source, ApplySource::Snapshot(_));
            if reason.lacks_room() && is_durable && (installs || self.handler.in_hand.is_some()) {
                job.responders = callers.left();
                return Ok(ApplyRun::Waits { job, why: reason });
            }
            return self.stops(&reason, HaltCause::Error).map(ApplyRun::Done);
        }
        self.stop = None;
        Ok(ApplyRun::Done(Event::Applied {
            through: self.handler.applied(),
            next_expiry_ms: self.handler.machine().next_expiry_ms(),
            command_version: self.handler.applied.command_version,
        }))
    }

    /// Classifies a job that failed, or in which the state machine panicked. If the machine had
    /// been given entries, it is halted at them and the node continues.
    ///
    /// # Errors
    /// The node must stop with the reason: something other than the state machine failed, or the
    /// machine failed at something other than entries.
    pub fn stops(&mut self, reason: &StopReason, cause: HaltCause) -> Result<Event, StopReason> {
        let given = self.handler.in_hand.filter(|_| !reason.needs_newer_program());
        let Some((first, last)) = given else { return Err(reason.clone()) };
        if first != last
            && let Some(records) = &mut self.records
        {
            records.stopped_between(first, last);
        }
        let stop = ApplyStop {
            first,
            last,
            panicked: cause == HaltCause::Panic,
            reason: advice(first, last, reason),
        };
        self.stop = Some(stop.clone());
        Ok(Event::ApplyStopped { through: self.handler.applied(), stop })
    }

    /// Where the state machine remains halted, unless the job takes it past the entry. After a
    /// panic, or if it is unknown how much of a chunk it has applied, only a restart continues.
    fn still_stops(&self, job: &ApplyJob) -> Option<ApplyStop> {
        let stop = self.stop.as_ref()?;
        let is_past = match (&job.source, job.skip) {
            (ApplySource::Snapshot(_), _) => !stop.panicked,
            (_, Some(skip)) => !stop.needs_restart() && stop.halted_at() == Some(skip.target),
            _ => false,
        };
        if is_past {
            return None;
        }
        Some(stop.clone())
    }

    /// Where the state machine is halted, if it is.
    #[must_use]
    pub fn stop(&self) -> Option<&ApplyStop> {
        self.stop.as_ref()
    }

    /// Applies a backlog from the log, a portion at a time.
    async fn run_stored(
        &mut self,
        (mut first, last): (LogIndex, LogIndex),
        callers: &mut Callers,
        skip: Option<SkippedEntry>,
    ) -> Result<(), StopReason> {
        while first <= last {
            let entries = match self.reader.read(self.group, first, last, READ_BYTES_MAX) {
                // The process has no file handle left. Nothing is lost, and other users may close
                // theirs.
                Err(error @ StorageError::NoRoom { .. }) => {
                    tracing::warn!(%error, "apply waits for a file handle and retries");
                    (self.pause)();
                    continue;
                }
                read => read.map_err(|error| {
                    StopReason::new(format_args!("entries to apply cannot be read: {error}"))
                })?,
            };
            let Some(end) = entries.last().map(|entry| entry.id.index) else {
                return Err(StopReason::new(format_args!(
                    "the log returned no entry at index {first}; start the node again, and check this disk"
                )));
            };
            self.handler.apply_for(&entries, callers, skip).await?;
            first = end.next();
        }
        Ok(())
    }

    /// Begins a snapshot if it was requested, or if the policy says so. Call it between jobs. No
    /// state is lost by a failure.
    ///
    /// # Errors
    /// The snapshot was abandoned, with the reason.
    pub async fn begin_snapshot(
        &mut self,
        cause: SnapshotCause,
    ) -> Result<Option<SnapshotTask>, StopReason> {
        let Some(store) = &self.snapshots else { return Ok(None) };
        let is_requested = cause == SnapshotCause::Requested;
        if let Some(reason) = self.no_snapshot() {
            return if is_requested { Err(reason) } else { Ok(None) };
        }
        if self.handler.is_building() || !(is_requested || self.handler.wants_snapshot(self.node)) {
            return Ok(None);
        }
        if self.handler.applied().index == 0 {
            return Ok(None);
        }
        let task = self.handler.begin_snapshot(store).await?;
        self.building = Some(store.hold(task.last_included()));
        Ok(Some(task))
    }

    /// The reason why no snapshot may be taken now, although there is a state.
    #[must_use]
    pub fn no_snapshot(&self) -> Option<StopReason> {
        if let Some(stop) = &self.stop {
            return Some(stop.reason.clone());
        }
        let settles_at = self.handler.settles_at;
        (self.handler.applied().index < settles_at).then(|| {
            StopReason::new(format_args!(
                "an entry is being skipped; retry when entry {settles_at} is applied"
            ))
        })
    }

    /// Abandons a snapshot whose [`Self::begin_snapshot`] future was dropped before its end.
    pub fn give_up_snapshot(&mut self) {
        self.building = None;
        self.handler.give_up_snapshot();
    }

    /// The last applied entry.
    pub(crate) fn applied(&self) -> LogId {
        self.handler.applied()
    }

    /// The snapshot of exactly the applied state, if there is one. Its file may have been removed
    /// by hand, so it is opened.
    pub(crate) fn snapshot_of_applied(&self) -> Option<SnapshotInfo> {
        let store = self.snapshots.as_ref()?;
        let newest = store.newest_whole()?;
        let is_applied = newest.last_included() == self.applied();
        (is_applied && store.open_archive(newest.last_included()).is_ok()).then_some(newest)
    }

    /// Whether a snapshot is being built.
    #[must_use]
    pub fn is_building(&self) -> bool {
        self.handler.is_building()
    }

    /// Ends a snapshot that was begun. Returns the event for the replica if the log may be purged
    /// up to it.
    ///
    /// # Errors
    /// The node must stop with the reason.
    pub fn end_snapshot(
        &mut self,
        built: Result<SnapshotInfo, StopReason>,
    ) -> Result<Option<Event>, StopReason> {
        // A machine that panicked is not called any more.
        let panicked = self.stop.as_ref().filter(|stop| stop.panicked);
        let built = panicked.map_or(built, |stop| Err(stop.reason.clone()));
        match built {
            Ok(info) => {
                let kept = self.handler.keep_snapshot(&info);
                self.hold_told();
                self.building = None;
                if let (Err(reason), Some(_)) = (&kept, &self.stop) {
                    // A halted machine may fail at this too; that does not stop the node.
                    tracing::warn!(%reason, "a snapshot was abandoned");
                    return Ok(None);
                }
                // `None` if no node would accept it, or the state machine had no space to store its
                // metadata: then the log is not purged up to it.
                let kept = if kept? {
                    self.snapshots.as_ref().and_then(SnapshotStore::coverage)
                } else {
                    None
                };
                Ok(kept.map(Event::SnapshotKept))
            }
            Err(reason) => {
                tracing::warn!(%reason, "a snapshot was abandoned");
                self.give_up_snapshot();
                Ok(None)
            }
        }
    }
}

/// The reason with the advice for an operator.
fn advice(first: LogId, last: LogId, reason: &StopReason) -> StopReason {
    if first == last {
        return StopReason::new(format_args!(
            "the state machine is halted at the entry at {first} and applies nothing after it: \
             {reason}; repair the cause, or use a program that can apply the entry, and start this \
             node again; if the entry halts every node and its effect may be lost: \
             d-engine skip-entry {}:{}",
            first.term, first.index
        ));
    }
    StopReason::new(format_args!(
        "the state machine is halted at one of the entries {} to {} and applies nothing after it: \
         {reason}; repair the cause, or use a program that can apply them, and start this node \
         again: it then applies them one by one and names the entry at which it is halted",
        first.index, last.index
    ))
}
