//! Reads a log back after whatever happened to it. `docs/file-format.md` tells the rules as prose.
//!
//! Nothing here changes the disk: recovery either understands everything that was ever known to be
//! stored, or it refuses. What it finds to be superfluous is removed by `FileLog::start`, after
//! everything that is kept has become durable in a segment of its own.

mod behind;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, Term};

use crate::frame::{Fault, Framed, GROUP_HEADER_LEN, GroupHeader, Position, Record, decode_body};
use crate::fs::{Fs, FsFile, read_up_to, read_whole};
use crate::fs_latch::io_error;
use crate::index::Slot;
use crate::log_record::LogRecord;
use crate::segment::{Alignment, SMALLEST_ALIGNMENT, SegmentHeader, file_name, is_zero, number_of};
use crate::segment_files::{SegmentFile, SegmentFiles};
use crate::{EntryHead, Identity, LogEntry, RecoveryReport, StorageError};

pub(crate) use behind::{not_covered, recover_behind};

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) groups: BTreeMap<GroupId, RecoveredGroup>,
    /// Segments that hold entries.
    pub(crate) files: BTreeMap<u64, Kept>,
    /// Where the log goes on without a new segment: the last process ended in an orderly way.
    pub(crate) rested: Option<Rested>,
    /// Where the known durable part ends: the watermark of the last group.
    pub(crate) durable: Position,
    /// All entries behind `durable`, in the order in which they were written, also those that
    /// others of them supersede or that are purged: what they superseded must stay so.
    ///
    /// They were readable, which does not prove that they are on stable storage: a failed sync
    /// leaves pages readable that will be gone after a power cut. So they are written again.
    pub(crate) doubtful: Vec<(GroupId, LogEntry)>,
    pub(crate) last_epoch: u64,
    pub(crate) last_sequence: u64,
    pub(crate) last_number: u64,
    /// Segment files that hold nothing that is needed.
    pub(crate) superfluous: Vec<u64>,
    pub(crate) report: RecoveryReport,
    /// The damage that was passed over: `log.meta` must say so before anything else is done.
    pub(crate) passed_over: Option<StorageError>,
}

/// A segment that holds entries.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) file: Arc<SegmentFile>,
    /// Length of the file.
    pub(crate) len: u64,
    /// Where its groups end.
    pub(crate) end: u64,
}

/// A head behind which nothing is in doubt: everything up to `end` is known to be durable, and what may lie behind
/// it is one group without records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rested {
    pub(crate) end: Position,
    pub(crate) alignment: Alignment,
    /// Of the next group, which takes the place of the one without records.
    pub(crate) next_sequence: u64,
    /// Where the group without records ends.
    pub(crate) used_to: u64,
}

/// What was read of one group of the cluster.
#[derive(Debug, Default)]
pub(crate) struct RecoveredGroup {
    pub(crate) base: LogId,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: VecDeque<(EntryHead, Slot)>,
    pub(crate) memberships: BTreeMap<LogIndex, Bytes>,
    pub(crate) skips: BTreeMap<LogIndex, Bytes>,
    gap: Option<Gap>,
    /// The lowest index that was read; zero: none.
    lowest: LogIndex,
    /// The term of the entry at `base`, if that was read.
    at_base: Option<Term>,
}

/// A jump in the indexes. A later record may still supersede everything from there on: then the
/// missing entries were purged with their segment because nobody needed them any more.
#[derive(Debug)]
struct Gap {
    missing: LogIndex,
    before: LogIndex,
    segment: u64,
    offset: u64,
}

/// Where a log lies, and whose it is.
pub(crate) struct Place<'a> {
    pub(crate) fs: &'a dyn Fs,
    pub(crate) dir: &'a Path,
    pub(crate) files: &'a SegmentFiles,
    pub(crate) identity: &'a Identity,
}

