//! Reads one archive by itself, also a damaged one: header, chunks and trailer, each judged alone.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::archive::read_header;
use super::chunks::{Chunk, Chunks, TRAILER_LEN, Trailer};
use super::error::{hex, io_error};
use super::{SnapshotError, SnapshotHeader};
use crate::fs::{Fs, FsFile, OpenMode};

/// The most damaged chunks that are listed; further ones are counted.
const LISTED_MAX: usize = 1_000;
const EIO: i32 = 5;

/// An archive that is being read, whatever is damaged in it. Whose it is is not checked.
#[derive(Debug)]
pub struct SnapshotSurvey {
    file: Arc<dyn FsFile>,
    path: PathBuf,
    len: u64,
    header: Result<(Arc<SnapshotHeader>, Bytes), SnapshotError>,
    trailer: Result<Trailer, SnapshotError>,
}

/// The content of an archive, as [`SnapshotSurvey::read`] found it.
#[derive(Clone, Debug, Default)]
pub struct SnapshotContent {
    /// Chunks that verify.
    pub whole: u64,
    /// Chunks that do not verify.
    pub damaged: u64,
    /// Chunks that were not read, because the place of one before them is unknown.
    pub unread: u64,
    /// What is damaged, in the order of the file; at most 1,000 places.
    pub damage: Vec<ChunkDamage>,
    /// The SHA-256 of everything before the trailer; `None` if a chunk is damaged.
    pub sha256: Option<[u8; 32]>,
}

/// A damaged place in an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkDamage {
    /// The number of the chunk, from 0; `None` for the header and the trailer.
    pub chunk: Option<u64>,
    /// Offset in the file.
    pub offset: u64,
    /// What does not verify.
    pub what: String,
}

impl SnapshotSurvey {
    /// Opens the file at `path` and reads header and trailer.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if the file does not exist or must not be read. Damage is part of the
    /// result.
    pub fn of(fs: &dyn Fs, path: &Path) -> Result<Self, SnapshotError> {
        let file = fs.open(path, OpenMode::ReadOnly).map_err(io_error("open", path))?;
        let len = file.len().map_err(io_error("read the length of", path))?;
        let header = read_header(&*file, path, len).map(|(header, it)| (Arc::new(header), it));
        let header = tolerated(header)?;
        let trailer = tolerated(Trailer::read(&*file, path, len))?;
        Ok(Self { file, path: path.to_owned(), len, header, trailer })
    }

    /// Returns the length of the file in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty file is a damaged archive")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns the header.
    ///
    /// # Errors
    /// Why it cannot be read: [`SnapshotError::Damaged`], or a version that this program does not
    /// read.
    pub fn header(&self) -> Result<&Arc<SnapshotHeader>, &SnapshotError> {
        self.header.as_ref().map(|(header, _)| header)
    }

    /// Returns the SHA-256 that the trailer announces.
    ///
    /// # Errors
    /// Why there is no trailer.
    pub fn announced_sha256(&self) -> Result<[u8; 32], &SnapshotError> {
        self.trailer.as_ref().map(|trailer| trailer.sha256)
    }

    /// Returns the number of chunks that the header announces; 0 without a header.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.header().map_or(0, |header| header.chunks())
    }

    /// Reads every chunk. `progress` receives the number of bytes of each, and ends the work by
    /// `Break`.
    ///
    /// # Errors
    /// [`SnapshotError::Aborted`] if `progress` has ended it, [`SnapshotError::Io`]. Damage is part
    /// of the result.
    pub fn read(
        &self,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<SnapshotContent, SnapshotError> {
        let mut content = SnapshotContent::default();
        let (header, encoded) = match &self.header {
            Ok(header) => header,
            Err(error) => {
                content.note(None, error);
                return Ok(content);
            }
        };
        let mut hash = Sha256::new();
        hash.update(encoded);
        let mut chunks = Chunks::new(&*self.file, &self.path, header, encoded);
        loop {
            let number = chunks.number();
            let error = match chunks.next() {
                Ok(None) => break,
                Ok(Some(Chunk { stored, .. })) => {
                    hash.update(stored);
                    content.whole += 1;
                    if progress(stored.len() as u64).is_break() {
                        return Err(SnapshotError::Aborted);
                    }
                    continue;
                }
                Err(error) => tolerated(Err::<(), _>(error))?.err(),
            };
            let Some(error) = error else { break };
            content.damaged += 1;
            content.note(Some(number), &error);
            if !chunks.skip(matches!(error, SnapshotError::Damaged { .. })) {
                content.unread = header.chunks() - number - 1;
                break;
            }
            if progress(0).is_break() {
                return Err(SnapshotError::Aborted);
            }
        }
        self.end(&mut content, chunks.offset, hash);
        Ok(content)
    }

    /// Judges the trailer, and what the chunks are together.
    fn end(&self, content: &mut SnapshotContent, end: u64, hash: Sha256) {
        let is_whole = content.damaged == 0;
        if is_whole {
            content.sha256 = Some(hash.finalize().into());
        }
        let trailer_at = self.len.saturating_sub(TRAILER_LEN as u64);
        match (&self.trailer, content.sha256) {
            (Err(error), _) => content.note(None, error),
            (Ok(_), Some(_)) if end != trailer_at => {
                let what = format!("the chunks end here, but the trailer begins at {trailer_at}");
                content.damage.push(ChunkDamage { chunk: None, offset: end, what });
            }
            (Ok(trailer), Some(found)) if trailer.sha256 != found => {
                let what = format!("the SHA-256 is {}, not {}", hex(&found), hex(&trailer.sha256));
                content.damage.push(ChunkDamage { chunk: None, offset: trailer_at, what });
            }
            _ => {}
        }
    }
}

impl SnapshotContent {
    /// Whether every checksum matches.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.damaged == 0
    }

    fn note(&mut self, chunk: Option<u64>, error: &SnapshotError) {
        if self.damage.len() >= LISTED_MAX {
            return;
        }
        let (offset, what) = match error {
            SnapshotError::Damaged { offset, what, .. } => (*offset, what.clone()),
            error => (0, error.to_string()),
        };
        self.damage.push(ChunkDamage { chunk, offset, what });
    }
}

/// Separates what is wrong with the file from what keeps it from being read. A sector that the
/// medium has lost is damage.
fn tolerated<T>(read: Result<T, SnapshotError>) -> Result<Result<T, SnapshotError>, SnapshotError> {
    match read {
        Err(SnapshotError::Io { operation, path, source })
            if source.raw_os_error() != Some(EIO) =>
        {
            Err(SnapshotError::Io { operation, path, source })
        }
        read => Ok(read),
    }
}
