//! The life of a state machine: start (`restore.rs`), apply, snapshot (`snapshot_build.rs`), stop.
//!
//! `start` → for `Rebuilt` machines `reset` → `apply_chunk`, `update_last_applied`, ... → when the
//! policy says so a snapshot → `persist_last_applied`, `flush`, `stop`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d_engine_core::{EntryKind, LogIndex};
use d_engine_storage::snapshot::SnapshotInfo;
use d_engine_storage::{LogEntry, Membership, RecoveredLog};

use crate::callers::Callers;
use crate::command_version;
use crate::event::{ProposeResponder, SkippedEntry};
use crate::restore;
use crate::skips;
use crate::snapshot_build::SnapshotDue;
use crate::snapshot_policy::SnapshotPolicy;
use crate::{Entry, LogId, ReplySink, SnapshotMetadata, StateMachine, StopReason};

/// After how many entries [`StateMachine::persist_last_applied`] is called.
const PERSIST_APPLIED_EVERY: u64 = 10_000;

/// Calls a [`StateMachine`] in the order and at the moments its contract promises. One at a time:
/// the apply worker owns it.
pub struct StateMachineHandler {
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) policy: Arc<dyn SnapshotPolicy>,
    /// Nothing at or below it is delivered again.
    pub(crate) applied: Applied,
    applied_persisted: u64,
    /// The last entry in the newest snapshot that the machine was told of.
    pub(crate) snapshot: LogId,
    /// Bytes of its archive; 0 when that is not known.
    pub(crate) snapshot_bytes: u64,
    pub(crate) due: SnapshotDue,
    late_replies: Arc<AtomicU64>,
    steps: Arc<AtomicU64>,
    /// What the machine was given last and has not applied: after an error or a panic it stands there.
    pub(crate) in_hand: Option<(LogId, LogId)>,
    /// Entries from the first to the last of these indexes are given to the machine one by one: one of them has stopped it
    /// in an earlier life.
    pub(crate) singly: Option<(u64, u64)>,
    /// Entries that were skipped here.
    pub(crate) skipped: BTreeSet<LogId>,
    /// Between a skipped entry and the one that says so: a snapshot taken here would not tell that it was skipped.
    pub(crate) settles_at: u64,
}

/// The place in the log whose state the machine holds.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// The last entry whose effect is in the state.
    pub(crate) id: LogId,
    /// Log time there, in UNIX milliseconds.
    pub(crate) time_ms: u64,
    /// The members there.
    pub(crate) membership: Membership,
    /// The highest version of a command up to there.
    pub(crate) command_version: u32,
}

impl StateMachineHandler {
    pub(crate) fn new(
        machine: Arc<dyn StateMachine>,
        policy: Arc<dyn SnapshotPolicy>,
        applied: Applied,
    ) -> Self {
        let applied_persisted = applied.id.index;
        let due = SnapshotDue::new();
        Self {
            machine,
            policy,
            applied,
            applied_persisted,
            snapshot: LogId::default(),
            snapshot_bytes: 0,
            due,
            late_replies: Arc::default(),
            steps: Arc::default(),
            in_hand: None,
            singly: None,
            skipped: BTreeSet::new(),
            settles_at: 0,
        }
    }

