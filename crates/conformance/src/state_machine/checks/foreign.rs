//! Checks of commands, foreign bytes, replies, queries and length.

use std::panic::{AssertUnwindSafe, catch_unwind};

use d_engine_state_machine::StateMachine;

use super::{Found, SOME, skipped};
use crate::state_machine::{StateMachineCase, Subject, TERM, shown};

/// Bytes that are not a command must not stop the node: otherwise any client that may propose could
/// stop the whole cluster, at every start again. `check` refuses them, and `apply_chunk` replies to
/// them if they are in the log anyway: an older or newer program may have led when they were
/// proposed.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn foreign_bytes_stop_nothing<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    for bytes in &case.undecodable {
        let subject = Subject::new(case)?;
        subject.apply(1, 3)?;
        let applied = subject.apply_all(std::iter::once((4, bytes.clone())));
        let Err(error) = applied else { continue };
        if !case.stops_on_undecodable {
            return Err(format!(
                "apply_chunk() fails on the undecodable bytes {} ({error}): the state machine of \
                 every node would halt there, at every start; reply that the command was refused \
                 instead, or declare `stops_on_undecodable()` in the case",
                shown(bytes)
            ));
        }
        if subject.machine().check(bytes).is_ok() {
            return Err(format!(
                "apply_chunk() fails on the undecodable bytes {} ({error}), but check() accepts \
                 them; check() must refuse every command that apply_chunk() cannot apply",
                shown(bytes)
            ));
        }
    }
    Ok(())
}

/// `check` accepts every command of the case, in any state. The rule: it judges the bytes alone.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn its_own_commands_pass_its_check<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    for index in 1..=SOME {
        let command = (case.command)(index);
        let check = |when: &str| {
            let checked = subject.machine().check(&command);
            checked.map_err(|error| {
                format!(
                    "check() refuses command {index} {when} it was applied: {error}; check() must \
                     judge the bytes alone and accept every valid command"
                )
            })
        };
        check("before")?;
        subject.apply(index, index)?;
        check("after")?;
    }
    Ok(())
}

/// The version of every command of the case is one that the machine decodes, in any state.
/// `command_version` must also return a version for arbitrary bytes, because it is called for every
/// proposal.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn versions_come_from_the_bytes_alone<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    let max = subject.machine().command_version_max();
    let version_of = |bytes: &[u8]| {
        let asked = catch_unwind(AssertUnwindSafe(|| subject.machine().command_version(bytes)));
        asked.map_err(|_| {
            format!(
                "command_version() panics on the bytes {}; it must return a version for any bytes \
                 (0 if they hold none)",
                shown(bytes)
            )
        })
    };
    for index in 1..=SOME {
        let command = (case.command)(index);
        let before = version_of(&command)?;
        if before > max {
            return Err(format!(
                "command_version() of command {index} is {before}, but command_version_max() is \
                 {max}: every leader would refuse the command"
            ));
        }
        subject.apply(index, index)?;
        let after = version_of(&command)?;
        if after != before {
            return Err(format!(
                "command_version() of command {index} is {before} before the command was applied \
                 and {after} afterwards; it must depend on the bytes alone"
            ));
        }
        // What another program may send: a truncated command, and one with trailing bytes.
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

/// The machine replies to every command, because callers wait for the reply.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn every_command_is_answered<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    if !case.answers_all {
        return skipped("the case leaves commands unanswered");
    }
    let subject = Subject::new(case)?;
    let replies = subject.apply(1, SOME)?;
    match replies.iter().position(Option::is_none) {
        Some(at) => Err(format!(
            "the command at index {} of term {TERM} got no reply; call entry.reply() for each \
             command, or declare `leaves_commands_unanswered()` in the case",
            at + 1
        )),
        None => Ok(()),
    }
}

/// `len` and `is_empty` agree on whether the machine holds anything: at a start the engine uses
/// them to find out whether the machine has lost its state.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn the_length_is_told<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    subject.apply(1, SOME)?;
    let (len, is_empty) = (subject.machine().len(), subject.machine().is_empty());
    if len == 0 || is_empty {
        return Err(format!(
            "len() is {len} and is_empty() is {is_empty} after {SOME} commands; the machine is not \
             empty, and the engine would take its state for lost"
        ));
    }
    subject.reset()?;
    let (len, is_empty) = (subject.machine().len(), subject.machine().is_empty());
    if is_empty != (len == 0) {
        return Err(format!(
            "len() is {len} and is_empty() is {is_empty} after reset(); is_empty() must be true \
             exactly when len() is 0"
        ));
    }
    Ok(())
}

/// Two machines in the same state receive the same queries, and one of them receives each query
/// twice.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn answers_are_equal_on_two_machines<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(question) = &case.question else {
        return skipped("the case has no queries; add `questions`");
    };
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    one.apply(1, SOME)?;
    other.apply(1, 7)?;
    other.apply(8, SOME)?;
    for number in 1..=SOME {
        let ask = |subject: &Subject<'_, M>| {
            subject.machine().query(&question(number)).map_err(|error| error.to_string())
        };
        let (first, second, third) = (ask(&one), ask(&one), ask(&other));
        for (again, whom) in
            [(second, "the same machine"), (third, "another machine with the same state")]
        {
            if again != first {
                return Err(format!(
                    "query {number} returned {first:?}, and then {again:?} from {whom}; the \
                     response must depend on the applied state and the query alone"
                ));
            }
        }
    }
    Ok(())
}
