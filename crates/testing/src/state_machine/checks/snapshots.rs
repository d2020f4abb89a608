//! Snapshots: what is written, what is taken, and what is refused.

use std::path::{Path, PathBuf};
use std::task::Poll;

use d_engine_replica::{SnapshotMetadata, StateMachine, snapshot_checksum};

use super::{Found, SOME, flush, skipped};
use crate::Violation;
use crate::state_machine::{StateMachineCase, Subject, id, io, runtime, states};

/// A snapshot is installed elsewhere, at several places of the log.
///
/// # Errors
/// What was found.
pub fn a_snapshot_is_exactly_the_state_at_its_label<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    for label in 1..=SOME {
        source.apply(label, label)?;
        if ![1, 2, 11, SOME].contains(&label) {
            continue;
        }
        let view = source.machine().snapshot_view().map_err(|error| format!("snapshot_view(): {error}"))?;
        if let Some(view) = view.filter(|view| view.label() != id(label)) {
            return Err(format!("a view taken at {} says it is of {}", id(label), view.label()));
        }
        let (dir, meta) = source.snapshot(label)?;
        let mut target = Subject::new(case)?;
        target.install(&meta, dir.path()).map_err(|error| format!("its own snapshot is refused: {error}"))?;
        let when = format!("after a snapshot of {} was installed", id(label));
        target.holds(&states[usize::try_from(label).unwrap_or(0)], &when)?;
        target.stands_at(label, &when)?;
        if label < SOME {
            target.apply(label + 1, SOME)?;
            target.holds(&states[usize::try_from(SOME).unwrap_or(0)], "after entries behind a snapshot")?;
        }
        if target.is_durable() {
            flush(&target)?;
            target.reopen()?;
            target.stands_at(SOME, "after an install, entries behind it, and being opened again")?;
        }
    }
    Ok(())
}

/// The engine uses the view where there is one; but a view may be refused once, and `generate_snapshot_data` is called by
/// others.
///
/// # Errors
/// What was found.
pub fn both_ways_of_a_snapshot_give_the_same_state<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, meta) = source.generate(SOME)?;
    if snapshot_checksum(dir.path()).map_err(io)? != meta.checksum {
        return Err("generate_snapshot_data() returns another checksum than that of its files".to_owned());
    }
    let target = Subject::new(case)?;
    target.install(&meta, dir.path()).map_err(|error| format!("its own snapshot is refused: {error}"))?;
    let all = &states[usize::try_from(SOME).unwrap_or(0)];
    target.holds(all, "after a snapshot of generate_snapshot_data() was installed")
}

/// An attempt that takes too long is dropped, and its blocking work lives on: it may write where it was told to, and must
/// touch nothing else.
///
/// # Errors
/// What was found.
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
        return skipped("generate_snapshot_data never waits: there is nothing to drop");
    }
    subject.apply(6, 9)?;
    let generated = subject.machine().generate_snapshot_data(second.path().to_owned(), id(9));
    let checksum = runtime.block_on(generated).map_err(|error| format!("generate_snapshot_data: {error}"))?;
    // Ends when what was left behind does.
    drop(runtime);
    if snapshot_checksum(second.path()).map_err(io)? != checksum {
        return Err(
            "an attempt at a snapshot that was dropped has written into the next one's directory".to_owned()
        );
    }
    subject.holds(&states[9], "after an attempt at a snapshot was dropped")?;
    let target = Subject::new(case)?;
    target.install(&SnapshotMetadata::new(id(9), checksum), second.path())?;
    target.holds(&states[9], "after a snapshot was installed before which an attempt was dropped")
}

/// Entries are applied between the freezing of a view and its writing.
///
/// # Errors
/// What was found.
pub fn a_view_stays_as_it_was<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    source.apply(1, 9)?;
    let view = source.machine().snapshot_view().map_err(|error| format!("snapshot_view(): {error}"))?;
    let Some(view) = view else { return Ok(()) };
    source.apply(10, SOME)?;
    let label = view.label();
    let dir = tempfile::tempdir().map_err(io)?;
    let checksum = view.write(dir.path()).map_err(|error| format!("SnapshotView::write: {error}"))?;
    if label != id(9) {
        return Err(format!("a view taken at {} says it is of {label}", id(9)));
    }
    let target = Subject::new(case)?;
    target.install(&SnapshotMetadata::new(label, checksum), dir.path())?;
    target.holds(&states[9], "after a view was installed that was written while entries were applied")
}

