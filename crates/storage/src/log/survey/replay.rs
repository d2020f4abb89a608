//! The first pass: which records count, what is known at the end, and what a start would do.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, Term};

use super::directory::Survey;
use super::report::{SegmentSummary, StartOutcome, TornTail};
use super::walk::{Broken, Step};
use crate::log::frame::{Framed, GROUP_HEADER_LEN, Position, Record};
use crate::log::group_reader::WholeGroup;
use crate::log::recover::{damaged, not_covered};
use crate::{LogEntry, StorageError};

/// The most damaged places that recovery skips.
const PLACES_MAX: u64 = crate::log::recover::PLACES_MAX as u64;

/// The result of the first pass over a log.
#[derive(Clone, Debug)]
pub struct LogSummary {
    /// The last hard state that can be read; `None` if there is none.
    pub hard_state: Option<HardState>,
    /// Whether damage follows the last hard state: a later term or vote may be lost.
    pub hard_state_may_be_older: bool,
    /// The segment and the offset up to which the log is known to be durable.
    pub watermark: (u64, u64),
    /// The last purged entry; `None` if the record that knows it is lost.
    pub base: Option<LogId>,
    /// Log time at `base`, in UNIX milliseconds, if it is known.
    pub base_time_ms: Option<u64>,
    /// The first entry that counts.
    pub first: Option<LogId>,
    /// The last entry that counts.
    pub last: Option<LogId>,
    /// The last membership entry that counts, with its payload.
    pub membership: Option<(LogIndex, Bytes)>,
    /// The payload of the last membership entry up to `base`, if the log knows it.
    pub base_membership: Option<Bytes>,
    /// The segments, oldest first.
    pub segments: Vec<SegmentSummary>,
    /// What a crash left half-written at the end.
    pub torn: Option<TornTail>,
    /// The number of damaged places.
    pub damaged: u64,
    /// If the log is damaged: a start succeeds with a whole snapshot up to this index or a later
    /// one. `None` if no snapshot would help.
    pub covered_by: Option<LogIndex>,
    /// Whether entries and a hard state follow the last damaged place. Then `last` is the last
    /// entry that the log had, and `hard_state` its last one, whatever is lost.
    pub continues_after_damage: bool,
    /// What a start would do.
    pub start: StartOutcome,
    pub(super) cuts: Vec<Cut>,
    /// Where the first pass ended: the second one reads no further.
    pub(super) end: (u64, u64),
}

/// A record at this place replaces the entry with this index and everything after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cut {
    pub(super) at: Position,
    pub(super) index: LogIndex,
}

/// The place of a record in a group.
pub(super) fn place_of(group: &WholeGroup, framed: &Framed) -> Position {
    let Position { segment, offset } = group.header.at;
    Position { segment, offset: offset + (GROUP_HEADER_LEN + framed.at) as u64 }
}

impl Survey {
    /// Reads the whole log once. `covered` is the last included entry of the newest snapshot that
    /// is known to be whole: it decides what a start would do about damage. `progress` receives the
    /// number of bytes that were read since its last call, and ends the work by `Break`.
    ///
    /// # Errors
    /// [`StorageError::Io`] if a file must not be read. Damage is part of the result.
    pub fn read_log(
        &self,
        covered: Option<LogId>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<LogSummary, StorageError> {
        let mut replay = Replay::new(self, covered);
        let all = Position { segment: u64::MAX, offset: 0 };
        self.walk(all, &mut |step| {
            let bytes = match &step {
                Step::Group(group) => group.end - group.header.at.offset,
                _ => 0,
            };
            replay.take(step);
            progress(bytes)
        })?;
        Ok(replay.summary())
    }

    /// As [`Survey::read_log`], up to the first damaged place: the log as it was before what is
    /// written there. [`Survey::entries`] with the result visits the entries that counted then.
    ///
    /// # Errors
    /// As [`Survey::read_log`].
    pub fn read_log_before_damage(
        &self,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<LogSummary, StorageError> {
        let mut replay = Replay::new(self, None);
        let mut damaged_at = None;
        let all = Position { segment: u64::MAX, offset: 0 };
        self.walk(all, &mut |step| {
            let bytes = match &step {
                Step::Group(group) => group.end - group.header.at.offset,
                Step::Broken(broken) => {
                    damaged_at = Some((broken.at.segment, broken.at.offset));
                    return ControlFlow::Break(());
                }
                _ => 0,
            };
            replay.take(step);
            progress(bytes)
        })?;
        let summary = replay.summary();
        Ok(LogSummary { end: damaged_at.unwrap_or(summary.end), ..summary })
    }

    pub(super) fn base(&self) -> LogId {
        self.record.bases.get(&self.group()).copied().unwrap_or_default()
    }

    /// Returns the entry of a record that is part of the log of this directory's Raft group.
    pub(super) fn counted<'r>(
        &self,
        group: &WholeGroup,
        record: &'r Record,
    ) -> Option<&'r LogEntry> {
        match record {
            Record::Entry { group: id, entry } => {
                let is_ours = *id == self.group() && self.record.counts(*id, group.header.at);
                is_ours.then_some(entry)
            }
            Record::HardState { .. } => None,
        }
    }
}

