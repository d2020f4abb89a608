//! Taking a snapshot: the apply worker freezes a view between two chunks, the snapshot worker
//! writes and packs it concurrently with apply, and the apply worker reports it to the state
//! machine. A machine without views writes its files while apply waits.

use bytes::Bytes;
use d_engine_storage::Membership;
use d_engine_storage::snapshot::{Pace, SnapshotFacts, SnapshotInfo, SnapshotStore, Staging};

use crate::state_machine::position::{failed, metadata_of};
use crate::{
    Durability, LogId, SnapshotContext, SnapshotRoom, SnapshotView, StateMachineHandler, StopReason,
};

/// A snapshot that is to be packed into an archive.
#[must_use = "a snapshot task must be built; otherwise the frozen state is dropped"]
pub struct SnapshotTask {
    staging: Staging,
    content: Content,
    last_included: LogId,
    time_ms: u64,
    membership: Membership,
    machine: String,
    format: u32,
    command_version: u32,
}

enum Content {
    View(Box<dyn SnapshotView>),
    Written([u8; 32]),
}

impl std::fmt::Debug for SnapshotTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotTask")
            .field("last_included", &self.last_included)
            .finish_non_exhaustive()
    }
}

impl SnapshotTask {
    /// The last included entry.
    #[must_use]
    pub fn last_included(&self) -> LogId {
        self.last_included
    }

    /// Writes the frozen view, if there is one, and packs the archive. It takes long: do not call
    /// it on the apply thread.
    ///
    /// # Errors
    /// The snapshot is abandoned, with the reason; no state is lost, and its files are removed.
    pub fn build(
        self,
        store: &SnapshotStore,
        pace: &mut dyn Pace,
    ) -> Result<SnapshotInfo, StopReason> {
        let checksum = match self.content {
            Content::Written(checksum) => checksum,
            Content::View(view) => {
                let check = || Ok(store.has_room_for(0)?);
                let room = SnapshotRoom::checked_by(&check);
                let written = view.write_within(self.staging.path(), &room);
                written.map_err(|error| failed("SnapshotView::write_within", &error))?
            }
        };
        let facts = SnapshotFacts {
            last_included: self.last_included,
            time_ms: self.time_ms,
            membership: self.membership,
            envelope: Bytes::new(),
            machine: self.machine,
            user_format: self.format,
            command_version: self.command_version,
            checksum,
        };
        store.pack(self.staging, &facts, pace).map_err(StopReason::new)
    }
}

impl StateMachineHandler {
    /// The input of the policy, on a node that is at position `rank` of `nodes` members.
    #[must_use]
    pub fn snapshot_context(&self, rank: usize, nodes: usize) -> SnapshotContext {
        let share = if self.due.is_first() { rank * 1_000 / nodes.max(1) } else { 0 };
        let mut context = SnapshotContext::default();
        context.applied = self.applied.id;
        context.last_snapshot = self.snapshot;
        context.log_bytes = self.due.bytes();
        context.snapshot_bytes = self.snapshot_bytes;
        context.elapsed = self.due.elapsed();
        context.stagger_permille = u32::try_from(share).unwrap_or(0);
        context
    }

