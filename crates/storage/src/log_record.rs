//! What must be known about the log before it is read: the `log` record of the meta store.

use std::collections::BTreeMap;

use d_engine_core::{GroupId, LogId, LogIndex, Term};

use crate::frame::{Decoder, Position};

/// Replaced when a segment has been begun and when entries are purged, always before what it says
/// is relied upon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogRecord {
    /// The open epoch of the last open that came so far as to write this.
    pub(crate) epoch: u64,
    /// The newest segment. Its first group was durable before this was written, so the segment must
    /// be there and begin with a group that verifies.
    pub(crate) opened: u64,
    /// Segments below this one are purged; the files may or may not be gone.
    pub(crate) first: u64,
    /// Per group, the last entry that was purged.
    pub(crate) bases: BTreeMap<GroupId, LogId>,
    /// Per group whose log was replaced by a snapshot, where its log begins anew: entries in write
    /// groups before this place do not count, whatever their indexes. Only while such segments are
    /// still there.
    pub(crate) starts: BTreeMap<GroupId, Position>,
}

impl LogRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [self.epoch, self.opened, self.first, self.bases.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for (group, base) in &self.bases {
            for number in [group.get(), base.term.get(), base.index.get()] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        if !self.starts.is_empty() {
            bytes.extend_from_slice(&(self.starts.len() as u64).to_le_bytes());
        }
        for (group, start) in &self.starts {
            for number in [group.get(), start.segment, start.offset] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Decoder(bytes);
        let (epoch, opened, first, count) = (rest.u64()?, rest.u64()?, rest.u64()?, rest.u64()?);
        let mut bases = BTreeMap::new();
        for _ in 0..count {
            let group = rest.u64().and_then(GroupId::new)?;
            let base = LogId::new(Term::new(rest.u64()?), LogIndex::new(rest.u64()?));
            bases.insert(group, base);
        }
        let mut starts = BTreeMap::new();
        // Nodes that never installed a snapshot have nothing more here.
        let count = if rest.0.is_empty() { 0 } else { rest.u64()? };
        for _ in 0..count {
            let group = rest.u64().and_then(GroupId::new)?;
            starts.insert(group, rest.position()?);
        }
        rest.0.is_empty().then_some(Self { epoch, opened, first, bases, starts })
    }

    /// Whether an entry of `group` in the write group at `at` is a part of the group's log.
    pub(crate) fn counts(&self, group: GroupId, at: Position) -> bool {
        self.starts.get(&group).is_none_or(|start| at >= *start)
    }
}

#[cfg(test)]
mod tests {
    use d_engine_core::{GroupId, LogId, LogIndex, Term};

    use super::LogRecord;
    use crate::frame::Position;

    fn record() -> LogRecord {
        let base = LogId::new(Term::new(5), LogIndex::new(6));
        LogRecord {
            epoch: 1,
            opened: 2,
            first: 3,
            bases: [(GroupId::FIRST, base)].into(),
            ..LogRecord::default()
        }
    }

    #[test]
    fn without_an_install_the_record_is_what_it_always_was() {
        let bytes = record().encode();
        let numbers: Vec<u64> = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        assert_eq!(numbers, [1, 2, 3, 1, 1, 5, 6]);
        assert_eq!(LogRecord::decode(&bytes), Some(record()));
    }

    #[test]
    fn the_place_where_a_log_begins_anew_is_kept() {
        let start = Position { segment: 7, offset: 512 };
        let record = LogRecord { starts: [(GroupId::FIRST, start)].into(), ..record() };
        let bytes = record.encode();
        assert_eq!(LogRecord::decode(&bytes), Some(record.clone()));
        for len in (0..bytes.len()).filter(|len| *len != 56) {
            assert_eq!(LogRecord::decode(&bytes[..len]), None, "{len} bytes");
        }
        assert!(!record.counts(GroupId::FIRST, Position { segment: 7, offset: 0 }));
        assert!(record.counts(GroupId::FIRST, start));
        assert!(GroupId::new(2).is_some_and(|other| record.counts(other, Position::default())));
    }
}
