//! Connections of nodes that need not be members: what listens at an address, and questions to a
//! cluster. A node that joins answers probes before it has an identity.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use d_engine_core::{GroupId, NodeId};
use d_engine_storage::{ClusterId, Incarnation};
use d_engine_wire::PROTOCOL_VERSION;
use d_engine_wire::message::{HandshakeReply, Refusal};
use d_engine_wire::{
    Answer, Caller, Inquiry, InquiryPurpose, JoinNumber, Question, decode_answer, decode_handshake,
    encode_inquiry, encode_question,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::RefusalKind;
use super::accept::{End, read_frame, write_frame};
use super::dial::refusal_kind;
use super::wire::{self, FrameReader};

/// How long connecting and the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a question may take to be answered: a member's entry must be committed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Probes that are answered at once.
const PROBES_MAX: usize = 64;

/// The node that listens at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probed {
    /// Its id; `None` if it has not joined a cluster yet.
    pub(crate) node: Option<NodeId>,
    /// Its cluster.
    pub(crate) cluster: Option<ClusterId>,
    /// Its data directory, which it names only to nodes that know its cluster or, until it has
    /// joined one, the number of its join.
    pub(crate) incarnation: Option<Incarnation>,
    /// It belongs to a cluster that continues by force the one that was named.
    pub(crate) continues: bool,
}

/// Asks which node of the cluster listens at `address`. An error is the reason in words.
pub(crate) async fn probe(
    address: &str,
    cluster: ClusterId,
    group: GroupId,
    own: Incarnation,
) -> Result<Probed, String> {
    let wants = InquiryPurpose::Probe { number: None };
    let inquiry = Inquiry { cluster: Some(cluster), group, incarnation: own, wants };
    begin(address, &inquiry).await.map(|(_, _, probed)| probed)
}

/// Asks whether the node at `address` is the one that asks to join with this number: then it names
/// its directory, and no node id. An error is the reason in words.
pub(crate) async fn probe_joiner(
    address: &str,
    number: JoinNumber,
    group: GroupId,
    own: Incarnation,
) -> Result<Probed, String> {
    let wants = InquiryPurpose::Probe { number: Some(number) };
    let inquiry = Inquiry { cluster: None, group, incarnation: own, wants };
    begin(address, &inquiry).await.map(|(_, _, probed)| probed)
}

/// Asks the node at `address` a question. An error is the reason in words why there is no answer.
pub(crate) async fn ask(
    address: &str,
    cluster: Option<ClusterId>,
    group: GroupId,
    own: Incarnation,
    question: &Question,
) -> Result<Answer, String> {
    let inquiry = Inquiry { cluster, group, incarnation: own, wants: InquiryPurpose::Ask };
    let (mut stream, mut reader, probed) = begin(address, &inquiry).await?;
    if probed.continues {
        return Err("its cluster was made from this one by `recover`".to_owned());
    }
    let answered = async {
        write_frame(&mut stream, &encode_question(question)).await?;
        read_frame(&mut stream, &mut reader).await
    };
    match timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(answer)) => decode_answer(answer).map_err(|error| error.to_string()),
        Ok(Err(end)) => Err(words(end)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

/// Connects and performs the handshake.
async fn begin(
    address: &str,
    inquiry: &Inquiry,
) -> Result<(TcpStream, FrameReader, Probed), String> {
    let begun = timeout(HANDSHAKE_TIMEOUT, async {
        let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let mut reader = FrameReader::new(wire::MAX_HANDSHAKE_BYTES);
        let reply = greet(&mut stream, &mut reader, inquiry).await.map_err(words)?;
        let incarnation = <[u8; 16]>::try_from(&reply.incarnation[..]).ok().map(Incarnation);
        let cluster = <[u8; 16]>::try_from(&reply.cluster_id[..]).ok().map(ClusterId);
        let continues = refusal_kind(&reply) == Some(RefusalKind::Superseded);
        let probed = Probed { node: NodeId::new(reply.node), cluster, incarnation, continues };
        Ok((stream, reader, probed))
    });
    begun.await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

async fn greet(
    stream: &mut TcpStream,
    reader: &mut FrameReader,
    inquiry: &Inquiry,
) -> Result<HandshakeReply, End> {
    stream.set_nodelay(true)?;
    stream.write_all(&wire::preamble()).await?;
    write_frame(stream, &encode_inquiry(inquiry)).await?;
    let mut theirs = [0; wire::PREAMBLE_BYTES];
    stream.read_exact(&mut theirs).await?;
    wire::check_preamble(theirs)?;
    let reply = HandshakeReply::decode(read_frame(stream, reader).await?)
        .map_err(|error| End::Refused(RefusalKind::MalformedFrame, error.to_string()))?;
    match refusal_kind(&reply) {
        None | Some(RefusalKind::Superseded) => Ok(reply),
        Some(kind) => Err(End::Refused(kind, reply.refusal_text)),
    }
}

fn words(end: End) -> String {
    match end {
        End::Closed => "it closed the connection".to_owned(),
        End::Refused(_, text) => text,
    }
}

/// Answers the probes of leaders that know the number of this node's join with its data directory,
/// until the future is dropped. The node has not joined a cluster yet, so everything else is
/// refused.
pub(crate) async fn answer_probes(
    listener: &TcpListener,
    incarnation: Incarnation,
    number: JoinNumber,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = listener.accept(), if connections.len() < PROBES_MAX => match incoming {
                Ok((stream, _)) => {
                    let answered = answer_probe(stream, incarnation, number);
                    connections.spawn(timeout(HANDSHAKE_TIMEOUT, answered));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_secs(1)).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn answer_probe(
    mut stream: TcpStream,
    incarnation: Incarnation,
    number: JoinNumber,
) -> io::Result<()> {
    let mut theirs = [0; wire::PREAMBLE_BYTES];
    stream.read_exact(&mut theirs).await?;
    let checked = wire::check_preamble(theirs);
    if matches!(checked, Err((RefusalKind::OtherProtocol, _))) {
        return Ok(());
    }
    stream.write_all(&wire::preamble()).await?;
    let mut reader = FrameReader::new(wire::MAX_HANDSHAKE_BYTES);
    let Ok(greeting) = read_frame(&mut stream, &mut reader).await else { return Ok(()) };
    let mut reply =
        HandshakeReply { protocol_version: PROTOCOL_VERSION, ..HandshakeReply::default() };
    match decode_handshake(&greeting) {
        Ok(Caller::Inquirer(Inquiry { wants, .. }))
            if wants == (InquiryPurpose::Probe { number: Some(number) }) =>
        {
            reply.incarnation = Bytes::copy_from_slice(&incarnation.0);
        }
        _ => {
            reply.refusal = Refusal::NotJoined.into();
            // Who knows the directory could ask in its name.
            reply.refusal_text = "the node there has not joined a cluster, and asks to join \
                                  another one or with another request"
                .to_owned();
        }
    }
    write_frame(&mut stream, &reply.encode_to_vec()).await
}
