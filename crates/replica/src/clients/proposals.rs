//! Callers whose commands are in the log and not yet applied.

use std::collections::VecDeque;

use d_engine_core::{LogId, LogIndex};

use crate::event::ProposeResponder;
use crate::{ProposeError, StopReason, UnknownBecause};

/// The waiting callers with their entries. Indexes rise; terms never fall.
#[derive(Default)]
pub(crate) struct Proposals {
    waiting: VecDeque<(LogId, ProposeResponder)>,
}

impl Proposals {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, entry: LogId, responder: ProposeResponder) {
        self.waiting.push_back((entry, responder));
    }

    /// Removes and returns the callers that wait for entries up to `last`.
    pub(crate) fn take_to(&mut self, last: LogIndex) -> Vec<(LogIndex, ProposeResponder)> {
        let count = self.waiting.partition_point(|(entry, _)| entry.index <= last);
        self.waiting.drain(..count).map(|(entry, responder)| (entry.index, responder)).collect()
    }

    /// Leadership is lost: callers that wait for an entry that is not known to be committed receive
    /// `OutcomeUnknown`. `is_committed` must compare terms too: the message that deposed this
    /// leader may have put another entry at the same index and committed that one. Committed
    /// entries will still be applied and replied to here.
    pub(crate) fn lose_unless(&mut self, is_committed: impl Fn(LogId) -> bool) {
        self.lose(UnknownBecause::LeadershipLost, is_committed);
    }

    fn lose(&mut self, why: UnknownBecause, is_committed: impl Fn(LogId) -> bool) {
        for (entry, responder) in std::mem::take(&mut self.waiting) {
            if is_committed(entry) {
                self.waiting.push_back((entry, responder));
            } else {
                responder(Err(ProposeError::OutcomeUnknown { why }));
            }
        }
    }

    /// The node has stopped: every caller receives `OutcomeUnknown`.
    pub(crate) fn lose_all(&mut self) {
        self.lose_all_because(UnknownBecause::NodeStopped);
    }

    pub(crate) fn lose_all_because(&mut self, why: UnknownBecause) {
        self.lose(why, |_| false);
    }
}

/// Refuses commands that were never proposed.
pub(crate) fn refuse(proposals: Vec<crate::Proposal>, error: &ProposeError) {
    for proposal in proposals {
        (proposal.responder)(Err(error.clone()));
    }
}

/// The error for a new command at a node that has stopped.
pub(crate) fn stopped(reason: &StopReason) -> ProposeError {
    ProposeError::Stopped { reason: reason.clone() }
}
