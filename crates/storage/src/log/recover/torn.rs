//! Decides whether a place that does not verify is damage or a torn tail.

use bytes::Bytes;

use super::{Recovered, Scan, damaged};
use crate::StorageError;
use crate::log::frame::{GROUP_HEADER_LEN, GroupHeader, Position};
use crate::log::segment::{Alignment, SMALLEST_ALIGNMENT, SegmentHeader};
use crate::log::segment_name::file_name;

impl Scan<'_> {
    /// Checks the length of the head. It is filled with zeros ahead of its groups and never becomes
    /// shorter while it is the head. A shorter file was cut by hand, together with groups that
    /// nothing else knows of.
    pub(super) fn check_length(&self) -> Result<(), StorageError> {
        let (number, filled) = (self.record.opened, self.record.filled);
        if !self.files.contains_key(&number) {
            return Ok(());
        }
        let len = self.len(number)?;
        if len >= filled {
            return Ok(());
        }
        let what = format!(
            "the file has {len} bytes, but log.meta says that {filled} were written and synced; it \
             was cut off, and acknowledged entries may be lost here; restore the whole file"
        );
        Err(damaged(number, len, &what))
    }

    /// Decides whether the first place that does not verify is damage or a torn tail.
    pub(super) fn failure(
        &self,
        number: u64,
        at: usize,
        what: &str,
        extent: Option<u64>,
        found: &mut Recovered,
    ) -> Result<(), StorageError> {
        let here = Position { segment: number, offset: at as u64 };
        if extent.is_some() {
            let what = format!("{what}, although a later segment says that it was stored");
            return Err(damaged(number, here.offset, &what));
        }
        if self.record.starts.values().any(|start| here < *start) {
            let what = format!("{what}, although log.meta says that it was stored");
            return Err(damaged(number, here.offset, &what));
        }
        if let Some((place, proof)) = self.proof_of_damage(here)? {
            let what = if place == here {
                what
            } else {
                "the segment's header or first group does not verify"
            };
            let what = format!("{what}, although the group at {proof} says that it was stored");
            return Err(damaged(place.segment, place.offset, &what));
        }
        for (later, _) in self.files.range(number..) {
            let content = self.content(*later)?;
            let header = self.segment_header(*later, &content)?;
            let from = match *later == number {
                true => at,
                false => header.map_or(0, |header| header.alignment.bytes()),
            };
            let Some(end) = self.end_of_torn_bytes(*later, header.as_ref(), &content, from) else {
                continue;
            };
            found.report.torn_bytes += (end - from) as u64;
            found.report.torn_at.get_or_insert((file_name(*later), from as u64));
        }
        Ok(())
    }

    /// Returns the end of the bytes that an interrupted write left after `from`, if there are any.
    /// Used only for the report.
    pub(super) fn end_of_torn_bytes(
        &self,
        number: u64,
        header: Option<&SegmentHeader>,
        content: &Bytes,
        from: usize,
    ) -> Option<usize> {
        let last_written =
            |content: &[u8]| content.iter().rposition(|byte| *byte != 0).map(|last| last + 1);
        let step = match header {
            Some(header) if header.recycled => header.alignment.bytes(),
            Some(_) => return last_written(content).filter(|end| *end > from),
            // The file was renamed for reuse and the segment not begun: nothing was written.
            None if SegmentHeader::decode(content).is_ok() => return None,
            // The header is torn: nothing else was written.
            None => return last_written(content.get(..Alignment::Page.bytes()).unwrap_or(content)),
        };
        // Bytes from the file's earlier use are not torn; those that begin with a group header of
        // this segment are.
        let boundaries = (from..content.len()).step_by(step);
        let torn = boundaries.filter_map(|at| {
            let (group, _) = GroupHeader::decode(content.get(at..)?).ok()?;
            let end = (at + GROUP_HEADER_LEN).saturating_add(group.body_len as usize);
            self.belongs(&group, number, at).then_some(end.min(content.len()))
        });
        torn.max()
    }

    /// Checks every later boundary and every later segment for a group whose watermark lies after
    /// `failure`. Returns the damaged place and a description of the group that proves it.
    pub(super) fn proof_of_damage(
        &self,
        failure: Position,
    ) -> Result<Option<(Position, String)>, StorageError> {
        for number in self.files.range(failure.segment..).map(|(number, _)| *number) {
            let content = self.content(number)?;
            let header = self.segment_header(number, &content)?;
            let step = header.map_or(SMALLEST_ALIGNMENT, |header| header.alignment.bytes());
            let from =
                if number == failure.segment { failure.offset as usize + step } else { step };
            for at in (from..content.len()).step_by(step) {
                let Some(bytes) = content.get(at..) else { break };
                let Ok((group, _)) = GroupHeader::decode(bytes) else { continue };
                if !self.belongs(&group, number, at) {
                    continue;
                }
                let proof = format!("offset {at} of {}", file_name(number));
                if group.watermark.segment > failure.segment {
                    let offset = header.map_or(0, |header| header.alignment.bytes() as u64);
                    return Ok(Some((
                        Position { segment: group.watermark.segment, offset },
                        proof,
                    )));
                }
                if group.watermark > failure {
                    return Ok(Some((failure, proof)));
                }
            }
        }
        Ok(None)
    }
}
