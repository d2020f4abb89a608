//! Segment files: names, headers, creation and reuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::NodeId;

use crate::fs::{Fs, FsFile, OpenMode, write_all_at};
use crate::log::frame::{Decoder, FORMAT_VERSION, Fault, Position};
use crate::log::latch::{io_error, room_error};
use crate::log::segment_files::{SegmentFile, SegmentFiles};
use crate::log::segment_name::file_name;
use crate::{ClusterId, Incarnation, StorageError};

/// Length of the header; the rest of the first block is zero.
pub(crate) const SEGMENT_HEADER_LEN: usize = 80;
/// The smallest alignment that readers accept. They search for groups at these boundaries if a
/// header is lost.
pub(crate) const SMALLEST_ALIGNMENT: usize = 512;

const SEGMENT_MAGIC: [u8; 8] = *b"D-ENGSEG";

/// The zeros that segments are filled with. Static, because a fresh buffer costs more in page
/// faults than the writes cost in calls.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The boundary at which write groups begin.
///
/// A group never shares a block with an earlier one, so a torn write cannot damage acknowledged
/// bytes. Sectors waste less space; pages never have to be read before they are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Alignment {
    /// 512 bytes.
    Sector,
    /// 4096 bytes, the page size of the operating system and of most devices. The default.
    #[default]
    Page,
}

impl Alignment {
    /// Returns the boundary in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sector => SMALLEST_ALIGNMENT,
            Self::Page => 4096,
        }
    }

    fn from_bytes(bytes: u32) -> Option<Self> {
        [Self::Sector, Self::Page].into_iter().find(|alignment| alignment.bytes() == bytes as usize)
    }
}

/// The owner of a segment and its layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) alignment: Alignment,
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
    pub(crate) node: NodeId,
    /// Whether the file held another segment before. If so, bytes of that one may lie after the
    /// last group.
    pub(crate) recycled: bool,
}

/// Flag in the header: [`SegmentHeader::recycled`].
const RECYCLED: u32 = 1;

impl SegmentHeader {
    /// Returns the first block of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.alignment.bytes());
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&u32::from(FORMAT_VERSION).to_le_bytes());
        bytes.extend_from_slice(&(self.alignment.bytes() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.cluster.0);
        bytes.extend_from_slice(&self.incarnation.0);
        bytes.extend_from_slice(&self.node.get().to_le_bytes());
        let flags = if self.recycled { RECYCLED } else { 0 };
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.resize(self.alignment.bytes(), 0);
        bytes
    }

    /// Reads the header from the start of a file; the rest of its block must be zero.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, Fault> {
        const SHORT: Fault = Fault::Invalid("the segment header is cut off");
        let fields = content.get(..SEGMENT_HEADER_LEN - 4).ok_or(SHORT)?;
        let mut rest = Decoder(content);
        if rest.array() != Some(SEGMENT_MAGIC) {
            return Err(Fault::Invalid("no segment header"));
        }
        let checksum = Decoder(content.get(SEGMENT_HEADER_LEN - 4..).unwrap_or_default()).u32();
        if checksum != Some(crc32c::crc32c(fields)) {
            return Err(Fault::Invalid("the segment header's checksum does not match"));
        }
        let version = rest.u32().ok_or(SHORT)?;
        if version != u32::from(FORMAT_VERSION) {
            return Err(Fault::Version(version));
        }
        let alignment = rest
            .u32()
            .and_then(Alignment::from_bytes)
            .ok_or(Fault::Invalid("unknown alignment"))?;
        let mut header = Self {
            alignment,
            number: rest.u64().ok_or(SHORT)?,
            epoch: rest.u64().ok_or(SHORT)?,
            cluster: ClusterId(rest.array().ok_or(SHORT)?),
            incarnation: Incarnation(rest.array().ok_or(SHORT)?),
            node: rest
                .u64()
                .and_then(NodeId::new)
                .ok_or(Fault::Invalid("the segment has no node"))?,
            recycled: false,
        };
        header.recycled = match rest.u32().ok_or(SHORT)? {
            0 => false,
            RECYCLED => true,
            _ => return Err(Fault::Invalid("unknown flags in the segment header")),
        };
        let block = content.get(SEGMENT_HEADER_LEN..alignment.bytes()).ok_or(SHORT)?;
        if !is_zero(block) {
            return Err(Fault::Invalid("bytes beside the segment header are not zero"));
        }
        Ok(header)
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A segment that can be written.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn FsFile>,
    /// The offset of the next group.
    pub(crate) end: u64,
    /// Up to this offset every block of the file has been written once, with zeros or for an
    /// earlier segment. Overwriting it changes no metadata and syncs faster than growing the file.
    pub(crate) written_to: u64,
    /// The part of `written_to` that is known to be durable.
    pub(crate) synced_to: u64,
    pub(crate) alignment: Alignment,
    pub(crate) epoch: u64,
}

