//! The checks, one for each rule of the storage engine's contract.

use std::path::Path;
use std::sync::Arc;

use d_engine_core::{LogId, LogIndex, SplitMix64};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{ClusterId, Fs, LogEntry, LogSuffix, OpenRequest};

use super::{
    GROUP, StorageEngineCase, entries, entry, failed, hard_state, holds, id, io, node, reads,
    request, store,
};
use crate::Violation;

type Found = Result<(), Violation>;
type Check = fn(&StorageEngineCase) -> Found;

macro_rules! named {
    ($($check:ident)*) => { &[$((stringify!($check), $check)),*] };
}

/// Every check with its name.
pub const ALL: &[(&str, Check)] = crate::__each_storage_engine_check!([named]);

/// A new directory has no entries, term 0 and the requested identity; a second open returns the
/// same identity.
///
/// # Errors
/// The rule that the engine broke, and how.
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
        return Err(format!(
            "a new directory has the identity {first:?} and {:?}; expected the requested node and \
             cluster, and term 0",
            opened.recovered.hard_state
        ));
    }
    drop(opened);
    let again = case.open(&dir)?;
    if again.identity != first {
        return Err(format!(
            "the identity changed from {first:?} to {:?} at the second open(); it must be stored \
             at the first",
            again.identity
        ));
    }
    Ok(())
}

/// Entries of several syncs, and the hard state stored with them, are unchanged after each open.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn entries_come_back_as_they_were(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    let all = entries(2, 1, 60);
    for part in all.chunks(7) {
        store(&mut opened, 2, part)?;
    }
    reads(&opened, &all, "after sync()")?;
    for time in 1..=2 {
        drop(opened);
        opened = case.open(&dir)?;
        holds(&opened, LogId::ZERO, &all, &format!("after reopening {time} times"))?;
        let found = opened.recovered.hard_state;
        if (found.term, found.vote) != (hard_state(2).term, hard_state(2).vote) {
            return Err(format!(
                "open() recovered the hard state {found:?}, but {:?} was stored; append() must \
                 store term and vote",
                hard_state(2)
            ));
        }
    }
    store(&mut opened, 3, &entries(3, 61, 63))?;
    opened.log.idle().map_err(|error| failed("idle()", &error))?;
    drop(opened);
    let all: Vec<LogEntry> = all.into_iter().chain(entries(3, 61, 63)).collect();
    holds(
        &case.open(&dir)?,
        LogId::ZERO,
        &all,
        "after more entries were appended and the log reopened",
    )
}

/// The process is killed after a sync. The rule: the files hold every synced entry, and no unsynced
/// entry reappears in part.
///
/// # Errors
/// The rule that the engine broke, and how.
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
        return Err(format!(
            "after a sync of 10 entries and a kill of the process, {kept} entries are left; sync() \
             must write all of them"
        ));
    }
    holds(&killed, LogId::ZERO, &all[..kept.min(20)], "after a kill of the process")
}

/// The power fails at every file operation of a sync, on a disk that loses what was not synced. The
/// rule: synced entries survive. Needs [`StorageEngineCase::on_fs`].
///
/// # Errors
/// The rule that the engine broke, and how.
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
        // The second write may fail; entries of it that survive must be whole.
        let acknowledged = store(&mut opened, 2, &entries(2, 11, 20)).is_ok();
        drop(opened);
        let mut random = SplitMix64::new(moment);
        disk.crash(&mut |below| random.below(below));
        let opened = engine()
            .open(&request())
            .map_err(|error| failed("open() after a power cut", &error))?;
        let kept = opened.recovered.entries.len();
        if kept < 10 || (acknowledged && kept < 20) {
            return Err(format!(
                "{kept} entries are left after a power cut at file operation {moment} of a sync; \
                 sync() must make entries durable before it returns"
            ));
        }
        let all: Vec<LogEntry> = entries(1, 1, 10).into_iter().chain(entries(2, 11, 20)).collect();
        holds(&opened, LogId::ZERO, &all[..kept.min(20)], "after a power cut")?;
        let expected = if kept > 10 { 2 } else { 1 };
        let term = opened.recovered.hard_state.term.get();
        if term < expected {
            return Err(format!(
                "after a power cut the term is {term}, but entries of term {expected} survived; \
                 the hard state must become durable no later than the entries appended with it"
            ));
        }
    }
    Ok(())
}

/// Entries of a later term replace a conflicting suffix, in the middle and at the beginning of the
/// log.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn a_conflicting_suffix_is_replaced(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 20))?;
    store(&mut opened, 2, &entries(2, 12, 14))?;
    let expected: Vec<LogEntry> = entries(1, 1, 11).into_iter().chain(entries(2, 12, 14)).collect();
    reads(&opened, &expected, "after entries 12 to 14 were replaced")?;
    let reader = opened.log.reader();
    if reader
        .read(GROUP, LogIndex::new(15), LogIndex::new(15), usize::MAX)
        .is_ok_and(|read| !read.is_empty())
    {
        return Err("entry 15 can be read, but entries 12 to 14 were replaced; an append must \
                    truncate the conflicting suffix"
            .to_owned());
    }
    drop((reader, opened));
    let mut opened = case.open(&dir)?;
    holds(&opened, LogId::ZERO, &expected, "after a suffix was replaced and the log reopened")?;
    store(&mut opened, 3, &entries(3, 1, 2))?;
    drop(opened);
    holds(&case.open(&dir)?, LogId::ZERO, &entries(3, 1, 2), "after everything was replaced")
}

