//! Reads a log back after a stop, a crash or damage. `docs/file-format.md` states the rules in
//! prose.
//!
//! Nothing here changes the disk: recovery either accounts for everything that was ever known to be
//! durable, or it refuses the log. `FileLog::start` removes what recovery finds superfluous, after
//! everything that is kept has become durable in a segment of its own.

mod behind;
mod group;
mod read;
mod torn;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use d_engine_core::GroupId;

use crate::fs::Fs;
use crate::log::frame::{Framed, GROUP_HEADER_LEN, GroupHeader, Position, Record};
use crate::log::index::Slot;
use crate::log::latch::io_error;
use crate::log::record::LogRecord;
use crate::log::segment::Alignment;
use crate::log::segment_files::{SegmentFile, SegmentFiles};
use crate::log::segment_name::{file_name, number_of};
use crate::{Identity, LogEntry, RecoveryReport, StorageError};
use group::Gap;

pub(crate) use behind::{PLACES_MAX, not_covered, recover_behind};
pub(crate) use group::RecoveredGroup;

/// The result of reading all segments.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) groups: BTreeMap<GroupId, RecoveredGroup>,
    /// Segments that contain entries.
    pub(crate) files: BTreeMap<u64, Kept>,
    /// Where the log continues without a new segment; set if the last process shut down in an
    /// orderly way.
    pub(crate) rested: Option<CleanEnd>,
    /// The end of the part that is known to be durable: the watermark of the last group.
    pub(crate) durable: Position,
    /// All entries after `durable`, in the order in which they were written. They include entries
    /// that later ones supersede and entries that are purged: what those superseded must stay
    /// superseded.
    ///
    /// They were readable, which does not prove that they are on stable storage: after a failed
    /// sync, pages stay readable and are lost at the next power loss. So they are written again.
    pub(crate) doubtful: Vec<(GroupId, LogEntry)>,
    pub(crate) last_epoch: u64,
    pub(crate) last_sequence: u64,
    pub(crate) last_number: u64,
    /// Segment files that contain nothing that is needed.
    pub(crate) superfluous: Vec<u64>,
    pub(crate) report: RecoveryReport,
    /// The damage that was skipped; `log.meta` must record this before any other change.
    pub(crate) skipped_corruption: Option<StorageError>,
}

/// A segment that contains entries.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) file: Arc<SegmentFile>,
    /// Length of the file.
    pub(crate) len: u64,
    /// The end of its last group.
    pub(crate) end: u64,
}

/// The newest segment (the head) of a log that was closed in an orderly way: everything up to `end`
/// is known to be durable, and at most one group, without records, follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CleanEnd {
    pub(crate) end: Position,
    pub(crate) alignment: Alignment,
    /// The sequence of the next group, which overwrites the group without records.
    pub(crate) next_sequence: u64,
    /// The end of the group without records.
    pub(crate) used_to: u64,
}

/// The location of a log and its owner.
pub(crate) struct Place<'a> {
    pub(crate) fs: &'a dyn Fs,
    pub(crate) dir: &'a Path,
    pub(crate) files: &'a SegmentFiles,
    pub(crate) identity: &'a Identity,
}

impl Place<'_> {
    /// Returns the numbers of all segment files in ascending order.
    fn numbers(&self) -> Result<Vec<u64>, StorageError> {
        let names = self.fs.list(self.dir).map_err(io_error("list", self.dir))?;
        Ok(names.iter().filter_map(|name| number_of(name)).collect())
    }
}