impl Place<'_> {
    /// The numbers of all segment files, in their order.
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
        if cfg!(mutant = "recovery-no-cut") && !last && scan.has_torn_bytes_behind(*number, *extent)? {
            break;
        }
    }
    found.report.segments = chain.len();
    if let Some((head, _)) = chain.last() {
        found.rested = scan.rested(*head, &found)?;
    }
    match found.rested {
        // Nothing is in doubt.
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
    // A segment is kept when something durable in it is kept.
    let kept = |number: u64| chain.iter().any(|(n, _)| *n == number) && number <= found.durable.segment;
    found.superfluous = numbers.into_iter().filter(|number| !kept(*number)).collect();
    for (number, file) in scan.files.iter().filter(|(number, _)| kept(**number)) {
        let extent = chain.iter().find(|(known, _)| known == number).map_or(0, |(_, extent)| *extent);
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
    /// The groups at or behind the last watermark.
    pending: VecDeque<Pending>,
    /// Where the first group of the segment that was read last ends.
    first_group_end: u64,
}

/// A group at or behind the last watermark.
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
    /// Over the segments that are not purged; nothing is read yet.
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

    /// The segments that make up the log, oldest first, each with the offset where it ends.
    ///
    /// Each segment's first group says, with its watermark, where the log stood when the segment
    /// was begun. The newest segment with a first group that verifies is the head of the chain.
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
            let what =
                "the segment is missing or its first group does not verify, though it was known to be stored";
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

    /// A head is filled with zeros ahead of its groups, and never gets shorter while it is the head: a shorter
    /// one was cut by hand, with groups that nothing else knows of.
    fn check_length(&self) -> Result<(), StorageError> {
        let (number, filled) = (self.record.opened, self.record.filled);
        if !self.files.contains_key(&number) {
            return Ok(());
        }
        let len = self.len(number)?;
        if len >= filled {
            return Ok(());
        }
        let what = format!(
            "the file has {len} bytes, but log.meta says that {filled} were written and synced; it was cut off, and \
             what was acknowledged may be gone from here: bring back the whole file"
        );
        Err(damaged(number, len, &what))
    }

    /// The watermark of a segment's first group, if header and group verify.
    fn opening(&self, number: u64) -> Result<Option<Position>, StorageError> {
        let content = self.content(number)?;
        let Some(header) = self.segment_header(number, &content)? else { return Ok(None) };
        let group = self.group_at(number, &header, &content, header.alignment.bytes())?;
        Ok(group.ok().map(|group| group.header.watermark))
    }

    /// As [`Self::opening`], for a segment that a later one names: it must be there. Only the
    /// headers are read, because the whole segment will be.
    fn watermark_of_first_group(&self, number: u64) -> Result<Position, StorageError> {
        let Some(file) = self.open(number)? else {
            return Err(damaged(number, 0, "the segment is missing"));
        };
        let mut content = vec![0; Alignment::Page.bytes() + GROUP_HEADER_LEN];
        let read = read_up_to(&*file, 0, &mut content).map_err(io_error("read", &self.path(number)))?;
        content.truncate(read);
        let Some(header) = self.segment_header(number, &content)? else {
            return Err(damaged(number, 0, "the segment's header does not verify"));
        };
        let start = header.alignment.bytes();
        match GroupHeader::decode(content.get(start..).unwrap_or_default()) {
            Ok((group, _)) if self.belongs(&group, number, start) => Ok(group.watermark),
            Err(Fault::Newer(version)) => Err(self.newer(number, version)),
            _ => Err(damaged(number, start as u64, "the segment's first group does not verify")),
        }
    }

    fn content(&self, number: u64) -> Result<Bytes, StorageError> {
        let Some(file) = self.open(number)? else { return Ok(Bytes::new()) };
        read_whole(&*file).map(Bytes::from).map_err(io_error("read", &self.path(number)))
    }

    /// The file of segment `number`, if there is one.
    fn open(&self, number: u64) -> Result<Option<Arc<dyn FsFile>>, StorageError> {
        let Some(file) = self.files.get(&number) else { return Ok(None) };
        self.handles.handle(file).map(Some).map_err(io_error("open", &self.path(number)))
    }

    fn len(&self, number: u64) -> Result<u64, StorageError> {
        let Some(file) = self.open(number)? else { return Ok(0) };
        file.len().map_err(io_error("look at", &self.path(number)))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// The header of segment `number`, or `None` when the file does not hold that segment.
    fn segment_header(&self, number: u64, content: &[u8]) -> Result<Option<SegmentHeader>, StorageError> {
        let header = match SegmentHeader::decode(content) {
            Ok(header) => header,
            Err(Fault::Newer(version)) => return Err(self.newer(number, version)),
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
            return foreign(&format!("the file was renamed: its header says {}", file_name(header.number)));
        }
        // The file of a purged segment, renamed for reuse, whose new header is not written yet.
        Ok((header.number == number).then_some(header))
    }

    fn newer(&self, number: u64, version: u32) -> StorageError {
        let supported = crate::frame::FORMAT_VERSION.into();
        StorageError::NewerFormat { path: self.path(number), found: version, supported }
    }

    /// The group at `at`, or why there is none.
    fn group_at(
        &self,
        number: u64,
        segment: &SegmentHeader,
        content: &Bytes,
        at: usize,
    ) -> Result<Result<Group, &'static str>, StorageError> {
        let (header, checksum) = match GroupHeader::decode(content.get(at..).unwrap_or_default()) {
            Ok(decoded) => decoded,
            Err(Fault::Newer(version)) => return Err(self.newer(number, version)),
            Err(Fault::Invalid(what) | Fault::Impossible(what)) => return Ok(Err(what)),
        };
        if !self.belongs(&header, number, at) || header.epoch < segment.epoch {
            return Ok(Err("the group belongs elsewhere"));
        }
        let start = at + GROUP_HEADER_LEN;
        let body_end = start.saturating_add(header.body_len as usize);
        let end = body_end.checked_next_multiple_of(segment.alignment.bytes()).unwrap_or(usize::MAX);
        if body_end > content.len() {
            return Ok(Err("the group is longer than the file"));
        }
        if !content.get(body_end..end.min(content.len())).is_some_and(is_zero) {
            return Ok(Err("the padding behind the group is not zero"));
        }
        match decode_body(&header, checksum, &content.slice(start..body_end)) {
            Ok(records) => Ok(Ok(Group { header, records, end })),
            Err(Fault::Newer(version)) => Err(self.newer(number, version)),
            Err(Fault::Impossible(what)) => Err(damaged(number, at as u64, what)),
            Err(Fault::Invalid(what)) => Ok(Err(what)),
        }
    }

    fn belongs(&self, header: &GroupHeader, number: u64, at: usize) -> bool {
        let here = Position { segment: number, offset: at as u64 };
        header.incarnation == self.identity.incarnation && header.at == here
    }

    /// Reads one segment of the chain. `extent` is where the next segment says that it ends; the
    /// newest segment ends where its groups end.
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
            // What lies before it is damaged, and held by a snapshot.
            at = at.max(usize::try_from(self.record.intact_from.offset).unwrap_or(usize::MAX));
        }
        let begins = at == begin;
        self.first_group_end = 0;
        let mut before: Option<(u64, u64)> = None;
        while at < stop {
            // A later open may go on in the segment, under a higher epoch.
            let follows = |header: &GroupHeader| match before {
                Some((sequence, epoch)) => header.sequence == sequence + 1 && header.epoch >= epoch,
                None => header.epoch == segment.epoch || !begins,
            };
            let group = match self.group_at(number, &segment, &content, at)? {
                Ok(group) if follows(&group.header) => group,
                Ok(_) => {
                    return self.failure(number, at, "a group is missing before this one", extent, found);
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
            return Err(damaged(number, at as u64, "a group reaches over the known end of the segment"));
        }
        Ok(())
    }

    /// Part of the planted bug that stops at a torn tail which an earlier recovery has passed.
    fn has_torn_bytes_behind(&self, number: u64, extent: u64) -> Result<bool, StorageError> {
        let content = self.content(number)?;
        let Some(segment) = self.segment_header(number, &content)? else { return Ok(false) };
        let mut at = usize::try_from(extent).unwrap_or(usize::MAX);
        while let Ok(group) = self.group_at(number, &segment, &content, at)? {
            at = group.end;
        }
        Ok(!is_zero(content.get(at..).unwrap_or_default()))
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
                // What a snapshot has taken the place of.
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
        self.pending.push_back(Pending { at: group.header.at, end, sequence, has_records, entries });
    }

    /// Where the log goes on in its head. What is proved to be durable are the groups before the last watermark and,
    /// by `log.meta`, the first group of the head. If nothing but a group without records lies behind that, the next
    /// group takes its place: nothing that was acknowledged is written a second time.
    fn rested(&self, head: u64, found: &Recovered) -> Result<Option<Rested>, StorageError> {
        if head != self.record.opened || found.report.torn_at.is_some() {
            return Ok(None);
        }
        let content = self.content(head)?;
        let Some(header) = self.segment_header(head, &content)? else { return Ok(None) };
        let end = found.durable.max(Position { segment: head, offset: self.first_group_end });
        let mut behind = self.pending.iter().filter(|group| group.at >= end);
        let (last, others) = (behind.next(), behind.count());
        // A log that begins anew behind the group without records must not go on in its place.
        let begins_later = self.record.starts.values().any(|start| *start > end);
        if begins_later || others > 0 || last.is_some_and(|group| group.has_records || group.at != end) {
            return Ok(None);
        }
        Ok(Some(Rested {
            end,
            alignment: header.alignment,
            next_sequence: last.map_or(found.last_sequence + 1, |group| group.sequence),
            used_to: last.map_or(end.offset, |group| group.end),
        }))
    }

    /// Decides between damage and a torn tail, at the first place that does not verify.
    fn failure(
        &self,
        number: u64,
        at: usize,
        what: &str,
        extent: Option<u64>,
        found: &mut Recovered,
    ) -> Result<(), StorageError> {
        let here = Position { segment: number, offset: at as u64 };
        if extent.is_some() {
            let what = format!("{what}, and a later segment says that it was stored");
            return Err(damaged(number, here.offset, &what));
        }
        if self.record.starts.values().any(|start| here < *start) {
            let what = format!("{what}, and log.meta says that it was stored");
            return Err(damaged(number, here.offset, &what));
        }
        let proof = if cfg!(mutant = "watermark-ignored") { None } else { self.proof_of_damage(here)? };
        if let Some((place, proof)) = proof {
            let what =
                if place == here { what } else { "the segment's header or first group does not verify" };
            let what = format!("{what}, and the group at {proof} says that it was stored");
            return Err(damaged(place.segment, place.offset, &what));
        }
        for (later, _) in self.files.range(number..) {
            let content = self.content(*later)?;
            let header = self.segment_header(*later, &content)?;
            let from = match *later == number {
                true => at,
                false => header.map_or(0, |header| header.alignment.bytes()),
            };
            let Some(end) = self.end_of_torn_bytes(*later, header.as_ref(), &content, from) else { continue };
            found.report.torn_bytes += (end - from) as u64;
            found.report.torn_at.get_or_insert((file_name(*later), from as u64));
        }
        Ok(())
    }

    /// Where the bytes end that an interrupted write left behind `from`, if there are any. Only for
    /// the report.
    fn end_of_torn_bytes(
        &self,
        number: u64,
        header: Option<&SegmentHeader>,
        content: &Bytes,
        from: usize,
    ) -> Option<usize> {
        let last_written = |content: &[u8]| content.iter().rposition(|byte| *byte != 0).map(|last| last + 1);
        let step = match header {
            Some(header) if header.recycled => header.alignment.bytes(),
            Some(_) => return last_written(content).filter(|end| *end > from),
            // Renamed for reuse and not begun: nothing was written.
            None if SegmentHeader::decode(content).is_ok() => return None,
            // Its header is torn: nothing but that was written.
            None => return last_written(content.get(..Alignment::Page.bytes()).unwrap_or(content)),
        };
        // What the file's earlier life has left is not torn; what begins with a header of this one is.
        let boundaries = (from..content.len()).step_by(step);
        let torn = boundaries.filter_map(|at| {
            let (group, _) = GroupHeader::decode(content.get(at..)?).ok()?;
            let end = (at + GROUP_HEADER_LEN).saturating_add(group.body_len as usize);
            self.belongs(&group, number, at).then_some(end.min(content.len()))
        });
        torn.max()
    }

    /// Looks at every later boundary and every later segment for a group whose watermark lies
    /// past `failure`. Returns the place that is damaged and, in words, the group that proves it.
    fn proof_of_damage(&self, failure: Position) -> Result<Option<(Position, String)>, StorageError> {
        for number in self.files.range(failure.segment..).map(|(number, _)| *number) {
            let content = self.content(number)?;
            let header = self.segment_header(number, &content)?;
            let step = header.map_or(SMALLEST_ALIGNMENT, |header| header.alignment.bytes());
            let from = if number == failure.segment { failure.offset as usize + step } else { step };
            for at in (from..content.len()).step_by(step) {
                let Some(bytes) = content.get(at..) else { break };
                let Ok((group, _)) = GroupHeader::decode(bytes) else { continue };
                if !self.belongs(&group, number, at) {
                    continue;
                }
                let proof = format!("offset {at} of {}", file_name(number));
                if group.watermark.segment > failure.segment {
                    let offset = header.map_or(0, |header| header.alignment.bytes() as u64);
                    return Ok(Some((Position { segment: group.watermark.segment, offset }, proof)));
                }
                if group.watermark > failure {
                    return Ok(Some((failure, proof)));
                }
            }
        }
        Ok(None)
    }
}