/// An append that leaves a gap is refused.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn gaps_are_refused(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 3))?;
    if store(&mut opened, 1, &[entry(1, 5)]).is_ok() {
        return Err(
            "entry 5 was stored directly after entry 3; append() must refuse a gap".to_owned()
        );
    }
    drop(opened);
    holds(&case.open(&dir)?, LogId::ZERO, &entries(1, 1, 3), "after a gap was refused")
}

/// A purge removes the entries up to its index, keeps the later ones, and is durable.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn a_purge_keeps_what_is_after_it(case: &StorageEngineCase) -> Found {
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
            return Err(format!(
                "{when}, entry {through} can still be read; purge() must remove entries up to and \
                 including its index"
            ));
        }
        drop(opened);
        opened = case.open(&dir)?;
        holds(
            &opened,
            id(1, through),
            &entries(1, through + 1, 50),
            &format!("{when} and reopening"),
        )?;
    }
    // Purge the whole log, then append after it.
    opened.log.purge(GROUP, id(1, 50)).map_err(|error| failed("purge()", &error))?;
    store(&mut opened, 2, &entries(2, 51, 52))?;
    drop(opened);
    holds(
        &case.open(&dir)?,
        id(1, 50),
        &entries(2, 51, 52),
        "after the whole log was purged and entries were appended",
    )
}

/// A purge beyond the last entry is refused.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn a_purge_past_the_end_is_refused(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    store(&mut opened, 1, &entries(1, 1, 5))?;
    if opened.log.purge(GROUP, id(1, 9)).is_ok() {
        return Err(
            "a log that ends at 5 was purged up to 9; purge() must refuse an index beyond the last \
             entry"
                .to_owned(),
        );
    }
    drop(opened);
    holds(
        &case.open(&dir)?,
        LogId::ZERO,
        &entries(1, 1, 5),
        "after a purge past the end was refused",
    )
}

/// An installed snapshot replaces the log: beyond its end, within it with a matching suffix, and
/// within it with a conflicting one.
///
/// # Errors
/// The rule that the engine broke, and how.
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
        holds(&opened, base, &kept, &format!("{when} and reopening"))?;
        if opened.recovered.hard_state.term.get() != 4 {
            return Err(format!(
                "{when}, the hard state is {:?}; install() must keep term 4",
                opened.recovered.hard_state
            ));
        }
        let next = kept.last().map_or(base.index, |last| last.id.index).next().get();
        store(&mut opened, 5, &entries(5, next, next + 3))?;
        drop(opened);
        let all: Vec<LogEntry> = kept.into_iter().chain(entries(5, next, next + 3)).collect();
        holds(&case.open(&dir)?, base, &all, &format!("{when} and entries were appended"))?;
    }
    Ok(())
}

/// A reader returns at least one entry, and stops at its byte limit.
///
/// # Errors
/// The rule that the engine broke, and how.
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
            return Err(format!(
                "read() returned {} entries for a limit of {bytes} bytes; it must return at least \
                 one entry, stop at the limit, and return the entries unchanged",
                read.len()
            ));
        }
    }
    if reader
        .read(GROUP, LogIndex::new(31), LogIndex::new(31), 1)
        .is_ok_and(|read| !read.is_empty())
    {
        return Err("read() returned entry 31, which was never written".to_owned());
    }
    Ok(())
}

/// The directory is locked while it is open.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn a_directory_is_opened_once(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let opened = case.open(&dir)?;
    if (case.engine)(&dir).open(&request()).is_ok() {
        return Err(
            "a directory that is already open was opened a second time; open() must lock it, or \
             two nodes write into it"
                .to_owned(),
        );
    }
    drop(opened);
    case.open(&dir).map(drop)
}

/// An open for another cluster or another node is refused and changes nothing.
///
/// # Errors
/// The rule that the engine broke, and how.
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
            return Err(format!(
                "the directory was opened for another {what}; open() must compare the request with \
                 the stored identity"
            ));
        }
    }
    holds(
        &case.open(&dir)?,
        LogId::ZERO,
        &entries(1, 1, 5),
        "after an open for another cluster and node was refused",
    )
}

/// Small records stored beside the log.
///
/// # Errors
/// The rule that the engine broke, and how.
pub fn records_are_replaced(case: &StorageEngineCase) -> Found {
    let dir = tempfile::tempdir().map_err(io)?;
    let dir = dir.path().join("data");
    let mut opened = case.open(&dir)?;
    let load = |opened: &d_engine_storage::OpenedStorage| {
        opened.meta.load("a-record").map_err(|error| failed("load()", &error))
    };
    if load(&opened)?.is_some() {
        return Err("load() returned a record that was never stored".to_owned());
    }
    for content in ["first", "the second one", ""] {
        opened
            .meta
            .store("a-record", content.as_bytes())
            .map_err(|error| failed("store()", &error))?;
        drop(opened);
        opened = case.open(&dir)?;
        if load(&opened)?.as_deref() != Some(content.as_bytes()) {
            return Err(format!(
                "load() returned {:?} after reopening, but {content:?} was stored",
                load(&opened)?
            ));
        }
    }
    Ok(())
}
