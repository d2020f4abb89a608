//! Visits the groups of a log in the order in which they were written, and every place that does
//! not verify. Whether such a place is damage or the end of the log is decided as in
//! `recover/torn.rs`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::Survey;
use super::parts::{Begin, Part, open};
use super::report::TornTail;
use super::tail::{end_of_torn_bytes, find_header};
use crate::StorageError;
use crate::fs::FsFile;
use crate::log::file_engine::LOG_DIR;
use crate::log::frame::{FORMAT_VERSION, GroupHeader, Position};
use crate::log::group_reader::{BadGroup, WholeGroup, is_bad_sector, read_group};
use crate::log::latch::io_error;
use crate::log::segment::SegmentHeader;
use crate::log::segment_name::file_name;

const MISSING: &str = "the segment is missing";
const GAP: &str = "a group is missing before this one";
const HEADER: &str = "the segment's header does not verify";

/// What a walk meets.
pub(super) enum Step {
    /// A segment begins; the length of its file.
    Segment {
        number: u64,
        epoch: Option<u64>,
        len: u64,
    },
    /// A process that works in the directory has purged a segment meanwhile.
    Purged,
    Group(WholeGroup),
    Broken(Broken),
    /// An interrupted write at the end of the log.
    Torn(TornTail),
}

/// A place that does not verify.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) at: Position,
    pub(super) to: Option<u64>,
    pub(super) what: String,
    /// Why a start refuses it, if not as damage.
    pub(super) error: Option<StorageError>,
    /// Header and first group of the segment are not both whole: recovery skips such a segment as a
    /// whole if a snapshot covers the damage.
    pub(super) is_beginning: bool,
    /// The first group after a header that does not verify is whole.
    pub(super) is_header_only: bool,
}

impl Broken {
    pub(super) fn at(number: u64, offset: u64, what: &str) -> Self {
        let at = Position { segment: number, offset };
        let is_beginning = offset == 0;
        let (what, is_header_only) = (what.to_owned(), false);
        Self { at, to: None, what, error: None, is_beginning, is_header_only }
    }

    /// The error of a start.
    pub(super) fn error(&self) -> StorageError {
        self.error.clone().unwrap_or_else(|| StorageError::Damaged {
            segment: file_name(self.at.segment),
            offset: self.at.offset,
            what: self.what.clone(),
        })
    }
}

pub(super) type Visit<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

/// An open segment.
struct Reader<'a> {
    survey: &'a Survey,
    part: &'a Part,
    is_newest: bool,
    file: Arc<dyn FsFile>,
    path: PathBuf,
    layout: SegmentHeader,
    /// No group counts beyond this offset.
    stop: u64,
}

/// Sequence and epoch of the last group.
type Before = Option<(u64, u64)>;

/// Whether a group can be a later one of the same segment.
fn rises(header: &GroupHeader, (sequence, epoch): (u64, u64)) -> bool {
    header.sequence > sequence && header.epoch >= epoch
}

impl Survey {
    pub(super) fn path_of(&self, number: u64) -> PathBuf {
        self.dir.join(LOG_DIR).join(file_name(number))
    }

