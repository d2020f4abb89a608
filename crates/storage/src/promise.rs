//! What a node may have acknowledged before its log was damaged and repaired.

use bytes::Bytes;
use d_engine_core::{LogId, LogIndex, Term};

use crate::log::frame::Decoder;

/// The record of a repaired directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repaired {
    /// When the log was repaired, in UNIX milliseconds by the clock of the machine.
    pub at_ms: u64,
    /// An upper bound of the last entry that the log may have had before the damage. Until the log
    /// has reached it, the node votes as if it had it, and does not lead.
    pub promised: LogId,
}

impl Repaired {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { at_ms, promised } = self;
        [*at_ms, promised.term.get(), promised.index.get()].map(u64::to_le_bytes).concat()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = Decoder(bytes);
        let (at_ms, term, index) = (rest.u64()?, rest.u64()?, rest.u64()?);
        let promised = LogId::new(Term::new(term), LogIndex::new(index));
        rest.0.is_empty().then_some(Self { at_ms, promised })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_not_if_its_length_differs() {
        let promised = LogId::new(Term::new(7), LogIndex::new(41_902));
        let repaired = Repaired { at_ms: 9, promised };
        let encoded = repaired.encode();
        assert_eq!(Repaired::decode(&Bytes::from(encoded.clone())), Some(repaired));
        for len in 0..encoded.len() {
            assert_eq!(Repaired::decode(&Bytes::copy_from_slice(&encoded[..len])), None, "{len}");
        }
        assert_eq!(Repaired::decode(&[&encoded[..], &[0]].concat().into()), None);
    }
}
