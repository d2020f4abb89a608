//! What a node applies.
//!
//! - "applied is committed": nothing is applied that is not committed.
//! - "applied is stored": nothing is applied that the node's own disk does not hold.

use d_engine_core::{LogIndex, Term};
use d_engine_replica::{ApplyJob, ApplySource};

use crate::monitors::committed::Committed;
use crate::monitors::disks::Disk;
use crate::monitors::violation::{Rule, Violation};

/// Checks the entries that a node is about to apply.
///
/// # Errors
/// The rule that is broken.
pub(crate) fn check(
    node: u64,
    job: &ApplyJob,
    committed: &Committed,
    disk: &Disk,
) -> Result<(), Violation> {
    let (last, terms): (LogIndex, Vec<(LogIndex, Term)>) = match &job.source {
        ApplySource::Stored(_, last) => (*last, Vec::new()),
        ApplySource::Snapshot(last_included) => {
            (last_included.index, vec![(last_included.index, last_included.term)])
        }
        ApplySource::Entries(entries) => (
            entries.last().map_or(LogIndex::ZERO, |entry| entry.id.index),
            entries.iter().map(|entry| (entry.id.index, entry.id.term)).collect(),
        ),
    };
    if last.get() > committed.len() {
        return Rule::AppliedIsCommitted.broken_by(
            node,
            format_args!("node {node} applies up to index {last}, which is not committed"),
        );
    }
    for (index, term) in terms {
        if committed.term_at(index) != Some(term.get()) {
            return Rule::AppliedIsCommitted.broken_by(
                node,
                format_args!("node {node} applies another entry, of term {term}, at {index}"),
            );
        }
    }
    let on_disk = disk.last();
    if last.get() > on_disk {
        return Rule::AppliedIsStored.broken_by(
            node,
            format_args!("node {node} applies up to {last}, but its disk ends at {on_disk}"),
        );
    }
    Ok(())
}
