//! Leadership transfer (Raft thesis, section 3.10): the leader stops accepting commands, brings the
//! target up to date, and tells it to campaign at once. The target's vote request is marked, so
//! that no voter refuses it because of vote stickiness.

use crate::interface::effects::Effects;
use crate::interface::input::Rejected;
use crate::protocol::role::{Campaign, Transfer};
use crate::raft_core::RaftCore;
use crate::{Instant, LogIndex, Message, NodeId};

impl RaftCore {
    pub(crate) fn on_transfer(
        &mut self,
        now: Instant,
        to: Option<NodeId>,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let until = now.plus(self.config.election_timeout_min);
        let configuration = self.log.configuration().clone();
        let leader_known = self.leader();
        let Some(leader) = self.role.leader_mut() else {
            return Err(Rejected::NotLeader { leader: leader_known });
        };
        if leader.transfer.is_some() {
            return Err(Rejected::TransferInProgress);
        }
        // A voter that is silent or lags far would not take over in time.
        let heard_within = self.config.heartbeat_interval.saturating_mul(2);
        // Not to a voter that is on its way out.
        let voters = leader.followers.iter();
        let voters = voters.filter(|(node, _)| configuration.may_take_over(**node));
        let furthest = voters.max_by_key(|(_, progress)| {
            let is_heard = now.since(progress.last_contact) <= heard_within;
            let report = &progress.report;
            let serves = (!report.short_of_space, report.halted_at.is_none());
            (is_heard, serves, progress.matched, progress.last_contact)
        });
        let chosen = to.or(furthest.map(|(node, _)| *node));
        let target = chosen.filter(|node| {
            leader.followers.contains_key(node) && configuration.may_take_over(*node)
        });
        let Some(to) = target else { return Err(Rejected::NoTransferTarget) };
        leader.transfer =
            Some(Transfer { to, until, asked_to_campaign: false, gives_way: self.disk_hangs });
        self.replicate(now, out);
        self.maybe_ask_target_to_campaign();
        Ok(())
    }

    /// Tells the target to campaign once its log equals this leader's and all of it is committed.
    /// Otherwise its election would leave commands of this leader's callers with an unknown
    /// outcome.
    pub(crate) fn maybe_ask_target_to_campaign(&mut self) {
        let last: LogIndex = self.log.last_index();
        if self.log.committed() < last {
            return;
        }
        let term = self.hard_state.term;
        let Some(leader) = self.role.leader_mut() else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let is_ready =
            leader.followers.get(&transfer.to).is_some_and(|progress| progress.matched == last);
        if is_ready && !transfer.asked_to_campaign {
            transfer.asked_to_campaign = true;
            leader.lease.revoke();
            let to = transfer.to;
            self.send(to, Message::TimeoutNow { term });
        }
    }

    /// `TimeoutNow` may be lost with a connection; it is sent again.
    pub(crate) fn ask_target_again(&mut self, lost: NodeId) {
        if let Some(leader) = self.role.leader_mut()
            && let Some(transfer) = leader.transfer.as_mut().filter(|transfer| transfer.to == lost)
        {
            transfer.asked_to_campaign = false;
            self.maybe_ask_target_to_campaign();
        }
    }

    /// Abandons a transfer that has not completed in time: the target may be gone.
    pub(crate) fn maybe_abandon_transfer(&mut self, now: Instant, out: &mut Effects) {
        let is_left_out = self.is_left_out();
        if let Some(leader) = self.role.leader_mut()
            && let Some(transfer) = leader.transfer.take_if(|transfer| now >= transfer.until)
            && (transfer.gives_way || is_left_out)
        {
            self.become_follower(now, self.hard_state.term, out);
        }
    }

    /// This node's disk hangs, or works again. A leader whose disk hangs blocks every caller of the
    /// cluster: the followers persist and commit, but this leader applies and answers nothing. It
    /// transfers its leadership; if that fails, or no voter is heard, it steps down. A single voter
    /// remains leader, because no other node could lead.
    pub(crate) fn on_disk_hangs(&mut self, now: Instant, hangs: bool, out: &mut Effects) {
        self.disk_hangs = hangs;
        let Some(leader) = self.role.leader_mut() else { return };
        match &mut leader.transfer {
            Some(transfer) => {
                transfer.gives_way = hangs;
                return;
            }
            None if !hangs || self.log.configuration().is_sole_voter(self.node) => return,
            None => {}
        }
        self.give_way(now, out);
    }

    /// Transfers the leadership, or steps down if no voter can take over.
    pub(crate) fn give_way(&mut self, now: Instant, out: &mut Effects) {
        if self.on_transfer(now, None, out).is_err() {
            self.become_follower(now, self.hard_state.term, out);
        }
    }

    /// The voter that should lead when this node's disk is full: one that was heard recently and
    /// has free space; of several, the one with the longest matching log.
    #[must_use]
    pub fn voter_with_space(&self, now: Instant) -> Option<NodeId> {
        let leader = self.role.leader()?;
        let heard_within = self.config.heartbeat_interval.saturating_mul(3);
        let voters = leader.followers.iter().filter(|(node, progress)| {
            self.log.configuration().may_take_over(**node)
                && now.since(progress.last_contact) <= heard_within
                && progress.round_answered > 0
                && !progress.report.short_of_space
        });
        voters.max_by_key(|(_, progress)| progress.matched).map(|(node, _)| *node)
    }

    /// The voter that should lead when this node's state machine hangs: the one that has applied
    /// most, if that is more than this node has applied.
    #[must_use]
    pub fn voter_ahead_in_apply(&self, now: Instant) -> Option<NodeId> {
        let leader = self.role.leader()?;
        let heard_within = self.config.heartbeat_interval.saturating_mul(3);
        let best = leader
            .followers
            .iter()
            .filter(|(node, _)| self.log.configuration().may_take_over(**node))
            .filter(|(_, progress)| now.since(progress.last_contact) <= heard_within)
            .max_by_key(|(_, progress)| progress.report.applied)?;
        (best.1.report.applied > self.log.applied()).then_some(*best.0)
    }

    /// The leader of this term tells this node to campaign at once, without a pre-vote. Ignored if
    /// the sender is not the known leader, or if this node is not a voter.
    pub(crate) fn on_timeout_now(&mut self, now: Instant, from: NodeId) {
        let is_led_by = self
            .role
            .follower()
            .is_some_and(|follower| follower.leader.is_none_or(|leader| leader == from));
        if is_led_by && self.may_campaign() && !self.disk_hangs && !self.abstains {
            self.campaign(now, Campaign::Transfer);
        }
    }
}
