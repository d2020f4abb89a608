//! The default methods of a state machine, as the engine uses them: right for a machine in memory,
//! and refused where a durable machine needs its own.
#![allow(clippy::unwrap_used)]

mod recording;

use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use d_engine_core::EntryKind;
use d_engine_replica::{
    ApplyJob, ApplySource, Durability, Entry, HaltCause, LogId, Never, Result, SnapshotMetadata,
    StateMachine, StopReason, snapshot_checksum,
};
use d_engine_storage::LogEntry;
use d_engine_storage::snapshot::FullSpeed;
use recording::node::{Node, now, purge, send, store};
use recording::{Ground, at, entry};

/// The numbers that were applied, with the required methods alone.
#[derive(Default)]
struct Numbers(Mutex<Vec<u8>>);

impl Numbers {
    fn all(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl StateMachine for Numbers {
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut numbers = self.0.lock().unwrap();
        chunk.iter().for_each(|entry| numbers.extend_from_slice(&entry.data));
        Ok(())
    }

    fn len(&self) -> usize {
        self.all().len()
    }

    async fn apply_snapshot_from_file(&self, _: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        *self.0.lock().unwrap() = std::fs::read(path.join("numbers"))?;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, _: LogId) -> Result<[u8; 32]> {
        std::fs::write(dir.join("numbers"), self.all())?;
        Ok(snapshot_checksum(&dir)?)
    }

    async fn reset(&self) -> Result<()> {
        self.0.lock().unwrap().clear();
        Ok(())
    }
}

/// What a machine lacks that declares `Durability::Durable`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lacks {
    Position,
    PositionOfOtherEntries,
    Flush,
}

struct Incomplete {
    numbers: Numbers,
    position: Mutex<LogId>,
    lacks: Lacks,
}

impl Incomplete {
    fn new(lacks: Lacks) -> Self {
        Self { numbers: Numbers::default(), position: Mutex::default(), lacks }
    }
}

#[async_trait]
impl StateMachine for Incomplete {
    fn durability(&self) -> Durability {
        Durability::Durable
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        if let Some(last) = chunk.last().filter(|_| self.lacks != Lacks::Position) {
            *self.position.lock().unwrap() = last.id();
        }
        self.numbers.apply_chunk(chunk).await
    }

    fn last_applied(&self) -> LogId {
        *self.position.lock().unwrap()
    }

    fn update_last_applied(&self, last: LogId) {
        if self.lacks == Lacks::Flush {
            *self.position.lock().unwrap() = last;
        }
    }

    fn len(&self) -> usize {
        self.numbers.len()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.numbers.apply_snapshot_from_file(meta, path).await
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        self.numbers.generate_snapshot_data(dir, last_included).await
    }

    async fn reset(&self) -> Result<()> {
        self.numbers.reset().await
    }
}

/// A node without its machine's memory, as after a restart of the process.
fn restarted(node: Node<Numbers>) -> Node<Numbers> {
    let Node { ground, .. } = node;
    Node::start(ground.again(), Numbers::default(), Never).unwrap()
}

/// Applies an entry of the engine, which carries no command.
fn commit_noop<M: StateMachine>(node: &mut Node<M>, index: u64) {
    let entries: Vec<LogEntry> = vec![entry(index, EntryKind::Noop, 0)];
    store(&mut node.ground, 1, &entries);
    let source = ApplySource::Entries(entries);
    now(node.worker.run(ApplyJob { source, responders: Vec::new(), skip: None })).unwrap();
}

fn refusal<T>(result: Result<T, StopReason>) -> String {
    match result {
        Err(reason) => reason.to_string(),
        Ok(_) => panic!("it was not refused"),
    }
}

/// Nothing is lost or applied twice over snapshot, purge, restart and install.
#[test]
fn a_machine_with_the_required_methods_alone_is_rebuilt_from_snapshot_and_log() {
    let mut node = Node::start(Ground::new(), Numbers::default(), Never).unwrap();
    node.commit(1, 3);
    commit_noop(&mut node, 4);
    let info = node.take_snapshot();
    assert_eq!(info.last_included(), at(1, 4));
    purge(&mut node.ground, 4);
    node.commit(5, 6);
    node.worker.handler().close().unwrap();

    let mut node = restarted(node);
    assert_eq!((node.machine.all(), node.worker.handler().applied()), (vec![1, 2, 3], at(1, 4)));
    let job = ApplyJob {
        source: ApplySource::Entries((5..=6).map(recording::node::command).collect()),
        responders: Vec::new(),
        skip: None,
    };
    now(node.worker.run(job)).unwrap();
    assert_eq!(node.machine.all(), [1, 2, 3, 5, 6]);

    let mut other = Node::start(Ground::new(), Numbers::default(), Never).unwrap();
    send(&node, &info, &other.ground.store);
    other.install(at(1, 4)).unwrap();
    assert_eq!(other.machine.all(), [1, 2, 3]);
    assert_eq!(restarted(other).machine.all(), [1, 2, 3]);
}

#[test]
fn a_durable_machine_without_a_position_stops_its_node_at_its_first_command() {
    let mut node = Node::start(Ground::new(), Incomplete::new(Lacks::Position), Never).unwrap();
    let entries = node.store(1, 2);
    let refused = refusal(now(node.worker.handler().apply(&entries, Vec::new(), None)));
    assert!(refused.contains("has applied the entry at index 2 of term 1"), "{refused}");
    assert!(refused.contains("last_applied() is index 0 of term 0"), "{refused}");
    // The command is applied: nobody may take it for one that can be skipped.
    let reason = StopReason::new(refused);
    assert!(node.worker.stops(&reason, HaltCause::Error).is_err());
}

#[test]
fn no_snapshot_is_taken_of_a_durable_machine_that_does_not_report_entries_without_a_command() {
    let machine = Incomplete::new(Lacks::PositionOfOtherEntries);
    let mut node = Node::start(Ground::new(), machine, Never).unwrap();
    node.commit(1, 2);
    commit_noop(&mut node, 3);
    let refused = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested));
    let refused = format!("{refused:?}");
    assert!(refused.contains("update_last_applied() must move it"), "{refused}");
    assert!(node.ground.store.list().is_empty());
}

#[test]
fn the_log_is_not_purged_for_a_durable_machine_without_a_flush() {
    let mut node = Node::start(Ground::new(), Incomplete::new(Lacks::Flush), Never).unwrap();
    node.commit(1, 2);
    let task = now(node.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
        .unwrap()
        .unwrap();
    let built = task.build(&node.ground.store, &mut FullSpeed).unwrap();
    let refused = refusal(node.worker.end_snapshot(Ok(built)));
    assert!(refused.contains("must implement flush()"), "{refused}");
    assert!(refusal(node.worker.handler().close()).contains("must implement flush()"));
}
