//! The cost of a replica around the algorithm: entries through the handler into a machine, and the
//! barrier of a read by lease and by a round.
//!
//! ```text
//! cargo bench -p d-engine-replica
//! ```
#![allow(clippy::unwrap_used, reason = "a benchmark may stop there")]
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

mod counter;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use d_engine_core::{
    AppendOutcome, EntryKind, GroupId, Instant, LogId, LogIndex, NodeId, Now, ReadMode, Term,
};
use d_engine_replica::{
    Event, Jobs, LogWorker, Never, PeerMessage, ProposeResponder, ReadRequest, Replica,
    ReplicaConfig, Start, StartPosition, StateMachineHandler,
};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{SnapshotOptions, SnapshotStore};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, Member, MemberRole,
    Membership, OpenRequest, OpenedStorage, StorageEngine,
};

use crate::counter::Counter;

const TERM: Term = Term::new(1);

fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the machine waits for something outside itself"),
    }
}

fn storage(fs: Arc<SimFs>) -> OpenedStorage {
    let member = |node| Member {
        node,
        peer_addr: format!("peer:{node}"),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    let request = OpenRequest {
        cluster: None,
        node: node(1),
        group: GroupId::FIRST,
        initial: Membership::new((1..=3).map(member)).unwrap(),
        fresh_cluster: ClusterId([1; 16]),
        fresh_incarnation: Incarnation([2; 16]),
    };
    let options = FileStorageOptions::default();
    FileStorageEngine::new("/data", options, fs).open(&request).unwrap()
}

fn applies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply through the handler");
    for count in [1, 128] {
        let fs = Arc::new(SimFs::new());
        let mut opened = storage(fs.clone());
        let options = SnapshotOptions::new(opened.identity.cluster, opened.identity.group);
        let (snapshots, _) =
            SnapshotStore::open(fs, Path::new("/data/snapshots"), options).unwrap();
        let start = Start {
            identity: &opened.identity,
            log: opened.log.as_mut(),
            recovered: &mut opened.recovered,
            snapshots: &snapshots,
        };
        let machine = Arc::new(Counter::default());
        let (mut handler, _) =
            at_once(StateMachineHandler::open(machine, Arc::new(Never), start)).unwrap();
        let mut next = 1;
        let mut prepare = || {
            let indexes = next..next + count;
            next += count;
            let entry = |index| LogEntry {
                id: LogId::new(TERM, LogIndex::new(index)),
                kind: EntryKind::Command,
                time_ms: index,
                session: None,
                version: 0,
                data: Bytes::from_static(b"key"),
            };
            let waiting = |index| -> (LogIndex, ProposeResponder) {
                (LogIndex::new(index), Box::new(|reply| assert!(reply.is_ok())))
            };
            let responders: Vec<_> = indexes.clone().map(waiting).collect();
            (indexes.map(entry).collect::<Vec<_>>(), responders)
        };
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} entries, each with a caller"), |bencher| {
            bencher.iter_batched(
                &mut prepare,
                |(entries, responders)| at_once(handler.apply(&entries, responders, None)).unwrap(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A leader of three whose log is committed and applied.
struct Leader {
    replica: Replica,
    log: LogWorker,
    now: Instant,
    jobs: Jobs,
    answered: Arc<AtomicU64>,
}

impl Leader {
    fn new() -> Self {
        let opened = storage(Arc::new(SimFs::new()));
        let now = Instant::from_nanos(3_000_000_000);
        let start = Instant::from_nanos(1);
        let replica = Replica::new(
            ReplicaConfig::default(),
            &opened.identity,
            &opened.recovered,
            &StartPosition::default(),
            7,
            start,
        );
        let mut leader = Self {
            replica: replica.unwrap(),
            log: LogWorker::new(opened.log, GroupId::FIRST),
            now,
            jobs: Jobs::default(),
            answered: Arc::default(),
        };
        leader.handle(Event::Deadline);
        leader.receive(2, PeerMessage::PreVoteReply { term: TERM, granted: true, wall_ms: 0 });
        leader.receive(2, PeerMessage::VoteReply { term: TERM, granted: true, wall_ms: 0 });
        leader.settle();
        leader
    }

    /// Handles an event; writes are stored at once.
    fn handle(&mut self, event: Event) {
        self.replica.handle(Now { monotonic: self.now, wall_ms: 0 }, event, &mut self.jobs);
        while !self.jobs.persist.is_empty() {
            let writes = std::mem::take(&mut self.jobs.persist);
            let stored = self.log.persist(&writes).unwrap().unwrap();
            self.replica.handle(
                Now { monotonic: self.now, wall_ms: 0 },
                Event::Persisted(stored),
                &mut self.jobs,
            );
        }
    }

    fn receive(&mut self, from: u64, message: PeerMessage) {
        self.handle(Event::Peer { from: node(from), message });
    }

    /// A follower persists everything and it is applied, until no step has further effects.
    fn settle(&mut self) {
        loop {
            self.jobs.clear();
            let last = self.replica.core().log().last;
            let outcome = AppendOutcome::Persisted(last.index);
            self.receive(2, PeerMessage::AppendReply { term: TERM, outcome });
            self.handle(Event::Applied { through: last, next_expiry_ms: None, command_version: 0 });
            let log = self.replica.core().log();
            if log.last.index == self.replica.applied() {
                return;
            }
        }
    }

    fn read(&mut self, mode: ReadMode) {
        self.jobs.clear();
        let answered = self.answered.clone();
        let responder = Box::new(move |result: Result<u64, _>| {
            answered.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
        });
        self.handle(Event::Read(vec![ReadRequest { mode, deadline: None, responder }]));
    }

    /// A follower replies to the round that was sent last.
    fn confirm(&mut self) {
        let round = self.jobs.send.iter().find_map(|sent| match sent.message {
            PeerMessage::Heartbeat { round, .. } => Some(round),
            _ => None,
        });
        let (round, last) = (round.unwrap(), self.replica.core().log().last.index);
        self.receive(
            2,
            PeerMessage::HeartbeatReply {
                term: TERM,
                round,
                received: last,
                persisted: last,
                report: d_engine_core::FollowerReport::default(),
            },
        );
    }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read barrier");
    let mut leader = Leader::new();
    let mut reads = 0;
    group.bench_function("by a round", |bencher| {
        bencher.iter(|| {
            leader.read(ReadMode::Round);
            leader.confirm();
            reads += 1;
            assert_eq!(leader.answered.load(Ordering::Relaxed), reads);
        });
    });
    // That round has confirmed the lease; no time passes here.
    group.bench_function("by lease", |bencher| {
        bencher.iter(|| {
            leader.read(ReadMode::Lease);
            reads += 1;
            assert_eq!(leader.answered.load(Ordering::Relaxed), reads);
        });
    });
    group.finish();
}

fn short() -> Criterion {
    let (warm_up, measured) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measured)
}

criterion_group!(name = benches; config = short(); targets = applies, reads);
criterion_main!(benches);
