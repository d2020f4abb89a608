//! The callers that wait for the entries of a job. Each receives an outcome, even if the state
//! machine panics.

use std::collections::VecDeque;

use bytes::Bytes;
use d_engine_core::LogIndex;

use crate::event::ProposeResponder;
use crate::{ProposeError, UnknownBecause};

/// Callers with the index of the entry that they wait for, in log order. Callers without a reply
/// when this is dropped receive `OutcomeUnknown`, because the state machine has stopped.
pub(crate) struct Callers(VecDeque<(LogIndex, ProposeResponder)>);

impl Callers {
    pub(crate) fn new(waiting: Vec<(LogIndex, ProposeResponder)>) -> Self {
        Self(waiting.into())
    }

    /// Removes and returns the callers that wait for entries up to `last`.
    pub(crate) fn take_to(&mut self, last: LogIndex) -> Self {
        let count = self.0.partition_point(|(index, _)| *index <= last);
        let rest = self.0.split_off(count);
        Self(std::mem::replace(&mut self.0, rest))
    }

    /// The callers that still wait, for a job that is run again.
    pub(crate) fn left(mut self) -> Vec<(LogIndex, ProposeResponder)> {
        std::mem::take(&mut self.0).into()
    }

    /// Sends each caller the reply to its entry. A caller without a reply receives
    /// `OutcomeUnknown`.
    pub(crate) fn answer(mut self, replies: Vec<(u64, Option<Bytes>)>) {
        let mut replies = replies.into_iter().peekable();
        while let Some((index, responder)) = self.0.pop_front() {
            while replies.next_if(|(at, _)| *at < index.get()).is_some() {}
            let reply = replies.next_if(|(at, _)| *at == index.get());
            responder(reply.map(|(_, reply)| reply.unwrap_or_default()).ok_or(UNKNOWN));
        }
    }
}

const UNKNOWN: ProposeError =
    ProposeError::OutcomeUnknown { why: UnknownBecause::StateMachineStopped };

impl Drop for Callers {
    fn drop(&mut self) {
        for (_, responder) in self.0.drain(..) {
            responder(Err(UNKNOWN));
        }
    }
}
