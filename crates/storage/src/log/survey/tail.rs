//! Looks for groups after a place that does not verify.

use std::path::Path;

use bytes::Bytes;

use crate::StorageError;
use crate::fs::FsFile;
use crate::log::frame::{GROUP_HEADER_LEN, GroupHeader};
use crate::log::group_reader::{belongs, is_bad_sector, read_bytes};
use crate::log::latch::io_error;
use crate::log::segment::SegmentHeader;

/// The bytes that are read at once: a multiple of every alignment.
const BLOCK: usize = 64 << 10;

/// Reads a block. Sectors that cannot be read count as zeros.
fn block(file: &dyn FsFile, path: &Path, at: u64, step: usize) -> Result<Bytes, StorageError> {
    match read_bytes(file, at, BLOCK) {
        Err(error) if is_bad_sector(&error) => {
            let mut content = Vec::with_capacity(BLOCK);
            for offset in (0..BLOCK).step_by(step) {
                match read_bytes(file, at + offset as u64, step) {
                    Err(error) if is_bad_sector(&error) => {
                        content.resize(content.len() + step, 0);
                    }
                    read => content.extend_from_slice(&read.map_err(io_error("read", path))?),
                }
            }
            Ok(Bytes::from(content))
        }
        read => read.map_err(io_error("read", path)),
    }
}

/// Returns the first place at or after `from` with the header of a group that belongs there and
/// that `wanted` accepts.
pub(super) fn find_header(
    file: &dyn FsFile,
    path: &Path,
    segment: &SegmentHeader,
    from: u64,
    wanted: &mut dyn FnMut(u64, &GroupHeader) -> bool,
) -> Result<Option<(u64, GroupHeader)>, StorageError> {
    let step = segment.alignment.bytes();
    let mut at = from;
    loop {
        let content = block(file, path, at, step)?;
        for offset in (0..content.len()).step_by(step) {
            let here = at + offset as u64;
            let bytes = content.get(offset..).unwrap_or_default();
            let Ok((header, _)) = GroupHeader::decode(bytes) else { continue };
            if belongs(&header, segment, here) && wanted(here, &header) {
                return Ok(Some((here, header)));
            }
        }
        if content.len() < BLOCK {
            return Ok(None);
        }
        at += BLOCK as u64;
    }
}

/// Returns the end of the bytes that an interrupted write left after `from`, if there are any. A
/// recycled file has bytes of its earlier use there, which are none.
pub(super) fn end_of_torn_bytes(
    file: &dyn FsFile,
    path: &Path,
    segment: &SegmentHeader,
    from: u64,
) -> Result<Option<u64>, StorageError> {
    let mut end = None;
    if segment.recycled {
        let len = file.len().map_err(io_error("read the length of", path))?;
        let mut note = |at: u64, header: &GroupHeader| {
            let behind = at + GROUP_HEADER_LEN as u64 + u64::from(header.body_len);
            end = end.max(Some(behind.min(len)));
            false
        };
        find_header(file, path, segment, from, &mut note)?;
        return Ok(end);
    }
    let step = segment.alignment.bytes();
    let mut at = from;
    loop {
        let content = block(file, path, at, step)?;
        if let Some(last) = content.iter().rposition(|byte| *byte != 0) {
            end = Some(at + last as u64 + 1);
        }
        if content.len() < BLOCK {
            return Ok(end);
        }
        at += BLOCK as u64;
    }
}
