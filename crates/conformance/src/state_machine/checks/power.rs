//! Checks of `Durable` machines on a simulated disk that loses what was not synced when the power
//! fails.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use d_engine_core::SplitMix64;
use d_engine_state_machine::StateMachine;
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;

use super::{Found, REBUILT, flush, skipped};
use crate::Violation;
use crate::state_machine::{OpenOnFs, StateMachineCase, Subject, id, io, shown, states};

const NOT_ON_FS: &str = "the case has no `on_fs`, so the power cannot be cut";

/// The machine's directory.
const HOME: &str = "/machine";
/// The number of commands flushed before the power is cut.
const FLUSHED: u64 = 4;
/// The maximum number of power cuts: of a machine that does more file operations only the first
/// ones are cut.
const MOMENTS_MAX: u64 = 400;

/// The power fails before every file operation of `apply_chunk` and `flush`. The rule: what was
/// flushed survives. Needs [`StateMachineCase::on_fs`].
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn power_cuts_lose_nothing_flushed<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(open) = &case.on_fs else { return skipped(NOT_ON_FS) };
    let last = FLUSHED + 4;
    let goes_on = |subject: &Subject<'_, M>, _: &SimFs| {
        subject.apply(FLUSHED + 1, last)?;
        flush(subject)
    };
    at_every_moment(case, open, "a flush", FLUSHED..=last, &goes_on)
}

/// The power fails before every file operation of `apply_snapshot_from_file`. The rule: the old
/// state or the new one survives. Needs [`StateMachineCase::on_fs`].
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn power_cuts_leave_the_old_state_or_the_installed_one<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let Some(open) = &case.on_fs else { return skipped(NOT_ON_FS) };
    let last_included = FLUSHED + 8;
    let files = tempfile::tempdir().map_err(io)?;
    // A machine may read a snapshot through its own file system or directly: the files are in both.
    let source = disk()?;
    create_dirs(&source, files.path())?;
    let other = on(case, open, &source)?;
    if !other.is_durable() {
        return skipped(REBUILT);
    }
    other.apply(1, last_included)?;
    let meta = other.snapshot_into(last_included, files.path())?;
    drop(other);
    let snapshot = source.image().files;
    let installs = |subject: &Subject<'_, M>, _: &SimFs| subject.install(&meta, files.path());
    let prepare = |disk: &SimFs| {
        create_dirs(disk, files.path())?;
        for (path, bytes) in snapshot.iter().filter(|(path, _)| path.starts_with(files.path())) {
            let file = disk.open(path, d_engine_storage::OpenMode::CreateNew).map_err(io)?;
            d_engine_storage::write_all_at(&*file, 0, bytes).map_err(io)?;
        }
        Ok(())
    };
    at_every_moment_of(
        case,
        open,
        "apply_snapshot_from_file()",
        &[FLUSHED, last_included],
        &prepare,
        &installs,
    )
}

/// The power fails before every file operation of `reset`. The rule: the old state or the initial
/// state survives. Needs [`StateMachineCase::on_fs`].
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn power_cuts_leave_the_old_state_or_none_after_a_reset<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let Some(open) = &case.on_fs else { return skipped(NOT_ON_FS) };
    let resets = |subject: &Subject<'_, M>, _: &SimFs| subject.reset();
    at_every_moment_of(case, open, "reset()", &[0, FLUSHED], &|_| Ok(()), &resets)
}

type Act<'a, M> = dyn Fn(&Subject<'_, M>, &SimFs) -> Result<(), Violation> + 'a;

fn at_every_moment<M: StateMachine>(
    case: &StateMachineCase<M>,
    open: &OpenOnFs<M>,
    what: &str,
    allowed: RangeInclusive<u64>,
    act: &Act<'_, M>,
) -> Found {
    let allowed: Vec<u64> = allowed.collect();
    at_every_moment_of(case, open, what, &allowed, &|_| Ok(()), act)
}

