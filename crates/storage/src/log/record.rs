//! What must be known about the log before it is read: the `log` record of the meta store.

use std::collections::BTreeMap;

use bytes::Bytes;
use d_engine_core::{GroupId, LogId, LogIndex, MAX_ACCEPTED_TIME_MS, Term};

use crate::log::frame::{Decoder, Position};

/// Replaced when a segment has been begun and when entries are purged, always before its content is
/// relied upon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogRecord {
    /// The epoch of the last open that got as far as writing this record.
    pub(crate) epoch: u64,
    /// The newest segment. Its first group was durable before this was written, so the segment must
    /// exist and begin with a group that verifies.
    pub(crate) opened: u64,
    /// Segments below this one are purged; the files may or may not be gone.
    pub(crate) first: u64,
    /// For each group, the last entry that was purged.
    pub(crate) bases: BTreeMap<GroupId, LogId>,
    /// For each group whose log was replaced by a snapshot, the position where its log begins
    /// again: entries in write groups before it do not count, whatever their indexes. Kept only
    /// while such segments still exist.
    pub(crate) starts: BTreeMap<GroupId, Position>,
    /// The length to which the file of segment `opened` was at least filled with zeros and synced.
    /// Crashes do not shrink files.
    pub(crate) filled: u64,
    /// Nothing before this position is read: it is damaged, and a snapshot contains it. Kept only
    /// while its segment still exists.
    pub(crate) intact_from: Position,
    /// For each group, what is known of the last purged entry. Absent if the log begins after a
    /// received snapshot.
    pub(crate) facts: BTreeMap<GroupId, BaseFacts>,
}

/// Facts from the entries before a log's beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BaseFacts {
    /// Log time at the base.
    pub(crate) time_ms: u64,
    /// The payload of the last membership entry up to the base; empty: the initial membership.
    pub(crate) membership: Bytes,
}

impl LogRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |numbers: &[u64]| {
            for number in numbers {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        };
        put(&[self.epoch, self.opened, self.first, self.filled, self.bases.len() as u64]);
        for (group, base) in &self.bases {
            put(&[group.get(), base.term.get(), base.index.get()]);
        }
        put(&[self.starts.len() as u64]);
        for (group, start) in &self.starts {
            put(&[group.get(), start.segment, start.offset]);
        }
        put(&[self.facts.len() as u64]);
        for (group, facts) in &self.facts {
            for number in [group.get(), facts.time_ms, facts.membership.len() as u64] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&facts.membership);
        }
        bytes.extend_from_slice(&self.intact_from.segment.to_le_bytes());
        bytes.extend_from_slice(&self.intact_from.offset.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Decoder(bytes);
        let mut record = Self {
            epoch: rest.u64()?,
            opened: rest.u64()?,
            first: rest.u64()?,
            filled: rest.u64()?,
            ..Self::default()
        };
        for _ in 0..rest.u64()? {
            let group = rest.u64().and_then(GroupId::new)?;
            let base = LogId::new(Term::new(rest.u64()?), LogIndex::new(rest.u64()?));
            record.bases.insert(group, base);
        }
        for _ in 0..rest.u64()? {
            let group = rest.u64().and_then(GroupId::new)?;
            record.starts.insert(group, rest.position()?);
        }
        for _ in 0..rest.u64()? {
            let group = rest.u64().and_then(GroupId::new)?;
            let (time_ms, len) = (rest.u64()?, usize::try_from(rest.u64()?).ok()?);
            let (membership, behind) = rest.0.split_at_checked(len)?;
            rest.0 = behind;
            if time_ms > MAX_ACCEPTED_TIME_MS {
                return None;
            }
            record.facts.insert(
                group,
                BaseFacts { time_ms, membership: Bytes::copy_from_slice(membership) },
            );
        }
        record.intact_from = rest.position()?;
        rest.0.is_empty().then_some(record)
    }

    /// Whether an entry of `group` in the write group at `at` is part of the group's log.
    pub(crate) fn counts(&self, group: GroupId, at: Position) -> bool {
        self.starts.get(&group).is_none_or(|start| at >= *start)
    }
}

#[cfg(test)]
mod tests {
    use d_engine_core::{GroupId, LogId, LogIndex, MAX_ACCEPTED_TIME_MS, Term};

    use super::{BaseFacts, LogRecord};
    use crate::log::frame::Position;

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
    fn a_record_cut_anywhere_is_none() {
        let start = Position { segment: 7, offset: 512 };
        let facts = BaseFacts { time_ms: 9, membership: b"members".as_slice().into() };
        let record = LogRecord {
            starts: [(GroupId::FIRST, start)].into(),
            filled: 8,
            facts: [(GroupId::FIRST, facts)].into(),
            ..record()
        };
        let bytes = record.encode();
        assert_eq!(LogRecord::decode(&bytes), Some(record.clone()));
        for len in 0..bytes.len() {
            assert_eq!(LogRecord::decode(&bytes[..len]), None, "{len} bytes");
        }
        let late = BaseFacts { time_ms: MAX_ACCEPTED_TIME_MS + 1, ..BaseFacts::default() };
        let late = LogRecord { facts: [(GroupId::FIRST, late)].into(), ..record.clone() };
        assert_eq!(LogRecord::decode(&late.encode()), None, "a time after the year 9999");
        assert!(!record.counts(GroupId::FIRST, Position { segment: 7, offset: 0 }));
        assert!(record.counts(GroupId::FIRST, start));
        assert!(GroupId::new(2).is_some_and(|other| record.counts(other, Position::default())));
    }
}
