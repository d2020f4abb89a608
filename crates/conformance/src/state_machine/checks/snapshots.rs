//! Checks of snapshots: what is written, what is installed, and what is refused.

use std::path::{Path, PathBuf};
use std::task::Poll;

use d_engine_state_machine::{SnapshotMetadata, StateMachine, snapshot_checksum};

use super::{Found, SOME, flush, skipped};
use crate::Violation;
use crate::state_machine::{StateMachineCase, Subject, id, io, runtime, states};

/// A snapshot taken at several log positions is installed in another machine. The rule: it holds
/// exactly the state at its last included entry.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn a_snapshot_is_exactly_the_state_at_its_last_included_entry<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    for last_included in 1..=SOME {
        source.apply(last_included, last_included)?;
        if ![1, 2, 11, SOME].contains(&last_included) {
            continue;
        }
        let view = source
            .machine()
            .snapshot_view()
            .map_err(|error| format!("snapshot_view() failed: {error}"))?;
        if let Some(view) = view.filter(|view| view.last_included() != id(last_included)) {
            return Err(format!(
                "last_included() of a view taken at {} is {}; it must be the last applied entry when the \
                 view was taken",
                id(last_included),
                view.last_included()
            ));
        }
        let (dir, meta) = source.snapshot(last_included)?;
        let mut target = Subject::new(case)?;
        target.install(&meta, dir.path()).map_err(|error| {
            format!("apply_snapshot_from_file() refuses the machine's own snapshot: {error}")
        })?;
        let when =
            format!("after a snapshot with last included {} was installed", id(last_included));
        target.holds(&states[usize::try_from(last_included).unwrap_or(0)], &when)?;
        target.halted_at(last_included, &when)?;
        if last_included < SOME {
            target.apply(last_included + 1, SOME)?;
            target.holds(
                &states[usize::try_from(SOME).unwrap_or(0)],
                "after a snapshot was installed and later entries were applied",
            )?;
        }
        if target.is_durable() {
            flush(&target)?;
            target.reopen()?;
            target.halted_at(SOME, "after an install, later entries, flush() and reopening")?;
        }
    }
    Ok(())
}

/// The engine uses the view if there is one; but a view may be refused, and
/// `generate_snapshot_data` has other callers. The rule: both write the same state.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn both_ways_of_a_snapshot_give_the_same_state<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, meta) = source.generate(SOME)?;
    if snapshot_checksum(dir.path()).map_err(io)? != meta.checksum {
        return Err("the checksum that generate_snapshot_data() returned differs from \
                    snapshot_checksum(dir) of the files it wrote"
            .to_owned());
    }
    let target = Subject::new(case)?;
    target.install(&meta, dir.path()).map_err(|error| {
        format!("apply_snapshot_from_file() refuses the machine's own snapshot: {error}")
    })?;
    let all = &states[usize::try_from(SOME).unwrap_or(0)];
    target.holds(all, "after a snapshot written by generate_snapshot_data() was installed")
}

/// The engine drops an attempt that takes too long, and blocking work that the attempt spawned
/// continues. The rule: that work may write into its own directory and must touch nothing else.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn a_dropped_snapshot_touches_nothing<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 9)?;
    let subject = Subject::new(case)?;
    subject.apply(1, 5)?;
    let runtime = runtime()?;
    let (first, second) = (tempfile::tempdir().map_err(io)?, tempfile::tempdir().map_err(io)?);
    let is_done = runtime.block_on(async {
        let mut attempt = subject.machine().generate_snapshot_data(first.path().to_owned(), id(5));
        std::future::poll_fn(|context| Poll::Ready(attempt.as_mut().poll(context).is_ready())).await
    });
    if is_done {
        return skipped("generate_snapshot_data() never yields, so there is no future to drop");
    }
    subject.apply(6, 9)?;
    let generated = subject.machine().generate_snapshot_data(second.path().to_owned(), id(9));
    let checksum =
        runtime.block_on(generated).map_err(|error| format!("generate_snapshot_data: {error}"))?;
    // Waits for the blocking work of the dropped attempt.
    drop(runtime);
    if snapshot_checksum(second.path()).map_err(io)? != checksum {
        return Err(
            "a dropped generate_snapshot_data() wrote into the directory of the next attempt; \
             blocking work must use only the directory of its own attempt"
                .to_owned(),
        );
    }
    subject.holds(
        &states[9],
        "after a generate_snapshot_data() future was dropped (it must not touch the state)",
    )?;
    let target = Subject::new(case)?;
    target.install(&SnapshotMetadata::new(id(9), checksum), second.path())?;
    target
        .holds(&states[9], "after a snapshot was installed that was taken after a dropped attempt")
}

