//! A node whose log has no space: entries wait, terms and votes do not, and it continues by itself
//! once there is space.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod recording;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use d_engine_core::{GroupId, HardState, Instant, LogId, LogIndex, NodeId, PersistId, Term};
use d_engine_replica::{
    ApplyJob, ApplyRun, ApplySource, ApplyWorker, Event, LoadJob, LogDisk, LogWorker, Never,
    PersistJob, ProposeResponder, SnapshotCause, StateMachineHandler,
};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::snapshot::FullSpeed;
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Fs, FsOp, Identity, Incarnation, LogEntry,
    Member, MemberRole, Membership, OpenRequest, OpenedStorage, StorageEngine,
};
use recording::node::{Node, leader_with_snapshot, send};
use recording::{Ground, Manner, Recording, at};

fn open(fs: &SimFs) -> OpenedStorage {
    open_behind(fs, &mut |_| None)
}

fn open_behind(fs: &SimFs, covered: &mut dyn FnMut(&Identity) -> Option<LogId>) -> OpenedStorage {
    let member = Member {
        node: 1,
        peer_addr: "127.0.0.1:1".to_owned(),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    let request = OpenRequest {
        cluster: None,
        node: NodeId::new(1).unwrap(),
        group: GroupId::FIRST,
        initial: Membership::new([member]).unwrap(),
        fresh_cluster: ClusterId([1; 16]),
        fresh_incarnation: Incarnation([2; 16]),
    };
    let options = FileStorageOptions { segment_bytes: 256 << 10, ..FileStorageOptions::default() };
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    FileStorageEngine::new("/data", options, fs).open_behind(&request, covered).unwrap()
}

fn state(term: u64, vote: u64, commit: u64) -> Option<HardState> {
    let (term, vote, commit) = (Term::new(term), NodeId::new(vote), LogIndex::new(commit));
    Some(HardState { term, vote, commit, ..HardState::default() })
}

fn job(id: u64, hard_state: Option<HardState>, entries: Vec<LogEntry>) -> PersistJob {
    PersistJob { id: PersistId::new(id), hard_state, entries, install: None }
}

fn entry(index: u64) -> LogEntry {
    LogEntry {
        id: LogId::new(Term::new(1), LogIndex::new(index)),
        kind: d_engine_core::EntryKind::Command,
        time_ms: 1,
        session: None,
        version: 0,
        data: vec![5; 8 << 10].into(),
    }
}

fn told(events: &[Event]) -> (Vec<u64>, Vec<bool>) {
    let stored = |event: &Event| match event {
        Event::HardStatePersisted(id) => Some(id.get()),
        _ => None,
    };
    let full = |event: &Event| match event {
        Event::LogDisk(LogDisk { full, .. }) => Some(*full),
        _ => None,
    };
    (events.iter().filter_map(stored).collect(), events.iter().filter_map(full).collect())
}

#[test]
fn a_vote_is_stored_while_entries_wait_and_both_are_told_apart() {
    let fs = SimFs::new();
    fs.set_capacity(Some(2 << 20));
    let mut worker = LogWorker::new(open(&fs).log, GroupId::FIRST);
    let mut id = 0;
    let stored = loop {
        id += 1;
        let stored = worker.persist(&[job(id, state(1, 1, id - 1), vec![entry(id)])]).unwrap();
        if worker.waits() {
            break stored;
        }
        assert_eq!(stored, Some(PersistId::new(id)));
    };
    assert_eq!(stored, None);
    let (votes, full) = told(&worker.events());
    assert_eq!(
        (votes.len(), full.last()),
        (0, Some(&true)),
        "the commit index alone costs no reserve"
    );

    let jobs =
        [job(id + 1, state(1, 1, id), vec![entry(id + 1)]), job(id + 2, state(7, 3, id), vec![])];
    assert_eq!(worker.persist(&jobs).unwrap(), None);
    assert_eq!(told(&worker.events()).0, [id + 2], "term and vote of all jobs so far");
    assert_eq!(worker.persist(&[]).unwrap(), None);
    assert_eq!(told(&worker.events()).0, [0; 0], "it is not persisted twice");

    fs.set_capacity(Some(4 << 20));
    assert_eq!(worker.persist(&[]).unwrap(), Some(PersistId::new(id + 2)));
    assert_eq!(told(&worker.events()).1, [false]);
    assert!(!worker.waits());
    drop(worker);
    fs.crash(&mut |_| 0);
    let recovered = open(&fs).recovered;
    assert_eq!(recovered.entries.len() as u64, id + 1);
    assert_eq!(
        (recovered.hard_state.term, recovered.hard_state.vote),
        (Term::new(7), NodeId::new(3))
    );
}

/// A worker whose disk is full, and the job that waits.
fn without_room() -> (SimFs, LogWorker, u64) {
    let fs = SimFs::new();
    fs.set_capacity(Some(1 << 20));
    let mut worker = LogWorker::new(open(&fs).log, GroupId::FIRST);
    let mut id = 0;
    while !worker.waits() {
        id += 1;
        worker.persist(&[job(id, state(1, 1, 0), vec![entry(id)])]).unwrap();
    }
    (fs, worker, id)
}

/// The waiting jobs are limited by what the replica gives out; after a crash none of them was
/// acknowledged.
#[test]
fn a_crash_while_entries_wait_keeps_the_vote_and_what_was_acknowledged() {
    let (fs, mut worker, id) = without_room();
    worker.persist(&[job(id + 1, state(2, 2, 0), vec![])]).unwrap();
    assert_eq!(told(&worker.events()).0, [id + 1]);
    drop(worker);
    fs.crash(&mut |_| 0);
    fs.set_capacity(None);
    let recovered = open(&fs).recovered;
    assert_eq!(recovered.entries.len() as u64, id - 1);
    assert_eq!(
        (recovered.hard_state.term, recovered.hard_state.vote),
        (Term::new(2), NodeId::new(2))
    );
}

/// A node that refuses commands for lack of space writes nothing that would show that there is
/// space again.
#[test]
fn a_worker_that_is_short_of_room_finds_out_when_there_is_some() {
    let fs = SimFs::new();
    let mut worker = LogWorker::new(open(&fs).log, GroupId::FIRST).with_min_free_bytes(1 << 20);
    worker.persist(&[job(1, state(1, 1, 0), vec![entry(1)])]).unwrap();
    for _ in 0..16 {
        worker.idle().unwrap();
    }
    fs.set_capacity(Some(fs.used_bytes() + (512 << 10)));
    worker.idle().unwrap();
    assert!(worker.is_short_of_room());
    assert!(
        worker.events().iter().any(|event| matches!(event, Event::LogDisk(disk) if !disk.full))
    );
    fs.set_capacity(Some(fs.used_bytes() + (8 << 20)));
    worker.idle().unwrap();
    assert!(!worker.is_short_of_room());
    assert!(
        worker.events().iter().any(|event| matches!(event, Event::LogDisk(_))),
        "the replica must be informed"
    );
    // A purge makes space too.
    fs.set_capacity(Some(fs.used_bytes() + (512 << 10)));
    worker.idle().unwrap();
    worker.events();
    fs.set_capacity(Some(fs.used_bytes() + (8 << 20)));
    worker.purge(LogId::new(Term::new(1), LogIndex::new(1))).unwrap();
    assert!(
        worker.events().iter().any(|event| matches!(event, Event::LogDisk(_))),
        "the replica must be informed"
    );
}

/// A leader lease may depend on a longer vote stickiness: like a term, it is persisted while
/// entries wait.
#[test]
fn a_longer_promise_is_stored_while_entries_wait() {
    let (_fs, mut worker, id) = without_room();
    let promise = std::time::Duration::from_millis(500);
    let promised = state(1, 1, 0).map(|state| HardState { stickiness: promise, ..state });
    worker.persist(&[job(id + 1, promised, vec![])]).unwrap();
    assert_eq!(told(&worker.events()).0, [id + 1]);
}

/// The process has no file handle left when a follower or the state machine needs entries in old
/// segments: the follower's entries are requested again later, and apply waits.
#[test]
fn a_read_without_a_file_handle_is_made_again() {
    let fs = SimFs::new();
    let mut worker = LogWorker::new(open(&fs).log, GroupId::FIRST);
    for index in 1..=600 {
        worker.persist(&[job(index, state(1, 1, 0), vec![entry(index)])]).unwrap();
    }
    assert!(worker.stats().segments > 16, "{:?}", worker.stats());
    let loader = worker.loader();
    let (first, last) = (LogIndex::new(1), LogIndex::new(600));
    let load = LoadJob { to: NodeId::new(2).unwrap(), token: 1, first, last: first, max_bytes: 1 };
    let loaded = |event: Event| match event {
        Event::Loaded { entries, .. } => entries.len(),
        _ => panic!("another event"),
    };
    let no_handle =
        |times| (1..=times).for_each(|nth| fs.fail(FsOp::Open, nth, Failure::TooManyFiles));
    // Sixteen are open, and are closed one by one.
    no_handle(17);
    assert_eq!(loaded(loader.load(&load).unwrap()), 0);
    no_handle(1);
    assert_eq!(loaded(loader.load(&LoadJob { first: last, last, ..load }).unwrap()), 0);

    let machine = Arc::new(recording::Recording::default());
    let mut ground = recording::Ground::new();
    let opened = StateMachineHandler::open(machine.clone(), Arc::new(Never), ground.start());
    let (handler, _) = now(opened).unwrap();
    let mut apply = ApplyWorker::new(handler, worker_reader(&fs, worker), GroupId::FIRST);
    let job =
        ApplyJob { source: ApplySource::Stored(first, last), responders: Vec::new(), skip: None };
    no_handle(20);
    now(apply.run(job)).unwrap();
    assert_eq!(apply.handler().applied().index, 600);
}

fn worker_reader(fs: &SimFs, worker: LogWorker) -> Arc<dyn d_engine_storage::LogReader> {
    drop(worker);
    open(fs).log.reader()
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits for something"),
    }
}

