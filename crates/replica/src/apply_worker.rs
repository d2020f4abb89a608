//! The apply side of a node: takes jobs in order, answers callers directly.

use std::sync::Arc;

use d_engine_core::{GroupId, Instant, LogId as CoreLogId, LogIndex, NodeId};
use d_engine_storage::snapshot::{FullSpeed, Hold, SnapshotInfo, SnapshotStore};
use d_engine_storage::{LogReader, MetaStore, StorageError};

use crate::apply_records::ApplyRecords;
use crate::callers::Callers;
use crate::event::{ApplyJob, ApplySource, ApplyStop, Event, SkippedEntry};
use crate::snapshot_build::SnapshotTask;
use crate::{LogId, StateMachineHandler, StopReason};

/// Payload bytes read from the log at a time while a backlog is applied.
const READ_BYTES_MAX: usize = 4 << 20;

/// Owns the [`StateMachineHandler`]. The server runs it on a thread of its own, the simulator in its
/// event loop.
pub struct ApplyWorker {
    handler: StateMachineHandler,
    reader: Arc<dyn LogReader>,
    group: GroupId,
    node: u64,
    snapshots: Option<SnapshotStore>,
    /// The snapshot that is being built.
    building: Option<Hold>,
    /// The one that the state machine was told of last: while it names that, it is there.
    told: Option<Hold>,
    /// The snapshot whose files wait to be handed to the state machine.
    unpacked: Option<CoreLogId>,
    /// Lets some time pass before a read is made again.
    pause: fn(),
    /// What must outlive the process of where the state machine stood.
    records: Option<ApplyRecords>,
    /// Where the state machine stands, if it does.
    stop: Option<ApplyStop>,
}

