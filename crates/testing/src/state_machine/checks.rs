//! The checks, one for each line of the state machine's contract.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use d_engine_replica::{LogId, SnapshotMetadata, StateMachine, snapshot_checksum};
use d_engine_storage::Fs;
use d_engine_storage::fs_sim::SimFs;

use super::{StateMachineCase, Subject, TERM, id, io, shown, states};
use crate::Violation;

type Found = Result<(), Violation>;
type Check<M> = fn(&StateMachineCase<M>) -> Found;

/// Commands that a check applies before it looks.
const SOME: u64 = 24;

/// Every check with its name.
#[must_use]
pub fn all<M: StateMachine>() -> Vec<(&'static str, Check<M>)> {
    macro_rules! named {
        ($($check:ident)*) => { vec![$((stringify!($check), $check::<M> as Check<M>)),*] };
    }
    named! {
        start_and_stop
        a_chunk_is_applied_whole_or_not_at_all
        what_is_applied_already_changes_nothing
        a_snapshot_is_exactly_the_state_at_its_label
        a_view_stays_as_it_was
        the_checksum_is_that_of_the_files
        a_wrong_checksum_is_refused
        a_damaged_snapshot_leaves_the_old_state
        an_install_leaves_nothing_of_the_old_state
        flushed_is_in_the_files
        drop_flushes
        position_and_data_are_stored_together
        power_cuts_lose_nothing_flushed
        the_same_commands_give_the_same_state_and_replies
        the_clock_does_not_matter
        equal_states_write_equal_snapshots
        reads_see_whole_commands
        reset_is_the_beginning
        snapshot_metadata_is_kept
        terms_are_right_or_unknown
    }
}

/// `start`, `is_running`, `stop` twice, and an end without one.
///
/// # Errors
/// What was found.
pub fn start_and_stop<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let mut subject = Subject::new(case)?;
    if !subject.machine().is_running() {
        return Err("is_running() is false after start()".to_owned());
    }
    if subject.is_durable() && subject.machine().last_applied() != LogId::default() {
        return Err(format!("a new machine says it stands at {}", subject.machine().last_applied()));
    }
    for time in ["first", "second"] {
        subject.machine().stop().map_err(|error| format!("the {time} stop() failed: {error}"))?;
    }
    subject.reopen()?;
    subject.apply(1, 1).map(drop)
}

/// A chunk with a command that cannot be applied, at its end, in its middle and at its beginning.
///
/// # Errors
/// What was found.
pub fn a_chunk_is_applied_whole_or_not_at_all<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    for bad in &case.undecodable {
        for place in [3, 2, 1] {
            let subject = Subject::new(case)?;
            subject.apply(1, 4)?;
            let before = subject.contents();
            let command = |step| if step == place { bad.clone() } else { (case.command)(4 + step) };
            let applied = subject.apply_all((1..=3).map(|step| (4 + step, command(step))));
            if applied.is_ok() {
                // It counts as refused: the others must have taken effect, as everywhere.
                let other = Subject::new(case)?;
                other.apply(1, 4)?;
                let good = (1..=3).filter(|step| *step != place);
                other.apply_all(good.map(|step| (4 + step, command(step))))?;
                subject.holds(&other.contents(), "after a chunk with a command that was refused")?;
                continue;
            }
            subject.holds(&before, "after a chunk that failed as a whole")?;
            subject.stands_at(4, "after a chunk that failed as a whole")?;
        }
    }
    Ok(())
}

/// A `Durable` machine gets chunks again that it has, in part or as a whole, also after it was opened again.
///
/// # Errors
/// What was found.
pub fn what_is_applied_already_changes_nothing<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let mut subject = Subject::new(case)?;
    if !subject.is_durable() {
        return Ok(());
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

/// A `Durable` machine's process is killed right after `flush`.
///
/// # Errors
/// What was found.
pub fn flushed_is_in_the_files<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 12)?;
    let subject = Subject::new(case)?;
    if !subject.is_durable() {
        return Ok(());
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
        return Ok(());
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
        return Ok(());
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

/// The power fails at every moment of a flush, on a disk that loses what was not synced. Needs
/// [`StateMachineCase::on_fs`].
///
/// # Errors
/// What was found.
pub fn power_cuts_lose_nothing_flushed<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let Some(open) = &case.on_fs else { return Ok(()) };
    let states = states(case, 8)?;
    let home = Path::new("/machine");
    for seed in 1..=8_u64 {
        let disk = SimFs::new();
        disk.create_dir(home).map_err(io)?;
        disk.sync_dir(Path::new("/")).map_err(io)?;
        let run = |last: u64, first: u64| -> Result<(), Violation> {
            let subject = Subject::new(case)?;
            let machine = open(Arc::new(disk.clone()), home);
            machine.start().map_err(|error| error.to_string())?;
            let subject = Subject { machine: Some(Arc::new(machine)), ..subject };
            subject.apply(first, last)?;
            flush(&subject)
        };
        run(4, 1)?;
        // Further, and the power fails on the way.
        disk.halt_at(seed);
        run(8, 5).ok();
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        disk.crash(&mut |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if below == 0 { 0 } else { (state >> 33) % below }
        });
        let machine = open(Arc::new(disk.clone()), home);
        machine.start().map_err(|error| format!("start() after a power cut: {error}"))?;
        let position = machine.last_applied().index;
        if !(4..=8).contains(&position) {
            return Err(format!("{position} is its position after a power cut; {} was flushed", id(4)));
        }
        let (found, expected) = ((case.contents)(&machine), &states[usize::try_from(position).unwrap_or(0)]);
        if found != *expected {
            return Err(format!(
                "after a power cut it says it stands at {position} and holds {}, but must hold {}",
                shown(&found),
                shown(expected)
            ));
        }
    }
    Ok(())
}

