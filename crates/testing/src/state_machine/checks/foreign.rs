//! What a machine does with bytes, and what it says: commands of its own and of others, replies, answers, length.

use std::panic::{AssertUnwindSafe, catch_unwind};

use d_engine_replica::StateMachine;

use super::{Found, SOME, skipped};
use crate::state_machine::{StateMachineCase, Subject, TERM, shown};

/// Bytes that are no command of the machine's must not stop the node: whoever may propose could stop the whole cluster,
/// at every start again. They are refused by `check`, and answered where they come all the same: the program that led
/// then may have been another one.
///
/// # Errors
/// What was found.
pub fn foreign_bytes_stop_nothing<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    for bytes in &case.undecodable {
        let subject = Subject::new(case)?;
        subject.apply(1, 3)?;
        let applied = subject.apply_all(std::iter::once((4, bytes.clone())));
        let Err(error) = applied else { continue };
        if !case.stops_on_undecodable {
            return Err(format!(
                "apply_chunk() fails on the bytes {} ({error}): every node stops there, at every start; reply that the \
                 command was refused instead (or say `stops_on_undecodable()`)",
                shown(bytes)
            ));
        }
        if subject.machine().check(bytes).is_ok() {
            return Err(format!(
                "apply_chunk() fails on the bytes {} ({error}), but check() lets them into the log",
                shown(bytes)
            ));
        }
    }
    Ok(())
}

/// `check` lets every command of the case pass, whatever the state.
///
/// # Errors
/// What was found.
pub fn its_own_commands_pass_its_check<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    for index in 1..=SOME {
        let command = (case.command)(index);
        let check = |when: &str| {
            let checked = subject.machine().check(&command);
            checked.map_err(|error| format!("check() refuses command {index} {when} it was applied: {error}"))
        };
        check("before")?;
        subject.apply(index, index)?;
        check("after")?;
    }
    Ok(())
}

/// The version of every command of the case is one that the machine decodes, whatever the state; and bytes of any other
/// program have some version: it is asked about everything that anybody proposes.
///
/// # Errors
/// What was found.
pub fn versions_come_from_the_bytes_alone<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    let max = subject.machine().command_version_max();
    let version_of = |bytes: &[u8]| {
        let asked = catch_unwind(AssertUnwindSafe(|| subject.machine().command_version(bytes)));
        asked.map_err(|_| format!("command_version() panics on the bytes {}", shown(bytes)))
    };
    for index in 1..=SOME {
        let command = (case.command)(index);
        let before = version_of(&command)?;
        if before > max {
            return Err(format!(
                "command_version() of command {index} is {before}, but command_version_max() is {max}: no leader would take it"
            ));
        }
        subject.apply(index, index)?;
        let after = version_of(&command)?;
        if after != before {
            return Err(format!(
                "command_version() of command {index} is {before} before it was applied, and {after} after it: it must come \
                 from the bytes alone"
            ));
        }
        // What another program may send: a part of it, and more than it.
        for len in 0..command.len() {
            version_of(command.get(..len).unwrap_or_default())?;
        }
        version_of(&[&command[..], &[0xFF; 9]].concat())?;
    }
    for first in 0..=u8::MAX {
        version_of(&[first])?;
        version_of(&[first; 24])?;
    }
    case.undecodable.iter().try_for_each(|bytes| version_of(bytes).map(drop))
}

/// Callers wait for the reply to their command.
///
/// # Errors
/// What was found.
pub fn every_command_is_answered<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    if !case.answers_all {
        return skipped("the case leaves commands unanswered");
    }
    let subject = Subject::new(case)?;
    let replies = subject.apply(1, SOME)?;
    match replies.iter().position(Option::is_none) {
        Some(at) => Err(format!(
            "the command at index {} of term {TERM} got no reply; call entry.reply() for each command (or say \
             `leaves_commands_unanswered()`)",
            at + 1
        )),
        None => Ok(()),
    }
}

/// `len` and `is_empty` say whether anything is there: the engine asks at a start whether a machine has lost its state.
///
/// # Errors
/// What was found.
pub fn the_length_is_told<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    subject.apply(1, SOME)?;
    let (len, is_empty) = (subject.machine().len(), subject.machine().is_empty());
    if len == 0 || is_empty {
        return Err(format!("len() is {len} and is_empty() is {is_empty} after {SOME} commands"));
    }
    subject.reset()?;
    let (len, is_empty) = (subject.machine().len(), subject.machine().is_empty());
    if is_empty != (len == 0) {
        return Err(format!("len() is {len} and is_empty() is {is_empty} after reset()"));
    }
    Ok(())
}

/// The same questions to two machines that have applied the same, and twice to one of them.
///
/// # Errors
/// What was found.
pub fn answers_are_equal_on_two_machines<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(question) = &case.question else { return skipped("the case has no `questions`") };
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    one.apply(1, SOME)?;
    other.apply(1, 7)?;
    other.apply(8, SOME)?;
    for number in 1..=SOME {
        let ask = |subject: &Subject<'_, M>| {
            subject.machine().query(&question(number)).map_err(|error| error.to_string())
        };
        let (first, second, third) = (ask(&one), ask(&one), ask(&other));
        for (again, whom) in [(second, "the same machine"), (third, "another machine with the same state")] {
            if again != first {
                return Err(format!("question {number} is answered {first:?}, and by {whom} {again:?}"));
            }
        }
    }
    Ok(())
}
