//! Tests over real sockets on loopback. No test waits for time to pass: every wait is for an event,
//! with a deadline that is reached only on failure.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use d_engine_core::{AppendOutcome, EntryKind, LogId, LogIndex, Term};
use d_engine_replica::{Admission, RefusedBecause};
use d_engine_storage::{ConfigId, LogEntry, Member, MemberChange, MemberRole, Membership};
use d_engine_wire::message::{Handshake, HandshakeReply, Purpose, Refusal};
use d_engine_wire::{Answer, Greeting, Question, encode_frame, encode_handshake};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::*;
use crate::transport::{PeerRefusal, ReceivePermit, SnapshotConnection};

mod admission;
mod bounds;
mod refusals;
mod snapshot_lines;

const GROUP: GroupId = GroupId::FIRST;
const CLUSTER: ClusterId = ClusterId([7; 16]);
/// The cluster that the nodes' cluster continues by force.
const ENDED: ClusterId = ClusterId([5; 16]);
const MEMBERS: [u64; 5] = [1, 2, 3, 4, 5];
const DEADLINE: Duration = Duration::from_secs(20);

fn n(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

/// The data directory that node `id` has in these tests.
fn directory(id: u64) -> Incarnation {
    Incarnation([u8::try_from(id).unwrap(); 16])
}

#[derive(Debug)]
enum Happened {
    Message(NodeId, PeerMessage, ReceivePermit),
    Up(NodeId, Incarnation),
    Down(NodeId),
    Snapshot(NodeId, SnapshotConnection),
    Provisional(NodeId, String),
    Removed(ConfigId),
    Superseded,
}

/// Admits nodes 1 to 5 with their own directories.
struct Recorder {
    happened: mpsc::Sender<Happened>,
    wiped: Mutex<Option<NodeId>>,
    /// What has changed since the cluster's birth, in configuration 3.1.
    change: Mutex<Option<MemberChange>>,
    refusals: Mutex<Vec<PeerRefusal>>,
}

impl Recorder {
    fn put(&self, happened: Happened) {
        assert!(self.happened.try_send(happened).is_ok(), "the test does not read the events");
    }
}

impl Recorder {
    /// The members 1 to 5 at the cluster's birth.
    fn birth(&self) -> Membership {
        let wiped = *self.wiped.lock().unwrap();
        let member = |id: u64| Member {
            node: id,
            peer_addr: format!("node-{id}:1"),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: Some(match wiped {
                Some(node) if node.get() == id => Incarnation([0xee; 16]),
                _ => directory(id),
            }),
        };
        Membership::new(MEMBERS.map(member)).unwrap()
    }
}

fn refusal(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned(), because: RefusedBecause::Rule }
}

impl PeerEvents for Recorder {
    fn admission(&self) -> Admission {
        let birth = self.birth();
        let change = self.change.lock().unwrap().clone();
        let changed =
            change.map(|change| birth.edited(&change).unwrap().unwrap().following(&birth, 3));
        Admission::new([&changed.unwrap_or(birth)].into_iter())
    }

    fn provisional(&self, node: NodeId, peer_addr: String) -> bool {
        self.put(Happened::Provisional(node, peer_addr));
        true
    }

    fn superseded(&self) {
        self.put(Happened::Superseded);
    }

    fn removed(&self, by: ConfigId) {
        self.put(Happened::Removed(by));
    }

    fn ask(
        self: Arc<Self>,
        question: Question,
        _knows_cluster: bool,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let answer = match question {
            Question::Join { member, .. } => {
                refusal(&format!("no place for {}", member.incarnation))
            }
            Question::Change { .. } => Answer::Changed,
        };
        Box::pin(async move { answer })
    }

    fn message(&self, from: NodeId, group: GroupId, message: PeerMessage, room: ReceivePermit) {
        assert_eq!(group, GROUP);
        self.put(Happened::Message(from, message, room));
    }

    fn snapshot(&self, from: NodeId, line: SnapshotConnection) {
        self.put(Happened::Snapshot(from, line));
    }