    /// The growth of the log in bytes since the newest snapshot, or since the node's start.
    #[must_use]
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.due.bytes()
    }

    /// Sets the bytes that the log has written since the node's start, as counted by
    /// [`LogStats`](d_engine_storage::LogStats). Call it between jobs. Without it, the policy sees
    /// only the bytes of the applied entries.
    pub fn log_written(&mut self, total: u64) {
        self.due.log_written(total);
    }

    /// Whether a snapshot should be begun now: not while one is being built, and not too soon after
    /// one has failed.
    pub(crate) fn wants_snapshot(&self, node: u64) -> bool {
        if self.due.is_building() || self.due.waits() {
            return false;
        }
        let members = self.applied.membership.members();
        let rank = members.iter().position(|member| member.node == node).unwrap_or(0);
        self.policy.should_snapshot(&self.snapshot_context(rank, members.len()))
    }

    /// Whether a snapshot is being built.
    pub(crate) fn is_building(&self) -> bool {
        self.due.is_building()
    }

    /// Freezes the state, with the machine's view or by letting it write its files now. The last
    /// included entry is the last applied one.
    ///
    /// # Errors
    /// There is too little space, or the machine returned an error; the state is unchanged.
    pub(crate) async fn begin_snapshot(
        &mut self,
        store: &SnapshotStore,
    ) -> Result<SnapshotTask, StopReason> {
        let begun = self.freeze(store).await;
        match &begun {
            Ok(_) => self.due.begun(),
            Err(_) => self.due.failed(),
        }
        begun
    }

    async fn freeze(&self, store: &SnapshotStore) -> Result<SnapshotTask, StopReason> {
        let before = store.newest().map_or(0, |info| info.header.content_bytes());
        store
            .has_room_for(self.machine.snapshot_bytes().map_or(before, |bytes| bytes.max(before)))
            .map_err(StopReason::new)?;
        let mut staging = store.staging().map_err(StopReason::new)?;
        let last_included = self.applied.id;
        self.check_term(last_included)?;
        let view = self.machine.snapshot_view().map_err(|error| failed("snapshot_view", &error))?;
        let content = match view {
            Some(view) if view.last_included() != last_included => {
                return Err(StopReason::new(format_args!(
                    "the state machine's snapshot_view has last included entry {}, but {last_included} was \
                     applied last",
                    view.last_included()
                )));
            }
            Some(view) => Content::View(view),
            None => {
                self.check_reported(last_included)?;
                let dir = staging.path().to_owned();
                staging.lend();
                let written = self.machine.generate_snapshot_data(dir, last_included).await;
                staging.give_back();
                Content::Written(written.map_err(|error| failed("generate_snapshot_data", &error))?)
            }
        };
        Ok(SnapshotTask {
            staging,
            content,
            last_included,
            time_ms: self.applied.time_ms,
            membership: self.applied.membership.clone(),
            machine: self.machine.name().to_owned(),
            format: self.machine.snapshot_format(),
            command_version: self.applied.command_version,
        })
    }

    /// Refuses a last included entry whose term differs from the machine's: every node that
    /// receives the snapshot would believe the wrong term.
    fn check_term(&self, last_included: LogId) -> Result<(), StopReason> {
        match self.machine.entry_term(last_included.index.get()) {
            Some(term) if last_included.term != term => Err(StopReason::new(format_args!(
                "the state machine reports that entry {} is of term {term}, but {last_included} was \
                 applied last; no snapshot is taken",
                last_included.index
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a last included entry that a durable machine does not report as its position: its
    /// state would be older than the snapshot that it names. A view has the machine's own position.
    fn check_reported(&self, last_included: LogId) -> Result<(), StopReason> {
        if self.machine.durability() == Durability::Rebuilt {
            return Ok(());
        }
        let reported = self.machine.last_applied();
        if reported.index == last_included.index {
            return Ok(());
        }
        Err(StopReason::new(format_args!(
            "the state machine's last_applied() is {reported}, but {last_included} was applied \
             last; update_last_applied() must move it; no snapshot is taken"
        )))
    }

    /// Reports a durable snapshot to the machine, which stores everything that the log will no
    /// longer contain. Returns whether it could; otherwise the log must not be purged up to the
    /// snapshot.
    ///
    /// # Errors
    /// The node must stop with the reason.
    pub(crate) fn keep_snapshot(&mut self, info: &SnapshotInfo) -> Result<bool, StopReason> {
        self.due.kept();
        self.snapshot_bytes = info.len;
        match self.report(info) {
            Err(reason) if reason.lacks_room() => {
                tracing::warn!(
                    snapshot = %info.last_included(), %reason,
                    "the state machine has no space to flush its state; the log is not purged up \
                     to its newest snapshot"
                );
                Ok(false)
            }
            reported => reported,
        }
    }

    fn report(&mut self, info: &SnapshotInfo) -> Result<bool, StopReason> {
        // A newer snapshot from the leader may have been installed meanwhile.
        if info.last_included().index > self.snapshot.index {
            self.flush_before_telling()?;
            if !self.tell_of(&metadata_of(info))? {
                return Ok(false);
            }
        }
        self.persist_applied()?;
        self.machine.flush().map_err(|error| failed("flush", &error))?;
        Ok(true)
    }

    /// Records that a snapshot was abandoned.
    pub(crate) fn give_up_snapshot(&mut self) {
        self.due.failed();
    }
}
