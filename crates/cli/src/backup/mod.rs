//! `d-engine backup`: copies a snapshot with everything that was acknowledged out of the cluster,
//! and verifies such a copy.

mod file;
mod report;
mod source;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine_client::{
    BackupOf, BackupOffer, BackupTransfer, Client, ClientError, ClientOptions, NodeRole, NodeStatus,
};
use d_engine_offline::backup::{BackupFile, Offer, SnapshotError, SnapshotHeader};
use d_engine_offline::inspect::LogId;
use d_engine_offline::{Fs, RealFs};
use tokio::time::{Instant, sleep};

use self::file::FileWriter;
use self::report::Report;
use self::source::Sources;
use crate::args::{BackupArgs, BackupVerb};
use crate::blocking::Stop;
use crate::exit::{Exit, Failure, note};
use crate::progress::bytes;
use crate::signals::StopSignals;

/// How long to try to continue a transfer that was interrupted.
const RESUME_FOR: Duration = Duration::from_secs(60);
/// How long a node may take to say who it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

pub(crate) async fn backup(mut args: BackupArgs) -> Result<(), Failure> {
    if let Some(BackupVerb::Verify(args)) = args.verb.take() {
        return verify::verify(args).await;
    }
    let mut signals = StopSignals::listen()?;
    let stop = Stop::default();
    let file = args.file.clone().unwrap_or_default();
    tokio::select! {
        result = make(args, &stop) => result,
        signal = signals.next() => {
            stop.set();
            let begun = BackupFile::unfinished(&RealFs::new(), &file);
            let kept = match begun {
                Ok(Some(_)) => {
                    "; what was received is kept beside the file: --resume continues, and a new \
                     run begins anew"
                }
                _ => "; nothing was received",
            };
            Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}{kept}")))
        }
    }
}

async fn make(args: BackupArgs, stop: &Stop) -> Result<(), Failure> {
    let file = args.file.clone().unwrap_or_default();
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    BackupFile::check_target(&*fs, &file).map_err(failure)?;
    let sources = Sources::find(&args).await?;
    let begun = match args.resume {
        true => Begun::again(&sources, &fs, &file, stop).await?,
        false => {
            let what = if args.stale { BackupOf::Applied } else { BackupOf::Acknowledged };
            Begun::anew(&sources, &fs, &file, (what, args.wait), stop).await?
        }
    };
    let Received { sender, offer, header } = begun.receive_all(&sources).await?;
    Report::of(&sender, &offer, &header).print(&file, &args)
}

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
    let sender = source::Sender { node: status.node, address: address.to_owned(), leads };
    let sources = Sources::only(client, sender);
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let earlier = match BackupFile::unfinished(&*fs, file).map_err(failure)? {
        Some(_) => Begun::again(&sources, &fs, file, stop).await.ok(),
        None => None,
    };
    let begun = match earlier {
        Some(begun) => begun,
        None => Begun::anew(&sources, &fs, file, (BackupOf::Applied, wait), stop).await?,
    };
    Ok(begun.receive_all(&sources).await?.sender.node)
}

/// A backup that is complete, verified and durable.
struct Received {
    sender: source::Sender,
    offer: BackupOffer,
    header: Arc<SnapshotHeader>,
}

/// A transfer that has begun.
struct Begun {
    transfer: BackupTransfer,
    writer: FileWriter,
    /// Bytes that the writer has.
    at: u64,
    sender: source::Sender,
}

impl Begun {
    /// Makes a node take a snapshot.
    async fn anew(
        sources: &Sources,
        fs: &Arc<dyn Fs>,
        file: &Path,
        (what, wait): (BackupOf, Duration),
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let (sender, transfer) = sources.take(what, wait).await?;
        let offer = offer_of(&transfer);
        let (writer, at) = FileWriter::open(fs, file, offer, stop).await.map_err(failure)?;
        Ok(Self { transfer, writer, at, sender })
    }

    /// Continues what an earlier run has begun.
    async fn again(
        sources: &Sources,
        fs: &Arc<dyn Fs>,
        file: &Path,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let unfinished = BackupFile::unfinished(&**fs, file).map_err(failure)?;
        let offer = unfinished.ok_or_else(|| {
            let name = file.display();
            Failure::refused(format!("nothing was begun for {name}; run it without --resume"))
        })?;
        let (writer, at) = FileWriter::open(fs, file, offer, stop).await.map_err(failure)?;
        let rest = BackupOf::Rest { sha256: offer.sha256, from_offset: at };
        let (sender, transfer) = sources.take(rest, RESUME_FOR).await?;
        Ok(Self { transfer, writer, at, sender })
    }

    /// Receives everything, over as many connections as that needs.
    async fn receive_all(mut self, sources: &Sources) -> Result<Received, Failure> {
        let offer = self.transfer.offer().clone();
        let bar = bytes(&format!("from node {}", offer.node), offer.bytes);
        loop {
            bar.set_position(self.at);
            let broken = match self.transfer.next().await {
                Ok(Some(piece)) => {
                    self.at = self.at.max(piece.offset + piece.data.len() as u64);
                    match self.writer.put(piece).await {
                        true => continue,
                        // The writer has failed.
                        false => break,
                    }
                }
                Ok(None) => break,
                Err(error) => error,
            };
            bar.suspend(|| note(format_args!("{broken}; continuing")));
            self.transfer = self.reopen(sources, &offer.sha256, broken).await?;
        }
        bar.finish_and_clear();
        let written = self.writer.finish().await;
        let header = written.map_err(failure)?;
        Ok(Received { sender: self.sender, offer, header })
    }

    async fn reopen(
        &self,
        sources: &Sources,
        sha256: &[u8; 32],
        mut broken: ClientError,
    ) -> Result<BackupTransfer, Failure> {
        let (began, mut pause) = (Instant::now(), PAUSE_MIN);
        let rest = BackupOf::Rest { sha256: *sha256, from_offset: self.at };
        while began.elapsed() < RESUME_FOR {
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
        Err(Failure::failed(format!(
            "the transfer was interrupted after {} bytes and could not be continued for {} s: \
             {broken}; {}",
            self.at,
            RESUME_FOR.as_secs(),
            sources.continues
        )))
    }
}

fn offer_of(transfer: &BackupTransfer) -> Offer {
    let offer = transfer.offer();
    let last_included = LogId::of(offer.term, offer.index);
    Offer { last_included, len: offer.bytes, sha256: offer.sha256 }
}

fn failure(error: SnapshotError) -> Failure {
    let exit = match &error {
        SnapshotError::Exists { .. } => Exit::Refused,
        SnapshotError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Exit::Refused
        }
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
