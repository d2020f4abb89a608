//! The life of a state machine: start, apply, snapshot, stop.
//!
//! `start` → for `Rebuilt` machines `reset` → `apply_chunk`, `update_last_applied`, ... → when the
//! policy says so a snapshot → `persist_last_applied`, `flush`, `stop`.

use std::path::PathBuf;
use std::sync::Arc;

use d_engine_core::{EntryKind, LogIndex};
use d_engine_storage::{LogEntry, RecoveredLog};

use crate::event::ProposeResponder;
use crate::snapshot_policy::{SnapshotContext, SnapshotPolicy};
use crate::{
    Durability, Entry, LogId, ProposeError, ReplySink, SnapshotMetadata, StateMachine, StopReason,
    snapshot_checksum,
};

/// After how many entries [`StateMachine::persist_last_applied`] is called.
const PERSIST_APPLIED_EVERY: u64 = 10_000;

/// Calls a [`StateMachine`] in the order and at the moments its contract promises. One at a time:
/// the apply worker owns it.
pub struct StateMachineHandler {
    machine: Arc<dyn StateMachine>,
    policy: Arc<dyn SnapshotPolicy>,
    /// The last entry whose effect is in the state. Nothing at or below it is delivered again.
    applied: LogId,
    applied_persisted: u64,
}

impl StateMachineHandler {
    /// Starts a state machine over a recovered log and finds out where it stands.
    ///
    /// # Errors
    /// The node must not start: the machine refused, or what it says of itself does not fit the log.
    /// Both values are in the message.
    pub async fn open(
        machine: Arc<dyn StateMachine>,
        policy: Arc<dyn SnapshotPolicy>,
        recovered: &RecoveredLog,
    ) -> Result<Self, StopReason> {
        machine
            .start()
            .map_err(|error| StopReason::new(format_args!("the state machine did not start: {error}")))?;
        let applied = match position(machine.as_ref(), recovered).await {
            Ok(applied) => applied,
            Err(reason) => {
                // It was started, so it is told that this is the end; the reason above is what counts.
                machine.stop().ok();
                return Err(reason);
            }
        };
        Ok(Self { machine, policy, applied, applied_persisted: applied.index })
    }

