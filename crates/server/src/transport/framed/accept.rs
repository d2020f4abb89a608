//! The accepting side of a connection: performs the handshake, then only reads.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use d_engine_core::NodeId;
use d_engine_wire::PROTOCOL_VERSION;
use d_engine_wire::message::{HandshakeReply, Purpose, Refusal};
use d_engine_wire::{Greeting, GreetingError, decode_frame, decode_handshake};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::line::SnapshotConnection;
use super::places::{Accepted, HandshakePlace, Handshakes};
use super::wire::{self, FrameReader};
use super::{RefusalKind, Shared, TransportIdentity};
use crate::node::descriptors;
use crate::threads::seldom::Seldom;
use crate::transport::{Admission, PeerRefusal, ReceivePermit};

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
    let accepted = Arc::new(Accepted::default());
    let (mut connections, mut told) = (JoinSet::new(), Seldom::default());
    loop {
        tokio::select! {
            incoming = listener.accept() => match incoming {
                Ok((stream, address)) => {
                    let place = handshakes.begin(address.ip(), &shared);
                    connections.spawn(serve(stream, address, shared.clone(), place, accepted.clone()));
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
    accepted: Arc<Accepted>,
) {
    let mut reader = FrameReader::new(wire::MAX_HANDSHAKE_BYTES);
    let limit = shared.settings.handshake_timeout;
    let greeted = tokio::select! {
        greeted = timeout(limit, handshake(&mut stream, &mut reader, &shared, &accepted)) => greeted,
        () = place.is_lost() => {
            let text = "too many handshakes were in progress; this was the oldest".to_owned();
            Ok(Err(End::Refused(RefusalKind::TooManyHandshakes, text)))
        }
    };
    drop(place);
    let end = match greeted {
        Err(_) => End::Refused(
            RefusalKind::HandshakeTimeout,
            "it did not finish its handshake in time".to_owned(),
        ),
        Ok(Err(end)) => end,
        Ok(Ok((from, _, Purpose::Snapshot))) => match SnapshotConnection::new(stream, reader) {
            Ok(line) => {
                shared.events.snapshot(from, line);
                End::Closed
            }
            Err(error) => error.into(),
        },
        Ok(Ok((from, start, Purpose::Messages))) => {
            shared.greeted.notify_waiters();
            reader.allow(shared.settings.max_frame_bytes);
            let replaced = accepted.take_place(from, start);
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

/// Returns who dialled and for which purpose, or why it is refused. The other side has then been
/// sent the refusal, if it speaks the protocol.
async fn handshake(
    stream: &mut TcpStream,
    reader: &mut FrameReader,
    shared: &Shared,
    accepted: &Accepted,
) -> Result<(NodeId, u64, Purpose), End> {
    stream.set_nodelay(true)?;
    let mut theirs = [0; wire::PREAMBLE_BYTES];
    stream.read_exact(&mut theirs).await?;
    let checked = wire::check_preamble(theirs);
    if !matches!(checked, Err((RefusalKind::OtherProtocol, _))) {
        // Also sent to another version, which learns from it why it is refused.
        stream.write_all(&wire::preamble()).await?;
    }
    checked?;
    let hello = read_frame(stream, reader).await?;
    let checked = match decode_handshake(&hello) {
        Err(error) => Err(refuse_greeting(error)),
        Ok(hello) => check(&hello, shared, accepted).inspect_err(|(_, kind, text)| {
            let (node, kind, text) = (hello.from, *kind, text.clone());
            shared.events.refused(PeerRefusal { node, by_peer: false, kind, text });
        }),
    };
    let mut reply = HandshakeReply {
        protocol_version: PROTOCOL_VERSION,
        node: shared.identity.node.get(),
        ..HandshakeReply::default()
    };
    match &checked {
        Ok(_) => reply.incarnation = Bytes::copy_from_slice(&shared.identity.incarnation.0),
        Err((refusal, _, text)) => {
            reply.refusal = i32::from(*refusal);
            reply.refusal_text.clone_from(text);
        }
    }
    let reply = reply.encode_to_vec();
    stream.write_all(&[&wire::header(&[&reply])[..], &reply].concat()).await?;
    checked.map_err(|(_, kind, text)| End::Refused(kind, text))
}

type Unwelcome = (Refusal, RefusalKind, String);

fn refuse_greeting(error: GreetingError) -> Unwelcome {
    match error {
        GreetingError::Version { .. } => {
            (Refusal::ProtocolVersion, RefusalKind::ProtocolVersion, error.to_string())
        }
        _ => (Refusal::Malformed, RefusalKind::MalformedFrame, error.to_string()),
    }
}

fn check(
    hello: &Greeting,
    shared: &Shared,
    accepted: &Accepted,
) -> Result<(NodeId, u64, Purpose), Unwelcome> {
    check_addressee(hello, &shared.identity)?;
    check_agreement(hello, &shared.identity, &shared.events.members())?;
    admit(hello, shared, accepted)?;
    Ok((hello.from, hello.start, hello.purpose))
}

/// Refuses a peer that means another cluster, group or node.
fn check_addressee(hello: &Greeting, own: &TransportIdentity) -> Result<(), Unwelcome> {
    let refuse = |refusal, kind, text| Err((refusal, kind, text));
    if hello.cluster != own.cluster {
        let text = format!(
            "node {} belongs to cluster {}, this node to {}",
            hello.from, hello.cluster, own.cluster
        );
        return refuse(Refusal::OtherCluster, RefusalKind::OtherCluster, text);
    }
    if hello.group != own.group {
        let text =
            format!("node {} is in group {}, this node in {}", hello.from, hello.group, own.group);
        return refuse(Refusal::OtherGroup, RefusalKind::OtherGroup, text);
    }
    if hello.to != own.node || hello.from == own.node {
        let text =
            format!("node {} dialled node {}; this is node {}", hello.from, hello.to, own.node);
        return refuse(Refusal::NotTheExpectedNode, RefusalKind::NotTheExpectedNode, text);
    }
    Ok(())
}

/// Refuses a peer that knows other members, or runs another state machine.
fn check_agreement(
    hello: &Greeting,
    own: &TransportIdentity,
    members: &[u64],
) -> Result<(), Unwelcome> {
    let refuse = |refusal, kind, text| Err((refusal, kind, text));
    if hello.members != members {
        let text = format!(
            "node {} knows the members {}, node {} knows {}: give every node of a cluster the same \
             `members`",
            hello.from,
            list(&hello.members),
            own.node,
            list(members)
        );
        return refuse(Refusal::OtherMembers, RefusalKind::OtherMembers, text);
    }
    let (theirs, ours) = (&hello.state_machine, &own.state_machine);
    if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
        let text = format!(
            "node {} runs the state machine {theirs:?}, node {} runs {ours:?}: all nodes of a \
             cluster must run the same one",
            hello.from, own.node
        );
        return refuse(Refusal::OtherStateMachine, RefusalKind::OtherStateMachine, text);
    }
    Ok(())
}

/// Refuses a node that is no member, has another data directory, or runs twice.
fn admit(hello: &Greeting, shared: &Shared, accepted: &Accepted) -> Result<(), Unwelcome> {
    let refuse = |refusal, kind, text| Err((refusal, kind, text));
    match shared.events.admit(hello.from, hello.incarnation) {
        Admission::Welcome if accepted.is_replaced(hello.from, hello.start) => {
            let text = format!(
                "node {} runs twice: another process with its data directory, or a copy of it, has \
                 replaced it; stop one of them",
                hello.from
            );
            refuse(Refusal::RunsTwice, RefusalKind::RunsTwice, text)
        }
        Admission::Welcome => Ok(()),
        Admission::UnknownNode => {
            let text = format!(
                "node {} is not a member of the cluster that node {} knows",
                hello.from, shared.identity.node
            );
            refuse(Refusal::UnknownNode, RefusalKind::UnknownNode, text)
        }
        Admission::OtherIncarnation { bound } => {
            let text = other_incarnation(hello.from, hello.incarnation, bound);
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
