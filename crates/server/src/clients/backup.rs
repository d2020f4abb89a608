//! Sends backups to clients, at the pace of snapshots to other nodes.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use d_engine_api::message::{
    BackupOffer, BackupPiece, BackupReply, BackupRequest, Busy, ErrorDetail, Invalid,
    SnapshotFailed, Stopped, backup_reply::Part, error_detail::Kind,
};
use d_engine_locks::Unpoisoned;
use d_engine_replica::StopReason;
use d_engine_storage::snapshot::{FullSpeed, Hold, SnapshotArchive, SnapshotStore};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;

use crate::BackupOptions;
use crate::clients::errors::snapshot_error_detail;
use crate::node::embedded::{EmbeddedEngine, OpenBackup};

type Pieces = mpsc::Receiver<Result<BackupReply, Status>>;

/// The pieces on their way to the client. The sender takes them back if the client does not read
/// them.
pub(super) struct BackupStream(Arc<Mutex<Option<Pieces>>>);

impl Drop for BackupStream {
    fn drop(&mut self) {
        // The sender notices at once.
        self.0.lock().unpoisoned().take();
    }
}

impl Stream for BackupStream {
    type Item = Result<BackupReply, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.lock().unpoisoned().as_mut() {
            Some(pieces) => pieces.poll_recv(cx),
            None => Poll::Ready(None),
        }
    }
}

/// Backups that are taken or sent at the same time.
const BACKUPS_MAX: usize = 2;
/// Bytes of a piece.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that may wait to be sent.
const PIECES_MAX: usize = 4;
/// A client that takes nothing for so long has gone.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// A client must take this much on average, so that it does not keep a snapshot for days.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// How long the snapshot of an interrupted backup is kept, as client.proto says.
const KEPT: Duration = Duration::from_secs(600);

/// The backups of a node.
pub(super) struct Backups {
    places: Arc<Semaphore>,
    /// The snapshot of the backup that was interrupted last: its SHA-256, and the task that keeps
    /// it.
    kept: Mutex<Option<([u8; 32], AbortHandle)>>,
    /// When the next piece may be sent, of any backup.
    next: Mutex<Instant>,
}

impl Default for Backups {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(BACKUPS_MAX)),
            kept: Mutex::default(),
            next: Mutex::new(Instant::now()),
        }
    }
}

impl Backups {
    /// Opens the requested snapshot and sends it in the background.
    pub(super) async fn begin(
        self: &Arc<Self>,
        engine: &EmbeddedEngine,
        request: BackupRequest,
    ) -> Result<BackupStream, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let what = format!("{BACKUPS_MAX} backups at a time");
            let text = format!("the node is busy ({what}); retry after a pause");
            ErrorDetail::new(Kind::Busy(Busy { what })).to_status(text)
        })?;
        let open = open(engine, &request).await?;
        let offset = request.from_offset;
        let offer = offer(engine, &open);
        let (to, pieces) = mpsc::channel(PIECES_MAX);
        let pieces = Arc::new(Mutex::new(Some(pieces)));
        let sending = Sending {
            backups: self.clone(),
            snapshots: engine.snapshots(),
            archive: open.archive,
            bytes_per_second: engine.snapshot_bytes_per_second(),
            to,
        };
        let (hold, sha256) = (open.hold, sending.archive.sha256());
        let stopped = engine.stop_signal();
        let (backups, queue) = (self.clone(), pieces.clone());
        tokio::spawn(async move {
            let _place = place;
            match sending.run(offer, offset, stopped.clone()).await {
                true => backups.forget(&sha256),
                false => backups.keep(hold, sha256, stopped),
            }
            if is_left_unread(&sending.to).await {
                // A client that does not read must not keep the memory.
                queue.lock().unpoisoned().take();
            }
        });
        Ok(BackupStream(pieces))
    }

    /// Keeps a snapshot for the client of a backup that was interrupted, and no other one.
    fn keep(&self, hold: Hold, sha256: [u8; 32], mut stopped: watch::Receiver<Option<StopReason>>) {
        let keeping = tokio::spawn(async move {
            // A closed channel also means that the node has stopped.
            tokio::time::timeout(KEPT, stopped.wait_for(Option::is_some)).await.ok();
            drop(hold);
        });
        let now = (sha256, keeping.abort_handle());
        if let Some((_, before)) = self.kept.lock().unpoisoned().replace(now) {
            before.abort();
        }
    }

    /// The client has all of the snapshot with this SHA-256.
    fn forget(&self, sha256: &[u8; 32]) {
        let mut kept = self.kept.lock().unpoisoned();
        if let Some((_, keeping)) = kept.take_if(|(of, _)| of == sha256) {
            keeping.abort();
        }
    }

    /// Waits until `bytes` more may be sent.
    async fn pace(&self, bytes: usize, bytes_per_second: u64) {
        if bytes_per_second == 0 {
            return;
        }
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(bytes_per_second));
        let lasts = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let now = Instant::now();
        let begins = {
            let mut next = self.next.lock().unpoisoned();
            let begins = (*next).max(now);
            *next = begins + lasts;
            begins
        };
        tokio::time::sleep_until(begins).await;
    }
}