/// Entries are applied after a view is taken and before it is written. The rule: the view is
/// frozen.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn a_view_stays_as_it_was<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    source.apply(1, 9)?;
    let view = source
        .machine()
        .snapshot_view()
        .map_err(|error| format!("snapshot_view() failed: {error}"))?;
    let Some(view) = view else { return Ok(()) };
    source.apply(10, SOME)?;
    let last_included = view.last_included();
    let dir = tempfile::tempdir().map_err(io)?;
    let checksum =
        view.write(dir.path()).map_err(|error| format!("SnapshotView::write: {error}"))?;
    if last_included != id(9) {
        return Err(format!(
            "last_included() of a view taken at {} is {last_included}; it must be the last applied \
             entry when the view was taken",
            id(9)
        ));
    }
    let target = Subject::new(case)?;
    target.install(&SnapshotMetadata::new(last_included, checksum), dir.path())?;
    target.holds(
        &states[9],
        "after a snapshot was installed whose view was written after later entries (a view must be \
         frozen when it is taken)",
    )
}

/// The checksum that `generate_snapshot_data` or the view returns is the one that the engine
/// computes from the files.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn the_checksum_is_that_of_the_files<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    subject.apply(1, SOME)?;
    let (dir, meta) = subject.snapshot(SOME)?;
    let found = snapshot_checksum(dir.path()).map_err(io)?;
    if found == meta.checksum {
        return Ok(());
    }
    Err("the returned checksum differs from snapshot_checksum(dir) of the written files; return \
         snapshot_checksum(dir) after the last write"
        .to_owned())
}

/// Snapshots whose checksum does not match: other metadata; a file with a flipped bit, truncated or
/// missing; a surplus file. The rule: they are refused and change nothing.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn a_wrong_checksum_is_refused<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, meta) = source.snapshot(SOME)?;
    let target = Subject::new(case)?;
    target.apply(1, 5)?;
    let before = target.contents();
    let refuses = |what: &str, meta: &SnapshotMetadata, dir: &Path| -> Found {
        if target.install(meta, dir).is_ok() {
            return Err(format!(
                "a snapshot with {what} was installed; compare snapshot_checksum(path) with \
                 meta.checksum before anything else"
            ));
        }
        target.holds(&before, &format!("after a snapshot with {what} was refused"))?;
        target.halted_at(5, &format!("after a snapshot with {what} was refused"))
    };
    let mut other = meta.clone();
    other.checksum[7] ^= 1;
    refuses("another checksum in its metadata", &other, dir.path())?;
    for (what, damage) in DAMAGES {
        let copy = damaged(dir.path(), *damage)?;
        if snapshot_checksum(copy.path()).map_err(io)? != meta.checksum {
            refuses(what, &meta, copy.path())?;
        }
    }
    Ok(())
}

/// Corrupt files with a matching checksum. The rule: a refused snapshot leaves the old state, never
/// a part of the new one.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn a_damaged_snapshot_leaves_the_old_state<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, _) = source.snapshot(SOME)?;
    for (what, damage) in DAMAGES {
        let copy = damaged(dir.path(), *damage)?;
        let checksum = snapshot_checksum(copy.path()).map_err(io)?;
        let mut target = Subject::new(case)?;
        target.apply(1, 5)?;
        let before = target.contents();
        if target.install(&SnapshotMetadata::new(id(SOME), checksum), copy.path()).is_ok() {
            // Accepting is no violation: nothing may be lost, or the format may not see this as
            // corruption.
            continue;
        }
        let when = format!("after a snapshot with {what} was refused");
        target.holds(&before, &when)?;
        target.halted_at(5, &when)?;
        if target.is_durable() {
            flush(&target)?;
            target.reopen()?;
            target.holds(&before, &format!("{when} and the machine was reopened"))?;
        }
    }
    Ok(())
}