/// The loader names the damaged entry; a purge up to it needs only its log id, which the snapshot
/// contains.
#[test]
fn a_rotten_entry_is_named_and_can_be_purged() {
    let fs = SimFs::new();
    let mut worker = LogWorker::new(open(&fs).log, GroupId::FIRST);
    for index in 1..=9 {
        worker.persist(&[job(index, state(1, 1, 0), vec![entry(index)])]).unwrap();
    }
    let path = std::path::Path::new("/data/log/00000000000000000001.seg");
    // Each group has three blocks; the first group of the segment follows the header and has one.
    assert!(fs.flip_bit(path, 4096 * (2 + 3 * 4) + 5_000, 1));
    let (first, last) = (LogIndex::new(1), LogIndex::new(9));
    let load =
        LoadJob { to: NodeId::new(2).unwrap(), token: 1, first, last, max_bytes: usize::MAX };
    let Event::LoadFailed { at, reason, .. } = worker.loader().load(&load).unwrap() else {
        panic!("it was read")
    };
    assert_eq!(at, LogIndex::new(5));
    assert!(reason.to_string().contains("damaged"), "{reason}");
    worker.purge(LogId::new(Term::new(1), at)).unwrap().unwrap();
    drop(worker);
    // The damaged group is still there; a start needs the snapshot because of it, too.
    let opened = open_behind(&fs, &mut |_| Some(LogId::new(Term::new(1), at)));
    assert_eq!((opened.recovered.base.index, opened.recovered.base_time_ms), (at, None));
    assert_eq!(opened.recovered.entries.len(), 4);
}

