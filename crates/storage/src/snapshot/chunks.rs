//! The content of an archive: chunks, each with its own checksum, and the trailer after them.

use std::path::Path;

use super::compress::decompress;
use super::error::{damaged, io_error};
use super::{Compression, SnapshotError, SnapshotHeader};
use crate::fs::{FsFile, read_up_to};
use crate::log::frame::Decoder;

/// Length of the frame before every chunk: the chunk's length and checksum.
pub(super) const CHUNK_FRAME_LEN: usize = 8;
/// Length of the trailer: magic, total length, SHA-256, checksum.
pub(super) const TRAILER_LEN: usize = 52;

const TRAILER_MAGIC: [u8; 8] = *b"D-ENGEND";

/// Returns the checksum of a chunk. It continues the header's checksum and covers the chunk's
/// number: a chunk in another place, or of another archive, does not verify.
pub(super) fn chunk_checksum(header_checksum: u32, number: u64, content: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(header_checksum, &number.to_le_bytes());
    let length = crc32c::crc32c_append(place, &(content.len() as u32).to_le_bytes());
    crc32c::crc32c_append(length, content)
}

/// Returns the checksum at the end of a header.
pub(super) fn checksum_of_header(header: &[u8]) -> u32 {
    header.last_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Reads the chunks of an archive in order, each verified.
pub(super) struct Chunks<'a> {
    file: &'a dyn FsFile,
    path: &'a Path,
    header_checksum: u32,
    chunk_bytes: u64,
    /// Bytes of content that have not been read.
    left: u64,
    number: u64,
    /// The offset of the next chunk.
    pub(super) offset: u64,
    compression: Compression,
    /// The last chunk read, with its frame.
    buffer: Vec<u8>,
    /// Its content, if it was compressed.
    content: Vec<u8>,
}

/// A chunk that verifies.
pub(super) struct Chunk<'a> {
    /// The chunk as it is stored, with its frame.
    pub(super) stored: &'a [u8],
    /// The bytes of the files.
    pub(super) content: &'a [u8],
}

impl<'a> Chunks<'a> {
    /// Returns a reader of the chunks after `header`, whose encoded form is `encoded`.
    pub(super) fn new(
        file: &'a dyn FsFile,
        path: &'a Path,
        header: &SnapshotHeader,
        encoded: &[u8],
    ) -> Self {
        Self {
            file,
            path,
            header_checksum: checksum_of_header(encoded),
            chunk_bytes: header.chunk_bytes.max(1).into(),
            left: header.content_bytes(),
            number: 0,
            offset: encoded.len() as u64,
            compression: header.compression,
            buffer: Vec::new(),
            content: Vec::new(),
        }
    }

