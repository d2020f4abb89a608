//! The checks, one for each rule of the `StateMachine` contract.

mod durable;
mod foreign;
mod power;
mod snapshots;
mod time;

use std::sync::atomic::{AtomicBool, Ordering};

use d_engine_state_machine::{LogId, SnapshotMetadata, StateMachine};

pub use self::durable::{
    drop_flushes, flipped_bits_are_noticed, flushed_is_in_the_files,
    position_and_data_are_stored_together, the_position_never_goes_back,
    what_is_applied_already_changes_nothing,
};
pub use self::foreign::{
    answers_are_equal_on_two_machines, every_command_is_answered, foreign_bytes_stop_nothing,
    its_own_commands_pass_its_check, the_length_is_told, versions_come_from_the_bytes_alone,
};
pub use self::power::{
    power_cuts_leave_the_old_state_or_none_after_a_reset,
    power_cuts_leave_the_old_state_or_the_installed_one, power_cuts_lose_nothing_flushed,
};
pub use self::snapshots::{
    a_damaged_snapshot_leaves_the_old_state, a_dropped_snapshot_touches_nothing,
    a_snapshot_is_exactly_the_state_at_its_last_included_entry, a_view_stays_as_it_was,
    a_wrong_checksum_is_refused, an_install_leaves_nothing_of_the_old_state,
    both_ways_of_a_snapshot_give_the_same_state, equal_states_write_equal_snapshots,
    the_checksum_is_that_of_the_files,
};
pub use self::time::{
    expiries_travel_in_snapshots, the_clock_does_not_matter, what_expires_vanishes_at_its_log_time,
};
use super::{StateMachineCase, Subject, TERM, id, shown, states};
use crate::Violation;

type Found = Result<(), Violation>;
type Check<M> = fn(&StateMachineCase<M>) -> Found;

const REBUILT: &str = "the machine is Rebuilt at every start, so its files promise nothing";

/// A check that does not apply prints why (`cargo test -- --nocapture`).
#[expect(clippy::unnecessary_wraps, reason = "the end of a check")]
fn skipped(why: &str) -> Found {
    eprintln!("skipped: {why}");
    Ok(())
}

/// How many commands a check applies.
const SOME: u64 = 24;

/// Every check with its name.
#[must_use]
pub fn all<M: StateMachine>() -> Vec<(&'static str, Check<M>)> {
    macro_rules! named {
        ($($check:ident)*) => { vec![$((stringify!($check), $check::<M> as Check<M>)),*] };
    }
    crate::__each_state_machine_check!([named])
}

/// `start`, `is_running`, `flush`, `stop` twice, and a drop without `stop`.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn start_and_stop<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let mut subject = Subject::new(case)?;
    if !subject.machine().is_running() {
        return Err(
            "is_running() is false after start(); the node would never become ready".to_owned()
        );
    }
    if subject.is_durable() && subject.machine().last_applied() != LogId::default() {
        return Err(format!(
            "last_applied() of a new machine is {}; expected index 0, because nothing was applied",
            subject.machine().last_applied()
        ));
    }
    // Also for a machine that has nothing to flush: an error stops the node.
    flush(&subject)?;
    for time in ["first", "second"] {
        subject.machine().stop().map_err(|error| {
            format!(
                "the {time} stop() failed: {error}; stop() may be called more than once and must \
                 succeed"
            )
        })?;
    }
    subject.reopen()?;
    subject.apply(1, 1).map(drop)
}

/// A chunk with a command that cannot be applied, at its end, in its middle and at its beginning.
/// The rule: `apply_chunk` applies all of a chunk or nothing.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn a_chunk_is_applied_whole_or_not_at_all<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    for bad in &case.undecodable {
        for place in [3, 2, 1] {
            let subject = Subject::new(case)?;
            subject.apply(1, 4)?;
            let before = subject.contents();
            let command = |step| if step == place { bad.clone() } else { (case.command)(4 + step) };
            let applied = subject.apply_all((1..=3).map(|step| (4 + step, command(step))));
            if applied.is_ok() {
                // The command was refused: the others must have taken effect, as on every replica.
                let other = Subject::new(case)?;
                other.apply(1, 4)?;
                let good = (1..=3).filter(|step| *step != place);
                other.apply_all(good.map(|step| (4 + step, command(step))))?;
                subject.holds(
                    &other.contents(),
                    "after a chunk with one refused command (the other commands of the chunk must \
                     take effect)",
                )?;
                continue;
            }
            subject.holds(
                &before,
                "after apply_chunk() returned an error (nothing of the chunk may take effect)",
            )?;
            subject.halted_at(
                4,
                "after apply_chunk() returned an error (nothing of the chunk may take effect)",
            )?;
        }
    }
    Ok(())
}