/// A snapshot of another history is installed. The rule: it replaces the whole state.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn an_install_leaves_nothing_of_the_old_state<M: StateMachine>(
    case: &StateMachineCase<M>,
) -> Found {
    let (source, mut target) = (Subject::new(case)?, Subject::new(case)?);
    // The source has few records but is further in the log; the target has many that the source
    // never had.
    source.apply_all((1..=40).map(|index| (index, (case.command)(index % 2 + 1))))?;
    let expected = source.contents();
    let (dir, meta) = source.snapshot(40)?;
    target.apply_all((1..=30).map(|index| (index, (case.command)(1_000 + index))))?;
    target.install(&meta, dir.path()).map_err(|error| {
        format!("apply_snapshot_from_file() failed over another state: {error}")
    })?;
    target.holds(
        &expected,
        "after a snapshot was installed over another state (it must replace the whole state)",
    )?;
    if target.is_durable() {
        flush(&target)?;
        target.reopen()?;
        target.holds(
            &expected,
            "after a snapshot was installed over another state, flush() and reopening",
        )?;
        target.halted_at(
            40,
            "after a snapshot was installed over another state, flush() and reopening",
        )?;
    }
    Ok(())
}

/// Two machines with the same state write the same files, unless the case says otherwise.
///
/// # Errors
/// The rule that the machine broke, and how.
pub fn equal_states_write_equal_snapshots<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    one.apply(1, SOME)?;
    other.apply(1, 7)?;
    other.apply(8, SOME)?;
    let ((_dir, one), (_dir_too, other)) = (one.snapshot(SOME)?, other.snapshot(SOME)?);
    if one.checksum == other.checksum || !case.equal_files {
        return Ok(());
    }
    Err("two machines with the same state write different snapshots; write records in a fixed \
         order, or declare `snapshots_may_differ()` in the case"
        .to_owned())
}

#[derive(Clone, Copy)]
enum Damage {
    Flip(u64, u64),
    Cut(u64, u64),
    Remove,
    Add,
}

/// Each position is a fraction of the largest file's length.
const DAMAGES: &[(&str, Damage)] = &[
    ("a flipped bit in the middle", Damage::Flip(1, 2)),
    ("a flipped bit at the end", Damage::Flip(99, 100)),
    ("a file cut to half its length", Damage::Cut(1, 2)),
    ("a file cut to nine tenths of its length", Damage::Cut(9, 10)),
    ("a file cut to length 0", Damage::Cut(0, 1)),
    ("a missing file", Damage::Remove),
    ("a surplus file", Damage::Add),
];

/// A copy of a snapshot's directory with its largest file damaged.
fn damaged(dir: &Path, damage: Damage) -> Result<tempfile::TempDir, Violation> {
    let copy = tempfile::tempdir().map_err(io)?;
    crate::copy::copy_dir(dir, copy.path()).map_err(io)?;
    let mut files = Vec::new();
    files_in(copy.path(), &mut files).map_err(io)?;
    let Some((len, path)) = files.into_iter().max() else {
        return Err("the snapshot has no file; a snapshot must hold at least one".to_owned());
    };
    let done = match damage {
        Damage::Flip(part, of) if len > 0 => std::fs::read(&path).and_then(|mut bytes| {
            let at = usize::try_from(len * part / of).unwrap_or(0);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
            std::fs::write(&path, bytes)
        }),
        Damage::Flip(..) => Ok(()),
        Damage::Cut(part, of) => std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(len * part / of)),
        Damage::Remove => std::fs::remove_file(&path),
        Damage::Add => std::fs::write(path.with_extension("surplus"), b"x"),
    };
    done.map_err(io)?;
    Ok(copy)
}

pub(super) fn files_in(dir: &Path, files: &mut Vec<(u64, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_in(&entry.path(), files)?;
        } else {
            files.push((entry.metadata()?.len(), entry.path()));
        }
    }
    Ok(())
}