    fn refused(&self, refusal: PeerRefusal) {
        self.refusals.lock().unwrap().push(refusal);
    }

    fn advertised(&self, node: NodeId, peer_addr: String, _client_addr: String) {
        assert_eq!(peer_addr, format!("node-{node}:1"));
    }

    fn up(&self, node: NodeId, incarnation: Incarnation, _address: &str) {
        self.put(Happened::Up(node, incarnation));
    }

    fn down(&self, node: NodeId) {
        self.put(Happened::Down(node));
    }
}

/// A transport and the events that it reported.
struct Node {
    transport: FramedTransport,
    recorder: Arc<Recorder>,
    happened: mpsc::Receiver<Happened>,
}

impl Node {
    async fn start(id: u64) -> Self {
        Self::start_with(id, CLUSTER, "127.0.0.1:0", settings()).await
    }

    async fn start_with(
        id: u64,
        cluster: ClusterId,
        listen: &str,
        settings: TransportSettings,
    ) -> Self {
        let (tell, happened) = mpsc::channel(100_000);
        let recorder = Arc::new(Recorder {
            happened: tell,
            wiped: Mutex::new(None),
            change: Mutex::new(None),
            refusals: Mutex::default(),
        });
        let identity = TransportIdentity {
            cluster,
            group: GROUP,
            node: n(id),
            incarnation: directory(id),
            start: 7,
            state_machine: "example/bank".to_owned(),
            // From the directory of the node with the same id, as after `recover`.
            continues: vec![(ENDED, directory(id))],
            peer_addr: format!("node-{id}:1"),
            client_addr: String::new(),
        };
        let listener = std::net::TcpListener::bind(listen).unwrap();
        let transport =
            FramedTransport::start(identity, settings, listener, recorder.clone()).unwrap();
        Self { transport, recorder, happened }
    }

    fn dial(&mut self, other: &Self) {
        let node = other.transport.shared.identity.node;
        self.transport.connect(node, &[&other.transport.local_addr().to_string()]);
    }

    async fn next(&mut self) -> Happened {
        within(self.happened.recv()).await.unwrap()
    }

    async fn up(&mut self) -> (NodeId, Incarnation) {
        match self.next().await {
            Happened::Up(node, incarnation) => (node, incarnation),
            other => panic!("{other:?}"),
        }
    }

    async fn down(&mut self) -> NodeId {
        match self.next().await {
            Happened::Down(node) => node,
            other => panic!("{other:?}"),
        }
    }