    /// The last entry whose effect is in the state.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.applied.id
    }

    /// Replies that came after their chunk was applied, or second to their command: nobody gets them. Shared with
    /// whoever shows it.
    #[must_use]
    pub fn late_replies(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.late_replies)
    }

    /// Counts the chunks that were handed to the state machine.
    #[must_use]
    pub fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.steps)
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &Arc<dyn StateMachine> {
        &self.machine
    }

    /// Applies committed entries in order and answers those who wait for them, after the chunk that
    /// holds their entry has been applied. Entries at or below the position are passed over, and `skip` is not given to
    /// the state machine.
    ///
    /// # Errors
    /// The state machine cannot go on. Whoever waits is told that the outcome is unknown.
    pub async fn apply(
        &mut self,
        entries: &[LogEntry],
        responders: Vec<(LogIndex, ProposeResponder)>,
        skip: Option<SkippedEntry>,
    ) -> Result<(), StopReason> {
        self.apply_for(entries, Callers::new(responders), skip).await
    }

    pub(crate) async fn apply_for(
        &mut self,
        entries: &[LogEntry],
        callers: Callers,
        skip: Option<SkippedEntry>,
    ) -> Result<(), StopReason> {
        callers.answer(self.apply_entries(entries, skip).await?);
        Ok(())
    }

    /// Applies entries; returns the replies by index.
    async fn apply_entries(
        &mut self,
        entries: &[LogEntry],
        skip: Option<SkippedEntry>,
    ) -> Result<Vec<(u64, Option<bytes::Bytes>)>, StopReason> {
        let mut replies = Vec::with_capacity(entries.len());
        let new = entries.iter().skip_while(|entry| entry.id.index.get() <= self.applied.id.index);
        let new: Vec<&LogEntry> = new.collect();
        command_version::check_entries(self.machine.as_ref(), &new)?;
        let mut rest = new.as_slice();
        while let Some(first) = rest.first() {
            let expected = self.applied.id.index.saturating_add(1);
            if first.id.index.get() != expected {
                return Err(StopReason::new(format_args!(
                    "entry {} was to be applied, but entry {expected} comes next",
                    first.id.index
                )));
            }
            let skips = |entry: &LogEntry| skip.is_some_and(|skip| skip.target == LogId::from(entry.id));
            // A tick is told between the commands before and after it.
            let ends =
                |entry: &&&LogEntry| entry.kind == EntryKind::Tick || self.is_alone(entry) || skips(entry);
            let run = rest.iter().take_while(|entry| !ends(entry)).count();
            let (now, later) = rest.split_at(run.max(1).min(rest.len()));
            match (skip, first.kind) {
                (Some(skip), _) if skips(first) => self.skip(skip),
                (_, EntryKind::Tick) => self.tick(first)?,
                (_, EntryKind::Skip) => self.check_skipped(first)?,
                _ => self.apply_chunk(now, &mut replies).await?,
            }
            rest = later;
            if let Some(last) = now.last() {
                self.note_applied(now, LogId::from(last.id));
                self.machine.update_last_applied(self.applied.id);
            }
        }
        if self.applied.id.index.saturating_sub(self.applied_persisted) >= PERSIST_APPLIED_EVERY {
            self.persist_applied()?;
        }
        Ok(replies)
    }

    /// What the next snapshot will have to say of itself.
    fn note_applied(&mut self, entries: &[&LogEntry], last: LogId) {
        self.applied.id = last;
        for entry in entries {
            self.applied.time_ms = self.applied.time_ms.max(entry.time_ms);
            if !self.skipped.contains(&LogId::from(entry.id)) {
                self.applied.command_version = self.applied.command_version.max(entry.version);
            }
            self.due.applied(entry.data.len());
            if entry.kind == EntryKind::Membership
                && let Ok(membership) = Membership::decode(&entry.data)
            {
                self.applied.membership = membership;
            }
        }
    }

    /// Whether the entry is no part of a chunk with others.
    fn is_alone(&self, entry: &LogEntry) -> bool {
        let index = entry.id.index.get();
        entry.kind == EntryKind::Skip
            || self.singly.is_some_and(|(first, last)| index >= first && index <= last)
    }

    /// The cluster has decided to go on without this entry.
    fn skip(&mut self, skip: SkippedEntry) {
        tracing::warn!(entry = %skip.target, decided_at = skip.decided_at, "an entry is skipped: it is not applied on any node");
        self.skipped.insert(skip.target);
        self.settles_at = self.settles_at.max(skip.decided_at);
        self.in_hand = None;
    }

    /// An entry says that another, before it, was skipped on every node. It must have been here.
    fn check_skipped(&self, entry: &LogEntry) -> Result<(), StopReason> {
        let target = skips::decode(&entry.data).map(LogId::from);
        match target {
            Some(target) if !self.skipped.contains(&target) => Err(StopReason::new(format_args!(
                "the cluster has decided with entry {} to skip the entry at {target}, but this node has applied it, or no longer \
                 knows that it has not, so its state may differ from the others': start it again; if it stops again, replace \
                 its snapshots by the newest snap-*.snap of another node and remove the state machine's own files, if it has \
                 any, before you start it (docs/snapshots.md)",
                entry.id.index
            ))),
            _ => Ok(()),
        }
    }

    fn tick(&mut self, entry: &LogEntry) -> Result<(), StopReason> {
        let id = LogId::from(entry.id);
        self.in_hand = Some((id, id));
        self.machine.advance_time(id, entry.time_ms).map_err(|error| failed("advance_time", &error))?;
        self.in_hand = None;
        Ok(())
    }

    /// Delivers the commands among `entries` as one chunk. Their replies count only after the
    /// machine has said `Ok`.
    async fn apply_chunk(
        &mut self,
        entries: &[&LogEntry],
        replies: &mut Vec<(u64, Option<bytes::Bytes>)>,
    ) -> Result<(), StopReason> {
        let commands: Vec<&LogEntry> =
            entries.iter().filter(|entry| entry.kind == EntryKind::Command).copied().collect();
        let (Some(first), Some(last)) = (commands.first(), commands.last()) else { return Ok(()) };
        self.in_hand = Some((first.id.into(), last.id.into()));
        let sink = ReplySink::counting(commands.len(), self.late_replies());
        let chunk = commands
            .iter()
            .enumerate()
            .map(|(slot, entry)| {
                Entry::new(entry.id.index.get(), entry.id.term.get(), entry.data.clone())
                    .of_version(entry.version)
                    .in_chunk(entry.time_ms, entry.session, sink.clone(), slot)
            })
            .collect();
        self.machine.apply_chunk(chunk).await.map_err(|error| failed("apply_chunk", &error))?;
        self.in_hand = None;
        self.steps.fetch_add(1, Ordering::Relaxed);
        replies.extend(commands.iter().map(|entry| entry.id.index.get()).zip(sink.take()));
        Ok(())
    }

    /// Replaces the state by a snapshot whose archive was verified.
    ///
    /// # Errors
    /// The machine refused; the old state is untouched.
    pub async fn install_snapshot(&mut self, info: &SnapshotInfo, path: PathBuf) -> Result<(), StopReason> {
        command_version::check_state(
            self.machine.as_ref(),
            info.header.facts.command_version,
            info.label().into(),
        )?;
        let meta = restore::metadata_of(info);
        self.machine
            .apply_snapshot_from_file(&meta, path)
            .await
            .map_err(|error| failed("apply_snapshot_from_file", &error))?;
        self.applied = restore::installed(self.machine.as_ref(), info).map_err(StopReason::new)?;
        self.machine.update_last_applied(self.applied.id);
        self.due.installed();
        self.snapshot_bytes = info.len;
        self.flush_before_telling()?;
        self.tell_of(&meta).map(|_| ())
    }

    /// A machine that keeps its own state stands at least where the snapshot does that it names, also after a power cut
    /// (`check_own_snapshot`): the state first.
    pub(crate) fn flush_before_telling(&self) -> Result<(), StopReason> {
        if self.machine.durability() == crate::Durability::Rebuilt || cfg!(mutant = "purge-before-flush") {
            return Ok(());
        }
        self.machine.flush().map_err(|error| failed("flush", &error))
    }

    /// The machine is told of a snapshot that is there, and asked to store that. Returns whether it has; where it has no
    /// room for it, the next snapshot or the next start tells it again.
    pub(crate) fn tell_of(&mut self, meta: &SnapshotMetadata) -> Result<bool, StopReason> {
        self.machine
            .update_last_snapshot_metadata(meta)
            .map_err(|error| failed("update_last_snapshot_metadata", &error))?;
        match self.machine.persist_last_snapshot_metadata(meta) {
            Ok(()) => {
                self.snapshot = meta.last_included;
                Ok(true)
            }
            Err(error) if error.is_want_of_room() => {
                tracing::warn!(snapshot = %meta.last_included, %error, "no room to note the snapshot; the log is not purged behind it");
                Ok(false)
            }
            Err(error) => Err(failed("persist_last_snapshot_metadata", &error)),
        }
    }

    /// Tells the machine that term or vote were stored.
    pub fn hard_state_saved(&self) {
        if let Err(error) = self.machine.save_hard_state() {
            tracing::warn!(%error, "the state machine's save_hard_state failed");
        }
    }

    pub(crate) fn persist_applied(&mut self) -> Result<(), StopReason> {
        self.machine
            .persist_last_applied(self.applied.id)
            .map_err(|error| failed("persist_last_applied", &error))?;
        self.applied_persisted = self.applied.id.index;
        Ok(())
    }

    /// Ends the machine's life: position, flush, stop, all three whatever the others say.
    ///
    /// # Errors
    /// The first error, to be shown to the operator.
    pub fn close(&mut self) -> Result<(), StopReason> {
        let persisted = self.persist_applied();
        let flushed = self.machine.flush().map_err(|error| failed("flush", &error));
        let stopped = self.machine.stop().map_err(|error| failed("stop", &error));
        persisted.and(flushed).and(stopped)
    }
}

