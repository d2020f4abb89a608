//! Linearizable reads (Raft thesis, section 6.4): at the leader by a round of heartbeats or by its
//! lease, at a follower by a read index that the leader returns. `read/` keeps the rounds, the
//! lease and a follower's requests; this file connects them with the role and the messages.

use alloc::vec::Vec;

use crate::interface::effects::Effects;
use crate::interface::input::{ReadId, Rejected};
use crate::raft_core::RaftCore;
use crate::read::rounds::Reader;
use crate::{Instant, LogIndex, Message, NodeId};

impl RaftCore {
    /// Reads of this node's callers. On a leader they wait for a round; a follower requests a read
    /// index from its leader.
    pub(crate) fn on_read(
        &mut self,
        now: Instant,
        ids: Vec<ReadId>,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let Some(leader) = self.role.leader_mut() else { return self.forward_reads(now, ids) };
        if leader.reads.len().saturating_add(ids.len()) > self.config.waiting_reads_max {
            return Err(Rejected::TooManyReads);
        }
        for id in ids {
            leader.reads.wait(Reader::Own(id));
        }
        self.maybe_begin_round(now, out);
        Ok(())
    }

    /// Adds a reader to the next round.
    pub(crate) fn wait_for_round(&mut self, reader: Reader) -> Result<(), Rejected> {
        let Some(leader) = self.role.leader_mut() else { return Err(self.not_leader()) };
        if leader.reads.len() >= self.config.waiting_reads_max {
            return Err(Rejected::TooManyReads);
        }
        leader.reads.wait(reader);
        Ok(())
    }

    /// Begins a round for the waiting reads unless one is in flight.
    pub(crate) fn maybe_begin_round(&mut self, now: Instant, out: &mut Effects) {
        let Some(leader) = self.role.leader() else { return };
        if leader.reads.wants_round() && self.read_index().is_some() {
            self.begin_round(now, out);
        }
    }

    /// The read index: the state machine must have applied up to here before a read confirmed from
    /// now on is served. Unknown before an entry of this leader's term is committed: an earlier
    /// leader may have committed more than this one knows (Raft thesis, section 6.4, step 1).
    fn read_index(&self) -> Option<LogIndex> {
        self.leads_with_commit().then(|| self.log.committed())
    }

    /// Sends a numbered round of heartbeats for all waiting reads.
    pub(crate) fn begin_round(&mut self, now: Instant, out: &mut Effects) {
        let read_index = self.read_index();
        let committed = self.log.committed();
        let Some(leader) = self.role.leader_mut() else { return };
        let round = leader.reads.begin(read_index);
        leader.lease.sent(round, now);
        let term = self.hard_state.term;
        let followers: Vec<(NodeId, LogIndex)> =
            leader.followers.iter().map(|(node, progress)| (*node, progress.matched)).collect();
        for (node, matched) in followers {
            self.send(node, Message::Heartbeat { term, commit: committed, round, matched });
        }
        self.confirm_reads(out);
    }

    /// Confirms the rounds to which a quorum has replied; this node counts as having replied to
    /// each round that it sends.
    pub(crate) fn confirm_reads(&mut self, out: &mut Effects) {
        let Some(leader) = self.role.leader_mut() else { return };
        let (node, last_round) = (self.node, leader.reads.last_round());
        let followers = &leader.followers;
        let answered = self.log.configuration().reached_by_quorum(|voter| {
            if voter == node {
                return last_round;
            }
            followers.get(&voter).map_or(0, |progress| progress.round_answered)
        });
        let configuration = self.log.configuration();
        let promises = followers
            .iter()
            .filter(|(node, progress)| {
                configuration.is_voter(**node) && progress.round_answered >= answered
            })
            .map(|(_, progress)| progress.report.stickiness);
        let own = self.config.election_timeout_min;
        leader.lease.answered(answered, promises.min().map_or(own, |least| least.min(own)));
        for (reader, index) in leader.reads.confirmed(answered) {
            match reader {
                Reader::Own(read) => out.reads_confirmed.push((read, index)),
                Reader::Follower { node, token } => {
                    let term = self.hard_state.term;
                    self.send(node, Message::ReadReply { term, token, index: Some(index) });
                }
            }
        }
    }