/// Two machines apply the same commands in chunks of different sizes. The rule: state and replies
/// come from the entries alone.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn the_same_commands_give_the_same_state_and_replies<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    let mut replies = Vec::new();
    for index in 1..=SOME {
        replies.extend(one.apply(index, index)?);
    }
    let mut others = other.apply(1, 1)?;
    others.extend(other.apply(2, 8)?);
    others.extend(other.apply(9, SOME)?);
    if let Some(at) = replies.iter().zip(&others).position(|(one, other)| one != other) {
        let show = |reply: &Option<bytes::Bytes>| shown(reply.as_deref().unwrap_or_default());
        return Err(format!(
            "two machines reply {} and {} to the same command at index {}; a reply must come from \
             the entries alone: use no clock, random source or unordered iteration",
            show(&replies[at]),
            show(&others[at]),
            at + 1
        ));
    }
    other.holds(
        &one.contents(),
        "after the same commands as another machine, in other chunks (state must come from the \
         entries alone)",
    )
}

/// Reads run while entries are applied and a snapshot is installed. The rule: each read sees the
/// state between two commands.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn reads_see_whole_commands<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, meta) = source.snapshot(SOME)?;
    for _ in 0..4 {
        let subject = Subject::new(case)?;
        let (looks, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let seen = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut odd = None;
                while !over.load(Ordering::Acquire) {
                    let found = subject.contents();
                    looks.store(true, Ordering::Release);
                    if odd.is_none() && !states.contains(&found) {
                        odd = Some(found);
                    }
                }
                odd
            });
            // A reader that panics has finished.
            while !looks.load(Ordering::Acquire) && !reader.is_finished() {
                std::thread::yield_now();
            }
            let written = (1..=10).try_for_each(|index| subject.apply(index, index).map(drop));
            let installed = written.and_then(|()| subject.install(&meta, dir.path()));
            over.store(true, Ordering::Release);
            reader
                .join()
                .map_err(|_| {
                    "a read panicked while apply_chunk() or an install ran; reads run concurrently \
                     with apply and must not panic"
                        .to_owned()
                })
                .and_then(|odd| installed.map(|()| odd))
        })?;
        if let Some(odd) = seen {
            return Err(format!(
                "a read concurrent with apply_chunk() or an install saw {}, which is not the state \
                 after any command; a read must never see part of an entry or of a snapshot",
                shown(&odd)
            ));
        }
    }
    Ok(())
}

/// `reset`, then the same commands again. The rule: `reset` restores the initial state.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn reset_is_the_beginning<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 9)?;
    let mut subject = Subject::new(case)?;
    subject.apply(1, 9)?;
    subject.reset()?;
    subject.holds(&states[0], "after reset()")?;
    subject.halted_at(0, "after reset()")?;
    if subject.is_durable() {
        flush(&subject)?;
        subject.reopen()?;
        subject.holds(&states[0], "after reset(), flush() and reopening")?;
        subject.halted_at(0, "after reset(), flush() and reopening")?;
    }
    subject.apply(1, 9)?;
    subject.holds(&states[9], "after reset() and the same commands again")
}

/// The machine returns the newest snapshot's metadata as the engine gave it, and stores it when
/// asked to. A `Rebuilt` machine may always return `None`: the engine keeps it in the archive.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn snapshot_metadata_is_kept<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let mut subject = Subject::new(case)?;
    subject.apply(1, 3)?;
    for index in [2, 3] {
        let meta = SnapshotMetadata::new(id(index), [u8::try_from(index).unwrap_or(0); 32]);
        let machine = subject.machine();
        machine.update_last_snapshot_metadata(&meta).map_err(|error| error.to_string())?;
        machine.persist_last_snapshot_metadata(&meta).map_err(|error| error.to_string())?;
        let known = machine.snapshot_metadata();
        if known.is_none() && !subject.is_durable() {
            continue;
        }
        if known.as_ref() != Some(&meta) {
            return Err(format!(
                "snapshot_metadata() is {:?} after update_last_snapshot_metadata({meta:?}); it \
                 must return the newest metadata it was given",
                known
            ));
        }
    }
    if subject.is_durable() {
        flush(&subject)?;
        let before = subject.machine().snapshot_metadata();
        subject.reopen()?;
        if subject.machine().snapshot_metadata() != before {
            return Err("snapshot_metadata() changed after persist_last_snapshot_metadata(), \
                        flush() and reopening; a Durable machine must store it"
                .to_owned());
        }
    }
    Ok(())
}

/// `entry_term` returns the entry's term, or `None`.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn terms_are_right_or_unknown<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    subject.apply(1, 5)?;
    for index in 1..=5 {
        if let Some(term) = subject.machine().entry_term(index).filter(|term| *term != TERM) {
            return Err(format!(
                "entry_term({index}) is {term}, but the entry has term {TERM}; return None if the \
                 term is unknown, because a wrong term refuses the node's start"
            ));
        }
    }
    match subject.machine().entry_term(6) {
        Some(term) => Err(format!(
            "entry_term(6) is {term}, but entry 6 was never applied; return None for an unknown \
             entry"
        )),
        None => Ok(()),
    }
}

fn flush<M: StateMachine>(subject: &Subject<'_, M>) -> Found {
    subject.machine().flush().map_err(|error| format!("flush() failed: {error}"))
}
