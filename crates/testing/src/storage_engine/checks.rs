//! The checks, one for each line of the storage engine's contract.

use std::path::Path;
use std::sync::Arc;

use d_engine_core::{LogId, LogIndex};
use d_engine_storage::fs_sim::SimFs;
use d_engine_storage::{ClusterId, Fs, LogEntry, LogSuffix, OpenRequest};

use super::{
    GROUP, StorageEngineCase, entries, entry, failed, hard_state, holds, id, io, node, reads, request, store,
};
use crate::Violation;

type Found = Result<(), Violation>;
type Check = fn(&StorageEngineCase) -> Found;

macro_rules! named {
    ($($check:ident)*) => { &[$((stringify!($check), $check)),*] };
}

/// Every check with its name.
pub const ALL: &[(&str, Check)] = crate::__each_storage_engine_check!([named]);

/// A new directory: no entries, no term, the identity that was asked for, and the same one later.
///
/// # Errors
/// What was found.
pub fn a_new_directory_is_empty(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let opened = case.open(&dir)?;
    holds(&opened, LogId::ZERO, &[], "in a new directory")?;
    let first = opened.identity.clone();
    if first.node != node(1)
        || first.cluster != ClusterId([9; 16])
        || opened.recovered.hard_state.term.get() != 0
    {
        return Err(format!("a new directory says {first:?} and {:?}", opened.recovered.hard_state));
    }
    drop(opened);
    let again = case.open(&dir)?;
    if again.identity != first {
        return Err(format!("the identity changed from {first:?} to {:?}", again.identity));
    }
    Ok(())
}

/// Entries of several syncs, and the hard state stored with them, after each opening.
///
/// # Errors
/// What was found.
pub fn entries_come_back_as_they_were(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    let all = entries(2, 1, 60);
    for part in all.chunks(7) {
        store(&mut opened, 2, part)?;
    }
    reads(&opened, &all, "after it was synced")?;
    for time in 1..=2 {
        drop(opened);
        opened = case.open(&dir)?;
        holds(&opened, LogId::ZERO, &all, &format!("after opening number {time}"))?;
        let found = opened.recovered.hard_state;
        if (found.term, found.vote) != (hard_state(2).term, hard_state(2).vote) {
            return Err(format!("{found:?} came back; {:?} was stored", hard_state(2)));
        }
    }
    store(&mut opened, 3, &entries(3, 61, 63))?;
    opened.log.idle().map_err(|error| failed("idle()", &error))?;
    drop(opened);
    let all: Vec<LogEntry> = all.into_iter().chain(entries(3, 61, 63)).collect();
    holds(&case.open(&dir)?, LogId::ZERO, &all, "after it went on and was opened again")
}

/// The process is killed after a sync: its files hold everything that was synced, and nothing that was not comes back by
/// halves.
///
/// # Errors
/// What was found.
pub fn synced_is_in_the_files(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let home = dir.path().join("data");
    let mut opened = case.open(&home)?;
    store(&mut opened, 1, &entries(1, 1, 10))?;
    let queued = opened.log.append(GROUP, None, &entries(1, 11, 20));
    queued.map_err(|error| failed("append()", &error))?;
    let copy = dir.path().join("copy");
    crate::copy::copy_dir(&home, &copy).map_err(io)?;
    let killed = case.open(&copy)?;
    let all = entries(1, 1, 20);
    let kept = killed.recovered.entries.len();
    if kept < 10 {
        return Err(format!("after a sync of 10 entries and a kill, {kept} are left"));
    }
    holds(&killed, LogId::ZERO, &all[..kept.min(20)], "after a kill")
}

