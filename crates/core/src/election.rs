//! Elections: pre-vote, votes, winning and losing (Raft paper, sections 5.2 and 5.4.1; thesis,
//! sections 4.2.3 and 9.6).

use crate::effects::Effects;
use crate::raft_core::RaftCore;
use crate::role::{Candidate, Follower, Role, Votes};
use crate::{Instant, LogId, Message, NodeId, Term};

impl RaftCore {
    /// Whether this node refuses to help anybody against the leader it has: it has heard one within
    /// the shortest election timeout, has just started, or leads.
    pub(crate) fn is_loyal(&self, now: Instant) -> bool {
        matches!(self.role, Role::Leader(_)) || now < self.loyal_until
    }

    /// No leader was heard for an election timeout: ask whether an election could be won before the
    /// term is raised, so that a node that was cut off does not disturb the others on its return.
    pub(crate) fn on_election_timeout(&mut self, now: Instant) {
        self.draw_election_timeout(now);
        // A node whose disk does not answer could store neither its vote nor an entry.
        if !self.log.configuration().is_voter(self.node) || self.disk_hangs {
            return;
        }
        self.role = Role::PreCandidate(Votes::from([(self.node, true)]));
        if self.has_won() {
            self.campaign(now, false);
            return;
        }
        let Some(term) = self.hard_state.term.checked_next() else { return };
        self.pre_votes_asked = now;
        let message = Message::PreVote { term, last: self.log.last() };
        self.send_to_voters(&message);
    }

    /// Raises the term and asks for votes. The requests leave once the own vote is durable, and only
    /// then does the own vote count.
    ///
    /// `transfer` marks the request of a candidate that the leader told to take over.
    pub(crate) fn campaign(&mut self, now: Instant, transfer: bool) {
        let next = self.hard_state.term.checked_next().filter(|term| *term <= Term::MAX_ACCEPTED);
        let Some(term) = next else {
            self.role = Role::Follower(Follower::default());
            return;
        };
        self.hard_state.term = term;
        self.hard_state.vote = Some(self.node);
        let own_vote = self.coming_order();
        self.role = Role::Candidate(Candidate { votes: Votes::new(), own_vote, clock_wait_until: None });
        self.votes_asked = now;
        self.draw_election_timeout(now);
        let message = Message::RequestVote { term, last: self.log.last(), transfer };
        self.send_to_voters(&message);
    }

    pub(crate) fn on_pre_vote(&mut self, now: Instant, from: NodeId, term: Term, last: LogId) {
        let granted = term > self.hard_state.term && !self.is_loyal(now) && self.is_up_to_date(last);
        let term = if granted { term } else { self.hard_state.term };
        self.send(from, Message::PreVoteReply { term, granted, wall_ms: self.wall_ms });
    }

    pub(crate) fn on_pre_vote_reply(&mut self, now: Instant, from: NodeId, term: Term, granted: bool) {
        let Role::PreCandidate(votes) = &mut self.role else { return };
        if granted && Some(term) != self.hard_state.term.checked_next() {
            return;
        }
        votes.insert(from, granted);
        if self.has_won() {
            self.campaign(now, false);
        } else if self.has_lost() {
            self.role = Role::Follower(Follower::default());
        }
    }

    pub(crate) fn on_request_vote(&mut self, now: Instant, from: NodeId, last: LogId, transfer: bool) {
        let is_free = self.hard_state.vote.is_none_or(|vote| vote == from);
        let granted = is_free && (transfer || !self.is_loyal(now)) && self.is_up_to_date(last);
        if granted {
            self.hard_state.vote = Some(from);
            // Only a granted vote puts the own campaign off (Raft paper, section 5.2).
            self.draw_election_timeout(now);
        }
        let (term, wall_ms) = (self.hard_state.term, self.wall_ms);
        self.send(from, Message::VoteReply { term, granted, wall_ms });
    }

    /// A vote of the current term; the own one arrives here too, once it is durable.
    pub(crate) fn on_vote_reply(&mut self, now: Instant, from: NodeId, granted: bool, out: &mut Effects) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.votes.insert(from, granted);
        if self.has_won() {
            if !self.waits_for_clocks(now) {
                self.become_leader(now, out);
            }
        } else if self.has_lost() {
            self.role = Role::Follower(Follower::default());
        }
    }

    /// Whether the first entry of the term should wait a little for more answers: the wall clocks heard so
    /// far do not agree, and voters that have not answered may show which of them is wrong.
    fn waits_for_clocks(&mut self, now: Instant) -> bool {
        let until = now.plus(self.config.heartbeat_interval);
        if self.agreed_clock(now).is_some() {
            return false;
        }
        let members = self.log.configuration().members();
        let voters = members.iter().filter(|node| self.log.configuration().is_voter(**node)).count();
        let Role::Candidate(candidate) = &mut self.role else { return false };
        if candidate.votes.len() >= voters {
            return false;
        }
        now < *candidate.clock_wait_until.get_or_insert(until)
    }

    /// The election restriction (Raft paper, section 5.4.1): the candidate's last entry has a later
    /// term, or the same term and at least the same index.
    fn is_up_to_date(&self, last: LogId) -> bool {
        last >= self.log.last() || cfg!(mutant = "no-log-check-in-vote")
    }

    fn votes(&self) -> Option<&Votes> {
        match &self.role {
            Role::PreCandidate(votes) => Some(votes),
            Role::Candidate(candidate) => Some(&candidate.votes),
            Role::Follower(_) | Role::Leader(_) => None,
        }
    }

    fn has_won(&self) -> bool {
        self.votes()
            .is_some_and(|votes| self.log.configuration().has_quorum(|node| votes.get(&node) == Some(&true)))
    }

    fn has_lost(&self) -> bool {
        self.votes()
            .is_some_and(|votes| self.log.configuration().is_lost(|node| votes.get(&node) == Some(&false)))
    }

    fn send_to_voters(&mut self, message: &Message) {
        for node in self.log.configuration().members() {
            if node != self.node && self.log.configuration().is_voter(node) {
                self.send(node, message.clone());
            }
        }
    }
}
