//! The content of the new directory.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, LogSuffix, Term};
use d_engine_fs::Fs;
use d_engine_storage::snapshot::{
    SNAPSHOT_DIR, SnapshotArchive, SnapshotError, SnapshotOptions, SnapshotStore,
};
use d_engine_storage::survey::{Found, Range};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, LogStore, Member,
    Membership, OpenRequest, Origin, StorageEngine,
};

use super::error::RecoverError;
use super::holdings::{Holdings, newest_snapshot};
use super::report::Progress;
use crate::founding::{self, LOG_BYTES};
use crate::inspect::Directory;
use crate::replacement::copy_records;

/// Payloads are written and synced in groups of about this size: the memory that the copy needs.
const GROUP_BYTES: usize = 4 << 20;
/// Bytes of a stored entry beside its payload, about.
const ENTRY_BYTES: usize = 64;

/// What the new directory takes on the disk.
pub(super) struct Sizes {
    snapshot: u64,
    log: u64,
}

impl Sizes {
    pub(super) fn of(directory: &Directory, holdings: &Holdings) -> Self {
        let snapshot = newest_snapshot(directory).map_or(0, |file| file.len);
        let log = directory.log().segments.iter().map(|segment| segment.end).sum();
        Self { snapshot, log: holdings.after.map_or(0, |_| log) }
    }

    pub(super) fn total(&self) -> u64 {
        self.snapshot.saturating_add(self.log).saturating_add(LOG_BYTES)
    }
}

/// What to build, and from what.
pub(super) struct Work<'a> {
    pub(super) fs: &'a Arc<dyn Fs>,
    /// The empty directory.
    pub(super) dir: &'a Path,
    pub(super) directory: &'a Directory,
    pub(super) holdings: &'a Holdings,
}

/// What was built.
pub(super) struct Built {
    pub(super) cluster: ClusterId,
    pub(super) incarnation: Incarnation,
    pub(super) membership: Membership,
    pub(super) time_ms: u64,
    pub(super) memberships: u64,
}