/// The state of the first pass.
struct Replay<'a> {
    survey: &'a Survey,
    covered: Option<LogId>,
    hard_state: Option<HardState>,
    hard_state_may_be_older: bool,
    watermark: Position,
    /// The last entry so far.
    last: Option<LogId>,
    whole: Tail,
    /// Where the log begins is unknown: with the next entry.
    begins_anew: bool,
    /// What was read after the last damage, for a log that begins after a snapshot.
    rest: Tail,
    /// The segment whose beginning is damaged: recovery skips all of it.
    skipped: Option<u64>,
    cuts: Vec<Cut>,
    memberships: BTreeMap<LogIndex, Bytes>,
    segments: Vec<SegmentSummary>,
    torn: Option<TornTail>,
    damaged: u64,
    first_damage: Option<Broken>,
    is_other_version: bool,
    /// Raft groups besides this directory's own.
    has_others: bool,
    end: Position,
}

/// Entries that are read from some place on, as `RecoveredGroup::put` of recovery keeps them, but
/// without the list.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    base: LogIndex,
    /// The last entry and the first one that counts.
    last: Option<LogIndex>,
    first: Option<LogId>,
    lowest: Option<LogIndex>,
    /// The first index that is missing, and the place of the entry that follows it.
    gap: Option<(LogIndex, LogIndex, Position)>,
    /// The term of the entry at `base`.
    at_base: Option<Term>,
    has_hard_state: bool,
}

impl Tail {
    fn after(base: LogIndex) -> Self {
        Self { base, ..Self::default() }
    }

    fn put(&mut self, id: LogId, at: Position) {
        let LogId { term, index } = id;
        self.lowest = Some(self.lowest.map_or(index, |lowest| lowest.min(index)));
        let next = self.last.unwrap_or(self.base).max(self.base).next();
        if index > next && self.gap.is_none() {
            self.gap = Some((next, index, at));
        }
        self.gap.take_if(|(missing, ..)| index <= *missing);
        self.last = Some(index);
        if index <= self.base {
            self.first = None;
            self.at_base = (index == self.base).then_some(term);
        } else if self.first.is_none_or(|first| index <= first.index) {
            self.first = Some(id);
        }
    }
}