async fn open(engine: &EmbeddedEngine, request: &BackupRequest) -> Result<OpenBackup, Status> {
    if request.sha256.is_empty() {
        let opened = engine.open_backup(BackupOptions::default().stale(request.stale)).await;
        return opened.map_err(|error| snapshot_error_detail(&error).to_status(error.to_string()));
    }
    let sha256 = <[u8; 32]>::try_from(&request.sha256[..]).map_err(|_| {
        let reason = format!("a SHA-256 has 32 bytes, not {}", request.sha256.len());
        ErrorDetail::new(Kind::Invalid(Invalid { reason: reason.clone() })).to_status(reason)
    })?;
    let opened = engine.reopen_backup(&sha256);
    let found =
        opened.map_err(|error| snapshot_error_detail(&error).to_status(error.to_string()))?;
    found.filter(|open| request.from_offset <= open.archive.len()).ok_or_else(|| {
        let reason = "this node does not have that snapshot, or not any more; begin a new backup";
        let failed = SnapshotFailed { reason: reason.to_owned() };
        ErrorDetail::new(Kind::SnapshotFailed(failed)).to_status(reason)
    })
}

fn offer(engine: &EmbeddedEngine, open: &OpenBackup) -> BackupOffer {
    let last_included = open.archive.last_included();
    BackupOffer {
        node: engine.node_id(),
        index: last_included.index.get(),
        term: last_included.term.get(),
        bytes: open.archive.len(),
        sha256: Bytes::copy_from_slice(&open.archive.sha256()),
        complete_up_to: open.complete_up_to,
    }
}

/// One backup on its way.
struct Sending {
    backups: Arc<Backups>,
    snapshots: SnapshotStore,
    archive: SnapshotArchive,
    bytes_per_second: u64,
    to: mpsc::Sender<Result<BackupReply, Status>>,
}

impl Sending {
    /// Sends everything from `offset` on. Returns whether the client has taken it all.
    async fn run(
        &self,
        offer: BackupOffer,
        offset: u64,
        mut stopped: watch::Receiver<Option<StopReason>>,
    ) -> bool {
        let ended = tokio::select! {
            () = self.to.closed() => return false,
            ended = self.send(offer, offset) => ended,
            _ = stopped.wait_for(Option::is_some) => {
                let reason = crate::SHUT_DOWN.to_owned();
                let detail = ErrorDetail::new(Kind::Stopped(Stopped { reason: reason.clone() }));
                Err(detail.to_status(reason))
            }
        };
        match ended {
            Ok(()) => !is_left_unread(&self.to).await,
            Err(status) => {
                // Nobody waits for it if there is no place.
                self.to.try_send(Err(status)).ok();
                false
            }
        }
    }

