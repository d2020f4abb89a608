//! Mends the log of a stopped node in which a part in the middle is damaged, without ever letting
//! the node vote as if it had not had that part.
//!
//! The new log is the old one as it was just before the first damaged place, or the newest intact
//! snapshot if that has more. The hard state is the last one of the old log, which must follow the
//! damage: otherwise a vote may be lost, and two leaders could be elected in one term. The last
//! entry that the old log had is stored as the node's promise (`Repaired`): until its log has
//! reached that entry again, the node votes as if it had it, and does not lead (Alagappan et al.,
//! "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018). The leader sends what is
//! missing.
//!
//! The term rises by one, without a vote. A leader that still counts the lost entries as stored
//! here learns of the later term, and the next leader counts from nothing. It costs an election.
//!
//! A log that begins after the end of every intact snapshot needs one of another node first. The
//! caller fetches it; the repair verifies it and puts it beside the others. A snapshot holds
//! committed entries only, so neither the log nor a promise changes with it.
//!
//! The new directory is built beside the old one (`.repairing`); the old one is retired, so that no
//! node, and no second repair, ever goes on from it; the snapshots move over; the old one is
//! renamed away and kept, and the new one takes its name. After a crash the same command begins
//! anew or finishes the work. Meanwhile no node starts there.

mod build;
mod error;
mod fetch;
mod place;
mod plan;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

pub use d_engine_core::{LogId, LogIndex, NodeId};
use d_engine_fs::Fs;
use d_engine_storage::survey::{LogSummary, Owner, Survey};
use d_engine_storage::{DirectoryLocks, Retired, RetiredBy};

pub use self::error::{Cause, RepairError};
pub use self::fetch::{Fetch, MissingSnapshot};
use self::place::Place;
pub use self::place::{BEFORE_INFIX, UNFINISHED_SUFFIX};
pub use self::plan::Plan;
use crate::inspect::{Directory, InspectError, Progress as Reading, Snapshots};
pub use crate::recover::Progress;

/// What to repair.
#[derive(Clone, Debug)]
pub struct RepairRequest {
    /// The data directory of the node. The mended one takes its place.
    pub data_dir: PathBuf,
    /// The time on the machine's clock, in UNIX milliseconds. It names the old directory.
    pub at_ms: u64,
}

/// A mended directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RepairedDirectory {
    /// Whose it is.
    pub owner: Owner,
    /// The last entry of the snapshot that was fetched, if one was missing.
    pub fetched: Option<LogId>,
    /// What was done to the log.
    pub log: RepairedLog,
}

/// What was done to the log of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RepairedLog {
    /// Nothing: it is intact, or the fetched snapshot holds what is damaged.
    Kept,
    /// It was mended.
    Mended {
        /// How; `None` if an earlier run had done it and this one has only put the directory into
        /// its place.
        plan: Option<Plan>,
        /// Where the old directory is now. Remove it once the node has caught up.
        old_dir: PathBuf,
    },
}

/// Mends the directory of a stopped node. Everything is durable when the call returns. `fetch` is
/// called if the log begins after the end of every intact snapshot; without it, such a directory is
/// refused. `progress` may end the work until the old directory is renamed. Blocks; needs no
/// runtime and no state machine.
///
/// The files of a state machine inside of the data directory stay in the old one, if the log is
/// mended: its state is rebuilt from snapshot and log.
///
/// # Errors
/// See [`RepairError`]. Except after [`RepairError::NotFinished`], the directory is as it was, but
/// for a snapshot that was fetched.
pub fn repair(
    fs: &Arc<dyn Fs>,
    request: &RepairRequest,
    fetch: Option<Fetch<'_>>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RepairedDirectory, RepairError> {
    let place = Place::of(fs, &request.data_dir)?;
    if let Some((owner, old_dir)) = place.finish_earlier()? {
        let log = RepairedLog::Mended { plan: None, old_dir };
        return Ok(RepairedDirectory { owner, fetched: None, log });
    }
    let locks = place.lock_old()?;
    let (mut directory, mut before, mut plan) = look(&place, &locks, progress)?;
    let mut fetched = None;
    // Nothing else speaks against the repair.
    if let (Err(Cause::NoSnapshot { .. }), Some(missing), Some(fetch)) =
        (&plan, MissingSnapshot::of(&directory), fetch)
    {
        fetched = Some(missing.get(fs, fetch, &mut |bytes| progress(Progress::Read(bytes)))?);
        (directory, before, plan) = look(&place, &locks, progress)?;
    }
    let cannot = |cause| RepairError::Cannot { path: place.old.clone(), cause };
    let plan = match (plan, directory.survey().owner()) {
        (Err(Cause::Intact | Cause::Covered), Some(owner)) if fetched.is_some() => {
            return Ok(RepairedDirectory { owner, fetched, log: RepairedLog::Kept });
        }
        (plan, _) => plan.map_err(cannot)?,
    };
    place.check_space(build::needed(&directory))?;
    let marker = place.begin()?;
    let work = build::Work { fs, dir: &place.new, directory: &directory, before: &before };
    let built = work.run(&plan, request.at_ms, progress).and_then(|()| Ok(place.sync(&place.new)?));
    if let Err(error) = built {
        // If it cannot be removed now, the next run removes it.
        place.clear_new().ok();
        return Err(error);
    }
    let retired = Retired {
        at_ms: request.at_ms,
        by: RetiredBy::Repair,
        cluster: plan.owner.cluster,
        incarnation: plan.owner.incarnation,
        successor: place.old.display().to_string(),
    };
    let old_dir = place.swap(&retired, &locks)?;
    drop(marker);
    let log = RepairedLog::Mended { plan: Some(plan), old_dir };
    Ok(RepairedDirectory { owner: plan.owner, fetched, log })
}

/// Reads the directory, and the log up to the first damaged place, and decides.
fn look(
    place: &Place<'_>,
    locks: &DirectoryLocks,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(Directory, LogSummary, Result<Plan, Cause>), RepairError> {
    let survey = Survey::of_locked(Arc::clone(place.fs), &place.old, locks)?;
    let directory = Directory::of(survey, Snapshots::Verify, &mut |read| {
        let (Reading::Log(bytes) | Reading::Snapshot(bytes)) = read;
        progress(Progress::Read(bytes))
    })?;
    let before =
        directory.survey().read_log_before_damage(&mut |bytes| progress(Progress::Read(bytes)))?;
    if progress(Progress::Read(0)).is_break() {
        return Err(InspectError::Stopped.into());
    }
    let plan = Plan::of(&directory, &before)?;
    Ok((directory, before, plan))
}