pub(crate) fn failed(method: &str, error: &crate::Error) -> StopReason {
    StopReason::new(format_args!("the state machine's {method} failed: {error}"))
}

/// A machine that keeps its own state must stand no earlier than the snapshot that it was told of after a flush.
pub(crate) fn check_own_snapshot(machine: &dyn StateMachine, applied: LogId) -> Result<(), StopReason> {
    match machine.snapshot_metadata().map(|meta| meta.last_included) {
        Some(label) if label.index > applied.index => Err(StopReason::new(format_args!(
            "the state machine stands at {applied}, but names a snapshot of its state up to {label}: it has lost what it had \
             flushed; restore both from one copy, or remove the state machine's files, so that it begins with the \
             snapshot (docs/snapshots.md)"
        ))),
        _ => Ok(()),
    }
}

/// A machine that keeps its own state must stand inside the log that it is given.
pub(crate) fn check_position(
    machine: &dyn StateMachine,
    applied: LogId,
    recovered: &RecoveredLog,
) -> Result<(), StopReason> {
    let base = recovered.base;
    let last = recovered.entries.last().map_or(base, |head| head.id);
    if applied.index > last.index.get() {
        return Err(StopReason::new(format_args!(
            "the state machine stands at {applied}, but the log ends at {last}: the data directory and the state \
             do not belong together; restore both from one copy (docs/snapshots.md)"
        )));
    }
    let in_log = if applied.index == base.index.get() {
        Some(base.term)
    } else {
        let position = applied.index.saturating_sub(base.index.get()).saturating_sub(1);
        usize::try_from(position).ok().and_then(|at| recovered.entries.get(at)).map(|head| head.id.term)
    };
    let in_machine = machine.entry_term(applied.index).unwrap_or(applied.term);
    match in_log {
        Some(term) if term.get() != in_machine => Err(StopReason::new(format_args!(
            "the state machine has applied entry {} of term {in_machine}, but the log holds term {term} there; \
             restore both from one copy (docs/snapshots.md)",
            applied.index
        ))),
        _ => Ok(()),
    }
}
