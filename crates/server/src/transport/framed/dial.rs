//! The dialling side of a connection: keeps a connection to one peer and writes the peer's queued
//! messages.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Buf as _;
use d_engine_core::NodeId;
use d_engine_locks::Unpoisoned;
use d_engine_replica::Admitted;
use d_engine_storage::Incarnation;
use d_engine_wire::message::{HandshakeReply, Purpose, Refusal};
use d_engine_wire::{Greeting, config_from_wire, encode_handshake};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::accept::{End, other_incarnation, read_frame};
use super::backoff::Backoff;
use super::batch::Batch;
use super::line::SnapshotConnection;
use super::outbox::Outbox;
use super::wire::{self, FrameReader};
use super::{BATCH_BYTES, RefusalKind, SEND_BUFFER_BYTES, Shared, UNSENT_BYTES};
use crate::transport::PeerRefusal;

/// How long a node that has learned of its removal does not dial the same peer again.
const REMOVED_PAUSE: Duration = Duration::from_secs(30);

/// Keeps a connection to one peer until the task is aborted or the peer is disconnected.
pub(super) async fn dial(
    shared: Arc<Shared>,
    peer: NodeId,
    addresses: Arc<Mutex<Vec<String>>>,
    outbox: Arc<Outbox>,
) {
    let settings = &shared.settings;
    let entropy = settings.entropy ^ peer.get().rotate_left(32);
    let mut backoff = Backoff::new(settings.backoff_min, settings.backoff_max, entropy);
    let mut turn = 0;
    loop {
        // Each in turn, until it is reached at one; the first one first.
        let address = {
            let known = addresses.lock().unpoisoned();
            known.get(turn % known.len().max(1)).cloned().unwrap_or_default()
        };
        turn += 1;
        let connecting = connect(&shared, peer, &address, Purpose::Messages);
        let attempt = timeout(settings.handshake_timeout, connecting).await;
        match attempt {
            Ok(Ok((stream, _, incarnation))) => {
                backoff.reset();
                turn = 0;
                if !outbox.open() {
                    return;
                }
                shared.events.up(peer, incarnation, &address);
                let reason = run(stream, &shared, &outbox).await;
                if outbox.close() {
                    tracing::info!(%peer, %address, "connection to peer lost: {reason}");
                    shared.events.down(peer);
                }
            }
            Ok(Err(End::Refused(kind, text))) => {
                backoff.raise();
                shared.refusals.note(&address, kind, &text);
                shared.events.refused(PeerRefusal { node: peer, by_peer: true, kind, text });
                if kind == RefusalKind::Removed {
                    sleep(REMOVED_PAUSE).await;
                }
            }
            // The peer does not run yet, or no longer: the usual case while nodes start and stop.
            Ok(Err(End::Closed)) => tracing::debug!(%peer, %address, "peer cannot be reached"),
            Err(_) => tracing::debug!(%peer, %address, "peer does not answer"),
        }
        tokio::select! {
            () = sleep(backoff.wait()) => {}
            () = shared.greeted.notified() => {}
        }
    }
}

/// Dials a peer for one snapshot. An error is the reason in words.
pub(super) async fn dial_for_snapshot(
    shared: Arc<Shared>,
    peer: NodeId,
    addresses: Vec<String>,
) -> Result<SnapshotConnection, String> {
    let mut reason = format!("node {peer} has no address");
    for address in &addresses {
        let connecting = connect(&shared, peer, address, Purpose::Snapshot);
        match timeout(shared.settings.handshake_timeout, connecting).await {
            Ok(Ok((stream, reader, _))) => {
                return SnapshotConnection::new(stream, reader).map_err(|error| error.to_string());
            }
            Ok(Err(End::Refused(_, text))) => reason = text,
            Ok(Err(End::Closed)) => reason = format!("{address} cannot be reached"),
            Err(_) => reason = format!("{address} does not answer"),
        }
    }
    Err(reason)
}

/// Connects and performs the handshake.
async fn connect(
    shared: &Shared,
    peer: NodeId,
    address: &str,
    purpose: Purpose,
) -> Result<(TcpStream, FrameReader, Incarnation), End> {
    let mut stream = open(shared, peer, address).await?;
    stream.set_nodelay(true)?;
    let (own, admission) = (&shared.identity, shared.events.admission());
    let greeting = encode_handshake(&Greeting {
        cluster: own.cluster,
        group: own.group,
        from: own.node,
        to: peer,
        incarnation: own.incarnation,
        purpose,
        members: admission.members().collect(),
        start: own.start,
        state_machine: own.state_machine.clone(),
        config: admission.in_force(),
        peer_addr: own.peer_addr.clone(),
        client_addr: own.client_addr.clone(),
    });
    stream
        .write_all(&[&wire::preamble()[..], &wire::header(&[&greeting]), &greeting].concat())
        .await?;
    let mut theirs = [0; wire::PREAMBLE_BYTES];
    stream.read_exact(&mut theirs).await?;
    wire::check_preamble(theirs)?;
    let mut reader = FrameReader::new(wire::MAX_HANDSHAKE_BYTES);
    let reply = read_frame(&mut stream, &mut reader).await?;
    let reply = HandshakeReply::decode(reply)
        .map_err(|error| End::Refused(RefusalKind::MalformedFrame, error.to_string()))?;
    check(&reply, shared, peer).map(|incarnation| (stream, reader, incarnation))
}

