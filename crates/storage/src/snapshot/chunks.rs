//! The content of an archive: chunks, each with its own checksum, and the trailer behind them.

use std::path::Path;

use super::error::{damaged, io_error};
use super::{SnapshotError, SnapshotHeader};
use crate::frame::Decoder;
use crate::fs::{FsFile, read_up_to};

/// Length and checksum before every chunk.
pub(super) const CHUNK_FRAME_LEN: usize = 8;
/// Magic, total length, SHA-256, checksum.
pub(super) const TRAILER_LEN: usize = 52;

const TRAILER_MAGIC: [u8; 8] = *b"D-ENGEND";

/// What a mismatch of a checksum does. A planted bug (`crates/sim/src/bin/mutants.rs`) turns it off.
pub(super) fn matches<T: PartialEq>(expected: &T, found: &T) -> bool {
    expected == found || cfg!(mutant = "snapshot-checksum-ignored")
}

/// The checksum of a chunk. It is continued from the header's checksum and covers the chunk's number:
/// a chunk in another place, or of another archive, does not verify.
pub(super) fn chunk_checksum(header_checksum: u32, number: u64, content: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(header_checksum, &number.to_le_bytes());
    let length = crc32c::crc32c_append(place, &(content.len() as u32).to_le_bytes());
    crc32c::crc32c_append(length, content)
}

/// The checksum at the end of a header.
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
    /// Where the next chunk begins.
    pub(super) offset: u64,
    /// The last chunk read, with its frame.
    buffer: Vec<u8>,
}

impl<'a> Chunks<'a> {
    /// The chunks behind `header`, whose encoded form is `encoded`.
    pub(super) fn new(file: &'a dyn FsFile, path: &'a Path, header: &SnapshotHeader, encoded: &[u8]) -> Self {
        Self {
            file,
            path,
            header_checksum: checksum_of_header(encoded),
            chunk_bytes: header.chunk_bytes.max(1).into(),
            left: header.content_bytes(),
            number: 0,
            offset: encoded.len() as u64,
            buffer: Vec::new(),
        }
    }

    /// The next chunk with its frame, or `None` behind the last one.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, SnapshotError> {
        if self.left == 0 {
            return Ok(None);
        }
        let expected = self.chunk_bytes.min(self.left);
        self.buffer.resize(CHUNK_FRAME_LEN + expected as usize, 0);
        let read =
            read_up_to(self.file, self.offset, &mut self.buffer).map_err(io_error("read", self.path))?;
        let at = self.offset;
        let number = self.number;
        if read < self.buffer.len() {
            let what = format!("chunk {number} is cut off: {read} of {} bytes are there", self.buffer.len());
            return Err(damaged(self.path, at, what));
        }
        let mut frame = Decoder(&self.buffer);
        let (length, checksum) = (frame.u32().unwrap_or_default(), frame.u32().unwrap_or_default());
        if u64::from(length) != expected {
            let what = format!("chunk {number} has length {length}, not {expected}");
            return Err(damaged(self.path, at, what));
        }
        let found = chunk_checksum(self.header_checksum, number, frame.0);
        if !matches(&checksum, &found) {
            let what = format!("chunk {number} has checksum {found:08x}, not {checksum:08x}");
            return Err(damaged(self.path, at, what));
        }
        self.left -= expected;
        self.number += 1;
        self.offset += self.buffer.len() as u64;
        Ok(Some(&self.buffer))
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
        let cut_off =
            || damaged(path, at, "no trailer lies there; the archive is cut off or was not finished");
        let mut rest = Decoder(bytes.get(..read).unwrap_or_default());
        let checksum = crc32c::crc32c(bytes.get(..TRAILER_LEN - 4).unwrap_or_default());
        if rest.array() != Some(TRAILER_MAGIC) {
            return Err(cut_off());
        }
        let trailer =
            Self { total: rest.u64().ok_or_else(cut_off)?, sha256: rest.array().ok_or_else(cut_off)? };
        let expected = rest.u32().ok_or_else(cut_off)?;
        if !matches(&expected, &checksum) {
            let what = format!("the trailer has checksum {checksum:08x}, not {expected:08x}");
            return Err(damaged(path, at, what));
        }
        if trailer.total != total {
            let what = format!("the archive has {total} bytes, and its trailer says {}", trailer.total);
            return Err(damaged(path, at, what));
        }
        Ok(trailer)
    }
}
