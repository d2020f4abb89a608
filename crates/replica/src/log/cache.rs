//! A cache of the newest entries: for followers, for apply, and for entries that are not yet synced
//! and therefore cannot be read back from the log.

use std::collections::VecDeque;
use std::sync::Arc;

use d_engine_core::LogIndex;
use d_engine_storage::LogEntry;

/// What an entry in the cache costs beside its payload: its struct, the spare capacity of the ring
/// (which doubles when it grows), and what an allocator adds to the payload and to its count of
/// owners. With small payloads these are most of the memory.
pub const CACHED_ENTRY_COST: usize = 2 * size_of::<LogEntry>() + 64;

/// A contiguous run of the log's newest entries, bounded in bytes.
#[derive(Debug)]
pub(crate) struct LogCache {
    entries: VecDeque<LogEntry>,
    /// The index after the last entry, also while the cache is empty.
    end: LogIndex,
    bytes: usize,
    bytes_max: usize,
    /// The last slice that was returned. Followers at the same position share it, so that it is
    /// encoded once.
    shared: Option<Arc<[LogEntry]>>,
}

impl LogCache {
    /// Creates an empty cache for a log that ends with `last`.
    pub(crate) fn new(last: LogIndex, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), end: last.next(), bytes: 0, bytes_max, shared: None }
    }

    fn weight(entry: &LogEntry) -> usize {
        entry.data.len() + CACHED_ENTRY_COST
    }

    /// Bytes of memory that the cached entries take up.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first cached index; the end if the cache is empty.
    pub(crate) fn first(&self) -> LogIndex {
        self.entries.front().map_or(self.end, |entry| entry.id.index)
    }

    /// Appends entries; the first may replace a conflicting suffix.
    pub(crate) fn append(&mut self, entries: &[LogEntry]) {
        let Some(first) = entries.first() else { return };
        self.truncate_from(first.id.index);
        for entry in entries {
            self.bytes += Self::weight(entry);
            self.entries.push_back(entry.clone());
            self.end = entry.id.index.next();
        }
    }

    /// Drops the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        self.shared = None;
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.id.index >= index) {
            self.bytes = self.bytes.saturating_sub(Self::weight(&entry));
        }
        self.end = self.end.min(index);
    }

    /// Drops everything: the log restarts after `last`.
    pub(crate) fn restart_after(&mut self, last: LogIndex) {
        self.truncate_from(LogIndex::ZERO);
        self.end = last.next();
    }

    /// Drops old entries beyond the limit, but none after `persisted`, because the log cannot
    /// return those.
    pub(crate) fn evict(&mut self, persisted: LogIndex) {
        while self.bytes > self.bytes_max {
            let Some(entry) = self.entries.pop_front_if(|entry| entry.id.index <= persisted) else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(Self::weight(&entry));
        }
    }

    /// The entries from `first` to `last`; `None` if one of them is not cached.
    pub(crate) fn slice(&mut self, first: LogIndex, last: LogIndex) -> Option<Arc<[LogEntry]>> {
        if let Some(shared) = &self.shared
            && shared.first().map(|entry| entry.id.index) == Some(first)
            && shared.last().map(|entry| entry.id.index) == Some(last)
        {
            return Some(shared.clone());
        }
        let slice: Arc<[LogEntry]> = self.copy(first, last)?.into();
        self.shared = Some(slice.clone());
        Some(slice)
    }

    /// A copy of the entries from `first` to `last`; `None` if one of them is not cached.
    pub(crate) fn copy(&self, first: LogIndex, last: LogIndex) -> Option<Vec<LogEntry>> {
        if first < self.first() || last >= self.end || first > last {
            return None;
        }
        let skip = usize::try_from(first.since(self.first())).ok()?;
        let count = usize::try_from(last.next().since(first)).ok()?;
        Some(self.entries.iter().skip(skip).take(count).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use d_engine_core::{EntryKind, LogId, Term};

    use super::*;

    fn entry(index: u64, term: u64) -> LogEntry {
        LogEntry {
            id: LogId::new(Term::new(term), LogIndex::new(index)),
            kind: EntryKind::Command,
            time_ms: 0,
            session: None,
            version: 0,
            data: Bytes::from_static(&[0; 100]),
        }
    }

    #[test]
    fn followers_at_the_same_place_share_one_slice() {
        let mut cache = LogCache::new(LogIndex::ZERO, 1 << 20);
        cache.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        let one = cache.slice(LogIndex::new(2), LogIndex::new(3)).unwrap();
        let other = cache.slice(LogIndex::new(2), LogIndex::new(3)).unwrap();
        assert!(Arc::ptr_eq(&one, &other));
    }

    #[test]
    fn a_replaced_suffix_is_never_handed_out() {
        let mut cache = LogCache::new(LogIndex::ZERO, 1 << 20);
        cache.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        assert!(cache.slice(LogIndex::new(1), LogIndex::new(3)).is_some());
        cache.append(&[entry(2, 2)]);
        assert!(cache.slice(LogIndex::new(1), LogIndex::new(3)).is_none());
        let terms: Vec<u64> = cache
            .slice(LogIndex::new(1), LogIndex::new(2))
            .unwrap()
            .iter()
            .map(|e| e.id.term.get())
            .collect();
        assert_eq!(terms, [1, 2]);
    }

    #[test]
    fn what_is_not_synced_is_never_evicted() {
        let mut cache = LogCache::new(LogIndex::ZERO, 1);
        cache.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        cache.evict(LogIndex::new(1));
        assert_eq!(cache.first(), LogIndex::new(2));
        assert!(cache.copy(LogIndex::new(1), LogIndex::new(2)).is_none());
        assert_eq!(cache.copy(LogIndex::new(2), LogIndex::new(3)).unwrap().len(), 2);
    }
}
