//! Each check of the kit detects a storage engine with the corresponding fault: the file-based
//! engine, altered in one place.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_conformance::{StorageEngineCase, check_storage_engine};
use d_engine_core::{GroupId, HardState, LogId, LogIndex, Term};
use d_engine_storage::{
    FileKind, FileStorageEngine, FileStorageOptions, Fs, FsFile, Incarnation, LockAttempt,
    LogEntry, LogReader, LogStats, LogStore, LogSuffix, MetaStore, OpenMode, OpenRequest,
    OpenedStorage, RealFs, StorageEngine, StorageError,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    AnotherIdentity,
    LosesTheHardState,
    LosesTheVersion,
    SyncsLater,
    DoesNotSync,
    KeepsTheSuffix,
    TakesGaps,
    PurgesTooMuch,
    PurgesWhatIsNotThere,
    DropsTheSuffixAtInstall,
    ReadsWithoutBound,
    LetsTwoIn,
    LetsOthersIn,
    KeepsTheFirstRecord,
}

const FAULTS: [(Fault, &str); 14] = [
    (Fault::AnotherIdentity, "a_new_directory_is_empty"),
    (Fault::LosesTheHardState, "entries_come_back_as_they_were"),
    (Fault::LosesTheVersion, "entries_come_back_as_they_were"),
    (Fault::SyncsLater, "synced_is_in_the_files"),
    (Fault::DoesNotSync, "power_cuts_lose_nothing_synced"),
    (Fault::KeepsTheSuffix, "a_conflicting_suffix_is_replaced"),
    (Fault::TakesGaps, "gaps_are_refused"),
    (Fault::PurgesTooMuch, "a_purge_keeps_what_is_after_it"),
    (Fault::PurgesWhatIsNotThere, "a_purge_past_the_end_is_refused"),
    (Fault::DropsTheSuffixAtInstall, "an_install_takes_the_place_of_the_log"),
    (Fault::ReadsWithoutBound, "readers_stop_at_their_bound"),
    (Fault::LetsTwoIn, "a_directory_is_opened_once"),
    (Fault::LetsOthersIn, "a_directory_belongs_to_one_node_of_one_cluster"),
    (Fault::KeepsTheFirstRecord, "records_are_replaced"),
];

fn small() -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: 64 << 10,
        grow_bytes: 4 << 10,
        ..FileStorageOptions::default()
    }
}

#[derive(Debug)]
struct Spoilt {
    fault: Fault,
    engine: FileStorageEngine,
    dir: PathBuf,
}

impl Spoilt {
    fn new(fault: Fault, fs: Arc<dyn Fs>, dir: &Path) -> Self {
        let fs: Arc<dyn Fs> = if fault == Fault::DoesNotSync { Arc::new(Unsynced(fs)) } else { fs };
        let engine = FileStorageEngine::new(dir, small(), fs);
        Self { fault, engine, dir: dir.to_owned() }
    }
}

impl StorageEngine for Spoilt {
    fn open(&self, request: &OpenRequest) -> Result<OpenedStorage, StorageError> {
        let mut opened = match (self.engine.open(request), self.fault) {
            (Err(_), Fault::LetsTwoIn) => {
                let aside = self.dir.with_extension("aside");
                FileStorageEngine::new(aside, small(), Arc::new(RealFs::new())).open(request)?
            }
            (Err(error), Fault::LetsOthersIn) => {
                let mut right = request.clone();
                right.cluster = None;
                (1..=2)
                    .find_map(|id| {
                        right.node = d_engine_core::NodeId::new(id)?;
                        self.engine.open(&right).ok()
                    })
                    .ok_or(error)?
            }
            (opened, _) => opened?,
        };
        if self.fault == Fault::AnotherIdentity && !opened.report.created {
            opened.identity.incarnation = Incarnation([0; 16]);
        }
        let last = opened.recovered.entries.last().map_or(opened.recovered.base, |head| head.id);
        opened.log = Box::new(SpoiltLog { fault: self.fault, log: opened.log, last, unsynced: 0 });
        opened.meta = Box::new(SpoiltMeta { fault: self.fault, meta: opened.meta });
        Ok(opened)
    }
}

#[derive(Debug)]
struct SpoiltLog {
    fault: Fault,
    log: Box<dyn LogStore>,
    last: LogId,
    unsynced: usize,
}