/// Reads all segments.
pub(crate) fn recover(place: &Place<'_>, record: &LogRecord) -> Result<Recovered, StorageError> {
    let mut scan = Scan::new(place, record)?;
    let numbers = place.numbers()?;
    let mut found = Recovered { last_epoch: record.epoch, ..Recovered::default() };
    found.last_number = numbers.last().copied().unwrap_or_default().max(record.opened);
    for (group, base) in &record.bases {
        found.groups.insert(*group, RecoveredGroup { base: *base, ..RecoveredGroup::default() });
    }
    scan.check_length()?;
    let chain = scan.chain()?;
    for (position, (number, extent)) in chain.iter().enumerate() {
        let last = position + 1 == chain.len();
        scan.read_segment(*number, (!last).then_some(*extent), &mut found)?;
    }
    found.report.segments = chain.len();
    if let Some((head, _)) = chain.last() {
        found.rested = scan.rested(*head, &found)?;
    }
    match found.rested {
        // Everything that was read is known to be durable.
        Some(rested) => found.durable = rested.end,
        None => found.doubtful.extend(scan.pending.drain(..).flat_map(|group| group.entries)),
    }
    for group in found.groups.values_mut() {
        if let Some(Gap { missing, before, segment, offset }) = group.gap {
            let what = format!("entry {before} follows, but entry {missing} is missing");
            return Err(damaged(segment, offset, &what));
        }
        group.forget_purged();
    }
    // A segment of the chain is kept unless it begins after the durable part.
    let kept =
        |number: u64| chain.iter().any(|(n, _)| *n == number) && number <= found.durable.segment;
    found.superfluous = numbers.into_iter().filter(|number| !kept(*number)).collect();
    for (number, file) in scan.files.iter().filter(|(number, _)| kept(**number)) {
        let extent =
            chain.iter().find(|(known, _)| known == number).map_or(0, |(_, extent)| *extent);
        let end = if *number == found.durable.segment { found.durable.offset } else { extent };
        found.files.insert(*number, Kept { file: Arc::clone(file), len: scan.len(*number)?, end });
    }
    Ok(found)
}

struct Scan<'a> {
    dir: &'a Path,
    identity: &'a Identity,
    record: &'a LogRecord,
    handles: &'a SegmentFiles,
    files: BTreeMap<u64, Arc<SegmentFile>>,
    /// The groups at or after the last watermark.
    pending: VecDeque<Pending>,
    /// The end of the first group in the segment that was read last.
    first_group_end: u64,
}

/// A group at or after the last watermark.
struct Pending {
    at: Position,
    end: u64,
    sequence: u64,
    has_records: bool,
    entries: Vec<(GroupId, LogEntry)>,
}

/// A group that verified as a whole.
struct Group {
    header: GroupHeader,
    records: Vec<Framed>,
    /// Offset of the next boundary.
    end: usize,
}

impl<'a> Scan<'a> {
    /// Prepares a scan of the segments that are not purged. Reads nothing yet.
    fn new(place: &Place<'a>, record: &'a LogRecord) -> Result<Self, StorageError> {
        let kept = place.numbers()?.into_iter().filter(|number| *number >= record.first);
        Ok(Self {
            dir: place.dir,
            handles: place.files,
            identity: place.identity,
            record,
            files: kept.map(|number| (number, SegmentFile::new(number))).collect(),
            pending: VecDeque::new(),
            first_group_end: 0,
        })
    }

    /// Returns the segments that make up the log, oldest first, each with the offset of its end.
    ///
    /// The watermark in a segment's first group says where the log ended when the segment was
    /// begun. The newest segment whose first group verifies is the head of the chain.
    fn chain(&self) -> Result<Vec<(u64, u64)>, StorageError> {
        let mut head = None;
        for number in self.files.keys().rev() {
            if let Some(before) = self.opening(*number)? {
                head = Some((*number, before));
                break;
            }
        }
        let newest = head.map(|(number, _)| number).unwrap_or_default();
        if newest < self.record.opened {
            let what = "the segment is missing or its first group does not verify, although it was \
                        known to be stored";
            return Err(damaged(self.record.opened, 0, what));
        }
        let mut chain = Vec::new();
        let mut extent = u64::MAX;
        while let Some((number, before)) = head {
            chain.push((number, extent));
            extent = before.offset;
            head = None;
            if before.segment >= number {
                let what = "the first group of the segment names no segment before it";
                return Err(damaged(number, 0, what));
            }
            if before.segment >= self.record.first.max(1) {
                head = Some((before.segment, self.watermark_of_first_group(before.segment)?));
            }
        }
        chain.reverse();
        Ok(chain)
    }

