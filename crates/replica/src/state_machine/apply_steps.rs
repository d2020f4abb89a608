//! The order in which the apply worker does its work.
//!
//! Work arrives in batches. Within a batch: report the saved hard state, end the snapshot that was
//! built, carry out the jobs, take up the requests for snapshots. Between two jobs a snapshot may
//! begin. The driver passes a batch to [`ApplySteps::start`], executes what [`ApplySteps::next`]
//! returns, and fetches the next batch when that is [`ApplyStep::Wait`]. The server's apply thread
//! and the simulator are such drivers.

use std::collections::VecDeque;

use d_engine_storage::snapshot::SnapshotInfo;
use std::time::Duration;

use crate::event::{ApplyJob, ApplySource, Event};
use crate::state_machine::apply_worker::{ApplyWorker, SnapshotCause};
use crate::state_machine::callers::Callers;
use crate::state_machine::snapshot_build::SnapshotTask;
use crate::state_machine::snapshot_requests::{SnapshotRequests, SnapshotResponder};
use crate::{SnapshotRequestError, StopReason};

/// After this time the driver continues with a job that waits for disk space.
pub const UNPACK_RETRY_INTERVAL: Duration = Duration::from_millis(1_000);

/// The most requests for snapshots in one batch; more are refused.
const REQUESTS_MAX: usize = 64;

/// A batch of work for the apply worker. Its length is bounded by what the replica hands out.
#[derive(Default)]
pub struct ApplyWork {
    /// Jobs, in their order.
    pub jobs: VecDeque<ApplyJob>,
    /// Term or vote were persisted.
    pub hard_state_saved: bool,
    /// A snapshot is due regardless of the policy.
    pub snapshot_due: bool,
    /// The result of the snapshot that was begun.
    pub built: Option<Result<SnapshotInfo, StopReason>>,
    requests: Vec<SnapshotResponder>,
}

impl ApplyWork {
    /// Adds a caller that requests a snapshot, or refuses it if too many do.
    pub fn request_snapshot(&mut self, responder: SnapshotResponder) {
        if self.requests.len() >= REQUESTS_MAX {
            responder(Err(SnapshotRequestError::Busy));
            return;
        }
        self.requests.push(responder);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && !self.hard_state_saved
            && !self.snapshot_due
            && self.built.is_none()
            && self.requests.is_empty()
    }
}

impl std::fmt::Debug for ApplyWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyWork")
            .field("jobs", &self.jobs)
            .field("built", &self.built)
            .field("requests", &self.requests.len())
            .finish_non_exhaustive()
    }
}

/// What the driver does next.
#[derive(Debug)]
pub enum ApplyStep {
    /// Inform the state machine that the hard state was saved.
    SaveHardState,
    /// Call [`ApplySteps::end_snapshot`] with the result of the build.
    EndSnapshot(Result<SnapshotInfo, StopReason>),
    /// Unpack the job's snapshot if it installs one ([`ApplyWorker::unpack`]), then run the job
    /// ([`ApplyWorker::run_or_wait`]). If either waits for disk space, call
    /// [`ApplySteps::postpone`].
    Apply(ApplyJob),
    /// Remove the snapshots that a newer one replaces.
    Prune,
    /// Call [`ApplyWorker::begin_snapshot`], then [`ApplySteps::snapshot_begun`].
    BeginSnapshot(SnapshotCause),
    /// The batch is done: wait for the next one.
    Wait,
    /// Flush and stop the state machine. Nothing follows.
    Close,
}

/// What happened last, which may make a snapshot due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Last {
    Job,
    SnapshotEnd,
    Batch,
}

/// Orders the work of one apply worker.
#[derive(Debug, Default)]
pub struct ApplySteps {
    work: ApplyWork,
    requests: SnapshotRequests,
    last: Option<Last>,
    /// Whether older snapshots may be removed.
    prune: bool,
    /// Whether the requests of the present batch have not been taken up.
    is_open: bool,
    /// Whether the job given out last, or the first one that is left, has waited for disk space.
    first_waits: bool,
    is_closing: bool,
}

impl ApplySteps {
    /// Starts a batch. Call it after [`ApplyStep::Wait`].
    pub fn start(&mut self, work: ApplyWork) {
        self.work = work;
        self.is_open = true;
    }

