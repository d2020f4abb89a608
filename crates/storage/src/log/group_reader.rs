//! Reads one write group of a segment from its file: the memory is bounded by that group.

use std::io;

use bytes::Bytes;

use crate::fs::{FsFile, read_up_to};
use crate::log::frame::{Fault, Framed, GROUP_HEADER_LEN, GroupHeader, Position, decode_body};
use crate::log::segment::{SegmentHeader, is_zero};

/// A group of which every checksum matches, at the place where it belongs.
#[derive(Debug)]
pub(crate) struct WholeGroup {
    pub(crate) header: GroupHeader,
    pub(crate) records: Vec<Framed>,
    /// The offset of the next boundary.
    pub(crate) end: u64,
}

/// A place where no whole group lies.
#[derive(Debug)]
pub(crate) struct BadGroup {
    /// What does not verify.
    pub(crate) what: &'static str,
    /// The version of the format, if a newer program wrote the group.
    pub(crate) version: Option<u32>,
    /// The header and the next boundary after the group, if the header verifies and belongs here.
    pub(crate) header: Option<(GroupHeader, u64)>,
}

impl BadGroup {
    fn because(what: &'static str) -> Self {
        Self { what, version: None, header: None }
    }

    fn of(fault: Fault, newer: &'static str) -> Self {
        match fault {
            Fault::Invalid(what) | Fault::Impossible(what) => Self::because(what),
            Fault::Version(version) => Self { version: Some(version), ..Self::because(newer) },
        }
    }
}

/// Whether a read failed because the medium has lost these bytes (EIO). That is damage like other
/// bytes.
pub(crate) fn is_bad_sector(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    error.raw_os_error() == Some(EIO)
}

/// Reads `len` bytes at `offset`; fewer at the end of the file.
pub(crate) fn read_bytes(file: &dyn FsFile, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut content = vec![0; len];
    let read = read_up_to(file, offset, &mut content)?;
    content.truncate(read);
    Ok(Bytes::from(content))
}

/// Whether the group with this header was written for this place of this segment.
pub(crate) fn belongs(header: &GroupHeader, segment: &SegmentHeader, at: u64) -> bool {
    let here = Position { segment: segment.number, offset: at };
    header.at == here && header.incarnation == segment.incarnation
}

/// Reads the group at `at`, which must end at `limit` or before; the inner error says why there is
/// none.
pub(crate) fn read_group(
    file: &dyn FsFile,
    segment: &SegmentHeader,
    at: u64,
    limit: u64,
) -> io::Result<Result<WholeGroup, BadGroup>> {
    let decoded = GroupHeader::decode(&read_bytes(file, at, GROUP_HEADER_LEN)?);
    let (header, checksum) = match decoded {
        Ok(decoded) => decoded,
        Err(fault) => {
            return Ok(Err(BadGroup::of(fault, "the group has another version than its segment")));
        }
    };
    if !belongs(&header, segment, at) || header.epoch < segment.epoch {
        return Ok(Err(BadGroup::because("the group belongs to another place or directory")));
    }
    let body_len = header.body_len as usize;
    let body_end = at + (GROUP_HEADER_LEN as u64) + u64::from(header.body_len);
    let end = body_end.next_multiple_of(segment.alignment.bytes() as u64);
    let known = Some((header, end));
    if body_end > limit {
        let bad = BadGroup::because("the group is longer than its segment");
        return Ok(Err(BadGroup { header: known, ..bad }));
    }
    let rest = (end.min(limit) - at) as usize - GROUP_HEADER_LEN;
    let body = read_bytes(file, at + GROUP_HEADER_LEN as u64, rest)?;
    let read = if body.len() < body_len {
        Err(BadGroup::because("the file is cut off"))
    } else if !is_zero(body.get(body_len..).unwrap_or_default()) {
        Err(BadGroup::because("the padding after the group is not zero"))
    } else {
        decode_body(&header, checksum, &body.slice(..body_len))
            .map_err(|fault| BadGroup::of(fault, "a record has another version than its segment"))
    };
    Ok(match read {
        Ok(records) => Ok(WholeGroup { header, records, end }),
        Err(bad) => Err(BadGroup { header: known, ..bad }),
    })
}
