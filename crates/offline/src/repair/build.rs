//! The content of the mended directory.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use d_engine_core::LogSuffix;
use d_engine_fs::Fs;
use d_engine_storage::survey::{Found, LogSummary, Range};
use d_engine_storage::{
    FileStorageEngine, FileStorageOptions, LogEntry, LogStore, OpenRequest, Repaired, StorageEngine,
};

use super::error::{Cause, RepairError};
use super::plan::Plan;
use crate::founding::LOG_BYTES;
use crate::inspect::Directory;
use crate::recover::Progress;
use crate::replacement::copy_records;

/// Payloads are written and synced in groups of about this size: the memory that the copy needs.
const GROUP_BYTES: usize = 4 << 20;
/// Bytes of a stored entry beside its payload, about.
const ENTRY_BYTES: usize = 64;

/// The bytes that the new log may need.
pub(super) fn needed(directory: &Directory) -> u64 {
    let log: u64 = directory.log().segments.iter().map(|segment| segment.end).sum();
    log.saturating_add(LOG_BYTES)
}

/// What to build, and from what.
pub(super) struct Work<'a> {
    pub(super) fs: &'a Arc<dyn Fs>,
    /// The empty directory.
    pub(super) dir: &'a Path,
    pub(super) directory: &'a Directory,
    /// The log before the first damaged place.
    pub(super) before: &'a LogSummary,
}

impl Work<'_> {
    /// Builds identity, log and promise, all of it durable. The promise comes last: a directory
    /// that has it is complete.
    pub(super) fn run(
        &self,
        plan: &Plan,
        at_ms: u64,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), RepairError> {
        let survey = self.directory.survey();
        let Some(identity) = survey.identity() else {
            let cause =
                Cause::Refused { reason: "it has no identity".to_owned(), node: "N".to_owned() };
            return Err(RepairError::Cannot { path: survey.dir().to_owned(), cause });
        };
        // The node prepares its log itself.
        let options = FileStorageOptions { prepare_bytes: 0, ..FileStorageOptions::default() };
        let engine = FileStorageEngine::new(self.dir, options, Arc::clone(self.fs));
        let mut opened = engine.open(&OpenRequest {
            cluster: Some(identity.cluster),
            node: identity.node,
            group: identity.group,
            initial: identity.initial.clone(),
            fresh_cluster: identity.cluster,
            fresh_incarnation: identity.incarnation,
        })?;
        let log = &mut *opened.log;
        if let Some(snapshot) = plan.snapshot {
            log.install(identity.group, snapshot, LogSuffix::Drop)?;
        }
        // First, so that no entry is ever there without the term and the vote.
        log.append(identity.group, Some(plan.hard_state), &[])?;
        log.sync()?;
        if plan.takes_entries {
            self.copy(log, plan, progress)?;
        }
        // Proves that the last group was complete.
        log.idle()?;
        copy_records(survey, &mut *opened.meta)?;
        let locks = log.directory_locks();
        if let Some(origin) = survey.origin() {
            engine.set_origin(origin, &locks)?;
        }
        engine.set_repaired(&Repaired { at_ms, promised: plan.promised }, &locks)?;
        Ok(())
    }

    /// Copies the entries after the snapshot and before the damage, group by group.
    fn copy(
        &self,
        log: &mut dyn LogStore,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), RepairError> {
        let survey = self.directory.survey();
        let begin = plan.snapshot.map_or(d_engine_core::LogIndex::ZERO, |it| it.index);
        if plan.kept.index <= begin {
            return Ok(());
        }
        let (group, dir) = (survey.group(), survey.dir());
        let mut next = begin.next();
        let mut waiting: Vec<LogEntry> = Vec::new();
        let mut bytes = 0;
        let mut outcome = Ok(());
        let range = Range { first: next, last: plan.kept.index };
        let mut flush = |log: &mut dyn LogStore, waiting: &mut Vec<LogEntry>, bytes: &mut usize| {
            log.append(group, None, waiting)?;
            log.sync()?;
            waiting.clear();
            match progress(Progress::Written(std::mem::take(bytes) as u64)) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(RepairError::Stopped),
            }
        };
        let changed = |index: d_engine_core::LogIndex| RepairError::Changed {
            path: dir.to_owned(),
            index: index.get(),
        };
        let _early = survey.entries(self.before, range, &mut |found| {
            let Found::Entry(stored) = found else { return ControlFlow::Continue(()) };
            if stored.entry.id.index != next {
                outcome = Err(changed(next));
                return ControlFlow::Break(());
            }
            next = next.next();
            bytes += stored.entry.data.len() + ENTRY_BYTES;
            waiting.push(stored.entry);
            if bytes >= GROUP_BYTES {
                outcome = flush(log, &mut waiting, &mut bytes);
            }
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        outcome?;
        if !waiting.is_empty() {
            flush(log, &mut waiting, &mut bytes)?;
        }
        match next == plan.kept.index.next() {
            true => Ok(()),
            false => Err(changed(next)),
        }
    }
}
