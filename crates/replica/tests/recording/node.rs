//! The apply side of a node on real files: log, snapshots and a recording machine. The test
//! executes its jobs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use d_engine_core::{EntryKind, GroupId, HardState, Instant, LogIndex, NodeId, Term};
use d_engine_replica::{
    ApplyJob, ApplySource, ApplyWorker, LogId, ReceiverStep, SendLimits, SnapshotMessage,
    SnapshotPolicy, SnapshotReceiver, SnapshotSender, StartPosition, StateMachine,
    StateMachineHandler, StopReason,
};
use d_engine_storage::LogEntry;
use d_engine_storage::snapshot::{FullSpeed, SnapshotInfo, SnapshotStore};

use super::{Ground, Recording, entry, id};

/// The result of a future that never waits.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits for something"),
    }
}

pub(crate) struct Node<M = Recording> {
    pub(crate) ground: Ground,
    pub(crate) machine: Arc<M>,
    pub(crate) worker: ApplyWorker,
    pub(crate) start_position: StartPosition,
}

impl<M: StateMachine> Node<M> {
    pub(crate) fn start(
        mut ground: Ground,
        machine: M,
        policy: impl SnapshotPolicy,
    ) -> Result<Self, StopReason> {
        let machine = Arc::new(machine);
        let (handler, start_position) =
            now(StateMachineHandler::open(machine.clone(), Arc::new(policy), ground.start()))?;
        let worker = ApplyWorker::new(handler, ground.opened.log.reader(), GroupId::FIRST)
            .with_snapshots(ground.store.clone(), NodeId::new(1).unwrap());
        // An earlier worker may still have it.
        let worker = match ground.meta.take() {
            Some(meta) => worker.with_records(meta),
            None => worker,
        };
        Ok(Self { ground, machine, worker, start_position })
    }

    /// Persists commands of term 1 with the numbers 1, 2, ... at the indexes `first..=last`, and
    /// applies them.
    pub(crate) fn commit(&mut self, first: u64, last: u64) {
        let entries = self.store(first, last);
        let job =
            ApplyJob { source: ApplySource::Entries(entries), responders: Vec::new(), skip: None };
        now(self.worker.run(job)).unwrap();
    }

    /// Persists commands without applying them.
    pub(crate) fn store(&mut self, first: u64, last: u64) -> Vec<LogEntry> {
        let entries: Vec<LogEntry> = (first..=last).map(command).collect();
        store(&mut self.ground, 1, &entries);
        entries
    }

    /// Takes a snapshot of the applied state.
    pub(crate) fn take_snapshot(&mut self) -> SnapshotInfo {
        let task = now(self.worker.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
            .unwrap()
            .unwrap();
        let built = task.build(&self.ground.store, &mut FullSpeed);
        self.worker.end_snapshot(built.clone()).unwrap();
        built.unwrap()
    }

    pub(crate) fn install(&mut self, last_included: LogId) -> Result<(), StopReason> {
        let job = ApplyJob {
            source: ApplySource::Snapshot(last_included),
            responders: Vec::new(),
            skip: None,
        };
        now(self.worker.run(job)).map(|_| ())
    }
}

pub(crate) fn command(index: u64) -> LogEntry {
    entry(index, EntryKind::Command, u8::try_from(index).unwrap())
}

/// Persists entries, with a term that the node has seen.
pub(crate) fn store(ground: &mut Ground, term: u64, entries: &[LogEntry]) {
    let hard_state = HardState {
        term: Term::new(term),
        vote: None,
        commit: LogIndex::new(0),
        ..HardState::default()
    };
    ground.opened.log.append(GroupId::FIRST, Some(hard_state), entries).unwrap();
    ground.opened.log.sync().unwrap();
}

/// A node that has applied `last` commands and then taken a snapshot.
pub(crate) fn leader_with_snapshot(last: u64) -> (Node, SnapshotInfo) {
    let mut leader =
        Node::start(Ground::new(), Recording::default(), d_engine_replica::Never).unwrap();
    leader.commit(1, last);
    let info = leader.take_snapshot();
    (leader, info)
}

/// Sends a snapshot of another node into this store.
pub(crate) fn send<M>(from: &Node<M>, info: &SnapshotInfo, to: &SnapshotStore) {
    let archive = from.ground.store.open_archive(info.last_included()).unwrap();
    let mut sender =
        SnapshotSender::new(archive, Term::new(1), SendLimits::default(), Instant::ZERO);
    let from = NodeId::new(2).unwrap();
    let mut receiver = SnapshotReceiver::new(to.clone(), from, 1 << 30, LogIndex::new(0));
    let soon = Instant::ZERO.plus(Duration::from_millis(1));
    while let Some(message) = sender.poll().unwrap() {
        match receiver.on_message(message, &mut FullSpeed) {
            ReceiverStep::Answer(answer) => sender.on_message(soon, answer).unwrap(),
            ReceiverStep::Finish => break,
            ReceiverStep::Refuse(answer) => panic!("{answer:?}"),
        }
    }
    receiver.finish(&mut FullSpeed).unwrap();
    sender.on_message(soon, SnapshotMessage::Installing).unwrap();
    assert!(to.list().iter().any(|held| held.last_included() == info.last_included()));
}

/// Flips a bit in the middle of an archive.
pub(crate) fn damage(ground: &Ground, info: &SnapshotInfo) {
    flip(ground, info, |len| len / 2);
}

/// Flips a bit of the content of an archive; its header stays whole.
pub(crate) fn damage_content(ground: &Ground, info: &SnapshotInfo) {
    flip(ground, info, |len| len - ARCHIVE_END);
}

/// More than the end of an archive, which follows its content.
const ARCHIVE_END: usize = 60;

fn flip(ground: &Ground, info: &SnapshotInfo, at: impl FnOnce(usize) -> usize) {
    let name = format!("{}-{}", info.last_included().term, info.last_included().index);
    let dir = ground.dir.path().join("data/snapshots");
    let files = std::fs::read_dir(dir).unwrap().flatten().map(|file| file.path());
    let path = files.into_iter().find(|path| path.to_string_lossy().contains(&name)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Purges the log up to an entry of term 1.
pub(crate) fn purge(ground: &mut Ground, through: u64) {
    ground.opened.log.purge(GroupId::FIRST, id(1, through)).unwrap();
}