    /// Until when this node may serve reads from its committed state without a round; exclusive.
    /// `None` if it holds no lease.
    ///
    /// A driver that serves lease reads itself must read the clock *after* the read has arrived,
    /// compare it with this time, and only then look up the commit index:
    /// [`crate::LogSummary::committed`].
    #[must_use]
    pub fn lease_until(&self) -> Option<Instant> {
        let leader = self.role.leader()?;
        if !self.leads_with_commit() {
            return None;
        }
        leader.lease.until(&self.config)
    }

    /// Confirms reads by the lease; `false` if there is none at `now`.
    pub(crate) fn confirm_by_lease(&self, now: Instant, ids: &[ReadId], out: &mut Effects) -> bool {
        let valid = self.lease_until().is_some_and(|until| now < until);
        if valid {
            let index: LogIndex = self.log.committed();
            out.reads_confirmed.extend(ids.iter().map(|id| (*id, index)));
        }
        valid
    }

    pub(crate) fn on_lease_read(
        &mut self,
        now: Instant,
        ids: Vec<ReadId>,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        if self.confirm_by_lease(now, &ids, out) { Ok(()) } else { self.on_read(now, ids, out) }
    }

    /// Accepts reads at a node that does not lead.
    fn forward_reads(&mut self, now: Instant, ids: Vec<ReadId>) -> Result<(), Rejected> {
        if self.leader().is_none() {
            return Err(Rejected::NotLeader { leader: None });
        }
        if self.follower_reads.len().saturating_add(ids.len()) > self.config.waiting_reads_max {
            return Err(Rejected::TooManyReads);
        }
        self.follower_reads.wait(ids);
        self.maybe_request_read_index(now);
        Ok(())
    }

    fn maybe_request_read_index(&mut self, now: Instant) {
        let Some(leader) = self.leader().filter(|leader| *leader != self.node) else { return };
        let (term, until) = (self.hard_state.term, now.plus(self.config.election_timeout_min));
        if let Some(token) = self.follower_reads.begin(leader, term, until) {
            self.send(leader, Message::ReadRequest { term, token });
        }
    }

    /// On the leader: the request joins the next round, like one of its own reads.
    pub(crate) fn on_read_request(
        &mut self,
        now: Instant,
        from: NodeId,
        token: u64,
        out: &mut Effects,
    ) {
        if self.wait_for_round(Reader::Follower { node: from, token }).is_ok() {
            self.maybe_begin_round(now, out);
        } else {
            self.send(from, Message::ReadReply { term: self.hard_state.term, token, index: None });
        }
    }

    /// On the follower: the reply, which may be a refusal.
    pub(crate) fn on_read_reply(
        &mut self,
        now: Instant,
        token: u64,
        index: Option<LogIndex>,
        out: &mut Effects,
    ) {
        let Some(reads) = self.follower_reads.answered(token) else { return };
        match index {
            Some(index) => out.reads_confirmed.extend(reads.into_iter().map(|read| (read, index))),
            None => out.reads_lost.extend(reads),
        }
        self.maybe_request_read_index(now);
    }

    /// The connection broke, so the request may be lost. It is sent again with the same token:
    /// whichever reply arrives carries an index from after the request was first sent.
    pub(crate) fn repeat_read_request(&mut self, lost: NodeId) {
        if let Some((term, token)) = self.follower_reads.in_flight_to(lost) {
            self.send(lost, Message::ReadRequest { term, token });
        }
    }

    /// The reply has not arrived in time: the leader may be gone.
    pub(crate) fn maybe_abandon_read_request(&mut self, now: Instant, out: &mut Effects) {
        if let Some(reads) = self.follower_reads.take_overdue(now) {
            out.reads_lost.extend(reads);
            self.maybe_request_read_index(now);
        }
    }

    /// The leader that received the request no longer leads.
    pub(crate) fn drop_requests_to_former_leaders(&mut self, out: &mut Effects) {
        let lost = self.follower_reads.retain_for(self.leader(), self.hard_state.term);
        out.reads_lost.extend(lost);
    }
}
