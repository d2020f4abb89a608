//! Machines that keep their state by themselves: what is there after an end of any kind.

use std::panic::{AssertUnwindSafe, catch_unwind};

use d_engine_replica::StateMachine;
use tempfile::TempDir;

use super::snapshots::files_in;
use super::{Found, REBUILT, SOME, flush, skipped};
use crate::state_machine::{StateMachineCase, Subject, id, io, states};

/// A `Durable` machine gets chunks again that it has, in part or as a whole, also after it was opened again.
///
/// # Errors
/// What was found.
pub fn what_is_applied_already_changes_nothing<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let mut subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    subject.apply(1, 10)?;
    subject.apply(4, 10)?;
    subject.holds(&states[10], "after entries 4 to 10 were delivered again")?;
    subject.apply(8, 14)?;
    subject.holds(&states[14], "after entries 8 to 10 were delivered again with new ones")?;
    flush(&subject)?;
    subject.reopen()?;
    subject.stands_at(14, "after it was opened again")?;
    subject.apply(1, 14)?;
    subject.holds(&states[14], "after it was opened again and entries 1 to 14 were delivered again")?;
    subject.apply(12, SOME)?;
    subject
        .holds(&states[usize::try_from(SOME).unwrap_or(0)], "after entries 12 to 14 came again with new ones")
}

/// A `Durable` machine's process is killed right after `flush`.
///
/// # Errors
/// What was found.
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
        let when = format!("after flush() at {} and a kill", id(last));
        killed.stands_at(last, &when)?;
        killed.holds(&states[usize::try_from(last).unwrap_or(0)], &when)?;
    }
    Ok(())
}

/// A `Durable` machine is dropped without `stop` and without `flush`.
///
/// # Errors
/// What was found.
pub fn drop_flushes<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 7)?;
    let mut subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    subject.apply(1, 7)?;
    subject.reopen()?;
    subject.stands_at(7, "after it was dropped without stop() and opened again")?;
    subject.holds(&states[7], "after it was dropped without stop() and opened again")
}

/// A `Durable` machine's process is killed between chunks, flushed or not: whatever it has then, its position tells.
///
/// # Errors
/// What was found.
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
                .map_err(|error| format!("persist_last_applied(): {error}"))?;
        }
        let killed = subject.killed()?;
        let position = killed.machine().last_applied().index;
        let state = usize::try_from(position).ok().and_then(|at| states.get(at));
        let Some(state) = state.filter(|_| position <= last) else {
            return Err(format!("after a kill at {}, last_applied() is {position}", id(last)));
        };
        killed.holds(state, &format!("after a kill at {} it says it stands at {position}; so", id(last)))?;
        // What it does not have comes again, from where it says it stands.
        if position < last {
            killed.apply(position + 1, last)?;
        }
        killed
            .holds(&states[usize::try_from(last).unwrap_or(0)], "after it was fed what it said it lacked")?;
    }
    Ok(())
}

/// `update_last_applied` comes also from a start that is behind what the machine knows.
///
/// # Errors
/// What was found.
pub fn the_position_never_goes_back<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    if !subject.is_durable() {
        return skipped(REBUILT);
    }
    subject.apply(1, 5)?;
    for told in [8, 6] {
        subject.machine().update_last_applied(id(told));
    }
    subject.stands_at(8, "after update_last_applied() of 8 and then of 6")
}

/// Places in each file at which a bit is flipped.
const FLIPS: usize = 150;

/// One bit of the machine's files is wrong: it refuses to start, or has given up what it holds, or holds and writes into
/// snapshots exactly what it did. Needs [`StateMachineCase::notices_flipped_bits`].
///
/// # Errors
/// What was found.
pub fn flipped_bits_are_noticed<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    if !case.notices_flips {
        return skipped("the case does not say `notices_flipped_bits`");
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
            // One that panics serves nothing either.
            if let Ok(Err(found)) = looked {
                let name = path.file_name().unwrap_or_default().display();
                return Err(format!("with a bit flipped in byte {at} of {name} {found}"));
            }
        }
    }
    Ok(())
}

/// What a damaged machine serves, if it starts.
fn looks_right<M: StateMachine>(case: &StateMachineCase<M>, dir: TempDir, states: &[Vec<u8>]) -> Found {
    let Ok(subject) = Subject::at(case, dir) else { return Ok(()) };
    let position = subject.machine().last_applied().index;
    let Some(expected) = usize::try_from(position).ok().and_then(|at| states.get(at)) else {
        return Err(format!("it says it stands at {position}"));
    };
    subject.holds(expected, "it starts, and then")?;
    if position == 0 {
        return Ok(());
    }
    for way in [Subject::snapshot, Subject::generate] {
        // An error is noticed by the engine.
        let Ok((files, meta)) = way(&subject, position) else { continue };
        let target = Subject::new(case)?;
        if target.install(&meta, files.path()).is_ok() {
            target.holds(expected, "it writes a snapshot; after that is installed")?;
        }
    }
    Ok(())
}
