//! Handing leadership over (Raft thesis, section 3.10): stop taking commands in, bring the target up to
//! date, tell it to campaign at once. Its request for votes is marked, so that nobody refuses it out
//! of loyalty to the leader that wants to go.

use crate::effects::Effects;
use crate::input::Rejected;
use crate::raft_core::RaftCore;
use crate::role::{Role, Transfer};
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
        let Role::Leader(leader) = &mut self.role else {
            return Err(Rejected::NotLeader { leader: leader_known });
        };
        if leader.transfer.is_some() {
            return Err(Rejected::TransferInProgress);
        }
        // One that is silent, or far behind, would not take over in time.
        let patience = self.config.heartbeat_interval.times(2);
        let voters = leader.followers.iter().filter(|(node, _)| configuration.is_voter(**node));
        let furthest = voters.max_by_key(|(_, progress)| {
            let is_heard = now.since(progress.last_contact) <= patience;
            let report = &progress.report;
            let serves = (!report.short_of_room, report.stands_at.is_none());
            (is_heard, serves, progress.matched, progress.last_contact)
        });
        let chosen = to.or(furthest.map(|(node, _)| *node));
        let target =
            chosen.filter(|node| leader.followers.contains_key(node) && configuration.is_voter(*node));
        let Some(to) = target else { return Err(Rejected::NoTransferTarget) };
        leader.transfer = Some(Transfer { to, until, told: false, gives_way: self.disk_hangs });
        self.replicate(now, out);
        self.maybe_tell_target();
        Ok(())
    }

    /// Tells the target to campaign once it holds everything that this leader holds, and all of that is
    /// committed: otherwise its election would leave commands of this leader's callers without an answer.
    pub(crate) fn maybe_tell_target(&mut self) {
        let last: LogIndex = self.log.last_index();
        if self.log.committed() < last {
            return;
        }
        let term = self.hard_state.term;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let is_ready = leader.followers.get(&transfer.to).is_some_and(|progress| progress.matched == last);
        if is_ready && !transfer.told {
            transfer.told = true;
            leader.lease.forswear();
            let to = transfer.to;
            self.send(to, Message::TimeoutNow { term });
        }
    }

    /// The order to campaign may be lost with a connection; it is told again.
    pub(crate) fn tell_target_again(&mut self, lost: NodeId) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(transfer) = leader.transfer.as_mut().filter(|transfer| transfer.to == lost)
        {
            transfer.told = false;
            self.maybe_tell_target();
        }
    }

    /// Gives a transfer up that has not come to an end: the target may be gone.
    pub(crate) fn maybe_give_up_transfer(&mut self, now: Instant, out: &mut Effects) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(transfer) = leader.transfer.take_if(|transfer| now >= transfer.until)
            && transfer.gives_way
        {
            self.become_follower(now, self.hard_state.term, out);
        }
    }

    /// The own disk does not answer, or answers again. A leader whose disk hangs holds every caller of
    /// the cluster up: the others store and commit, but nothing is applied or answered here. It hands
    /// leadership over; if that comes to nothing, or nobody is heard who could take it, it steps down.
    /// A leader that is the only voter stays: nobody else could do better.
    pub(crate) fn on_disk_hangs(&mut self, now: Instant, hangs: bool, out: &mut Effects) {
        self.disk_hangs = hangs;
        let Role::Leader(leader) = &mut self.role else { return };
        match &mut leader.transfer {
            Some(transfer) => {
                transfer.gives_way = hangs;
                return;
            }
            None if !hangs || self.log.configuration().voters() == [self.node] => return,
            None => {}
        }
        if self.on_transfer(now, None, out).is_err() {
            self.become_follower(now, self.hard_state.term, out);
        }
    }

    /// A voter that was heard lately and has room on its disk: who should lead when this node has none.
    /// Of several the one whose log is longest.
    #[must_use]
    pub fn voter_with_room(&self, now: Instant) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let heard_within = self.config.heartbeat_interval.times(3);
        let voters = leader.followers.iter().filter(|(node, progress)| {
            self.log.configuration().is_voter(**node)
                && now.since(progress.last_contact) <= heard_within
                && progress.round_answered > 0
                && !progress.report.short_of_room
        });
        voters.max_by_key(|(_, progress)| progress.matched).map(|(node, _)| *node)
    }

    /// The voter that has applied most, if that is more than this node has: who should lead when this
    /// node's state machine hangs.
    #[must_use]
    pub fn voter_ahead_in_apply(&self, now: Instant) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let heard_within = self.config.heartbeat_interval.times(3);
        let best = leader
            .followers
            .iter()
            .filter(|(node, _)| self.log.configuration().is_voter(**node))
            .filter(|(_, progress)| now.since(progress.last_contact) <= heard_within)
            .max_by_key(|(_, progress)| progress.report.applied)?;
        (best.1.report.applied > self.log.applied()).then_some(*best.0)
    }

    /// The leader of this term wants this node to lead: campaign at once, without a pre-vote, if it is
    /// a voter. Whoever else says so is not believed.
    pub(crate) fn on_timeout_now(&mut self, now: Instant, from: NodeId) {
        let is_led_by = matches!(&self.role, Role::Follower(follower) if follower.leader.is_none_or(|leader| leader == from));
        if is_led_by && self.log.configuration().is_voter(self.node) && !self.disk_hangs {
            self.campaign(now, true);
        }
    }
}