/// Two machines get the same commands, in chunks of other sizes.
///
/// # Errors
/// What was found.
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
            "two machines reply {} and {} to the same command at index {}",
            show(&replies[at]),
            show(&others[at]),
            at + 1
        ));
    }
    other.holds(&one.contents(), "after the same commands as another machine")
}

/// The same commands more than a second later: the clock that counts is the log's.
///
/// # Errors
/// What was found.
pub fn the_clock_does_not_matter<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let (one, other) = (Subject::new(case)?, Subject::new(case)?);
    let replies = one.apply(1, SOME)?;
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
    other.holds(&one.contents(), "two seconds after another machine with the same commands")
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

/// Reads go on while entries are applied and a snapshot is installed: each sees the state between two commands.
///
/// # Errors
/// What was found.
pub fn reads_see_whole_commands<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, SOME)?;
    let source = Subject::new(case)?;
    source.apply(1, SOME)?;
    let (dir, meta) = source.snapshot(SOME)?;
    for _ in 0..4 {
        let subject = Subject::new(case)?;
        let over = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut odd = None;
                while !over.load(Ordering::Acquire) {
                    let found = subject.contents();
                    if odd.is_none() && !states.contains(&found) {
                        odd = Some(found);
                    }
                }
                odd
            });
            let written = (1..=10).try_for_each(|index| subject.apply(index, index).map(drop));
            let installed = written.and_then(|()| subject.install(&meta, dir.path()));
            over.store(true, Ordering::Release);
            reader
                .join()
                .map_err(|_| "a read panicked beside apply".to_owned())
                .and_then(|odd| installed.map(|()| odd))
        })?;
        if let Some(odd) = seen {
            return Err(format!(
                "a read beside apply or an install saw {}, which no command leaves",
                shown(&odd)
            ));
        }
    }
    Ok(())
}

/// `reset`, then everything again.
///
/// # Errors
/// What was found.
pub fn reset_is_the_beginning<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let states = states(case, 9)?;
    let mut subject = Subject::new(case)?;
    subject.apply(1, 9)?;
    subject.reset()?;
    subject.holds(&states[0], "after reset()")?;
    subject.stands_at(0, "after reset()")?;
    if subject.is_durable() {
        flush(&subject)?;
        subject.reopen()?;
        subject.holds(&states[0], "after reset() and being opened again")?;
        subject.stands_at(0, "after reset() and being opened again")?;
    }
    subject.apply(1, 9)?;
    subject.holds(&states[9], "after reset() and the same commands again")
}

/// What the engine tells of the newest snapshot is told back, and stored when it is to be.
///
/// # Errors
/// What was found.
pub fn snapshot_metadata_is_kept<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let mut subject = Subject::new(case)?;
    subject.apply(1, 3)?;
    for index in [2, 3] {
        let meta = SnapshotMetadata::new(id(index), [u8::try_from(index).unwrap_or(0); 32]);
        let machine = subject.machine();
        machine.update_last_snapshot_metadata(&meta).map_err(|error| error.to_string())?;
        machine.persist_last_snapshot_metadata(&meta).map_err(|error| error.to_string())?;
        if machine.snapshot_metadata().as_ref() != Some(&meta) {
            return Err(format!(
                "snapshot_metadata() is {:?} after {meta:?} was told",
                machine.snapshot_metadata()
            ));
        }
    }
    if subject.is_durable() {
        flush(&subject)?;
        let before = subject.machine().snapshot_metadata();
        subject.reopen()?;
        if subject.machine().snapshot_metadata() != before {
            return Err("persist_last_snapshot_metadata() did not outlive the machine".to_owned());
        }
    }
    Ok(())
}

/// `entry_term` never says anything that is not so.
///
/// # Errors
/// What was found.
pub fn terms_are_right_or_unknown<M: StateMachine>(case: &StateMachineCase<M>) -> Found {
    let subject = Subject::new(case)?;
    subject.apply(1, 5)?;
    for index in 1..=5 {
        if let Some(term) = subject.machine().entry_term(index).filter(|term| *term != TERM) {
            return Err(format!("entry_term({index}) is {term}; the entry is of term {TERM}"));
        }
    }
    match subject.machine().entry_term(6) {
        Some(term) => Err(format!("entry_term(6) is {term}; nobody has told it of entry 6")),
        None => Ok(()),
    }
}

fn flush<M: StateMachine>(subject: &Subject<'_, M>) -> Found {
    subject.machine().flush().map_err(|error| format!("flush() failed: {error}"))
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

fn files_in(dir: &Path, files: &mut Vec<(u64, PathBuf)>) -> std::io::Result<()> {
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