/// A purged segment's file, still under its old name.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) len: u64,
}

impl OpenSegment {
    /// Creates a segment with its header and `reserve` bytes of zeros after it, durable together
    /// with its name. Leaves no file behind if there is no space for it.
    pub(crate) fn create(
        fs: &dyn Fs,
        dir: &Path,
        header: SegmentHeader,
        reserve: u64,
    ) -> Result<Self, StorageError> {
        let path = dir.join(file_name(header.number));
        let file = fs.open(&path, OpenMode::CreateNew).map_err(room_error("create", &path))?;
        let mut segment = Self::new(path, file, header, 0);
        let begun =
            segment.write_header(&header).and_then(|()| segment.zero_fill(segment.end + reserve));
        if let Err(error) = begun {
            // The next use of this number must find no file there.
            fs.remove_file(&segment.path).map_err(io_error("remove", &segment.path))?;
            return Err(error);
        }
        segment.file.sync_all().map_err(io_error("sync", &segment.path))?;
        segment.synced_to = segment.written_to;
        fs.sync_dir(dir).map_err(io_error("sync", dir))?;
        Ok(segment)
    }

    /// Begins a segment in the file of a purged one (`docs/file-format.md`, "Recycling").
    ///
    /// The name must be durable before the header. Otherwise a crash may leave the new segment
    /// under the name of the old one, where recovery does not search for it. Between the two steps
    /// the number in the header differs from that in the name; recovery takes such a file for a
    /// segment that was not begun.
    pub(crate) fn recycle(
        fs: &dyn Fs,
        dir: &Path,
        files: &SegmentFiles,
        spare: Spare,
        header: SegmentHeader,
    ) -> Result<Self, StorageError> {
        let (from, path) = (files.path(spare.file.number), dir.join(file_name(header.number)));
        let file = files.handle(&spare.file).map_err(room_error("open", &from))?;
        files.forget(&spare.file);
        fs.rename(&from, &path).map_err(room_error("rename", &from))?;
        fs.sync_dir(dir).map_err(io_error("sync", dir))?;
        let mut segment = Self::new(path, file, header, spare.len);
        if let Err(error) = segment.write_header(&SegmentHeader { recycled: true, ..header }) {
            fs.remove_file(&segment.path).map_err(io_error("remove", &segment.path))?;
            return Err(error);
        }
        segment.file.sync_all().map_err(io_error("sync", &segment.path))?;
        segment.synced_to = segment.written_to;
        Ok(segment)
    }

    fn write_header(&self, header: &SegmentHeader) -> Result<(), StorageError> {
        write_all_at(&*self.file, 0, &header.encode()).map_err(room_error("write", &self.path))
    }

    fn new(path: PathBuf, file: Arc<dyn FsFile>, header: SegmentHeader, written_to: u64) -> Self {
        let SegmentHeader { number, epoch, alignment, .. } = header;
        let end = alignment.bytes() as u64;
        Self {
            number,
            path,
            file,
            end,
            written_to: written_to.max(end),
            synced_to: 0,
            alignment,
            epoch,
        }
    }

    /// Whether no group has been written yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.end == self.alignment.bytes() as u64
    }

    pub(crate) fn position(&self) -> Position {
        Position { segment: self.number, offset: self.end }
    }

    /// Writes zeros up to `to`. Durable with the next sync.
    pub(crate) fn zero_fill(&mut self, to: u64) -> Result<(), StorageError> {
        while self.written_to < to {
            let len = (ZEROS.len() as u64).min(to - self.written_to);
            let chunk = ZEROS.get(..len as usize).unwrap_or(&ZEROS);
            write_all_at(&*self.file, self.written_to, chunk)
                .map_err(room_error("zero-fill", &self.path))?;
            self.written_to += len;
        }
        Ok(())
    }
}
