//! What the storage tests share: values to store, and a plain picture of a log's content.
#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, SplitMix64, Term};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{
    Alignment, ClusterId, FileStorageEngine, FileStorageOptions, Fs, Incarnation, LogEntry,
    LogStore, Member, MemberRole, Membership, OpenRequest, OpenedStorage, SessionSerial,
    StorageEngine, StorageError,
};

pub const GROUP: GroupId = GroupId::FIRST;
pub const DIR: &str = "/node/data";

pub fn request() -> OpenRequest {
    OpenRequest {
        cluster: None,
        node: NodeId::new(1).unwrap(),
        group: GROUP,
        initial: membership(),
        fresh_cluster: ClusterId([0xC1; 16]),
        fresh_incarnation: Incarnation([0x1C; 16]),
    }
}

pub fn membership() -> Membership {
    let member = |node: u64| Member {
        node,
        peer_addr: format!("127.0.0.1:{}", 7000 + node),
        client_addr: format!("127.0.0.1:{}", 8000 + node),
        role: MemberRole::Voter,
        incarnation: None,
    };
    Membership::new([member(1), member(2), member(3)]).unwrap()
}

/// Small segments, which a few entries fill.
pub fn small() -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: 4096,
        alignment: Alignment::Sector,
        grow_bytes: 1024,
        prepare_bytes: 2048,
        spare_segments: 2,
        reserve_bytes: 1024,
    }
}

/// One segment that no test fills.
pub fn roomy() -> FileStorageOptions {
    FileStorageOptions { segment_bytes: 1 << 20, grow_bytes: 4096, prepare_bytes: 4096, ..small() }
}

pub fn engine(fs: &SimFs, options: &FileStorageOptions) -> FileStorageEngine {
    FileStorageEngine::new(DIR, options.clone(), Arc::new(fs.clone()) as Arc<dyn Fs>)
}

pub fn open(fs: &SimFs, options: &FileStorageOptions) -> Result<OpenedStorage, StorageError> {
    engine(fs, options).open(&request())
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

/// An entry whose payload names its index and term.
pub fn entry(term: u64, index: u64) -> LogEntry {
    entry_with(term, index, format!("command {index} of term {term}"))
}

pub fn entry_with(term: u64, index: u64, data: impl Into<Bytes>) -> LogEntry {
    LogEntry {
        id: log_id(term, index),
        kind: EntryKind::Command,
        time_ms: 1_000 + index,
        session: index.is_multiple_of(3).then_some(SessionSerial { session: 1, serial: index }),
        version: 0,
        data: data.into(),
    }
}

pub fn entries(term: u64, indexes: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    indexes.map(|index| entry(term, index)).collect()
}

pub fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term: Term::new(term),
        vote: NodeId::new(vote),
        commit: LogIndex::new(commit),
        ..HardState::default()
    }
}

/// The content of a log, as a naive model keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    pub hard_state: HardState,
    pub base: LogId,
    pub entries: BTreeMap<u64, LogEntry>,
}

impl Picture {
    pub fn append(&mut self, hard_state: Option<HardState>, entries: &[LogEntry]) {
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        for entry in entries {
            self.entries.split_off(&entry.id.index.get());
            self.entries.insert(entry.id.index.get(), entry.clone());
        }
    }

    pub fn purge(&mut self, through: LogId) {
        self.base = through;
        self.entries = self.entries.split_off(&(through.index.get() + 1));
    }

    /// A snapshot replaces the whole content.
    pub fn restart(&mut self, base: LogId) {
        self.base = base;
        self.entries.clear();
    }

    pub fn last(&self) -> u64 {
        self.entries.keys().last().copied().unwrap_or(self.base.index.get())
    }

    /// Reads the content of an open log: the recovered heads must agree with what the reader
    /// returns.
    pub fn of(opened: &OpenedStorage) -> Self {
        let recovered = &opened.recovered;
        let mut picture = Self {
            hard_state: recovered.hard_state,
            base: recovered.base,
            entries: BTreeMap::new(),
        };
        let read = read_all(&*opened.log, picture.base, recovered.entries.len() as u64);
        let heads: Vec<_> = read.iter().map(LogEntry::head).collect();
        assert_eq!(heads, recovered.entries, "heads and entries differ");
        let stored = read.iter().filter(|entry| entry.kind == EntryKind::Membership);
        let stored: Vec<_> = stored.map(|entry| (entry.id.index, entry.data.clone())).collect();
        assert_eq!(stored, recovered.memberships, "memberships differ");
        picture.append(None, &read);
        picture
    }
}

pub fn read_all(log: &dyn LogStore, base: LogId, count: u64) -> Vec<LogEntry> {
    if count == 0 {
        return Vec::new();
    }
    log.reader().read(GROUP, base.index.next(), base.index.plus(count), usize::MAX).unwrap()
}

/// Returns the segment files, oldest first, by full path.
pub fn segments(fs: &SimFs) -> Vec<PathBuf> {
    let files = fs.image().files.into_keys();
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

/// Returns the minimum length that `log.meta` records for the newest segment.
pub fn filled(fs: &SimFs) -> u64 {
    let record = &fs.image().files[&PathBuf::from(DIR).join("log.meta")];
    u64::from_le_bytes(record[28 + 24..28 + 32].try_into().unwrap())
}

/// Replaces the content of a file, durably.
pub fn with_content(fs: &SimFs, path: &std::path::Path, content: Vec<u8>) -> SimFs {
    let mut image = fs.image();
    image.files.insert(path.to_owned(), content);
    SimFs::from_image(&image)
}

/// Checks the content of a log that was opened after damage. It must behave like any other log: it
/// takes entries, keeps them, is closed, and opens again, before and after a power cut. Works on a
/// copy of the disk.
pub fn goes_on(fs: &SimFs, options: &FileStorageOptions, context: &str) -> Picture {
    let fs = SimFs::from_image(&fs.image());
    let open = |when: &str| {
        open(&fs, options).unwrap_or_else(|error| panic!("{context}, {when}: {error}"))
    };
    let mut opened = open("at first");
    let found = Picture::of(&opened);
    let mut expected = found.clone();
    for round in 0..2 {
        let next = entries(90 + round, expected.last() + 1..=expected.last() + 2);
        let state = Some(hard_state(90 + round, 2, found.base.index.get()));
        opened.log.append(GROUP, state, &next).unwrap();
        opened.log.sync().unwrap();
        expected.append(state, &next);
        drop(opened);
        if round == 1 {
            fs.crash(&mut |_| 0);
        }
        opened = open("after it has taken entries");
        assert_eq!(Picture::of(&opened), expected, "{context}");
        assert_eq!(opened.report.torn_bytes, 0, "{context}");
    }
    found
}

/// The seed determines the run.
pub struct Random(SplitMix64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub fn number(&mut self) -> u64 {
        self.0.number()
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    pub fn crash(&mut self, fs: &SimFs) {
        fs.crash(&mut |n| self.below(n));
    }
}