impl LogStore for SpoiltLog {
    fn append(
        &mut self,
        group: GroupId,
        hard_state: Option<HardState>,
        entries: &[LogEntry],
    ) -> Result<(), StorageError> {
        let hard_state = hard_state.filter(|_| self.fault != Fault::LosesTheHardState);
        let last = self.last.index;
        let is_new =
            |entry: &&LogEntry| self.fault != Fault::KeepsTheSuffix || entry.id.index > last;
        let mut entries: Vec<LogEntry> = entries.iter().filter(is_new).cloned().collect();
        if self.fault == Fault::LosesTheVersion {
            entries.iter_mut().for_each(|entry| entry.version = 0);
        }
        let appended = self.log.append(group, hard_state, &entries);
        if appended.is_ok() {
            self.last = entries.last().map_or(self.last, |entry| entry.id);
        }
        if self.fault == Fault::TakesGaps { Ok(()) } else { appended }
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.unsynced += 1;
        // Every other one, to save time.
        if self.fault == Fault::SyncsLater && self.unsynced % 2 == 1 {
            Ok(())
        } else {
            self.log.sync()
        }
    }

    fn idle(&mut self) -> Result<(), StorageError> {
        self.log.idle()
    }

    fn purge(&mut self, group: GroupId, through: LogId) -> Result<(), StorageError> {
        let more = self.fault == Fault::PurgesTooMuch && through.index < self.last.index;
        let through = if more { LogId::new(through.term, through.index.next()) } else { through };
        let purged = self.log.purge(group, through);
        if self.fault == Fault::PurgesWhatIsNotThere { Ok(()) } else { purged }
    }

    fn install(
        &mut self,
        group: GroupId,
        base: LogId,
        suffix: LogSuffix,
    ) -> Result<(), StorageError> {
        if self.fault == Fault::DropsTheSuffixAtInstall && suffix == LogSuffix::Keep {
            let conflicts = LogEntry {
                id: LogId::new(Term::new(base.term.get() + 1), base.index),
                ..last_entry(&*self.log, base)
            };
            self.log.append(group, None, &[conflicts])?;
            self.log.sync()?;
            return self.log.install(group, base, LogSuffix::Drop);
        }
        self.log.install(group, base, suffix)
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        if self.fault == Fault::ReadsWithoutBound {
            Arc::new(Unbounded(self.log.reader()))
        } else {
            self.log.reader()
        }
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}

fn last_entry(log: &dyn LogStore, at: LogId) -> LogEntry {
    log.reader().read(GroupId::FIRST, at.index, at.index, 1).unwrap().remove(0)
}

#[derive(Debug)]
struct Unbounded(Arc<dyn LogReader>);

impl LogReader for Unbounded {
    fn read(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        _max_bytes: usize,
    ) -> Result<Vec<LogEntry>, StorageError> {
        self.0.read(group, first, last, usize::MAX)
    }
}

#[derive(Debug)]
struct SpoiltMeta {
    fault: Fault,
    meta: Box<dyn MetaStore>,
}

impl MetaStore for SpoiltMeta {
    fn load(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        self.meta.load(name)
    }

    fn store(&mut self, name: &str, record: &[u8]) -> Result<(), StorageError> {
        let is_there = self.meta.load(name)?.is_some();
        if is_there && self.fault == Fault::KeepsTheFirstRecord {
            Ok(())
        } else {
            self.meta.store(name, record)
        }
    }
}

/// A file system that reports files as synced without syncing them.
#[derive(Debug)]
struct Unsynced(Arc<dyn Fs>);

impl Fs for Unsynced {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>> {
        Ok(Arc::new(UnsyncedFile(self.0.open(path, mode)?)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt> {
        self.0.try_lock(path)
    }
    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        self.0.kind(path)
    }
    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        self.0.remove_tree(dir)
    }
    fn counts(&self) -> d_engine_storage::FsCounts {
        self.0.counts()
    }
}

#[derive(Debug)]
struct UnsyncedFile(Arc<dyn FsFile>);

impl FsFile for UnsyncedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_at(offset, bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

#[test]
fn every_wrong_engine_is_caught() {
    for (fault, expected) in FAULTS {
        let case =
            StorageEngineCase::new(move |dir| Spoilt::new(fault, Arc::new(RealFs::new()), dir))
                .on_fs(move |fs, dir| Spoilt::new(fault, fs, dir));
        let found = check_storage_engine(&case);
        assert!(
            found.iter().any(|(name, _)| *name == expected),
            "{fault:?} is not caught by {expected}: {found:#?}"
        );
    }
}

#[test]
fn every_check_catches_somebody() {
    for (name, _) in d_engine_conformance::storage_engine_checks::ALL {
        assert!(
            FAULTS.iter().any(|(_, expected)| expected == name),
            "there is no wrong engine for {name}"
        );
    }
}
