//! The content of one file of a [`super::SimFs`], and what a sync and a crash make of it.

use std::collections::BTreeSet;
use std::sync::Arc;

pub(super) const SECTOR: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Inode {
    /// The content that is certain to survive a crash.
    pub(super) durable: Vec<u8>,
    /// The content that a reader sees.
    pub(super) seen: Vec<u8>,
    /// Sectors written since the last sync. A sector that differs from the durable one without
    /// being listed here was dropped by a failed sync.
    dirty: BTreeSet<usize>,
    /// The shortest length since the last sync, if the file was truncated.
    cut_to: Option<usize>,
    /// Shared with the handles of the file.
    pub(super) token: Arc<()>,
}

impl Inode {
    /// A file whose content is durable.
    pub(super) fn stored(content: &[u8]) -> Self {
        Self { durable: content.to_vec(), seen: content.to_vec(), ..Self::default() }
    }

    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let rest = self.seen.get(offset..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        len
    }

    pub(super) fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[start..end].copy_from_slice(bytes);
        self.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
    }

    pub(super) fn set_len(&mut self, len: usize) {
        if len < self.seen.len() {
            self.cut_to = Some(self.cut_to.map_or(len, |cut| cut.min(len)));
            drop(self.dirty.split_off(&len.div_ceil(SECTOR)));
        }
        self.seen.resize(len, 0);
    }

    pub(super) fn drop_dirty_pages(&mut self) {
        self.dirty.clear();
    }

    /// Changes one byte on the medium. Returns whether the file has that byte.
    pub(super) fn damage(&mut self, offset: usize, change: impl Fn(u8) -> u8) -> bool {
        if let Some(byte) = self.durable.get_mut(offset) {
            *byte = change(*byte);
        }
        let Some(byte) = self.seen.get_mut(offset) else { return false };
        *byte = change(*byte);
        true
    }

    pub(super) fn is_open(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }

    pub(super) fn sync(&mut self) {
        if let Some(cut) = self.cut_to.take() {
            self.durable.truncate(cut);
        }
        self.durable.resize(self.seen.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let range = sector_range(sector, self.seen.len());
            self.durable[range.clone()].copy_from_slice(&self.seen[range]);
        }
    }

    pub(super) fn crash(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        let dirty = std::mem::take(&mut self.dirty);
        if let Some(cut) = self.cut_to.take()
            && random(2) == 1
        {
            self.durable.truncate(cut);
        }
        // The new length may be lost; a sector after it that survives restores it.
        if self.durable.len() < self.seen.len() && random(3) > 0 {
            self.durable.resize(self.seen.len(), 0);
        }
        if dirty.is_empty() {
            self.seen = self.durable.clone();
            return;
        }
        // If each sector were drawn separately, a large write would hardly ever survive as a whole.
        let in_order = match random(4) {
            0 | 1 => None,
            2 => Some(random(dirty.len() as u64 + 1) as usize),
            _ => Some(dirty.len()),
        };
        for (position, sector) in dirty.into_iter().enumerate() {
            let range = sector_range(sector, self.seen.len());
            let kept = match in_order
                .map_or_else(|| random(4), |up_to| if position < up_to { 3 } else { 0 })
            {
                0 => range.start..range.start,
                1 => range.start..range.start + random(range.len() as u64) as usize,
                2 => range.end - random(range.len() as u64) as usize..range.end,
                _ => range,
            };
            if kept.is_empty() {
                continue;
            }
            if self.durable.len() < kept.end {
                self.durable.resize(kept.end, 0);
            }
            self.durable[kept.clone()].copy_from_slice(&self.seen[kept]);
        }
        self.seen = self.durable.clone();
    }
}

fn sector_range(sector: usize, len: usize) -> std::ops::Range<usize> {
    (sector * SECTOR).min(len)..((sector + 1) * SECTOR).min(len)
}