impl RecoveredGroup {
    fn put(&mut self, entry: &LogEntry, slot: Slot) {
        let index = entry.id.index;
        self.lowest = if self.lowest == LogIndex::ZERO { index } else { self.lowest.min(index) };
        // What is read may end before the base: the last purged entries were in a group that is torn.
        let last = self.entries.back().map_or(self.base.index, |(last, _)| last.id.index);
        let next = last.max(self.base.index).next();
        if index > next && self.gap.is_none() {
            self.gap = Some(Gap { missing: next, before: index, segment: slot.segment, offset: slot.offset });
        }
        self.gap.take_if(|gap| index <= gap.missing);
        let keep = self.entries.partition_point(|(head, _)| head.id.index < index);
        self.entries.truncate(keep);
        drop(self.memberships.split_off(&index));
        drop(self.skips.split_off(&index));
        self.entries.push_back((entry.head(), slot));
        match entry.kind {
            EntryKind::Membership => drop(self.memberships.insert(index, entry.data.clone())),
            EntryKind::Skip => drop(self.skips.insert(index, entry.data.clone())),
            _ => {}
        }
    }

    /// Segments are purged as a whole, so some entries up to the base are still there.
    fn forget_purged(&mut self) {
        let base = self.base.index;
        let purged = self.entries.partition_point(|(head, _)| head.id.index <= base);
        let last_purged = purged.checked_sub(1).and_then(|last| self.entries.get(last));
        self.at_base = last_purged.filter(|(head, _)| head.id.index == base).map(|(head, _)| head.id.term);
        self.entries.drain(..purged);
        self.memberships = self.memberships.split_off(&base.next());
        self.skips = self.skips.split_off(&base.next());
    }
}

fn damaged(number: u64, offset: u64, what: &str) -> StorageError {
    StorageError::Damaged { segment: file_name(number), offset, what: what.to_owned() }
}