/// Tries every address to which the name resolves.
async fn open(shared: &Shared, peer: NodeId, address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name resolves to no address");
    for target in lookup_host(address).await? {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        shared.known_hosts.lock().unpoisoned().insert(peer, target.ip());
        match socket.connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn check(reply: &HandshakeReply, shared: &Shared, peer: NodeId) -> Result<Incarnation, End> {
    let refused = |kind, text| Err(End::Refused(kind, text));
    if let Some(kind) = refusal_kind(reply) {
        if kind == RefusalKind::Removed && is_believed(reply, shared, peer) {
            shared.events.removed(config_from_wire(reply.config));
        }
        if kind == RefusalKind::Superseded
            && shared.settings.heeds_superseded
            && is_successor(reply, shared, peer)
        {
            shared.events.superseded();
        }
        return refused(kind, format!("the peer says: {}", reply.refusal_text));
    }
    if reply.node != peer.get() {
        let text = format!("node {} answers where node {peer} was expected", reply.node);
        return refused(RefusalKind::NotTheExpectedNode, text);
    }
    let Ok(incarnation) = <[u8; 16]>::try_from(&reply.incarnation[..]).map(Incarnation) else {
        let text = "its incarnation is not 16 bytes long".to_owned();
        return refused(RefusalKind::MalformedFrame, text);
    };
    // This node dials whom it wants to reach, member or not; only the directory is checked.
    let admission = shared.events.admission();
    match admission.judge(peer, incarnation, admission.in_force()) {
        Admitted::OtherIncarnation { bound } => {
            refused(RefusalKind::OtherIncarnation, other_incarnation(peer, incarnation, bound))
        }
        _ => Ok(incarnation),
    }
}

/// Whether the other side, which says that this node was removed, is a member of the last committed
/// configuration: a stranger must not be able to stop a node.
fn is_believed(reply: &HandshakeReply, shared: &Shared, peer: NodeId) -> bool {
    let incarnation = <[u8; 16]>::try_from(&reply.incarnation[..]).map(Incarnation);
    let is_peer = reply.node == peer.get() && reply.cluster_id == shared.identity.cluster.0[..];
    let admission = shared.events.admission();
    is_peer && incarnation.is_ok_and(|it| admission.is_committed_member(peer, it))
}

/// Whether the other side, which says that its cluster continues this one, has done so from the
/// directory of that member: a node that only answers at a member's address must not be able to
/// stop an election.
fn is_successor(reply: &HandshakeReply, shared: &Shared, peer: NodeId) -> bool {
    let continued = <[u8; 16]>::try_from(&reply.continued_incarnation[..]).map(Incarnation);
    let admission = shared.events.admission();
    reply.node == peer.get() && continued.is_ok_and(|it| admission.is_committed_member(peer, it))
}

/// Why the other side refuses a connection; `None` if it does not.
pub(super) fn refusal_kind(reply: &HandshakeReply) -> Option<RefusalKind> {
    match reply.refusal() {
        Refusal::None if reply.refusal == i32::from(Refusal::None) => None,
        Refusal::ProtocolVersion => Some(RefusalKind::ProtocolVersion),
        Refusal::OtherCluster => Some(RefusalKind::OtherCluster),
        Refusal::OtherGroup => Some(RefusalKind::OtherGroup),
        Refusal::UnknownNode => Some(RefusalKind::UnknownNode),
        Refusal::NotTheExpectedNode => Some(RefusalKind::NotTheExpectedNode),
        Refusal::OtherIncarnation => Some(RefusalKind::OtherIncarnation),
        Refusal::OtherMembers => Some(RefusalKind::OtherMembers),
        Refusal::OtherStateMachine => Some(RefusalKind::OtherStateMachine),
        Refusal::RunsTwice => Some(RefusalKind::RunsTwice),
        Refusal::Removed => Some(RefusalKind::Removed),
        Refusal::NotJoined => Some(RefusalKind::NotJoined),
        Refusal::Superseded => Some(RefusalKind::Superseded),
        // Also a refusal of a newer version that this program does not know.
        Refusal::Malformed | Refusal::None => Some(RefusalKind::MalformedFrame),
    }
}

/// Writes until the connection ends. Returns the reason.
async fn run(stream: TcpStream, shared: &Shared, outbox: &Outbox) -> String {
    bound_unsent(&stream);
    let (read, write) = stream.into_split();
    tokio::select! {
        result = write_frames(write, shared, outbox) => match result {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        },
        reason = watch(read, shared) => reason,
    }
}

/// Makes the kernel accept little more than it can send at once, where the system supports it:
/// accepted bytes cannot be overtaken.
fn bound_unsent(stream: &TcpStream) {
    #[cfg(any(target_os = "android", target_os = "linux"))]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
        tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT: bulk may delay heartbeats");
    }
    #[cfg(not(any(target_os = "android", target_os = "linux")))]
    let _ = (stream, UNSENT_BYTES);
}

/// Writes the queued frames, many at a time, and a ping every interval.
async fn write_frames(
    mut stream: OwnedWriteHalf,
    shared: &Shared,
    outbox: &Outbox,
) -> io::Result<()> {
    let mut batch = Batch::default();
    let mut next_ping = Instant::now();
    loop {
        if Instant::now() >= next_ping {
            batch.push_ping();
            next_ping = Instant::now() + shared.settings.ping_interval;
        }
        outbox.take(&mut batch, BATCH_BYTES);
        batch.seal();
        if batch.has_remaining() {
            stream.write_all_buf(&mut batch).await?;
            continue;
        }
        // The loop checks whether a frame has arrived or the ping is due.
        timeout_at(next_ping, outbox.filled()).await.unwrap_or(());
    }
}

/// Waits until the peer closes the connection or stops answering pings. Returns the reason.
async fn watch(mut stream: OwnedReadHalf, shared: &Shared) -> String {
    let mut answers = [0; 64];
    loop {
        match timeout(shared.settings.silence_timeout, stream.read(&mut answers)).await {
            Err(_) => return "the peer does not answer".to_owned(),
            Ok(Ok(0)) => return "the peer closed the connection".to_owned(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error.to_string(),
        }
    }
}