    /// Reads one segment of the chain. `extent` is its end according to the next segment; the
    /// newest segment ends with its last group.
    fn read_segment(
        &mut self,
        number: u64,
        extent: Option<u64>,
        found: &mut Recovered,
    ) -> Result<(), StorageError> {
        let content = self.content(number)?;
        let Some(segment) = self.segment_header(number, &content)? else {
            return Err(damaged(number, 0, "the segment's header does not verify"));
        };
        found.last_epoch = found.last_epoch.max(segment.epoch);
        let stop = usize::try_from(extent.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let begin = segment.alignment.bytes();
        let mut at = begin;
        if number == self.record.intact_from.segment {
            // Everything before this offset is damaged, and a snapshot contains it.
            at = at.max(usize::try_from(self.record.intact_from.offset).unwrap_or(usize::MAX));
        }
        let begins = at == begin;
        self.first_group_end = 0;
        let mut before: Option<(u64, u64)> = None;
        while at < stop {
            // A later open may continue in this segment, under a higher epoch.
            let follows = |header: &GroupHeader| match before {
                Some((sequence, epoch)) => header.sequence == sequence + 1 && header.epoch >= epoch,
                None => header.epoch == segment.epoch || !begins,
            };
            let group = match self.group_at(number, &segment, &content, at)? {
                Ok(group) if follows(&group.header) => group,
                Ok(_) => {
                    return self.failure(
                        number,
                        at,
                        "a group is missing before this one",
                        extent,
                        found,
                    );
                }
                Err(what) => return self.failure(number, at, what, extent, found),
            };
            found.last_sequence = found.last_sequence.max(group.header.sequence);
            found.last_epoch = found.last_epoch.max(group.header.epoch);
            at = group.end;
            if before.is_none() && begins {
                self.first_group_end = at as u64;
            }
            before = Some((group.header.sequence, group.header.epoch));
            self.take_group(group, found);
        }
        if at != stop {
            return Err(damaged(
                number,
                at as u64,
                "a group extends past the known end of the segment",
            ));
        }
        Ok(())
    }

    fn take_group(&mut self, group: Group, found: &mut Recovered) {
        let (watermark, has_records) = (group.header.watermark, !group.records.is_empty());
        let (sequence, end) = (group.header.sequence, group.end as u64);
        let mut entries = Vec::new();
        for framed in group.records {
            let offset = group.header.at.offset + (GROUP_HEADER_LEN + framed.at) as u64;
            match framed.record {
                Record::HardState { group, state } => {
                    found.groups.entry(group).or_default().hard_state = Some(state);
                }
                // A snapshot has replaced this entry.
                Record::Entry { group: id, .. } if !self.record.counts(id, group.header.at) => {}
                Record::Entry { group: id, entry } => {
                    let slot = Slot {
                        term: entry.id.term,
                        segment: group.header.at.segment,
                        offset,
                        len: framed.len,
                        chain: framed.chain,
                    };
                    found.groups.entry(id).or_default().put(&entry, slot);
                    entries.push((id, entry));
                }
            }
        }
        found.durable = watermark;
        self.pending.retain(|group| group.at >= watermark);
        self.pending.push_back(Pending {
            at: group.header.at,
            end,
            sequence,
            has_records,
            entries,
        });
    }

    /// Returns where the log continues in its head, if it can. The groups before the last watermark
    /// are proved to be durable and, by `log.meta`, the first group of the head. If only a group
    /// without records follows, the next group overwrites it: nothing that was acknowledged is
    /// written a second time.
    fn rested(&self, head: u64, found: &Recovered) -> Result<Option<CleanEnd>, StorageError> {
        if head != self.record.opened || found.report.torn_at.is_some() {
            return Ok(None);
        }
        let content = self.content(head)?;
        let Some(header) = self.segment_header(head, &content)? else { return Ok(None) };
        let end = found.durable.max(Position { segment: head, offset: self.first_group_end });
        let mut behind = self.pending.iter().filter(|group| group.at >= end);
        let (last, others) = (behind.next(), behind.count());
        // A log that begins again after the group without records must not continue in its place.
        let begins_later = self.record.starts.values().any(|start| *start > end);
        if begins_later
            || others > 0
            || last.is_some_and(|group| group.has_records || group.at != end)
        {
            return Ok(None);
        }
        Ok(Some(CleanEnd {
            end,
            alignment: header.alignment,
            next_sequence: last.map_or(found.last_sequence + 1, |group| group.sequence),
            used_to: last.map_or(end.offset, |group| group.end),
        }))
    }
}

pub(crate) fn damaged(number: u64, offset: u64, what: &str) -> StorageError {
    StorageError::Damaged { segment: file_name(number), offset, what: what.to_owned() }
}