    /// Visits the log up to `end`. Stops early if `visit` says so.
    pub(super) fn walk(&self, end: Position, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        for (at, part) in self.parts.iter().enumerate() {
            let is_newest = at + 1 == self.parts.len();
            if self.walk_part(part, is_newest, end, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn walk_part(
        &self,
        part: &Part,
        is_newest: bool,
        end: Position,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StorageError> {
        let number = part.number;
        let opened = open(&*self.fs, &self.dir.join(LOG_DIR), number)?;
        let len = opened.as_ref().map_or(Ok(0), |(file, _)| file.len());
        let len = len.map_err(io_error("read the length of", &self.path_of(number)))?;
        let header = match &part.begin {
            Begin::Header(header) => Some(*header),
            _ => None,
        };
        let segment = Step::Segment { number, epoch: header.map(|header| header.epoch), len };
        if visit(segment).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let layout = match &part.begin {
            Begin::Header(layout) | Begin::Damaged(layout) => *layout,
            Begin::Missing => return Ok(visit(Step::Broken(Broken::at(number, 0, MISSING)))),
            Begin::Foreign { what, error } => {
                let broken = Broken { error: error.clone(), ..Broken::at(number, 0, what) };
                return Ok(visit(Step::Broken(broken)));
            }
        };
        let Some((file, path)) = opened else {
            return Ok(visit(match self.holder {
                Some(_) => Step::Purged,
                None => Step::Broken(Broken::at(number, 0, MISSING)),
            }));
        };
        let limit = if end.segment == number { end.offset } else { u64::MAX };
        let stop = part.extent.unwrap_or(len).min(limit);
        let reader = Reader { survey: self, part, is_newest, file, path, layout, stop };
        if reader.read(visit)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let filled = self.record.filled;
        if number == self.record.opened && len < filled && !self.record_is_lost {
            let what = format!(
                "the file has {len} bytes, but log.meta says that {filled} were written and \
                 synced; it was cut off"
            );
            return Ok(visit(Step::Broken(Broken::at(number, len, &what))));
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Reader<'_> {
    /// The first boundary after the header.
    fn begin(&self) -> u64 {
        self.layout.alignment.bytes() as u64
    }

    /// Returns the place of the first group that counts, and visits what is wrong before it.
    fn first(&self, visit: &mut Visit<'_>) -> Result<ControlFlow<(), u64>, StorageError> {
        let number = self.part.number;
        if matches!(self.part.begin, Begin::Damaged(_)) {
            let to = self.next_whole(0, None)?;
            let is_header_only = to == Some(self.begin());
            let broken = Broken { to, is_header_only, ..Broken::at(number, 0, HEADER) };
            return Ok(match visit(Step::Broken(broken)) {
                ControlFlow::Break(()) => ControlFlow::Break(()),
                ControlFlow::Continue(()) => ControlFlow::Continue(to.unwrap_or(self.stop)),
            });
        }
        if self.part.chain_is_broken {
            let what = "the first group of the segment names no segment before it";
            if visit(Step::Broken(Broken::at(number, 0, what))).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let intact = self.survey.record.intact_from;
        let counts = if intact.segment == number { intact.offset } else { 0 };
        Ok(ControlFlow::Continue(self.begin().max(counts)))
    }

    /// Reads the groups of the segment.
    fn read(&self, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, StorageError> {
        let number = self.part.number;
        let ControlFlow::Continue(mut at) = self.first(visit)? else {
            return Ok(ControlFlow::Break(()));
        };
        let mut before: Before = None;
        let mut follows_begin = at == self.begin() && matches!(self.part.begin, Begin::Header(_));
        while at < self.stop {
            let read = self.group_at(at)?;
            let follows = |header: &GroupHeader| match before {
                Some((sequence, epoch)) => header.sequence == sequence + 1 && header.epoch >= epoch,
                None => !follows_begin || header.epoch == self.layout.epoch,
            };
            let (bad, to) = match read {
                Ok(group) if follows(&group.header) => {
                    before = Some((group.header.sequence, group.header.epoch));
                    at = group.end;
                    if visit(Step::Group(group)).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    continue;
                }
                Ok(group) => {
                    let is_later = before.is_none_or(|before| rises(&group.header, before));
                    let to = if is_later { Some(at) } else { self.next_whole(at, before)? };
                    (BadGroup { what: GAP, version: None, header: None }, to)
                }
                Err(bad) => {
                    let to = self.after_bad(at, &bad, before)?;
                    (bad, to)
                }
            };
            match self.on_bad(at, &bad, to)? {
                // Its file has become another segment's while it was read.
                Outcome::Damage(_) if self.is_purged()? => return Ok(visit(Step::Purged)),
                Outcome::Damage(broken) => {
                    let to = broken.to;
                    if visit(Step::Broken(broken)).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    let Some(to) = to else { return Ok(ControlFlow::Continue(())) };
                    (at, before, follows_begin) = (to, None, false);
                }
                Outcome::End(torn) => {
                    return Ok(
                        torn.map_or(ControlFlow::Continue(()), |torn| visit(Step::Torn(torn)))
                    );
                }
            }
        }
        if at > self.stop && self.part.extent.is_some_and(|extent| at > extent) {
            let what = "a group extends past the known end of the segment";
            return Ok(visit(Step::Broken(Broken::at(number, at, what))));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a process that works in the directory has purged the segment meanwhile.
    fn is_purged(&self) -> Result<bool, StorageError> {
        let dir = self.survey.dir.join(LOG_DIR);
        Ok(self.survey.holder.is_some()
            && open(&*self.survey.fs, &dir, self.part.number)?.is_none())
    }

    fn group_at(&self, at: u64) -> Result<Result<WholeGroup, BadGroup>, StorageError> {
        // A group may end after `stop`, which is then reported.
        match read_group(&*self.file, &self.layout, at, self.stop) {
            Err(error) if is_bad_sector(&error) => {
                Ok(Err(BadGroup { what: "it cannot be read", version: None, header: None }))
            }
            read => read.map_err(io_error("read", &self.path)),
        }
    }

    /// Returns the next place with a whole group after `at`, before the end of the segment.
    fn next_whole(&self, at: u64, before: Before) -> Result<Option<u64>, StorageError> {
        let step = self.layout.alignment.bytes() as u64;
        let mut from = at + step;
        while from < self.stop {
            let mut wanted =
                |_: u64, header: &GroupHeader| before.is_none_or(|before| rises(header, before));
            let found = find_header(&*self.file, &self.path, &self.layout, from, &mut wanted)?;
            let Some((place, _)) = found.filter(|(place, _)| *place < self.stop) else {
                return Ok(None);
            };
            if self.group_at(place)?.is_ok() {
                return Ok(Some(place));
            }
            from = place + step;
        }
        Ok(None)
    }

    /// Returns the next whole group after a bad one.
    fn after_bad(
        &self,
        at: u64,
        bad: &BadGroup,
        before: Before,
    ) -> Result<Option<u64>, StorageError> {
        // What lies inside of a group is no group, whatever it looks like.
        let Some((_, end)) = bad.header else { return self.next_whole(at, before) };
        if end < self.stop && self.group_at(end)?.is_ok() {
            return Ok(Some(end));
        }
        self.next_whole(end, before)
    }

    /// Decides whether `at`, where no group follows, is damaged or the end.
    fn on_bad(&self, at: u64, bad: &BadGroup, to: Option<u64>) -> Result<Outcome, StorageError> {
        let number = self.part.number;
        let here = Position { segment: number, offset: at };
        let is_first = at == self.begin();
        let broken = Broken { to, is_beginning: is_first, ..Broken::at(number, at, bad.what) };
        if let Some(found) = bad.version {
            let supported = FORMAT_VERSION.into();
            let error =
                StorageError::UnsupportedFormat { path: self.path.clone(), found, supported };
            return Ok(Outcome::Damage(Broken { error: Some(error), ..broken }));
        }
        let reason =
            |why: &str| Broken { what: format!("{}, although {why}", bad.what), ..broken.clone() };
        if self.part.extent.is_some() {
            return Ok(Outcome::Damage(reason("a later segment says that it was stored")));
        }
        let record = &self.survey.record;
        if record.starts.values().any(|start| here < *start)
            || (number == record.opened && is_first)
        {
            return Ok(Outcome::Damage(reason("log.meta says that it was stored")));
        }
        if let Some(proof) = self.proof_of_damage(here)? {
            // A process that works in the directory may have written the group meanwhile.
            if self.survey.holder.is_some() && self.group_at(at)?.is_ok() {
                return Ok(Outcome::End(None));
            }
            let proof = format!("the group at {proof} says that it was stored");
            return Ok(Outcome::Damage(reason(&proof)));
        }
        if !self.is_newest {
            return Ok(to.map_or(Outcome::End(None), |_| Outcome::Damage(broken)));
        }
        if self.survey.holder.is_some() {
            // What a process writes at this moment is not torn yet.
            return Ok(Outcome::End(None));
        }
        let end = end_of_torn_bytes(&*self.file, &self.path, &self.layout, at)?;
        let torn = |end: u64| TornTail { path: self.path.clone(), offset: at, bytes: end - at };
        Ok(Outcome::End(end.filter(|end| *end > at).map(torn)))
    }

    /// Returns the place of a group, here or in a later file, that was written when everything up
    /// to a place after `here` was durable.
    fn proof_of_damage(&self, here: Position) -> Result<Option<String>, StorageError> {
        let mut is_proof = |_: u64, group: &GroupHeader| group.watermark > here;
        let from = here.offset + self.begin();
        let found = find_header(&*self.file, &self.path, &self.layout, from, &mut is_proof)?;
        if let Some((place, _)) = found {
            return Ok(Some(format!("offset {place} of {}", file_name(here.segment))));
        }
        let fs = &*self.survey.fs;
        for number in self.survey.later_files(here.segment) {
            let Some((file, path)) = open(fs, &self.survey.dir.join(LOG_DIR), number)? else {
                continue;
            };
            let layout = SegmentHeader { number, ..self.layout };
            let from = layout.alignment.bytes() as u64;
            // A process that works in the directory has begun the next segment meanwhile, which
            // says that this one ends here.
            let mut is_next = |at: u64, group: &GroupHeader| at == from && group.watermark == here;
            if self.survey.holder.is_some()
                && find_header(&*file, &path, &layout, from, &mut is_next)?.is_some()
            {
                return Ok(None);
            }
            if let Some((place, _)) = find_header(&*file, &path, &layout, from, &mut is_proof)? {
                return Ok(Some(format!("offset {place} of {}", file_name(number))));
            }
        }
        Ok(None)
    }
}

/// What a place without a group is.
enum Outcome {
    Damage(Broken),
    End(Option<TornTail>),
}

impl Survey {
    /// Returns the numbers of the files after the newest segment.
    fn later_files(&self, number: u64) -> Vec<u64> {
        let unused =
            self.unused.iter().filter_map(|name| crate::log::segment_name::number_of(name));
        unused.filter(|later| *later > number).collect()
    }
}
