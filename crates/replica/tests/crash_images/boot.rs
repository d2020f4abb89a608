//! A follower without threads on a simulated disk; the test plays its leaders.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use d_engine_core::{
    AppendOutcome, EntryKind, GroupId, Instant, LogId, LogIndex, NodeId, Now, Term,
};
use d_engine_replica::{
    ApplyWorker, Durability, Event, InstallError, Jobs, LogWorker, Never, PeerMessage,
    ReceivedSnapshot, ReceiverStep, Replica, ReplicaConfig, SendLimits, SnapshotReceiver,
    SnapshotSender, Start, StateMachineHandler,
};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{FullSpeed, SnapshotArchive, SnapshotOptions, SnapshotStore};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Fs, Incarnation, LogEntry, Member,
    MemberRole, Membership, OpenRequest, StorageEngine,
};

use crate::machine::Journal;

/// The command at `index` in the log of the leader of `term`.
fn command(term: u64, index: u64) -> Vec<u8> {
    vec![u8::try_from(100 * (term - 1) + index).unwrap(); 40]
}

/// The term of the entry that is committed at `index`.
fn term_at(index: u64) -> u64 {
    if index <= 12 { 1 } else { 2 }
}

/// The state of a node that has applied everything up to `index`.
pub(crate) fn state_at(index: u64) -> Vec<u8> {
    (1..=index).flat_map(|index| command(term_at(index), index)).collect()
}

fn n(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(if index == 0 { 0 } else { term }), LogIndex::new(index))
}

fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry {
        id: id(term, index),
        kind: EntryKind::Command,
        time_ms: 1_000 + index,
        session: None,
        version: 0,
        data: Bytes::from(command(term, index)),
    }
}

const NOW: Now = Now { monotonic: Instant::from_nanos(1), wall_ms: 0 };

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits for something"),
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// A node, from its start to its end.
pub(crate) struct Life {
    pub(crate) replica: Replica,
    pub(crate) machine: Arc<Journal>,
    /// The last entry that was acknowledged to a leader.
    pub(crate) acknowledged: u64,
    /// The newest snapshot up to which the log may be purged.
    pub(crate) kept: u64,
    log: LogWorker,
    apply: ApplyWorker,
    store: SnapshotStore,
}