/// Runs `act` on a machine that has flushed [`FLUSHED`] commands, on a disk that fails before the
/// first, the second, ... file operation, until `act` completes.
fn at_every_moment_of<M: StateMachine>(
    case: &StateMachineCase<M>,
    open: &OpenOnFs<M>,
    what: &str,
    allowed: &[u64],
    prepare: &dyn Fn(&SimFs) -> Result<(), Violation>,
    act: &Act<'_, M>,
) -> Found {
    let states = states(case, allowed.iter().copied().max().unwrap_or(0))?;
    for moment in 1..=MOMENTS_MAX {
        let disk = disk()?;
        prepare(&disk)?;
        let subject = on(case, open, &disk)?;
        if !subject.is_durable() {
            return skipped(REBUILT);
        }
        subject.apply(1, FLUSHED)?;
        flush(&subject)?;
        disk.halt_at(moment);
        let done = act(&subject, &disk);
        let failed = disk.is_halted();
        if !failed {
            done.map_err(|error| format!("{what} failed without a power cut: {error}"))?;
        }
        // What the machine's `Drop` does must not count: the process is gone.
        disk.halt_at(1);
        drop(subject);
        cut(&disk, moment);
        let when = format!("after a power cut at operation {moment} of {what}");
        holds_one_of(case, open, &disk, (&states, allowed), &when)?;
        if !failed {
            return Ok(());
        }
    }
    Ok(())
}

/// After a reopen the machine is at one of the allowed positions and holds the state of that
/// position.
fn holds_one_of<M: StateMachine>(
    case: &StateMachineCase<M>,
    open: &OpenOnFs<M>,
    disk: &SimFs,
    (states, allowed): (&[Vec<u8>], &[u64]),
    when: &str,
) -> Found {
    let subject = on(case, open, disk)
        .map_err(|error| format!("{when}, the machine does not start: {error}"))?;
    let position = subject.machine().last_applied().index.get();
    let Some(expected) = usize::try_from(position).ok().and_then(|at| states.get(at)) else {
        return Err(format!("{when}, last_applied() is {position}, which was never reached"));
    };
    if !allowed.contains(&position) {
        return Err(format!(
            "{when}, last_applied() is {position}; {} was flushed before, so expected one of \
             {allowed:?}. Sync the file and its directory before flush() returns, and replace \
             files atomically",
            id(FLUSHED)
        ));
    }
    let found = subject.contents();
    if found != *expected {
        return Err(format!(
            "{when}, last_applied() is {position} and the machine holds {}; expected {}. Data and \
             position must be stored atomically and synced",
            shown(&found),
            shown(expected)
        ));
    }
    Ok(())
}

fn disk() -> Result<SimFs, Violation> {
    let disk = SimFs::new();
    create_dirs(&disk, Path::new(HOME))?;
    Ok(disk)
}

fn create_dirs(disk: &SimFs, path: &Path) -> Result<(), Violation> {
    let mut dirs: Vec<&Path> = path.ancestors().filter(|dir| dir.parent().is_some()).collect();
    dirs.reverse();
    for dir in dirs {
        disk.create_dir(dir).map_err(io)?;
        disk.sync_dir(dir.parent().unwrap_or(dir)).map_err(io)?;
    }
    Ok(())
}

/// Opens and starts the machine on the disk's contents.
fn on<'a, M: StateMachine>(
    case: &'a StateMachineCase<M>,
    open: &OpenOnFs<M>,
    disk: &SimFs,
) -> Result<Subject<'a, M>, Violation> {
    Subject::with(case, || open(Arc::new(disk.clone()), Path::new(HOME)))
}

/// Cuts the power: each unsynced sector is lost or kept, as `seed` decides.
fn cut(disk: &SimFs, seed: u64) {
    let mut random = SplitMix64::new(seed);
    disk.crash(&mut |below| random.below(below));
}
