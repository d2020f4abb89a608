//! The life cycle of a state machine: start (`restore.rs`), apply, snapshot (`snapshot_build.rs`),
//! stop.
//!
//! `start`; for `Rebuilt` machines `reset`; then `apply_chunk` and `update_last_applied` in turn; a
//! snapshot when the policy says so; at the end `persist_last_applied`, `flush`, `stop`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d_engine_core::{EntryKind, LogIndex};
use d_engine_storage::snapshot::SnapshotInfo;
use d_engine_storage::{LogEntry, Membership};

use crate::clients::command_version;
use crate::event::{ProposeResponder, SkippedEntry};
use crate::state_machine::callers::Callers;
use crate::state_machine::position::{self, Applied, check_stored, failed};
use crate::state_machine::skips;
use crate::state_machine::snapshot_due::SnapshotDue;
use crate::{
    Durability, Entry, LogId, ReplySink, SnapshotMetadata, SnapshotPolicy, StateMachine, StopReason,
};

/// [`StateMachine::persist_last_applied`] is called after this many entries.
const PERSIST_APPLIED_EVERY: u64 = 10_000;

/// Calls a [`StateMachine`] in the order that its contract promises, one call at a time. The apply
/// worker owns it.
pub struct StateMachineHandler {
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) policy: Arc<dyn SnapshotPolicy>,
    /// The position of the machine: no entry up to it is delivered again.
    pub(crate) applied: Applied,
    applied_persisted: LogIndex,
    /// The last included entry of the newest snapshot that was reported to the machine.
    pub(crate) snapshot: LogId,
    /// Bytes of its archive; 0 if unknown.
    pub(crate) snapshot_bytes: u64,
    pub(crate) due: SnapshotDue,
    late_replies: Arc<AtomicU64>,
    steps: Arc<AtomicU64>,
    /// First and last entry that the machine was given and has not applied: after an error or a
    /// panic it is halted there.
    pub(crate) in_hand: Option<(LogId, LogId)>,
    /// First and last index of the entries to apply one by one, because one of them halted the
    /// machine in an earlier boot.
    pub(crate) singly: Option<(u64, u64)>,
    /// Entries that were skipped on this node.
    pub(crate) skipped: BTreeSet<LogId>,
    /// The index of the entry that decides the last skip. No snapshot is taken between a skipped
    /// entry and its deciding entry, because it would not contain the decision.
    pub(crate) settles_at: u64,
    /// An install was begun and has not succeeded, so the machine may have removed its old state.
    is_installing: bool,
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
            is_installing: false,
        }
    }

    /// The last entry whose effect is in the state.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.applied.id
    }

    /// A shared counter of dropped replies: those given after their chunk was applied, and second
    /// replies to a command.
    #[must_use]
    pub fn late_replies(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.late_replies)
    }

    /// A shared counter of the chunks that the state machine has applied.
    #[must_use]
    pub fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.steps)
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &Arc<dyn StateMachine> {
        &self.machine
    }

    /// Applies committed entries in order. Replies to each waiting caller after the chunk with its
    /// entry has been applied. Entries up to the last applied one are ignored, and `skip` is not
    /// given to the state machine.
    ///
    /// # Errors
    /// The state machine cannot continue. Waiting callers receive `OutcomeUnknown`.
    pub async fn apply(
        &mut self,
        entries: &[LogEntry],
        responders: Vec<(LogIndex, ProposeResponder)>,
        skip: Option<SkippedEntry>,
    ) -> Result<(), StopReason> {
        self.apply_for(entries, &mut Callers::new(responders), skip).await
    }

    /// As [`Self::apply`], for the callers among `callers` that wait for these entries. After a
    /// lack of space, those of entries that were not applied still wait.
    pub(crate) async fn apply_for(
        &mut self,
        entries: &[LogEntry],
        callers: &mut Callers,
        skip: Option<SkippedEntry>,
    ) -> Result<(), StopReason> {
        let mut replies = Vec::with_capacity(entries.len());
        let applied = self.apply_entries(entries, skip, &mut replies).await;
        match (&applied, entries.last()) {
            (Ok(()), Some(last)) => callers.take_to(last.id.index).answer(replies),
            (Err(reason), _) if reason.lacks_room() => {
                callers.take_to(self.applied.id.index).answer(replies);
            }
            _ => {}
        }
        applied
    }

    /// Applies entries; collects the replies by index.
    async fn apply_entries(
        &mut self,
        entries: &[LogEntry],
        skip: Option<SkippedEntry>,
        replies: &mut Vec<(u64, Option<bytes::Bytes>)>,
    ) -> Result<(), StopReason> {
        let new = entries.iter().skip_while(|entry| entry.id.index <= self.applied.id.index);
        let new: Vec<&LogEntry> = new.collect();
        command_version::check_entries(self.machine.as_ref(), &new)?;
        let mut rest = new.as_slice();
        while let Some(first) = rest.first() {
            let expected = self.applied.id.index.next();
            if first.id.index != expected {
                return Err(StopReason::new(format_args!(
                    "apply received entry {}, but entry {expected} comes next; this is a defect of the \
                     engine: report it, and start the node again",
                    first.id.index
                )));
            }
            let skips = |entry: &LogEntry| skip.is_some_and(|skip| skip.target == entry.id);
            // A tick is applied between the commands before and after it.
            let ends = |entry: &&&LogEntry| {
                entry.kind == EntryKind::Tick || self.is_alone(entry) || skips(entry)
            };
            let run = rest.iter().take_while(|entry| !ends(entry)).count();
            let (now, later) = rest.split_at(run.max(1).min(rest.len()));
            match (skip, first.kind) {
                (Some(skip), _) if skips(first) => self.skip(skip),
                (_, EntryKind::Tick) => self.tick(first)?,
                (_, EntryKind::Skip) => self.check_skipped(first)?,
                _ => self.apply_chunk(now, replies).await?,
            }
            rest = later;
            if let Some(last) = now.last() {
                self.note_applied(now, last.id);
                self.machine.update_last_applied(self.applied.id);
            }
        }
        if self.applied.id.index.since(self.applied_persisted) >= PERSIST_APPLIED_EVERY {
            match self.persist_applied() {
                // It is tried again after the next entries.
                Err(reason) if reason.lacks_room() => {}
                persisted => persisted?,
            }
        }
        Ok(())
    }

    /// Updates the facts for the next snapshot.
    fn note_applied(&mut self, entries: &[&LogEntry], last: LogId) {
        self.applied.id = last;
        for entry in entries {
            self.applied.time_ms = self.applied.time_ms.max(entry.time_ms);
            if !self.skipped.contains(&entry.id) {
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

    /// Whether the entry must form a chunk of its own.
    fn is_alone(&self, entry: &LogEntry) -> bool {
        let index = entry.id.index.get();
        entry.kind == EntryKind::Skip
            || self.singly.is_some_and(|(first, last)| index >= first && index <= last)
    }

    /// Skips an entry by the cluster's decision.
    fn skip(&mut self, skip: SkippedEntry) {
        tracing::warn!(
            entry = %skip.target, decided_at = skip.decided_at,
            "an entry is skipped: it is not applied on any node"
        );
        self.skipped.insert(skip.target);
        self.settles_at = self.settles_at.max(skip.decided_at);
        self.in_hand = None;
    }

    /// Checks that this node has skipped the entry that a deciding entry names.
    fn check_skipped(&self, entry: &LogEntry) -> Result<(), StopReason> {
        let target = skips::decode(&entry.data);
        match target {
            Some(target) if !self.skipped.contains(&target) => Err(StopReason::new(format_args!(
                "the cluster has decided with entry {} to skip the entry at {target}, but this \
                 node has applied it, or has lost the record that it was skipped, so its state may \
                 differ from that of the other nodes: start it again; if it stops again, replace \
                 its snapshots with the newest snap-*.snap of another node and remove the state \
                 machine's own files, if there are any, before you start it (docs/snapshots.md)",
                entry.id.index
            ))),
            _ => Ok(()),
        }
    }

    fn tick(&mut self, entry: &LogEntry) -> Result<(), StopReason> {
        let id = entry.id;
        self.in_hand = Some((id, id));
        self.machine
            .advance_time(id, entry.time_ms)
            .map_err(|error| failed("advance_time", &error))?;
        self.in_hand = None;
        Ok(())
    }

    /// Delivers the commands among `entries` as one chunk. Their replies count only after the
    /// machine has returned `Ok`.
    async fn apply_chunk(
        &mut self,
        entries: &[&LogEntry],
        replies: &mut Vec<(u64, Option<bytes::Bytes>)>,
    ) -> Result<(), StopReason> {
        let commands: Vec<&LogEntry> =
            entries.iter().filter(|entry| entry.kind == EntryKind::Command).copied().collect();
        let (Some(first), Some(last)) = (commands.first(), commands.last()) else { return Ok(()) };
        self.in_hand = Some((first.id, last.id));
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
        // From here on the commands are applied, so a fault of the machine must not look like a
        // halt at an entry that it has not applied, which an operator may have skipped.
        self.in_hand = None;
        check_stored(self.machine.as_ref(), last.id)?;
        self.steps.fetch_add(1, Ordering::Relaxed);
        replies.extend(commands.iter().map(|entry| entry.id.index.get()).zip(sink.take()));
        Ok(())
    }

    /// Replaces the state by a snapshot whose archive was verified.
    ///
    /// # Errors
    /// The machine returned an error; the old state is unchanged.
    pub async fn install_snapshot(
        &mut self,
        info: &SnapshotInfo,
        path: PathBuf,
    ) -> Result<(), StopReason> {
        command_version::check_state(
            self.machine.as_ref(),
            info.header.facts.command_version,
            info.last_included(),
        )?;
        let meta = position::metadata_of(info);
        self.is_installing = true;
        self.machine
            .apply_snapshot_from_file(&meta, path)
            .await
            .map_err(|error| failed("apply_snapshot_from_file", &error))?;
        self.applied = position::installed(self.machine.as_ref(), info).map_err(StopReason::new)?;
        self.is_installing = false;
        self.machine.update_last_applied(self.applied.id);
        self.due.installed();
        self.snapshot_bytes = info.len;
        self.flush_before_telling()?;
        self.tell_of(&meta).map(|_| ())
    }

    /// Flushes a durable machine before a snapshot is reported to it: after a power loss, its state
    /// must not be older than the snapshot that it names (`check_own_snapshot`).
    pub(crate) fn flush_before_telling(&self) -> Result<(), StopReason> {
        if self.machine.durability() == Durability::Rebuilt {
            return Ok(());
        }
        self.machine.flush().map_err(|error| failed("flush", &error))
    }

    /// Reports an existing snapshot to the machine and asks it to store the metadata. Returns
    /// whether it has. If it had no space for it, the next snapshot or the next start reports
    /// again.
    pub(crate) fn tell_of(&mut self, meta: &SnapshotMetadata) -> Result<bool, StopReason> {
        self.machine
            .update_last_snapshot_metadata(meta)
            .map_err(|error| failed("update_last_snapshot_metadata", &error))?;
        match self.machine.persist_last_snapshot_metadata(meta) {
            Ok(()) => {
                self.snapshot = meta.last_included;
                Ok(true)
            }
            Err(error) if error.is_out_of_space() => {
                tracing::warn!(
                    snapshot = %meta.last_included, %error,
                    "the state machine has no space to store the metadata of a snapshot; the log \
                     is not purged up to it"
                );
                Ok(false)
            }
            Err(error) => Err(failed("persist_last_snapshot_metadata", &error)),
        }
    }

    /// Informs the machine that term or vote were persisted.
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

    /// Closes the machine: persists the position, flushes, stops. All three are called even if one
    /// of them fails. After an install that failed, the position is left out: the machine may have
    /// removed the state that it stands for.
    ///
    /// # Errors
    /// The first error, to be shown to the operator.
    pub fn close(&mut self) -> Result<(), StopReason> {
        let persisted = if self.is_installing { Ok(()) } else { self.persist_applied() };
        let flushed = self.machine.flush().map_err(|error| failed("flush", &error));
        let stopped = self.machine.stop().map_err(|error| failed("stop", &error));
        persisted.and(flushed).and(stopped)
    }
}