fn put(index: u64) -> LogEntry {
    recording::node::command(index)
}

/// A durable machine without space has changed nothing: it is not halted at an entry that is fine,
/// and every caller gets the reply to its command once.
#[test]
fn entries_for_which_a_durable_machine_has_no_room_are_applied_later() {
    let machine = Recording::with(Manner { is_durable: true, ..Manner::default() });
    let is_full = machine.is_full.clone();
    let mut node = Node::start(recording::Ground::new(), machine, Never).unwrap();
    node.commit(1, 2);
    let replies = Arc::new(Mutex::new(Vec::new()));
    let told = replies.clone();
    let responder: ProposeResponder = Box::new(move |reply| told.lock().unwrap().push(reply));
    let entries = node.store(3, 4);
    let mut job = ApplyJob {
        source: ApplySource::Entries(entries),
        responders: vec![(LogIndex::new(4), responder)],
        skip: None,
    };
    is_full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let ApplyRun::Waits { job: again, why } = now(node.worker.run_or_wait(job)).unwrap() else {
            panic!("it does not wait")
        };
        assert!(why.to_string().contains("apply_chunk"), "{why}");
        assert!(node.worker.stop().is_none() && replies.lock().unwrap().is_empty());
        job = again;
    }
    is_full.store(false, Ordering::Relaxed);
    let done = now(node.worker.run_or_wait(job)).unwrap();
    assert!(matches!(done, ApplyRun::Done(Event::Applied { through, .. }) if through.index == 4));
    assert_eq!(*replies.lock().unwrap(), [Ok("10".into())]);
}

