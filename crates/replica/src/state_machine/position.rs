//! The position of a state machine, and what must hold between it, its snapshots and the log.

use d_engine_core::Term;
use d_engine_storage::snapshot::{SnapshotHeader, SnapshotInfo};
use d_engine_storage::{Membership, RecoveredLog};

use crate::{Durability, LogId, SnapshotMetadata, StateMachine, StopReason};

/// The position in the log whose state the machine holds, with the facts for a snapshot there.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// The last entry whose effect is in the state.
    pub(crate) id: LogId,
    /// Log time at that entry, in UNIX milliseconds.
    pub(crate) time_ms: u64,
    /// The membership at that entry.
    pub(crate) membership: Membership,
    /// The highest command version up to that entry.
    pub(crate) command_version: u32,
}

pub(crate) fn failed(method: &str, error: &crate::Error) -> StopReason {
    let text = format_args!("the state machine's {method} failed: {error}");
    match error.is_out_of_space() {
        true => StopReason::of_full_disk(text),
        false => StopReason::new(text),
    }
}

/// A durable machine stores its position with the data of a chunk. One that reports an earlier
/// position would be given the same commands again at the next start, over data that contains their
/// effect.
pub(crate) fn check_stored(machine: &dyn StateMachine, applied: LogId) -> Result<(), StopReason> {
    if machine.durability() == Durability::Rebuilt {
        return Ok(());
    }
    let stored = machine.last_applied();
    if stored.index >= applied.index {
        return Ok(());
    }
    Err(StopReason::new(format_args!(
        "the state machine declares Durability::Durable and has applied the entry at {applied}, but \
         its last_applied() is {stored}: it must store its position with its data, in one step of \
         apply_chunk(). Its files contain commands that it does not report: remove them before a \
         corrected program is started"
    )))
}

/// A durable machine must not be at an earlier position than the snapshot that it names: it was
/// flushed before that snapshot was reported to it.
pub(crate) fn check_own_snapshot(
    machine: &dyn StateMachine,
    applied: LogId,
) -> Result<(), StopReason> {
    match machine.snapshot_metadata().map(|meta| meta.last_included) {
        Some(last_included) if last_included.index > applied.index => {
            Err(StopReason::new(format_args!(
                "the state machine has applied up to {applied}, but names a snapshot of its state up \
             to {last_included}: it has lost data that it had flushed; restore both from one copy, or \
             remove the state machine's files, so that it begins with the snapshot \
             (docs/snapshots.md)"
            )))
        }
        _ => Ok(()),
    }
}

/// A durable machine's position must lie inside the log. `continued`: the log continues that of
/// another directory by force.
pub(crate) fn check_position(
    machine: &dyn StateMachine,
    applied: LogId,
    recovered: &RecoveredLog,
    continued: bool,
) -> Result<(), StopReason> {
    let term = machine.entry_term(applied.index.get()).map_or(applied.term, Term::new);
    belongs(applied, term, recovered, continued)
}

/// `term` is that of the last applied entry, as the machine knows it.
fn belongs(
    applied: LogId,
    term: Term,
    recovered: &RecoveredLog,
    continued: bool,
) -> Result<(), StopReason> {
    let (base, last) = (recovered.base, recovered.last());
    let advice = if recovered.promised != LogId::ZERO || continued {
        "the log was made by `repair` or `recover`, which may have lost entries; remove the state \
         machine's files, so that it is rebuilt from the snapshot and the log"
    } else {
        "the data directory and the state do not belong together; restore both from one copy \
         (docs/snapshots.md)"
    };
    if applied.index > last.index.get() {
        return Err(StopReason::new(format_args!(
            "the state machine has applied up to {applied}, but the log ends at {last}: {advice}"
        )));
    }
    let in_log = if applied.index == base.index {
        Some(base.term)
    } else {
        let position = applied.index.since(base.index).saturating_sub(1);
        usize::try_from(position)
            .ok()
            .and_then(|at| recovered.entries.get(at))
            .map(|head| head.id.term)
    };
    match in_log {
        Some(in_log) if in_log != term => Err(StopReason::new(format_args!(
            "the state machine has applied entry {} of term {term}, but the log has term {in_log} \
             there: {advice}",
            applied.index
        ))),
        _ => Ok(()),
    }
}

/// The position of a machine that has installed a snapshot. A durable machine must report the same
/// position.
pub(crate) fn installed(
    machine: &dyn StateMachine,
    info: &SnapshotInfo,
) -> Result<Applied, String> {
    let last_included = info.last_included();
    if machine.durability() == Durability::Durable && machine.last_applied() != last_included {
        let says = machine.last_applied();
        return Err(format!(
            "the state machine reports last_applied {says} after it has installed a snapshot up to \
             {last_included}"
        ));
    }
    let facts = &info.header.facts;
    Ok(Applied {
        id: last_included,
        time_ms: facts.time_ms,
        membership: facts.membership.clone(),
        command_version: facts.command_version,
    })
}

/// The metadata of an archive for a state machine.
pub(crate) fn metadata_of(info: &SnapshotInfo) -> SnapshotMetadata {
    metadata_in(&info.header)
}

/// The same for a header.
pub(crate) fn metadata_in(header: &SnapshotHeader) -> SnapshotMetadata {
    let facts = &header.facts;
    SnapshotMetadata::new(facts.last_included, facts.checksum).with_format(facts.user_format)
}

#[cfg(test)]
mod tests {
    use d_engine_core::EntryKind;
    use d_engine_storage::EntryHead;

    use super::*;

    /// Entries 1 to 3 of term 2.
    fn log(promised: LogId) -> RecoveredLog {
        let head = |index| EntryHead {
            id: LogId::of(2, index),
            kind: EntryKind::Command,
            time_ms: 1,
            version: 0,
            data_len: 0,
        };
        RecoveredLog { entries: (1..=3).map(head).collect(), promised, ..RecoveredLog::default() }
    }

    #[test]
    fn a_position_outside_of_the_log_is_refused_with_what_to_do() {
        let refused = |index, term, promised, continued| {
            let applied = LogId::of(term, index);
            let checked = belongs(applied, Term::new(term), &log(promised), continued);
            checked.err().map(|reason| reason.to_string())
        };
        assert_eq!(refused(3, 2, LogId::ZERO, false), None);
        assert_eq!(refused(3, 2, LogId::of(2, 9), true), None);
        for (index, term, what) in [(4, 2, "the log ends at index 3"), (3, 1, "the log has term 2")]
        {
            let reason = refused(index, term, LogId::ZERO, false).unwrap_or_default();
            assert!(reason.contains(what) && reason.contains("from one copy"), "{reason}");
            for (promised, continued) in [(LogId::of(2, 9), false), (LogId::ZERO, true)] {
                let reason = refused(index, term, promised, continued).unwrap_or_default();
                assert!(reason.contains(what) && reason.contains("remove the state"), "{reason}");
            }
        }
    }
}
