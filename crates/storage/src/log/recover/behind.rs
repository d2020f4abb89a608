//! Recovery of a log whose damaged part is no longer needed, because a whole snapshot of this node
//! contains it.
//!
//! The log then begins after the snapshot, and nothing before the first whole group after the
//! damage is read. The content of the damaged groups is unknown. The snapshot contains all of it if
//!
//! - the entries after the damage continue at or before the index after the snapshot's last
//!   included entry: entries are written in order, and a group with a lower index supersedes later
//!   entries that were there;
//! - a hard state follows the damage: the last one counts, whatever votes the damage contained;
//! - the directory contains the log of no other Raft group.

use d_engine_core::{GroupId, LogId, LogIndex};

use super::{Place, Recovered, Scan, damaged, recover};
use crate::StorageError;
use crate::log::frame::{Fault, Position};
use crate::log::record::LogRecord;
use crate::log::segment::SegmentHeader;
use crate::log::segment_name::number_of;

/// The most damaged places that are skipped. With more of them the disk must not be trusted.
pub(crate) const PLACES_MAX: usize = 64;

/// Reads a log again in which `damage` was found, beginning after a whole snapshot up to `covered`.
/// Also returns the record that `log.meta` must hold before any other change. Changes nothing
/// itself.
///
/// # Errors
/// `damage`, if the snapshot does not contain everything that may be lost; or an I/O error.
pub(crate) fn recover_behind(
    place: &Place<'_>,
    record: &LogRecord,
    covered: LogId,
    damage: StorageError,
) -> Result<(Recovered, LogRecord), StorageError> {
    let group = place.identity.group;
    let base = record.bases.get(&group).copied().unwrap_or_default();
    if covered.index < base.index || record.bases.keys().any(|known| *known != group) {
        return Err(damage);
    }
    let mut behind = record.clone();
    behind.bases.insert(group, covered);
    if covered != base {
        // These facts come from the snapshot.
        behind.facts.remove(&group);
    }
    let mut found = damage.clone();
    for _ in 0..PLACES_MAX {
        let StorageError::Damaged { segment, offset, .. } = &found else { return Err(found) };
        let Some(failed) = number_of(segment).map(|segment| Position { segment, offset: *offset })
        else {
            break;
        };
        let Some(next) = whole_group_after(place, &behind, failed)? else { break };
        behind.intact_from = next;
        behind.first = next.segment;
        behind.starts.retain(|_, start| start.segment >= next.segment);
        match recover(place, &behind) {
            Ok(recovered) if holds_the_rest(&recovered, group, covered) => {
                return Ok((Recovered { skipped_corruption: Some(damage), ..recovered }, behind));
            }
            Ok(_) => break,
            Err(error) => found = error,
        }
    }
    Err(damage)
}

/// Returns the first whole group after the place that failed and after everything skipped
/// before. A segment whose own beginning is damaged is skipped as a whole.
fn whole_group_after(
    place: &Place<'_>,
    record: &LogRecord,
    failed: Position,
) -> Result<Option<Position>, StorageError> {
    let scan = Scan::new(place, record)?;
    let passed = failed.max(record.intact_from);
    for number in scan.files.range(passed.segment..).map(|(number, _)| *number) {
        let content = scan.content(number)?;
        let header = match SegmentHeader::decode(&content) {
            Ok(header) => header,
            Err(Fault::Version(version)) => return Err(scan.unsupported(number, version)),
            Err(_) => continue,
        };
        if scan.segment_header(number, &content).is_err() {
            // A file of another owner, or a renamed one, is not damage.
            return Ok(None);
        }
        let begin = header.alignment.bytes();
        if number > passed.segment {
            return Ok(Some(Position { segment: number, offset: begin as u64 }));
        }
        let from = usize::try_from(passed.offset).unwrap_or(usize::MAX);
        if from <= begin {
            continue;
        }
        let boundary = from.checked_next_multiple_of(begin).unwrap_or(usize::MAX);
        for at in (boundary..content.len()).step_by(begin).filter(|at| *at > from) {
            match scan.group_at(number, &header, &content, at) {
                Ok(Ok(_)) => return Ok(Some(Position { segment: number, offset: at as u64 })),
                Ok(Err(_)) | Err(StorageError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Whether the entries after the damage and the snapshot together are all that the log held.
fn holds_the_rest(found: &Recovered, group: GroupId, covered: LogId) -> bool {
    let Some(known) = found.groups.get(&group).filter(|_| found.groups.len() == 1) else {
        return false;
    };
    // If the log has an entry of another term at the snapshot's last included index, that entry has
    // been replaced, or will be.
    let fits = known.at_base.is_none_or(|term| term == covered.term);
    let follows = known.entries.front().is_none_or(|(head, _)| head.id.term >= covered.term);
    known.hard_state.is_some() && known.lowest > LogIndex::ZERO && fits && follows
}

/// Adds to `damage` that the snapshot does not contain the damaged part, for the operator.
pub(crate) fn not_covered(damage: StorageError, covered: Option<LogId>) -> StorageError {
    let (StorageError::Damaged { segment, offset, what }, Some(covered)) = (&damage, covered)
    else {
        return damage;
    };
    let Some(number) = number_of(segment) else { return damage };
    let what = format!(
        "{what}; the newest whole snapshot of this node ends at {covered} and does not contain \
         everything that the damaged part may have held"
    );
    damaged(number, *offset, &what)
}
