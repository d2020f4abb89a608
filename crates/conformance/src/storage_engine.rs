//! The description of a storage engine under test, and the helpers that the checks use.

pub mod checks;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
use d_engine_storage::{
    ClusterId, Fs, Incarnation, LogEntry, Member, MemberRole, Membership, OpenRequest,
    OpenedStorage, StorageEngine, StorageError,
};

use crate::Violation;

type Open = Box<dyn Fn(&Path) -> Box<dyn StorageEngine> + Send + Sync>;
type OpenOnFs = Box<dyn Fn(Arc<dyn Fs>, &Path) -> Box<dyn StorageEngine> + Send + Sync>;

/// What the kit needs to know about a storage engine.
pub struct StorageEngineCase {
    engine: Open,
    on_fs: Option<OpenOnFs>,
}

impl StorageEngineCase {
    /// A storage engine over the given directory. The kit also creates it over a directory that an
    /// earlier instance used, and over copies of that directory. A new directory does not exist
    /// yet; its parent does.
    pub fn new<E: StorageEngine>(engine: impl Fn(&Path) -> E + Send + Sync + 'static) -> Self {
        Self { engine: Box::new(move |dir| Box::new(engine(dir))), on_fs: None }
    }

    /// Creates the same engine with all of its files on `fs`, so that the kit can cut the power.
    #[must_use]
    pub fn on_fs<E: StorageEngine>(
        mut self,
        engine: impl Fn(Arc<dyn Fs>, &Path) -> E + Send + Sync + 'static,
    ) -> Self {
        self.on_fs = Some(Box::new(move |fs, dir| Box::new(engine(fs, dir))));
        self
    }

    fn open(&self, dir: &Path) -> Result<OpenedStorage, Violation> {
        (self.engine)(dir)
            .open(&request())
            .map_err(|error| format!("open() failed in the engine's own directory: {error}"))
    }
}

const GROUP: GroupId = GroupId::FIRST;

fn request() -> OpenRequest {
    let member = Member {
        node: 1,
        peer_addr: "127.0.0.1:7101".to_owned(),
        client_addr: "127.0.0.1:7001".to_owned(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    let members = Membership::new([member]);
    OpenRequest {
        cluster: Some(ClusterId([9; 16])),
        node: node(1),
        group: GROUP,
        initial: members.unwrap_or_else(|error| {
            unreachable!("one member with an address was refused: {error}")
        }),
        fresh_cluster: ClusterId([9; 16]),
        fresh_incarnation: Incarnation([5; 16]),
    }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap_or_else(|| unreachable!("{id} is not 0"))
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

/// An entry whose payload identifies it; payload lengths differ.
fn entry(term: u64, index: u64) -> LogEntry {
    let text = format!("entry {index} of term {term} ")
        .repeat(usize::try_from(index % 7 + 1).unwrap_or(1));
    let kind = if index % 5 == 4 { EntryKind::Noop } else { EntryKind::Command };
    let version = if index % 5 == 2 { 3 } else { 0 };
    LogEntry {
        id: id(term, index),
        kind,
        time_ms: 1_000 * index,
        session: None,
        version,
        data: Bytes::from(text),
    }
}

fn entries(term: u64, first: u64, last: u64) -> Vec<LogEntry> {
    (first..=last).map(|index| entry(term, index)).collect()
}

fn hard_state(term: u64) -> HardState {
    HardState {
        term: Term::new(term),
        vote: Some(node(1)),
        commit: LogIndex::new(0),
        ..HardState::default()
    }
}

/// Appends and syncs.
fn store(opened: &mut OpenedStorage, term: u64, entries: &[LogEntry]) -> Result<(), Violation> {
    let written = opened.log.append(GROUP, Some(hard_state(term)), entries);
    written.and_then(|()| opened.log.sync()).map_err(|error| failed("append() and sync()", &error))
}

fn failed(what: &str, error: &StorageError) -> Violation {
    format!("{what} failed: {error}")
}

fn io(error: impl std::fmt::Display) -> Violation {
    format!(
        "the conformance kit itself failed: {error}; check the temporary directory and free space"
    )
}

/// Checks that the log holds exactly these entries after `base`, in the recovery report and through
/// a reader.
fn holds(
    opened: &OpenedStorage,
    base: LogId,
    expected: &[LogEntry],
    when: &str,
) -> Result<(), Violation> {
    let recovered = &opened.recovered;
    if recovered.base != base {
        return Err(format!(
            "{when}, the log begins after {}; it must begin after {base}",
            recovered.base
        ));
    }
    let found: Vec<LogId> = recovered.entries.iter().map(|head| head.id).collect();
    let wanted: Vec<LogId> = expected.iter().map(|entry| entry.id).collect();
    if found != wanted {
        return Err(format!("{when}, open() recovered the entries {found:?}; expected {wanted:?}"));
    }
    reads(opened, expected, when)
}

/// Checks that a reader returns these entries.
fn reads(opened: &OpenedStorage, expected: &[LogEntry], when: &str) -> Result<(), Violation> {
    let (Some(first), Some(last)) = (expected.first(), expected.last()) else { return Ok(()) };
    let (first, last) = (first.id.index, last.id.index);
    let read = opened.log.reader().read(GROUP, first, last, usize::MAX);
    let read = read.map_err(|error| format!("{when}, reading {first}..={last} failed: {error}"))?;
    match read.iter().zip(expected).find(|(found, wanted)| found != wanted) {
        Some((found, wanted)) => {
            Err(format!("{when}, read() returned {found:?}; expected {wanted:?}"))
        }
        None if read.len() != expected.len() => Err(format!(
            "{when}, read() returned {} entries; expected {}",
            read.len(),
            expected.len()
        )),
        None => Ok(()),
    }
}
