//! Checks of time: a machine uses log time and no other clock.

use std::time::{Duration, SystemTime};

use d_engine_state_machine::StateMachine;

use super::{Found, SOME, skipped};
use crate::Violation;
use crate::state_machine::{Expiring, StateMachineCase, Subject, id, shown, time_ms};

const NOTHING_EXPIRES: &str = "the case has no expiring command; add `expiring`";

/// How many calls of `advance_time` with one log time are allowed until `next_expiry_ms` is later
/// or `None`. A machine may remove many records step by step.
const TICKS_MAX: u64 = 1_000;

/// Two machines apply the same commands and ticks two seconds apart. The rule: time comes from the
/// log.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn the_clock_does_not_matter<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    let replies = one.apply(1, SOME)?;
    one.tick(SOME + 1, time_ms(SOME) + 60_000)?;
    let wanted = one.machine().next_expiry_ms();
    let now =
        || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let began = now();
    while now() < began + 2 {
        // Only the wall clock must move; nothing else is awaited.
        std::thread::park_timeout(Duration::from_millis(50));
    }
    if other.apply(1, SOME)? != replies {
        return Err("the same commands get other replies two seconds later; take the time from \
                    Entry::time_ms(), never from a clock"
            .to_owned());
    }
    other.tick(SOME + 1, time_ms(SOME) + 60_000)?;
    if other.machine().next_expiry_ms() != wanted {
        return Err(
            "next_expiry_ms() differs for the same commands two seconds later; compute it from log \
             time, never from a clock".to_owned()
        );
    }
    other.holds(
        &one.contents(),
        "two seconds after another machine with the same commands (take the time from the log, \
         never from a clock)",
    )
}

/// A machine that has applied some commands and one that expires, the log time of its expiry, and
/// the contents without and with it.
struct Expecting<'a, M> {
    subject: Subject<'a, M>,
    at_ms: u64,
    without: Vec<u8>,
    with: Vec<u8>,
}

const EXPIRES: u64 = 6;

fn expecting<'a, M: StateMachine>(
    case: &'a StateMachineCase<M>,
    Expiring { command, after_ms }: &Expiring,
) -> Result<Expecting<'a, M>, Violation> {
    let subject = Subject::new(case)?;
    // Effects of the other commands that expire are removed before that time.
    subject.apply(1, EXPIRES - 1)?;
    let without = subject.contents();
    subject.apply_all(std::iter::once((EXPIRES, command.clone())))?;
    let (at_ms, with) = (time_ms(EXPIRES) + after_ms, subject.contents());
    if with == without {
        return Err(
            "the case is too weak: its expiring command must change what `contents` returns; \
             correct `expiring` or `contents`"
                .to_owned(),
        );
    }
    Ok(Expecting { subject, at_ms, without, with })
}

/// Advances log time until `next_expiry_ms` is later or `None`, as the engine does. Returns the
/// index after the last tick.
fn settle<M: StateMachine>(
    subject: &Subject<'_, M>,
    first: u64,
    now_ms: u64,
) -> Result<u64, Violation> {
    for index in first..first + TICKS_MAX {
        subject.tick(index, now_ms)?;
        if subject.machine().next_expiry_ms().is_none_or(|wanted| wanted > now_ms) {
            return Ok(index + 1);
        }
    }
    Err(format!(
        "next_expiry_ms() is {:?} after {TICKS_MAX} calls of advance_time({now_ms}); it must \
         become later than the given time or None, because each such value costs a log entry",
        subject.machine().next_expiry_ms()
    ))
}

/// `next_expiry_ms` announces the next expiry, and the record expires at exactly that log time.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn what_expires_vanishes_at_its_log_time<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(expiring) = &case.expiring else { return skipped(NOTHING_EXPIRES) };
    let Expecting { subject, at_ms, without, with } = expecting(case, expiring)?;
    let wanted = subject.machine().next_expiry_ms();
    if wanted.is_none_or(|wanted| wanted > at_ms) {
        return Err(format!(
            "next_expiry_ms() is {wanted:?}, but a record expires at {at_ms}; return the earliest \
             expiry, or an idle cluster never advances log time"
        ));
    }
    let next = settle(&subject, EXPIRES + 1, at_ms - 1)?;
    // Other commands of the case may expire too. The check is that this command's effect is present
    // before its expiry, and absent after it.
    let still = subject.contents();
    if still == without {
        return Err(format!(
            "a record that expires at log time {at_ms} ms is gone one millisecond earlier"
        ));
    }
    let next = settle(&subject, next, at_ms)?;
    if subject.contents() == still {
        return Err(format!(
            "a record that expires at log time {at_ms} ms is still there after \
             advance_time({at_ms}): {}",
            shown(&with)
        ));
    }
    // Entries advance the time as ticks do, and both machines reach the same state.
    let other = expecting(case, expiring)?.subject;
    let far = |subject: &Subject<'_, M>, index: u64| settle(subject, index, at_ms + 1_000_000_000);
    far(&subject, next)?;
    far(&other, EXPIRES + 1)?;
    other.holds(
        &subject.contents(),
        "after reaching the same log time in one step as another machine in several steps",
    )
}

/// A pending expiry is part of a snapshot and takes effect in the machine that installs it.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn expiries_travel_in_snapshots<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(expiring) = &case.expiring else { return skipped(NOTHING_EXPIRES) };
    let Expecting { subject, at_ms, .. } = expecting(case, expiring)?;
    let (dir, meta) = subject.snapshot(EXPIRES)?;
    let target = Subject::new(case)?;
    target.install(&meta, dir.path())?;
    let (here, there) = (subject.machine().next_expiry_ms(), target.machine().next_expiry_ms());
    if here != there {
        return Err(format!(
            "next_expiry_ms() is {there:?} after an install, but {here:?} in the machine that took \
             the snapshot; snapshots must carry pending expiries"
        ));
    }
    for subject in [&subject, &target] {
        settle(subject, EXPIRES + 1, at_ms)?;
    }
    target.holds(
        &subject.contents(),
        &format!(
            "after a snapshot with last included {} was installed and log time advanced (snapshots \
             must carry pending expiries)",
            id(EXPIRES)
        ),
    )?;
    subject.apply(SOME + 2_000, SOME + 2_003)?;
    target.apply(SOME + 2_000, SOME + 2_003)?;
    target.holds(&subject.contents(), "after later entries")
}
