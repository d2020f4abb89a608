//! Linearizable reads at a follower (Raft thesis, section 6.4): the leader runs the round and tells the
//! read index, the follower serves the read from its own state once that is applied.
//!
//! One question is on its way at a time; reads that arrive meanwhile go with the next one. A question
//! has a name that no other one ever had, over restarts too: the answer to an earlier one, however
//! late, confirms nothing.

use alloc::vec::Vec;

use crate::effects::Effects;
use crate::input::{ReadId, Rejected};
use crate::prng::Prng;
use crate::raft_core::RaftCore;
use crate::{Instant, LogIndex, Message, NodeId, Term};

#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    last_token: u64,
    asked: Option<Asked>,
    /// For the next question; empty while none is on its way.
    waiting: Vec<ReadId>,
}

#[derive(Clone, Debug)]
struct Asked {
    leader: NodeId,
    term: Term,
    token: u64,
    reads: Vec<ReadId>,
    /// When the answer is no longer waited for.
    until: Instant,
}

impl Forwarded {
    /// Names start at a random number, so that they differ from those before a restart.
    pub(crate) fn new(prng: &mut Prng) -> Self {
        Self { last_token: prng.number(), asked: None, waiting: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.asked.as_ref().map_or(0, |asked| asked.reads.len())
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.asked.as_ref().map(|asked| asked.until)
    }
}

impl RaftCore {
    /// Takes reads in at a node that does not lead.
    pub(crate) fn forward_reads(&mut self, now: Instant, ids: Vec<ReadId>) -> Result<(), Rejected> {
        if self.leader().is_none() {
            return Err(Rejected::NotLeader { leader: None });
        }
        if self.forwarded.len().saturating_add(ids.len()) > self.config.waiting_reads_max {
            return Err(Rejected::TooManyReads);
        }
        self.forwarded.waiting.extend(ids);
        self.maybe_ask_leader(now);
        Ok(())
    }

    fn maybe_ask_leader(&mut self, now: Instant) {
        let Some(leader) = self.leader().filter(|leader| *leader != self.node) else { return };
        if self.forwarded.asked.is_some() || self.forwarded.waiting.is_empty() {
            return;
        }
        let reads = core::mem::take(&mut self.forwarded.waiting);
        self.forwarded.last_token = self.forwarded.last_token.wrapping_add(1);
        let (term, token) = (self.hard_state.term, self.forwarded.last_token);
        let until = now.plus(self.config.election_timeout_min);
        self.forwarded.asked = Some(Asked { leader, term, token, reads, until });
        self.send(leader, Message::ReadRequest { term, token });
    }

    /// At the leader: the question joins the next round, like a read of its own.
    pub(crate) fn on_read_request(&mut self, now: Instant, from: NodeId, token: u64, out: &mut Effects) {
        if self.wait_for_round(crate::read::Reader::Follower { node: from, token }).is_ok() {
            self.maybe_begin_round(now, out);
        } else {
            self.send(from, Message::ReadReply { term: self.hard_state.term, token, index: None });
        }
    }

    /// At the follower: the answer, or a refusal.
    pub(crate) fn on_read_reply(
        &mut self,
        now: Instant,
        token: u64,
        index: Option<LogIndex>,
        out: &mut Effects,
    ) {
        let is_awaited =
            |asked: &mut Asked| asked.token == token || (cfg!(mutant = "any-read-reply") && index.is_some());
        let Some(asked) = self.forwarded.asked.take_if(is_awaited) else { return };
        match index {
            Some(index) => out.reads_confirmed.extend(asked.reads.into_iter().map(|read| (read, index))),
            None => out.reads_lost.extend(asked.reads),
        }
        self.maybe_ask_leader(now);
    }

    /// The connection broke: the question may be lost. Asked again under the same name, it is answered
    /// with an index from after it was asked first, whichever answer arrives.
    pub(crate) fn ask_leader_again(&mut self, lost: NodeId) {
        if let Some(asked) = self.forwarded.asked.as_ref().filter(|asked| asked.leader == lost) {
            let message = Message::ReadRequest { term: asked.term, token: asked.token };
            self.send(lost, message);
        }
    }

    /// The answer has not come in time: the leader may be gone.
    pub(crate) fn maybe_give_up_forwarded(&mut self, now: Instant, out: &mut Effects) {
        if let Some(asked) = self.forwarded.asked.take_if(|asked| now >= asked.until) {
            out.reads_lost.extend(asked.reads);
            self.maybe_ask_leader(now);
        }
    }

    /// The leader that was asked leads no more: nobody will answer.
    pub(crate) fn drop_forwarded_of_others(&mut self, out: &mut Effects) {
        let current = (self.leader(), self.hard_state.term);
        let is_old = |asked: &mut Asked| (Some(asked.leader), asked.term) != current;
        if let Some(asked) = self.forwarded.asked.take_if(is_old) {
            out.reads_lost.extend(asked.reads);
        }
        // Whoever waits does so behind a question; a refusal from a later term leaves nobody to ask.
        if self.forwarded.asked.is_none() {
            out.reads_lost.append(&mut self.forwarded.waiting);
        }
    }
}