/// The power fails at every moment of a sync, on a disk that loses what was not synced. Needs
/// [`StorageEngineCase::on_fs`].
///
/// # Errors
/// What was found.
pub fn power_cuts_lose_nothing_synced(case: &StorageEngineCase) -> Found {
    let Some(open) = &case.on_fs else { return Ok(()) };
    let home = Path::new("/node/data");
    for moment in 1..=12_u64 {
        let disk = SimFs::new();
        disk.create_dir(Path::new("/node")).map_err(io)?;
        disk.sync_dir(Path::new("/")).map_err(io)?;
        let engine = || open(Arc::new(disk.clone()) as Arc<dyn Fs>, home);
        let mut opened = engine().open(&request()).map_err(|error| failed("open()", &error))?;
        store(&mut opened, 1, &entries(1, 1, 10))?;
        disk.halt_at(moment);
        // It may fail; whatever of it is there afterwards must be whole.
        let acknowledged = store(&mut opened, 2, &entries(2, 11, 20)).is_ok();
        drop(opened);
        let mut state = moment.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        disk.crash(&mut |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if below == 0 { 0 } else { (state >> 33) % below }
        });
        let opened = engine().open(&request()).map_err(|error| failed("open() after a power cut", &error))?;
        let kept = opened.recovered.entries.len();
        if kept < 10 || (acknowledged && kept < 20) {
            return Err(format!(
                "{kept} entries are left after a power cut (operation {moment} of the sync)"
            ));
        }
        let all: Vec<LogEntry> = entries(1, 1, 10).into_iter().chain(entries(2, 11, 20)).collect();
        holds(&opened, LogId::ZERO, &all[..kept.min(20)], "after a power cut")?;
        let expected = if kept > 10 { 2 } else { 1 };
        let term = opened.recovered.hard_state.term.get();
        if term < expected {
            return Err(format!(
                "after a power cut the term is {term}, although entries of term {expected} are there"
            ));
        }
    }
    Ok(())
}

/// Entries of a later term take the place of others, in the middle and at the beginning.
///
/// # Errors
/// What was found.
pub fn a_conflicting_suffix_is_replaced(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 20))?;
    store(&mut opened, 2, &entries(2, 12, 14))?;
    let expected: Vec<LogEntry> = entries(1, 1, 11).into_iter().chain(entries(2, 12, 14)).collect();
    reads(&opened, &expected, "after entries 12 to 14 were replaced")?;
    let reader = opened.log.reader();
    if reader.read(GROUP, LogIndex::new(15), LogIndex::new(15), usize::MAX).is_ok_and(|read| !read.is_empty())
    {
        return Err("entry 15 can be read, although entry 12 was replaced".to_owned());
    }
    drop((reader, opened));
    let mut opened = case.open(&dir)?;
    holds(&opened, LogId::ZERO, &expected, "after a suffix was replaced and the log opened again")?;
    store(&mut opened, 3, &entries(3, 1, 2))?;
    drop(opened);
    holds(&case.open(&dir)?, LogId::ZERO, &entries(3, 1, 2), "after everything was replaced")
}

/// An entry that does not follow.
///
/// # Errors
/// What was found.
pub fn gaps_are_refused(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 3))?;
    if store(&mut opened, 1, &[entry(1, 5)]).is_ok() {
        return Err("entry 5 was stored behind entry 3".to_owned());
    }
    drop(opened);
    holds(&case.open(&dir)?, LogId::ZERO, &entries(1, 1, 3), "after a gap was refused")
}

/// A purge: what is forgotten, what stays, and that it stays so.
///
/// # Errors
/// What was found.
pub fn a_purge_keeps_what_is_behind_it(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 50))?;
    for through in [1, 17, 42] {
        opened.log.purge(GROUP, id(1, through)).map_err(|error| failed("purge()", &error))?;
        let when = format!("after a purge up to {through}");
        reads(&opened, &entries(1, through + 1, 50), &when)?;
        let gone = LogIndex::new(through);
        if opened.log.reader().read(GROUP, gone, gone, usize::MAX).is_ok() {
            return Err(format!("{when}, entry {through} can still be read"));
        }
        drop(opened);
        opened = case.open(&dir)?;
        holds(&opened, id(1, through), &entries(1, through + 1, 50), &format!("{when} and a restart"))?;
    }
    // Everything, and it goes on behind that.
    opened.log.purge(GROUP, id(1, 50)).map_err(|error| failed("purge()", &error))?;
    store(&mut opened, 2, &entries(2, 51, 52))?;
    drop(opened);
    holds(&case.open(&dir)?, id(1, 50), &entries(2, 51, 52), "after everything was purged and it went on")
}

/// A purge of what is not there yet.
///
/// # Errors
/// What was found.
pub fn a_purge_past_the_end_is_refused(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 5))?;
    if opened.log.purge(GROUP, id(1, 9)).is_ok() {
        return Err("a log that ends at 5 was purged up to 9".to_owned());
    }
    drop(opened);
    holds(&case.open(&dir)?, LogId::ZERO, &entries(1, 1, 5), "after a purge past the end was refused")
}