    /// Starts the last batch, after what is left of the one before: its jobs are executed, no
    /// snapshot is begun, and its requests are dropped.
    pub fn start_last(&mut self, work: ApplyWork) {
        self.work.jobs.extend(work.jobs);
        self.work.hard_state_saved |= work.hard_state_saved;
        self.work.built = self.work.built.take().or(work.built);
        self.is_closing = true;
    }

    /// The next step.
    pub fn next(&mut self, worker: &ApplyWorker) -> ApplyStep {
        if std::mem::take(&mut self.work.hard_state_saved) && worker.stop().is_none() {
            return ApplyStep::SaveHardState;
        }
        if let Some(built) = self.work.built.take() {
            self.last = Some(Last::SnapshotEnd);
            return ApplyStep::EndSnapshot(built);
        }
        if std::mem::take(&mut self.prune) {
            return ApplyStep::Prune;
        }
        if self.last.is_some() {
            // The job given out last was executed.
            self.first_waits = false;
        }
        if let Some(cause) = self.cause_now(worker) {
            return ApplyStep::BeginSnapshot(cause);
        }
        if let Some(job) = self.work.jobs.pop_front() {
            self.last = Some(Last::Job);
            self.prune = matches!(job.source, ApplySource::Snapshot(_));
            return ApplyStep::Apply(job);
        }
        if self.is_closing {
            return ApplyStep::Close;
        }
        if std::mem::take(&mut self.is_open) {
            let applied = worker.applied().index;
            for responder in self.work.requests.drain(..) {
                self.requests.add(applied, responder);
            }
            if std::mem::take(&mut self.work.snapshot_due) || !self.requests.is_empty() {
                self.last = Some(Last::Batch);
                return self.next(worker);
            }
        }
        ApplyStep::Wait
    }

    /// Why a snapshot may begin here, if one may. Callers whose state is in a snapshot already are
    /// answered instead.
    fn cause_now(&mut self, worker: &ApplyWorker) -> Option<SnapshotCause> {
        let cause = match self.last.take().filter(|_| !self.is_closing)? {
            Last::Job => SnapshotCause::Policy,
            // Enough may have been applied meanwhile that the next snapshot is due, and no further
            // entry may arrive to trigger it.
            Last::SnapshotEnd if self.requests.is_empty() => SnapshotCause::Policy,
            Last::SnapshotEnd | Last::Batch => SnapshotCause::Requested,
        };
        if cause == SnapshotCause::Requested && !worker.is_building() {
            let existing = worker.snapshot_of_applied();
            if let Some(existing) = existing {
                self.requests.answer(&existing);
                return None;
            }
        }
        Some(cause)
    }

    /// The job that was given out last waits for disk space; it is given out again. Returns whether
    /// it waits for the first time.
    pub fn postpone(&mut self, job: ApplyJob) -> bool {
        self.work.jobs.push_front(job);
        (self.last, self.prune) = (None, false);
        let postponed_before = std::mem::replace(&mut self.first_waits, true);
        !postponed_before
    }

    /// Drops the jobs that are left: the node shuts down while the first one waits for disk space.
    pub fn drop_jobs(&mut self) {
        for job in self.work.jobs.drain(..) {
            drop(Callers::new(job.responders));
        }
        self.is_closing = true;
    }

    /// Takes up the result of [`ApplyWorker::begin_snapshot`]. The callers of a snapshot that was
    /// begun, or is being built, wait for its end.
    pub fn snapshot_begun(
        &mut self,
        worker: &ApplyWorker,
        cause: SnapshotCause,
        begun: &Result<Option<SnapshotTask>, StopReason>,
    ) {
        match begun {
            Ok(None) if cause == SnapshotCause::Requested && !worker.is_building() => {
                self.requests.refuse(&StopReason::new(
                    "nothing was applied yet, so there is no state to take a snapshot of",
                ));
            }
            Ok(_) => {}
            Err(reason) => self.requests.refuse(reason),
        }
    }

    /// Ends a snapshot: passes the result of the build to the worker, and answers its callers.
    /// Returns the event for the replica if the log may be purged up to it.
    ///
    /// # Errors
    /// The node must stop with the reason.
    pub fn end_snapshot(
        &mut self,
        worker: &mut ApplyWorker,
        built: Result<SnapshotInfo, StopReason>,
    ) -> Result<Option<Event>, StopReason> {
        let kept = worker.end_snapshot(built.clone())?;
        self.prune |= kept.is_some();
        match built {
            Ok(info) => self.requests.answer(&info),
            Err(reason) => self.requests.refuse(&reason),
        }
        Ok(kept)
    }
}
