//! Machines that keep their state by themselves: what is there after an end of any kind.

use d_engine_replica::StateMachine;

use super::{Found, REBUILT, SOME, flush, skipped};
use crate::state_machine::{StateMachineCase, Subject, id, states};

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