/// A machine that keeps its state in the log alone may have applied a part of a chunk.
#[test]
fn a_rebuilt_machine_without_room_is_halted() {
    let machine = Recording::default();
    let is_full = machine.is_full.clone();
    let mut node = Node::start(recording::Ground::new(), machine, Never).unwrap();
    is_full.store(true, Ordering::Relaxed);
    let source = ApplySource::Entries(vec![put(1)]);
    let job = ApplyJob { source, responders: Vec::new(), skip: None };
    let done = now(node.worker.run_or_wait(job)).unwrap();
    assert!(matches!(done, ApplyRun::Done(Event::ApplyStopped { .. })));
}

/// Nothing is purged up to a snapshot before the machine has flushed its state up to it.
#[test]
fn a_machine_without_room_to_flush_goes_on_and_its_snapshot_is_not_purged_to() {
    let machine = Recording::with(Manner { is_durable: true, ..Manner::default() });
    let is_full = machine.is_full.clone();
    let mut node = Node::start(recording::Ground::new(), machine, Never).unwrap();
    node.commit(1, 4);
    let task = now(node.worker.begin_snapshot(SnapshotCause::Requested)).unwrap().unwrap();
    let built = task.build(&node.ground.store, &mut FullSpeed);
    is_full.store(true, Ordering::Relaxed);
    assert!(node.worker.end_snapshot(built).unwrap().is_none());
    is_full.store(false, Ordering::Relaxed);
    node.commit(5, 6);
    assert!(node.worker.stop().is_none());
}

/// A durable machine may have removed its old state when it finds no space for a snapshot. The node
/// continues, tries again after growing pauses, and stores no position in between.
#[test]
fn a_snapshot_for_which_a_durable_machine_has_no_room_is_installed_later() {
    let (leader, received) = leader_with_snapshot(9);
    let mut node = Node::start(Ground::new(), Recording::durable(), Never).unwrap();
    node.commit(1, 2);
    send(&leader, &received, &node.ground.store);
    node.machine.is_full.store(true, Ordering::Relaxed);
    let mut job =
        ApplyJob { source: ApplySource::Snapshot(at(1, 9)), responders: Vec::new(), skip: None };
    let mut seconds = Vec::new();
    for second in 0..100 {
        node.worker.at(Instant::ZERO.plus(Duration::from_secs(second)));
        if let Some(reason) = node.worker.unpack(&job).unwrap() {
            assert!(reason.contains("apply_snapshot_from_file"), "{reason}");
            continue;
        }
        seconds.push(second);
        let ApplyRun::Waits { job: again, why } = now(node.worker.run_or_wait(job)).unwrap() else {
            panic!("it does not wait")
        };
        assert!(why.to_string().contains("apply_snapshot_from_file"), "{why}");
        assert!(node.worker.stop().is_none());
        job = again;
    }
    assert_eq!(seconds, [0, 1, 3, 7, 15, 31, 61, 91]);
    node.machine.calls.clear();
    node.worker.handler().close().unwrap_err();
    assert_eq!(node.machine.calls.take(), ["flush", "stop"], "no position");

    node.machine.is_full.store(false, Ordering::Relaxed);
    node.worker.at(Instant::ZERO.plus(Duration::from_secs(121)));
    assert_eq!(node.worker.unpack(&job).unwrap(), None);
    let done = now(node.worker.run_or_wait(job)).unwrap();
    assert!(matches!(done, ApplyRun::Done(Event::Applied { through, .. }) if through == at(1, 9)));
    assert_eq!(node.machine.numbers(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    node.worker.handler().close().unwrap();
    assert_eq!(node.machine.calls.take().last().unwrap(), "stop");
}

/// Its state is not on the disk, so it has no lack of space that would pass by itself.
#[test]
fn a_rebuilt_machine_without_room_for_a_snapshot_stops_the_node() {
    let (leader, received) = leader_with_snapshot(9);
    let mut node = Node::start(Ground::new(), Recording::default(), Never).unwrap();
    send(&leader, &received, &node.ground.store);
    node.machine.is_full.store(true, Ordering::Relaxed);
    let reason = node.install(at(1, 9)).unwrap_err();
    assert!(reason.to_string().contains("apply_snapshot_from_file"), "{reason}");
}
