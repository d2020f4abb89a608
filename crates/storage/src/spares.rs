//! Files of purged segments that wait to be used again.
//!
//! They lie under their old names, below the first segment that `log.meta` names, where recovery
//! does not look: keeping one changes nothing on the disk.

use std::sync::Arc;

use crate::segment::Spare;
use crate::segment_files::{SegmentFile, SegmentFiles};

/// A bounded number of [`Spare`]s.
#[derive(Debug)]
pub(crate) struct Spares {
    kept: Vec<Spare>,
    max: usize,
    /// Length of a full segment.
    full: u64,
    /// What a segment may have beyond that.
    reserve: u64,
}

impl Spares {
    /// Keeps up to `max` files. `full` is the length of a full segment, which has `reserve` bytes more at most.
    pub(crate) fn new(max: usize, full: u64, reserve: u64) -> Self {
        Self { kept: Vec::new(), max, full, reserve }
    }

    /// Whether no more files are kept, whatever their length.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= self.max
    }

    /// Whether one more file of this length would be kept: there is room for it, most of the next
    /// segment fits into it, and it does not hold more space than a segment should.
    pub(crate) fn wants(&self, len: u64) -> bool {
        !self.is_full() && (self.full / 2..=self.full + self.reserve).contains(&len)
    }

    /// Keeps the file of a segment that is purged.
    pub(crate) fn keep(&mut self, file: Arc<SegmentFile>, len: u64) {
        self.kept.push(Spare { file, len });
    }

    /// Gives one up, so that its space and its handle serve something else.
    pub(crate) fn give_up(&mut self) -> Option<Spare> {
        self.kept.pop()
    }

    /// A file that nobody reads. A read that was under way when its segment was purged goes on, and must find
    /// the old entries there.
    pub(crate) fn take(&mut self, files: &SegmentFiles) -> Option<Spare> {
        let free = self.kept.iter().position(|spare| files.is_unread(&spare.file))?;
        Some(self.kept.remove(free))
    }
}
