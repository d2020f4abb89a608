//! Searches for damage in what was written long ago, concurrently with the writer: group after
//! group, every checksum.
//!
//! Nothing is decided here. The scrub finds the damage that the next start would find, while the
//! node still runs and its state machine still contains the effect of the damaged entries.

use std::io::ErrorKind;

use d_engine_core::{GroupId, LogIndex};

use crate::StorageError;
use crate::fs::FsFile;
use crate::log::engine::{LogDamage, ScrubPlace, Scrubbed};
use crate::log::frame::Position;
use crate::log::group_reader::{is_bad_sector, read_bytes, read_group};
use crate::log::index::{FileLogReader, LogMap};
use crate::log::latch::room_error;
use crate::log::segment::{Alignment, SegmentHeader};
use crate::log::segment_name::file_name;

/// A segment, as the writer knows it.
struct Part {
    number: u64,
    file: std::sync::Arc<dyn FsFile>,
    /// The offset of its first group that counts; zero if that is the first one after the header.
    begin: u64,
    /// The end of its groups.
    end: u64,
}

impl FileLogReader {
    /// [`crate::LogReader::scrub`].
    pub(crate) fn look_at(
        &self,
        group: GroupId,
        from: ScrubPlace,
    ) -> Result<Scrubbed, StorageError> {
        let Some(part) = self.part_from(from.0)? else { return Ok(Scrubbed::default()) };
        let behind = Some(ScrubPlace(Position { segment: part.number + 1, offset: 0 }));
        let after = if from.0.segment == part.number { from.0.offset } else { 0 };
        let looked = match self.look_at_group(&part, after) {
            Err(StorageError::Io { source, .. }) if is_bad_sector(&source) => {
                Err((after, "it cannot be read"))
            }
            looked => looked?,
        };
        match looked {
            Ok((0, _)) => Ok(Scrubbed { bytes: 0, next: behind, damage: None }),
            Ok((bytes, end)) => {
                let next = Some(ScrubPlace(Position { segment: part.number, offset: end }));
                Ok(Scrubbed { bytes, next, damage: None })
            }
            Err((offset, what)) => {
                let through = self.map.read().last_from(group, part.number, offset);
                let error = StorageError::Damaged {
                    segment: file_name(part.number),
                    offset,
                    what: what.to_owned(),
                };
                Ok(Scrubbed { bytes: 0, next: behind, damage: Some(LogDamage { through, error }) })
            }
        }
    }

    /// Returns the first segment at or after `from`.
    fn part_from(&self, from: Position) -> Result<Option<Part>, StorageError> {
        for number in from.segment.. {
            let map = self.map.read();
            let Some((number, file)) = map.files.range(number..).next() else { return Ok(None) };
            let (number, file) = (*number, std::sync::Arc::clone(file));
            let end = map.ends.get(&number).copied().unwrap_or(0);
            let begin = if map.intact_from.segment == number { map.intact_from.offset } else { 0 };
            drop(map);
            match self.files.handle(&file) {
                Ok(file) => return Ok(Some(Part { number, file, begin, end })),
                // The segment was purged meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(room_error("open", &self.files.path(number))(error)),
            }
        }
        Ok(None)
    }

    /// Reads the group at `after` or, if that is zero, the first one. Returns the number of bytes
    /// read, 0 at the end of the segment, and the end of the group; or the offset of the damage and
    /// what it is.
    #[allow(clippy::type_complexity, reason = "what was read, or the damage and its offset")]
    fn look_at_group(
        &self,
        part: &Part,
        after: u64,
    ) -> Result<Result<(u64, u64), (u64, &'static str)>, StorageError> {
        let read_error = |error| room_error("read", &self.files.path(part.number))(error);
        let block = read_bytes(&*part.file, 0, Alignment::Page.bytes()).map_err(read_error)?;
        let segment = match SegmentHeader::decode(&block) {
            Ok(segment) if segment.number == part.number => segment,
            Ok(_) => return Ok(Err((0, "the segment has the header of another segment"))),
            Err(_) => return Ok(Err((0, "the segment's header does not verify"))),
        };
        let at = after.max(part.begin).max(segment.alignment.bytes() as u64);
        if at >= part.end {
            return Ok(Ok((0, at)));
        }
        Ok(match read_group(&*part.file, &segment, at, part.end).map_err(read_error)? {
            Ok(group) => Ok((group.end - at, group.end)),
            Err(bad) => Err((at, bad.what)),
        })
    }
}

impl LogMap {
    /// Returns the last entry of `group` in segment `number` at or after `offset`; zero if there is
    /// none.
    fn last_from(&self, group: GroupId, number: u64, offset: u64) -> LogIndex {
        let Some(known) = self.groups.get(&group) else { return LogIndex::ZERO };
        let slots = known.slots.iter().enumerate().rev();
        let mut there = slots.filter(|(_, slot)| slot.segment == number && slot.offset >= offset);
        there.next().map_or(LogIndex::ZERO, |(at, _)| known.base.index.plus(at as u64 + 1))
    }
}
