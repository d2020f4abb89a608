//! Files of purged segments that are kept for reuse.
//!
//! They keep their old names, below the first segment that `log.meta` names, where recovery does
//! not read: keeping one changes nothing on the disk.

use std::sync::Arc;

use crate::log::segment::Spare;
use crate::log::segment_files::{SegmentFile, SegmentFiles};

/// A bounded number of [`Spare`]s.
#[derive(Debug)]
pub(crate) struct Spares {
    kept: Vec<Spare>,
    max: usize,
    /// Length of a full segment.
    full: u64,
    /// Bytes that a segment may have beyond that.
    reserve: u64,
}

impl Spares {
    /// Keeps up to `max` files. `full` is the length of a full segment, which may have up to
    /// `reserve` bytes more.
    pub(crate) fn new(max: usize, full: u64, reserve: u64) -> Self {
        Self { kept: Vec::new(), max, full, reserve }
    }

    /// Whether the limit is reached, so that no further file is kept.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= self.max
    }

    /// Whether one more file of this length would be kept: the limit is not reached, most of the
    /// next segment fits into it, and it does not occupy more space than a segment should.
    pub(crate) fn wants(&self, len: u64) -> bool {
        !self.is_full() && (self.full / 2..=self.full + self.reserve).contains(&len)
    }

    /// Keeps the file of a purged segment.
    pub(crate) fn keep(&mut self, file: Arc<SegmentFile>, len: u64) {
        self.kept.push(Spare { file, len });
    }

    /// Returns one to be removed, so that its space and its handle become free.
    pub(crate) fn give_up(&mut self) -> Option<Spare> {
        self.kept.pop()
    }

    /// Returns a file without readers. A read that was in progress when its segment was purged
    /// continues, and must find the old entries there.
    pub(crate) fn take(&mut self, files: &SegmentFiles) -> Option<Spare> {
        let free = self.kept.iter().position(|spare| files.is_unread(&spare.file))?;
        Some(self.kept.remove(free))
    }
}