/// A snapshot takes the place of the log: past its end, within it with a matching suffix, and with another one.
///
/// # Errors
/// What was found.
pub fn an_install_takes_the_place_of_the_log(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    for (name, base, suffix, kept) in [
        ("past", id(4, 30), LogSuffix::Drop, 0..0),
        ("keep", id(1, 12), LogSuffix::Keep, 13..21),
        ("drop", id(4, 12), LogSuffix::Drop, 0..0),
    ] {
        let dir = dir.path().join(name);
        let mut opened = case.open(&dir)?;
        store(&mut opened, 4, &entries(1, 1, 20))?;
        opened.log.install(GROUP, base, suffix).map_err(|error| failed("install()", &error))?;
        let kept: Vec<LogEntry> = kept.map(|index| entry(1, index)).collect();
        let when = format!("after a snapshot of {base} was installed ({suffix:?})");
        reads(&opened, &kept, &when)?;
        drop(opened);
        let mut opened = case.open(&dir)?;
        holds(&opened, base, &kept, &format!("{when} and a restart"))?;
        if opened.recovered.hard_state.term.get() != 4 {
            return Err(format!("{when}, the hard state is {:?}", opened.recovered.hard_state));
        }
        let next = kept.last().map_or(base.index, |last| last.id.index).next().get();
        store(&mut opened, 5, &entries(5, next, next + 3))?;
        drop(opened);
        let all: Vec<LogEntry> = kept.into_iter().chain(entries(5, next, next + 3)).collect();
        holds(&case.open(&dir)?, base, &all, &format!("{when}, and it went on"))?;
    }
    Ok(())
}

/// A reader gives one entry at least, and stops when it has given enough.
///
/// # Errors
/// What was found.
pub fn readers_stop_at_their_bound(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let mut opened = case.open(&dir.path().join("data"))?;
    let all = entries(1, 1, 30);
    store(&mut opened, 1, &all)?;
    let reader = opened.log.reader();
    for (bytes, least, most) in [(0, 1, 1), (1, 1, 1), (200, 2, 29), (usize::MAX, 30, 30)] {
        let read = reader.read(GROUP, LogIndex::new(1), LogIndex::new(30), bytes);
        let read = read.map_err(|error| failed("read()", &error))?;
        if read.len() < least || read.len() > most || read[..] != all[..read.len()] {
            return Err(format!("{} entries were read with a bound of {bytes} bytes", read.len()));
        }
    }
    if reader.read(GROUP, LogIndex::new(31), LogIndex::new(31), 1).is_ok_and(|read| !read.is_empty()) {
        return Err("an entry was read that nobody wrote".to_owned());
    }
    Ok(())
}

/// The directory is locked while it is open.
///
/// # Errors
/// What was found.
pub fn a_directory_is_opened_once(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let opened = case.open(&dir)?;
    if (case.engine)(&dir).open(&request()).is_ok() {
        return Err(
            "a directory that is open was opened a second time: two nodes would write into it".to_owned()
        );
    }
    drop(opened);
    case.open(&dir).map(drop)
}

/// Another cluster and another node are refused, and find nothing changed.
///
/// # Errors
/// What was found.
pub fn a_directory_belongs_to_one_node_of_one_cluster(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 5))?;
    drop(opened);
    let other_cluster = OpenRequest { cluster: Some(ClusterId([8; 16])), ..request() };
    let other_node = OpenRequest { node: node(2), ..request() };
    for (what, request) in [("cluster", other_cluster), ("node", other_node)] {
        if (case.engine)(&dir).open(&request).is_ok() {
            return Err(format!("the directory was opened for another {what}"));
        }
    }
    holds(&case.open(&dir)?, LogId::ZERO, &entries(1, 1, 5), "after others were refused")
}

/// Small records beside the log.
///
/// # Errors
/// What was found.
pub fn records_are_replaced(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    let load = |opened: &d_engine_storage::OpenedStorage| {
        opened.meta.load("a-record").map_err(|error| failed("load()", &error))
    };
    if load(&opened)?.is_some() {
        return Err("a record is there that nobody wrote".to_owned());
    }
    for content in ["first", "the second one", ""] {
        opened.meta.store("a-record", content.as_bytes()).map_err(|error| failed("store()", &error))?;
        drop(opened);
        opened = case.open(&dir)?;
        if load(&opened)?.as_deref() != Some(content.as_bytes()) {
            return Err(format!("{:?} came back of a record; {content:?} was stored", load(&opened)?));
        }
    }
    Ok(())
}
