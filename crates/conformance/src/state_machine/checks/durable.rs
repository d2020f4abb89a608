//! Checks of `Durable` machines: what is on disk after a drop, a kill or a flipped bit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use d_engine_state_machine::StateMachine;
use tempfile::TempDir;

use super::snapshots::files_in;
use super::{Found, REBUILT, SOME, flush, skipped};
use crate::state_machine::{StateMachineCase, Subject, id, io, states};

/// A `Durable` machine receives chunks that it has already applied, in part or in full, also after
/// a reopen. The rule: entries up to `last_applied()` are ignored.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn what_is_applied_already_changes_nothing<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let states = states(case, SOME)?;
    let mut subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    subject.apply(1, 10)?;
    subject.apply(4, 10)?;
    subject.holds(
        &states[10],
        "after entries 4 to 10 were delivered again (apply_chunk() must ignore entries up to \
         last_applied())",
    )?;
    subject.apply(8, 14)?;
    subject.holds(
        &states[14],
        "after entries 8 to 10 were delivered again with new ones (apply_chunk() must ignore \
         entries up to last_applied())",
    )?;
    flush(&subject)?;
    subject.reopen()?;
    subject.halted_at(14, "after it was reopened")?;
    subject.apply(1, 14)?;
    subject.holds(
        &states[14],
        "after it was reopened and entries 1 to 14 were delivered again (apply_chunk() must ignore \
         entries up to last_applied())",
    )?;
    subject.apply(12, SOME)?;
    subject.holds(
        &states[usize::try_from(SOME).unwrap_or(0)],
        "after entries 12 to 14 were delivered again with new ones (apply_chunk() must ignore \
         entries up to last_applied())",
    )
}

/// A `Durable` machine's process is killed right after `flush`. The rule: everything flushed is in
/// the files.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn flushed_is_in_the_files<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 12)?;
    let subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    for last in [5, 12] {
        subject.apply(if last == 5 { 1 } else { 6 }, last)?;
        flush(&subject)?;
        let killed = subject.killed()?;
        let when = format!(
            "after flush() at {} and a kill of the process (flush() must write everything to the \
             files)",
            id(last)
        );
        killed.halted_at(last, &when)?;
        killed.holds(&states[usize::try_from(last).unwrap_or(0)], &when)?;
    }
    Ok(())
}

/// A `Durable` machine is dropped without `stop` and without `flush`. The rule: `Drop` flushes.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn drop_flushes<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 7)?;
    let mut subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    subject.apply(1, 7)?;
    subject.reopen()?;
    subject.halted_at(7, "after it was dropped without stop() and reopened (Drop must flush)")?;
    subject.holds(&states[7], "after it was dropped without stop() and reopened (Drop must flush)")
}

/// A `Durable` machine's process is killed between chunks, flushed or not. The rule: its position
/// describes exactly the data that survived.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn position_and_data_are_stored_together<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    for chunk in 0..SOME / 3 {
        let last = chunk * 3 + 3;
        subject.apply(chunk * 3 + 1, last)?;
        if chunk == 4 {
            subject
                .machine()
                .persist_last_applied(id(last))
                .map_err(|error| format!("persist_last_applied() failed: {error}"))?;
        }
        let killed = subject.killed()?;
        let position = killed.machine().last_applied().index.get();
        let state = usize::try_from(position).ok().and_then(|at| states.get(at));
        let Some(state) = state.filter(|_| position <= last) else {
            return Err(format!(
                "after a kill at {}, last_applied() is {position}; it must not be beyond the last \
                 applied entry",
                id(last)
            ));
        };
        killed.holds(
            state,
            &format!(
                "after a kill at {}, last_applied() is index {position} (data and position must be \
                 stored atomically); there",
                id(last)
            ),
        )?;
        // The engine delivers the missing entries again, from `last_applied()`.
        if position < last {
            killed.apply(position + 1, last)?;
        }
        killed.holds(
            &states[usize::try_from(last).unwrap_or(0)],
            "after a kill and redelivery of every entry after last_applied() (data and position \
             must be stored atomically)",
        )?;
    }
    Ok(())
}

/// The engine may call `update_last_applied` with an index lower than the machine's own after a
/// start.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn the_position_never_goes_back<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    subject.apply(1, 5)?;
    for told in [8, 6] {
        subject.machine().update_last_applied(id(told));
    }
    subject.halted_at(
        8,
        "after update_last_applied() with 8 and then 6 (the position must never go back)",
    )
}

/// How many positions in each file have a bit flipped.
const FLIPS: usize = 150;

/// One bit of the machine's files is flipped. The machine must refuse to start, discard the state,
/// or serve and snapshot exactly the right state. Needs [`StateMachineCase::notices_flipped_bits`].
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn flipped_bits_are_noticed<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    if !case.notices_flips {
        return skipped("the case does not call `notices_flipped_bits`");
    }
    let states = states(case, SOME)?;
    let mut subject = Subject::new(case)?;
    subject.apply(1, SOME)?;
    flush(&subject)?;
    subject.machine = None;
    let home = subject.home();
    let mut files = Vec::new();
    files_in(&home, &mut files).map_err(io)?;
    for (len, path) in files.iter().filter(|(len, _)| *len > 0) {
        let len = usize::try_from(*len).unwrap_or(usize::MAX);
        for at in (0..len).step_by((len / FLIPS).max(1)) {
            let dir = tempfile::tempdir().map_err(io)?;
            let copy = dir.path().join("machine");
            crate::copy::copy_dir(&home, &copy).map_err(io)?;
            let file = copy.join(path.strip_prefix(&home).unwrap_or(path));
            let mut bytes = std::fs::read(&file).map_err(io)?;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (at % 8);
            }
            std::fs::write(&file, bytes).map_err(io)?;
            let looked = catch_unwind(AssertUnwindSafe(|| looks_right(case, dir, &states)));
            // A machine that panics serves nothing either.
            if let Ok(Err(found)) = looked {
                let name = path.file_name().unwrap_or_default().display();
                return Err(format!(
                    "with a bit flipped in byte {at} of {name}, {found}. Verify a checksum when \
                     the file is read"
                ));
            }
        }
    }
    Ok(())
}

/// What a machine serves after the flip, if it starts.
fn looks_right<M: StateMachine>(
    case: &StateMachineCase<M>,
    dir: TempDir,
    states: &[Vec<u8>],
) -> Found {
    let Ok(subject) = Subject::at(case, dir) else { return Ok(()) };
    let position = subject.machine().last_applied().index.get();
    let Some(expected) = usize::try_from(position).ok().and_then(|at| states.get(at)) else {
        return Err(format!("last_applied() is {position}, which was never reached"));
    };
    subject.holds(expected, "it starts, and after that")?;
    if position == 0 {
        return Ok(());
    }
    for way in [Subject::snapshot, Subject::generate] {
        // The engine handles an error.
        let Ok((files, meta)) = way(&subject, position) else { continue };
        let target = Subject::new(case)?;
        if target.install(&meta, files.path()).is_ok() {
            target.holds(expected, "it writes a snapshot, and after that is installed")?;
        }
    }
    Ok(())
}
