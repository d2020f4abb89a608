//! Every change of role. Nothing else replaces a node's role.
//!
//! ```text
//!               election timeout           pre-votes won           votes won
//!  follower ────────────────────▶ pre-candidate ──────▶ candidate ──────────▶ leader
//!     ▲  └──────── TimeoutNow of the leader ──────────────▲  │                   │
//!     └──────────── lost, or a leader, or a later term ──────┴───────────────────┘
//! ```
//!
//! A transition that the algorithm excludes is a defect, and stops the node.

use alloc::boxed::Box;

use super::{Candidate, Follower, Leader, Role, Votes};
use crate::interface::effects::Effects;
use crate::raft_core::RaftCore;
use crate::{Instant, NodeId, PersistId, Term};

impl RaftCore {
    /// Becomes a follower in `term`, the current or a later one. Only a later term resets the vote:
    /// within a term the vote stays.
    pub(crate) fn become_follower(&mut self, now: Instant, term: Term, out: &mut Effects) {
        if term > self.hard_state.term {
            self.hard_state.term = term;
            self.hard_state.vote = None;
            if now >= self.promised_before {
                self.hard_state.stickiness =
                    self.hard_state.stickiness.min(self.config.election_timeout_min);
            }
        }
        let before = core::mem::replace(&mut self.role.0, Role::Follower(Follower::default()));
        if let Role::Leader(leader) = before {
            out.lost_leadership = true;
            leader.reads.lose(&mut out.reads_lost);
            self.draw_election_timeout(now);
        }
    }

    /// Accepts `leader` as the leader of the current term. Two leaders in one term are impossible
    /// (Election Safety).
    pub(crate) fn follow(&mut self, leader: NodeId) -> &mut Follower {
        assert!(!self.role.is_leader(), "a leader of the same term cannot follow another one");
        let follows = self.role.follower().is_some_and(|follower| follower.leader == Some(leader));
        if !follows {
            let follower = Follower { leader: Some(leader), ..Follower::default() };
            self.role.0 = Role::Follower(follower);
        }
        match &mut self.role.0 {
            Role::Follower(follower) => follower,
            _ => unreachable!("the role was set above"),
        }
    }

    /// Ends a campaign that was lost or cannot begin. The term and the vote stay.
    pub(crate) fn end_campaign(&mut self) {
        assert!(!self.role.is_leader(), "a leader has no campaign to end");
        self.role.0 = Role::Follower(Follower::default());
    }

    /// Begins to collect pre-votes, with its own.
    pub(crate) fn become_pre_candidate(&mut self) {
        assert!(!self.role.is_leader(), "a leader does not campaign");
        self.role.0 = Role::PreCandidate(Votes::from([(self.node, true)]));
    }

    /// Enters `term` as a candidate and votes for itself. The vote counts once the persist request
    /// `own_vote` is durable.
    pub(crate) fn become_candidate(&mut self, term: Term, own_vote: PersistId) {
        assert!(!self.role.is_leader(), "a leader does not campaign");
        assert!(term > self.hard_state.term, "a campaign for {term}, which is not a new term");
        self.hard_state.term = term;
        self.hard_state.vote = Some(self.node);
        let candidate = Candidate { votes: Votes::new(), own_vote, clock_wait_until: None };
        self.role.0 = Role::Candidate(candidate);
    }

    /// Leads the term whose election this candidate has won.
    pub(crate) fn enter_leadership(&mut self, leader: Leader) {
        assert!(self.role.candidate().is_some(), "only a candidate wins an election");
        self.role.0 = Role::Leader(Box::new(leader));
    }
}