impl ApplyWorker {
    /// A worker over an opened state machine and the log it is fed from.
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
            unpacked: None,
            pause: || {},
            records: None,
            stop: None,
        }
    }

    /// The same worker, which keeps in `meta` what must outlive the process of where the state machine stood.
    #[must_use]
    pub fn with_records(mut self, meta: Box<dyn MetaStore>) -> Self {
        let records = ApplyRecords::load(meta);
        self.handler.singly = records.singly();
        self.handler.skipped.extend(records.skipped().map(|skip| skip.target));
        self.handler.settles_at = records.skipped().map(|skip| skip.decided_at).max().unwrap_or(0);
        self.records = Some(records);
        self
    }

    /// The same worker, which calls `pause` before it reads again what could not be read for want of file handles.
    #[must_use]
    pub fn pausing(mut self, pause: fn()) -> Self {
        self.pause = pause;
        self
    }

    /// The same worker, taking snapshots into `store` and installing those that are received there. `node` is
    /// this node's id: the nodes of a cluster take turns.
    #[must_use]
    pub fn with_snapshots(mut self, store: SnapshotStore, node: NodeId) -> Self {
        self.snapshots = Some(store);
        self.node = node.get();
        self.hold_told();
        self
    }

    fn hold_told(&mut self) {
        let label = self.handler.snapshot;
        self.told = self.snapshots.as_ref().filter(|_| label.index > 0).map(|store| store.hold(label.into()));
    }

    /// The worker's own clock shows this: pauses between snapshots go by it. Tell it between jobs.
    pub fn at(&mut self, now: Instant) {
        self.handler.due.at(now);
    }

    /// The handler, for what is not applying.
    pub fn handler(&mut self) -> &mut StateMachineHandler {
        &mut self.handler
    }

    /// Applies one job and answers its callers. Returns the event for the replica.
    ///
    /// An entry that the state machine cannot apply does not end the node: it stands there
    /// ([`Event::ApplyStopped`]), and whatever else it is given comes back undone.
    ///
    /// # Errors
    /// The node must stop with the reason ([`Event::Failed`]).
    pub async fn run(&mut self, job: ApplyJob) -> Result<Event, StopReason> {
        let stop = self.still_stops(&job);
        let callers = Callers::new(job.responders);
        if stop.is_none() {
            // What fails from here on has nothing to do with what it was given before.
            self.handler.in_hand = None;
        }
        if let Some(stop) = stop {
            return Ok(Event::ApplyStopped { through: self.handler.applied(), stop });
        }
        if let (Some(skip), Some(records)) = (job.skip, &mut self.records) {
            records.skips(skip, self.handler.machine().durability())?;
        }
        let result = match job.source {
            ApplySource::Entries(entries) => self.handler.apply_for(&entries, callers, job.skip).await,
            ApplySource::Stored(first, last) => self.run_stored((first, last), callers, job.skip).await,
            ApplySource::Snapshot(label) => self.install(label).await,
        };
        if let Err(reason) = result {
            return self.stops(&reason, false);
        }
        self.stop = None;
        Ok(Event::Applied {
            through: self.handler.applied(),
            next_expiry_ms: self.handler.machine().next_expiry_ms(),
            command_version: self.handler.applied.command_version,
        })
    }

    /// What has become of a job that failed, or that the state machine panicked in: if it was given entries, it stands there,
    /// and the node goes on.
    ///
    /// # Errors
    /// The node must stop with the reason: the state machine was not the one that failed, or it failed at something else.
    pub fn stops(&mut self, reason: &StopReason, panicked: bool) -> Result<Event, StopReason> {
        let given = self.handler.in_hand.filter(|_| !reason.needs_newer_program());
        let Some((first, last)) = given else { return Err(reason.clone()) };
        if first != last
            && let Some(records) = &mut self.records
        {
            records.stopped_between(first, last);
        }
        let stop = ApplyStop { first, last, panicked, reason: advice(first, last, reason) };
        self.stop = Some(stop.clone());
        Ok(Event::ApplyStopped { through: self.handler.applied(), stop })
    }

    /// Where the state machine goes on standing, whatever the job is: unless that takes it past the entry. After a panic,
    /// or when nobody knows how much of a chunk it has applied, nothing but a new process does.
    fn still_stops(&self, job: &ApplyJob) -> Option<ApplyStop> {
        let stop = self.stop.as_ref()?;
        let is_past = match (&job.source, job.skip) {
            (ApplySource::Snapshot(_), _) => !stop.panicked,
            (_, Some(skip)) => !stop.needs_restart() && stop.stands_at() == Some(skip.target),
            _ => false,
        };
        if is_past {
            return None;
        }
        Some(stop.clone())
    }

    /// Where the state machine stands, if it does.
    #[must_use]
    pub fn stop(&self) -> Option<&ApplyStop> {
        self.stop.as_ref()
    }

    /// Applies a backlog from the log, a portion at a time.
    async fn run_stored(
        &mut self,
        (mut first, last): (LogIndex, LogIndex),
        mut callers: Callers,
        skip: Option<SkippedEntry>,
    ) -> Result<(), StopReason> {
        while first <= last {
            let entries = match self.reader.read(self.group, first, last, READ_BYTES_MAX) {
                // There is no file handle left. Nothing is lost, and others may close theirs.
                Err(error @ StorageError::NoRoom { .. }) => {
                    tracing::warn!(%error, "applying waits");
                    (self.pause)();
                    continue;
                }
                read => {
                    read.map_err(|error| StopReason::new(format_args!("reading entries to apply: {error}")))?
                }
            };
            let Some(end) = entries.last().map(|entry| entry.id.index) else {
                return Err(StopReason::new(format_args!("the log gave no entry at index {first}")));
            };
            self.handler.apply_for(&entries, callers.take_to(end), skip).await?;
            first = end.next();
        }
        Ok(())
    }

    /// Unpacks the snapshot that `job` installs, so that [`ApplyWorker::run`] only hands its files over; nothing for
    /// other jobs. Returns why it must wait, for lack of room or of file handles: try again in about a second.
    /// Nothing was given up until then, and the node goes on storing entries.
    ///
    /// # Errors
    /// The node must stop with the reason: the snapshot is damaged, or the disk is.
    pub fn unpack(&mut self, job: &ApplyJob) -> Result<Option<String>, StopReason> {
        let (ApplySource::Snapshot(label), Some(store)) = (&job.source, &self.snapshots) else {
            return Ok(None);
        };
        let label = (*label).into();
        let unpacked =
            store.clear_unpacked().and_then(|()| store.unpack(label, &store.unpack_dir(), &mut FullSpeed));
        match unpacked {
            Ok(_) => {
                self.unpacked = Some(label);
                Ok(None)
            }
            Err(error) if error.is_want_of_room() => Ok(Some(error.to_string())),
            Err(error) => Err(StopReason::new(error)),
        }
    }

    /// Replaces the state by a snapshot that was received.
    async fn install(&mut self, label: LogId) -> Result<(), StopReason> {
        let Some(store) = self.snapshots.clone() else {
            return Err(StopReason::new(format_args!("there is no place for the snapshot {label}")));
        };
        let label = label.into();
        let path = store.unpack_dir();
        if self.unpacked.take() != Some(label) {
            store.clear_unpacked().map_err(StopReason::new)?;
            store.unpack(label, &path, &mut FullSpeed).map_err(StopReason::new)?;
        }
        let info = store.list().into_iter().find(|info| info.label() == label);
        let info = info.ok_or_else(|| StopReason::new(format_args!("the snapshot {label} is gone")))?;
        let installed = self.handler.install_snapshot(&info, path).await;
        // What cannot be removed now is removed at the next start.
        store.clear_unpacked().ok();
        self.hold_told();
        installed
    }

    /// Begins a snapshot if the policy says so, or if `asked`. Call it between jobs. What fails here is told to
    /// the log; no state is lost by it.
    ///
    /// # Errors
    /// The snapshot was given up, with the reason.
    pub async fn begin_snapshot(&mut self, asked: bool) -> Result<Option<SnapshotTask>, StopReason> {
        let Some(store) = &self.snapshots else { return Ok(None) };
        if let Some(reason) = self.no_snapshot() {
            return if asked { Err(reason) } else { Ok(None) };
        }
        if self.handler.is_building() || !(asked || self.handler.wants_snapshot(self.node)) {
            return Ok(None);
        }
        if self.handler.applied().index == 0 {
            return Ok(None);
        }
        let task = self.handler.begin_snapshot(store).await?;
        self.building = Some(store.hold(task.label().into()));
        Ok(Some(task))
    }

    /// Why no snapshot is taken for now, although there is a state.
    #[must_use]
    pub fn no_snapshot(&self) -> Option<StopReason> {
        if let Some(stop) = &self.stop {
            return Some(stop.reason.clone());
        }
        let settles_at = self.handler.settles_at;
        let settles = self.handler.applied().index < settles_at && !cfg!(mutant = "snapshot-before-decision");
        settles.then(|| {
            StopReason::new(format_args!(
                "an entry is being skipped; ask again when entry {settles_at} is applied"
            ))
        })
    }

    /// The future of [`Self::begin_snapshot`] was dropped before its end.
    pub fn give_up_snapshot(&mut self) {
        self.building = None;
        self.handler.give_up_snapshot();
    }

    /// Whether a snapshot is being built.
    #[must_use]
    pub fn is_building(&self) -> bool {
        self.handler.is_building()
    }

    /// What has become of a snapshot that was begun. Returns the event for the replica, if the log may be purged behind
    /// a snapshot.
    ///
    /// # Errors
    /// The node must stop with the reason.
    pub fn end_snapshot(
        &mut self,
        built: Result<SnapshotInfo, StopReason>,
    ) -> Result<Option<Event>, StopReason> {
        // A machine that panicked is not told of anything any more.
        let panicked = self.stop.as_ref().filter(|stop| stop.panicked);
        let built = panicked.map_or(built, |stop| Err(stop.reason.clone()));
        match built {
            Ok(info) => {
                let kept = self.handler.keep_snapshot(&info);
                self.hold_told();
                self.building = None;
                if let (Err(reason), Some(_)) = (&kept, &self.stop) {
                    // It stands, and may fail at this too: no reason to end the node.
                    tracing::warn!(%reason, "a snapshot was given up");
                    return Ok(None);
                }
                // None if no node would take it, or the state machine had no room to note it: then nothing is
                // purged behind it.
                let kept =
                    if kept? { self.snapshots.as_ref().and_then(SnapshotStore::coverage) } else { None };
                Ok(kept.map(Event::SnapshotKept))
            }
            Err(reason) => {
                tracing::warn!(%reason, "a snapshot was given up");
                self.give_up_snapshot();
                Ok(None)
            }
        }
    }
}

/// What to do about a state machine that stands.
fn advice(first: LogId, last: LogId, reason: &StopReason) -> StopReason {
    if first == last {
        return StopReason::new(format_args!(
            "the state machine stands at the entry at {first} and applies nothing behind it: {reason}; mend the cause, or start a \
             program that can apply the entry, and start this node again; if it stops every node, and its effect may be \
             lost: d-engine skip-entry {}:{}",
            first.term, first.index
        ));
    }
    StopReason::new(format_args!(
        "the state machine stands at one of the entries {} to {} and applies nothing behind it: {reason}; mend the cause, or start \
         a program that can apply them, and start this node again: it then applies them one by one, and names the one at \
         which it stands",
        first.index, last.index
    ))
}