/// What `generate_snapshot_data` or the view returns is what the engine will find.
///
/// # Errors
/// What was found.
pub fn the_checksum_is_that_of_the_files<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    subject.apply(1, SOME)?;
    let (dir, meta) = subject.snapshot(SOME)?;
    let found = snapshot_checksum(dir.path()).map_err(io)?;
    if found == meta.checksum {
        return Ok(());
    }
    Err("the checksum that was returned is not snapshot_checksum(dir) of the files that were written"
        .to_owned())
}

/// Metadata with another checksum; a file with a flipped bit, cut short, missing, or one too many.
///
/// # Errors
/// What was found.
pub fn a_wrong_checksum_is_refused<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, meta) = source.snapshot(SOME)?;
    let target = Subject::new(case)?;
    target.apply(1, 5)?;
    let before = target.contents();
    let refuses = |what: &str, meta: &SnapshotMetadata, dir: &Path| -> Found {
        if target.install(meta, dir).is_ok() {
            return Err(format!("a snapshot with {what} was installed; verify meta.checksum first"));
        }
        target.holds(&before, &format!("after a snapshot with {what} was refused"))?;
        target.stands_at(5, &format!("after a snapshot with {what} was refused"))
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

/// Damaged files under a checksum that is right for them: what is in them must not come in by halves.
///
/// # Errors
/// What was found.
pub fn a_damaged_snapshot_leaves_the_old_state<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
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
            // It may be that nothing was lost, or that the damage is no damage to this format.
            continue;
        }
        let when = format!("after a snapshot with {what} was refused");
        target.holds(&before, &when)?;
        target.stands_at(5, &when)?;
        if target.is_durable() {
            flush(&target)?;
            target.reopen()?;
            target.holds(&before, &format!("{when} and the machine was opened again"))?;
        }
    }
    Ok(())
}

/// A snapshot of another history takes the place of everything.
///
/// # Errors
/// What was found.
pub fn an_install_leaves_nothing_of_the_old_state<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let (source, mut target) = (Subject::new(case)?, Subject::new(case)?);
    // Few records, but further in the log; the target has many that the source never saw.
    source.apply_all((1..=40).map(|index| (index, (case.command)(index % 2 + 1))))?;
    let expected = source.contents();
    let (dir, meta) = source.snapshot(40)?;
    target.apply_all((1..=30).map(|index| (index, (case.command)(1_000 + index))))?;
    target.install(&meta, dir.path()).map_err(|error| format!("a snapshot over another state: {error}"))?;
    target.holds(&expected, "after a snapshot was installed over another state")?;
    if target.is_durable() {
        flush(&target)?;
        target.reopen()?;
        target.holds(&expected, "after a snapshot was installed over another state, and a restart")?;
        target.stands_at(40, "after a snapshot was installed over another state, and a restart")?;
    }
    Ok(())
}

/// Two machines with the same state write the same files.
///
/// # Errors
/// What was found.
pub fn equal_states_write_equal_snapshots<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    one.apply(1, SOME)?;
    other.apply(1, 7)?;
    other.apply(8, SOME)?;
    let ((_dir, one), (_dir_too, other)) = (one.snapshot(SOME)?, other.snapshot(SOME)?);
    if one.checksum == other.checksum || !case.equal_files {
        return Ok(());
    }
    Err("two machines with the same state write snapshots that differ: is something iterated in no fixed order? If \
         it cannot be helped, say `snapshots_may_differ()`"
        .to_owned())
}

#[derive(Clone, Copy)]
enum Damage {
    Flip(u64, u64),
    Cut(u64, u64),
    Remove,
    Add,
}

/// Where, in parts of the largest file's length.
const DAMAGES: &[(&str, Damage)] = &[
    ("a flipped bit in the middle", Damage::Flip(1, 2)),
    ("a flipped bit at the end", Damage::Flip(99, 100)),
    ("half of a file", Damage::Cut(1, 2)),
    ("a file without its end", Damage::Cut(9, 10)),
    ("a file cut to nothing", Damage::Cut(0, 1)),
    ("a file missing", Damage::Remove),
    ("one file too many", Damage::Add),
];

/// A copy of a snapshot's directory with its largest file damaged.
fn damaged(dir: &Path, damage: Damage) -> Result<tempfile::TempDir, Violation> {
    let copy = tempfile::tempdir().map_err(io)?;
    crate::copy::copy_dir(dir, copy.path()).map_err(io)?;
    let mut files = Vec::new();
    files_in(copy.path(), &mut files).map_err(io)?;
    let Some((len, path)) = files.into_iter().max() else {
        return Err("the snapshot has no file".to_owned());
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
        Damage::Cut(part, of) => {
            std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(len * part / of))
        }
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