impl<'a> Replay<'a> {
    fn new(survey: &'a Survey, covered: Option<LogId>) -> Self {
        Self {
            survey,
            covered,
            hard_state: None,
            hard_state_may_be_older: false,
            watermark: Position::default(),
            last: None,
            whole: Tail::after(survey.base().index),
            begins_anew: survey.record_is_lost,
            rest: Tail::default(),
            skipped: None,
            cuts: Vec::new(),
            memberships: BTreeMap::new(),
            segments: Vec::new(),
            torn: None,
            damaged: 0,
            first_damage: None,
            is_other_version: false,
            has_others: survey.record.bases.keys().any(|group| *group != survey.group()),
            end: Position::default(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Segment { number, epoch, len } => self.segments.push(SegmentSummary {
                path: self.survey.path_of(number),
                number,
                epoch,
                first: None,
                last: None,
                len,
                end: 0,
                groups: 0,
                damaged: 0,
            }),
            Step::Purged => self.begins_anew = true,
            Step::Group(group) => self.take_group(&group),
            Step::Broken(broken) => self.take_broken(broken),
            Step::Torn(torn) => self.torn = Some(torn),
        }
    }

    fn take_group(&mut self, group: &WholeGroup) {
        self.watermark = group.header.watermark;
        self.end = Position { segment: group.header.at.segment, offset: group.end };
        if let Some(segment) = self.segments.last_mut() {
            segment.groups += 1;
            segment.end = group.end;
        }
        for framed in &group.records {
            match &framed.record {
                Record::HardState { group: id, state } => self.take_hard_state(*id, *state),
                Record::Entry { group: id, .. } if *id != self.survey.group() => {
                    self.has_others = true;
                }
                record => {
                    if let Some(entry) = self.survey.counted(group, record) {
                        self.take_entry(entry, place_of(group, framed));
                    }
                }
            }
        }
    }

    fn take_hard_state(&mut self, group: GroupId, state: HardState) {
        if group != self.survey.group() {
            self.has_others = true;
            return;
        }
        self.hard_state = Some(state);
        self.hard_state_may_be_older = false;
        self.rest.has_hard_state |= !self.is_skipped();
        // Committed entries are never replaced, so older memberships are not needed again.
        if let Some((index, _)) = self.memberships.range(..=state.commit).next_back() {
            self.memberships = self.memberships.split_off(&{ *index });
        }
    }

    fn take_entry(&mut self, entry: &LogEntry, at: Position) {
        let index = entry.id.index;
        if self.last.is_some_and(|last| index <= last.index) {
            while self.cuts.last().is_some_and(|cut| cut.index >= index) {
                self.cuts.pop();
            }
            self.cuts.push(Cut { at, index });
        }
        self.last = Some(entry.id);
        if std::mem::take(&mut self.begins_anew) {
            self.whole = Tail::after(LogIndex::new(index.get().saturating_sub(1)));
        }
        self.whole.put(entry.id, at);
        if !self.is_skipped() {
            self.rest.put(entry.id, at);
        }
        drop(self.memberships.split_off(&index));
        if entry.kind == EntryKind::Membership {
            self.memberships.insert(index, entry.data.clone());
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.first.get_or_insert(index);
            segment.last = Some(index);
        }
    }

    fn take_broken(&mut self, broken: Broken) {
        self.damaged += 1;
        if let Some(segment) = self.segments.last_mut() {
            segment.damaged += 1;
        }
        self.end = self.end.max(Position { offset: broken.at.offset + 1, ..broken.at });
        self.hard_state_may_be_older = true;
        if broken.is_beginning {
            self.skipped = Some(broken.at.segment);
        }
        self.is_other_version |= broken.error.is_some();
        self.rest = Tail::after(self.covered.map_or(LogIndex::ZERO, |covered| covered.index));
        self.first_damage.get_or_insert(broken);
    }

    /// Whether recovery skips the group that was read last, if it begins after a snapshot.
    fn is_skipped(&self) -> bool {
        self.skipped == Some(self.end.segment)
    }

    /// Whether the snapshot and the entries after the last damage are all that the log held:
    /// `holds_the_rest` of recovery.
    fn is_covered(&self, covered: LogId) -> bool {
        let rest = &self.rest;
        let reaches = rest.lowest.is_some_and(|lowest| lowest > LogIndex::ZERO);
        let fits = rest.at_base.is_none_or(|term| term == covered.term);
        let follows = rest.first.is_none_or(|first| first.term >= covered.term);
        !self.has_others
            && !self.is_other_version
            && self.damaged <= PLACES_MAX
            && covered.index >= self.survey.base().index
            && rest.gap.is_none()
            && rest.has_hard_state
            && reaches
            && fits
            && follows
    }

    /// Returns the lowest last included index of a whole snapshot that would cover the damage.
    fn covered_by(&self) -> Option<LogIndex> {
        let lowest = self.rest.lowest.filter(|_| {
            self.first_damage.is_some()
                && self.rest.has_hard_state
                && !self.has_others
                && !self.is_other_version
                && self.damaged <= PLACES_MAX
                && self.survey.refusal().is_none()
        })?;
        Some(LogIndex::new(lowest.get().saturating_sub(1)).max(self.survey.base().index))
    }

    fn start(&self) -> StartOutcome {
        if let Some(error) = self.survey.refusal() {
            return StartOutcome::Refused(error.clone());
        }
        match (&self.first_damage, self.whole.gap) {
            (None, None) => StartOutcome::Whole,
            (Some(_), _) if self.covered.is_some_and(|covered| self.is_covered(covered)) => {
                StartOutcome::After(self.covered.unwrap_or_default())
            }
            (Some(broken), _) => StartOutcome::Refused(not_covered(broken.error(), self.covered)),
            (None, Some((missing, before, at))) => StartOutcome::Refused(gap(missing, before, at)),
        }
    }

    fn summary(mut self) -> LogSummary {
        let (start, covered_by) = (self.start(), self.covered_by());
        let base = self.survey.base();
        let facts = self.survey.record.facts.get(&self.survey.group());
        let payload = facts.map(|facts| facts.membership.clone()).filter(|it| !it.is_empty());
        self.memberships = self.memberships.split_off(&base.index.next());
        let is_unexplained = self.first_damage.is_none() && self.whole.gap.is_some();
        let end = match self.survey.holder {
            Some(_) => self.end,
            None => Position { segment: u64::MAX, offset: 0 },
        };
        LogSummary {
            hard_state: self.hard_state,
            hard_state_may_be_older: self.hard_state_may_be_older,
            watermark: (self.watermark.segment, self.watermark.offset),
            base: (!self.survey.record_is_lost).then_some(base),
            base_time_ms: facts.map(|facts| facts.time_ms),
            first: self.whole.first,
            last: self.last.filter(|last| last.index > base.index),
            membership: self.memberships.pop_last(),
            base_membership: payload,
            segments: self.segments,
            torn: self.torn,
            damaged: self.damaged + u64::from(is_unexplained),
            covered_by,
            continues_after_damage: self.first_damage.is_some()
                && self.rest.lowest.is_some()
                && self.rest.has_hard_state,
            start,
            cuts: self.cuts,
            end: (end.segment, end.offset),
        }
    }
}

/// The error for indexes that are missing although nothing is damaged.
pub(super) fn gap(missing: LogIndex, before: LogIndex, at: Position) -> StorageError {
    damaged(at.segment, at.offset, &gap_text(missing, before))
}

pub(super) fn gap_text(missing: LogIndex, before: LogIndex) -> String {
    format!("entry {before} follows, but entry {missing} is missing")
}
