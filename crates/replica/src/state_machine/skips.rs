//! Entries that no state machine applies because they halt every one of them: an operator decides
//! to skip them, and the decision is an entry of the log.
//!
//! The deciding entry has a higher index than the skipped one, and apply cannot reach it. So the
//! decision takes effect as soon as the deciding entry is committed and persisted. Until then,
//! apply waits before an entry that a persisted decision names.

use d_engine_core::{LogId, LogIndex};
pub(crate) use d_engine_storage::{SKIP_BYTES, decode_skip as decode, encode_skip as encode};

use crate::event::SkipResponder;
use crate::{LeaderHint, SkipError};

/// A decision to skip an entry.
pub(crate) struct Skip {
    /// The index of the deciding entry.
    pub(crate) at: LogIndex,
    /// The skipped entry.
    pub(crate) target: LogId,
    /// The caller that waits for the decision.
    responder: Option<SkipResponder>,
}

/// All decisions in the log, in log order.
#[derive(Default)]
pub(crate) struct Skips {
    known: Vec<Skip>,
    /// The caller that waits for the decision that is about to be appended.
    asked: Option<SkipResponder>,
}

impl Skips {
    /// Registers the caller that waits for the decision appended next.
    pub(crate) fn ask(&mut self, responder: SkipResponder) {
        self.asked = Some(responder);
    }

    /// The core has rejected the decision.
    pub(crate) fn refused(&mut self, error: SkipError) {
        if let Some(responder) = self.asked.take() {
            responder(Err(error));
        }
    }

    /// A decision to skip `target` was appended.
    pub(crate) fn push(&mut self, at: LogIndex, target: LogId) {
        self.truncate_from(at);
        let responder = self.asked.take();
        self.known.push(Skip { at, target, responder });
    }

    /// Entries from `index` on were superseded: callers that wait for them receive
    /// `OutcomeUnknown`.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        for skip in self.known.extract_if(.., |skip| skip.at >= index) {
            unknown(skip.responder);
        }
    }

    /// The log begins after `base`.
    pub(crate) fn purge_to(&mut self, base: LogIndex) {
        for skip in self.known.extract_if(.., |skip| skip.at <= base) {
            unknown(skip.responder);
        }
    }

    /// The decision with the lowest skipped index at or after `index`.
    pub(crate) fn next_from(&self, index: LogIndex) -> Option<&Skip> {
        self.known
            .iter()
            .filter(|skip| skip.target.index >= index)
            .min_by_key(|skip| skip.target.index)
    }

    /// Everything up to `committed` is committed: replies to the callers of those decisions.
    pub(crate) fn committed(&mut self, committed: LogIndex) {
        for skip in self.known.iter_mut().filter(|skip| skip.at <= committed) {
            if let Some(responder) = skip.responder.take() {
                responder(Ok(skip.at.get()));
            }
        }
    }

    /// The decision that skips `target`.
    pub(crate) fn of(&mut self, target: LogId) -> Option<&mut Skip> {
        self.known.iter_mut().find(|skip| skip.target == target)
    }

    /// This node no longer leads: callers receive `OutcomeUnknown`, because later leaders decide.
    pub(crate) fn lost_leadership(&mut self) {
        for skip in &mut self.known {
            unknown(skip.responder.take());
        }
    }
}

impl Skip {
    /// Another caller requests the same skip. An earlier caller whose request is still undecided
    /// receives `OutcomeUnknown`.
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

/// Converts a rejection by the core into an error for callers.
pub(crate) fn error(rejected: d_engine_core::Rejected, leader: Option<LeaderHint>) -> SkipError {
    match rejected {
        d_engine_core::Rejected::NotLeader { .. } => SkipError::NotLeader { leader },
        d_engine_core::Rejected::SkipRefused(refusal) => {
            SkipError::Refused { reason: refusal.to_string() }
        }
        other => SkipError::Refused { reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use d_engine_core::Term;

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
        assert_eq!(answers.try_recv(), Ok(Ok(9)), "already decided");
        skips.truncate_from(LogIndex::new(10));
        assert_eq!(answers.try_recv(), Ok(Err(SkipError::OutcomeUnknown)));
        skips.purge_to(LogIndex::new(9));
        assert!(skips.next_from(LogIndex::ZERO).is_none());
    }
}
