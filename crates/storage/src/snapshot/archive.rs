//! A finished archive, open for reading.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::LogId;
use sha2::{Digest, Sha256};

use super::chunks::{CHUNK_FRAME_LEN, Chunk, Chunks, TRAILER_LEN, Trailer};
use super::error::{damaged, hex, io_error};
use super::header::PRELUDE_LEN;
use super::pace::keep_pace;
use super::{Compression, Pace, SnapshotError, SnapshotHeader};
use crate::fs::{Fs, FsFile, OpenMode, read_up_to};

/// An archive whose header and trailer verify. It keeps the file open, so that pruning the snapshot
/// meanwhile does not affect the reader.
#[derive(Clone, Debug)]
pub struct SnapshotArchive {
    pub(super) file: Arc<dyn FsFile>,
    pub(super) path: PathBuf,
    header: Arc<SnapshotHeader>,
    header_bytes: Bytes,
    trailer: Trailer,
}

/// Bytes of an archive that are sent to another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Their offset in the archive.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// CRC32C of `bytes`.
    pub crc: u32,
}

impl SnapshotArchive {
    /// Opens the archive at `path`, of any cluster, and verifies its header and trailer. For a
    /// file outside a node's directory, such as a backup; a node's own ones are opened by
    /// [`super::SnapshotStore::open_archive`].
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::UnsupportedFormat`], or an I/O error.
    pub fn open_file(fs: &dyn Fs, path: &Path) -> Result<Self, SnapshotError> {
        Self::open(fs, path)
    }

    pub(super) fn open(fs: &dyn Fs, path: &Path) -> Result<Self, SnapshotError> {
        let file = fs.open(path, OpenMode::ReadOnly).map_err(io_error("open", path))?;
        Self::of(file, path)
    }

    /// Reads header and trailer of an open file.
    pub(super) fn of(file: Arc<dyn FsFile>, path: &Path) -> Result<Self, SnapshotError> {
        let len = file.len().map_err(io_error("read the length of", path))?;
        let (header, header_bytes) = read_header(&*file, path, len)?;
        let trailer = Trailer::read(&*file, path, len)?;
        let frames = header.chunks().saturating_mul(CHUNK_FRAME_LEN as u64);
        let around = (header_bytes.len() + TRAILER_LEN) as u64 + frames;
        let expected = around.saturating_add(header.content_bytes());
        let fits = match header.compression {
            Compression::None => len == expected,
            Compression::Zstd => (around..=expected).contains(&len),
        };
        if !fits {
            let what = format!("the archive has {len} bytes, but its header announces {expected}");
            return Err(damaged(path, 0, what));
        }
        Ok(Self { file, path: path.to_owned(), header: Arc::new(header), header_bytes, trailer })
    }

    /// Returns the header.
    #[must_use]
    pub fn header(&self) -> &Arc<SnapshotHeader> {
        &self.header
    }

    /// Returns the header as it is stored, for the receiver's
    /// [`super::SnapshotStore::check_header`] before anything else is sent.
    #[must_use]
    pub fn header_bytes(&self) -> &Bytes {
        &self.header_bytes
    }

    /// Returns the log id of the last included entry.
    #[must_use]
    pub fn last_included(&self) -> LogId {
        self.header.facts.last_included
    }

    /// Returns the length of the archive in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no archive is empty")]
    pub fn len(&self) -> u64 {
        self.trailer.total
    }

    /// Returns the SHA-256 over everything before the trailer. Two nodes compare it to find out
    /// whether they have the same archive.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.trailer.sha256
    }

    /// Reads up to `max` bytes from any `offset`; none at the end. They are not compared with the
    /// archive's own checksums: call [`Self::verify`] once before the first piece is sent.
    ///
    /// # Errors
    /// An I/O error, or [`SnapshotError::Damaged`] if the file has become shorter.
    pub fn read_at(&self, offset: u64, max: usize) -> Result<Piece, SnapshotError> {
        let left = self.len().saturating_sub(offset);
        let mut bytes = vec![0; max.min(usize::try_from(left).unwrap_or(usize::MAX))];
        let read =
            read_up_to(&*self.file, offset, &mut bytes).map_err(io_error("read", &self.path))?;
        if read < bytes.len() {
            let what = format!("{} bytes were expected, and {read} were found", bytes.len());
            return Err(damaged(&self.path, offset, what));
        }
        let crc = crc32c::crc32c(&bytes);
        Ok(Piece { offset, bytes: Bytes::from(bytes), crc })
    }

    /// Reads the whole archive and compares every checksum.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] with the place, [`SnapshotError::Aborted`], or an I/O error.
    pub fn verify(&self, pace: &mut dyn Pace) -> Result<(), SnapshotError> {
        self.check(pace, &mut |_| Ok(()))
    }

    /// As [`Self::verify`], and passes the verified chunks to `sink`. They may be relied upon as a
    /// whole only once this has returned.
    pub(super) fn check(
        &self,
        pace: &mut dyn Pace,
        sink: &mut dyn FnMut(&Chunk<'_>) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut hash = Sha256::new();
        hash.update(&self.header_bytes);
        let mut chunks = Chunks::new(&*self.file, &self.path, &self.header, &self.header_bytes);
        while let Some(chunk) = chunks.next()? {
            hash.update(chunk.stored);
            sink(&chunk)?;
            keep_pace(pace, chunk.stored.len() as u64)?;
        }
        let found: [u8; 32] = hash.finalize().into();
        if self.trailer.sha256 != found {
            let what = format!("its SHA-256 is {}, not {}", hex(&found), hex(&self.trailer.sha256));
            return Err(damaged(&self.path, chunks.offset, what));
        }
        Ok(())
    }
}

/// Reads the header of a file of `len` bytes.
pub(super) fn read_header(
    file: &dyn FsFile,
    path: &Path,
    len: u64,
) -> Result<(SnapshotHeader, Bytes), SnapshotError> {
    let mut prelude = [0; PRELUDE_LEN];
    let read = read_up_to(file, 0, &mut prelude).map_err(io_error("read", path))?;
    let announced = SnapshotHeader::len_of(path, prelude.get(..read).unwrap_or_default())?;
    if announced as u64 > len {
        let what = format!("the header is cut off: {len} of {announced} bytes were found");
        return Err(damaged(path, len, what));
    }
    let mut bytes = vec![0; announced];
    let read = read_up_to(file, 0, &mut bytes).map_err(io_error("read", path))?;
    bytes.truncate(read);
    let bytes = Bytes::from(bytes);
    Ok((SnapshotHeader::decode(path, &bytes)?, bytes))
}