impl Life {
    pub(crate) fn start(
        fs: &SimFs,
        durability: Durability,
        tail_entries: u64,
    ) -> Result<Self, String> {
        let member = |node| Member {
            node,
            peer_addr: format!("peer:{node}"),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        let request = OpenRequest {
            cluster: Some(ClusterId([1; 16])),
            node: n(1),
            group: GroupId::FIRST,
            initial: Membership::new((1..=3).map(member)).unwrap(),
            fresh_cluster: ClusterId([1; 16]),
            fresh_incarnation: Incarnation([2; 16]),
        };
        // Small segments, so that a purge removes some.
        let options =
            FileStorageOptions { segment_bytes: 8 << 10, ..FileStorageOptions::default() };
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let mut opened = FileStorageEngine::new("/data", options, shared.clone())
            .open(&request)
            .map_err(text)?;
        let options = SnapshotOptions {
            reserve_bytes: 0,
            chunk_bytes: 300,
            sync_bytes: 400,
            ..SnapshotOptions::new(opened.identity.cluster, GroupId::FIRST)
        };
        let (store, _) =
            SnapshotStore::open(shared, Path::new("/data/snapshots"), options).map_err(text)?;
        let machine = Arc::new(Journal::new(fs, durability));
        let from = Start {
            identity: &opened.identity,
            log: opened.log.as_mut(),
            recovered: &mut opened.recovered,
            snapshots: &store,
        };
        let (handler, start_position) =
            now(StateMachineHandler::open(machine.clone(), Arc::new(Never), from)).map_err(text)?;
        let config = ReplicaConfig { tail_entries, ..ReplicaConfig::default() };
        let (identity, recovered) = (&opened.identity, &opened.recovered);
        let replica = Replica::new(config, identity, recovered, &start_position, 7, NOW.monotonic);
        let replica = replica.map_err(text)?;
        let apply = ApplyWorker::new(handler, opened.log.reader(), GroupId::FIRST)
            .with_snapshots(store.clone(), n(1));
        let log = LogWorker::new(opened.log, GroupId::FIRST);
        Ok(Self { replica, machine, acknowledged: 0, kept: 0, log, apply, store })
    }

    /// The first event that a driver sends.
    pub(crate) fn goes_on(&mut self) -> Result<(), String> {
        self.handle(Event::Deadline)
    }

    /// Passes an event to the replica and executes the resulting jobs, in the order of a driver.
    fn handle(&mut self, event: Event) -> Result<(), String> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut jobs = Jobs::default();
            self.replica.handle(NOW, event, &mut jobs);
            for outgoing in &jobs.send {
                if let PeerMessage::AppendReply {
                    outcome: AppendOutcome::Persisted(index), ..
                } = &outgoing.message
                {
                    self.acknowledged = self.acknowledged.max(index.get());
                }
            }
            if let Some(stored) = self.log.persist(&jobs.persist).map_err(text)? {
                events.push_back(Event::Persisted(stored));
            }
            if let Some(through) = jobs.purge {
                events.extend(self.log.purge(through).map_err(text)?);
            }
            for job in jobs.apply {
                events.push_back(now(self.apply.run(job)).map_err(text)?);
            }
        }
        Ok(())
    }

    /// A leader sends entries of its term or earlier ones, with a commit index.
    pub(crate) fn append(
        &mut self,
        leader: u64,
        term: u64,
        first: u64,
        last: u64,
        commit: u64,
    ) -> Result<(), String> {
        let entries = (first..=last).map(|index| entry(term_at(index).min(term), index)).collect();
        self.take(leader, term, first - 1, entries, commit)
    }

    /// The first leader sends entries that will not be committed.
    pub(crate) fn append_conflicting(&mut self, first: u64, last: u64) -> Result<(), String> {
        let entries = (first..=last).map(|index| entry(1, index)).collect();
        self.take(2, 1, first - 1, entries, first - 1)
    }

    fn take(
        &mut self,
        leader: u64,
        term: u64,
        prev: u64,
        entries: Vec<LogEntry>,
        commit: u64,
    ) -> Result<(), String> {
        let message = PeerMessage::Append {
            term: Term::new(term),
            prev: id(term_at(prev), prev),
            commit: LogIndex::new(commit),
            entries: entries.into(),
        };
        self.handle(Event::Peer { from: n(leader), message })
    }

    /// Builds a snapshot of the applied state, and reports it to the machine.
    pub(crate) fn build(&mut self) -> Result<Event, String> {
        let task = now(self.apply.begin_snapshot(d_engine_replica::SnapshotCause::Requested))
            .map_err(text)?
            .unwrap();
        let built = task.build(&self.store, &mut FullSpeed).map_err(text)?;
        Ok(self.apply.end_snapshot(Ok(built)).map_err(text)?.unwrap())
    }

    /// Purges the log up to the snapshot, and prunes older snapshots.
    pub(crate) fn keep(&mut self, kept: Event) -> Result<(), String> {
        if let Event::SnapshotKept(kept) = &kept {
            self.kept = kept.newest.index.get();
        }
        self.handle(kept)?;
        self.store.prune(1, &[]).map(drop).map_err(text)
    }

    /// Receives an archive, which is cut off once in the middle and resumed.
    pub(crate) fn receive(
        &mut self,
        archive: &SnapshotArchive,
    ) -> Result<Box<ReceivedSnapshot>, String> {
        for pieces in [2, usize::MAX] {
            let limits = SendLimits { piece_bytes: 250, ..SendLimits::default() };
            let mut sender =
                SnapshotSender::new(archive.clone(), Term::new(2), limits, Instant::ZERO);
            let committed = self.replica.core().log().committed;
            let mut receiver = SnapshotReceiver::new(self.store.clone(), n(3), 1 << 20, committed);
            let mut sent = 0;
            while let Some(message) = sender.poll().map_err(text)?.filter(|_| sent <= pieces) {
                sent += 1;
                match receiver.on_message(message, &mut FullSpeed) {
                    ReceiverStep::Answer(answer) => {
                        sender.on_message(Instant::ZERO, answer).map_err(text)?
                    }
                    ReceiverStep::Finish => {
                        let finished = receiver.finish(&mut FullSpeed);
                        return finished.map_err(|answer| format!("{answer:?}"));
                    }
                    ReceiverStep::Refuse(answer) => return Err(format!("{answer:?}")),
                }
            }
        }
        Err("the sender has nothing to send".to_owned())
    }

    /// Replaces log and state by the received snapshot.
    pub(crate) fn install(&mut self, snapshot: Box<ReceivedSnapshot>) -> Result<(), String> {
        let last_included = snapshot.last_included.index.get();
        let outcome: Arc<Mutex<Option<Result<(), InstallError>>>> = Arc::default();
        let told = outcome.clone();
        let responder = Box::new(move |said| *told.lock().unwrap() = Some(said));
        self.handle(Event::SnapshotReceived { snapshot, responder })?;
        let said = outcome.lock().unwrap().take().ok_or("no outcome was reported")?;
        said.map_err(text)?;
        (self.acknowledged, self.kept) = (last_included, last_included);
        Ok(())
    }
}

/// The snapshot up to entry 20 of the leader of term 2.
pub(crate) fn archive_of_the_next_leader() -> SnapshotArchive {
    let mut leader = Life::start(&SimFs::new(), Durability::Rebuilt, 1).unwrap();
    leader.append(3, 2, 1, 20, 20).unwrap();
    leader.build().unwrap();
    let newest = leader.store.newest().unwrap();
    leader.store.open_archive(newest.last_included()).unwrap()
}
