//! Reads segments and their groups, and says of each whether it verifies.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::{Group, Scan, damaged};
use crate::StorageError;
use crate::fs::{FsFile, read_up_to, read_whole};
use crate::log::frame::{Fault, GROUP_HEADER_LEN, GroupHeader, Position, decode_body};
use crate::log::latch::io_error;
use crate::log::segment::{Alignment, SegmentHeader, is_zero};
use crate::log::segment_name::file_name;

impl Scan<'_> {
    /// Returns the watermark of a segment's first group, if header and group verify.
    pub(super) fn opening(&self, number: u64) -> Result<Option<Position>, StorageError> {
        let content = self.content(number)?;
        let Some(header) = self.segment_header(number, &content)? else { return Ok(None) };
        let group = self.group_at(number, &header, &content, header.alignment.bytes())?;
        Ok(group.ok().map(|group| group.header.watermark))
    }

    /// As [`Self::opening`], for a segment that a later one names, which must therefore exist.
    /// Reads only the headers, because the whole segment is read later.
    pub(super) fn watermark_of_first_group(&self, number: u64) -> Result<Position, StorageError> {
        let Some(file) = self.open(number)? else {
            return Err(damaged(number, 0, "the segment is missing"));
        };
        let mut content = vec![0; Alignment::Page.bytes() + GROUP_HEADER_LEN];
        let read =
            read_up_to(&*file, 0, &mut content).map_err(io_error("read", &self.path(number)))?;
        content.truncate(read);
        let Some(header) = self.segment_header(number, &content)? else {
            return Err(damaged(number, 0, "the segment's header does not verify"));
        };
        let start = header.alignment.bytes();
        match GroupHeader::decode(content.get(start..).unwrap_or_default()) {
            Ok((group, _)) if self.belongs(&group, number, start) => Ok(group.watermark),
            Err(Fault::Version(version)) => Err(self.unsupported(number, version)),
            _ => Err(damaged(number, start as u64, "the segment's first group does not verify")),
        }
    }

    pub(super) fn content(&self, number: u64) -> Result<Bytes, StorageError> {
        let Some(file) = self.open(number)? else { return Ok(Bytes::new()) };
        read_whole(&*file).map(Bytes::from).map_err(io_error("read", &self.path(number)))
    }

    /// Opens the file of segment `number`, if it exists.
    pub(super) fn open(&self, number: u64) -> Result<Option<Arc<dyn FsFile>>, StorageError> {
        let Some(file) = self.files.get(&number) else { return Ok(None) };
        self.handles.handle(file).map(Some).map_err(io_error("open", &self.path(number)))
    }

    pub(super) fn len(&self, number: u64) -> Result<u64, StorageError> {
        let Some(file) = self.open(number)? else { return Ok(0) };
        file.len().map_err(io_error("read the length of", &self.path(number)))
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// Returns the header of segment `number`, or `None` if the file does not contain that segment.
    pub(super) fn segment_header(
        &self,
        number: u64,
        content: &[u8],
    ) -> Result<Option<SegmentHeader>, StorageError> {
        let header = match SegmentHeader::decode(content) {
            Ok(header) => header,
            Err(Fault::Version(version)) => return Err(self.unsupported(number, version)),
            Err(Fault::Invalid(_) | Fault::Impossible(_)) => return Ok(None),
        };
        let foreign = |what: &str| Err(damaged(number, 0, what));
        if header.cluster != self.identity.cluster {
            return foreign("the segment belongs to another cluster");
        }
        if header.incarnation != self.identity.incarnation || header.node != self.identity.node {
            return foreign("the segment belongs to another data directory");
        }
        if header.number != number && header.number >= self.record.first {
            return foreign(&format!(
                "the file was renamed: its header says {}",
                file_name(header.number)
            ));
        }
        // Otherwise this is the file of a purged segment, renamed for reuse, without its new header
        // yet.
        Ok((header.number == number).then_some(header))
    }

    pub(super) fn unsupported(&self, number: u64, version: u32) -> StorageError {
        let supported = crate::log::frame::FORMAT_VERSION.into();
        StorageError::UnsupportedFormat { path: self.path(number), found: version, supported }
    }

    /// Reads the group at `at`; the inner error says why there is none.
    pub(super) fn group_at(
        &self,
        number: u64,
        segment: &SegmentHeader,
        content: &Bytes,
        at: usize,
    ) -> Result<Result<Group, &'static str>, StorageError> {
        let (header, checksum) = match GroupHeader::decode(content.get(at..).unwrap_or_default()) {
            Ok(decoded) => decoded,
            Err(Fault::Version(version)) => return Err(self.unsupported(number, version)),
            Err(Fault::Invalid(what) | Fault::Impossible(what)) => return Ok(Err(what)),
        };
        if !self.belongs(&header, number, at) || header.epoch < segment.epoch {
            return Ok(Err("the group belongs to another place or directory"));
        }
        let start = at + GROUP_HEADER_LEN;
        let body_end = start.saturating_add(header.body_len as usize);
        let end =
            body_end.checked_next_multiple_of(segment.alignment.bytes()).unwrap_or(usize::MAX);
        if body_end > content.len() {
            return Ok(Err("the group is longer than the file"));
        }
        if !content.get(body_end..end.min(content.len())).is_some_and(is_zero) {
            return Ok(Err("the padding after the group is not zero"));
        }
        match decode_body(&header, checksum, &content.slice(start..body_end)) {
            Ok(records) => Ok(Ok(Group { header, records, end })),
            Err(Fault::Version(version)) => Err(self.unsupported(number, version)),
            Err(Fault::Impossible(what)) => Err(damaged(number, at as u64, what)),
            Err(Fault::Invalid(what)) => Ok(Err(what)),
        }
    }

    pub(super) fn belongs(&self, header: &GroupHeader, number: u64, at: usize) -> bool {
        let here = Position { segment: number, offset: at as u64 };
        header.incarnation == self.identity.incarnation && header.at == here
    }
}