    async fn send(&self, offer: BackupOffer, mut offset: u64) -> Result<(), Status> {
        let (began, first) = (Instant::now(), offset);
        // Two backups share the pace.
        let slowest = match self.bytes_per_second {
            0 => BYTES_PER_SECOND_MIN,
            pace => BYTES_PER_SECOND_MIN.min(pace / 4).max(1),
        };
        self.put(Part::Offer(offer)).await?;
        while offset < self.archive.len() {
            let archive = self.archive.clone();
            let read = tokio::task::spawn_blocking(move || archive.read_at(offset, PIECE_BYTES));
            let piece = match read.await {
                Ok(Ok(piece)) => piece,
                Ok(Err(error)) => {
                    self.note_damage();
                    return Err(failed(&error.to_string()));
                }
                Err(error) => return Err(failed(&error.to_string())),
            };
            offset += piece.bytes.len() as u64;
            self.backups.pace(piece.bytes.len(), self.bytes_per_second).await;
            self.put(Part::Piece(BackupPiece {
                offset: piece.offset,
                data: piece.bytes,
                crc32c: piece.crc,
            }))
            .await?;
            let may_last = CLIENT_TIMEOUT + Duration::from_secs((offset - first) / slowest);
            if began.elapsed() > may_last {
                return Err(failed(&format!("the client takes less than {slowest} bytes/s")));
            }
        }
        Ok(())
    }

    /// Reads the whole snapshot, so that the node knows that it is damaged and takes another one.
    fn note_damage(&self) {
        let (snapshots, last_included) = (self.snapshots.clone(), self.archive.last_included());
        tokio::task::spawn_blocking(move || snapshots.verify(last_included, &mut FullSpeed));
    }

    async fn put(&self, part: Part) -> Result<(), Status> {
        let reply = BackupReply { part: Some(part) };
        match self.to.send_timeout(Ok(reply), CLIENT_TIMEOUT).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_)) => {
                let waited = CLIENT_TIMEOUT.as_secs();
                Err(failed(&format!("the client has taken nothing for {waited} s")))
            }
            Err(SendTimeoutError::Closed(_)) => Err(failed("the client has gone")),
        }
    }
}

fn failed(reason: &str) -> Status {
    let detail = SnapshotFailed { reason: reason.to_owned() };
    ErrorDetail::new(Kind::SnapshotFailed(detail)).to_status(reason)
}

/// Whether the client has not taken everything within the timeout.
async fn is_left_unread<T>(to: &mpsc::Sender<T>) -> bool {
    let taken = tokio::time::timeout(CLIENT_TIMEOUT, to.reserve_many(PIECES_MAX)).await;
    !matches!(taken, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    /// A client that does not read keeps neither the place of a backup nor its pieces.
    #[tokio::test(start_paused = true)]
    async fn pieces_that_are_not_read_are_taken_back() {
        let (to, pieces) = mpsc::channel(PIECES_MAX);
        let pieces = Arc::new(Mutex::new(Some(pieces)));
        let mut stream = BackupStream(pieces.clone());
        to.send(Err(failed("a piece"))).await.unwrap_or_default();
        let began = Instant::now();
        assert!(is_left_unread(&to).await);
        assert_eq!(began.elapsed(), CLIENT_TIMEOUT);
        assert!(stream.next().await.is_some());
        assert!(!is_left_unread(&to).await, "all of it was read");
        pieces.lock().unpoisoned().take();
        assert!(stream.next().await.is_none());
    }

    /// Its place is free at once, so that it can continue.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_is_noticed_at_once() {
        let (to, pieces) = mpsc::channel(PIECES_MAX);
        let pieces = Arc::new(Mutex::new(Some(pieces)));
        let stream = BackupStream(pieces.clone());
        to.send(Err(failed("a piece"))).await.unwrap_or_default();
        let began = Instant::now();
        drop(stream);
        assert!(to.is_closed() && is_left_unread(&to).await);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
