//! The accepting side of a connection: performs the handshake, then only reads.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d_engine_core::NodeId;
use d_engine_replica::{Admission, Admitted, RefusedBecause};
use d_engine_storage::{ConfigId, Incarnation};
use d_engine_wire::PROTOCOL_VERSION;
use d_engine_wire::message::{HandshakeReply, Purpose, Refusal};
use d_engine_wire::{
    Answer, Caller, Greeting, GreetingError, Inquiry, InquiryPurpose, Question, config_to_wire,
    decode_frame, decode_handshake, decode_question, encode_answer,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::line::SnapshotConnection;
use super::places::{HandshakePlace, Handshakes};
use super::wire::{self, FrameReader};
use super::{RefusalKind, Shared, TransportIdentity};
use crate::node::descriptors;
use crate::threads::seldom::Seldom;
use crate::transport::{PeerRefusal, ReceivePermit};

/// The reason why a connection ends.
pub(super) enum End {
    /// It broke, or the other side closed it. Not logged as a refusal.
    Closed,
    /// It is refused, or closed for a violation.
    Refused(RefusalKind, String),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl From<(RefusalKind, String)> for End {
    fn from((kind, text): (RefusalKind, String)) -> Self {
        Self::Refused(kind, text)
    }
}

/// Accepts connections until the task is aborted, which closes all of them.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let handshakes = Arc::new(Handshakes::default());
    let (mut connections, mut told) = (JoinSet::new(), Seldom::default());
    loop {
        tokio::select! {
            incoming = listener.accept() => match incoming {
                Ok((stream, address)) => {
                    let place = handshakes.begin(address.ip(), &shared);
                    connections.spawn(serve(stream, address, shared.clone(), place));
                }
                // Most likely the process is out of file descriptors: wait until some are free.
                Err(error) => {
                    if let Some(kept_back) = told.due(Instant::now()) {
                        let (node, why) = (shared.identity.node, descriptors::explain(&error));
                        tracing::warn!(%node, kept_back, "a peer's connection could not be accepted: {why}");
                    }
                    sleep(shared.settings.backoff_max).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// Serves one accepted connection, from its handshake to its end.
async fn serve(
    mut stream: TcpStream,
    address: SocketAddr,
    shared: Arc<Shared>,
    mut place: HandshakePlace,
) {
    let mut reader = FrameReader::new(wire::MAX_HANDSHAKE_BYTES);
    let limit = shared.settings.handshake_timeout;
    let greeted = tokio::select! {
        greeted = timeout(limit, handshake(&mut stream, &mut reader, &shared)) => greeted,
        () = place.is_lost() => {
            let text = "too many handshakes were in progress; this was the oldest".to_owned();
            Ok(Err(End::Refused(RefusalKind::TooManyHandshakes, text)))
        }
    };
    let end = match greeted {
        Err(_) => End::Refused(
            RefusalKind::HandshakeTimeout,
            "it did not finish its handshake in time".to_owned(),
        ),
        Ok(Err(end)) => end,
        Ok(Ok(Accepted::Inquirer(inquiry))) => {
            let asked = read_question(&mut stream, &mut reader, &inquiry).await;
            drop(place);
            match asked {
                Err(end) => end,
                Ok(None) => End::Closed,
                Ok(Some(question)) => {
                    answer_question(&mut stream, question, &inquiry, address, &shared).await
                }
            }
        }
        Ok(Ok(Accepted::Snapshot(from))) => match SnapshotConnection::new(stream, reader) {
            Ok(line) => {
                shared.events.snapshot(from, line);
                End::Closed
            }
            Err(error) => error.into(),
        },
        Ok(Ok(Accepted::Messages(greeting))) => {
            reader.allow(shared.settings.max_frame_bytes);
            let (from, replaced) =
                (greeting.from, shared.connected.take_place(greeting.from, greeting.start));
            // The peer may have been removed since it was judged; from here on it is expelled then.
            match shared.events.admission().judge(from, greeting.incarnation, greeting.config) {
                Admitted::Member => shared.greeted.notify_waiters(),
                Admitted::Provisional => {}
                _ => return,
            }
            // It is a member's now, and keeps no other one out.
            drop(place);
            tokio::select! {
                end = read_messages(stream, reader, from, &shared) => end,
                _ = replaced => End::Closed,
            }
        }
    };
    if let End::Refused(kind, text) = end {
        shared.refusals.note(&address.ip().to_string(), kind, &text);
    }
}

/// An accepted connection.
enum Accepted {
    /// For messages.
    Messages(Box<Greeting>),
    /// For one snapshot.
    Snapshot(NodeId),
    /// From a node that need not be a member.
    Inquirer(Inquiry),
}

/// Returns who dialled and for which purpose, or why it is refused. The other side has then been
/// sent the refusal, if it speaks the protocol.
async fn handshake(
    stream: &mut TcpStream,
    reader: &mut FrameReader,
    shared: &Shared,
) -> Result<Accepted, End> {
    stream.set_nodelay(true)?;
    let mut theirs = [0; wire::PREAMBLE_BYTES];
    stream.read_exact(&mut theirs).await?;
    let checked = wire::check_preamble(theirs);
    if !matches!(checked, Err((RefusalKind::OtherProtocol, _))) {
        // Also sent to another version, which learns from it why it is refused.
        stream.write_all(&wire::preamble()).await?;
    }
    checked?;
    let greeting = read_frame(stream, reader).await?;
    let own = &shared.identity;
    let mut knows_cluster = false;
    let checked = match decode_handshake(&greeting) {
        Err(error) => Err(refuse_greeting(error)),
        Ok(Caller::Inquirer(inquiry)) => {
            knows_cluster = inquiry.cluster == Some(own.cluster);
            check_inquiry(inquiry, own)
        }
        Ok(Caller::Peer(greeting)) => {
            knows_cluster = greeting.cluster == own.cluster;
            let node = greeting.from;
            check(greeting, shared).inspect_err(|refused| {
                let (kind, text) = (refused.kind, refused.text.clone());
                shared.events.refused(PeerRefusal { node, by_peer: false, kind, text });
            })
        }
    };
    let mut reply = HandshakeReply {
        protocol_version: PROTOCOL_VERSION,
        node: shared.identity.node.get(),
        ..HandshakeReply::default()
    };
    // A stranger does not learn it here: with it, a node of another machine may join.
    if knows_cluster {
        reply.cluster_id = Bytes::copy_from_slice(&shared.identity.cluster.0);
    }
    match &checked {
        // With it, a stranger could ask in the name of this member.
        Ok(_) if knows_cluster => {
            reply.incarnation = Bytes::copy_from_slice(&shared.identity.incarnation.0);
        }
        Ok(_) => {}
        Err(refused) => {
            reply.refusal = i32::from(refused.refusal);
            reply.refusal_text.clone_from(&refused.text);
            if let Some(by) = refused.removed_by {
                reply.config = Some(config_to_wire(by));
                reply.incarnation = Bytes::copy_from_slice(&own.incarnation.0);
            }
            if let Some(directory) = refused.continues {
                reply.continued_incarnation = Bytes::copy_from_slice(&directory.0);
            }
        }
    }
    write_frame(stream, &reply.encode_to_vec()).await?;
    checked.map_err(|refused| End::Refused(refused.kind, refused.text))
}

/// Writes a frame of a handshake, of a question or of an answer.
pub(super) async fn write_frame(stream: &mut TcpStream, payload: &[u8]) -> io::Result<()> {
    stream.write_all(&[&wire::header(&[payload])[..], payload].concat()).await
}

/// Why a handshake is refused.
struct Unwelcome {
    /// For the other side.
    refusal: Refusal,
    kind: RefusalKind,
    text: String,
    /// The committed configuration that has removed the other side.
    removed_by: Option<ConfigId>,
    /// The directory of the other side's cluster that this node's continues.
    continues: Option<Incarnation>,
}

fn unwelcome(refusal: Refusal, kind: RefusalKind, text: String) -> Unwelcome {
    Unwelcome { refusal, kind, text, removed_by: None, continues: None }
}

fn refuse_greeting(error: GreetingError) -> Unwelcome {
    match error {
        GreetingError::Version { .. } => {
            let text = error.to_string();
            unwelcome(Refusal::ProtocolVersion, RefusalKind::ProtocolVersion, text)
        }
        _ => unwelcome(Refusal::Malformed, RefusalKind::MalformedFrame, error.to_string()),
    }
}

fn check(greeting: Box<Greeting>, shared: &Shared) -> Result<Accepted, Unwelcome> {
    let admission = shared.events.admission();
    check_addressee(&greeting, &shared.identity)?;
    check_agreement(&greeting, &shared.identity, &admission)?;
    admit(&greeting, shared, &admission)?;
    if !greeting.peer_addr.is_empty() {
        let (peer_addr, client_addr) = (greeting.peer_addr.clone(), greeting.client_addr.clone());
        shared.events.advertised(greeting.from, peer_addr, client_addr);
    }
    match greeting.purpose {
        Purpose::Messages => Ok(Accepted::Messages(greeting)),
        Purpose::Snapshot => Ok(Accepted::Snapshot(greeting.from)),
        Purpose::Ask | Purpose::Probe => {
            let text = "a peer's connection carries messages or a snapshot".to_owned();
            Err(unwelcome(Refusal::Malformed, RefusalKind::MalformedFrame, text))
        }
    }
}

/// Refuses an inquirer that means another cluster or group.
fn check_inquiry(inquiry: Inquiry, own: &TransportIdentity) -> Result<Accepted, Unwelcome> {
    match inquiry.cluster {
        Some(cluster) if own.continues.iter().any(|(it, _)| *it == cluster) => {
            let text = format!("the cluster of node {} continues cluster {cluster}", own.node);
            Err(unwelcome(Refusal::Superseded, RefusalKind::Superseded, text))
        }
        Some(cluster) if cluster != own.cluster => {
            let text = format!(
                "it expects a node of cluster {cluster}, and node {} belongs to another one",
                own.node
            );
            Err(unwelcome(Refusal::OtherCluster, RefusalKind::OtherCluster, text))
        }
        _ if inquiry.group != own.group => {
            let text = format!("it asks group {}, this node is in {}", inquiry.group, own.group);
            Err(unwelcome(Refusal::OtherGroup, RefusalKind::OtherGroup, text))
        }
        _ => Ok(Accepted::Inquirer(inquiry)),
    }
}

/// How long the question of an inquirer may take to arrive.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the inquirer's question, if it has one.
async fn read_question(
    stream: &mut TcpStream,
    reader: &mut FrameReader,
    inquiry: &Inquiry,
) -> Result<Option<Question>, End> {
    if inquiry.wants != InquiryPurpose::Ask {
        return Ok(None);
    }
    let Ok(bytes) = timeout(QUESTION_TIMEOUT, read_frame(stream, reader)).await else {
        return Err(End::Closed);
    };
    decode_question(bytes?, inquiry.incarnation)
        .map(Some)
        .map_err(|error| End::Refused(RefusalKind::MalformedFrame, error.to_string()))
}

async fn answer_question(
    stream: &mut TcpStream,
    question: Question,
    inquiry: &Inquiry,
    address: SocketAddr,
    shared: &Shared,
) -> End {
    let is_member = shared.events.admission().is_directory_of_member(inquiry.incarnation);
    // Nodes that join must not keep members out.
    let (places, refusal) = match &question {
        Question::Change { .. } => {
            let text = "only a member may ask for a change of the members";
            (&shared.changing, (!is_member || inquiry.cluster.is_none()).then_some(text))
        }
        // A node that joins receives all data.
        Question::Join { .. } => {
            let text = "set `cluster_id`: a node of another machine must name the cluster, unless \
                        it is invited";
            let is_known = inquiry.cluster.is_some()
                || address.ip().is_loopback()
                || shared.events.admission().is_by_invitation();
            (&shared.joining, (!is_known).then_some(text))
        }
    };
    let answer = match (refusal, places.try_acquire()) {
        (Some(text), _) => {
            Answer::Refused { reason: text.to_owned(), because: RefusedBecause::Rule }
        }
        (None, Err(_)) => Answer::Later("too many nodes ask at once".to_owned()),
        (None, Ok(_one)) => {
            let knows_cluster = inquiry.cluster.is_some();
            shared.events.clone().ask(question, knows_cluster).await
        }
    };
    match write_frame(stream, &encode_answer(&answer)).await {
        Ok(()) => End::Closed,
        Err(error) => error.into(),
    }
}

/// Refuses a peer that means another cluster, group or node.
fn check_addressee(greeting: &Greeting, own: &TransportIdentity) -> Result<(), Unwelcome> {
    let refuse = |refusal, kind, text| Err(unwelcome(refusal, kind, text));
    let continued = own.continues.iter().find(|(cluster, _)| *cluster == greeting.cluster);
    if let Some((_, directory)) = continued {
        let text = format!(
            "cluster {} has ended: an operator has continued the log of one of its nodes as \
             another cluster (`recover`), to which node {} belongs now; stop node {}, empty its \
             directory, and let it join that cluster",
            greeting.cluster, own.node, greeting.from
        );
        let refused = unwelcome(Refusal::Superseded, RefusalKind::Superseded, text);
        return Err(Unwelcome { continues: Some(*directory), ..refused });
    }
    if greeting.cluster != own.cluster {
        // It is not named to strangers: with it, a node of another machine may join.
        let text = format!(
            "node {} belongs to cluster {}, node {} to another one; compare their `cluster_id`",
            greeting.from, greeting.cluster, own.node
        );
        return refuse(Refusal::OtherCluster, RefusalKind::OtherCluster, text);
    }
    if greeting.group != own.group {
        let text = format!(
            "node {} is in group {}, this node in {}",
            greeting.from, greeting.group, own.group
        );
        return refuse(Refusal::OtherGroup, RefusalKind::OtherGroup, text);
    }
    if greeting.to != own.node || greeting.from == own.node {
        let text = format!(
            "node {} dialled node {}; this is node {}",
            greeting.from, greeting.to, own.node
        );
        return refuse(Refusal::NotTheExpectedNode, RefusalKind::NotTheExpectedNode, text);
    }
    Ok(())
}

/// Refuses a peer that was given other members at the cluster's birth, or runs another state
/// machine. Later configurations have names, so they are not compared.
fn check_agreement(
    greeting: &Greeting,
    own: &TransportIdentity,
    admission: &Admission,
) -> Result<(), Unwelcome> {
    let refuse = |refusal, kind, text| Err(unwelcome(refusal, kind, text));
    let birth = ConfigId::default();
    let are_new = greeting.config == birth && admission.in_force() == birth;
    let members: Vec<u64> = admission.members().collect();
    if are_new && greeting.members != members {
        let text = format!(
            "node {} knows the members {}, node {} knows {}: give every node of a cluster the same \
             `members`",
            greeting.from,
            list(&greeting.members),
            own.node,
            list(&members)
        );
        return refuse(Refusal::OtherMembers, RefusalKind::OtherMembers, text);
    }
    let (theirs, ours) = (&greeting.state_machine, &own.state_machine);
    if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
        let text = format!(
            "node {} runs the state machine {theirs:?}, node {} runs {ours:?}: all nodes of a \
             cluster must run the same one",
            greeting.from, own.node
        );
        return refuse(Refusal::OtherStateMachine, RefusalKind::OtherStateMachine, text);
    }
    Ok(())
}

/// Refuses a node that is no member, has another data directory, or runs twice.
fn admit(greeting: &Greeting, shared: &Shared, admission: &Admission) -> Result<(), Unwelcome> {
    let refuse = |refusal, kind, text| Err(unwelcome(refusal, kind, text));
    let judged = admission.judge(greeting.from, greeting.incarnation, greeting.config);
    match judged {
        Admitted::Member | Admitted::Provisional
            if shared.connected.is_replaced(greeting.from, greeting.start) =>
        {
            let text = format!(
                "node {} runs twice: another process with its data directory, or a copy of it, has \
                 replaced it; stop one of them",
                greeting.from
            );
            refuse(Refusal::RunsTwice, RefusalKind::RunsTwice, text)
        }
        Admitted::Member => Ok(()),
        Admitted::Provisional
            if shared.events.provisional(greeting.from, greeting.peer_addr.clone()) =>
        {
            Ok(())
        }
        Admitted::Provisional => {
            let text = format!(
                "node {} is not a member that node {} knows, and it names no address or too many \
                 such nodes are connected; it may dial again",
                greeting.from, shared.identity.node
            );
            refuse(Refusal::UnknownNode, RefusalKind::UnknownNode, text)
        }
        Admitted::Removed { by } => {
            let text = format!("node {} was removed by configuration {by}", greeting.from);
            let refused = unwelcome(Refusal::Removed, RefusalKind::Removed, text);
            Err(Unwelcome { removed_by: Some(by), ..refused })
        }
        Admitted::Unknown => {
            let text = format!(
                "node {} is not a member of the cluster that node {} knows",
                greeting.from, shared.identity.node
            );
            refuse(Refusal::UnknownNode, RefusalKind::UnknownNode, text)
        }
        Admitted::OtherIncarnation { bound } => {
            let text = other_incarnation(greeting.from, greeting.incarnation, bound);
            refuse(Refusal::OtherIncarnation, RefusalKind::OtherIncarnation, text)
        }
    }
}

fn list(members: &[u64]) -> String {
    members.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// Both sides use this text.
pub(super) fn other_incarnation(
    node: NodeId,
    found: d_engine_storage::Incarnation,
    bound: d_engine_storage::Incarnation,
) -> String {
    format!(
        "node {node} has the data directory {found}, but the cluster has bound it to {bound}: its \
         directory was emptied or replaced"
    )
}

/// Reads the next frame of a handshake.
pub(super) async fn read_frame(
    stream: &mut TcpStream,
    reader: &mut FrameReader,
) -> Result<Bytes, End> {
    loop {
        if let Some(payload) = reader.next()? {
            return Ok(payload);
        }
        reader.reserve();
        if stream.read_buf(reader.buffer()).await? == 0 {
            return Err(End::Closed);
        }
    }
}

/// Reads until the connection ends. Pauses while this peer's share of memory is used up.
async fn read_messages(
    mut stream: TcpStream,
    mut reader: FrameReader,
    from: NodeId,
    shared: &Shared,
) -> End {
    let share =
        shared.settings.inbound_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let room = Arc::new(Semaphore::new(share));
    // Pings arrive more often than this, unless the peer is gone.
    let silence = shared.settings.silence_timeout * 2;
    loop {
        match hand_over(&mut reader, &mut stream, from, shared, &room, share).await {
            Ok(()) => {}
            Err(end) => return end,
        }
        reader.reserve();
        match timeout(silence, stream.read_buf(reader.buffer())).await {
            Ok(Ok(0) | Err(_)) | Err(_) => return End::Closed,
            Ok(Ok(_)) => {}
        }
    }
}

/// Reports every complete frame that has arrived to the node.
async fn hand_over(
    reader: &mut FrameReader,
    stream: &mut TcpStream,
    from: NodeId,
    shared: &Shared,
    room: &Arc<Semaphore>,
    share: usize,
) -> Result<(), End> {
    while let Some(payload) = reader.next()? {
        if payload.is_empty() {
            // Answers with one byte. If the send buffer is full, the peer has not read earlier
            // answers, and this one can be left out.
            match stream.try_write(&[1]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(End::Closed),
            }
            continue;
        }
        let (group, message) = decode_frame(&payload).map_err(|error| {
            End::Refused(RefusalKind::MalformedFrame, format!("node {from}: {error}"))
        })?;
        let bytes = u32::try_from(payload.len().min(share)).unwrap_or(u32::MAX);
        let Ok(permit) = room.clone().acquire_many_owned(bytes).await else {
            return Err(End::Closed);
        };
        shared.events.message(from, group, message, ReceivePermit::counted(permit));
    }
    Ok(())
}
