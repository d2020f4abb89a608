//! Taking a snapshot: the apply worker freezes a view between two chunks, the snapshot worker writes and packs
//! it beside apply, and the apply worker tells the state machine of it. A machine without a view writes its
//! files while apply waits.

use std::time::Duration;

use bytes::Bytes;
use d_engine_core::Instant;
use d_engine_storage::Membership;
use d_engine_storage::snapshot::{Pace, SnapshotFacts, SnapshotInfo, SnapshotStore, Staging};

use crate::restore::metadata_of;
use crate::snapshot_policy::SnapshotContext;
use crate::state_machine_handler::failed;
use crate::{LogId, SnapshotRoom, SnapshotView, StateMachineHandler, StopReason};

/// Bytes of the log that an entry takes beside its payload, about.
const ENVELOPE_BYTES: u64 = 32;
/// Time after a failed attempt until the next; doubled each time, up to the last.
const RETRY_AFTER_MS: [u64; 7] = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000];

/// What decides whether a snapshot is due.
#[derive(Debug, Default)]
pub(crate) struct SnapshotDue {
    /// Payload that was applied, with its envelopes.
    log_bytes: u64,
    /// Bytes that the log has written since the node started, padding included; and how many of them it had
    /// written when the newest snapshot was begun.
    written: u64,
    written_before: Option<u64>,
    /// The time of the worker's own clock, which no leader and no wall clock moves.
    now: Instant,
    /// Since when the policy counts: the newest snapshot, or the first entry that was applied here.
    since: Option<Instant>,
    /// This node's place among the members, while it has not built one itself.
    first: bool,
    /// One is being built; the counters as of its label.
    building: Option<Counted>,
    failures: usize,
    not_before: Option<Instant>,
}

/// The counters as of a label.
#[derive(Clone, Copy, Debug)]
struct Counted {
    log_bytes: u64,
    written: u64,
    at: Instant,
}

impl SnapshotDue {
    pub(crate) fn new() -> Self {
        Self { first: true, ..Self::default() }
    }

    /// The worker's clock shows this; it never goes back.
    pub(crate) fn at(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// An entry with so many bytes of payload was applied.
    pub(crate) fn applied(&mut self, payload: usize) {
        self.since.get_or_insert(self.now);
        self.log_bytes = self.log_bytes.saturating_add(payload as u64 + ENVELOPE_BYTES);
    }

    /// What the log has grown by since the newest snapshot: small groups of entries are padded to whole sectors, so that
    /// it may be several times what was applied.
    fn bytes(&self) -> u64 {
        let written = self.written.saturating_sub(self.written_before.unwrap_or(self.written));
        self.log_bytes.max(written)
    }

    fn log_written(&mut self, total: u64) {
        self.written = total;
        self.written_before.get_or_insert(total);
    }

    /// A leader's snapshot was installed. One that is being built still is.
    pub(crate) fn installed(&mut self) {
        let (written, now) = (self.written, self.now);
        let building = self.building.map(|_| Counted { log_bytes: 0, written, at: now });
        *self =
            Self { building, written, written_before: Some(written), now, since: Some(now), ..Self::new() };
    }

    fn begun(&mut self) {
        self.building = Some(Counted { log_bytes: self.log_bytes, written: self.written, at: self.now });
    }

    fn kept(&mut self) {
        if let Some(counted) = self.building.take() {
            self.log_bytes = self.log_bytes.saturating_sub(counted.log_bytes);
            self.written_before = Some(counted.written);
            self.since = Some(counted.at);
        }
        self.first = false;
        (self.failures, self.not_before) = (0, None);
    }

    fn failed(&mut self) {
        self.building = None;
        let wait = RETRY_AFTER_MS.get(self.failures).or(RETRY_AFTER_MS.last()).copied().unwrap_or_default();
        self.failures += 1;
        self.not_before = Some(self.now.plus(d_engine_core::Duration::from_millis(wait)));
    }
}

/// A snapshot on its way into an archive.
#[must_use = "a snapshot that is not built was taken for nothing"]
pub struct SnapshotTask {
    staging: Staging,
    content: Content,
    label: LogId,
    core_label: d_engine_core::LogId,
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
        f.debug_struct("SnapshotTask").field("label", &self.label).finish_non_exhaustive()
    }
}

impl SnapshotTask {
    /// The last entry in it.
    #[must_use]
    pub fn label(&self) -> LogId {
        self.label
    }