    /// The last entry whose effect is in the state.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &Arc<dyn StateMachine> {
        &self.machine
    }

    /// Applies committed entries in order and answers those who wait for them, after the chunk that
    /// holds their entry has been applied. Entries at or below the position are skipped.
    ///
    /// # Errors
    /// The state machine cannot go on: the node must stop with the reason. Whoever waits is told
    /// that the outcome is unknown.
    pub async fn apply(
        &mut self,
        entries: &[LogEntry],
        responders: Vec<(LogIndex, ProposeResponder)>,
    ) -> Result<(), StopReason> {
        let result = self.apply_entries(entries).await;
        let mut replies = match &result {
            Ok(replies) => replies.iter().peekable(),
            Err(_) => [].iter().peekable(),
        };
        for (index, responder) in responders {
            while replies.next_if(|(at, _)| *at < index.get()).is_some() {}
            let answer = match (&result, replies.next_if(|(at, _)| *at == index.get())) {
                (Ok(_), Some((_, reply))) => Ok(reply.clone().unwrap_or_default()),
                _ => Err(ProposeError::OutcomeUnknown),
            };
            responder(answer);
        }
        result.map(|_| ())
    }

    /// Applies entries; returns the replies by index.
    async fn apply_entries(
        &mut self,
        entries: &[LogEntry],
    ) -> Result<Vec<(u64, Option<bytes::Bytes>)>, StopReason> {
        let mut replies = Vec::with_capacity(entries.len());
        let new = entries.iter().skip_while(|entry| entry.id.index.get() <= self.applied.index);
        let new: Vec<&LogEntry> = new.collect();
        let mut rest = new.as_slice();
        while let Some(first) = rest.first() {
            let expected = self.applied.index.saturating_add(1);
            if first.id.index.get() != expected {
                return Err(StopReason::new(format_args!(
                    "entry {} was to be applied, but entry {expected} comes next",
                    first.id.index
                )));
            }
            // A tick is told between the commands before and after it.
            let run = rest.iter().position(|entry| entry.kind == EntryKind::Tick).unwrap_or(rest.len());
            let (now, later) = rest.split_at(run.max(1).min(rest.len()));
            if first.kind == EntryKind::Tick {
                self.tick(first)?;
            } else {
                self.apply_chunk(now, &mut replies).await?;
            }
            rest = later;
            if let Some(last) = now.last() {
                self.applied = LogId::from(last.id);
                self.machine.update_last_applied(self.applied);
            }
        }
        if self.applied.index.saturating_sub(self.applied_persisted) >= PERSIST_APPLIED_EVERY {
            self.persist_applied()?;
        }
        Ok(replies)
    }

    fn tick(&self, entry: &LogEntry) -> Result<(), StopReason> {
        self.machine
            .advance_time(LogId::from(entry.id), entry.time_ms)
            .map_err(|error| failed("advance_time", &error))
    }

    /// Delivers the commands among `entries` as one chunk. Their replies count only after the
    /// machine has said `Ok`.
    async fn apply_chunk(
        &self,
        entries: &[&LogEntry],
        replies: &mut Vec<(u64, Option<bytes::Bytes>)>,
    ) -> Result<(), StopReason> {
        let commands: Vec<&LogEntry> =
            entries.iter().filter(|entry| entry.kind == EntryKind::Command).copied().collect();
        if commands.is_empty() {
            return Ok(());
        }
        let sink = ReplySink::with_slots(commands.len());
        let chunk = commands
            .iter()
            .enumerate()
            .map(|(slot, entry)| {
                Entry::new(entry.id.index.get(), entry.id.term.get(), entry.data.clone()).in_chunk(
                    entry.time_ms,
                    entry.session,
                    sink.clone(),
                    slot,
                )
            })
            .collect();
        self.machine.apply_chunk(chunk).await.map_err(|error| failed("apply_chunk", &error))?;
        replies.extend(commands.iter().map(|entry| entry.id.index.get()).zip(sink.take()));
        Ok(())
    }

    /// Whether the policy wants a snapshot now.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        let last_snapshot = self.machine.snapshot_metadata().map(|meta| meta.last_included);
        let context =
            SnapshotContext { applied: self.applied, last_snapshot: last_snapshot.unwrap_or_default() };
        self.policy.should_snapshot(&context)
    }

    /// Writes a snapshot of the state into the empty directory `dir`, checks it, and tells the
    /// machine of it. The label is that of the machine's frozen view, or the position at which apply
    /// stands while `generate_snapshot_data` runs.
    ///
    /// # Errors
    /// The snapshot is given up; the state is untouched.
    pub async fn take_snapshot(&self, dir: PathBuf) -> Result<SnapshotMetadata, StopReason> {
        let view = self.machine.snapshot_view().map_err(|error| failed("snapshot_view", &error))?;
        let (label, checksum) = match view {
            Some(view) => {
                let label = view.label();
                (label, view.write(&dir).map_err(|error| failed("SnapshotView::write", &error))?)
            }
            None => {
                let written = self.machine.generate_snapshot_data(dir.clone(), self.applied).await;
                (self.applied, written.map_err(|error| failed("generate_snapshot_data", &error))?)
            }
        };
        let found = snapshot_checksum(&dir).map_err(|error| failed("snapshot_checksum", &error.into()))?;
        if found != checksum {
            return Err(StopReason::new(format_args!(
                "the snapshot at {label} has another checksum than the state machine said"
            )));
        }
        let meta = SnapshotMetadata::new(label, checksum);
        self.machine
            .update_last_snapshot_metadata(&meta)
            .and_then(|()| self.machine.persist_last_snapshot_metadata(&meta))
            .map_err(|error| failed("persist_last_snapshot_metadata", &error))?;
        Ok(meta)
    }

    /// Replaces the state by a snapshot whose archive was verified.
    ///
    /// # Errors
    /// The machine refused; the old state is untouched.
    pub async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetadata,
        path: PathBuf,
    ) -> Result<(), StopReason> {
        self.machine
            .apply_snapshot_from_file(meta, path)
            .await
            .map_err(|error| failed("apply_snapshot_from_file", &error))?;
        self.applied = meta.last_included;
        self.machine.update_last_applied(self.applied);
        self.machine
            .update_last_snapshot_metadata(meta)
            .and_then(|()| self.machine.persist_last_snapshot_metadata(meta))
            .map_err(|error| failed("persist_last_snapshot_metadata", &error))
    }

    /// Tells the machine that term or vote were stored.
    pub fn hard_state_saved(&self) {
        if let Err(error) = self.machine.save_hard_state() {
            tracing::warn!(%error, "the state machine's save_hard_state failed");
        }
    }

    fn persist_applied(&mut self) -> Result<(), StopReason> {
        self.machine
            .persist_last_applied(self.applied)
            .map_err(|error| failed("persist_last_applied", &error))?;
        self.applied_persisted = self.applied.index;
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

fn failed(method: &str, error: &crate::Error) -> StopReason {
    StopReason::new(format_args!("the state machine's {method} failed: {error}"))
}

/// Where a machine stands at the start: a `Rebuilt` one at the beginning of the log, whatever it says; a
/// `Durable` one where it says.
async fn position(machine: &dyn StateMachine, recovered: &RecoveredLog) -> Result<LogId, StopReason> {
    match machine.durability() {
        Durability::Rebuilt => {
            machine.reset().await.map_err(|error| {
                StopReason::new(format_args!("the state machine could not be reset: {error}"))
            })?;
            Ok(LogId::from(recovered.base))
        }
        Durability::Durable => {
            let applied = machine.last_applied();
            check_position(machine, applied, recovered)?;
            Ok(applied)
        }
    }
}

/// A machine that keeps its own state must stand inside the log that it is given.
fn check_position(
    machine: &dyn StateMachine,
    applied: LogId,
    recovered: &RecoveredLog,
) -> Result<(), StopReason> {
    let base = recovered.base;
    let last = recovered.entries.last().map_or(base, |head| head.id);
    if applied.index < base.index.get() {
        return Err(StopReason::new(format_args!(
            "the state machine stands at {applied}, but the log begins after {base}: entries between them are \
             gone; reinstall this replica"
        )));
    }
    if applied.index > last.index.get() {
        return Err(StopReason::new(format_args!(
            "the state machine stands at {applied}, but the log ends at {last}: the data directory and the state \
             do not belong together; restore both from one copy, or reinstall this replica"
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
             restore both from one copy, or reinstall this replica",
            applied.index
        ))),
        _ => Ok(()),
    }
}
