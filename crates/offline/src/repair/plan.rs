//! What of a damaged log is kept, and what the node has promised.

use std::ops::ControlFlow;

use d_engine_core::{HardState, LogId, LogIndex};
use d_engine_storage::survey::{Found, LogSummary, Owner, Range, StartOutcome};

use super::error::{Cause, RepairError};
use super::fetch::MissingSnapshot;
use crate::inspect::{Directory, SnapshotFile};
use crate::recover::newest_members;

/// How a directory is mended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Whose it is.
    pub owner: Owner,
    /// The snapshot after which the new log begins.
    pub snapshot: Option<LogId>,
    /// The last entry of the new log, or of the snapshot.
    pub kept: LogId,
    /// The last entry of the old log, or a later one that an earlier repair has promised. The node
    /// does not lead before it has it again.
    pub promised: LogId,
    /// The term, vote and commit index of the new log.
    pub hard_state: HardState,
    /// Whether entries of the old log follow the snapshot in the new one.
    pub(super) takes_entries: bool,
}

impl Plan {
    /// Decides. `before` is the log before the first damaged place.
    ///
    /// # Errors
    /// The log cannot be read a second time. The inner error is why it is not mended.
    pub(super) fn of(
        directory: &Directory,
        before: &LogSummary,
    ) -> Result<Result<Self, Cause>, RepairError> {
        let (survey, log) = (directory.survey(), directory.log());
        let owner = survey.owner();
        let node = owner.map_or_else(|| "N".to_owned(), |owner| owner.node.to_string());
        let refused = |reason: String, node: String| Ok(Err(Cause::Refused { reason, node }));
        if let Some(retired) = survey.retired() {
            return Ok(Err(Cause::Retired(Box::new(retired.clone()))));
        }
        let (Some(owner), Some(_)) = (owner, survey.identity()) else {
            return refused("its identity cannot be read".to_owned(), node);
        };
        if let Some(refusal) = survey.refusal() {
            return refused(refusal.to_string(), node);
        }
        match &log.start {
            StartOutcome::Whole => {
                let missing = MissingSnapshot::of(directory);
                return Ok(Err(missing.map_or(Cause::Intact, |missing| missing.cause())));
            }
            StartOutcome::After(_) => return Ok(Err(Cause::Covered)),
            StartOutcome::Refused(_) => {}
        }
        let last_hard_state = log.hard_state.filter(|_| !log.hard_state_may_be_older);
        let (Some(hard_state), Some(promised)) = (last_hard_state, log.last) else {
            return Ok(Err(Cause::VoteMayBeLost { node }));
        };
        // An earlier repair may have promised more than the log has reached since.
        let promised = survey.repaired().map_or(promised, |it| it.promised.max(promised));
        if !log.continues_after_damage {
            return Ok(Err(Cause::VoteMayBeLost { node }));
        }
        let members = match newest_members(directory) {
            Ok(members) if !members.is_nobody() => members,
            _ => return refused("its members cannot be read".to_owned(), node),
        };
        if members.configuration().is_sole_voter(owner.node) {
            return Ok(Err(Cause::SoleVoter { node }));
        }
        let Some(base) = log.base else {
            return refused("log.meta cannot be read".to_owned(), node);
        };
        if let Some(missing) = MissingSnapshot::of(directory) {
            return Ok(Err(missing.cause()));
        }
        let intact = directory.snapshots().iter().find(|file| file.state.may_be_used());
        let snapshot = intact.and_then(SnapshotFile::id);
        let begin = snapshot.unwrap_or(LogId::ZERO);
        let takes_entries = begin == base || has(directory, before, begin)?;
        let last = before.last.filter(|last| takes_entries && last.index > begin.index);
        let kept = last.unwrap_or(begin);
        // Entries before the damage that were replaced in it must not be taken for committed ones:
        // only what was known at that time counts.
        let commit = before.hard_state.map_or(LogIndex::ZERO, |state| state.commit);
        let Some(term) = hard_state.term.checked_next() else {
            return refused("its term cannot rise any more".to_owned(), node);
        };
        let hard_state = HardState {
            // No vote was given in it.
            term,
            vote: None,
            commit: commit.max(begin.index).min(kept.index),
            ..hard_state
        };
        Ok(Ok(Self { owner, snapshot, kept, promised, hard_state, takes_entries }))
    }
}

/// Whether the log before the damage has this entry.
fn has(directory: &Directory, before: &LogSummary, id: LogId) -> Result<bool, RepairError> {
    let mut found = false;
    let range = Range { first: id.index, last: id.index };
    let _early = directory.survey().entries(before, range, &mut |it| match it {
        Found::Entry(stored) => {
            found = stored.entry.id == id;
            ControlFlow::Break(())
        }
        Found::Damage(_) => ControlFlow::Continue(()),
    })?;
    Ok(found)
}
