//! What must be known about the log before it is read: the `log` record of the meta store.

use std::collections::BTreeMap;

use d_engine_core::{GroupId, LogId, LogIndex, Term};

use crate::frame::Decoder;

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
        rest.0.is_empty().then_some(Self { epoch, opened, first, bases })
    }
}
