//! Recovery of a log that is damaged in a part that nobody needs any more: a whole snapshot of this node holds what was
//! there.
//!
//! The log then begins behind the snapshot, and nothing before the first whole group after the damage is read. Nobody
//! knows what the damaged groups held. It is no more than the snapshot holds if
//!
//! - the entries after the damage go on at or before the one behind the snapshot's last: entries are written in their
//!   order, and a group with a lower index supersedes what was there;
//! - a hard state follows the damage: the last one counts, whatever votes lie before it;
//! - the log of no other group lies there.

use d_engine_core::{GroupId, LogId, LogIndex};

use super::{Place, Recovered, Scan, damaged, recover};
use crate::StorageError;
use crate::frame::{Fault, Position};
use crate::log_record::LogRecord;
use crate::segment::{SegmentHeader, number_of};

/// Damaged places that are passed over at most. With more of them the disk is not to be trusted.
const PLACES_MAX: usize = 64;

/// Reads a log again in which `damage` was found, behind a whole snapshot up to `covered`. Returns what `log.meta` has to
/// say before anything else is done; nothing is changed here.
///
/// # Errors
/// `damage`, if the snapshot does not hold everything that may be lost; or an I/O error.
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
        // The snapshot knows them.
        behind.facts.remove(&group);
    }
    let mut found = damage.clone();
    for _ in 0..PLACES_MAX {
        let StorageError::Damaged { segment, offset, .. } = &found else { return Err(found) };
        let Some(failed) = number_of(segment).map(|segment| Position { segment, offset: *offset }) else {
            break;
        };
        let Some(next) = whole_group_after(place, &behind, failed)? else { break };
        behind.intact_from = next;
        behind.first = next.segment;
        behind.starts.retain(|_, start| start.segment >= next.segment);
        match recover(place, &behind) {
            Ok(recovered) if holds_the_rest(&recovered, group, covered) => {
                return Ok((Recovered { passed_over: Some(damage), ..recovered }, behind));
            }
            Ok(_) => break,
            Err(error) => found = error,
        }
    }
    Err(damage)
}

/// The first whole group behind the place that failed, and behind all that was passed over before. A segment whose own
/// beginning is damaged is passed over as a whole.
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
            Err(Fault::Newer(version)) => return Err(scan.newer(number, version)),
            Err(_) => continue,
        };
        if scan.segment_header(number, &content).is_err() {
            // Somebody else's file, or a renamed one, is no damage.
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

/// Whether what was read after the damage, and the snapshot, are together all that the log held.
fn holds_the_rest(found: &Recovered, group: GroupId, covered: LogId) -> bool {
    let Some(known) = found.groups.get(&group).filter(|_| found.groups.len() == 1) else { return false };
    // A log with another entry in the place of the snapshot's last has been replaced, or will be.
    let fits = known.at_base.is_none_or(|term| term == covered.term);
    let follows = known.entries.front().is_none_or(|(head, _)| head.id.term >= covered.term);
    known.hard_state.is_some() && known.lowest > LogIndex::ZERO && fits && follows
}

/// The snapshot does not reach over the damage: what an operator can do.
pub(crate) fn not_covered(damage: StorageError, covered: Option<LogId>) -> StorageError {
    let (StorageError::Damaged { segment, offset, what }, Some(covered)) = (&damage, covered) else {
        return damage;
    };
    let Some(number) = number_of(segment) else { return damage };
    let what = format!(
        "{what}; this node's newest whole snapshot ends at {covered} and does not hold all that was there"
    );
    damaged(number, *offset, &what)
}