    /// Returns the next chunk, or `None` after the last one.
    pub(super) fn next(&mut self) -> Result<Option<Chunk<'_>>, SnapshotError> {
        if self.left == 0 {
            return Ok(None);
        }
        let expected = self.chunk_bytes.min(self.left);
        let length = self.read_frame(expected)?;
        let is_compressed = u64::from(length) < expected;
        if is_compressed {
            let stored = self.buffer.get(CHUNK_FRAME_LEN..).unwrap_or_default();
            decompress(stored, expected as usize, &mut self.content).map_err(|error| {
                damaged(self.path, self.offset, format!("chunk {}: {error}", self.number))
            })?;
        }
        self.left -= expected;
        self.number += 1;
        self.offset += self.buffer.len() as u64;
        let content = if is_compressed {
            self.content.as_slice()
        } else {
            self.buffer.get(CHUNK_FRAME_LEN..).unwrap_or_default()
        };
        Ok(Some(Chunk { stored: &self.buffer, content }))
    }

    /// Moves past a chunk that does not verify. Returns whether the place of the next one is known:
    /// a chunk that is compressed says itself how long it is, if its frame was read.
    pub(super) fn skip(&mut self, is_read: bool) -> bool {
        let expected = self.chunk_bytes.min(self.left);
        let announced = Decoder(&self.buffer).u32().map(u64::from).filter(|_| is_read);
        let stored = match self.compression {
            Compression::None => Some(expected),
            Compression::Zstd => announced.filter(|stored| (1..=expected).contains(stored)),
        };
        let Some(stored) = stored else { return false };
        self.left -= expected;
        self.number += 1;
        self.offset += CHUNK_FRAME_LEN as u64 + stored;
        true
    }

    /// Returns the number of the next chunk.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Reads a chunk of at most `most` bytes into the buffer and compares its checksum. Returns its
    /// stored length.
    fn read_frame(&mut self, most: u64) -> Result<u32, SnapshotError> {
        let (at, number) = (self.offset, self.number);
        let cut_off = |there: usize, of: usize| {
            damaged(
                self.path,
                at,
                format!("chunk {number} is cut off: {there} of {of} bytes were found"),
            )
        };
        // Without compression the length is known, and one read is enough.
        let whole = CHUNK_FRAME_LEN + most as usize;
        self.buffer
            .resize(if self.compression == Compression::None { whole } else { CHUNK_FRAME_LEN }, 0);
        let mut read =
            read_up_to(self.file, at, &mut self.buffer).map_err(io_error("read", self.path))?;
        let mut frame = Decoder(self.buffer.get(..read).unwrap_or_default());
        let (Some(length), Some(checksum)) = (frame.u32(), frame.u32()) else {
            return Err(cut_off(read, whole));
        };
        let fits = match self.compression {
            Compression::None => u64::from(length) == most,
            Compression::Zstd => u64::from(length) <= most,
        };
        if !fits {
            let what = format!("chunk {number} has length {length}, not {most}");
            return Err(damaged(self.path, at, what));
        }
        let stored = CHUNK_FRAME_LEN + length as usize;
        if read < stored && self.buffer.len() < stored {
            self.buffer.resize(stored, 0);
            let rest = self.buffer.get_mut(CHUNK_FRAME_LEN..).unwrap_or_default();
            let behind = at + CHUNK_FRAME_LEN as u64;
            read = CHUNK_FRAME_LEN
                + read_up_to(self.file, behind, rest).map_err(io_error("read", self.path))?;
        }
        if read < stored {
            return Err(cut_off(read, stored));
        }
        let content = self.buffer.get(CHUNK_FRAME_LEN..).unwrap_or_default();
        let found = chunk_checksum(self.header_checksum, number, content);
        if checksum != found {
            let what = format!("chunk {number} has checksum {found:08x}, not {checksum:08x}");
            return Err(damaged(self.path, at, what));
        }
        Ok(length)
    }
}

/// The end of an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trailer {
    /// Length of the archive, the trailer included.
    pub(super) total: u64,
    /// SHA-256 over everything before the trailer.
    pub(super) sha256: [u8; 32],
}

impl Trailer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TRAILER_LEN);
        bytes.extend_from_slice(&TRAILER_MAGIC);
        bytes.extend_from_slice(&self.total.to_le_bytes());
        bytes.extend_from_slice(&self.sha256);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads the trailer of an archive of `total` bytes.
    pub(super) fn read(file: &dyn FsFile, path: &Path, total: u64) -> Result<Self, SnapshotError> {
        let at = total.saturating_sub(TRAILER_LEN as u64);
        let mut bytes = [0; TRAILER_LEN];
        let read = read_up_to(file, at, &mut bytes).map_err(io_error("read", path))?;
        let cut_off = || {
            damaged(path, at, "no trailer was found; the archive is cut off or was not finished")
        };
        let mut rest = Decoder(bytes.get(..read).unwrap_or_default());
        let checksum = crc32c::crc32c(bytes.get(..TRAILER_LEN - 4).unwrap_or_default());
        if rest.array() != Some(TRAILER_MAGIC) {
            return Err(cut_off());
        }
        let trailer = Self {
            total: rest.u64().ok_or_else(cut_off)?,
            sha256: rest.array().ok_or_else(cut_off)?,
        };
        let expected = rest.u32().ok_or_else(cut_off)?;
        if expected != checksum {
            let what = format!("the trailer has checksum {checksum:08x}, not {expected:08x}");
            return Err(damaged(path, at, what));
        }
        if trailer.total != total {
            let what =
                format!("the archive has {total} bytes, but its trailer says {}", trailer.total);
            return Err(damaged(path, at, what));
        }
        Ok(trailer)
    }
}
