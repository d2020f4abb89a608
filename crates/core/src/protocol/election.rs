//! Elections: pre-vote, votes, winning and losing (Raft paper, sections 5.2 and 5.4.1; thesis,
//! sections 4.2.3 and 9.6).

use crate::interface::effects::Effects;
use crate::protocol::role::Campaign;
use crate::raft_core::RaftCore;
use crate::{Instant, LogId, Message, NodeId, SentMessage, Term};

impl RaftCore {
    /// Vote stickiness (Raft thesis, section 4.2.3): whether this node grants no vote because it
    /// leads, has heard a leader within the shortest election timeout, or has just restarted.
    pub(crate) fn is_sticky(&self, now: Instant) -> bool {
        self.role.is_leader() || now < self.sticky_until
    }

    /// No leader was heard for an election timeout. Sends pre-votes before it raises the term, so
    /// that a node that was cut off does not depose a working leader when it returns.
    pub(crate) fn on_election_timeout(&mut self, now: Instant) {
        self.draw_election_timeout(now);
        // A node whose disk hangs could persist neither its vote nor an entry.
        if !self.may_campaign() || self.disk_hangs || self.abstains {
            self.forget_leader();
            return;
        }
        self.become_pre_candidate();
        if self.has_won() {
            self.campaign(now, Campaign::Timeout);
            return;
        }
        let Some(term) = self.hard_state.term.checked_next() else { return };
        self.pre_votes_requested = now;
        let message = Message::PreVote { term, last: self.log.last() };
        self.send_to_voters(&message);
    }

    /// The node does not campaign, so the leader is not replaced by a candidate of its own. It is
    /// forgotten all the same: a client that asks for the leader must not get a dead one, and a
    /// node that relied on one would not be stopped by [`Self::on_superseded`].
    fn forget_leader(&mut self) {
        if self.leader().is_some_and(|leader| leader != self.node) {
            self.end_campaign();
        }
    }

    /// Raises the term and requests votes. The requests are sent once this node's own vote is
    /// durable; only then does that vote count.
    pub(crate) fn campaign(&mut self, now: Instant, why: Campaign) {
        let next = self.hard_state.term.checked_next().filter(|term| *term <= Term::MAX_ACCEPTED);
        let Some(term) = next else {
            self.end_campaign();
            return;
        };
        self.become_candidate(term, self.next_persist_id());
        self.votes_requested = now;
        self.draw_election_timeout(now);
        let transfer = why == Campaign::Transfer;
        let message = Message::RequestVote { term, last: self.log.last(), transfer };
        self.send_to_voters(&message);
    }

    pub(crate) fn on_pre_vote(&mut self, now: Instant, from: NodeId, term: Term, last: LogId) {
        let granted = term > self.hard_state.term && !self.is_sticky(now) && self.may_grant(last);
        let term = if granted { term } else { self.hard_state.term };
        self.send(from, Message::PreVoteReply { term, granted, wall_ms: self.wall_ms });
    }

    pub(crate) fn on_pre_vote_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        term: Term,
        granted: bool,
    ) {
        let Some(votes) = self.role.pre_votes_mut() else { return };
        if granted && Some(term) != self.hard_state.term.checked_next() {
            return;
        }
        votes.insert(from, granted);
        if self.has_won() {
            self.campaign(now, Campaign::Timeout);
        } else if self.has_lost() {
            self.end_campaign();
        }
    }

    pub(crate) fn on_request_vote(
        &mut self,
        now: Instant,
        from: NodeId,
        last: LogId,
        transfer: bool,
    ) {
        let is_free = self.hard_state.vote.is_none_or(|vote| vote == from);
        let granted = is_free && (transfer || !self.is_sticky(now)) && self.may_grant(last);
        if granted {
            self.hard_state.vote = Some(from);
            // Only a granted vote postpones this node's own campaign (Raft paper, section 5.2).
            self.draw_election_timeout(now);
        }
        let (term, wall_ms) = (self.hard_state.term, self.wall_ms);
        self.send(from, Message::VoteReply { term, granted, wall_ms });
    }

    /// A vote in the current term. This node's own vote arrives here too, once it is durable.
    pub(crate) fn on_vote_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        granted: bool,
        out: &mut Effects,
    ) {
        let Some(candidate) = self.role.candidate_mut() else { return };
        candidate.votes.insert(from, granted);
        if self.has_won() {
            if !self.waits_for_clocks(now) {
                self.become_leader(now, out);
            }
        } else if self.has_lost() {
            self.end_campaign();
        }
    }

    /// Whether the first entry of the term waits up to a heartbeat interval for more replies: the
    /// wall clocks reported so far disagree, and the missing voters may show which of them is
    /// wrong.
    fn waits_for_clocks(&mut self, now: Instant) -> bool {
        let until = now.plus(self.config.heartbeat_interval);
        if self.agreed_clock(now).is_some() {
            return false;
        }
        let configuration = self.log.configuration();
        let members = configuration.members();
        let Some(candidate) = self.role.candidate_mut() else { return false };
        let mut voters = members.iter().filter(|node| configuration.is_voter(**node));
        if voters.all(|voter| candidate.votes.contains_key(voter)) {
            return false;
        }
        now < *candidate.clock_wait_until.get_or_insert(until)
    }

    /// A node of a cluster that continues this one by force was found. Not to vote is always safe.
    pub(crate) fn on_superseded(&mut self) {
        if self.leader().is_some() {
            return;
        }
        self.abstains = true;
        if self.role.votes().is_some() {
            self.end_campaign();
        }
    }

    fn may_grant(&self, last: LogId) -> bool {
        !self.abstains && self.is_up_to_date(last)
    }

    /// The election restriction (Raft paper, section 5.4.1): the candidate's last entry has a later
    /// term, or the same term and at least the same index. A node that has lost entries to damage
    /// compares with the log that it had ([`crate::Initial::promised`]).
    fn is_up_to_date(&self, last: LogId) -> bool {
        last >= self.log.last().max(self.promised)
    }

    fn has_won(&self) -> bool {
        self.role.votes().is_some_and(|votes| {
            self.log.configuration().has_quorum(|node| votes.get(&node) == Some(&true))
        })
    }

    fn has_lost(&self) -> bool {
        self.role.votes().is_some_and(|votes| {
            self.log.configuration().is_lost(|node| votes.get(&node) == Some(&false))
        })
    }

    fn send_to_voters(&mut self, message: &SentMessage) {
        for node in self.log.configuration().members() {
            if node != self.node && self.log.configuration().is_voter(node) {
                self.send(node, message.clone());
            }
        }
    }
}