    /// Writes the frozen view, if there is one, and makes the archive. Long work: not for the apply thread.
    ///
    /// # Errors
    /// The snapshot is given up, with the reason; no state is lost, and nothing of it is left.
    pub fn build(self, store: &SnapshotStore, pace: &mut dyn Pace) -> Result<SnapshotInfo, StopReason> {
        let checksum = match self.content {
            Content::Written(checksum) => checksum,
            Content::View(view) => {
                let written = view.write_within(self.staging.path(), &SnapshotRoom::beside(store));
                written.map_err(|error| failed("SnapshotView::write_within", &error))?
            }
        };
        let facts = SnapshotFacts {
            label: self.core_label,
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
    /// What the policy is asked about, on a node that is `rank` of `nodes` members.
    #[must_use]
    pub fn snapshot_context(&self, rank: usize, nodes: usize) -> SnapshotContext {
        let share = if self.due.first { rank * 1_000 / nodes.max(1) } else { 0 };
        SnapshotContext {
            applied: self.applied.id,
            last_snapshot: self.snapshot,
            log_bytes: self.due.bytes(),
            snapshot_bytes: self.snapshot_bytes,
            elapsed: Duration::from_nanos(
                self.due.since.map_or(0, |since| self.due.now.since(since).as_nanos()),
            ),
            stagger_permille: u32::try_from(share).unwrap_or(0),
        }
    }

    /// Bytes of the log applied since the newest snapshot, or since the node started.
    #[must_use]
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.due.bytes()
    }

    /// The log has written so many bytes since the node started, as [`LogStats`](d_engine_storage::LogStats) counts them. Tell it
    /// between jobs; who does not is asked about what was applied alone.
    pub fn log_written(&mut self, total: u64) {
        self.due.log_written(total);
    }

    /// Whether a snapshot should be begun now. Not while one is being built, and not too soon after one has
    /// failed.
    pub(crate) fn wants_snapshot(&self, node: u64) -> bool {
        if self.due.building.is_some() || self.due.not_before.is_some_and(|at| self.due.now < at) {
            return false;
        }
        let members = self.applied.membership.members();
        let rank = members.iter().position(|member| member.node == node).unwrap_or(0);
        self.policy.should_snapshot(&self.snapshot_context(rank, members.len()))
    }

    /// Whether one is being built.
    pub(crate) fn is_building(&self) -> bool {
        self.due.building.is_some()
    }

    /// Freezes the state: by the machine's own view, or by having it write its files now. The label is the
    /// place at which apply stands.
    ///
    /// # Errors
    /// There is no room, or the machine refuses; the state is untouched.
    pub(crate) async fn begin_snapshot(&mut self, store: &SnapshotStore) -> Result<SnapshotTask, StopReason> {
        let begun = self.freeze(store).await;
        if cfg!(mutant = "metadata-before-file") && begun.is_ok() {
            self.tell_of(&crate::SnapshotMetadata::new(self.applied.id, [0; 32]))?;
        }
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
        let label = self.applied.id;
        self.check_term(label)?;
        let view = self.machine.snapshot_view().map_err(|error| failed("snapshot_view", &error))?;
        let content = match view {
            Some(view) if view.label() != label => {
                return Err(StopReason::new(format_args!(
                    "the state machine's snapshot_view is labelled {}, but {label} was applied last",
                    view.label()
                )));
            }
            Some(view) => Content::View(view),
            None => {
                let dir = staging.path().to_owned();
                staging.lend();
                let written = self.machine.generate_snapshot_data(dir, label).await;
                staging.give_back();
                Content::Written(written.map_err(|error| failed("generate_snapshot_data", &error))?)
            }
        };
        let labelled = if cfg!(mutant = "snapshot-wrong-label") {
            LogId { index: label.index.saturating_sub(1).max(1), ..label }
        } else {
            label
        };
        Ok(SnapshotTask {
            staging,
            content,
            label,
            core_label: labelled.into(),
            time_ms: self.applied.time_ms,
            membership: self.applied.membership.clone(),
            machine: self.machine.name().to_owned(),
            format: self.machine.snapshot_format(),
            command_version: self.applied.command_version,
        })
    }

    /// A label with a term that the machine knows otherwise would be believed by every node that gets the snapshot.
    fn check_term(&self, label: LogId) -> Result<(), StopReason> {
        match self.machine.entry_term(label.index) {
            Some(term) if term != label.term => Err(StopReason::new(format_args!(
                "the state machine says that entry {} is of term {term}, but {label} was applied last; no snapshot is \
                 taken of it",
                label.index
            ))),
            _ => Ok(()),
        }
    }

    /// A snapshot is durable: the machine is told, and stores what the log will no longer have. Returns whether it
    /// could; otherwise nothing may be purged behind it.
    ///
    /// # Errors
    /// The node must stop with the reason.
    pub(crate) fn keep_snapshot(&mut self, info: &SnapshotInfo) -> Result<bool, StopReason> {
        self.due.kept();
        self.snapshot_bytes = info.len;
        // A leader's snapshot that goes further may have been installed meanwhile.
        if info.label().index.get() > self.snapshot.index {
            self.flush_before_telling()?;
            if !self.tell_of(&metadata_of(info))? {
                return Ok(false);
            }
        }
        self.persist_applied()?;
        if cfg!(mutant = "purge-before-flush") {
            return Ok(true);
        }
        self.machine.flush().map_err(|error| failed("flush", &error))?;
        Ok(true)
    }

    /// A snapshot was given up.
    pub(crate) fn give_up_snapshot(&mut self) {
        self.due.failed();
    }
}
