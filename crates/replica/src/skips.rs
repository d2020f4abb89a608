//! Entries that no state machine applies, because they stop them all: decided by an operator, in entries of the log.
//!
//! The entry that decides lies behind the one that is skipped, and apply cannot get to it. So it counts as soon as it is
//! committed and stored; until then, apply waits before an entry that a stored one names.

use bytes::Bytes;
use d_engine_core::{LogId, LogIndex, Term};

use crate::event::SkipResponder;
use crate::{LeaderHint, SkipError};

/// Payload bytes of an entry that skips another.
pub(crate) const SKIP_BYTES: u32 = 16;

/// The payload that names an entry.
pub(crate) fn encode(target: LogId) -> Bytes {
    let mut bytes = [0; SKIP_BYTES as usize];
    let (term, index) = bytes.split_at_mut(8);
    term.copy_from_slice(&target.term.get().to_le_bytes());
    index.copy_from_slice(&target.index.get().to_le_bytes());
    Bytes::copy_from_slice(&bytes)
}

/// The entry that a payload names; `None` for a payload that no leader has written.
pub(crate) fn decode(payload: &[u8]) -> Option<LogId> {
    let (term, index) = payload.split_first_chunk::<8>()?;
    let index: [u8; 8] = index.try_into().ok()?;
    let (term, index) = (u64::from_le_bytes(*term), u64::from_le_bytes(index));
    let in_range = term <= Term::MAX_ACCEPTED.get() && index <= LogIndex::MAX_ACCEPTED.get();
    in_range.then(|| LogId::new(Term::new(term), LogIndex::new(index)))
}

/// An entry that skips another.
pub(crate) struct Skip {
    /// Its own index.
    pub(crate) at: LogIndex,
    /// The entry that it skips.
    pub(crate) target: LogId,
    /// Who waits for the decision.
    responder: Option<SkipResponder>,
}

/// All of them in the log, in its order.
#[derive(Default)]
pub(crate) struct Skips {
    known: Vec<Skip>,
    /// Who waits for the one that is about to be appended.
    asked: Option<SkipResponder>,
}

impl Skips {
    /// Somebody waits for the one that is appended next.
    pub(crate) fn ask(&mut self, responder: SkipResponder) {
        self.asked = Some(responder);
    }

    /// It was refused.
    pub(crate) fn refused(&mut self, error: SkipError) {
        if let Some(responder) = self.asked.take() {
            responder(Err(error));
        }
    }

    /// An entry that skips `target` was appended.
    pub(crate) fn push(&mut self, at: LogIndex, target: LogId) {
        self.truncate_from(at);
        let responder = self.asked.take();
        self.known.push(Skip { at, target, responder });
    }

    /// Entries from here on were superseded: who waits for them learns that nobody knows.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        for skip in self.known.extract_if(.., |skip| skip.at >= index) {
            unknown(skip.responder);
        }
    }

    /// The log begins behind `base`.
    pub(crate) fn purge_to(&mut self, base: LogIndex) {
        for skip in self.known.extract_if(.., |skip| skip.at <= base) {
            unknown(skip.responder);
        }
    }

    /// The first entry from `index` on that is to be skipped.
    pub(crate) fn next_from(&self, index: LogIndex) -> Option<&Skip> {
        self.known.iter().filter(|skip| skip.target.index >= index).min_by_key(|skip| skip.target.index)
    }

    /// Everything up to `committed` is decided.
    pub(crate) fn committed(&mut self, committed: LogIndex) {
        for skip in self.known.iter_mut().filter(|skip| skip.at <= committed) {
            if let Some(responder) = skip.responder.take() {
                responder(Ok(skip.at.get()));
            }
        }
    }

    /// The one that skips `target`.
    pub(crate) fn of(&mut self, target: LogId) -> Option<&mut Skip> {
        self.known.iter_mut().find(|skip| skip.target == target)
    }

    /// This node no longer leads: the next leaders decide.
    pub(crate) fn lost_leadership(&mut self) {
        for skip in &mut self.known {
            unknown(skip.responder.take());
        }
    }
}

impl Skip {
    /// One more caller wants what is under way already. The one before has gone, or learns it as before.
    pub(crate) fn wait(&mut self, committed: LogIndex, responder: SkipResponder) {
        if self.at <= committed {
            responder(Ok(self.at.get()));
        } else {
            unknown(self.responder.replace(responder));
        }
    }
}

fn unknown(responder: Option<SkipResponder>) {
    if let Some(responder) = responder {
        responder(Err(SkipError::OutcomeUnknown));
    }
}

/// What a core's refusal says to callers.
pub(crate) fn error(rejected: d_engine_core::Rejected, leader: Option<LeaderHint>) -> SkipError {
    match rejected {
        d_engine_core::Rejected::NotLeader { .. } => SkipError::NotLeader { leader },
        d_engine_core::Rejected::SkipRefused(refusal) => SkipError::Refused { reason: refusal.to_string() },
        other => SkipError::Refused { reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(Term::new(term), LogIndex::new(index))
    }

    #[test]
    fn a_payload_names_one_entry() {
        assert_eq!(decode(&encode(id(3, 131))), Some(id(3, 131)));
        assert_eq!(encode(id(3, 131)).len(), SKIP_BYTES as usize);
        for bad in [&[][..], &[1; 15], &[1; 17], &[0xff; 16]] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn whoever_waits_is_told_once_it_is_committed_or_that_nobody_knows() {
        let mut skips = Skips::default();
        let (told, answers) = mpsc::channel();
        let responder = |told: &mpsc::Sender<_>| -> SkipResponder {
            let told = told.clone();
            Box::new(move |answer| told.send(answer).unwrap())
        };
        for (at, target) in [(9, id(2, 4)), (10, id(2, 6))] {
            skips.ask(responder(&told));
            skips.push(LogIndex::new(at), target);
        }
        assert_eq!(skips.next_from(LogIndex::new(4)).unwrap().target, id(2, 4));
        assert_eq!(skips.next_from(LogIndex::new(5)).unwrap().target, id(2, 6));
        skips.committed(LogIndex::new(9));
        assert_eq!(answers.try_recv(), Ok(Ok(9)));
        skips.of(id(2, 4)).unwrap().wait(LogIndex::new(9), responder(&told));
        assert_eq!(answers.try_recv(), Ok(Ok(9)), "it is decided already");
        skips.truncate_from(LogIndex::new(10));
        assert_eq!(answers.try_recv(), Ok(Err(SkipError::OutcomeUnknown)));
        skips.purge_to(LogIndex::new(9));
        assert!(skips.next_from(LogIndex::ZERO).is_none());
    }
}
