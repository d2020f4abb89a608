//! Commands of callers on their way from the log to the state machine.

use std::collections::VecDeque;

use d_engine_core::LogIndex;

use crate::event::ProposeResponder;
use crate::{ProposeError, StopReason};

/// Who waits for which entry. Indexes rise.
#[derive(Default)]
pub(crate) struct Proposals {
    waiting: VecDeque<(LogIndex, ProposeResponder)>,
}

impl Proposals {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, index: LogIndex, responder: ProposeResponder) {
        self.waiting.push_back((index, responder));
    }

    /// Takes out those that wait for entries up to `last`.
    pub(crate) fn take_to(&mut self, last: LogIndex) -> Vec<(LogIndex, ProposeResponder)> {
        let count = self.waiting.partition_point(|(index, _)| *index <= last);
        self.waiting.drain(..count).collect()
    }

    /// Leadership is lost: whoever waits for an entry that is not known to be committed is told that
    /// the outcome is unknown. Committed entries will still be applied and answered here.
    pub(crate) fn lose_after(&mut self, committed: LogIndex) {
        let kept = self.waiting.partition_point(|(index, _)| *index <= committed);
        for (_, responder) in self.waiting.drain(kept..) {
            responder(Err(ProposeError::OutcomeUnknown));
        }
    }

    /// The node has stopped: nobody here learns the outcome any more.
    pub(crate) fn lose_all(&mut self) {
        self.lose_after(LogIndex::ZERO);
    }
}

/// Refuses commands that were never proposed.
pub(crate) fn refuse(proposals: Vec<crate::Proposal>, error: &ProposeError) {
    for proposal in proposals {
        (proposal.responder)(Err(error.clone()));
    }
}

/// The answer to a new command at a node that has stopped.
pub(crate) fn stopped(reason: &StopReason) -> ProposeError {
    ProposeError::Stopped { reason: reason.clone() }
}
