//! Receives a backup, over as many connections as that needs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine_client::{
    BackupOf, BackupTransfer, Client, ClientError, ClientOptions, NodeRole, NodeStatus,
};
use d_engine_offline::backup::{BackupFile, Offer, SnapshotError, SnapshotHeader};
use d_engine_offline::inspect::LogId;
use d_engine_offline::{Fs, RealFs};
use tokio::time::{Instant, sleep};

use super::file::FileWriter;
use super::source::{Sender, Sources};
use crate::blocking::Stop;
use crate::exit::{Exit, Failure, note};
use crate::progress::bytes;

/// How long to try to continue a transfer that was interrupted.
const RESUME_FOR: Duration = Duration::from_secs(60);
/// How long a node may take to say who it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Makes the node at `address` take a snapshot of what it has applied, and receives it into `file`.
/// Continues what an earlier run has received, if the node still has it. `check` may refuse the
/// node.
pub(crate) async fn receive_from(
    address: &str,
    wait: Duration,
    file: &Path,
    stop: &Stop,
    check: impl FnOnce(&NodeStatus) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let client = Client::new([address], ClientOptions::default().timeout(STATUS_TIMEOUT))?;
    let status = client.status(address).await?;
    check(&status)?;
    let leads = status.role == NodeRole::Leader;
    let sender = Sender { node: status.node, address: address.to_owned(), leads };
    let sources = Sources::only(client, sender);
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let earlier = match Unfinished::open(&fs, file, stop).await? {
        Some(begun) if begun.is_whole() => begun.finish().await.ok(),
        Some(begun) => begun.go_on(&sources).await.ok(),
        None => None,
    };
    if earlier.is_none() {
        anew(&sources, &fs, file, (BackupOf::Applied, wait), stop).await?;
    }
    Ok(status.node)
}

/// A backup that is complete, verified and durable.
pub(super) struct Received {
    /// Who has sent the end of it; `None` if all of it was there already.
    pub(super) sender: Option<Sender>,
    pub(super) offer: Offer,
    /// Every acknowledged write is at this index or before it; `None` if that is not known.
    pub(super) complete_up_to: Option<u64>,
    pub(super) header: Arc<SnapshotHeader>,
}

/// Makes a node take a snapshot, and receives it.
pub(super) async fn anew(
    sources: &Sources,
    fs: &Arc<dyn Fs>,
    file: &Path,
    (what, wait): (BackupOf, Duration),
    stop: &Stop,
) -> Result<Received, Failure> {
    let (sender, transfer) = sources.take(what, wait).await?;
    let offer = offer_of(&transfer);
    let (writer, at) = FileWriter::open(fs, file, offer, stop).await.map_err(failure)?;
    Begun { transfer, writer, at, sender }.receive_all(sources).await
}

/// What an earlier run has begun.
pub(super) struct Unfinished {
    offer: Offer,
    writer: FileWriter,
    /// Bytes that are there.
    at: u64,
}

impl Unfinished {
    pub(super) async fn open(
        fs: &Arc<dyn Fs>,
        file: &Path,
        stop: &Stop,
    ) -> Result<Option<Self>, Failure> {
        let unfinished = BackupFile::unfinished(&**fs, file).map_err(failure)?;
        let Some(offer) = unfinished else { return Ok(None) };
        let (writer, at) = FileWriter::open(fs, file, offer, stop).await.map_err(failure)?;
        Ok(Some(Self { offer, writer, at }))
    }

    pub(super) fn is_whole(&self) -> bool {
        self.at == self.offer.len
    }

    /// Needs no node.
    pub(super) async fn finish(self) -> Result<Received, Failure> {
        let header = self.writer.finish().await.map_err(failure)?;
        Ok(Received { sender: None, offer: self.offer, complete_up_to: None, header })
    }

