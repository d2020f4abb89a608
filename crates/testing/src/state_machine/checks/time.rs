//! Time: what a machine does with log time, and that it looks at no other clock.

use std::time::{Duration, SystemTime};

use d_engine_replica::StateMachine;

use super::{Found, SOME, skipped};
use crate::Violation;
use crate::state_machine::{Expiring, StateMachineCase, Subject, id, shown, time_ms};

const NOTHING_EXPIRES: &str = "the case has no `expiring` command";

/// Calls of `advance_time` at one log time after which a machine must want a later one: it may let go of many records
/// little by little.
const TICKS_MAX: u64 = 1_000;

/// The same commands and ticks more than a second later: the clock that counts is the log's.
///
/// # Errors
/// What was found.
pub fn the_clock_does_not_matter<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    let replies = one.apply(1, SOME)?;
    one.tick(SOME + 1, time_ms(SOME) + 60_000)?;
    let wanted = one.machine().next_expiry_ms();
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let began = now();
    while now() < began + 2 {
        // Clocks are to move; nothing else is waited for.
        std::thread::park_timeout(Duration::from_millis(50));
    }
    if other.apply(1, SOME)? != replies {
        return Err(
            "the same commands are answered otherwise two seconds later: take time from Entry::time_ms"
                .to_owned(),
        );
    }
    other.tick(SOME + 1, time_ms(SOME) + 60_000)?;
    if other.machine().next_expiry_ms() != wanted {
        return Err("next_expiry_ms() is another one two seconds later: take time from the log".to_owned());
    }
    other.holds(&one.contents(), "two seconds after another machine with the same commands")
}

/// A machine that has applied some commands and one that expires; when that is, and the contents without and with it.
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
    // What the other commands leave behind that expires by itself is gone before.
    subject.apply(1, EXPIRES - 1)?;
    let without = subject.contents();
    subject.apply_all(std::iter::once((EXPIRES, command.clone())))?;
    let (at_ms, with) = (time_ms(EXPIRES) + after_ms, subject.contents());
    if with == without {
        return Err(
            "the case is too weak: its expiring command changes nothing that `contents` tells".to_owned()
        );
    }
    Ok(Expecting { subject, at_ms, without, with })
}

/// Tells the time again and again until a later one is wanted, as the engine does; returns the index after that.
fn settle<M: StateMachine>(subject: &Subject<'_, M>, first: u64, now_ms: u64) -> Result<u64, Violation> {
    for index in first..first + TICKS_MAX {
        subject.tick(index, now_ms)?;
        if subject.machine().next_expiry_ms().is_none_or(|wanted| wanted > now_ms) {
            return Ok(index + 1);
        }
    }
    Err(format!(
        "next_expiry_ms() is {:?} after the time {now_ms} was told {TICKS_MAX} times: every such answer costs an entry in \
         the log",
        subject.machine().next_expiry_ms()
    ))
}

/// A machine says when it wants to be told the time, and what expires vanishes then: not before, and not by a clock.
///
/// # Errors
/// What was found.
pub fn what_expires_vanishes_at_its_log_time<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(expiring) = &case.expiring else { return skipped(NOTHING_EXPIRES) };
    let Expecting { subject, at_ms, without, with } = expecting(case, expiring)?;
    let wanted = subject.machine().next_expiry_ms();
    if wanted.is_none_or(|wanted| wanted > at_ms) {
        return Err(format!(
            "next_expiry_ms() is {wanted:?}, but something expires at {at_ms}: on an idle cluster nobody would tell the time"
        ));
    }
    let next = settle(&subject, EXPIRES + 1, at_ms - 1)?;
    // Other commands of the case may expire too: what counts is that this one's effect is there, and then is not.
    let still = subject.contents();
    if still == without {
        return Err(format!("what expires at {at_ms} is gone a millisecond before"));
    }
    let next = settle(&subject, next, at_ms)?;
    if subject.contents() == still {
        return Err(format!(
            "what expires at {at_ms} is still there after advance_time({at_ms}): {}",
            shown(&with)
        ));
    }
    // Entries tell the time as well as ticks do, and both machines come to the same.
    let other = expecting(case, expiring)?.subject;
    let far = |subject: &Subject<'_, M>, index: u64| settle(subject, index, at_ms + 1_000_000_000);
    far(&subject, next)?;
    far(&other, EXPIRES + 1)?;
    other.holds(&subject.contents(), "after the same log time in one step as another machine in several")
}

/// What was pending when a snapshot was taken expires where that is installed.
///
/// # Errors
/// What was found.
pub fn expiries_travel_in_snapshots<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(expiring) = &case.expiring else { return skipped(NOTHING_EXPIRES) };
    let Expecting { subject, at_ms, .. } = expecting(case, expiring)?;
    let (dir, meta) = subject.snapshot(EXPIRES)?;
    let target = Subject::new(case)?;
    target.install(&meta, dir.path())?;
    let (here, there) = (subject.machine().next_expiry_ms(), target.machine().next_expiry_ms());
    if here != there {
        return Err(format!(
            "next_expiry_ms() is {there:?} after an install, and {here:?} where the snapshot was taken"
        ));
    }
    for subject in [&subject, &target] {
        settle(subject, EXPIRES + 1, at_ms)?;
    }
    target.holds(
        &subject.contents(),
        &format!("after a snapshot of {} was installed and time has passed", id(EXPIRES)),
    )?;
    subject.apply(SOME + 2_000, SOME + 2_003)?;
    target.apply(SOME + 2_000, SOME + 2_003)?;
    target.holds(&subject.contents(), "after entries behind that")
}
