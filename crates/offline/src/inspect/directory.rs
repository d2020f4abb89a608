//! A whole data directory.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use d_engine_fs::Fs;
use d_engine_storage::survey::{Found, LogSummary, Range, Survey};

use super::members::{self, KnownMembers};
use super::report::{InspectError, Progress, Snapshots};
use super::snapshots::{self, SnapshotFile};

/// A data directory, read once from its beginning to its end.
#[derive(Debug)]
pub struct Directory {
    pub(super) survey: Survey,
    pub(super) log: LogSummary,
    pub(super) snapshots: Vec<SnapshotFile>,
    pub(super) leftovers: Vec<String>,
    pub(super) members: Option<KnownMembers>,
}

impl Directory {
    /// Reads the directory `dir` of `fs`: the small records, the snapshots, then the whole log.
    /// `progress` is called after every piece, and ends the work by `Break`. Its memory is bounded
    /// by the largest write group or snapshot header.
    ///
    /// # Errors
    /// [`InspectError`]. Damage is part of the result.
    pub fn read(
        fs: Arc<dyn Fs>,
        dir: &Path,
        which: Snapshots,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self, InspectError> {
        Self::of(Survey::of(fs, dir)?, which, progress)
    }

    pub(crate) fn of(
        survey: Survey,
        which: Snapshots,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self, InspectError> {
        if survey.is_empty() && survey.reserved().is_none() {
            return Err(InspectError::NotADirectory { path: survey.dir().to_owned() });
        }
        let (snapshots, leftovers) = snapshots::find(&survey, which, progress)?;
        let covered = snapshots.iter().find(|it| it.state.may_be_used()).and_then(|it| it.id());
        let mut is_stopped = false;
        let log = survey.read_log(covered, &mut |bytes| {
            let flow = progress(Progress::Log(bytes));
            is_stopped = flow.is_break();
            flow
        })?;
        if is_stopped {
            return Err(InspectError::Stopped);
        }
        let members = members::known(&survey, &log, &snapshots);
        Ok(Self { survey, log, snapshots, leftovers, members })
    }

    /// Returns whose the directory is, and what is beside the log.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Returns what is known of the log.
    #[must_use]
    pub fn log(&self) -> &LogSummary {
        &self.log
    }

    /// Returns the finished snapshots, newest first; those without a readable header last.
    #[must_use]
    pub fn snapshots(&self) -> &[SnapshotFile] {
        &self.snapshots
    }

    /// Returns the names of unfinished files and directories beside the snapshots: a snapshot that
    /// is received or built, or what a crash has left of one.
    #[must_use]
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// Returns the members that the log has at its end.
    #[must_use]
    pub fn members(&self) -> Option<&KnownMembers> {
        self.members.as_ref()
    }

    /// Returns the number of damaged places: in the records, in the snapshots, and in the log.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        let records = self.survey.damage().len() as u64;
        let snapshots = self.snapshots.iter().filter(|it| it.state.is_damage()).count() as u64;
        records + snapshots + self.log.damaged
    }

    /// Visits the entries in `range` that count, in order, and the damaged places of the log
    /// between them. Returns whether `visit` has let it come to its end.
    ///
    /// # Errors
    /// [`InspectError::Directory`]. Damage is visited.
    pub fn entries(
        &self,
        range: Range,
        visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, InspectError> {
        let mut flow = ControlFlow::Continue(());
        // That the range is complete is no reason to stop.
        let _whole = self.survey.entries(&self.log, range, &mut |found| {
            flow = visit(found);
            flow
        })?;
        Ok(flow)
    }
}
