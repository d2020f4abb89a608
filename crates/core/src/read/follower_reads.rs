//! Linearizable reads at a follower (Raft thesis, section 6.4): the leader runs the round and
//! returns the read index; the follower serves the read from its own state once it has applied that
//! index.
//!
//! One request is in flight at a time; reads that arrive meanwhile join the next one. A request has
//! a token that no other request ever had, across restarts too: the reply to an earlier request,
//! however late, confirms nothing.

use alloc::vec::Vec;

use crate::interface::input::ReadId;
use crate::prng::SplitMix64;
use crate::time::Instant;
use crate::types::{NodeId, Term};

/// The reads of a follower that wait for a read index.
#[derive(Clone, Debug)]
pub(crate) struct FollowerReads {
    last_token: u64,
    in_flight: Option<PendingReadIndex>,
    /// Reads for the next request; empty while none is in flight.
    waiting: Vec<ReadId>,
}

/// A request that the leader has not answered yet.
#[derive(Clone, Debug)]
struct PendingReadIndex {
    leader: NodeId,
    term: Term,
    token: u64,
    reads: Vec<ReadId>,
    /// When this node stops waiting for the reply.
    until: Instant,
}

impl FollowerReads {
    /// Tokens start at a random number, so that they differ from those before a restart.
    pub(crate) fn new(prng: &mut SplitMix64) -> Self {
        Self { last_token: prng.number(), in_flight: None, waiting: Vec::new() }
    }

    /// How many reads wait for a request or for its reply.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.in_flight.as_ref().map_or(0, |request| request.reads.len())
    }

    /// When the request in flight is abandoned.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|request| request.until)
    }

    /// Adds reads to the next request.
    pub(crate) fn wait(&mut self, reads: Vec<ReadId>) {
        self.waiting.extend(reads);
    }

    /// Begins a request for all waiting reads and returns its token; `None` if one is in flight or
    /// no read waits.
    pub(crate) fn begin(&mut self, leader: NodeId, term: Term, until: Instant) -> Option<u64> {
        if self.in_flight.is_some() || self.waiting.is_empty() {
            return None;
        }
        let reads = core::mem::take(&mut self.waiting);
        self.last_token = self.last_token.wrapping_add(1);
        let token = self.last_token;
        self.in_flight = Some(PendingReadIndex { leader, term, token, reads, until });
        Some(token)
    }

    /// The reads of the request that `token` answers; `None` if it answers none in flight.
    pub(crate) fn answered(&mut self, token: u64) -> Option<Vec<ReadId>> {
        self.in_flight.take_if(|request| request.token == token).map(|request| request.reads)
    }

    /// Term and token of the request in flight to `node`.
    pub(crate) fn in_flight_to(&self, node: NodeId) -> Option<(Term, u64)> {
        let request = self.in_flight.as_ref().filter(|request| request.leader == node)?;
        Some((request.term, request.token))
    }

    /// Abandons a request whose reply has not arrived in time, and returns its reads.
    pub(crate) fn take_overdue(&mut self, now: Instant) -> Option<Vec<ReadId>> {
        let overdue = self.in_flight.take_if(|request| now >= request.until);
        overdue.map(|request| request.reads)
    }

    /// Abandons what a leader other than this one was asked in this term: no reply will come.
    /// Returns the reads.
    pub(crate) fn retain_for(&mut self, leader: Option<NodeId>, term: Term) -> Vec<ReadId> {
        let is_old =
            |request: &mut PendingReadIndex| (Some(request.leader), request.term) != (leader, term);
        let mut lost = self.in_flight.take_if(is_old).map_or(Vec::new(), |request| request.reads);
        // Waiting reads depend on the request in flight; after a refusal from a later term there is
        // no leader to send a request to.
        if self.in_flight.is_none() {
            lost.append(&mut self.waiting);
        }
        lost
    }
}
