//! What a new cluster could have of one directory.

use std::ops::ControlFlow;

use d_engine_core::{GroupId, HardState, LogId, LogIndex};
use d_engine_storage::survey::{Found, Owner, Range};
use d_engine_storage::{Membership, MembershipError};

use super::error::Unfit;
use crate::inspect::{Directory, InspectError, SnapshotFile, Verdict};

/// What a directory holds that can be recovered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holdings {
    /// Whose it is.
    pub owner: Owner,
    /// Its Raft group.
    pub group: GroupId,
    /// The last term, vote and known commit index.
    pub hard_state: HardState,
    /// The last entry, in the log or in the snapshot.
    pub last: LogId,
    /// The last entry that the log may have had before it was repaired, if it has not reached that
    /// entry since: what is missing may have been acknowledged.
    pub promised: Option<LogId>,
    /// The last entry that is known to be committed.
    pub committed: LogIndex,
    /// The newest intact snapshot.
    pub snapshot: Option<LogId>,
    /// The newest configuration that can be read: of the log, else of the snapshot, else of the
    /// cluster's birth. It may not be committed.
    pub members: Membership,
    /// The entries to take over begin after this index. They are none if the snapshot was received
    /// and the log was not yet restarted after it.
    pub(super) after: Option<LogIndex>,
}

impl Holdings {
    /// Returns what can be recovered from the directory, or why nothing can.
    ///
    /// # Errors
    /// The log cannot be read a second time.
    pub fn of(directory: &Directory) -> Result<Result<Self, Unfit>, InspectError> {
        let (survey, log) = (directory.survey(), directory.log());
        if let Some(retired) = survey.retired() {
            return Ok(Err(Unfit::Retired(Box::new(retired.clone()))));
        }
        match directory.verdict() {
            Verdict::Starts | Verdict::StartsAfter { .. } => {}
            Verdict::InUse { holder } => return Ok(Err(Unfit::InUse { holder })),
            Verdict::Joins => return Ok(Err(Unfit::NeverJoined)),
            Verdict::Refuses { reason, .. } => return Ok(Err(Unfit::Damaged { reason })),
        }
        let Some(owner) = survey.owner() else { return Ok(Err(Unfit::NeverJoined)) };
        let members = match newest_members(directory) {
            Err(error) => return Ok(Err(Unfit::Damaged { reason: error.to_string() })),
            Ok(members) if members.is_nobody() => return Ok(Err(Unfit::NeverJoined)),
            Ok(members) => members,
        };
        let hard_state = log.hard_state.unwrap_or_default();
        let base = log.base.unwrap_or_default();
        let snapshot = newest_snapshot(directory).and_then(SnapshotFile::id);
        let (after, last) = match snapshot {
            None => (Some(base.index), log.last.unwrap_or(base)),
            Some(snapshot) if follows(directory, snapshot)? => {
                let last = log.last.filter(|last| last.index > snapshot.index);
                (Some(snapshot.index), last.unwrap_or(snapshot))
            }
            Some(snapshot) => (None, snapshot),
        };
        let in_snapshot = snapshot.map_or(LogIndex::ZERO, |snapshot| snapshot.index);
        let committed = hard_state.commit.max(base.index).max(in_snapshot).min(last.index);
        let group = survey.group();
        let promised = survey.repaired().map(|it| it.promised).filter(|it| *it > last);
        Ok(Ok(Self {
            owner,
            group,
            hard_state,
            last,
            promised,
            committed,
            snapshot,
            members,
            after,
        }))
    }

    /// How many of its last entries are not known to be committed.
    #[must_use]
    pub fn not_known_committed(&self) -> u64 {
        self.last.index.get().saturating_sub(self.committed.get())
    }
}

pub(super) fn newest_snapshot(directory: &Directory) -> Option<&SnapshotFile> {
    directory.snapshots().iter().find(|file| file.state.may_be_used())
}

/// The newest configuration: a received snapshot may have a later one than the log.
pub(crate) fn newest_members(directory: &Directory) -> Result<Membership, MembershipError> {
    let known = directory
        .members()
        .map_or_else(|| Ok(Membership::nobody()), |known| known.membership.clone())?;
    let header = newest_snapshot(directory).and_then(|file| file.header.as_ref());
    let in_snapshot = header.map(|header| &header.facts.membership);
    Ok(in_snapshot.filter(|it| it.id() > known.id()).cloned().unwrap_or(known))
}

/// Whether the log continues after the snapshot. If it does not, the snapshot was received and the
/// log was not yet restarted after it: a start drops the log then.
fn follows(directory: &Directory, snapshot: LogId) -> Result<bool, InspectError> {
    let base = directory.log().base.unwrap_or_default();
    if snapshot.index <= base.index {
        return Ok(snapshot == base);
    }
    let mut found = None;
    let range = Range { first: snapshot.index, last: snapshot.index };
    let _early = directory.entries(range, &mut |it| match it {
        Found::Entry(stored) => {
            found = Some(stored.entry.id);
            ControlFlow::Break(())
        }
        Found::Damage(_) => ControlFlow::Continue(()),
    })?;
    // The log may begin after damage that the snapshot covers, with the entry after it.
    let follows_damage = matches!(directory.verdict(), Verdict::StartsAfter { .. });
    Ok(found.map_or(follows_damage, |id| id == snapshot))
}