    pub(super) async fn go_on(self, sources: &Sources) -> Result<Received, Failure> {
        let Self { offer, writer, at } = self;
        let rest = BackupOf::Rest { sha256: offer.sha256, from_offset: at };
        match sources.take(rest, RESUME_FOR).await {
            Ok((sender, transfer)) => {
                Begun { transfer, writer, at, sender }.receive_all(sources).await
            }
            Err(failure) => {
                // Until then the file is locked.
                writer.give_up().await;
                Err(failure)
            }
        }
    }
}

/// A transfer that has begun.
struct Begun {
    transfer: BackupTransfer,
    writer: FileWriter,
    /// Bytes that the writer has.
    at: u64,
    sender: Sender,
}

impl Begun {
    /// Receives everything, over as many connections as that needs.
    async fn receive_all(mut self, sources: &Sources) -> Result<Received, Failure> {
        let offer = self.transfer.offer().clone();
        let bar = bytes(&format!("from node {}", offer.node), offer.bytes);
        // The first break since the last byte: without progress, the transfer is not opened for
        // ever.
        let mut stuck: Option<Instant> = None;
        loop {
            bar.set_position(self.at);
            let broken = match self.transfer.next().await {
                Ok(Some(piece)) => {
                    stuck = None;
                    self.at = self.at.max(piece.offset.saturating_add(piece.data.len() as u64));
                    match self.writer.put(piece).await {
                        true => continue,
                        // The writer has failed.
                        false => break,
                    }
                }
                Ok(None) => break,
                Err(error) => error,
            };
            if let ClientError::SnapshotFailed { .. } = broken {
                bar.finish_and_clear();
                return Err(self.given_up(sources, &broken));
            }
            bar.suspend(|| note(format_args!("{broken}; continuing")));
            let since = *stuck.get_or_insert_with(Instant::now);
            self.transfer = self.reopen(sources, &offer.sha256, since, broken).await?;
        }
        bar.finish_and_clear();
        let complete_up_to = offer.complete_up_to;
        let offer = offer_of(&self.transfer);
        let header = self.writer.finish().await.map_err(|error| {
            let is_kept = matches!(error, SnapshotError::Io { .. } | SnapshotError::NoSpace { .. });
            let kept = if is_kept { "; what was received is kept: " } else { "" };
            let next = if is_kept { sources.continues } else { "" };
            Failure::new(exit_of(&error), format!("{error}{kept}{next}"))
        })?;
        Ok(Received { sender: Some(self.sender), offer, complete_up_to, header })
    }

    async fn reopen(
        &self,
        sources: &Sources,
        sha256: &[u8; 32],
        since: Instant,
        mut broken: ClientError,
    ) -> Result<BackupTransfer, Failure> {
        let mut pause = PAUSE_MIN;
        let rest = BackupOf::Rest { sha256: *sha256, from_offset: self.at };
        while since.elapsed() < RESUME_FOR {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            match sources.open(&self.sender.address, rest).await {
                Ok(transfer) => return Ok(transfer),
                Err(gone @ ClientError::SnapshotFailed { .. }) => {
                    return Err(Failure::failed(format!("{gone}; run the command again")));
                }
                Err(other) => broken = other,
            }
        }
        Err(self.given_up(sources, &broken))
    }

    fn given_up(&self, sources: &Sources, broken: &ClientError) -> Failure {
        Failure::failed(format!(
            "the transfer ended after {} bytes: {broken}; what was received is kept: {}",
            self.at, sources.continues
        ))
    }
}

fn offer_of(transfer: &BackupTransfer) -> Offer {
    let offer = transfer.offer();
    let last_included = LogId::of(offer.term, offer.index);
    Offer { last_included, len: offer.bytes, sha256: offer.sha256 }
}

pub(super) fn failure(error: SnapshotError) -> Failure {
    Failure::new(exit_of(&error), error)
}

fn exit_of(error: &SnapshotError) -> Exit {
    match error {
        SnapshotError::Exists { .. } => Exit::Refused,
        SnapshotError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Exit::Refused
        }
        _ => Exit::Failed,
    }
}