impl Work<'_> {
    /// Builds snapshot, identity and log, all of it durable.
    pub(super) fn run(
        &self,
        member: Member,
        at_ms: u64,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Built, RecoverError> {
        let random = || founding::random().map_err(RecoverError::Entropy);
        let (cluster, incarnation) = (ClusterId(random()?), Incarnation(random()?));
        let old = self.holdings.hard_state.term.max(self.holdings.last.term);
        let term = founding::term_above(old).map_err(RecoverError::Entropy)?;
        // It is the only voter, so its directory is known from the beginning.
        let member = Member { incarnation: Some(incarnation), ..member };
        let membership = founding::alone(&self.holdings.members, member, term)?;
        let time_ms = self.copy_snapshot(cluster, &membership, progress)?;
        let owner = OpenRequest {
            cluster: Some(cluster),
            node: self.holdings.owner.node,
            group: self.holdings.group,
            initial: membership.clone(),
            fresh_cluster: cluster,
            fresh_incarnation: incarnation,
        };
        let (time_ms, memberships) = self.write_log(&owner, term, at_ms, time_ms, progress)?;
        Ok(Built { cluster, incarnation, membership, time_ms, memberships })
    }

    /// Copies the newest intact snapshot. Returns log time at its end.
    fn copy_snapshot(
        &self,
        cluster: ClusterId,
        membership: &Membership,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u64, RecoverError> {
        let Some(file) = newest_snapshot(self.directory) else { return Ok(0) };
        let source = SnapshotArchive::open_file(&**self.fs, &file.path)?;
        let options = SnapshotOptions::new(cluster, self.holdings.group);
        let dir = self.dir.join(SNAPSHOT_DIR);
        let (store, _) = SnapshotStore::open(Arc::clone(self.fs), &dir, options)?;
        let mut pace = |bytes| progress(Progress::Written(bytes));
        let copied = store.repack(&source, membership.clone(), &mut pace);
        copied.map_err(|error| match error {
            SnapshotError::Aborted => RecoverError::Stopped,
            error => error.into(),
        })?;
        Ok(source.header().facts.time_ms)
    }

    /// Writes the log, in a term that no node of the old cluster has reached. Returns log time at
    /// its end, and how many membership entries became no-ops.
    fn write_log(
        &self,
        owner: &OpenRequest,
        term: Term,
        at_ms: u64,
        time_ms: u64,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(u64, u64), RecoverError> {
        // The node prepares its log itself.
        let options = FileStorageOptions { prepare_bytes: 0, ..FileStorageOptions::default() };
        let engine = FileStorageEngine::new(self.dir, options, Arc::clone(self.fs));
        let mut opened = engine.open(owner)?;
        let survey = self.directory.survey();
        copy_records(survey, &mut *opened.meta)?;
        let log = &mut *opened.log;
        let mut continues = survey.origin().map(|it| it.continues.clone()).unwrap_or_default();
        continues.push((self.holdings.owner.cluster, self.holdings.owner.incarnation));
        engine.set_origin(&Origin { at_ms, continues }, &log.directory_locks())?;
        if let Some(snapshot) = self.holdings.snapshot {
            log.install(owner.group, snapshot, LogSuffix::Drop)?;
        }
        let begins_after = self.holdings.after.unwrap_or(self.holdings.last.index);
        let hard_state = HardState { term, commit: begins_after, ..HardState::default() };
        log.append(owner.group, Some(hard_state), &[])?;
        log.sync()?;
        let mut copy = Copy {
            from: survey.dir(),
            log,
            group: owner.group,
            next: begins_after.next(),
            waiting: Vec::new(),
            bytes: 0,
            time_ms,
            memberships: 0,
        };
        self.copy_entries(&mut copy, progress)?;
        let (time_ms, memberships) = (copy.time_ms, copy.memberships);
        let commit = self.holdings.last.index;
        log.append(owner.group, Some(HardState { commit, ..hard_state }), &[])?;
        log.sync()?;
        // Proves that the last group was complete.
        log.idle()?;
        Ok((time_ms, memberships))
    }

    /// Copies the entries after the snapshot, group by group.
    fn copy_entries(
        &self,
        copy: &mut Copy<'_>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), RecoverError> {
        let last = self.holdings.last;
        if copy.next > last.index {
            return Ok(());
        }
        let mut outcome = Ok(());
        let range = Range { first: copy.next, last: last.index };
        let _early = self.directory.entries(range, &mut |found| {
            // Damage that the snapshot covers lies before the range. Any other leaves a gap.
            let Found::Entry(stored) = found else { return ControlFlow::Continue(()) };
            outcome = copy.take(stored.entry, last, progress);
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        outcome?;
        copy.flush(progress)?;
        match copy.next == last.index.next() {
            true => Ok(()),
            false => Err(copy.changed()),
        }
    }
}

/// The copy of the entries, in progress.
struct Copy<'a> {
    /// The old directory.
    from: &'a Path,
    log: &'a mut dyn LogStore,
    group: GroupId,
    /// The index of the next entry.
    next: LogIndex,
    /// Entries that are not written yet.
    waiting: Vec<LogEntry>,
    bytes: usize,
    /// Log time of the last entry.
    time_ms: u64,
    memberships: u64,
}

impl Copy<'_> {
    fn take(
        &mut self,
        entry: LogEntry,
        last: LogId,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), RecoverError> {
        let is_last = entry.id.index == last.index;
        if entry.id.index != self.next || (is_last && entry.id != last) {
            return Err(self.changed());
        }
        self.next = self.next.next();
        self.time_ms = entry.time_ms;
        self.bytes += entry.data.len() + ENTRY_BYTES;
        self.memberships += u64::from(entry.kind == EntryKind::Membership);
        self.waiting.push(without_members(entry));
        if self.bytes < GROUP_BYTES { Ok(()) } else { self.flush(progress) }
    }

    /// Writes what waits as one group.
    fn flush(
        &mut self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), RecoverError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.log.append(self.group, None, &self.waiting)?;
        self.log.sync()?;
        self.waiting.clear();
        let bytes = std::mem::take(&mut self.bytes) as u64;
        match progress(Progress::Written(bytes)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(RecoverError::Stopped),
        }
    }

    fn changed(&self) -> RecoverError {
        RecoverError::Changed { path: self.from.to_owned(), index: self.next.get() }
    }
}

/// Turns a membership entry into a no-op with the same term, index and time. The nodes that join
/// would meet the old list again, and refuse this node's new directory.
fn without_members(mut entry: LogEntry) -> LogEntry {
    if entry.kind == EntryKind::Membership {
        entry.kind = EntryKind::Noop;
        entry.data.clear();
    }
    entry
}