    async fn message(&mut self) -> (NodeId, PeerMessage) {
        match self.next().await {
            Happened::Message(from, message, _) => (from, message),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self, kind: RefusalKind) -> u64 {
        self.transport.stats().refused.get(&kind).copied().unwrap_or(0)
    }

    async fn refuses(&self, kind: RefusalKind) {
        until(|| self.refused(kind) > 0).await;
    }

    /// Whether no event reached the node.
    fn nothing_happened(&mut self) -> bool {
        self.happened.try_recv().is_err()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the deadline has passed")
}

async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn settings() -> TransportSettings {
    TransportSettings {
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        ..TransportSettings::default()
    }
}

fn heartbeat(round: u64) -> PeerMessage {
    PeerMessage::Heartbeat {
        term: Term::new(1),
        commit: LogIndex::ZERO,
        round,
        matched: d_engine_core::LogIndex::ZERO,
    }
}

/// An append of one entry at index `index` with `length` bytes.
fn append(index: u64, length: usize) -> PeerMessage {
    let entry = LogEntry {
        id: LogId::new(Term::new(1), LogIndex::new(index)),
        kind: EntryKind::Command,
        time_ms: 5,
        session: None,
        version: 0,
        data: Bytes::from(vec![index as u8; length]),
    };
    let prev = LogId::new(Term::new(u64::from(index > 1)), LogIndex::new(index - 1));
    PeerMessage::Append {
        term: Term::new(1),
        prev,
        commit: LogIndex::ZERO,
        entries: [entry].into(),
    }
}

fn sent(node: &mut Node, to: u64, message: &PeerMessage) -> bool {
    node.transport.send(n(to), GROUP, message) == Sent::Queued
}

// ---- the bytes of a connection, written by hand ----

fn greeting() -> Greeting {
    Greeting {
        cluster: CLUSTER,
        group: GROUP,
        from: n(2),
        to: n(1),
        incarnation: directory(2),
        purpose: Purpose::Messages,
        members: MEMBERS.to_vec(),
        config: ConfigId::default(),
        peer_addr: "node-2:1".to_owned(),
        client_addr: String::new(),
        start: 7,
        state_machine: "example/bank".to_owned(),
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&wire::header(&[payload])[..], payload].concat()
}

/// Dials `node`, sends `bytes`.
async fn stranger(node: &Node, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(node.transport.local_addr()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

fn opening(greeting: &[u8]) -> Vec<u8> {
    [&wire::preamble()[..], &framed(greeting)].concat()
}

/// The preamble and the reply that the dialled node sent.
async fn reply(stream: &mut TcpStream) -> HandshakeReply {
    let mut preamble = [0; wire::PREAMBLE_BYTES];
    within(stream.read_exact(&mut preamble)).await.unwrap();
    assert_eq!(preamble, wire::preamble());
    let mut header = [0; 8];
    within(stream.read_exact(&mut header)).await.unwrap();
    let mut payload = vec![0; u32::from_le_bytes(header[..4].try_into().unwrap()) as usize];
    within(stream.read_exact(&mut payload)).await.unwrap();
    HandshakeReply::decode(&payload[..]).unwrap()
}

/// Whether the other side closes the connection. Bytes that it sends before are skipped.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    // A reset counts as closed.
    within(stream.read_to_end(&mut rest)).await.unwrap_or(0);
    true
}

/// Dials `node` as node 2 and finishes the handshake.
async fn accepted_stranger(node: &Node) -> TcpStream {
    let mut stream = stranger(node, &opening(&encode_handshake(&greeting()))).await;
    let reply = reply(&mut stream).await;
    assert_eq!(reply.refusal(), Refusal::None, "{}", reply.refusal_text);
    stream
}

// ---- normal operation ----

/// A node that waits before it dials a peer again dials at once when that peer is back and dials
/// this node: until then this node's responses could not reach it.
#[tokio::test]
async fn a_peer_that_comes_back_is_dialled_at_once() {
    let hour = Duration::from_secs(3_600);
    let patient = TransportSettings { backoff_min: hour, backoff_max: hour, ..settings() };
    let (mut one, two) =
        (Node::start_with(1, CLUSTER, "127.0.0.1:0", patient).await, Node::start(2).await);
    one.dial(&two);
    one.up().await;
    let address = two.transport.local_addr().to_string();
    two.transport.stop().await;
    assert_eq!(one.down().await, n(2));
    let mut back = Node::start_with(2, CLUSTER, &address, settings()).await;
    back.dial(&one);
    assert_eq!(one.up().await, (n(2), directory(2)));
}

/// The last message of a node that stops is the vote for its successor.
#[tokio::test]
async fn what_was_queued_before_the_end_still_leaves() {
    let (mut one, mut two) = (Node::start(1).await, Node::start(2).await);
    one.dial(&two);
    one.up().await;
    let vote = PeerMessage::VoteReply { term: Term::new(3), granted: true, wall_ms: 0 };
    assert!(sent(&mut one, 2, &vote));
    one.transport.stop().await;
    assert_eq!(two.message().await, (n(1), vote));
}

#[tokio::test]
async fn nodes_exchange_messages_of_every_kind_and_size() {
    let (mut one, mut two) = (Node::start(1).await, Node::start(2).await);
    one.dial(&two);
    two.dial(&one);
    assert_eq!(one.up().await, (n(2), directory(2)));
    assert_eq!(two.up().await, (n(1), directory(1)));
    let (term, last) = (Term::new(3), LogId::new(Term::new(2), LogIndex::new(9)));
    let messages = [
        PeerMessage::PreVote { term, last },
        PeerMessage::PreVoteReply { term, granted: true, wall_ms: 0 },
        PeerMessage::RequestVote { term, last, transfer: true },
        PeerMessage::VoteReply { term, granted: false, wall_ms: 0 },
        append(1, 0),
        append(1, 100),
        append(2, 1 << 20),
        PeerMessage::AppendReply { term, outcome: AppendOutcome::Persisted(LogIndex::new(4)) },
        heartbeat(1),
        PeerMessage::HeartbeatReply {
            term,
            round: 1,
            received: LogIndex::ZERO,
            persisted: LogIndex::ZERO,
            report: d_engine_core::FollowerReport::default(),
        },
    ];
    for message in &messages {
        assert!(sent(&mut one, 2, message));
        assert_eq!(two.message().await, (n(1), message.clone()));
        assert!(sent(&mut two, 1, message));
        assert_eq!(one.message().await, (n(2), message.clone()));
    }
}

#[tokio::test]
async fn many_appends_arrive_whole_and_in_order() {
    let (mut one, mut two) = (Node::start(1).await, Node::start(2).await);
    one.dial(&two);
    one.up().await;
    for index in 1..=1_000 {
        assert!(sent(&mut one, 2, &append(index, (index as usize * 37) % 9_000)));
    }
    for index in 1..=1_000 {
        assert_eq!(two.message().await.1, append(index, (index as usize * 37) % 9_000));
    }
}

#[tokio::test]
async fn without_a_connection_messages_are_lost_and_said_to_be() {
    let (mut one, two) = (Node::start(1).await, Node::start(2).await);
    assert!(!sent(&mut one, 2, &heartbeat(1)), "never dialled");
    one.dial(&two);
    assert!(!sent(&mut one, 2, &heartbeat(1)), "not connected yet");
    one.up().await;
    assert!(sent(&mut one, 2, &heartbeat(1)));
}

/// A port that this test holds while nothing listens on it.
fn reserved() -> (tokio::net::TcpSocket, String) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[tokio::test]
async fn a_peer_that_dies_is_reported_and_found_again_when_it_is_back() {
    let (_port, address) = reserved();
    let mut one = Node::start(1).await;
    let two = Node::start_with(2, CLUSTER, &address, settings()).await;
    one.dial(&two);
    one.up().await;
    two.transport.stop().await;
    assert_eq!(one.down().await, n(2));
    assert!(!sent(&mut one, 2, &heartbeat(1)));

    let mut two = Node::start_with(2, CLUSTER, &address, settings()).await;
    assert_eq!(one.up().await, (n(2), directory(2)));
    assert!(sent(&mut one, 2, &heartbeat(2)));
    assert_eq!(two.message().await, (n(1), heartbeat(2)));
}

#[tokio::test]
async fn a_peer_that_starts_late_is_found() {
    let (_port, address) = reserved();
    let mut one = Node::start(1).await;
    one.transport.connect(n(2), &[&address]);
    let _two = Node::start_with(2, CLUSTER, &address, settings()).await;
    assert_eq!(one.up().await.0, n(2));
}

#[tokio::test]
async fn a_peer_that_moved_is_dialled_at_its_new_address() {
    let (mut one, old, mut new) =
        (Node::start(1).await, Node::start(2).await, Node::start(2).await);
    one.dial(&old);
    one.up().await;
    one.dial(&new);
    assert_eq!(one.down().await, n(2));
    one.up().await;
    assert!(sent(&mut one, 2, &heartbeat(1)));
    assert_eq!(new.message().await, (n(1), heartbeat(1)));
    one.transport.disconnect(n(2));
    assert_eq!(one.down().await, n(2));
    assert!(!sent(&mut one, 2, &heartbeat(2)));
}

#[tokio::test]
async fn a_newer_connection_of_a_peer_ends_its_older_one() {
    let mut one = Node::start(1).await;
    let mut older = accepted_stranger(&one).await;
    let mut newer = accepted_stranger(&one).await;
    assert!(is_closed(&mut older).await);
    newer.write_all(&framed(&encode_frame(GROUP, &heartbeat(1)).to_bytes())).await.unwrap();
    assert_eq!(one.message().await, (n(2), heartbeat(1)));
}
