//! The second pass: the entries that count, in order, and the damage between them.

use std::ops::ControlFlow;

use d_engine_core::LogIndex;

use super::directory::Survey;
use super::replay::{LogSummary, gap_text, place_of};
use super::report::{Damage, Loss, StoredEntry};
use super::walk::{Broken, Step};
use crate::StorageError;
use crate::log::frame::Position;

/// The indexes to visit, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first one.
    pub first: LogIndex,
    /// The last one.
    pub last: LogIndex,
}

impl Default for Range {
    /// Everything.
    fn default() -> Self {
        Self { first: LogIndex::ZERO, last: LogIndex::new(u64::MAX) }
    }
}

/// What [`Survey::entries`] finds.
#[derive(Clone, Debug)]
pub enum Found {
    /// An entry that counts.
    Entry(StoredEntry),
    /// A damaged place, before the next entry that can be read.
    Damage(Damage),
}

impl Survey {
    /// Visits the entries in `range` that count, in order, and every damaged place between them,
    /// before it or after it. `summary` is that of the first pass. Returns whether everything was
    /// visited: `Break` after the last entry of `range`, or if `visit` has answered so.
    ///
    /// # Errors
    /// [`StorageError::Io`] if a file must not be read. Damage is visited.
    pub fn entries(
        &self,
        summary: &LogSummary,
        range: Range,
        visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StorageError> {
        let expected = summary.base.map(|base| base.index.next());
        let mut pass = Pass { survey: self, summary, range, expected, cut: 0, waiting: Vec::new() };
        let (segment, offset) = summary.end;
        let mut flow = ControlFlow::Continue(());
        self.walk(Position { segment, offset }, &mut |step| {
            flow = pass.take(step, visit);
            flow
        })?;
        if flow.is_continue() {
            let loss = pass.expected.map_or(Loss::Unknown, Loss::From);
            flow = pass.flush(loss, visit);
        }
        Ok(flow)
    }
}

/// The state of the second pass.
struct Pass<'a> {
    survey: &'a Survey,
    summary: &'a LogSummary,
    range: Range,
    /// The index after the last entry; `None` if the beginning of the log is unknown.
    expected: Option<LogIndex>,
    /// The first cut that lies ahead.
    cut: usize,
    /// Damage since the last entry that counts.
    waiting: Vec<Broken>,
}

/// As many damaged places wait for the entry after them; further ones are visited before it.
const WAITING_MAX: usize = 1_000;

type Visit<'a> = dyn FnMut(Found) -> ControlFlow<()> + 'a;

impl Pass<'_> {
    fn take(&mut self, step: Step, visit: &mut Visit<'_>) -> ControlFlow<()> {
        let group = match step {
            Step::Group(group) => group,
            Step::Broken(broken) => {
                self.waiting.push(broken);
                if self.waiting.len() >= WAITING_MAX {
                    return self.flush(Loss::Unknown, visit);
                }
                return ControlFlow::Continue(());
            }
            Step::Purged => {
                self.expected = None;
                return ControlFlow::Continue(());
            }
            Step::Segment { .. } | Step::Torn(_) => return ControlFlow::Continue(()),
        };
        for framed in &group.records {
            let Some(entry) = self.survey.counted(&group, &framed.record) else { continue };
            let at = place_of(&group, framed);
            let index = entry.id.index;
            if index <= self.survey.base().index || self.is_replaced(at, index) {
                continue;
            }
            self.before(index, at, visit)?;
            self.expected = Some(index.next());
            if index > self.range.last {
                return ControlFlow::Break(());
            }
            if (self.range.first..=self.range.last).contains(&index) {
                let Position { segment, offset } = at;
                let entry = entry.clone();
                visit(Found::Entry(StoredEntry { entry, segment, offset }))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether a later record replaces the entry at `at`.
    fn is_replaced(&mut self, at: Position, index: LogIndex) -> bool {
        let cuts = &self.summary.cuts;
        while cuts.get(self.cut).is_some_and(|cut| cut.at <= at) {
            self.cut += 1;
        }
        cuts.get(self.cut).is_some_and(|cut| cut.index <= index)
    }

    /// Visits the damage before entry `index`, with what is lost there.
    fn before(&mut self, index: LogIndex, at: Position, visit: &mut Visit<'_>) -> ControlFlow<()> {
        let missing = self.expected.filter(|expected| *expected < index);
        if let Some(first) = missing
            && self.waiting.is_empty()
        {
            let what = gap_text(first, index);
            self.waiting.push(Broken::at(at.segment, at.offset, &what));
        }
        let loss = match (self.expected, missing) {
            (_, Some(first)) => Loss::Entries { first, last: LogIndex::new(index.get() - 1) },
            (Some(_), None) => Loss::NoIndex,
            (None, None) => Loss::Unknown,
        };
        self.flush(loss, visit)
    }

    /// Visits the damage that waits: several places without an entry between them have lost the
    /// same entries together.
    fn flush(&mut self, loss: Loss, visit: &mut Visit<'_>) -> ControlFlow<()> {
        let is_shown = match loss {
            Loss::Entries { first, last } => first <= self.range.last && last >= self.range.first,
            Loss::From(first) => first <= self.range.last,
            _ => self.expected.is_none_or(|next| {
                next >= self.range.first && next.get() - 1 <= self.range.last.get()
            }),
        };
        for broken in self.waiting.drain(..) {
            if is_shown {
                let Position { segment, offset } = broken.at;
                let path = self.survey.path_of(segment);
                let Broken { to, what, is_header_only, .. } = broken;
                let loss =
                    if is_header_only && loss == Loss::NoIndex { Loss::Header } else { loss };
                visit(Found::Damage(Damage { path, offset, to, what, loss }))?;
            }
        }
        ControlFlow::Continue(())
    }
}
