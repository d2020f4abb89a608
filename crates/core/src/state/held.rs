//! Messages that wait for the disk.
//!
//! A vote, an ack, and every message that carries a new term depend on something being on stable
//! storage. Such a message stays here until the write it depends on is reported
//! ([`crate::Input::Persisted`]); a driver cannot send it early, because it does not have it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::{AppendOutcome, Envelope, Message, PersistId, SentMessage, Term};

/// What a message waits for: a persist request whose term and vote must be durable, and one that
/// must be durable with all of its entries.
pub(crate) type AwaitedRequests = (Option<PersistId>, Option<PersistId>);

/// The highest number of answers to reads that wait for one node. The node asks again, under a new
/// token each time, for as long as nothing answers.
const READ_REPLIES_MAX: usize = 4;

#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    waiting: VecDeque<(AwaitedRequests, Envelope)>,
}

impl Held {
    /// Keeps `send` until `after` is durable. A hanging disk must not fill memory, so messages that
    /// the new one makes useless are dropped: messages of an earlier term, and earlier replies of a
    /// kind of which the last one covers the others. Losing a message is always allowed.
    pub(crate) fn hold(&mut self, after: AwaitedRequests, send: Envelope) {
        // A pre-vote carries a future term that no node may ever enter.
        let is_of_own_term =
            !matches!(send.message, Message::PreVote { .. } | Message::PreVoteReply { .. });
        let term = send.message.term();
        self.waiting.retain(|(_, earlier)| {
            let is_of_past = is_of_own_term && earlier.message.term() < term;
            let is_replaced =
                earlier.to == send.to && is_replaced_by(&earlier.message, &send.message);
            !is_of_past && !is_replaced
        });
        // A request that arrives again while the disk hangs is answered once: the same reply waits
        // already, and its write is in progress.
        let waits = self.waiting.iter().any(|waiting| waiting.1 == send);
        if waits {
            return;
        }
        if is_read_reply(&send) {
            self.drop_oldest_read_reply(&send);
        }
        self.waiting.push_back((after, send));
    }

    /// Makes space for one more answer to the reads of a node.
    fn drop_oldest_read_reply(&mut self, newer: &Envelope) {
        let older = |it: &(AwaitedRequests, Envelope)| it.1.to == newer.to && is_read_reply(&it.1);
        if self.waiting.iter().filter(|it| older(it)).count() >= READ_REPLIES_MAX
            && let Some(oldest) = self.waiting.iter().position(older)
        {
            self.waiting.remove(oldest);
        }
    }

    /// Moves every message that waited for no more than what is `durable` (term and vote first)
    /// into `out`.
    ///
    /// Acks of an earlier term are dropped: their leader is gone. Of several acks to one leader
    /// only the last is sent; it covers the others.
    pub(crate) fn release(
        &mut self,
        durable: (PersistId, PersistId),
        term: Term,
        out: &mut Vec<Envelope>,
    ) {
        let first_released = out.len();
        let mut kept = VecDeque::new();
        while let Some((after, send)) = self.waiting.pop_front() {
            if after.0 > Some(durable.0) || after.1 > Some(durable.1) {
                kept.push_back((after, send));
            } else if !is_stale_ack(&send, term) {
                match out.get_mut(first_released..).and_then(|new| new.last_mut()) {
                    Some(previous) if is_covered_by(previous, &send) => *previous = send,
                    _ => out.push(send),
                }
            }
        }
        self.waiting = kept;
    }

    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

fn is_read_reply(send: &Envelope) -> bool {
    matches!(send.message, Message::ReadReply { .. })
}

/// Whether the later of two messages to one node contains all information of the earlier.
fn is_replaced_by(earlier: &SentMessage, later: &SentMessage) -> bool {
    match (earlier, later) {
        (
            Message::HeartbeatReply { term: earlier, .. },
            Message::HeartbeatReply { term: later, .. },
        ) => earlier == later,
        (Message::PreVote { .. }, Message::PreVote { .. })
        | (Message::PreVoteReply { .. }, Message::PreVoteReply { .. }) => true,
        _ => false,
    }
}

fn is_stale_ack(send: &Envelope, term: Term) -> bool {
    matches!(send.message, Message::AppendReply { term: of, .. } if of < term)
}

fn is_covered_by(earlier: &Envelope, later: &Envelope) -> bool {
    match (&earlier.message, &later.message) {
        (
            Message::AppendReply {
                term: earlier_term,
                outcome: AppendOutcome::Persisted(earlier_index),
            },
            Message::AppendReply {
                term: later_term,
                outcome: AppendOutcome::Persisted(later_index),
            },
        ) => earlier.to == later.to && earlier_term == later_term && earlier_index <= later_index,
        _ => false,
    }
}
