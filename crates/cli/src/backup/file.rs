//! Writes the pieces of a backup on a thread of its own.

use std::path::Path;
use std::sync::Arc;

use d_engine_client::BackupPiece;
use d_engine_offline::Fs;
use d_engine_offline::backup::{BackupFile, Offer, SnapshotError, SnapshotHeader};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::blocking::Stop;

/// Pieces that may wait to be written.
const PIECES_MAX: usize = 8;

/// The file of a backup, and the thread that writes it.
pub(super) struct FileWriter {
    /// `None` is the end. If the channel closes without it, what was received is kept.
    pieces: mpsc::Sender<Option<BackupPiece>>,
    thread: JoinHandle<Result<Arc<SnapshotHeader>, SnapshotError>>,
}

impl FileWriter {
    /// Begins or continues the file. Returns also how many bytes it has.
    pub(super) async fn open(
        fs: &Arc<dyn Fs>,
        target: &Path,
        offer: Offer,
        stop: &Stop,
    ) -> Result<(Self, u64), SnapshotError> {
        let (fs, target, stopped) = (fs.clone(), target.to_owned(), stop.clone());
        let begin = move || BackupFile::begin(&fs, &target, offer, &mut |_| stopped.flow());
        // The join fails only when the runtime shuts down.
        let file = spawn_blocking(begin).await.unwrap_or(Err(SnapshotError::Aborted))?;
        let received = file.received();
        let (pieces, queue) = mpsc::channel(PIECES_MAX);
        let stop = stop.clone();
        let thread = spawn_blocking(move || write(file, queue, &stop));
        Ok((Self { pieces, thread }, received))
    }

    /// Returns `false` if the file cannot be written; [`FileWriter::finish`] has the reason.
    pub(super) async fn put(&self, piece: BackupPiece) -> bool {
        self.pieces.send(Some(piece)).await.is_ok()
    }

    /// Keeps what was received, and waits until the file is closed.
    pub(super) async fn give_up(self) {
        drop(self.pieces);
        self.thread.await.ok();
    }

    /// Waits until everything is written, verified and durable.
    pub(super) async fn finish(self) -> Result<Arc<SnapshotHeader>, SnapshotError> {
        // A writer that has failed takes nothing any more.
        self.pieces.send(None).await.ok();
        self.thread.await.unwrap_or(Err(SnapshotError::Aborted))
    }
}

fn write(
    mut file: BackupFile,
    mut pieces: mpsc::Receiver<Option<BackupPiece>>,
    stop: &Stop,
) -> Result<Arc<SnapshotHeader>, SnapshotError> {
    while let Some(next) = pieces.blocking_recv() {
        match next {
            Some(piece) => file.write(piece.offset, &piece.data, piece.crc32c)?,
            None => return file.finish(&mut |_| stop.flow()),
        }
    }
    Err(SnapshotError::Aborted)
}
