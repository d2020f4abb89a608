//! A replica on a real log that becomes a leader; the test executes its jobs.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::{GroupId, Instant, NodeId, Now, Term};
use d_engine_replica::{
    Event, Jobs, LogWorker, PeerMessage, Proposal, ProposeError, Replica, ReplicaConfig,
    StartPosition,
};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, Member, MemberRole, Membership,
    OpenRequest, OpenedStorage, StorageEngine,
};

pub(crate) type Answers = Arc<Mutex<Vec<Result<Bytes, ProposeError>>>>;

pub(crate) fn n(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn open(nodes: u64) -> OpenedStorage {
    let member = |node| Member {
        node,
        peer_addr: format!("peer:{node}"),
        client_addr: String::new(),
        role: MemberRole::Voter,
        incarnation: None,
    };
    let request = OpenRequest {
        cluster: None,
        node: n(1),
        group: GroupId::FIRST,
        initial: Membership::new((1..=nodes).map(member)).unwrap(),
        fresh_cluster: ClusterId([1; 16]),
        fresh_incarnation: Incarnation([2; 16]),
    };
    let options = FileStorageOptions { segment_bytes: 64 << 10, ..FileStorageOptions::default() };
    FileStorageEngine::new("/data", options, Arc::new(SimFs::new())).open(&request).unwrap()
}

pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) log: LogWorker,
    pub(crate) now: Instant,
}

impl Node {
    pub(crate) fn new(nodes: u64) -> Self {
        Self::with(nodes, ReplicaConfig::default())
    }

    pub(crate) fn with(nodes: u64, config: ReplicaConfig) -> Self {
        let opened = open(nodes);
        let now = Instant::from_nanos(1);
        let replica = Replica::new(
            config,
            &opened.identity,
            &opened.recovered,
            &StartPosition::default(),
            7,
            now,
        )
        .unwrap();
        Self { replica, log: LogWorker::new(opened.log, GroupId::FIRST), now }
    }

    /// This node's time; its wall clock shows zero.
    pub(crate) fn time(&self) -> Now {
        Now { monotonic: self.now, wall_ms: 0 }
    }

    /// Handles an event; writes are persisted at once. Returns all other jobs.
    pub(crate) fn handle(&mut self, event: Event) -> Jobs {
        let mut jobs = Jobs::default();
        self.replica.handle(self.time(), event, &mut jobs);
        while !jobs.persist.is_empty() {
            let writes = std::mem::take(&mut jobs.persist);
            let stored = self.log.persist(&writes).unwrap().unwrap();
            self.replica.handle(self.time(), Event::Persisted(stored), &mut jobs);
        }
        jobs
    }

    pub(crate) fn receive(&mut self, from: u64, message: PeerMessage) -> Jobs {
        self.handle(Event::Peer { from: n(from), message })
    }

    pub(crate) fn pass_ms(&mut self, ms: u64) {
        self.now = Instant::from_nanos(self.now.as_nanos() + ms * 1_000_000);
    }

    /// Wins the election of the next term.
    pub(crate) fn lead(&mut self) {
        self.pass_ms(2_000);
        self.handle(Event::Deadline);
        let term = Term::new(self.replica.core().term().get() + 1);
        self.receive(2, PeerMessage::PreVoteReply { term, granted: true, wall_ms: 0 });
        self.receive(2, PeerMessage::VoteReply { term, granted: true, wall_ms: 0 });
    }

    pub(crate) fn propose_bytes(&mut self, answers: &Answers, length: usize) {
        let answers = answers.clone();
        let responder = Box::new(move |answer| answers.lock().unwrap().push(answer));
        self.handle(Event::Propose(vec![Proposal::new(
            Bytes::from(vec![0; length]),
            None,
            responder,
        )]));
    }

    pub(crate) fn propose(&mut self, answers: &Answers, number: u8) {
        let answers = answers.clone();
        let responder = Box::new(move |answer| answers.lock().unwrap().push(answer));
        self.handle(Event::Propose(vec![Proposal::new(
            Bytes::from(vec![number]),
            None,
            responder,
        )]));
    }
}
